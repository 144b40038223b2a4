"""How a posterior's noise enters a linear operation.

    mean = linear_op(x, theta)
    variance = linear_op(x**2, sigma2)
    y = mean + sqrt(variance) * standard normal noise

This is the local reparameterization of Kingma et al. 2015
(arXiv:1506.02557, section 2.3): noise on the output of every example instead
of one noisy weight matrix for the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_vd._backend.fusing import recomputed, rounded
from keras_vd._backend.noise import standard_normal
from keras_vd.posteriors.moments import Moments
from keras_vd.posteriors.sampling import is_sampling_at_inference

# What it has of `WeightPosterior`, a type checker cannot see.
_Mixin: Any = object


class Projection(_Mixin):
    """Mixin of `WeightPosterior`: linear operations with a noisy weight."""

    def project(
        self, linear_op: Callable[[Any, Any], Any], inputs: Any, training: Any
    ) -> Any:
        """Apply `linear_op` with this posterior's weight.

        Training adds noise, and the KL divergence to the losses; inference
        uses `mean()` and is deterministic, or one weight sample where draws
        are asked for.

        Args:
            linear_op: `(inputs, weight) -> outputs`, linear in both, without
                a bias: noise belongs to the weight alone.
            inputs: Tensor; floats in the layer's compute dtype.
            training: Bool or None, never a tensor.

        Returns:
            Tensor of the shape and dtype of `linear_op(inputs, weight)`, with
            the weight in the dtype in which the layer would read it.

        Raises:
            ValueError: if `training` and the KL weight was never set.
        """
        # Not that of the inputs, which may be integers.
        dtype = self._call_dtype
        if not self.is_sampling(training):
            return linear_op(inputs, ops.cast(self.mean(), dtype))
        scales = self.draw_groups()
        # A draw at inference is a function: one weight for all examples.
        is_weight = self.estimator == "weight" or is_sampling_at_inference()
        if is_weight or self.is_frozen:
            return linear_op(inputs, ops.cast(self.draw(scales), dtype))

        def parts(moments: Moments) -> tuple[Any, Any]:
            mean = moments.mean(self._training_threshold)
            if scales:
                return mean, moments.sigma2()
            # What nothing multiplies leaves the kernel in its final type.
            return (
                ops.cast(mean, dtype),
                ops.cast(moments.sigma2(), self.variance_dtype or dtype),
            )

        mean, sigma2 = self._start_pass(parts)
        return self._local_reparameterization(
            linear_op,
            inputs,
            self._scaled(mean, scales),
            self._scaled(sigma2, scales, power=2),
        )

    def _local_reparameterization(
        self,
        linear_op: Callable[[Any, Any], Any],
        inputs: Any,
        mean: Any,
        sigma2: Any,
    ) -> Any:
        outputs = linear_op(inputs, ops.cast(mean, self._call_dtype))
        dtype = self.variance_dtype or outputs.dtype
        # Squares of integers may overflow, and have no place for noise.
        squares = ops.square(ops.cast(inputs, outputs.dtype))
        variances = linear_op(ops.cast(squares, dtype), ops.cast(sigma2, dtype))
        variances = ops.cast(variances, outputs.dtype)
        # sqrt has no gradient at 0, and 1e-8 is 0 in float16. A rounding error
        # of a fast convolution may also leave a variance slightly negative.
        is_half = keras.backend.standardize_dtype(outputs.dtype) == "float16"
        floor = 1e-6 if is_half else 1e-8

        def add_noise(tensors: Sequence[Any], noise: Any) -> tuple[Any]:
            outputs, variances = tensors
            stddev = ops.sqrt(ops.relu(variances) + floor)
            return (outputs + rounded(stddev * noise),)

        noise = standard_normal(
            ops.shape(outputs), outputs.dtype, self.seed_generator
        )
        (noisy,) = recomputed(add_noise, (outputs, variances), (noise,))
        return noisy
