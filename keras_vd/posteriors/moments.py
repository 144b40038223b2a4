"""What a posterior says of every weight, as tensors."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras import ops

from keras_vd.priors import Prior

# A numerical guard, far outside every decision; it also stands for "pruned".
MAX_ABS_LOG_ALPHA = 20.0


def bounded(log_alpha: Any) -> Any:
    """Clip log_alpha to [-20, 20], with the gradient of a clip."""
    # At less than a clip's own price.
    clipped = ops.clip(
        ops.stop_gradient(log_alpha), -MAX_ABS_LOG_ALPHA, MAX_ABS_LOG_ALPHA
    )
    return ops.where(ops.equal(clipped, log_alpha), log_alpha, clipped)


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and variance of every weight, and which weights are kept.

    Attributes:
        theta: Float32 tensor of the weight's shape.
        log_sigma2: Float32 tensor that broadcasts to it.
        log_alpha: Float32 tensor that broadcasts to it: log(sigma2 / theta^2),
            clipped.
        keep_mask: Bool tensor of the weight's shape; False is pruned.
    """

    theta: Any
    log_sigma2: Any
    log_alpha: Any
    keep_mask: Any

    def is_kept(self, threshold: float | None) -> Any:
        """Which weights are not pruned, and below a threshold if given."""
        if threshold is None:
            return self.keep_mask
        return ops.logical_and(
            self.keep_mask, ops.less(self.log_alpha, threshold)
        )

    def mean(self, threshold: float | None) -> Any:
        """theta, and 0 where it is not kept."""
        return ops.where(self.is_kept(threshold), self.theta, 0.0)

    def sigma2(self) -> Any:
        """Variances; pruned weights have none."""
        return ops.where(self.keep_mask, ops.exp(self.log_sigma2), 0.0)

    def stddev(self) -> Any:
        """Standard deviations; pruned weights have none."""
        return ops.where(self.keep_mask, ops.exp(0.5 * self.log_sigma2), 0.0)

    def kl_divergence(self, prior: Prior) -> Any:
        """KL to a prior in nats, summed over what is not pruned."""
        terms = prior.kl_divergence(self.theta, self.log_sigma2, self.log_alpha)
        return ops.sum(ops.where(self.keep_mask, terms, 0.0))
