"""Standard normal noise."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops


def standard_normal(shape: tuple[Any, ...], dtype: Any, seed: Any) -> Any:
    """Draw independent N(0, 1) values.

    Args:
        shape: Shape of the result, of rank 1 or more; dimensions may be
            tensors.
        dtype: Float type of the result.
        seed: `keras.random.SeedGenerator`.

    Returns:
        Tensor of that shape and type.
    """
    if keras.backend.backend() != "tensorflow":
        return keras.random.normal(shape, dtype=dtype, seed=seed)
    # On a CPU TensorFlow's normal draws take several times as long as Box and
    # Muller's pairs of normals out of pairs of uniforms.
    half = (*shape[:-1], (shape[-1] + 1) // 2)
    uniforms = keras.random.uniform((2, *half), dtype="float32", seed=seed)
    # 1 - u is in (0, 1], where the logarithm is finite.
    radius = ops.sqrt(-2.0 * ops.log(1.0 - uniforms[0]))
    angle = (2.0 * math.pi) * uniforms[1]
    pairs = ops.concatenate(
        [radius * ops.cos(angle), radius * ops.sin(angle)], axis=-1
    )
    return ops.cast(pairs[..., : shape[-1]], dtype)
