"""Local reparameterization: noise on outputs instead of on weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_vd._backend.fusing import compiled, no_gradient, rounded
from keras_vd._backend.types import Tensor
from keras_vd.posteriors.sharing import SharedVariance


def local_reparameterization(
    linear_op: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    mean: Tensor,
    variance: Tensor | SharedVariance,
    noise: Callable[[Any, Any], Tensor],
    variance_dtype: str | None = None,
) -> Tensor:
    """Draw the outputs of a linear operation with a Gaussian weight.

        y ~ N(linear_op(x, mean), linear_op(x^2, variance))

    For each output on its own, that is the distribution of `linear_op(x, w)`
    for w ~ N(mean, variance). The noise is independent for every output, in
    place of one noisy weight for the whole batch (Kingma et al. 2015,
    arXiv:1506.02557, section 2.3).

    Args:
        linear_op: `(inputs, weight) -> outputs`, linear in both.
        inputs: Tensor.
        mean: Tensor of the weight's shape, in the dtype of the product.
        variance: Tensor of the weight's shape, not negative; or an outer
            product, which needs no second product.
        noise: `(shape, dtype) -> tensor` of standard normal noise.
        variance_dtype: Type of the second product; None: that of the first.

    Returns:
        Tensor of the shape and dtype of `linear_op(inputs, mean)`.
    """
    outputs = linear_op(inputs, mean)
    dtype = variance_dtype or outputs.dtype
    # In floats, as squares of integers may overflow, and variances are floats.
    squares = ops.square(ops.cast(inputs, outputs.dtype))
    if isinstance(variance, SharedVariance):
        variances = variance.output_variances(linear_op, squares, dtype)
    else:
        variances = linear_op(
            ops.cast(squares, dtype), ops.cast(variance, dtype)
        )
    drawn = noise(ops.shape(outputs), outputs.dtype)
    return _add_noise(outputs, ops.cast(variances, outputs.dtype), drawn)


@ops.custom_gradient
def _add_noise(outputs: Tensor, variances: Tensor, noise: Tensor) -> Any:
    """Return outputs + sqrt(variances) * noise.

    For the gradient one tensor is kept, the derivative by the variances.
    """
    noisy, slope = compiled(_noisy_and_slope, outputs, variances, noise)

    def grad(*args: Any, upstream: Any = None) -> Any:
        upstream = args[0] if upstream is None else upstream
        return upstream, upstream * slope, no_gradient(noise)

    return noisy, grad


def _noisy_and_slope(
    outputs: Tensor, variances: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    # The floor is there because sqrt has no gradient at 0; 1e-8 would be 0 in
    # float16. Fast convolutions may round a variance to slightly less than 0.
    is_half = keras.backend.standardize_dtype(outputs.dtype) == "float16"
    floor = 1e-6 if is_half else 1e-8
    stddev = ops.sqrt(ops.relu(variances) + floor)
    slope = ops.where(ops.greater(variances, 0.0), 0.5 * noise / stddev, 0.0)
    return outputs + rounded(stddev * noise), slope
