"""Tests of keras_vd.kl. Each test names its oracle."""

import keras
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from keras import ops

from keras_vd.divergences import kl
from tests.helpers.gradients import gradient

GRID = np.linspace(-20.0, 20.0, 4001).astype("float32")
LOG_UNIFORM = [
    kl.log_uniform_exact,
    kl.log_uniform_molchanov,
    kl.log_uniform_kingma,
    kl.log_uniform_lower_bound,
]
OF_LOG_ALPHA = [*LOG_UNIFORM, kl.ard]
UNBOUNDED = [kl.log_uniform_exact, kl.log_uniform_molchanov, kl.ard]

# log_alpha: exact by 2F2, Molchanov, ARD; computed with mpmath outside this
# repository's code, rounded to five decimals.
TABLE = np.array(
    [
        [-8, 4.63501, 4.63590, 4.00017],
        [-6, 3.63394, 3.63645, 3.00124],
        [-4, 2.62575, 2.63421, 2.00907],
        [-2, 1.54415, 1.54053, 1.06346],
        [-1, 0.91453, 0.91387, 0.65663],
        [0, 0.42669, 0.43124, 0.34657],
        [1, 0.17319, 0.17797, 0.15663],
        [2, 0.06617, 0.06842, 0.06346],
        [3, 0.02469, 0.02542, 0.02429],
        [5, 0.00337, 0.00342, 0.00336],
    ]
)


def evaluate(fn, *args):
    return ops.convert_to_numpy(fn(*args))


def exact_slope(log_alpha):
    """X D(x) with x = 1 / sqrt(2 alpha), by scipy's Dawson function."""
    x = np.sqrt(0.5 * np.exp(-np.asarray(log_alpha, "float64")))
    return x * scipy.special.dawsn(x)


@pytest.fixture(scope="module")
def exact_on_grid():
    """2 int_0^x D(t) dt on GRID, by quadrature from cell to cell."""
    nodes, weights = np.polynomial.legendre.leggauss(10)
    edges = GRID.astype("float64")
    half = np.diff(edges)[:, None] / 2
    middle = (edges[1:] + edges[:-1])[:, None] / 2
    cells = np.sum(half * weights * exact_slope(middle + half * nodes), axis=1)
    x = np.sqrt(0.5 * np.exp(-edges[-1]))
    last = 2.0 * scipy.integrate.quad(scipy.special.dawsn, 0.0, x)[0]
    return np.append(np.cumsum(cells[::-1])[::-1] + last, last)


def expected_log_abs(alpha):
    """E log|1 + sqrt(alpha) eps|, eps ~ N(0, 1), by quadrature.

    Written over y = 1 + sqrt(alpha) eps with the singularity at y = 0 as an
    end point of both pieces.
    """
    s = np.sqrt(alpha)

    def integrand(y):
        density = np.exp(-0.5 * ((y - 1) / s) ** 2) / (s * np.sqrt(2 * np.pi))
        return np.log(np.abs(y)) * density

    low, high = min(1 - 12 * s, -1e-9), 1 + 12 * s
    kwargs = dict(epsabs=1e-11, epsrel=1e-11, limit=400)
    left = scipy.integrate.quad(integrand, low, 0.0, **kwargs)[0]
    right = scipy.integrate.quad(
        integrand, 0.0, high, points=[max(1 - 3 * s, 0.1), 1.0], **kwargs
    )[0]
    return left + right


def test_exact_value_against_quadrature_of_dawson(exact_on_grid):
    # Oracle: scipy.special.dawsn, integrated. Documented error 2e-6.
    error = np.abs(evaluate(kl.log_uniform_exact, GRID) - exact_on_grid)
    print(f"largest error of the value: {error.max():.2e}")
    assert error.max() < 2.2e-6


def test_exact_gradient_against_dawson():
    # Oracle: scipy.special.dawsn. Documented error 4e-6.
    error = np.abs(gradient(kl.log_uniform_exact, GRID)[0] + exact_slope(GRID))
    print(f"largest error of the gradient: {error.max():.2e}")
    assert error.max() < 4.5e-6


def test_exact_against_quad_and_hypergeometric_series():
    # Oracles: adaptive quadrature; the closed form u 2F2(1, 1; 3/2, 2; -u).
    mpmath = pytest.importorskip("mpmath")
    for log_alpha in (-5.0, -2.5, -1.0, 0.0, 2.0, 6.0):
        u = 0.5 * np.exp(-log_alpha)
        quad = scipy.integrate.quad(scipy.special.dawsn, 0, np.sqrt(u))[0] * 2
        series = float(u * mpmath.hyp2f2(1, 1, 1.5, 2, -u))
        ours = float(evaluate(kl.log_uniform_exact, [log_alpha])[0])
        assert abs(quad - series) < 1e-10
        assert abs(ours - series) < 2.2e-6


def test_exact_gradient_is_the_slope_of_the_value():
    # Oracle: finite differences of the value, so a wrong gradient formula
    # cannot hide behind a wrong formula in the test.
    points = np.linspace(-8, 8, 33).astype("float32")
    step = np.float32(0.125)
    difference = evaluate(kl.log_uniform_exact, points + step) - evaluate(
        kl.log_uniform_exact, points - step
    )
    slope = gradient(kl.log_uniform_exact, points)[0]
    # 2e-3 covers the third derivative times step**2 / 6
    np.testing.assert_allclose(slope, difference / 0.25, atol=2e-3)


@pytest.mark.parametrize(
    ("fn", "column"),
    [(kl.log_uniform_exact, 1), (kl.log_uniform_molchanov, 2), (kl.ard, 3)],
)
def test_portable_numeric_expectations(fn, column):
    # Oracle: TABLE, five decimals.
    values = evaluate(fn, TABLE[:, 0].astype("float32"))
    np.testing.assert_allclose(values, TABLE[:, column], atol=8e-6)


def test_exact_gradient_at_zero():
    # Oracle: x D(x) at alpha = 1 from mpmath, six decimals.
    slope = gradient(kl.log_uniform_exact, np.zeros(1, "float32"))[0]
    assert abs(slope[0] + 0.362389) < 5e-6


def test_molchanov_against_numpy():
    # Oracle: the equation as printed, in float64; not the form used inside.
    a = GRID.astype("float64")
    sigmoid = 1 / (1 + np.exp(-(1.87320 + 1.48695 * a)))
    minus_kl = 0.63576 * sigmoid - 0.5 * np.log1p(np.exp(-a)) - 0.63576
    slope = 0.63576 * 1.48695 * sigmoid * (1 - sigmoid) + 0.5 / (1 + np.exp(a))
    np.testing.assert_allclose(
        evaluate(kl.log_uniform_molchanov, GRID), -minus_kl, atol=2e-6
    )
    np.testing.assert_allclose(
        gradient(kl.log_uniform_molchanov, GRID)[0], -slope, atol=5e-7
    )


def test_molchanov_is_as_close_to_the_exact_kl_as_documented(exact_on_grid):
    # Oracle: the exact KL; the bounds stand in the docstring.
    value = evaluate(kl.log_uniform_molchanov, GRID)
    slope = gradient(kl.log_uniform_molchanov, GRID)[0]
    assert 0.0090 < np.abs(value - exact_on_grid).max() < 0.0095
    assert 0.0135 < np.abs(slope + exact_slope(GRID)).max() < 0.0138


def test_kingma_against_quadrature_of_the_definition(exact_on_grid):
    # Oracle: KL = const - log_alpha / 2 + E log|1 + sqrt(alpha) eps| by
    # quadrature, for alpha <= 1; bound 0.041 nats, from the docstring.
    points = np.array([-6.0, -4.0, -3.0, -2.0, -1.0, -0.5, 0.0], "float32")
    definition = [
        kl.LOG_UNIFORM_CONSTANT - 0.5 * a + expected_log_abs(np.exp(a))
        for a in points.astype("float64")
    ]
    exact = np.interp(points, GRID, exact_on_grid)
    np.testing.assert_allclose(definition, exact, atol=1e-5)
    error = np.abs(evaluate(kl.log_uniform_kingma, points) - definition)
    assert error.max() < 0.041
    below = GRID <= 0
    error = evaluate(kl.log_uniform_kingma, GRID) - exact_on_grid
    assert 0.040 < np.abs(error[below]).max() < 0.041
    # a free constant leaves half of the peak-to-peak error
    assert np.ptp(error[below]) / 2 < 0.0205


def test_kingma_against_numpy():
    # Oracle: the cubic in float64.
    a = np.minimum(GRID.astype("float64"), 0)
    alpha = np.exp(a)
    cubic = 1.16145124 * alpha - 1.50204118 * alpha**2 + 0.58629921 * alpha**3
    constant = (np.euler_gamma + np.log(2)) / 2
    np.testing.assert_allclose(
        evaluate(kl.log_uniform_kingma, GRID),
        constant - 0.5 * a - cubic,
        atol=2e-6,
    )


def test_lower_bound_of_the_evidence_is_an_upper_bound_of_the_kl(exact_on_grid):
    # Identity: E log|1 + sqrt(alpha) eps| <= 0 for alpha <= 1, which the
    # bound drops. 0.246 stands in the docstring.
    below = GRID <= 0
    bound = evaluate(kl.log_uniform_lower_bound, GRID)[below]
    excess = bound - exact_on_grid[below]
    assert excess.min() > -3e-6
    assert 0.245 < excess.max() < 0.246
    np.testing.assert_allclose(
        bound, kl.LOG_UNIFORM_CONSTANT - 0.5 * GRID[below], atol=1e-6
    )


@pytest.mark.parametrize(
    "fn", [kl.log_uniform_kingma, kl.log_uniform_lower_bound]
)
def test_bounded_methods_hold_their_value_above_zero(fn):
    # Identity: constant value and zero gradient for log_alpha > 0.
    points = np.array([0.1, 1.0, 8.0, 80.0], "float32")
    at_zero = evaluate(fn, np.zeros(4, "float32"))
    np.testing.assert_array_equal(evaluate(fn, points), at_zero)
    np.testing.assert_array_equal(gradient(fn, points)[0], np.zeros(4))
    # alpha = 1 is inside the valid range, and a likely starting point
    just_below = gradient(fn, np.full(1, -1e-6, "float32"))[0]
    at_zero = gradient(fn, np.zeros(1, "float32"))[0]
    np.testing.assert_allclose(at_zero, just_below, rtol=1e-4)


def test_all_log_uniform_forms_agree_for_alpha_to_zero():
    # Identity: -log_alpha / 2 + (gamma + ln 2) / 2; Molchanov's k1 is 6e-4
    # above that constant.
    points = np.array([-20.0, -40.0, -80.0], "float32")
    limit = -0.5 * points + (np.euler_gamma + np.log(2)) / 2
    for fn in LOG_UNIFORM:
        tolerance = 7e-4 if fn is kl.log_uniform_molchanov else 1e-5
        np.testing.assert_allclose(evaluate(fn, points), limit, atol=tolerance)
        np.testing.assert_allclose(gradient(fn, points)[0], -0.5, atol=5e-6)


def test_ard_against_numpy_and_optimised_gaussian():
    # Oracles: log1p in float64; gaussian() at its best prior variance.
    expected = 0.5 * np.log1p(np.exp(-GRID.astype("float64")))
    np.testing.assert_allclose(evaluate(kl.ard, GRID), expected, atol=2e-6)
    np.testing.assert_allclose(
        gradient(kl.ard, GRID)[0],
        -0.5 / (1 + np.exp(GRID.astype("float64"))),
        atol=5e-7,
    )
    theta = np.array([0.3, -1.0, 2.0], "float32")
    log_sigma2 = np.array([-3.0, 0.5, 1.0], "float32")
    best = np.sqrt(theta**2 + np.exp(log_sigma2))
    np.testing.assert_allclose(
        evaluate(kl.gaussian, theta, log_sigma2, best),
        evaluate(kl.ard, log_sigma2 - np.log(theta**2)),
        atol=1e-6,
    )


def test_ard_is_below_exact_and_0635_apart_for_alpha_to_zero():
    # Identity: the log-uniform KL exceeds ARD's, by (gamma + ln 2) / 2 at most.
    gap = evaluate(kl.log_uniform_exact, GRID) - evaluate(kl.ard, GRID)
    assert gap.min() > -3e-6
    assert abs(gap[0] - (np.euler_gamma + np.log(2)) / 2) < 1e-5


@pytest.mark.parametrize("fn", OF_LOG_ALPHA)
def test_kl_is_never_negative_and_never_increases(fn):
    # Identity; edward2's KL has had the opposite sign since its first release.
    wide = np.linspace(-80, 80, 3201).astype("float32")
    for points in (GRID, wide):
        value = evaluate(fn, points)
        slope = gradient(fn, points)[0]
        assert np.all(np.isfinite(value))
        assert np.all(np.isfinite(slope))
        assert value.min() >= 0.0
        assert slope.max() <= 1e-7
        assert np.diff(value).max() <= 4e-6


@pytest.mark.parametrize("fn", UNBOUNDED)
def test_kl_vanishes_for_alpha_to_infinity(fn):
    # Identity: KL ~ 1 / (2 alpha) for the exact KL and ARD.
    points = np.array([10.0, 20.0, 80.0, 100.0], "float32")
    np.testing.assert_allclose(evaluate(fn, points)[0], 2.27e-5, rtol=0.05)
    assert evaluate(fn, points)[1:].max() < 1e-6
    assert np.abs(gradient(fn, points)[0][1:]).max() < 1e-6


@pytest.mark.integration
def test_gaussian_against_quadrature():
    # Oracle: int q log(q / p) by adaptive quadrature in float64.
    theta = np.array([0.0, 0.5, -2.0, 1.0], "float32")
    log_sigma2 = np.array([0.0, -4.0, 1.0, -8.0], "float32")
    for stddev in (0.1, 1.0, 3.0):
        expected = []
        for mean, variance in zip(theta, np.exp(log_sigma2), strict=True):
            q = scipy.stats.norm(float(mean), float(np.sqrt(variance)))
            p = scipy.stats.norm(0.0, stddev)
            expected.append(
                q.expect(lambda w, q=q, p=p: q.logpdf(w) - p.logpdf(w))
            )
        np.testing.assert_allclose(
            evaluate(kl.gaussian, theta, log_sigma2, stddev),
            expected,
            rtol=2e-6,
            atol=1e-6,
        )


@pytest.mark.integration
def test_gaussian_against_tensorflow_probability():
    # Oracle: tfp.distributions.kl_divergence.
    if keras.backend.backend() != "tensorflow":
        pytest.skip("tensorflow_probability needs the TensorFlow backend")
    tfp = pytest.importorskip("tensorflow_probability")
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(5, 3)).astype("float32")
    log_sigma2 = rng.uniform(-6, 2, size=(5, 3)).astype("float32")

    def reference(theta, log_sigma2):
        normal = tfp.distributions.Normal
        return tfp.distributions.kl_divergence(
            normal(theta, ops.exp(0.5 * log_sigma2)), normal(0.0, 0.7)
        )

    def ours(theta, log_sigma2):
        return kl.gaussian(theta, log_sigma2, 0.7)

    np.testing.assert_allclose(
        evaluate(ours, theta, log_sigma2),
        evaluate(reference, theta, log_sigma2),
        rtol=2e-6,
        atol=1e-6,
    )
    for g, expected in zip(
        gradient(ours, theta, log_sigma2),
        gradient(reference, theta, log_sigma2),
        strict=True,
    ):
        np.testing.assert_allclose(g, expected, rtol=1e-5, atol=1e-6)


def test_gaussian_gradient_against_numpy():
    # Oracle: theta / s^2 and (sigma2 / s^2 - 1) / 2.
    theta = np.array([0.0, 0.5, -2.0], "float32")
    log_sigma2 = np.array([0.0, -4.0, 1.0], "float32")
    d_theta, d_log_sigma2 = gradient(
        lambda t, s: kl.gaussian(t, s, 0.5), theta, log_sigma2
    )
    np.testing.assert_allclose(d_theta, theta / 0.25, atol=1e-6)
    np.testing.assert_allclose(
        d_log_sigma2, 0.5 * (np.exp(log_sigma2) / 0.25 - 1), rtol=1e-5
    )


@pytest.mark.parametrize("fn", OF_LOG_ALPHA)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_float32_whatever_the_input(fn, dtype):
    # Identity: the value of the rounded input, computed in float32.
    x = ops.cast(ops.convert_to_tensor([[-7.3, 0.4, 5.1]]), dtype)
    y = fn(x)
    assert keras.backend.standardize_dtype(y.dtype) == "float32"
    assert tuple(y.shape) == (1, 3)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(y), evaluate(fn, ops.cast(x, "float32"))
    )


def test_gaussian_is_float32_for_bfloat16():
    # Identity, as above.
    theta = ops.cast(ops.convert_to_tensor([0.3, 1.0]), "bfloat16")
    y = kl.gaussian(theta, theta, 1.0)
    assert keras.backend.standardize_dtype(y.dtype) == "float32"


@pytest.mark.parametrize("fn", OF_LOG_ALPHA)
def test_upstream_gradient_is_used(fn):
    # Identity: chain rule. A hand-written gradient that ignored `upstream`
    # would pass every test on a plain sum.
    points = np.array([-6.0, -1.0, 0.5, 3.0], "float32")
    factor = np.array([2.0, -3.0, 0.0, 0.5], "float32")
    weight = ops.convert_to_tensor(factor)
    (scaled,) = gradient(lambda x: fn(x) * weight, points)
    (plain,) = gradient(fn, points)
    np.testing.assert_allclose(scaled, factor * plain, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("fn", UNBOUNDED)
def test_training_under_fit_lowers_the_kl(fn):
    # Identity: one compiled SGD step moves log_alpha by -lr dKL/dlog_alpha.
    class Layer(keras.layers.Layer):
        def build(self, input_shape):
            self.log_alpha = self.add_weight(shape=(3, 2), initializer="zeros")

        def call(self, x):
            self.add_loss(ops.sum(fn(self.log_alpha)))
            return x

    model = keras.Sequential([keras.Input((1,)), Layer()])
    model.compile(keras.optimizers.SGD(1.0), loss=lambda y, p: 0.0 * ops.sum(p))
    history = model.fit(np.zeros((4, 1)), np.zeros((4, 1)), verbose=0)
    start = np.zeros((3, 2), "float32")
    np.testing.assert_allclose(
        history.history["loss"][0], evaluate(fn, start).sum(), rtol=1e-5
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(model.layers[-1].log_alpha),
        -gradient(fn, start)[0],
        rtol=1e-5,
    )


@pytest.mark.core
@pytest.mark.parametrize("stddev", [0.2, 1.0, 3.0])
def test_evidence_of_zero_is_that_of_the_smaller_model(stddev):
    """Oracle: both evidences of a regression on one weight, by quadrature.

    Its posterior is normal, so that the variational one can be exact.
    """
    rng = np.random.default_rng(0)
    found, expected = [], []
    for slope in (0.0, 0.1, 2.0):
        x = rng.normal(size=7)
        y = slope * x + rng.normal(size=7)

        def likelihood(w, x=x, y=y):
            return np.prod(scipy.stats.norm.pdf(y - np.multiply(w, x)))

        evidence = scipy.integrate.quad(
            lambda w, f=likelihood: f(w) * scipy.stats.norm.pdf(w, 0.0, stddev),
            *(-9.0 * stddev, 9.0 * stddev),
            points=[0.0, slope],
            epsabs=0.0,
            limit=200,
        )[0]
        expected.append(np.log(likelihood(0.0) / evidence))
        precision = 1.0 / stddev**2 + x @ x
        found.append(
            evaluate(
                kl.gaussian_log_evidence_of_zero,
                *(x @ y / precision, -np.log(precision), stddev),
            )
        )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert min(expected) < 0.0 < max(expected)


@pytest.mark.core
def test_evidence_of_zero_is_that_of_a_narrow_prior():
    """Oracle: log E_q[p~ / p] by quadrature, p~ a thousandth as wide as q."""
    expected = []
    cases = [(0.3, -2.0, 1.0), (-1.0, -3.0, 0.5), (0.0, 0.5, 0.5)]
    for theta, log_sigma2, stddev in cases:
        width = 1e-3 * np.exp(0.5 * log_sigma2)
        nodes, weights = np.polynomial.hermite_e.hermegauss(20)
        w = width * nodes
        log_ratio = scipy.stats.norm.logpdf(
            w, theta, np.exp(0.5 * log_sigma2)
        ) - scipy.stats.norm.logpdf(w, 0.0, stddev)
        mean = weights @ np.exp(log_ratio) / np.sqrt(2.0 * np.pi)
        expected.append(np.log(mean))
    found = evaluate(
        kl.gaussian_log_evidence_of_zero,
        *np.transpose(np.float32(cases)),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
