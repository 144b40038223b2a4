"""The prior of two normals, whose divergence is estimated by samples."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
from scipy import integrate, special, stats

import keras_vd
from keras_vd import layers, posteriors, priors
from keras_vd.divergences import kl
from tests.helpers.arrays import random_inputs, to_numpy
from tests.helpers.contract import assert_close
from tests.helpers.gradients import gradient

pytestmark = pytest.mark.core

PI, WIDE, NARROW = 0.25, 1.0, 0.05
PRIOR = priors.ScaleMixture(PI, WIDE, NARROW)
POINTS = [(0.0, -5.0), (0.1, -6.0), (0.8, -2.0), (-2.0, -7.0)]


def log_prior(w):
    return special.logsumexp(
        [
            np.log(PI) + stats.norm(0.0, WIDE).logpdf(w),
            np.log1p(-PI) + stats.norm(0.0, NARROW).logpdf(w),
        ],
        axis=0,
    )


def divergence(theta, log_sigma2):
    """Divergence by quadrature of its definition."""
    q = stats.norm(theta, np.exp(0.5 * log_sigma2))
    ends = theta + np.linspace(-8.0, 8.0, 9) * q.std()
    return sum(
        integrate.quad(
            lambda w: q.pdf(w) * (q.logpdf(w) - log_prior(w)), *piece
        )[0]
        for piece in itertools.pairwise(ends)
    )


def estimate(theta, log_sigma2, noise):
    return PRIOR.kl_divergence(theta, log_sigma2, None, noise)


def test_one_sample():
    """Oracle: SciPy's log densities at the sample."""
    theta, log_sigma2, noise = (
        values.astype("float32")
        for values in np.random.default_rng(0).normal(size=(3, 50))
    )
    stddev = np.exp(0.5 * log_sigma2.astype("float64"))
    w = theta + stddev * noise
    expected = stats.norm(theta, stddev).logpdf(w) - log_prior(w)
    assert_close(estimate(theta, log_sigma2, noise), expected, 1e-4)


@pytest.mark.parametrize("w", [0.0, 1e-8, 1.0, 300.0, 1e6])
def test_far_from_both_normals(w):
    """Oracle: the wide normal alone far out, with SciPy; finite gradients."""
    values = np.float32([w]), np.float32([-2.0]), np.float32([0.0])
    found = to_numpy(kl.scale_mixture_sample(*values, 0.5, 1.0, np.exp(-6.0)))
    if w >= 1.0:
        log_p = np.log(0.5) + stats.norm.logpdf(np.float64(w))
        expected = stats.norm.logpdf(0.0) + 1.0 - log_p
        np.testing.assert_allclose(found, [expected], rtol=1e-5)
    gradients = gradient(
        lambda *x: kl.scale_mixture_sample(*x, 0.5, 1.0, np.exp(-6.0)), *values
    )
    assert np.isfinite(found).all()
    assert np.isfinite(gradients).all()


@pytest.mark.parametrize("point", POINTS)
def test_samples_are_right_on_average(point):
    """Oracle: quadrature, and its differences for the gradient; 4 errors."""
    count = 40_000
    noise = np.random.default_rng(1).normal(size=count).astype("float32")
    theta, log_sigma2 = (np.full(count, x, "float32") for x in point)
    found = to_numpy(estimate(theta, log_sigma2, noise)).astype("float64")
    slopes = gradient(lambda *x: estimate(*x, noise), theta, log_sigma2)
    step = 1e-3
    t, s = point
    by_theta = divergence(t + step, s) - divergence(t - step, s)
    by_variance = divergence(t, s + step) - divergence(t, s - step)
    for values, expected in (
        (found, divergence(*point)),
        (slopes[0].astype("float64"), by_theta / (2.0 * step)),
        (slopes[1].astype("float64"), by_variance / (2.0 * step)),
    ):
        error = values.std() / np.sqrt(count)
        assert abs(values.mean() - expected) < 4.0 * error + 1e-4


def make(size=4, **options):
    layer = layers.VDDense(
        3,
        posterior=posteriors.Gaussian(
            prior=PRIOR, log_sigma2_init=-4.0, **options
        ),
        kl_weight=1.0,
    )
    layer.build((None, size))
    return layer


@pytest.mark.parametrize("share", ["weight", "unit", "rank1"])
def test_divergence_of_a_layer(share):
    """Oracle: the sum by quadrature over what is kept; 4 standard errors."""
    posterior = make(share=share).kernel_posterior
    mask = np.ones((4, 3), bool)
    mask[1] = False
    posterior.keep_mask.assign(mask)
    theta = to_numpy(posterior.theta).astype("float64")
    expected = sum(divergence(x, -4.0) for x in theta[mask])
    found = [float(to_numpy(posterior.kl_divergence())) for _ in range(100)]
    error = np.std(found) / np.sqrt(len(found))
    assert 0.0 < error
    assert abs(np.mean(found) - expected) < 4.0 * error


def test_training():
    """Oracle: the divergence by quadrature, which training has to halve."""
    layer = make()
    model = keras.Sequential([keras.Input((4,)), layer])
    layer.kernel.assign(np.full((4, 3), 0.3))
    model.compile(
        keras.optimizers.Adam(0.02),
        "mse",
        loss_weights=[0.0],
        run_eagerly=keras.backend.backend() == "tensorflow",
    )
    x = random_inputs(240, 4)
    model.fit(x, np.zeros((240, 3)), batch_size=4, verbose=0)
    log_sigma2 = to_numpy(layer.kernel_posterior.log_sigma2)
    after = map(divergence, to_numpy(layer.kernel).flat, log_sigma2.flat)
    assert sum(after) < 0.5 * 12 * divergence(0.3, -4.0)


def test_bound():
    """Oracle: the quadrature's KL; the seed decides, and the model stays."""
    model = keras.Sequential([keras.Input((4,)), make()])
    model.compile(loss="mse")
    data = random_inputs(8, 4), np.zeros((8, 3))
    state = model.layers[0].kernel_posterior.seed_generator.state
    before = to_numpy(state).copy()
    reports = [
        keras_vd.elbo(model, *data, 60, seed=3, noise_stddev=1.0)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(to_numpy(state), before)
    assert reports[0] == reports[1]
    theta = to_numpy(model.layers[0].kernel).astype("float64").ravel()
    expected = sum(divergence(x, -4.0) for x in theta)
    np.testing.assert_allclose(reports[0].kl, expected, rtol=0.2)


def test_not_with_model_reduction():
    with pytest.raises(ValueError, match="Received: ScaleMixture"):
        posteriors.Gaussian(criterion="bmr", prior=PRIOR)
