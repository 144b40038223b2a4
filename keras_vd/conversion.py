"""Conversion between variational models and plain Keras models."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._keras_internals import flatten_layers, own_variables, sublayers
from keras_vd.layers.base import VariationalLayer, keras_class
from keras_vd.posteriors import WeightPosterior
from keras_vd.report import required_variational_weights


def to_deterministic(model: keras.Model) -> keras.Model:
    """Replace variational layers by plain Keras layers of the same shape.

    Kernels become the posterior means, with pruned weights at zero;
    predictions equal the variational model's inference. Everything else is
    copied as it is. The result is not compiled, and `model` is not changed.

    Args:
        model: A built Sequential or Functional model, or a subclassed one
            whose `get_config` rebuilds it.

    Returns:
        A model without any class of `keras_vd`.

    Raises:
        TypeError: if `model` is no Keras model.
        ValueError: if it is not built, has no variational weights, has a
            variational layer with a `call` of its own, or is a subclassed
            model that creates variational layers by itself.
    """
    _check_model(model)
    required_variational_weights(model)
    # Also finds the user's own layers that were never registered.
    classes = {
        type(layer).__name__: type(layer) for layer in flatten_layers(model)
    }
    config = keras.saving.serialize_keras_object(model)
    plain = keras.saving.deserialize_keras_object(
        _plain_config(config, classes), custom_objects=classes, safe_mode=False
    )
    remaining = [
        layer.name
        for layer in flatten_layers(plain)
        if isinstance(layer, VariationalLayer)
    ]
    if remaining:
        raise ValueError(
            "Argument `model` must describe its variational layers in "
            "`get_config`, so that plain ones can take their place. "
            f"'{model.name}' creates some by itself: {remaining}."
        )
    _copy_weights(model, plain)
    return plain


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(
            "Argument `model` must be a Keras model. Received: "
            f"model={model!r} (of type {type(model).__name__})."
        )


def _plain_config(config: Any, classes: dict[str, type]) -> Any:
    """`config` with every variational layer described as its Keras layer."""
    if isinstance(config, (list, tuple)):
        return type(config)(_plain_config(item, classes) for item in config)
    if not isinstance(config, dict):
        return config
    config = {
        key: _plain_config(value, classes)
        for key, value in config.items()
        if key != "compile_config"
    }
    cls = classes.get(config.get("class_name"))
    if cls is None or not issubclass(cls, VariationalLayer):
        return config
    if cls.call.__module__.split(".")[0] not in ("keras_vd", "keras"):
        raise ValueError(
            "Argument `model` must compute what Keras layers compute. "
            f"'{cls.__name__}' overrides `call`, which "
            f"`keras.layers.{keras_class(cls).__name__}` does not know."
        )
    added = _added_arguments(cls)
    arguments = {
        name: value
        for name, value in config["config"].items()
        if name not in added
    }
    # Names of group variables, where Keras has an integer of its own.
    if isinstance(arguments.get("groups"), list):
        del arguments["groups"]
    return {
        **config,
        "module": "keras.layers",
        "class_name": keras_class(cls).__name__,
        "registered_name": None,
        "config": arguments,
    }


def _added_arguments(cls: type) -> set[str]:
    """Arguments of a variational layer that its Keras layer does not have."""
    added: set[str] = set()
    known: set[str] = set()
    for base in cls.__mro__:
        is_variational = issubclass(base, VariationalLayer)
        (added if is_variational else known).update(
            inspect.signature(vars(base).get("__init__", object)).parameters
        )
    return added - known


def _copy_weights(
    source: keras.layers.Layer, target: keras.layers.Layer
) -> None:
    """Copy values from a variational layer tree to its plain counterpart."""
    replaced = {
        id(variable): value
        for layer in flatten_layers(source)
        if isinstance(layer, VariationalLayer)
        for variable, value in layer.inference_values()
    }
    _copy_variables(source, target, replaced)


def _copy_variables(
    source: keras.layers.Layer,
    target: keras.layers.Layer,
    replaced: dict[int, Any],
) -> None:
    for old, new in zip(
        own_variables(source), own_variables(target), strict=True
    ):
        # Through NumPy: two JAX variables must not share one buffer.
        new.assign(ops.convert_to_numpy(replaced.get(id(old), old)))
    children = [
        x for x in sublayers(source) if not isinstance(x, WeightPosterior)
    ]
    for old_child, new_child in zip(children, sublayers(target), strict=True):
        _copy_variables(old_child, new_child, replaced)


def freeze_zeros(model: keras.Model) -> None:
    """Keep the zeros of a plain model's weights at zero in later training.

    For fine-tuning after `to_deterministic`: every zero entry of a trainable
    weight of rank 2 or more gets a constraint that sets it back after each
    update. Constraints already there are applied first. They live in this
    object only and are not saved.

    Args:
        model: A built Keras model; changed in place.

    Raises:
        TypeError: if `model` is no Keras model.
    """
    _check_model(model)
    for variable in model.trainable_variables:
        nonzero = ops.convert_to_numpy(variable) != 0.0
        if len(variable.shape) > 1 and not nonzero.all():
            variable.constraint = _Masked(nonzero, variable.constraint)


class _Masked:
    """Constraint that keeps masked entries at zero."""

    def __init__(self, nonzero: np.ndarray, constraint: Any) -> None:
        self.nonzero = nonzero
        self.constraint = constraint

    def __call__(self, value: Any) -> Any:
        if self.constraint is not None:
            value = self.constraint(value)
        # An optimizer passes the variable itself, which JAX cannot trace here.
        value = ops.convert_to_tensor(value)
        return ops.where(self.nonzero, value, 0.0)
