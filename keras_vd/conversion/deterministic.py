"""Convert a variational model to a plain Keras model."""

from __future__ import annotations

import inspect
from typing import Any

import keras

from keras_vd._backend.keras_internals import (
    extended,
    flatten_layers,
    overridden,
)
from keras_vd._backend.validation import check_finite_model, check_model
from keras_vd.conversion.cloning import MAKING_PLAIN, Cloner, Replacement
from keras_vd.conversion.folding import absorb, find_folds
from keras_vd.conversion.functional import written_out
from keras_vd.conversion.in_place import PartlyVariational, keeps_class
from keras_vd.layers.base import (
    COUNTERPARTS,
    VariationalLayer,
    keras_class,
)
from keras_vd.layers.structured import StructuredGate
from keras_vd.posteriors.finding import required_posteriors

# What a subclass of `StructuredGate` defines.
_OF_A_GATE = ("build", "gate_mean", "margin", "_draw", "_is_above", "_kl_terms")


def to_deterministic(model: keras.Model) -> keras.Model:
    """Replace variational layers by plain Keras layers of the same shape.

    Kernels become the posterior means, with pruned weights at zero;
    predictions equal the variational model's inference. A gate goes into the
    kernel of the layers that read it, also past activations, pooling, Flatten
    and the like where that is exact. Otherwise it becomes a
    `keras.layers.Rescaling` or, where it depends on the input, a small nested
    model of the same name. Everything else is copied as it is. The result is
    not compiled, and `model` is not changed.

    Args:
        model: A built model. Subclassed models and layers made of layers are
            written out, see `to_functional`; one that cannot be needs a
            `get_config` that returns its layers.

    Returns:
        A model without any class of `keras_vd`. Shared layers stay so; a
        Sequential model that uses one twice, and a model that is written out,
        become Functional ones.

    Raises:
        TypeError: if `model` is no Keras model.
        ValueError: if it is not built, has no variational layers, has weights
            that are not finite or a variational layer with a `call` of its
            own, or cannot be written out and creates variational layers by
            itself.

    Example:
    >>> model = keras.Sequential([
    ...     keras.Input((3,)),
    ...     keras_vd.layers.VDDense(2),
    ... ])
    >>> plain = keras_vd.to_deterministic(model)
    >>> type(plain.layers[0]) is keras.layers.Dense
    True
    """
    check_model(model)
    required_posteriors(model)
    check_finite_model(model)
    for layer in flatten_layers(model):
        _check_code(layer)
    if _is_from_config(model):
        return _to_deterministic(model, {})
    with written_out(model) as written:
        return _to_deterministic(written.model, written.reasons)


def _to_deterministic(
    model: keras.Model, reasons: dict[int, str]
) -> keras.Model:
    folds = find_folds(model)
    keeps = keeps_class if _is_from_config(model) else lambda x: False
    cloner = Cloner(model, _plain, left_out=folds, keeps_class=keeps)
    plain: keras.Model = cloner.clone(model)
    remaining = [
        layer.name for layer in flatten_layers(plain) if _is_ours(layer)
    ]
    if remaining:
        raise ValueError(
            "Argument `model` must describe its variational layers in "
            "`get_config`, so that plain ones can take their place. "
            f"'{model.name}' creates some by itself: {remaining}. It stays "
            f"whole: {'; '.join(reasons.values())}."
        )
    values = {
        id(variable): value
        for layer in flatten_layers(model)
        if isinstance(layer, VariationalLayer)
        for variable, value in layer.inference_values()
    }
    cloner.copy_values(model, values)
    for targets in folds.values():
        for layer, factors in targets:
            absorb(cloner.counterparts[id(layer)], factors)
    return plain


def _is_from_config(model: keras.Model) -> bool:
    """Tell whether a model becomes what it was by its config, not its graph."""
    return any(
        isinstance(x, PartlyVariational) and keeps_class(x)
        for x in flatten_layers(model)
    )


def _is_ours(layer: Any) -> bool:
    return isinstance(layer, (VariationalLayer, *MAKING_PLAIN))


def _check_code(layer: Any) -> None:
    cls = type(layer)
    known = _known_class(cls) if _is_ours(layer) else cls
    changed = overridden(cls, known)
    if known is StructuredGate:
        # A gate of the user's: at inference it is its `mean()`.
        changed = [name for name in changed if name not in _OF_A_GATE]
    if changed:
        names = ", ".join(f"`{name}`" for name in changed)
        raise ValueError(
            "Argument `model` must compute what layers of keras_vd and Keras "
            f"compute. '{cls.__name__}' overrides {names}, which no "
            "plain layer knows."
        )


def _known_class(cls: type) -> type:
    """Return the base class whose computation at inference is known.

    This is the variational form of a Keras layer or, where `cls` has none, the
    nearest class of this package.
    """
    forms = COUNTERPARTS.values()
    return next(
        (x for x in cls.__mro__ if x in forms), extended(cls, "keras_vd")
    )


def _plain(layer: Any) -> Replacement | None:
    """Return what replaces a layer; None if it is not of this package."""
    if isinstance(layer, MAKING_PLAIN):
        made: keras.layers.Layer
        made = layer.plain_layer(layer.get_build_config()["input_shape"])
        return made
    if isinstance(layer, PartlyVariational):
        return layer.plain_class, None
    if not isinstance(layer, VariationalLayer):
        return None
    cls: Any = _known_class(type(layer))
    added = _added_arguments(cls)
    config = {k: v for k, v in cls.get_config(layer).items() if k not in added}
    # A list here names group variables. Keras' convolutions have an argument of
    # the same name, which is an integer and stays.
    if isinstance(config.get("groups"), list):
        del config["groups"]
    return keras_class(cls), config


def _added_arguments(cls: type) -> set[str]:
    """Return the names of arguments that the Keras layer does not have."""
    added: set[str] = set()
    known: set[str] = set()
    for base in cls.__mro__:
        is_variational = issubclass(base, VariationalLayer)
        (added if is_variational else known).update(
            inspect.signature(vars(base).get("__init__", object)).parameters
        )
    return added - known
