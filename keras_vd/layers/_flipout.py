"""Pseudo-independent kernels for every sequence of a batch.

Flipout (Wen et al. 2018, arXiv:1803.04386): example b of a batch gets the
kernel mean + deviation * (r_b outer s_b) with random signs r_b and s_b. As the
deviation is symmetric around zero, each of these kernels has the distribution
of a sample, and different examples' noise is uncorrelated.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
from keras import ops

from keras_vd._backend.keras_internals import with_other_ops
from keras_vd._backend.types import Tensor


@dataclasses.dataclass(frozen=True)
class FlippedKernel:
    """Stand-in for a cell's kernel, to be multiplied, split and sliced only.

    Attributes:
        mean: Tensor of shape `(inputs, outputs)`.
        deviation: Tensor of the same shape.
        input_signs: Tensor of shape `(batch, inputs)`.
        output_signs: Tensor of shape `(batch, outputs)`.
    """

    mean: Any
    deviation: Any
    input_signs: Any
    output_signs: Any

    @classmethod
    def draw(
        cls, mean: Tensor, deviation: Any, batch_size: Any, seed: Any
    ) -> FlippedKernel:
        """Make a kernel with random signs for every example.

        Args:
            mean: Tensor of shape `(inputs, outputs)`.
            deviation: Tensor of the same shape.
            batch_size: Int or scalar tensor.
            seed: `keras.random.SeedGenerator`.
        """
        signs = []
        for size in mean.shape:
            uniform = keras.random.uniform(
                (batch_size, size), dtype="float32", seed=seed
            )
            sign = ops.where(uniform < 0.5, -1.0, 1.0)
            signs.append(ops.cast(sign, mean.dtype))
        return cls(mean, deviation, *signs)

    def __getitem__(self, index: tuple[slice, slice]) -> FlippedKernel:
        return FlippedKernel(
            self.mean[index],
            self.deviation[index],
            self.input_signs[:, index[0]],
            self.output_signs[:, index[1]],
        )


def _matmul(inputs: Tensor, kernel: Tensor) -> Tensor:
    if not isinstance(kernel, FlippedKernel):
        return ops.matmul(inputs, kernel)
    # `ops.multiply`, because `*` does not take integers on every backend.
    flipped = ops.multiply(inputs, kernel.input_signs)
    noise = ops.matmul(flipped, kernel.deviation)
    return ops.matmul(inputs, kernel.mean) + noise * kernel.output_signs


def _split(tensor: Tensor, sections: int, axis: int = 0) -> Any:
    if not isinstance(tensor, FlippedKernel):
        return ops.split(tensor, sections, axis=axis)
    # Cells split kernels by gates, along the columns.
    width = tensor.mean.shape[1] // sections
    return [
        tensor[:, start : start + width]
        for start in range(0, sections * width, width)
    ]


def flipped_methods(cell: keras.layers.Layer) -> dict[str, Any]:
    """Copy the methods of a Keras cell that compute with its kernels.

    Returns:
        The copies by name; they take a `FlippedKernel` in place of a kernel.
    """
    return {
        name: with_other_ops(getattr(cell, name), matmul=_matmul, split=_split)
        for name in ("call", "_compute_carry_and_output")
        if hasattr(cell, name)
    }
