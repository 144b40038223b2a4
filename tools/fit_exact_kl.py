"""Fit the constants of `keras_vd.kl.log_uniform_exact` and print them.

    python -m tools.fit_exact_kl                 # about 5 s on one core

The exact KL of the log-uniform prior and its slope are, with
x = 1 / sqrt(2 alpha) and D the Dawson function,

    KL = 2 int_0^x D(t) dt,        -dKL/dlog_alpha = x D(x).

Both are approximated by continued fractions in alpha,

    J_n = c_1 / (alpha + b_1 + c_2 / (alpha + b_2 + ... c_n / (alpha + b_n))),

rational functions in three elementwise operations for two constants, against
four for Horner's rule. J_n vanishes for alpha -> infinity by construction:

    KL    ~ log(1 + s / alpha) / 2 + J_5, with b_4 = 0 to save an operation
    slope ~ J_2 + J_4, which is a J_6 split so that float32 does not cancel

The fit minimises the largest absolute error: a linearised rational fit with
Lawson weights, then a reweighted Levenberg-Marquardt polish.
"""

import mpmath
import numpy as np
import scipy.optimize
import scipy.special
from numpy.polynomial import chebyshev
from numpy.polynomial import polynomial as poly

LOG_ALPHA = np.r_[
    np.linspace(-24, -9.1, 40),
    np.linspace(-9, 8, 420),
    np.linspace(8.1, 24, 40),
]
ALPHA = np.exp(LOG_ALPHA)
NODES, WEIGHTS = np.polynomial.legendre.leggauss(8)
# scale of the variable t = alpha / (alpha + SCALE) of the linearised fit
SCALE = 0.2


def exact_slope(log_alpha):
    """Return x D(x), which is -dKL/dlog_alpha."""
    x = np.sqrt(0.5 * np.exp(-log_alpha))
    return x * scipy.special.dawsn(x)


def exact_kl(log_alpha):
    """Integrate the slope from log_alpha to 60 by composite Gauss-Legendre."""
    edges = np.append(log_alpha, 60.0)
    # KL = 1 / (2 alpha) there, to double precision
    total = 0.5 * np.exp(-60.0)
    kl = np.empty_like(log_alpha)
    for i in range(len(log_alpha) - 1, -1, -1):
        pieces = max(1, int(np.ceil((edges[i + 1] - edges[i]) / 0.25)))
        grid = np.linspace(edges[i], edges[i + 1], pieces + 1)
        half = (grid[1:] - grid[:-1])[:, None] / 2
        middle = (grid[1:] + grid[:-1])[:, None] / 2
        total += np.sum(half * exact_slope(middle + half * NODES) * WEIGHTS)
        kl[i] = total
    return kl


def fraction(constants, alpha):
    """Evaluate J_n from [b_n, c_n, b_{n-1}, ..., c_2, b_1, c_1]."""
    w = alpha + constants[0]
    for c, b in zip(constants[1:-1:2], constants[2:-1:2], strict=True):
        w = c / w + alpha + b
    return constants[-1] / w


def to_fraction(numerator, divisor):
    """Euclid's algorithm: rational function of alpha to constants of J_n."""
    inverse, shift = [], []
    while len(divisor) > 1:
        quotient, remainder = poly.polydiv(divisor, numerator)
        inverse.append(1 / quotient[1])
        shift.append(quotient[0] / quotient[1])
        divisor, numerator = numerator, remainder[: len(numerator) - 1]
    constants = [shift[-1]]
    for i in range(len(shift) - 1, 0, -1):
        constants += [inverse[i] * inverse[i - 1], shift[i - 1]]
    return np.array([*constants, inverse[0]])


def to_rational(constants):
    """Invert `to_fraction`: numerator and monic divisor, lowest power first."""
    numerator, divisor = np.ones(1), np.array([constants[0], 1.0])
    for c, b in zip(constants[1:-1:2], constants[2:-1:2], strict=True):
        longer = poly.polyadd(poly.polymul([b, 1.0], divisor), c * numerator)
        numerator, divisor = divisor, longer
    return constants[-1] * numerator, divisor


def linearised_fit(target, degree, iterations=40):
    """Fit J_degree to target (n,); return largest error and constants."""
    t = ALPHA / (ALPHA + SCALE)
    basis = chebyshev.chebvander(2 * t - 1, degree)
    left = (1 - t)[:, None] * basis[:, :degree]
    system = np.hstack([left, -target[:, None] * basis[:, 1:]])
    weight, denominator = np.ones_like(t), np.ones_like(t)
    best_error, best = np.inf, None
    for k in range(iterations):
        row = weight / np.abs(denominator)
        solution = np.linalg.lstsq(
            system * row[:, None], target * row, rcond=1e-15
        )[0]
        new = 1 + basis[:, 1:] @ solution[degree:]
        error = np.abs(left @ solution[:degree] / new - target)
        pole_free = new.min() > 0
        if pole_free and error.max() < best_error:
            best_error, best = error.max(), solution
        denominator = new if pole_free else np.ones_like(t)
        if k > 4:
            weight = weight * np.sqrt(error + 0.02 * error.max())
            weight /= np.sqrt(np.mean(weight**2))

    def in_alpha(series, degree):
        # a Chebyshev series in 2t - 1, times (alpha + SCALE)^degree
        total = np.zeros(1)
        for k, c in enumerate(chebyshev.cheb2poly(series)):
            power = poly.polypow([-SCALE, 1], k)
            rest = poly.polypow([SCALE, 1], degree - k)
            total = poly.polyadd(total, c * poly.polymul(power, rest))
        return total

    numerator = SCALE * in_alpha(best[:degree], degree - 1)
    divisor = in_alpha(np.r_[1, best[degree:]], degree)
    return best_error, to_fraction(numerator, divisor)


def polish(constants, residual, iterations=40):
    """Lower the largest absolute residual by reweighted least squares."""
    weight = np.ones_like(residual(constants))
    best_error, best = np.inf, constants
    for _ in range(iterations):

        def weighted(p, weight=weight):
            r = np.nan_to_num(residual(p) * weight * 1e5, nan=1e4)
            return np.clip(r, -1e4, 1e4)

        constants = scipy.optimize.least_squares(
            weighted,
            constants,
            method="lm",
            x_scale="jac",
            max_nfev=6 * (len(constants) + 1),
        ).x
        error = np.abs(residual(constants))
        if error.max() < best_error:
            best_error, best = error.max(), constants.copy()
        weight = weight * (error + 0.02 * error.max()) ** 0.7
        weight /= np.sqrt(np.mean(weight**2))
    return best_error, best


def split(constants):
    """Write a J_6 with three pairs of complex poles as [J_2, J_4].

    J_2 takes the pair in the middle; that split loses least in float32.
    """
    numerator, divisor = to_rational(constants)
    poles = sorted(poly.polyroots(divisor), key=lambda q: q.real)
    parts = []
    for group in (poles[2:4], poles[:2] + poles[4:]):
        total = np.zeros(1)
        for q in group:
            residue = poly.polyval(q, numerator)
            residue /= poly.polyval(q, poly.polyder(divisor))
            others = poly.polyfromroots([p for p in group if p != q])
            total = poly.polyadd(total, residue * others)
        parts.append(
            to_fraction(np.real(total), np.real(poly.polyfromroots(group)))
        )
    return parts


def show(name, constants):
    print(f"  {name} [b_n, c_n, ..., b_1, c_1]:")
    print("   ", ", ".join(f"{c:.9g}" for c in constants))


def main():
    """Fit, check the oracle against mpmath, print the constants."""
    for a in (-6.0, 0.0, 3.0):
        u = mpmath.mpf(0.5) * mpmath.exp(-a)
        reference = u * mpmath.hyp2f2(1, 1, 1.5, 2, -u)
        here = exact_kl(np.array([a]))[0]
        print(f"KL({a:+.0f}) = {here:.10f}, mpmath {float(reference):.10f}")

    kl, slope = exact_kl(LOG_ALPHA), exact_slope(LOG_ALPHA)

    def expand(p):
        # all but log s, with b_4 = 0
        return np.r_[p[1:3], 0.0, p[3:]]

    def value_error(p):
        base = 0.5 * np.log1p(np.exp(p[0]) / ALPHA)
        return base + fraction(expand(p), ALPHA) - kl

    _, start = linearised_fit(kl - 0.5 * np.log1p(0.05 / ALPHA), 5)
    start = np.r_[np.log(0.05), np.delete(start, 2)]
    error, constants = polish(start, value_error)
    print(f"value: max error {error:.2e} in double precision")
    print(f"  s: {np.exp(constants[0]):.9g}")
    show("J_5", expand(constants))

    _, start = linearised_fit(slope, 6)
    error, constants = polish(start, lambda p: fraction(p, ALPHA) - slope)
    print(f"slope: max error {error:.2e} in double precision")
    for name, part in zip(("J_2", "J_4"), split(constants), strict=True):
        show(name, part)


if __name__ == "__main__":
    main()
