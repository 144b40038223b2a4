"""Compile the models of a pipeline as the user's model is compiled."""

from __future__ import annotations

from typing import Any

import keras

from keras_vd._backend.keras_internals import compilation
from keras_vd._backend.validation import check_number

# What a class may compute in `fit` other than by its compiled loss.
_TRAINING = ("train_step", "compute_loss", "compute_metrics")
# Growth from one step to the next at which a schedule is looked at, and how
# often: up to step 10 million.
_GROWTH, _LOOKS = 1.5, 40


class Recipe:
    """How a model is compiled, to compile others alike.

    Optimizers and metrics are new ones of the same config for each, so that
    those of the user's model stay as they are.

    Args:
        model: A compiled model.
        learning_rate: Float > 0, or None: the optimizer's own. In place of a
            schedule comes the largest rate that it has.

    Raises:
        TypeError: if `learning_rate` is no number.
        ValueError: if the model is not compiled with a loss and an optimizer,
            or a new optimizer or metric cannot be made of the config of its
            own, or `learning_rate` does not go with its optimizer.
    """

    def __init__(
        self, model: keras.Model, learning_rate: float | None = None
    ) -> None:
        compiled = compilation(model) if model.compiled else None
        config = {} if compiled is None else dict(compiled.config)
        missing = [x for x in ("optimizer", "loss") if config.get(x) is None]
        if missing:
            raise ValueError(
                "Argument `model` must be compiled, with an optimizer, a loss "
                f"and metrics as for `fit`. '{model.name}' has no "
                f"{' and no '.join(missing)}."
            )
        if learning_rate is not None:
            check_number("learning_rate", learning_rate, 0.0, exclusive=True)
        self._kind = type(model)
        self._config = config
        self._optimizer = _reproducible(config["optimizer"], learning_rate)
        self.compile_arguments()

    @property
    def learning_rate(self) -> float | None:
        """The learning rate, if the optimizer has a single one."""
        _, config = self._optimizer
        return config.get("learning_rate")

    def compile_arguments(self) -> dict[str, Any]:
        """Return the arguments of `compile`, with objects of their own."""
        kind, config = self._optimizer
        return {
            **self._config,
            "optimizer": kind.from_config(dict(config)),
            "metrics": _fresh(self._config["metrics"]),
            "weighted_metrics": _fresh(self._config["weighted_metrics"]),
        }

    def describe(self) -> dict[str, Any]:
        """Return what tells this recipe from others, as plain values."""
        kind, config = self._optimizer
        losses = keras.tree.map_structure(_name, self._config["loss"])
        return {"optimizer": [kind.__name__, config], "loss": losses}

    def compile(self, model: keras.Model) -> None:
        """Compile a model in the same way."""
        model.compile(**self.compile_arguments())

    def check(self, model: keras.Model) -> None:
        """Raise a ValueError if the class of a model trains in another way."""
        lost = [
            name
            for name in _TRAINING
            if getattr(type(model), name) is not getattr(self._kind, name)
        ]
        if lost:
            raise ValueError(
                f"Argument `model` must be trained as Keras does it: the class "
                f"{self._kind.__name__} has {', '.join(f'`{x}`' for x in lost)}"
                " of its own, which the variational model has not. If that "
                "does not matter, pass `keras_vd.to_functional(model)`, "
                "compiled."
            )


def _name(loss: Any) -> str:
    return str(getattr(loss, "name", getattr(loss, "__name__", loss)))


def _reproducible(
    optimizer: Any, learning_rate: float | None
) -> tuple[Any, dict[str, Any]]:
    """Return the class and the config of an optimizer with a constant rate."""
    kind, config = type(optimizer), optimizer.get_config()
    rate = config.get("learning_rate")
    if learning_rate is not None:
        if rate is None:
            raise ValueError(
                "Argument `learning_rate` goes with an optimizer that has a "
                f"single one. Received: learning_rate={learning_rate!r}, and "
                f"{kind.__name__}."
            )
        config["learning_rate"] = learning_rate
    elif isinstance(rate, dict):
        config["learning_rate"] = _largest_rate(kind.from_config(config))
    return kind, config


def _largest_rate(optimizer: Any) -> float:
    """Return the largest learning rate of a schedule."""
    found = []
    for power in range(_LOOKS):
        step = 0 if not power else round(_GROWTH**power)
        optimizer.iterations.assign(step)
        found.append(float(keras.ops.convert_to_numpy(optimizer.learning_rate)))
    return max(found)


def _fresh(metrics: Any) -> Any:
    """Return metrics of the same kinds that share no state with these."""

    def renewed(metric: Any) -> Any:
        if not isinstance(metric, keras.metrics.Metric):
            return metric
        try:
            return type(metric).from_config(metric.get_config())
        # The constructor of the user's own metric may raise anything.
        except Exception as error:
            raise ValueError(
                f"Metric '{metric.name}' of `model` must be one that its "
                f"`get_config` describes, since others like it are needed: "
                f"{error}"
            ) from error

    return keras.tree.map_structure(renewed, metrics)
