"""Compare two models by what they predict for random inputs."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import flatten_layers, mask_of

# Sizes of open axes with which a model is tried, in this order.
_SIZES = (7, 16, 3, 1)


def predict_the_same(model: keras.Model, functional: keras.Model) -> bool:
    """Compare predictions for random inputs, to the last bit.

    True if no inputs are found that the model takes.
    """
    for size, is_id in itertools.product(_SIZES, _kinds(functional)):
        drawn = _draw(functional, size, is_id)
        if drawn is None:
            return True
        try:
            expected = model(drawn, training=False)
        # Each backend raises its own type of error.
        except Exception:
            continue
        try:
            found = functional(drawn, training=False)
        except Exception:
            return False
        return _equal_outputs(found, expected)
    return True


def _kinds(model: keras.Model) -> tuple[bool, ...]:
    """Return whether to draw ids in place of real numbers, or both in turn."""
    looks_up = any(
        isinstance(x, keras.layers.Embedding) for x in flatten_layers(model)
    )
    return (True, False) if looks_up else (False, True)


def _draw(model: keras.Model, size: int, is_id: bool) -> Any:
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

    if any(x.dtype == "string" for x in model.inputs):
        return None
    return keras.tree.map_structure(draw, model.input)


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


def _equal_arrays(one: Any, other: Any) -> bool:
    one, other = ops.convert_to_numpy(one), ops.convert_to_numpy(other)
    is_float = one.dtype.kind not in "OSUbiu"
    return one.dtype == other.dtype and np.array_equal(
        one, other, equal_nan=is_float
    )
