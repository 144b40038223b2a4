"""Variances that many weights share, and what they make of a product.

Local reparameterization multiplies squared inputs with the variances of all
weights: a second product of the size of the first. Where the variance of a
weight is a factor for its input times a factor for its output unit, the sum
over inputs is the same for every unit, and the product has one column (the
k-tied normal posterior of Swiatkowski et al. 2020, arXiv:2002.02655, with
k = 1, whose factors are `share="rank1"`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_vd._backend.branching import either, is_all_true
from keras_vd._backend.fusing import key_of
from keras_vd._backend.types import Tensor
from keras_vd.posteriors.binding import Axes

SHARES = ("weight", "unit", "input", "rank1", "layer")

# (squared inputs, factors of inputs, factors of units) -> output variances
SharedOp = Callable[[Tensor, Tensor, Tensor], Tensor]


def shared_shape(share: str, shape: Sequence[int], axes: Axes) -> Any:
    """Return the shape of a parameter that broadcasts to a weight.

    Args:
        share: One of `SHARES`; "rank1" has a parameter for each unit, and
            another one of share "input".
        shape: Shape of the weight.
        axes: What its axes mean.
    """
    kept = {
        "weight": range(len(shape)),
        "unit": axes.outputs,
        "rank1": axes.outputs,
        "input": axes.inputs,
        "layer": (),
    }[share]
    return tuple(n if i in kept else 1 for i, n in enumerate(shape))


@dataclasses.dataclass(frozen=True)
class SharedVariance:
    """Variances as an outer product; pruned weights have none.

    Attributes:
        inputs: Factors of the input units, or one for all, of size 1 along
            all other axes of the weight.
        units: Factors of all output units, of size 1 along all other axes.
        keep_mask: Bool tensor of the weight's shape; False is pruned.
        shared_op: What the layer's linear operation is for an outer product:
            a function of squared inputs, `inputs` and `units`.
    """

    inputs: Any
    units: Any
    keep_mask: Any
    shared_op: SharedOp

    def output_variances(
        self,
        linear_op: Callable[[Tensor, Tensor], Tensor],
        squares: Tensor,
        product_dtype: Any,
    ) -> Tensor:
        """Return `linear_op(squares, variances of all weights)`.

        There is no product as long as no weight is pruned; the variances of
        what `prune` leaves are no outer product.

        Args:
            linear_op: `(inputs, weight) -> outputs`, linear in both.
            squares: Squared inputs.
            product_dtype: Type of the product where there is one.

        Returns:
            Tensor of the outputs' shape, in float32 or the type of `squares`
            where that has more digits.
        """
        # The sum over all inputs comes before any small factor, and would
        # overflow in float16.
        dtype = keras.backend.result_type(squares.dtype, "float32")

        def product(
            squares: Tensor, inputs: Tensor, units: Tensor, keep_mask: Tensor
        ) -> Tensor:
            variances = ops.where(keep_mask, inputs * units, 0.0)
            outputs = linear_op(
                ops.cast(squares, product_dtype),
                ops.cast(variances, product_dtype),
            )
            return ops.cast(outputs, dtype)

        tensors = (squares, self.inputs, self.units)

        def find_key() -> Any:
            keys = key_of(linear_op), key_of(self.shared_op)
            return None if None in keys else (*keys, product_dtype)

        return either(
            is_all_true(self.keep_mask),
            lambda *tensors: self.shared_op(*tensors[:3]),
            product,
            [ops.cast(tensor, dtype) for tensor in tensors],
            [self.keep_mask],
            find_key,
        )


def outer_product(
    factors: Sequence[Any], keep_mask: Tensor, axes: Axes, shared_op: SharedOp
) -> SharedVariance | Tensor:
    """Multiply factors of variances, sorted into those of inputs and of units.

    Args:
        factors: Tensors that broadcast to the weight.
        keep_mask: Bool tensor of the weight's shape.
        axes: What the axes of the weight mean.
        shared_op: See `SharedVariance`.

    Returns:
        The variances; a tensor of the weight's shape if a factor belongs
        neither to inputs nor to units.
    """
    by_input: list[Any] = []
    by_unit: list[Any] = []
    for factor in factors:
        along = {i for i, size in enumerate(factor.shape) if size != 1}
        if along <= set(axes.outputs):
            by_unit.append(factor)
        elif along <= set(axes.inputs):
            by_input.append(factor)
        else:
            return ops.where(keep_mask, math.prod(factors), 0.0)
    shape = tuple(keep_mask.shape)
    one = ops.ones((1,) * len(shape), factors[0].dtype)
    units = ops.broadcast_to(
        math.prod(by_unit, start=one), shared_shape("unit", shape, axes)
    )
    return SharedVariance(
        math.prod(by_input, start=one), units, keep_mask, shared_op
    )
