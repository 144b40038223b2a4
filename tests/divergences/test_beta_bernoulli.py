"""Beta-Bernoulli noise. Each test names its oracle.

Shapes are given as users' variables are: a = softplus(a_unconstrained).
"""

import itertools

import numpy as np
import pytest
from keras import ops

from keras_vd.divergences import beta_bernoulli
from tests.helpers.arrays import to_float64
from tests.helpers.beta_bernoulli import MP, exact_kl, exact_mean, softplus
from tests.helpers.contract import assert_moments
from tests.helpers.gradients import gradient

UNCONSTRAINED = (-10.0, -6.0, -3.0, -1.0, 0.0, 0.5413, 2.0, 5.0, 20.0, 50.0)
GRID = np.array(list(itertools.product(UNCONSTRAINED, repeat=2)), "float32")
ALPHA = 1e-4
# a_unconstrained: KL, E pi for alpha = 1e-4, b_unconstrained = .5413; worked
# out outside this repository's code, rounded.
TABLE = [
    (-1.0, 7.04995, 0.23854),
    (2.0, 8.96508, 0.6802),
    (-10.0, 0.4130, 4.5e-5),
]


def points(grid=GRID):
    return [tuple(MP.mpf(float(x)) for x in point) for point in grid]


def on_grid(exact, *args):
    return np.array([float(exact(*point, *args)) for point in points()])


def exact_gradient(exact, *args):
    """Derivatives by both unconstrained shapes, by mpmath's differences."""
    return [
        np.array(
            [
                float(MP.diff(lambda x, y: exact(x, y, *args), p, order))
                for p in points()
            ]
        )
        for order in ((1, 0), (0, 1))
    ]


def kl(x, y, alpha=ALPHA):
    return beta_bernoulli.kl_divergence(ops.softplus(x), ops.softplus(y), alpha)


def mean(x, y):
    return beta_bernoulli.mean(ops.softplus(x), ops.softplus(y))


def log_pi(x, y, uniforms):
    return beta_bernoulli.sample_log_probability(
        ops.softplus(x), ops.softplus(y), uniforms
    )


@pytest.mark.parametrize("alpha", [1e-4, 0.02, 1.0, 3.0])
def test_kl_on_a_grid(alpha):
    # Oracle: the published formula with 40 digits. KL >= 0 everywhere.
    found = to_float64(kl(*GRID.T, alpha))
    expected = on_grid(exact_kl, alpha)
    np.testing.assert_allclose(found, expected, rtol=5e-5, atol=1e-5)
    assert found.min() >= 0.0


def test_kl_against_quadrature():
    """Oracle: the integral of log(q / p) over u in (0, 1), the densities taken
    at pi = (1 - u^(1 / b))^(1 / a).
    """
    for x, y, alpha in itertools.product(
        (-3.0, -1.0, 2.0), (-1.0, 0.5413, 2.0), (1e-4, 1.0, 3.0)
    ):
        a, b = softplus(MP.mpf(x)), softplus(MP.mpf(y))

        def log_ratio(t, a=a, b=b, alpha=alpha):
            log_t = MP.log(t) / b
            log_one_less = MP.log(-MP.expm1(log_t))
            log_pi = log_one_less / a
            log_q = MP.log(a * b) + (a - 1) * log_pi + (b - 1) * log_t
            log_p = MP.log(alpha) + (alpha - 1) * log_pi
            return log_q - log_p

        with MP.workdps(20):
            expected = MP.quad(log_ratio, [0, 0.1, 0.5, 0.9, 1])
        arguments = (np.float32([z]) for z in (x, y))
        found = float(to_float64(kl(*arguments, alpha))[0])
        assert found == pytest.approx(float(expected), rel=1e-5, abs=1e-5)


@pytest.mark.core
def test_mean_on_a_grid():
    # Oracle: mpmath's beta function; the smallest are below float32.
    found, expected = to_float64(mean(*GRID.T)), on_grid(exact_mean)
    np.testing.assert_allclose(found, expected, rtol=5e-5, atol=1e-30)
    assert found.min() >= 0.0
    assert found.max() <= 1.0


def test_gradients_on_a_grid():
    # Oracle: the closed forms, differentiated by mpmath.
    for ours, exact, args in (
        (kl, exact_kl, (ALPHA,)),
        (mean, exact_mean, ()),
    ):
        found = gradient(ours, *GRID.T)
        for one, other in zip(found, exact_gradient(exact, *args), strict=True):
            np.testing.assert_allclose(one, other, rtol=5e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.02, 3.0])
def test_gradient_of_the_kl_with_other_priors(alpha):
    """Oracle: as above.

    For a, b = 5e-5 two large terms in alpha / a leave a small difference.
    """
    found = gradient(lambda x, y: kl(x, y, alpha), *GRID.T)
    for one, other in zip(found, exact_gradient(exact_kl, alpha), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-5)


@pytest.mark.core
def test_table():
    # Oracle: values from outside this repository, rounded.
    table = np.array(TABLE, "float32")
    b = np.full(len(table), 0.5413, "float32")
    np.testing.assert_allclose(
        to_float64(kl(table[:, 0], b)), table[:, 1], 2e-5
    )
    found = to_float64(mean(table[:, 0], b))
    np.testing.assert_allclose(found, table[:, 2], rtol=1e-2)
    np.testing.assert_allclose(found[:2], table[:2, 2], rtol=3e-5)


UNIFORMS = (1e-6, 1e-4, 0.01, 0.3, 0.5, 0.9, 0.999, 1.0 - 1e-6)
# The largest probability that float32 has.
MAX_LOG_PI = -6e-8


def quantile_grid():
    grid = itertools.product(UNCONSTRAINED, UNCONSTRAINED, UNIFORMS)
    return np.array(list(grid), "float32")


def exact_log_pi(x, y, uniform):
    log_t = MP.log(uniform) / softplus(y)
    return MP.log(-MP.expm1(log_t)) / softplus(x)


@pytest.mark.core
def test_quantiles():
    """Oracle: (1 - u^(1 / b))^(1 / a), which inverts the distribution function
    1 - (1 - pi^a)^b, with 40 digits.
    """
    grid = quantile_grid()
    found = to_float64(log_pi(*grid.T))
    exact = [exact_log_pi(*point) for point in points(grid)]
    pairs = list(zip(exact, points(grid), strict=True))
    for log_value, (x, y, uniform) in pairs[::37]:
        if log_value > -1e-20:  # 40 digits are not enough to go back
            continue
        share = 1 - MP.exp(softplus(x) * log_value)
        assert abs(share ** softplus(y) - uniform) < 1e-12
    expected = np.array([float(min(z, MAX_LOG_PI)) for z in exact])
    # Where pi is near 1 a plain log(1 - x) has a few digits, or none.
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_gradient_of_quantiles():
    # Oracle: mpmath's differences, where pi is not the largest there is.
    grid = quantile_grid()
    found = gradient(
        lambda x, y: log_pi(x, y, grid[:, 2]), grid[:, 0], grid[:, 1]
    )
    assert all(np.isfinite(x).all() for x in found)
    for index in range(3, len(grid), 17):
        x, y, uniform = points(grid)[index]
        if exact_log_pi(x, y, uniform) > 2 * MAX_LOG_PI:
            continue
        for one, order in zip(found, ((1, 0), (0, 1)), strict=True):
            other = MP.diff(
                lambda x, y, u=uniform: exact_log_pi(x, y, u), (x, y), order
            )
            assert one[index] == pytest.approx(float(other), rel=1e-3, abs=1e-9)


def test_fifty_thousand_draws_of_pi():
    """Oracle: the moments E pi^n = b B(1 + n / a, b), by mpmath."""
    shapes = [(-1, 0.5413), (2, 0.5413), (5, 5), (0, -1), (-1, -3), (20, 2)]
    grid = np.array(shapes, "float32")
    rows = []
    for x, y in points(grid):
        a, b = softplus(x), softplus(y)
        raw = [b * MP.beta(1 + n / a, b) for n in range(5)]
        central = [
            sum(
                MP.binomial(n, k) * raw[k] * (-raw[1]) ** (n - k)
                for k in range(n + 1)
            )
            for n in (2, 4)
        ]
        rows.append((raw[1], central[0], central[1] / central[0] ** 2))
    expected = np.array(rows, "float64").T
    assert expected[2].max() < 40.0
    uniforms = np.random.default_rng(5).uniform(size=(50000, len(shapes)))
    draws = np.exp(to_float64(log_pi(*grid.T, uniforms.astype("float32"))))
    assert_moments(draws, *expected)


def relaxed(log_probability, temperature, uniforms):
    return to_float64(
        beta_bernoulli.sample_relaxed_bernoulli(
            ops.convert_to_tensor(np.float32(log_probability)),
            temperature,
            np.float32(uniforms),
        )
    )


@pytest.mark.parametrize("temperature", [0.1, 0.67, 5.0])
@pytest.mark.parametrize("pi", [1e-4, 0.03, 0.5, 0.9, 0.9999])
def test_a_relaxed_gate_is_open_with_probability_pi(pi, temperature):
    """Identity: P(z > 1/2) = pi at any temperature.

    z increases with u, and z > 1/2 just for u > 1 - pi.
    """
    z = relaxed(np.log(pi), temperature, [(1 - pi) * 0.99, 1 - pi * 0.99])
    assert z[0] < 0.5 < z[1]
    uniforms = np.linspace(1e-6, 1 - 1e-6, 20001)
    z = relaxed(np.log(pi), temperature, uniforms)
    assert (np.diff(z) >= -1e-6).all()
    assert np.mean(z > 0.5) == pytest.approx(pi, abs=1e-4)


def test_a_relaxed_gate_by_its_formula():
    # Oracle: sigmoid((logit pi + logit u) / temperature), in float64.
    pi = np.array([1e-6, 0.01, 0.3, 0.8, 0.999])[:, None]
    u = np.array([1e-6, 0.02, 0.5, 0.7, 0.9999])
    logits = np.log(pi / (1 - pi)) + np.log(u / (1 - u))
    for temperature in (0.1, 0.67, 3.0):
        expected = 1 / (1 + np.exp(-logits / temperature))
        found = relaxed(np.log(pi), temperature, u)
        np.testing.assert_allclose(found, expected, rtol=5e-3, atol=1e-30)


def test_limits_of_the_temperature():
    # By hand: a step at u = 1 - pi when cold, 1/2 everywhere when hot.
    u = np.linspace(0.05, 0.95, 10)
    cold = relaxed(np.log(0.3), 1e-3, u)
    np.testing.assert_allclose(cold, u > 0.7, atol=1e-6)
    hot = relaxed(np.log(0.3), 1e4, u)
    np.testing.assert_allclose(hot, 0.5, atol=1e-3)


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 5.0])
def test_gradients_of_gates_are_finite_at_the_extremes(temperature):
    # Also where pi is 0 or 1 for float32, and for the rarest draws.
    grid = quantile_grid()
    for uniform in (1e-6, 0.5, 1.0 - 1e-6):

        def gates(x, y, uniform=uniform):
            return beta_bernoulli.sample_relaxed_bernoulli(
                log_pi(x, y, grid[:, 2]),
                temperature,
                np.full(len(grid), uniform, "float32"),
            )

        z = to_float64(gates(grid[:, 0], grid[:, 1]))
        assert ((z >= 0.0) & (z <= 1.0)).all()
        for found in gradient(gates, grid[:, 0], grid[:, 1]):
            assert np.isfinite(found).all()


@pytest.mark.core
def test_gradient_of_gates():
    # Oracle: dz = z (1 - z) dlogit / temperature, with mpmath's dlogit.
    temperature = 0.67
    for x, y, u, v in [
        (-1.0, 0.5413, 0.3, 0.6),
        (2.0, 2.0, 0.9, 0.2),
        (-3.0, -1.0, 0.2, 0.9),
        (0.0, -3.0, 0.6, 0.5),
    ]:

        def exact(x, y, u=u, v=v):
            pi = MP.exp(exact_log_pi(x, y, MP.mpf(u)))
            logit = MP.log(pi / (1 - pi)) + MP.log(v / (1 - MP.mpf(v)))
            return 1 / (1 + MP.exp(-logit / temperature))

        def ours(x, y, u=u, v=v):
            return beta_bernoulli.sample_relaxed_bernoulli(
                log_pi(x, y, np.float32([u])), temperature, np.float32([v])
            )

        found = gradient(ours, np.float32([x]), np.float32([y]))
        for one, order in zip(found, ((1, 0), (0, 1)), strict=True):
            other = MP.diff(exact, (x, y), order)
            # 1 - z has the digits that z leaves it.
            assert one[0] == pytest.approx(float(other), rel=2e-4, abs=1e-6)
