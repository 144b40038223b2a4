"""Beta-Bernoulli noise: Kumaraswamy posteriors, their KL, means and draws.

Notation: a gate z ~ Bernoulli(pi), with the prior pi ~ Beta(alpha, 1) and the
posterior pi ~ Kumaraswamy(a, b) (Lee et al. 2018, arXiv:1805.10896). Every
function is elementwise (float32, any shape).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from keras_vd._backend.types import Tensor

# Logs of probabilities are bounded by that of the largest float32 below 1: at 1
# the logit would be infinite. Near 0 a log needs no bound.
_MAX_LOG_PROBABILITY = -6e-8
# Arguments of gamma functions are raised by this much before Stirling's series.
_SHIFT = 7


def kl_divergence(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """Compute the KL from Kumaraswamy(a, b) to Beta(alpha, 1).

    (1 - alpha / a) (-gamma - psi(b) - 1 / b) + log(a b / alpha) - (b - 1) / b

    (Nalisnick and Smyth 2017, arXiv:1605.06197; Lee et al. 2018, eq. 17).

    Returns:
        Nats, of the shape of `a`.
    """
    # psi(b) + 1 / b = psi(1 + b), which stays small where b does.
    harmonic = np.euler_gamma + _digamma(1.0 + b)
    logs = ops.log(a) + ops.log(b) - np.log(alpha)
    return (alpha / a - 1.0) * harmonic + logs - 1.0 + 1.0 / b


def mean(a: Tensor, b: Tensor) -> Tensor:
    """Compute E[pi] = Gamma(1 + 1/a) Gamma(1 + b) / Gamma(1 + 1/a + b)."""
    return ops.exp(_log_gamma(1.0 + b) - _log_gamma_ratio(1.0 + 1.0 / a, b))


def sample_log_probability(a: Tensor, b: Tensor, uniforms: Tensor) -> Tensor:
    """Turn uniform draws into draws of log(pi), pi ~ Kumaraswamy(a, b).

    Args:
        a: Shape parameters.
        b: Shape parameters.
        uniforms: Draws in (0, 1) of the shape of `a`.
    """
    log_pi = _log_of_rest(ops.log(uniforms) / b) / a
    return ops.minimum(log_pi, _MAX_LOG_PROBABILITY)


def _log_of_rest(log_share: Any) -> Tensor:
    """Compute log(1 - exp(x)) for x < 0, to all digits at both ends."""
    is_near = log_share > -np.log(2.0)
    # Each branch gets a harmless value where it is not taken: an infinite one
    # there would turn the gradient into NaN.
    near = ops.where(is_near, log_share, -1.0)
    far = ops.where(is_near, -1.0, log_share)
    return ops.where(
        is_near, ops.log(-ops.expm1(near)), ops.log1p(-ops.exp(far))
    )


def sample_relaxed_bernoulli(
    log_probability: Tensor, temperature: float, uniforms: Tensor
) -> Tensor:
    """Draw a relaxed Bernoulli variable (Maddison et al. 2017; Jang et al.).

    Args:
        log_probability: Log of the probability of 1, at most -6e-8.
        temperature: Float > 0; 0 would give a Bernoulli variable.
        uniforms: Draws in (0, 1), to which `log_probability` broadcasts.

    Returns:
        Values in [0, 1].
    """
    logit = log_probability - _log_of_rest(log_probability)
    noise = ops.log(uniforms) - ops.log1p(-uniforms)
    return ops.sigmoid((logit + noise) / temperature)


def _digamma(x: Tensor) -> Tensor:
    """Compute the logarithmic derivative of the gamma function for x >= 1."""
    y = x + _SHIFT
    inverse = 1.0 / ops.square(y)
    series = inverse * (1 / 12 - inverse * (1 / 120 - inverse / 252))
    return (
        ops.log(y)
        - 0.5 / y
        - series
        - sum(1.0 / (x + j) for j in range(_SHIFT))
    )


def _stirling(y: Any) -> Tensor:
    """Compute log(Gamma(y)) minus its leading terms, for y >= 7."""
    inverse = 1.0 / ops.square(y)
    return (1 / 12 - inverse * (1 / 360 - inverse / 1260)) / y


def _log_gamma(x: Tensor) -> Tensor:
    """Compute log(Gamma(x)) for x >= 1."""
    y = x + _SHIFT
    leading = (y - 0.5) * ops.log(y) - y + 0.5 * np.log(2.0 * np.pi)
    return leading + _stirling(y) - sum(ops.log(x + j) for j in range(_SHIFT))


def _log_gamma_ratio(x: Tensor, b: Tensor) -> Tensor:
    """Compute log(Gamma(x + b) / Gamma(x)) for x >= 1 and b >= 0.

    Unlike a difference of two logs, it is accurate for large x as well.
    """
    y = x + _SHIFT
    leading = (y - 0.5) * ops.log1p(b / y) + b * ops.log(y + b) - b
    return (
        leading
        + _stirling(y + b)
        - _stirling(y)
        - sum(ops.log1p(b / (x + j)) for j in range(_SHIFT))
    )
