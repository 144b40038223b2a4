"""Hard-concrete gates: how likely they are to be open, their mean, draws.

Notation: a binary concrete variable s in (0, 1) with location `log_alpha` and
temperature beta is stretched to (-0.1, 1.1) and cut off at 0 and 1, so that
the gate z is exactly 0, or exactly 1, with a positive probability (Louizos et
al. 2018, arXiv:1712.01312). Every function is elementwise in `log_alpha`
(float32, any shape).
"""

from __future__ import annotations

import math

from keras import ops

from keras_vd._backend.types import Tensor

# beta, gamma and zeta of the paper's experiments.
TEMPERATURE = 2.0 / 3.0
LOW, HIGH = -0.1, 1.1


def open_probability(log_alpha: Tensor) -> Tensor:
    """Compute P(z != 0), a unit's part of the expected L0 norm (eq. 12).

    Returns:
        Probabilities, of the shape of `log_alpha`.
    """
    return ops.sigmoid(log_alpha - TEMPERATURE * math.log(-LOW / HIGH))


def mean(log_alpha: Tensor) -> Tensor:
    """Compute the gate that the paper uses at inference (eq. 13).

    It is the stretched and cut-off mean of a logistic variable, not exactly
    E[z], and 0 where `log_alpha` is at most -log(11).

    Returns:
        Gates within [0, 1], of the shape of `log_alpha`.
    """
    return _hard(ops.sigmoid(log_alpha))


def sample(log_alpha: Tensor, uniforms: Tensor) -> Tensor:
    """Draw gates (eq. 10 and 11).

    Args:
        log_alpha: Locations.
        uniforms: Draws from the uniform distribution on (0, 1), which
            broadcast to `log_alpha`.

    Returns:
        Gates within [0, 1].
    """
    noise = ops.log(uniforms) - ops.log1p(-uniforms)
    return _hard(ops.sigmoid((noise + log_alpha) / TEMPERATURE))


def _hard(concrete: Tensor) -> Tensor:
    return ops.clip(concrete * (HIGH - LOW) + LOW, 0.0, 1.0)
