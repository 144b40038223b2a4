"""Factors of a layer's inputs, and weights that absorb them.

Factors are an array that broadcasts to one example of the inputs.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

# Variables, and the values that they have to get.
Values = list[tuple[keras.Variable, np.ndarray]]


def along(factors: np.ndarray, axis: int) -> np.ndarray | None:
    """Return the factors of one axis, if they do not depend on the others."""
    if not factors.ndim:
        return None
    is_alone = factors.size == factors.shape[axis]
    return factors.reshape(-1) if is_alone else None


def of_channels(layer: Any, factors: np.ndarray) -> np.ndarray | None:
    """Return the factors of the channels, if they depend on nothing else."""
    is_first = getattr(layer, "data_format", None) == "channels_first"
    return along(factors, 0 if is_first else -1)


def scaled(
    variable: keras.Variable, factors: np.ndarray, axis: int
) -> tuple[keras.Variable, np.ndarray]:
    """Return a variable, and its value times factors along one axis."""
    value = ops.convert_to_numpy(variable)
    shape = [1] * value.ndim
    shape[axis] = -1
    return variable, value * factors.reshape(shape)
