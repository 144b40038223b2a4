"""Moments and divergences by signal-to-noise ratios, for compilers.

A compiler makes one loop of many operations, in which these forms take less
time than logarithms do. A form is found by the function that it stands for, so
a subclass that overrides the function does not get the form.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from keras import ops

from keras_vd._backend.fusing import forgetting
from keras_vd._backend.types import Tensor
from keras_vd.divergences import kl
from keras_vd.posteriors.moments import (
    MAX_ABS_LOG_ALPHA,
    THETA2_FLOOR,
    TIE,
    Moments,
    Reduction,
    Threshold,
)
from keras_vd.priors import ARD, LogUniform, Prior

_LOG_UNIFORM = {
    "exact": kl.exact_by_snr,
    "molchanov": kl.molchanov_by_snr,
}


class SignalToNoiseMoments(Moments):
    """`Moments` computed from |theta| / sigma, where log_sigma2 is a variable.

    There are more operations but no logarithms, which makes fewer and faster
    loops. A prior whose divergence has no such form is used as in `Moments`.
    """

    @functools.cached_property
    def snr(self) -> Tensor:
        """Signal-to-noise ratios |theta| / sigma without a gradient.

        0 where pruned, so that few loops have to read the mask.
        """
        theta2 = ops.square(ops.stop_gradient(self.theta)) + THETA2_FLOOR
        inverse = theta2 * ops.exp(-ops.stop_gradient(self.log_sigma2))
        most = ops.minimum(inverse, math.exp(MAX_ABS_LOG_ALPHA))
        # The root comes last: XLA then writes its result to memory, and nothing
        # that comes before it.
        return ops.sqrt(ops.where(self.keep_mask, most, 0.0))

    def is_kept(self, threshold: Threshold) -> Tensor:
        if threshold is None or isinstance(threshold, Reduction):
            return super().is_kept(threshold)
        if self.log_factors and threshold > -MAX_ABS_LOG_ALPHA:
            # Neither a ratio nor an exponential for every weight.
            sigma2 = math.prod(
                ops.exp(ops.stop_gradient(x)) for x in self.log_factors
            )
            least = sigma2 * (math.exp(-threshold) * (1.0 + 2.0 * TIE))
            theta2 = ops.square(ops.stop_gradient(self.theta)) + THETA2_FLOOR
            is_below = ops.greater(theta2, least)
            return ops.logical_and(self.keep_mask, is_below)
        return ops.greater(self.snr, math.exp(-0.5 * threshold) * (1.0 + TIE))

    def mean(self, threshold: Threshold) -> Tensor:
        def select(theta: Tensor, keep_mask: Tensor, *factors: Any) -> Tensor:
            moments = dataclasses.replace(
                self, theta=theta, keep_mask=keep_mask, log_factors=factors
            )
            # To select theta or 0 would be slower, as XLA would then skip
            # reading what is not kept.
            is_kept = moments.is_kept(threshold)
            return theta - ops.where(is_kept, 0.0, theta)

        tensors = (self.theta, self.keep_mask, *self.log_factors)
        if not self.log_factors:
            return select(*tensors)
        # To compare once more takes less time than to write what was found.
        return forgetting(select, *tensors)

    def _kl_terms(self, prior: Prior, *known: Any) -> Tensor:
        by_snr = DIVERGENCES.get(type(prior).kl_divergence)
        terms = by_snr and by_snr(prior, self.unbounded_log_alpha, self.snr)
        if terms is None:
            return super()._kl_terms(prior, *known)
        bound = math.exp(0.5 * MAX_ABS_LOG_ALPHA) * (1.0 - TIE)
        is_inside = ops.logical_and(
            ops.less(self.snr, bound), ops.greater(self.snr, 1.0 / bound)
        )
        return ops.where(is_inside, terms, ops.stop_gradient(terms))


def _log_uniform_by_snr(
    prior: LogUniform, log_alpha: Tensor, snr: Tensor
) -> Tensor:
    """Compute `LogUniform.kl_divergence` by `snr`; None if no form can."""
    form = _LOG_UNIFORM.get(prior.kl)
    return None if form is None else form(log_alpha, snr)


def _ard_by_snr(prior: ARD, log_alpha: Tensor, snr: Tensor) -> Tensor:
    """Compute `ARD.kl_divergence` by `snr`."""
    return kl.ard_by_snr(log_alpha, snr)


# By the method of the prior that they stand for; each returns KL per weight.
DIVERGENCES: dict[Callable[..., Any], Callable[..., Any]] = {
    LogUniform.kl_divergence: _log_uniform_by_snr,
    ARD.kl_divergence: _ard_by_snr,
}
