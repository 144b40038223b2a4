"""Compare two models by what they predict for random inputs."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import flatten_layers, mask_of
from keras_vd.conversion.inputs import possible_types, symbolic_inputs
from keras_vd.conversion.tracing import Untraceable

# Sizes of open axes with which a model is tried, in this order.
_SIZES = (7, 16, 3, 64, 1)


def predict_the_same(model: keras.Model, functional: keras.Model) -> bool:
    """Compare predictions for random inputs, to the last bit.

    True if no inputs are found that the model takes.
    """
    inputs, expected = _try(model, functional.input)
    if inputs is None:
        return True
    try:
        found = _call(functional, inputs)
    # Each backend raises its own type of error.
    except Exception:
        return False
    return _equal_outputs(found, expected)


def predict_alike(model: keras.Model, other: keras.Model) -> bool:
    """Compare predictions for random inputs, up to rounding.

    True if no inputs are found that `model` takes.
    """
    difference = largest_difference(model, other)
    return difference is None or difference <= 1e-4


def largest_difference(model: keras.Model, other: keras.Model) -> float | None:
    """Return how far predictions for random inputs are apart.

    That is the largest difference, as a share of the largest prediction; of
    several outputs the one where this is most. None if no inputs are found that
    `model` takes, as for models that read text.
    """
    for dtypes in possible_types(model):
        try:
            structure = symbolic_inputs(model, dtypes)
        except Untraceable:
            return None
        inputs, expected = _try(model, structure)
        if inputs is not None:
            found = _call(other, inputs)
            pairs = map(keras.tree.flatten, (found, expected))
            return float(np.max([*map(_difference, *pairs)]))
    return None


def trains_otherwise(functional: keras.Model) -> bool:
    """Tell whether outputs for random inputs are others in training."""
    inputs, expected = _try(functional, functional.input)
    if inputs is None:
        return False
    try:
        found = _call(functional, inputs, training=True)
    # Variational layers refuse to train before they know how much the KL
    # divergence weighs.
    except ValueError:
        return True
    return not _equal_outputs(found, expected)


def _try(model: keras.Model, structure: Any) -> tuple[Any, Any]:
    """Find inputs that a model takes, and what it returns for them.

    None and None if there are none.

    Args:
        model: The model.
        structure: Symbolic tensors, in the structure of its inputs.
    """
    for size, is_id in itertools.product(_SIZES, _kinds(model)):
        inputs = _draw(structure, size, is_id)
        if inputs is None:
            break
        try:
            return inputs, _call(model, inputs)
        except Exception:
            continue
    return None, None


def _call(model: keras.Model, inputs: Any, training: bool = False) -> Any:
    """Call a model without changing the states of recurrent layers, say."""
    with keras.StatelessScope():
        if "training" in inspect.signature(model.call).parameters:
            return model(inputs, training=training)
        return model(inputs)


def _kinds(model: keras.Model) -> tuple[bool, ...]:
    """Return whether to draw ids in place of real numbers, or both in turn."""
    looks_up = any(
        isinstance(x, keras.layers.Embedding) for x in flatten_layers(model)
    )
    return (True, False) if looks_up else (False, True)


def _draw(structure: Any, size: int, is_id: bool) -> Any:
    """Draw inputs; None if the model reads text."""
    generator = np.random.default_rng(0)

    def draw(tensor: Any) -> Any:
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        shape = [
            n or (size if axis else 2) for axis, n in enumerate(tensor.shape)
        ]
        is_real = keras.backend.is_float_dtype(dtype) and not is_id
        drawn = (
            generator.standard_normal(shape)
            if is_real
            else generator.integers(0, 2, shape)
        )
        return ops.convert_to_tensor(drawn, dtype=dtype)

    if any(x.dtype == "string" for x in keras.tree.flatten(structure)):
        return None
    return keras.tree.map_structure(draw, structure)


def _equal_outputs(found: Any, expected: Any) -> bool:
    pairs = zip(
        keras.tree.flatten(found), keras.tree.flatten(expected), strict=True
    )
    for one, other in pairs:
        if not _equal_arrays(one, other):
            return False
        masks = mask_of(one), mask_of(other)
        if any(x is None for x in masks):
            if masks[0] is not masks[1]:
                return False
        elif not _equal_arrays(*masks):
            return False
    return True


def _difference(one: Any, other: Any) -> float:
    one, other = (
        ops.convert_to_numpy(ops.cast(x, "float32")) for x in (one, other)
    )
    size = np.abs(other).max(initial=1e-6)
    return float(np.abs(one - other).max(initial=0.0) / size)


def _equal_arrays(one: Any, other: Any) -> bool:
    one, other = ops.convert_to_numpy(one), ops.convert_to_numpy(other)
    is_float = one.dtype.kind not in "OSUbiu"
    return one.dtype == other.dtype and np.array_equal(
        one, other, equal_nan=is_float
    )
