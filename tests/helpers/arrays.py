"""Tensors as NumPy arrays, and arrays of random numbers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np


def to_numpy(tensor: Any) -> np.ndarray:
    """Give `tensor` as an array of its own dtype."""
    return keras.ops.convert_to_numpy(tensor)


def to_float64(tensor: Any) -> np.ndarray:
    """Copy `tensor` to float64, also from bfloat16."""
    return np.array(to_numpy(tensor), "float64")


def random_inputs(*shape: int, seed: int = 7) -> np.ndarray:
    """Draw float32 numbers of a standard normal distribution."""
    return np.random.default_rng(seed).normal(size=shape).astype("float32")
