"""Moments and divergences by signal-to-noise ratios, for compilers.

A compiler makes one loop of many operations, and there these take less time
than logarithms do. `_backend.fusing` finds them by the function that they
stand for; a subclass that overrides that function is never passed over.
"""

from __future__ import annotations

import functools
import math

from keras import ops

from keras_vd._backend.fusing import FAST_FORMS
from keras_vd._backend.types import Tensor
from keras_vd.divergences import kl
from keras_vd.posteriors.moments import (
    MAX_ABS_LOG_ALPHA,
    THETA2_FLOOR,
    Moments,
)
from keras_vd.priors import ARD, LogUniform, Prior

# Relative; more than rounding errors, so that reaching a threshold counts.
_TIE = 5e-7
_LOG_UNIFORM = {
    "exact": kl.exact_by_snr,
    "molchanov": kl.molchanov_by_snr,
}


class SignalToNoiseMoments(Moments):
    """The same moments by |theta| / sigma, where log_sigma2 is a variable.

    More operations without logarithms become fewer and faster loops. A prior
    whose divergence has no such form is asked as usual.
    """

    @functools.cached_property
    def snr(self) -> Tensor:
        """Signal-to-noise ratios |theta| / sigma without a gradient.

        0 where pruned, so that few loops have to read the mask.
        """
        theta2 = ops.square(ops.stop_gradient(self.theta)) + THETA2_FLOOR
        inverse = theta2 * ops.exp(-ops.stop_gradient(self.log_sigma2))
        most = ops.minimum(inverse, math.exp(MAX_ABS_LOG_ALPHA))
        # The root comes last: XLA then writes out this and nothing before.
        return ops.sqrt(ops.where(self.keep_mask, most, 0.0))

    def is_kept(self, threshold: float | None) -> Tensor:
        if threshold is None:
            return self.keep_mask
        return ops.greater(self.snr, math.exp(-0.5 * threshold) * (1.0 + _TIE))

    def mean(self, threshold: float | None) -> Tensor:
        # XLA is slower to select theta or 0: it skips reading what is not kept.
        return self.theta - ops.where(self.is_kept(threshold), 0.0, self.theta)

    def _kl_terms(self, prior: Prior) -> Tensor:
        by_snr = FAST_FORMS.get(type(prior).kl_divergence)
        terms = by_snr and by_snr(prior, self.unbounded_log_alpha, self.snr)
        if terms is None:
            return super()._kl_terms(prior)
        bound = math.exp(0.5 * MAX_ABS_LOG_ALPHA) * (1.0 - _TIE)
        is_inside = ops.logical_and(
            ops.less(self.snr, bound), ops.greater(self.snr, 1.0 / bound)
        )
        return ops.where(is_inside, terms, ops.stop_gradient(terms))


def _log_uniform_by_snr(
    prior: LogUniform, log_alpha: Tensor, snr: Tensor
) -> Tensor:
    """`LogUniform.kl_divergence`; None for forms that have no other."""
    form = _LOG_UNIFORM.get(prior.kl)
    return None if form is None else form(log_alpha, snr)


def _ard_by_snr(prior: ARD, log_alpha: Tensor, snr: Tensor) -> Tensor:
    """`ARD.kl_divergence`."""
    return kl.ard_by_snr(log_alpha, snr)


FAST_FORMS[LogUniform.kl_divergence] = _log_uniform_by_snr
FAST_FORMS[ARD.kl_divergence] = _ard_by_snr
