"""Moments for PyTorch, where each operation is a pass over memory.

There are as few passes as possible, and none that takes many times as long as a
product does: comparisons, and choices between two values. The gradients are by
hand. With s = theta^2 / sigma^2 and a divergence K(s),

    dK / dtheta = 2 s K'(s) / theta,    dK / dlog_sigma2 = -s K'(s).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from keras import ops

from keras_vd._backend.branching import is_all_true
from keras_vd._backend.types import Tensor
from keras_vd.divergences import kl
from keras_vd.posteriors.moments import (
    LARGEST_ALPHA,
    MAX_ABS_LOG_ALPHA,
    THETA2_FLOOR,
    TIE,
    Moments,
    Reduction,
    Threshold,
    known_exp,
)
from keras_vd.priors import ARD, LogUniform, Prior

BOUNDS = (math.exp(-MAX_ABS_LOG_ALPHA), math.exp(MAX_ABS_LOG_ALPHA))

# 2 K(s) of each weight, and a function that computes 2 s K'(s).
Form = tuple[Tensor, Callable[[], Tensor]]


class EagerMoments(Moments):
    """`Moments` computed from s, where log_sigma2 is a variable.

    A prior whose divergence has no such form is used as in `Moments`.
    """

    @functools.cached_property
    def _is_whole(self) -> bool:
        return is_all_true(self.keep_mask)

    @functools.cached_property
    def theta2(self) -> Tensor:
        """theta^2 + 1e-8, without a gradient."""
        import torch

        theta = self.theta.detach()
        return torch.addcmul(theta.new_tensor(THETA2_FLOOR), theta, theta)

    @functools.cached_property
    def _variance(self) -> Tensor:
        return ops.exp(self.log_sigma2.detach())

    @functools.cached_property
    def snr2(self) -> Tensor:
        """(theta^2 + 1e-8) / sigma^2 within bounds, without a gradient."""
        return (self.theta2 / self._variance).clamp_(*BOUNDS)

    def masked(self, values: Tensor) -> Tensor:
        """Return values, and 0 where a weight is pruned."""
        return values if self._is_whole else values * self.keep_mask

    def mean(self, threshold: Threshold) -> Tensor:
        import torch

        if threshold is None or isinstance(threshold, Reduction):
            return super().mean(threshold)
        if threshold <= -MAX_ABS_LOG_ALPHA:
            return super().mean(threshold)
        least = math.exp(-threshold) * (1.0 + 2.0 * TIE)
        kept = torch.threshold(self.snr2, least, 0.0).sign_()
        return self.theta * self.masked(kept)

    def sigma2(self) -> Tensor:
        import torch

        if self.log_factors:
            return super().sigma2()
        largest = self.theta2 * LARGEST_ALPHA
        values = torch.minimum(self._variance, largest.add_(LARGEST_ALPHA))
        return known_exp(self.log_sigma2, self.masked(values))

    def kl_divergence(self, prior: Prior, *known: Any) -> Tensor:
        form = FORMS.get(type(prior).kl_divergence, _no_form)(prior)
        if form is None:
            return super().kl_divergence(prior, *known)
        return _divergence(form, self)


def _divergence(form: Callable[[Tensor], Form], moments: EagerMoments) -> Any:
    import torch

    @ops.custom_gradient
    def divergence(theta: Tensor, log_sigma2: Tensor) -> Any:
        snr2 = moments.snr2
        terms, slope = form(snr2)

        def grad(*args: Any, upstream: Any) -> Any:
            # Beyond the bounds the divergence is constant.
            found = torch.ops.aten.hardtanh_backward(slope(), snr2, *BOUNDS)
            found = moments.masked(found).mul_(upstream)
            to_log_sigma2 = found.sum_to_size(log_sigma2.shape) * -0.5
            return (found * theta).div_(moments.theta2), to_log_sigma2

        return 0.5 * moments.masked(terms).sum(), grad

    found = divergence(moments.theta, moments.log_sigma2)
    return ops.cast(found, "float32")


def _molchanov(snr2: Tensor) -> Form:
    """Compute `kl.log_uniform_molchanov`."""
    k1, k2, k3 = kl.MOLCHANOV
    gate = snr2.log().mul_(k3).sub_(k2).sigmoid_()
    one = snr2 + 1.0

    def slope() -> Tensor:
        found = gate.addcmul(gate, gate, value=-1.0).mul_(2.0 * k1 * k3)
        return found.addcdiv_(snr2, one)

    return one.log().add_(gate, alpha=2.0 * k1), slope


def _ard(snr2: Tensor) -> Form:
    """Compute `kl.ard`."""
    one = snr2 + 1.0
    return one.log(), lambda: snr2 / one


def _no_form(prior: Prior) -> None:
    return None


# By the method of the prior that they stand for; each returns a form or None.
FORMS: dict[Callable[..., Any], Callable[[Any], Any]] = {
    LogUniform.kl_divergence: lambda prior: (
        _molchanov if prior.kl == "molchanov" else None
    ),
    ARD.kl_divergence: lambda prior: _ard,
}
