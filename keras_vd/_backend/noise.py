"""Standard normal noise, two values out of each 32 random bits."""

from __future__ import annotations

import functools
from typing import Any

import keras
from keras import ops

from keras_vd._backend.fusing import compiled
from keras_vd._backend.types import Tensor

# Of the 32 bits, the radius of the Box-Muller method gets 18 and the angle 14.
# The largest value is then 5.1, beyond which 3 in 10 million would lie.
_ANGLE_BITS = 14
_RADIUS_BITS = 18
# sin(pi t / 2) = t * polynomial in t^2, with errors below 6e-7 for -1 < t < 1.
# Reweighted least squares have minimized the largest error. The polynomial is
# used because XLA's own sine is slow on a CPU.
_SINE = (1.57079101, -0.64589285, 0.07943434, -0.0043331)
# A hash function by Ettinger ("hash-prospector") that is hardly biased, and the
# step of a Weyl sequence.
_FACTORS = (0x21F0AAAD, 0xD35A2D97 - 2**32)
_STEP = 0x9E3779B9 - 2**32


def standard_normal(shape: tuple[Any, ...], dtype: Any, seed: Any) -> Tensor:
    """Draw independent N(0, 1) values.

    Args:
        shape: Shape of the result, of rank 1 or more; dimensions may be
            tensors.
        dtype: Float type of the result.
        seed: `keras.random.SeedGenerator`.

    Returns:
        Tensor of that shape and type.
    """
    if keras.backend.backend() == "torch":
        # Cheaper there than drawing bits.
        return keras.random.normal(shape, dtype=dtype, seed=seed)
    size = shape[-1]
    bits = _random_bits((*shape[:-1], (size + 1) // 2), seed)
    return compiled(functools.partial(_from_bits, size=size, dtype=dtype), bits)


def rows_of_normals(rows: Tensor, size: int, dtype: Any, seed: Any) -> Tensor:
    """Draw rows of a table of N(0, 1) values, of which there is only a seed.

    A row has the same values wherever it occurs. They are a hash of their place
    in the table and of 62 fresh random bits. On PyTorch, whose shapes may
    depend on values, each row is drawn once.

    Args:
        rows: Integer tensor of any shape: numbers of rows.
        size: Number of values in a row.
        dtype: Float type of the result.
        seed: `keras.random.SeedGenerator`.

    Returns:
        Tensor of shape `(*rows.shape, size)` and of that type.
    """
    if keras.backend.backend() == "torch":
        import torch

        unique, places = torch.unique(rows, return_inverse=True)
        table = keras.random.normal((len(unique), size), dtype=dtype, seed=seed)
        return table[places]
    keys = keras.random.randint((2,), 0, 2**31 - 1, "int32", seed=seed)
    pairs = (size + 1) // 2
    starts = ops.expand_dims(ops.cast(rows, "int32") * pairs, -1)
    places = starts + ops.arange(pairs, dtype="int32")

    draw = functools.partial(_normals_at, size=size, dtype=dtype)
    return compiled(draw, places, keys)


def _normals_at(places: Tensor, keys: Tensor, size: int, dtype: Any) -> Tensor:
    hashed = _mixed(places * _STEP + keys[0])
    bits = _mixed(ops.bitwise_xor(hashed, keys[1]))
    return _from_bits(bits, size, dtype)


def _mixed(numbers: Tensor) -> Tensor:
    """Hash int32 numbers; products wrap around."""
    for shift, factor in zip((16, 15), _FACTORS, strict=True):
        numbers = ops.bitwise_xor(numbers, _shifted(numbers, shift)) * factor
    return ops.bitwise_xor(numbers, _shifted(numbers, 15))


def _shifted(numbers: Tensor, shift: int) -> Tensor:
    """Shift bits to the right, and zeros in."""
    return _low_bits(ops.right_shift(numbers, shift), 32 - shift)


def _low_bits(numbers: Tensor, count: int) -> Tensor:
    return ops.bitwise_and(numbers, (1 << count) - 1)


def _random_bits(shape: tuple[Any, ...], seed: Any) -> Tensor:
    """Draw an int32 tensor of random bits."""
    if keras.backend.backend() == "jax":
        import jax

        key = seed.next()
        if jax.default_backend() == "cpu":
            # The same generator as `jax.random.bits`, in half the time, but
            # on several devices each would draw the bits of all.
            _, bits = jax.lax.rng_bit_generator(
                jax.numpy.concatenate([key, jax.numpy.zeros_like(key)]),
                shape,
                "uint32",
                algorithm=jax.lax.RandomAlgorithm.RNG_THREE_FRY,
            )
        else:
            bits = jax.random.bits(key, shape, "uint32")
        return jax.lax.bitcast_convert_type(bits, "int32")
    import tensorflow as tf

    return tf.random.stateless_uniform(
        shape,
        seed=tf.cast(seed.next(), tf.int32),
        minval=None,
        maxval=None,
        dtype=tf.int32,
    )


def _from_bits(bits: Tensor, size: Any, dtype: Any) -> Tensor:
    """Turn random bits into independent N(0, 1) values.

    Args:
        bits: Int32 tensor of shape `(..., (size + 1) // 2)`.
        size: Last dimension of the result.
        dtype: Type of the result.
    """
    steps = ops.cast(ops.right_shift(bits, _ANGLE_BITS), "float32")
    # Midpoints of 2^18 steps from 0 to 1, whose logarithms are finite.
    uniform = steps * 2.0**-_RADIUS_BITS + (0.5 + 0.5**_RADIUS_BITS / 2)
    diameter = ops.sqrt(-8.0 * ops.log(uniform))
    turn = ops.cast(ops.bitwise_and(bits, 2**_ANGLE_BITS - 1), "float32")
    # The angle is pi * turn, with midpoints of 2^14 steps from -1 to 1.
    turn = turn * 2.0 ** (1 - _ANGLE_BITS) + (0.5**_ANGLE_BITS - 1.0)
    square = turn * turn
    sine = _SINE[-1]
    for coefficient in _SINE[-2::-1]:
        sine = sine * square + coefficient
    sine = sine * turn
    # This is the sine of half the angle, h. Then cos(2 h) / 2 = 1/2 - sin^2 h
    # and sin(2 h) / 2 = sin h cos h, with cos h >= 0. The square of cos h needs
    # `abs`, because the fitted sine may exceed 1 by its error.
    half_cosine = 0.5 - sine * sine
    half_sine = sine * ops.sqrt(ops.abs(half_cosine + 0.5))
    pairs = ops.concatenate(
        [diameter * half_cosine, diameter * half_sine], axis=-1
    )
    return ops.cast(pairs[..., :size], dtype)
