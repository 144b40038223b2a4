"""What a posterior says of every weight, as tensors.

Compilers turn these computations into a few loops over the weights. Which loops
and how long they take depends on how the code is written; `python -m
benchmarks` measures it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

from keras import ops

from keras_vd._backend.branching import either
from keras_vd._backend.fusing import no_gradient, total
from keras_vd._backend.types import Tensor
from keras_vd.divergences import kl
from keras_vd.priors import Prior

# A numerical guard, far from every usual threshold. Pruned weights have it as
# their log_alpha.
MAX_ABS_LOG_ALPHA = 20.0
# log(theta^2 + 1e-8) keeps log_alpha and its gradient finite at theta = 0.
THETA2_FLOOR = 1e-8
# Relative margin, larger than rounding errors: a log_alpha that is equal to a
# threshold counts as having reached it.
TIE = 5e-7
# The same in nats: a weight that has gone back to its prior says nothing.
EVIDENCE_TIE = 1e-5
LARGEST_ALPHA = math.exp(10.0)


@dataclasses.dataclass(frozen=True)
class Reduction:
    """Bayesian model reduction, in place of a threshold of log_alpha.

    A weight is kept if the evidence falls where it is fixed at zero; see
    `docs/reduction.md`.

    Attributes:
        prior_stddev: Standard deviation of the Gaussian prior.
    """

    prior_stddev: float

    def log_evidence(self, theta: Tensor, log_sigma2: Tensor) -> Tensor:
        """Compute `kl.gaussian_log_evidence_of_zero` of every weight."""
        return kl.gaussian_log_evidence_of_zero(
            theta, log_sigma2, self.prior_stddev
        )


# What `log_alpha` must stay below to be kept; None is no bound.
Threshold = float | Reduction | None


def bounded(log_alpha: Tensor) -> Tensor:
    """Clip log_alpha to [-20, 20], with the gradient of a clip."""
    # This costs less than to differentiate the clip itself.
    clipped = ops.clip(
        ops.stop_gradient(log_alpha), -MAX_ABS_LOG_ALPHA, MAX_ABS_LOG_ALPHA
    )
    return ops.where(ops.equal(clipped, log_alpha), log_alpha, clipped)


def bounded_log_variance(log_sigma2: Tensor, theta: Tensor) -> Tensor:
    """Bound log variances that weights share by 10 + log(1 + mean(theta^2)).

    See `Moments.sigma2`. The gradient ignores the bound.

    Args:
        log_sigma2: Tensor of any shape.
        theta: Means of all weights.
    """
    least = math.log(LARGEST_ALPHA)

    def excess(log_sigma2: Tensor, theta: Tensor) -> Tensor:
        flat = ops.reshape(theta, (-1,))
        mean = ops.vdot(flat, flat) / math.prod(theta.shape)
        return ops.relu(log_sigma2 - (least + ops.log1p(mean)))

    def nothing(log_sigma2: Tensor, theta: Tensor) -> Tensor:
        return ops.zeros_like(log_sigma2)

    # The weights are only read where that may change something.
    values = ops.stop_gradient(log_sigma2)
    is_large = ops.any(ops.greater(values, least))
    tensors = [values, ops.stop_gradient(theta)]
    return log_sigma2 - either(is_large, excess, nothing, tensors)


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and variance of every weight, and which weights are kept.

    Attributes:
        theta: Float32 tensor of the weight's shape.
        log_sigma2: Float32 tensor that broadcasts to it.
        known_log_alpha: Float32 tensor that broadcasts to it:
            log(sigma2 / theta^2); None: compute it where it is needed.
        keep_mask: Bool tensor of the weight's shape; False is pruned.
        log_factors: Where weights share variances by design, few bounded
            tensors whose sum log_sigma2 is; otherwise empty.
    """

    theta: Any
    log_sigma2: Any
    known_log_alpha: Any
    keep_mask: Any
    log_factors: tuple[Any, ...] = ()

    @functools.cached_property
    def unbounded_log_alpha(self) -> Tensor:
        """log(sigma2 / theta^2)."""
        if self.known_log_alpha is not None:
            return self.known_log_alpha
        return self.log_sigma2 - ops.log(ops.square(self.theta) + THETA2_FLOOR)

    @functools.cached_property
    def log_alpha(self) -> Tensor:
        """log(sigma2 / theta^2) within [-20, 20]."""
        return bounded(self.unbounded_log_alpha)

    def is_kept(self, threshold: Threshold) -> Tensor:
        """Tell which weights are not pruned, and below a threshold if given."""
        if threshold is None:
            return self.keep_mask
        if isinstance(threshold, Reduction):
            evidence = threshold.log_evidence(self.theta, self.log_sigma2)
            is_below = ops.less(evidence, -EVIDENCE_TIE)
        else:
            is_below = ops.less(self.log_alpha, threshold)
        return ops.logical_and(self.keep_mask, is_below)

    def mean(self, threshold: Threshold) -> Tensor:
        """Return theta, and 0 where it is not kept."""
        return ops.where(self.is_kept(threshold), self.theta, 0.0)

    def inference_mean(self, threshold: Threshold) -> Tensor:
        """Return `mean`, but NaN where log_alpha is NaN.

        Such a weight must not look like one that is zero.
        """
        if threshold is None:
            return self.mean(None)
        return ops.where(
            self.is_kept(threshold), self.theta, self.log_alpha - self.log_alpha
        )

    def sigma2(self) -> Tensor:
        """Return variances up to exp(10) (theta^2 + 1), and 0 where pruned.

        A prior that knows no scale lets variances grow. In a stack of layers
        they may then exceed the largest float, which gives infinities and NaN.
        No weight that is of use comes near the bound, and the gradient ignores
        it.
        """
        if self.log_factors:
            return self._masked_product(1.0)
        return self._masked_exp(self.log_sigma2, self._largest_sigma2)

    def stddev(self) -> Tensor:
        """Return standard deviations, bounded like `sigma2`; 0 where pruned."""
        if self.log_factors:
            return self._masked_product(0.5)
        largest = ops.sqrt(self._largest_sigma2)
        return self._masked_exp(0.5 * self.log_sigma2, largest)

    @property
    def _largest_sigma2(self) -> Tensor:
        theta2 = ops.square(ops.stop_gradient(self.theta))
        return LARGEST_ALPHA * theta2 + LARGEST_ALPHA

    def _masked_product(self, power: float) -> Tensor:
        """Multiply powers of the factors of sigma2, and give 0 where pruned."""
        product = math.prod(ops.exp(power * x) for x in self.log_factors)
        return ops.where(self.keep_mask, product, 0.0)

    def _masked_exp(self, exponent: Tensor, largest: Tensor) -> Tensor:
        """Compute an exponential up to `largest`, and 0 where pruned."""
        if tuple(exponent.shape) != tuple(self.keep_mask.shape):
            exponent = ops.broadcast_to(exponent, self.keep_mask.shape)
        values = ops.minimum(ops.exp(ops.stop_gradient(exponent)), largest)
        return known_exp(exponent, ops.where(self.keep_mask, values, 0.0))

    def kl_divergence(self, prior: Prior, *known: Any) -> Tensor:
        """Sum the KL to a prior, in nats, over what is not pruned.

        Args:
            prior: The prior.
            *known: What its `kl_divergence` takes besides the posterior.
        """
        terms = ops.where(self.keep_mask, self._kl_terms(prior, *known), 0.0)
        return ops.cast(total(terms), "float32")

    def _kl_terms(self, prior: Prior, *known: Any) -> Tensor:
        return prior.kl_divergence(
            self.theta, self.log_sigma2, self.log_alpha, *known
        )


# Autodiff would keep the unmasked values, which costs one more loop and tensor.
# The mask is applied outside, as JAX could not export a closure over it.
@ops.custom_gradient
def known_exp(exponent: Tensor, values: Tensor) -> Tensor:
    """Return `values`, with the gradient of exp(exponent) where not masked."""

    def grad(*args: Any, upstream: Any = None) -> Any:
        upstream = args[0] if upstream is None else upstream
        return values * upstream, no_gradient(values)

    return values, grad
