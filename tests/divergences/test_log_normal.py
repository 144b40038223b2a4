"""Truncated log-normal noise. Each test names its oracle.

The oracles are closed forms with 80 digits (the published ones, which float32
cannot use) and scipy's truncated normal distribution.
"""

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from keras import ops

from keras_vd.divergences import log_normal
from tests.helpers.contract import assert_moments
from tests.helpers.gradients import gradient
from tests.helpers.log_normal import (
    MP,
    exact_kl,
    exact_log_density,
    exact_mean,
    exact_moment,
    exact_snr,
    mass,
)

MU = (-20.0, -10.0, -3.0, -0.01, 0.0, 0.01, 1.0, 5.0)
LOG_SIGMA = (-5.0, -3.0, -1.0, 0.0, 1.0, 2.0, 3.0, 5.0)
BOUNDS = [(-20.0, 0.0), (-5.0, 2.0), (-1.0, -0.5), (-30.0, 10.0)]
GRID = np.array(list(itertools.product(MU, LOG_SIGMA)), "float32")
# mu, log_sigma: KL, E theta, SNR on [-20, 0]; worked out outside this
# repository's code, rounded.
TABLE = [
    (0.0, -5.0, 7.26994, 0.99465, 246.70),
    (-1.0, -1.0, 2.5936, 0.39123, 2.71867),
    (-5.0, 1.0, 0.68017, 0.05318, 0.40851),
    (-8.0, 1.5, 0.2094, 0.02816, 0.27134),
    (0.0, 2.0, 0.30465, 0.10683, 0.51697),
    (3.0, 1.0, 1.69246, 0.39662, 1.37437),
]


def on_grid(exact, bounds, grid=GRID):
    """Floats of an exact function at every point of a grid."""
    points = [map(MP.mpf, map(float, point)) for point in grid]
    return np.array([float(exact(*point, bounds)) for point in points])


def exact_gradient(exact, bounds, grid=GRID):
    """Derivatives by mu and log_sigma, by mpmath's differences."""
    points = [tuple(map(MP.mpf, map(float, point))) for point in grid]
    orders = [(1, 0), (0, 1)]
    return [
        np.array(
            [
                float(MP.diff(lambda m, s: exact(m, s, bounds), p, order))
                for p in points
            ]
        )
        for order in orders
    ]


def evaluate(fn, bounds, grid=GRID, *args):
    values = fn(grid[:, 0], grid[:, 1], *bounds, *args)
    return ops.convert_to_numpy(values).astype("float64")


FUNCTIONS = {
    "kl": (log_normal.kl_divergence, exact_kl),
    "mean": (log_normal.mean, exact_mean),
    "snr": (log_normal.snr, exact_snr),
}


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_on_a_grid(name, bounds):
    # Oracle: the closed form with 80 digits. Documented error 1e-5.
    ours, exact = FUNCTIONS[name]
    found, expected = evaluate(ours, bounds), on_grid(exact, bounds)
    # A KL below 1e-5 is a difference of logs of about 3.
    absolute = 1e-6 if name == "kl" else 0.0
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=absolute)


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("name", ["kl", "mean"])
def test_gradient_on_a_grid(name, bounds):
    # Oracle: the closed form, differentiated by mpmath.
    ours, exact = FUNCTIONS[name]
    found = gradient(lambda m, s: ours(m, s, *bounds), *GRID.T)
    expected = exact_gradient(exact, bounds)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


CORNERS = np.array(
    list(itertools.product((-25.0, -20.0, 0.0, 5.0), (-20.0, -8.0, 5.0))),
    "float32",
)


@pytest.mark.core
def test_corners_that_variables_can_reach():
    """Oracle: the closed form, where a plain float32 version gives NaN."""
    bounds = (-20.0, 0.0)
    for ours, exact in FUNCTIONS.values():
        found = evaluate(ours, bounds, CORNERS)
        expected = on_grid(exact, bounds, CORNERS)
        np.testing.assert_allclose(found[3:], expected[3:], 1e-2, 1e-5)
        assert not np.isnan(found).any()
    found = gradient(
        lambda m, s: log_normal.kl_divergence(m, s, *bounds), *CORNERS.T
    )
    expected = exact_gradient(exact_kl, bounds, CORNERS)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.core
def test_table():
    # Oracle: values from outside this repository, rounded.
    table = np.array(TABLE, "float32")
    for column, (ours, _) in enumerate(FUNCTIONS.values(), 2):
        found = evaluate(ours, (-20.0, 0.0), table)
        np.testing.assert_allclose(found, table[:, column], 5e-4, 5e-6)


def test_closed_forms_against_quadrature():
    """Oracle: integrals of the definitions, so that the closed forms above
    cannot be wrong together with the code.
    """
    for mu, log_sigma, *_ in TABLE:
        for low, high in BOUNDS[:2]:
            sigma = math.exp(log_sigma)
            ends = ((low - mu) / sigma, (high - mu) / sigma)
            q = scipy.stats.truncnorm(*ends, loc=mu, scale=sigma)

            def integral(fn, low=low, high=high, mu=mu, sigma=sigma):
                steps = (-8, -3, 0, 3, 8)
                points = [mu + k * sigma for k in steps]
                points = [x for x in points if low < x < high]
                return scipy.integrate.quad(
                    fn, low, high, points=points or None, limit=400
                )[0]

            # The prior's density of log(theta) is 1 / (high - low).
            kl = integral(
                lambda y, q=q: q.pdf(y) * q.logpdf(y) if q.pdf(y) else 0.0
            ) + math.log(high - low)
            mean = integral(lambda y, q=q: q.pdf(y) * math.exp(y))
            arguments = mu, log_sigma, (low, high)
            assert float(exact_kl(*arguments)) == pytest.approx(kl, abs=1e-6)
            assert float(exact_mean(*arguments)) == pytest.approx(mean, 1e-6)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_kl_is_never_negative(bounds):
    # Gibbs' inequality; 0 for the prior itself, which sigma -> inf is.
    grid = list(itertools.product(np.linspace(-25, 12, 38), range(-20, 6)))
    found = evaluate(log_normal.kl_divergence, bounds, np.array(grid, "f4"))
    assert found.min() > -1e-6
    flat = np.array([[-3.0, 5.0]], "float32")
    assert evaluate(log_normal.kl_divergence, bounds, flat)[0] < 1e-4


UNIFORMS = (1e-5, 1e-3, 0.1, 0.5, 0.9, 0.999, 1.0 - 1e-5)
MU_BELOW = -25.0


def quantile(mu, log_sigma, bounds, uniforms):
    """log(theta) at float64 arguments, by scipy."""
    sigma = np.exp(log_sigma)
    low, high = ((bound - mu) / sigma for bound in bounds)
    return scipy.stats.truncnorm.ppf(uniforms, low, high, mu, sigma)


def quantile_grid():
    mu = [*MU, MU_BELOW]
    grid = list(itertools.product(mu, LOG_SIGMA, UNIFORMS))
    return np.array(grid, "float32").T


@pytest.mark.parametrize("bounds", BOUNDS)
def test_draws_are_quantiles(bounds):
    """Oracle: scipy's quantiles.

    An absolute error of log(theta) is a relative one of theta. Float32 shares
    of the mass are off by 6e-8, 0.6 % of the rarest here.
    """
    mu, log_sigma, uniforms = quantile_grid()
    theta = log_normal.sample(mu, log_sigma, *bounds, uniforms)
    found = np.log(ops.convert_to_numpy(theta).astype("float64"))
    exact = [x.astype("float64") for x in (mu, log_sigma, uniforms)]
    expected = quantile(*exact[:2], bounds, exact[2])
    error = np.abs(found - expected)
    is_rare = np.minimum(uniforms, 1.0 - uniforms) < 1e-4
    assert error[~is_rare].max() < 2e-4
    assert error.max() < 1e-2
    # Nothing is lost where the density is narrow: errors in units of it.
    scale = np.std(expected.reshape(-1, len(UNIFORMS)), axis=1)
    in_bulk = (~is_rare).reshape(error.shape)
    resolution = 2e-7 * np.maximum(np.abs(expected), 1.0)
    allowed = 5e-4 * np.repeat(scale, len(UNIFORMS)) + resolution
    assert (error[in_bulk] < allowed[in_bulk]).all()


@pytest.mark.parametrize("bounds", BOUNDS[:3])
def test_gradient_of_draws(bounds):
    # Oracle: central differences of scipy's quantiles.
    mu, log_sigma, uniforms = quantile_grid()
    found = gradient(
        lambda m, s: ops.log(log_normal.sample(m, s, *bounds, uniforms)),
        *(mu, log_sigma),
    )
    mu, log_sigma, uniforms = (
        x.astype("float64") for x in (mu, log_sigma, uniforms)
    )
    steps = 1e-4 * np.exp(log_sigma)
    by_mu = quantile(mu + steps, log_sigma, bounds, uniforms)
    by_mu = by_mu - quantile(mu - steps, log_sigma, bounds, uniforms)
    by_mu = by_mu / (2.0 * steps)
    by_log_sigma = (
        quantile(mu, log_sigma + 1e-4, bounds, uniforms)
        - quantile(mu, log_sigma - 1e-4, bounds, uniforms)
    ) / 2e-4
    for one, other in zip(found, (by_mu, by_log_sigma), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3)
    assert all(np.abs(x).max() > 0.1 for x in found)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_draws_at_the_extremes(bounds):
    """Bounds, order and finiteness, from the definition of a quantile."""
    uniforms = np.float32([0.0, 1e-7, 1e-3, 0.5, 0.999, 1.0 - 1e-7])
    mu = [*MU, MU_BELOW, 40.0]
    grid = np.array(list(itertools.product(mu, (-20.0, *LOG_SIGMA))), "f4")
    mu, log_sigma = (x[:, None] for x in grid.T)
    theta = ops.convert_to_numpy(
        log_normal.sample(mu, log_sigma, *bounds, uniforms)
    )
    assert theta.shape == (len(grid), len(uniforms))
    assert theta.min() >= np.exp(bounds[0]) * (1 - 1e-6)
    assert theta.max() <= np.exp(bounds[1]) * (1 + 1e-6)
    assert (np.diff(np.log(theta)) >= -1e-5).all()

    def total(m, s):
        return log_normal.sample(m, s, *bounds, uniforms)

    for derivative in gradient(total, mu, log_sigma):
        assert np.isfinite(derivative).all()


@pytest.mark.core
def test_fifty_thousand_draws():
    """Oracle: the closed forms of four moments."""
    bounds = (-20.0, 0.0)
    points = [(-20, -5), (-20, 5), (5, -5), (5, 5), (5, 0), (-3, -3)]
    points += [(0, 0), (0, 2), (-1, -1), (1, 1), (0, -5), (-10, 5)]
    grid = np.array(points, "float32")
    moments = [
        on_grid(lambda *a, k=k: exact_moment(*a, power=k), bounds, grid)
        for k in (1, 2)
    ]
    central = []
    for mu, log_sigma in points:
        values = [MP.mpf(1)] + [
            exact_moment(MP.mpf(mu), MP.mpf(log_sigma), bounds, k)
            for k in range(1, 5)
        ]
        central.append(
            [
                sum(
                    MP.binomial(n, k) * values[k] * (-values[1]) ** (n - k)
                    for k in range(n + 1)
                )
                for n in (2, 4)
            ]
        )
    variance = np.array([float(x[0]) for x in central])
    kurtosis = np.array([float(x[1] / x[0] ** 2) for x in central])
    assert kurtosis.max() < 40.0
    uniforms = np.random.default_rng(5).uniform(size=(50000, len(points)))
    theta = log_normal.sample(*grid.T, *bounds, uniforms.astype("float32"))
    theta = ops.convert_to_numpy(theta).astype("float64")
    assert_moments(theta, moments[0], variance, kurtosis)


EVIDENCE_POINTS = [(-19, 1), (-15, 2), (-5, 1), (-3, 0), (0, 2), (3, 1)]


def quad_with_peaks(fn, low, high, *peaks):
    """Integral of exp(fn) with 30 digits; peaks are (place, width)."""
    ends = {MP.mpf(low), MP.mpf(high)}
    for place, width in peaks:
        for k in (-30, -8, -2, 0, 2, 8, 30):
            point = MP.mpf(place) + k * width
            if low < point < high:
                ends.add(point)
    with MP.workdps(30):
        return MP.quad(lambda y: MP.exp(fn(y)), sorted(ends))


@pytest.mark.parametrize("bits", [4, 8])
def test_evidence_of_rounding(bits):
    # Oracle: the integral of q p~ / p, p~ log-uniform on the lowest values.
    bounds = (-23 * math.log(2.0), 0.0)
    bound = -bits * math.log(2.0)
    grid = np.array(EVIDENCE_POINTS, "float32")
    found = evaluate(log_normal.log_evidence_of_rounding, bounds, grid, bits)
    ratio = (bounds[1] - bounds[0]) / (bound - bounds[0])
    for ours, (mu, log_sigma) in zip(found, EVIDENCE_POINTS, strict=True):
        share = quad_with_peaks(
            lambda y, p=(mu, log_sigma): exact_log_density(*p, bounds, y),
            *(bounds[0], bound),
            (mu, math.exp(log_sigma)),
        )
        assert ours == pytest.approx(float(MP.log(ratio * share)), abs=2e-5)


@pytest.mark.integration
@pytest.mark.parametrize("bounds", BOUNDS[:2])
def test_evidence_of_zero_is_the_limit_of_a_spike(bounds):
    """Oracle: the integral of q p~ / p, p~ a narrow normal cut off at min_log.

    Its error is of the order of the width, so a tenth of it for a tenth. The
    published formula, with all its Gaussian constants, differs by
    log(2 pi) / 2 = 0.9189.
    """
    grid = np.array(EVIDENCE_POINTS, "float32")
    found = evaluate(log_normal.log_evidence_of_zero, bounds, grid)
    low, high = map(MP.mpf, bounds)
    for ours, (mu, log_sigma) in zip(found, EVIDENCE_POINTS, strict=True):
        errors = []
        for width in (MP.mpf("1e-3"), MP.mpf("1e-4")):

            def integrand(y, width=width, p=(mu, log_sigma)):
                spike = 2 * MP.npdf((y - low) / width) / width
                q = exact_log_density(*p, bounds, y)
                return q + MP.log(spike * (high - low))

            peaks = (low, width), (mu, math.exp(log_sigma))
            exact = MP.log(quad_with_peaks(integrand, low, high, *peaks))
            errors.append(abs(float(exact) - ours))
            published = published_evidence(mu, log_sigma, bounds, low, width)
            gap = float(published - exact)
            assert gap == pytest.approx(math.log(2 * math.pi) / 2, abs=1e-6)
        assert errors[0] < 0.02
        assert errors[1] < 0.11 * errors[0] + 2e-5


def published_evidence(mu, log_sigma, bounds, spike, width):
    """Wright et al. 2024, as their code has it: without -log(2 pi) / 2."""
    precision, narrow = MP.exp(-2 * MP.mpf(log_sigma)), width**-2
    total = precision + narrow
    mean = (mu * precision + spike * narrow) / total

    def z(center, scale):
        return mass(*((MP.mpf(x) - center) / scale for x in bounds))

    masses = z(mean, total**-0.5) / (z(mu, precision**-0.5) * z(spike, width))
    logs = MP.log(masses * (bounds[1] - bounds[0]))
    logs += MP.log(precision * narrow / total) / 2
    squares = mu**2 * precision + spike**2 * narrow - mean**2 * total
    return logs - squares / 2


def test_evidence_of_zero_on_a_grid():
    # Oracle: the log density at min_log over that of the prior, 80 digits.
    for bounds in BOUNDS:
        found = evaluate(log_normal.log_evidence_of_zero, bounds)
        expected = on_grid(
            lambda m, s, b: (
                exact_log_density(m, s, b, MP.mpf(b[0])) + MP.log(b[1] - b[0])
            ),
            bounds,
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        signs = np.sign(expected)
        assert set(signs) == {-1.0, 1.0}
