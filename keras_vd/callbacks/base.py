"""What callbacks that set the KL weight have in common."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras
from keras import ops

from keras_vd._backend.keras_internals import (
    Fit,
    build_for_fit,
    counted_examples,
    exclude_from_weight_decay,
    flatten_layers,
    labels_per_example,
    running_fit,
)
from keras_vd._backend.tensorboard import EventWriter, check_tensorboard
from keras_vd._backend.validation import check_integer
from keras_vd.callbacks import advice
from keras_vd.callbacks.figures import Figures, ShortBar, layer_kl
from keras_vd.layers.structured import StructuredGate
from keras_vd.posteriors import Posterior, WeightPosterior
from keras_vd.posteriors.finding import named_posteriors, required_posteriors
from keras_vd.sparsity import sparsity_report


class KLWeightCallback(keras.callbacks.Callback):
    """Base of the callbacks that set the KL weight before each epoch.

    It logs the figures, checks the habits of `fit` that do not suit a KL in
    the loss, and stops a training that has diverged. A subclass implements
    `_weight_of` and, as needed, `_begin_run`, `_judge` and `_close_run`.

    Args:
        num_examples: As of `KLAnnealing`, and so are the others.
        verbose: 0 or 1.
        tensorboard: Path or None.
        log_layers: Bool.
        log_layer_kl: Bool.

    Raises:
        TypeError: if an argument is of the wrong type.
        ImportError: if `tensorboard` is given and not installed.
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        num_examples: int,
        verbose: int,
        tensorboard: str | os.PathLike[str] | None,
        log_layers: bool,
        log_layer_kl: bool = False,
    ) -> None:
        super().__init__()
        self.num_examples = check_integer("num_examples", num_examples, 1)
        self.verbose = verbose
        if tensorboard is not None:
            check_tensorboard()
            tensorboard = Path(tensorboard)
        self.tensorboard = tensorboard
        self.log_layers = bool(log_layers)
        self.log_layer_kl = bool(log_layer_kl)
        self._events: EventWriter | None = None
        self._told: set[str] = set()
        self._forget_fit()

    def _forget_fit(self) -> None:
        self._fit = Fit(None, None)
        self._first_epoch: int | None = None
        self._last_epoch: int | None = None
        self._weight = 0.0
        self._figures: Figures | None = None
        self._bars: list[ShortBar] = []
        self._is_counted = False
        self._is_noise_checked = False

    def _weight_of(self, epoch: int) -> float:
        """Return the KL weight of an epoch that begins."""
        raise NotImplementedError

    @property
    def _advice_on_loops(self) -> str:
        """What to do in a training loop of one's own, after a space."""
        return ""

    def _begin_run(self, first: int) -> None:
        """Get ready before the first epoch of a `fit`."""

    def _judge(self, epoch: int, logs: dict[str, Any]) -> dict[str, Any]:
        """Look at an epoch that ends; return figures to be logged."""
        return {}

    def _close_run(self, last: int) -> None:
        """Do what is left to do after the last epoch of a `fit`."""

    @staticmethod
    def _assign(model: keras.layers.Layer, weight: float) -> None:
        for posterior in required_posteriors(model):
            posterior.kl_weight.assign(weight)

    def _is_news(self, subject: str) -> bool:
        """Tell whether a subject comes up for the first time; remember it."""
        is_news = subject not in self._told
        self._told.add(subject)
        return is_news

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._forget_fit()
        if getattr(self.model, "optimizer", None) is None:
            raise ValueError(
                f"{type(self).__name__} found no optimizer: its model must be "
                f"compiled and trained by `fit`.{self._advice_on_loops} "
                f"Received: model={self.model!r}."
            )
        self._fit = running_fit()
        posteriors = [
            x for x in flatten_layers(self.model) if isinstance(x, Posterior)
        ]
        if not self.model.built or not all(x.built for x in posteriors):
            build_for_fit(self.model, self._fit)
        noise_parameters = [
            variable
            for posterior in required_posteriors(self.model)
            for variable in posterior.trainable_variables
        ]
        exclude_from_weight_decay(self.model.optimizer, noise_parameters)
        if "reduction" not in self._told:
            if advice.warn_about_reduction(self.model, type(self).__name__):
                self._told.add("reduction")
        self._join_callbacks()
        if self.tensorboard is not None:
            self._events = EventWriter(self.tensorboard)

    def _join_callbacks(self) -> None:
        """Add a callback that runs after all others, and shorten the bar."""
        callbacks = self._fit.callbacks
        if callbacks is None or self not in callbacks.callbacks:
            return
        if not self._is_joined():
            callbacks.callbacks.append(_Afterwards(self))
        self._bars = [
            ShortBar(callback, lambda: self._figures)
            for callback in callbacks.callbacks
            if isinstance(callback, keras.callbacks.ProgbarLogger)
        ]

    def _is_joined(self) -> bool:
        callbacks = self._fit.callbacks
        return callbacks is not None and any(
            map(self._is_ours, callbacks.callbacks)
        )

    def _is_ours(self, callback: keras.callbacks.Callback) -> bool:
        return isinstance(callback, _Afterwards) and callback.owner is self

    def on_epoch_begin(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if self._first_epoch is None:
            self._first_epoch = epoch
            self._whole = sparsity_report(self.model)
            self._begin_run(epoch)
        self._last_epoch, self._figures = epoch, None
        self._weight = self._weight_of(epoch)
        self._assign(self.model, self._weight)

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if not self._is_noise_checked:
            self._check_noise()
        steps = self._fit.steps
        # Examples are counted after the last batch, because the validation
        # that follows resets the count.
        if not self._is_counted and steps and batch + 1 >= steps:
            self._count_examples()

    def _check_noise(self) -> None:
        """Raise a ValueError if no noise was drawn in the first batch."""
        self._is_noise_checked = True
        trained = [x for x in required_posteriors(self.model) if x.trainable]
        if trained and not any(posterior.has_drawn for posterior in trained):
            raise ValueError(
                f"Training drew no noise: all variational layers of "
                f"'{self.model.name}' were called as for inference, so that "
                "nothing adds a KL divergence to the losses. Have the `call` "
                "of the model take `training=None` and hand it on, and pass "
                "no `training=False` to the layers inside; layers that shall "
                "stay as they are need `trainable=False`."
            )

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._first_epoch is not None:
            self._count_examples()

    def _count_examples(self) -> None:
        """Compare the examples of the first epoch with `num_examples`."""
        if self._is_counted:
            return
        self._is_counted = True
        seen = counted_examples(self.model)
        if not seen or self.model.stop_training or "examples" in self._told:
            return
        if advice.warn_about_examples(
            self.num_examples,
            seen,
            self._fit.steps,
            self._fit.is_one_pass,
            labels_per_example(self.model),
            type(self).__name__,
        ):
            self._told.add("examples")

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        self._count_examples()
        self._figures = Figures(self.model, self._weight, self._whole)
        if self._figures.nonfinite:
            advice.warn_about_nonfinite(
                self._figures.nonfinite, type(self).__name__
            )
            self.model.stop_training = True
        self._figures.totals |= self._judge(epoch, logs or {})
        figures = dict(self._figures.totals)
        if self.log_layers:
            figures |= self._figures.layers
        if self.log_layer_kl:
            figures |= layer_kl(self.model)
        if logs is not None:
            logs.update(figures)
        if self._events is not None:
            self._events.write(epoch, figures, self._histograms())
        if not self._is_joined():
            self._end_epoch()

    def _end_epoch(self) -> None:
        """Print the figures, after the progress bar has ended its line."""
        if self.verbose and self._figures and self._last_epoch is not None:
            print(self._figures.line(self._last_epoch))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None
        if not self._is_joined():
            self._end_run()

    def _end_run(self) -> None:
        """Set the KL weights of the last epoch again, and undo all changes.

        A callback such as `EarlyStopping` may have restored those of another
        epoch.
        """
        last = self._last_epoch
        if last is not None:
            self._close_run(last)
            self._assign(self.model, self._weight)
        for bar in self._bars:
            bar.undo()
        callbacks = self._fit.callbacks
        if callbacks is not None:
            callbacks.callbacks = [
                x for x in callbacks.callbacks if not self._is_ours(x)
            ]
        self._forget_fit()

    def _histograms(self) -> dict[str, Any]:
        """Return what decides which weights and gates are kept, by tag."""
        found = {}
        for name, posterior in named_posteriors(self.model):
            if isinstance(posterior, WeightPosterior):
                found[f"log_alpha/{name}"] = posterior.log_alpha
            elif isinstance(posterior, StructuredGate):
                found[f"gate_mean/{name}"] = posterior.gate_mean()
        return {tag: ops.convert_to_numpy(x) for tag, x in found.items()}


class _Afterwards(keras.callbacks.Callback):
    """Callback that ends epochs and runs after all other callbacks."""

    def __init__(self, owner: KLWeightCallback) -> None:
        super().__init__()
        self.owner = owner

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        self.owner._end_epoch()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.owner._end_run()
