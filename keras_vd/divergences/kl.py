"""KL divergences of a Gaussian weight posterior, one per published equation.

Notation: q(w) = N(theta, sigma2), alpha = sigma2 / theta**2 and `log_alpha` is
its natural logarithm. Every function is elementwise, takes any shape, computes
in float32 whatever the input dtype and returns **+KL in nats**, to be added to
a loss (mean NLL per example + KL / N_train). Several papers print -KL.

The log-uniform prior p(|w|) ~ 1 / |w| is improper, so its KL is defined up to
an additive constant. Here the constant always makes the exact KL tend to 0 for
alpha -> infinity; it then tends to -log_alpha / 2 + LOG_UNIFORM_CONSTANT for
alpha -> 0.

`log_uniform_exact`, `log_uniform_molchanov` and `ard` carry their own gradient,
in fewer operations than autodiff needs. It is first-order only: do not
differentiate it again. Their `_by_snr` forms take the signal-to-noise ratio
|theta| / sigma = exp(-log_alpha / 2) as well; those are for compilers, which
make one loop of many operations.
"""

import math
from typing import Any

from keras import ops

from keras_vd._backend.fusing import no_gradient
from keras_vd._backend.types import Tensor

# (Euler's gamma + ln 2) / 2: limit of KL + log_alpha / 2 for alpha -> 0
LOG_UNIFORM_CONSTANT = 0.6351814227307392

# Printed by tools/fit_exact_kl.py, which also says what they mean.
# Innermost level of each continued fraction first.
_VALUE_SCALE = 0.0484587507
_VALUE_FRACTION = (
    0.0112314852,
    *(0.00748861465, 0.0),
    *(-0.00203042297, 0.0571962928),
    *(0.00539765431, 0.045305175),
    *(0.0068826755, 0.173950457),
    0.475771508,
)
_SLOPE_FRACTION_1 = (0.296398656, 0.0916555851, -0.23946644, -0.0617358841)
_SLOPE_FRACTION_2 = (
    0.204480349,
    *(0.0593887382, -0.26262614),
    *(0.000560313738, 0.115161873),
    *(0.018363884, 0.269850926),
    0.561679828,
)

MOLCHANOV = _MOLCHANOV_K1, _MOLCHANOV_K2, _MOLCHANOV_K3 = (
    0.63576,
    1.87320,
    1.48695,
)
# Printed by tools/fit_molchanov.py; highest power first.
_TOP = (1e-14, 2.27622096e-13, 4.44445455e-13, 7.57926573e-14)
_REST = (7.35603297e-14, 1.5513758e-12, 2.85669091e-12, 4.51365281e-13)
_LARGEST_SNR = 22026.0  # end of the fit, where the sigmoid is 1
_KINGMA_C1, _KINGMA_C2, _KINGMA_C3 = 1.16145124, -1.50204118, 0.58629921


def log_uniform_exact(log_alpha: Tensor) -> Tensor:
    """Compute the exact KL from N(theta, sigma2) to the log-uniform prior.

    With x = 1 / sqrt(2 alpha) and D the Dawson function,

        KL = 2 int_0^x D(t) dt,     dKL / dlog_alpha = -x D(x),

    which follows from Hron et al. 2018 (KL as a 2F2 series of 1 / (2 alpha)).
    Constant: KL -> 0 for alpha -> infinity; -log_alpha / 2 + 0.6351814 for
    alpha -> 0. Value and gradient are two separate minimax fits, so the
    gradient is the derivative of the value only to their accuracy: largest
    absolute error over log_alpha in [-20, 20], in float32: 2e-6 for the value,
    4e-6 for the gradient (`tests/divergences/test_kl.py`).

    Valid for log_alpha > -87, where alpha underflows; no upper limit.

    Args:
        log_alpha: Float tensor of any shape.

    Returns:
        Float32 tensor of the same shape: KL in nats, never negative,
        decreasing in `log_alpha`.

    Example:
        >>> nats = log_uniform_exact([-2.0, 0.0, 2.0])
        >>> print(ops.convert_to_numpy(nats).round(3))
        [1.544 0.427 0.066]

    References:
        Hron, Matthews, Ghahramani 2018, arXiv:1807.01969.
    """
    log_alpha = _float32(log_alpha)
    alpha = ops.exp(ops.stop_gradient(log_alpha))
    return _log_uniform_exact(log_alpha, alpha)


def log_uniform_molchanov(log_alpha: Tensor) -> Tensor:
    """Compute Molchanov's sigmoid fit of the log-uniform KL.

        KL = k1 sigmoid(-k2 - k3 log_alpha) + log(1 + 1 / alpha) / 2

    with (k1, k2, k3) = (0.63576, 1.87320, 1.48695): equation 14 of the paper
    with the sign flipped, since the paper prints -KL, and with its constant
    -k1 absorbed, so that KL -> 0 for alpha -> infinity.

    Valid for log_alpha > -87, where alpha underflows; no upper limit. Against
    `log_uniform_exact` the largest error is 0.0094 nats in value (near
    log_alpha = -3.5) and 0.0137 in gradient (near -2.5).

    Args:
        log_alpha: Float tensor of any shape.

    Returns:
        Float32 tensor of the same shape: KL in nats, never negative,
        decreasing in `log_alpha`.

    Example:
        >>> nats = log_uniform_molchanov([-2.0, 0.0, 2.0])
        >>> print(ops.convert_to_numpy(nats).round(3))
        [1.541 0.431 0.068]

    References:
        Molchanov, Ashukha, Vetrov 2017, arXiv:1701.05369, eq. 14.
    """
    return _log_uniform_molchanov(_float32(log_alpha))


def log_uniform_kingma(log_alpha: Tensor) -> Tensor:
    """Compute Kingma's cubic fit of the log-uniform KL, for alpha <= 1.

        KL = C - log_alpha / 2 - c1 alpha - c2 alpha**2 - c3 alpha**3

    with (c1, c2, c3) = (1.16145124, -1.50204118, 0.58629921). The paper leaves
    the constant open; C = 0.6351814 makes it meet `log_uniform_exact` for
    alpha -> 0.

    Valid for log_alpha <= 0, where it is within 0.041 nats of the exact KL
    (0.020 if the best constant were chosen instead). Above, the value at 0 is
    held and the gradient is zero: the method bounds alpha by 1.

    Args:
        log_alpha: Float tensor of any shape.

    Returns:
        Float32 tensor of the same shape: KL in nats, at least 0.389.

    Example:
        >>> nats = log_uniform_kingma([-2.0, 0.0, 2.0])
        >>> print(ops.convert_to_numpy(nats).round(3))
        [1.504 0.389 0.389]

    References:
        Kingma, Salimans, Welling 2015, arXiv:1506.02557, appendix C.
    """
    bounded = _at_most_zero(_float32(log_alpha))
    alpha = ops.exp(bounded)
    cubic = ((_KINGMA_C3 * alpha + _KINGMA_C2) * alpha + _KINGMA_C1) * alpha
    return LOG_UNIFORM_CONSTANT - 0.5 * bounded - cubic


def log_uniform_lower_bound(log_alpha: Tensor) -> Tensor:
    """Compute the bound that keeps only the entropy term, for alpha <= 1.

        KL = C - log_alpha / 2

    The name is the paper's: it is a lower bound of -KL and of the evidence,
    hence an **upper** bound of the KL returned here. The term that it drops
    from the KL, E log|1 + sqrt(alpha) eps| with eps ~ N(0, 1), is never
    positive for alpha <= 1. C = 0.6351814, as for `log_uniform_kingma`.

    Valid for log_alpha <= 0, where it exceeds the exact KL by at most 0.246
    nats (near -0.5). Above, the value at 0 is held and the gradient is zero.

    Args:
        log_alpha: Float tensor of any shape.

    Returns:
        Float32 tensor of the same shape: KL in nats, at least 0.635.

    Example:
        >>> nats = log_uniform_lower_bound([-2.0, 0.0, 2.0])
        >>> print(ops.convert_to_numpy(nats).round(3))
        [1.635 0.635 0.635]

    References:
        Kingma, Salimans, Welling 2015, arXiv:1506.02557, appendix C.
    """
    bounded = _at_most_zero(_float32(log_alpha))
    return LOG_UNIFORM_CONSTANT - 0.5 * bounded


def ard(log_alpha: Tensor) -> Tensor:
    """Compute the KL to a Gaussian prior whose variance is optimised.

        KL = log(1 + 1 / alpha) / 2

    is KL(N(theta, sigma2) || N(0, s2)) at its minimum s2 = theta**2 + sigma2,
    one s2 per weight. Nothing is dropped and no constant is free: KL -> 0 for
    alpha -> infinity, -log_alpha / 2 for alpha -> 0. Exact to float32 rounding
    for every finite `log_alpha`.

    Args:
        log_alpha: Float tensor of any shape.

    Returns:
        Float32 tensor of the same shape: KL in nats, never negative,
        decreasing in `log_alpha`.

    Example:
        >>> nats = ard([-2.0, 0.0, 2.0])
        >>> print(ops.convert_to_numpy(nats).round(3))
        [1.063 0.347 0.063]

    References:
        Kharitonov, Molchanov, Vetrov 2018, arXiv:1811.00596.
    """
    return _ard(_float32(log_alpha))


def gaussian(theta: Tensor, log_sigma2: Tensor, prior_stddev: float) -> Tensor:
    """Compute the KL from N(theta, sigma2) to N(0, prior_stddev**2).

        KL = (sigma2 + theta**2) / (2 s**2) - 1/2 - (log_sigma2 - log s**2) / 2

    Closed form, nothing dropped: 0 where theta = 0 and sigma2 = s**2. Valid
    for log_sigma2 - 2 log s < 88, where float32 overflows.

    Args:
        theta: Float tensor of any shape, the posterior mean.
        log_sigma2: Float tensor that broadcasts with `theta`, the log variance.
        prior_stddev: Float > 0, or a tensor that broadcasts: s, in the units
            of `theta`.

    Returns:
        Float32 tensor of the broadcast shape: KL in nats, never negative
        beyond rounding (1e-7).

    Example:
        >>> nats = gaussian([0.0, 1.0], [0.0, -2.0], prior_stddev=1.0)
        >>> print(ops.convert_to_numpy(nats).round(3))
        [0.    1.068]

    References:
        Blundell et al. 2015, arXiv:1505.05424, with a single Gaussian prior.
    """
    scale = 1.0 / _float32(prior_stddev)
    scaled_theta = _float32(theta) * scale
    log_ratio = _float32(log_sigma2) + 2.0 * ops.log(scale)
    return 0.5 * (
        ops.expm1(log_ratio) - log_ratio + scaled_theta * scaled_theta
    )


def gaussian_log_evidence_of_zero(
    theta: Tensor, log_sigma2: Tensor, prior_stddev: float
) -> Tensor:
    """Compute the change of the log evidence if a weight is fixed at 0.

    Bayesian model reduction: the density at 0 of the posterior
    N(theta, sigma2) over that of the prior N(0, prior_stddev**2),

        Delta F = (log s**2 - log_sigma2 - theta**2 / sigma2) / 2.

    `docs/reduction.md` derives it. A weight with Delta F >= 0 may go.

    Args:
        theta: As of `gaussian`.
        log_sigma2: As of `gaussian`.
        prior_stddev: As of `gaussian`.

    Returns:
        Float32 tensor of the broadcast shape, in nats; -infinity where
        theta**2 / sigma2 overflows.

    Example:
        >>> nats = gaussian_log_evidence_of_zero([0.1, 1.0], -2.0, 1.0)
        >>> print(ops.convert_to_numpy(nats).round(3))
        [ 0.963 -2.695]

    References:
        Friston, Parr and Zeidman 2018, arXiv:1805.07092.
    """
    log_sigma2 = _float32(log_sigma2)
    power = ops.square(_float32(theta)) * ops.exp(-log_sigma2)
    log_ratio = 2.0 * ops.log(_float32(prior_stddev)) - log_sigma2
    return 0.5 * (log_ratio - power)


def scale_mixture_sample(
    theta: Tensor,
    log_sigma2: Tensor,
    noise: Tensor,
    pi: float,
    stddev_1: float,
    stddev_2: float,
) -> Tensor:
    """Compute log q(w) - log p(w) at the sample w = theta + sigma noise.

    q is N(theta, sigma2), and p is pi N(0, stddev_1**2) + (1 - pi) N(0,
    stddev_2**2). With standard normal noise, this is an unbiased estimate of
    the KL, and its gradient one of that of the KL.

    Args:
        theta: Float tensor of any shape, the posterior mean.
        log_sigma2: Float tensor that broadcasts with `theta`, the log variance.
        noise: Float tensor that broadcasts with `theta`.
        pi: Float in (0, 1).
        stddev_1: Float > `stddev_2`.
        stddev_2: Float > 0.

    Returns:
        Float32 tensor of the broadcast shape, in nats, of either sign.

    Example:
        >>> nats = scale_mixture_sample([0.0, 1.0], -2.0, 0.0, 0.5, 1.0, 0.1)
        >>> print(ops.convert_to_numpy(nats).round(3))
        [-0.705  2.193]

    References:
        Blundell et al. 2015, arXiv:1505.05424, eq. 7.
    """
    theta, log_sigma2, noise = map(_float32, (theta, log_sigma2, noise))
    w = theta + ops.exp(0.5 * log_sigma2) * noise
    # All without -log(2 pi) / 2, which the difference does not have.
    log_q = -0.5 * (log_sigma2 + ops.square(noise))
    wide, narrow = (
        math.log(share / stddev) - 0.5 * ops.square(w / stddev)
        for share, stddev in ((pi, stddev_1), (1.0 - pi, stddev_2))
    )
    # The narrow one is never far above, so neither term cancels the other.
    return log_q - (wide + ops.softplus(narrow - wide))


def _float32(x: Tensor) -> Tensor:
    return ops.cast(ops.convert_to_tensor(x), "float32")


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Evaluate a polynomial by Horner's rule, highest power first."""
    result = coefficients[0] * x + coefficients[1]
    for coefficient in coefficients[2:]:
        result = result * x + coefficient
    return result


def _at_most_zero(log_alpha: Tensor) -> Tensor:
    # ops.minimum halves the gradient at 0 on two of the three backends
    return ops.where(log_alpha > 0.0, 0.0, log_alpha)


def _upstream(args: tuple, upstream: Any) -> Tensor:
    # TF and JAX pass it positionally; torch by keyword, after the inputs
    return args[0] if upstream is None else upstream


def _fraction(
    constants: tuple[float, ...], alpha: Tensor, sign: int = 1
) -> Tensor:
    """Evaluate c_1 / (alpha + b_1 + c_2 / (alpha + b_2 + ...)).

    Safe for any alpha, 0 and infinity included: no level multiplies or
    subtracts two large terms.
    """
    w = alpha + constants[0]
    for c, b in zip(constants[1:-1:2], constants[2:-1:2], strict=True):
        w = c / w + alpha
        if b:
            w = w + b
    return (sign * constants[-1]) / w


@ops.custom_gradient
def _log_uniform_exact(log_alpha: Tensor, alpha: Tensor) -> Tensor:
    def grad(*args: Any, upstream: Any = None) -> Any:
        gradient = _fraction(_SLOPE_FRACTION_2, alpha, sign=-1)
        gradient = gradient + _fraction(_SLOPE_FRACTION_1, alpha, sign=-1)
        return gradient * _upstream(args, upstream), no_gradient(alpha)

    # log1p would cost more, and its extra digits are below the error of the fit
    base = 0.5 * ops.log(_VALUE_SCALE / alpha + 1.0)
    return base + _fraction(_VALUE_FRACTION, alpha), grad


@ops.custom_gradient
def _log_uniform_molchanov(log_alpha: Tensor) -> Tensor:
    # k1 sigmoid(-k2 - k3 a) = half * (1 + gate): tanh costs less than sigmoid
    half = 0.5 * _MOLCHANOV_K1
    gate = ops.tanh((-0.5 * _MOLCHANOV_K3) * log_alpha - 0.5 * _MOLCHANOV_K2)
    t = ops.sigmoid(log_alpha)  # alpha / (1 + alpha)

    def grad(*args: Any, upstream: Any = None) -> Any:
        peak = 0.5 * _MOLCHANOV_K3 * half
        slope = peak * (gate * gate) + 0.5 * t - (0.5 + peak)
        return slope * _upstream(args, upstream)

    return half * gate - 0.5 * ops.log(t) + half, grad


@ops.custom_gradient
def _ard(log_alpha: Tensor) -> Tensor:
    def grad(*args: Any, upstream: Any = None) -> Any:
        return ops.sigmoid(-log_alpha) * (-0.5 * _upstream(args, upstream))

    # exp(-log_alpha) overflows below -88; autodiff of this form would give
    # a zero gradient at log_alpha = 0, where `abs` and `relu` have kinks
    tail = ops.log1p(ops.exp(-ops.abs(log_alpha)))
    return 0.5 * (tail + ops.relu(-log_alpha)), grad


# The values of the functions below depend on `snr` alone, and their gradients
# go to `log_alpha` alone, whose own value is never read.


def exact_by_snr(log_alpha: Tensor, snr: Tensor) -> Tensor:
    """Compute `log_uniform_exact` from snr = exp(-log_alpha / 2)."""
    return _log_uniform_exact(log_alpha, 1.0 / (snr * snr))


@ops.custom_gradient
def molchanov_by_snr(log_alpha: Tensor, snr: Tensor) -> Tensor:
    """Compute `log_uniform_molchanov` from snr = exp(-log_alpha / 2).

    A rational function of `snr` stands for the sigmoid. The value changes by at
    most 3e-7 nats, the gradient by 4e-7 (`tools/fit_molchanov.py`).
    """
    # sigmoid(-k2 - k3 log_alpha) = top / bottom; 1 - sigmoid = rest / bottom
    s = ops.minimum(snr, _LARGEST_SNR)
    top = _polynomial(_TOP, s) * s * s * s
    rest = _polynomial(_REST, s)
    bottom = top + rest

    def grad(*args: Any, upstream: Any = None) -> Any:
        s2 = s * s
        slope = (_MOLCHANOV_K1 * _MOLCHANOV_K3) * (1.0 + s2) * top * rest
        slope = slope + 0.5 * s2 * bottom * bottom
        # The only division comes last: XLA then writes its result to memory,
        # and nothing that comes before it.
        slope = slope * -_upstream(args, upstream)
        return slope / ((1.0 + s2) * bottom * bottom), no_gradient(snr)

    tail = ops.log(1.0 + snr * snr)
    return _MOLCHANOV_K1 * (top / bottom) + 0.5 * tail, grad


@ops.custom_gradient
def ard_by_snr(log_alpha: Tensor, snr: Tensor) -> Tensor:
    """Compute `ard` from snr = exp(-log_alpha / 2)."""
    snr2 = snr * snr

    def grad(*args: Any, upstream: Any = None) -> Any:
        slope = snr2 * (-0.5 * _upstream(args, upstream)) / (1.0 + snr2)
        return slope, no_gradient(snr)

    return 0.5 * ops.log1p(snr2), grad
