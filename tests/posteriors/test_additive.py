from __future__ import annotations

import keras
import numpy as np
import pytest
from scipy import integrate, special, stats

from keras_vd import layers, posteriors, priors
from keras_vd.divergences import kl
from tests.helpers.arrays import to_numpy
from tests.helpers.contract import Case, assert_close

DENSE = Case("dense", layers.VDDense, (4,), {"units": 3})


def make(posterior):
    return DENSE.make(posterior=posterior).kernel_posterior


def log_uniform(theta, log_sigma2):
    """Exact divergence: 2 * integral of Dawson's function (Hron 2018)."""
    end = np.abs(theta) / np.sqrt(2.0 * np.exp(log_sigma2))
    return 2.0 * integrate.quad(special.dawsn, 0.0, end)[0]


def normal(theta, log_sigma2, prior_stddev):
    """Divergence of two normals by quadrature of its definition."""
    posterior = stats.norm(theta, np.exp(0.5 * log_sigma2))
    prior = stats.norm(0.0, prior_stddev)
    return integrate.quad(
        lambda w: posterior.pdf(w) * (posterior.logpdf(w) - prior.logpdf(w)),
        theta - 9.0 * posterior.std(),
        theta + 9.0 * posterior.std(),
        epsabs=1e-10,
    )[0]


def automatic(theta, log_sigma2):
    """As `normal`, the prior's variance being theta^2 + sigma2."""
    return normal(theta, log_sigma2, np.sqrt(theta**2 + np.exp(log_sigma2)))


@pytest.mark.core
@pytest.mark.parametrize(
    ("posterior", "oracle", "tolerance"),
    [
        # The surrogate of the exact divergence is within 1e-3 per weight.
        ("sparse_vd", log_uniform, 2e-3),
        ("ard", automatic, 1e-5),
        ("gaussian", lambda t, s: normal(t, s, 1.0), 1e-5),
        (
            posteriors.Gaussian(prior=priors.Gaussian(0.3)),
            lambda t, s: normal(t, s, 0.3),
            1e-5,
        ),
    ],
    ids=["sparse_vd", "ard", "gaussian", "gaussian_narrow"],
)
def test_kl_divergence_is_the_sum_in_nats(posterior, oracle, tolerance):
    """Oracle: quadrature with SciPy, weight by weight."""
    posterior = make(posterior)
    theta = to_numpy(posterior.theta).astype("float64")
    log_sigma2 = to_numpy(posterior.log_sigma2).astype("float64")
    expected = sum(map(oracle, theta.ravel(), log_sigma2.ravel()))
    assert_close(posterior.kl_divergence(), expected, tolerance)


@pytest.mark.integration
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="TensorFlow Probability is a TensorFlow library",
)
def test_gaussian_against_tensorflow_probability():
    """Oracle: tfp's registered divergence of two normals."""
    tfp = pytest.importorskip("tensorflow_probability")
    posterior = make("gaussian")
    ours = tfp.distributions.Normal(
        posterior.theta, np.exp(0.5 * to_numpy(posterior.log_sigma2))
    )
    expected = ours.kl_divergence(tfp.distributions.Normal(0.0, 1.0))
    assert_close(posterior.kl_divergence(), np.sum(expected), 1e-5)


@pytest.mark.core
@pytest.mark.parametrize("kind", ["sparse_vd", "ard", "gaussian"])
def test_log_alpha(kind):
    """Oracle: log_sigma2 - log(theta^2 + 1e-8) in [-20, 20], in NumPy."""
    layer = DENSE.make(posterior=kind)
    theta = np.array(
        [[0.0, 1e-3, -2.0], [1.0, -1.0, 0.1], [0.0, 1e4, 3.0], [5.0, 0.5, -0.5]]
    )
    log_sigma2 = np.array(
        [
            [1.0, -3.0, 0.0],
            [-25.0, 25.0, 2.0],
            [5.0, -9.0, 1.0],
            [0.0, 1.0, 2.0],
        ]
    )
    layer.kernel.assign(theta)
    layer.kernel_posterior.log_sigma2.assign(log_sigma2)
    expected = log_sigma2 - np.log(theta**2 + 1e-8)
    assert expected.min() < -20.0
    assert expected.max() > 20.0
    assert_close(
        layer.kernel_posterior.log_alpha, np.clip(expected, -20, 20), 1e-5
    )


def test_log_alpha_and_log_sigma2_are_inverse():
    """Identity: a weight's log_alpha, put in as log_sigma2, comes back."""
    posterior = make("sparse_vd")
    log_alpha = np.random.default_rng(0).uniform(-9.0, 9.0, (4, 3))
    theta = to_numpy(posterior.theta)
    posterior.log_sigma2.assign(log_alpha + np.log(theta**2 + 1e-8))
    assert_close(posterior.log_alpha, log_alpha, 1e-5)


@pytest.mark.parametrize(
    ("name", "prior", "threshold"),
    [
        ("sparse_vd", priors.LogUniform, 3.0),
        ("ard", priors.ARD, 3.0),
        ("gaussian", priors.Gaussian, None),
    ],
)
def test_methods_are_those_of_their_papers(name, prior, threshold):
    posterior = posteriors.get(name)
    assert type(posterior.prior) is prior
    assert posterior.threshold == threshold


@pytest.mark.parametrize("form", ["exact", "molchanov"])
def test_form_of_the_log_uniform_divergence(form):
    """Oracle: the function of that name."""
    posterior = make(posteriors.SparseVD(prior=priors.LogUniform(form)))
    terms = getattr(kl, f"log_uniform_{form}")(posterior.log_alpha)
    assert_close(posterior.kl_divergence(), to_numpy(terms).sum())
