from __future__ import annotations

import keras
import numpy as np
import pytest
from scipy import integrate, stats

from keras_vd import posteriors, priors
from keras_vd.divergences import kl
from tests.helpers.contract import assert_close, assert_equal

NAMES = {
    "log_uniform": priors.LogUniform,
    "ard": priors.ARD,
    "gaussian": priors.Gaussian,
    "scale_mixture": priors.ScaleMixture,
}
THETA = np.array([[0.5, -1.5], [0.1, 0.0]], "float32")
LOG_SIGMA2 = np.array([[-1.0, -3.0], [0.5, -2.0]], "float32")
LOG_ALPHA = LOG_SIGMA2 - np.log(THETA**2 + 1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_get(name):
    prior = priors.get(name)
    assert type(prior) is NAMES[name]
    assert priors.get(prior) is prior
    assert type(priors.get(priors.serialize(prior))) is NAMES[name]


@pytest.mark.parametrize("identifier", ["laplace", None, 2.0, priors.ARD])
def test_unknown_prior(identifier):
    with pytest.raises(ValueError, match="Argument `prior`") as error:
        priors.get(identifier)
    for name in NAMES:
        assert f"'{name}'" in str(error.value)
    assert f"prior={identifier!r}" in str(error.value)


@pytest.mark.parametrize(
    "prior",
    [
        priors.LogUniform("kingma"),
        priors.ARD(),
        priors.Gaussian(0.3),
        priors.Gaussian(0.3, mean="initial"),
        priors.ScaleMixture(0.2, 2.0, 0.1),
    ],
)
def test_config_round_trip(prior):
    revived = priors.deserialize(priors.serialize(prior))
    assert type(revived) is type(prior)
    assert revived.get_config() == prior.get_config()


def test_priors_and_posteriors_of_one_name_are_told_apart():
    """Both are registered with Keras; a file must not mix them up."""
    registered = {
        keras.saving.get_registered_name(kind)
        for module in (priors, posteriors)
        for kind in (module.ARD, module.Gaussian)
    }
    assert len(registered) == 4


def test_config_of_something_else():
    config = keras.saving.serialize_keras_object(keras.layers.Dense(2))
    with pytest.raises(ValueError, match="Argument `prior`"):
        priors.get(config)


@pytest.mark.parametrize(
    "form", ["exact", "molchanov", "kingma", "lower_bound"]
)
def test_log_uniform_forms(form):
    """Oracle: the function of that name."""
    prior = priors.LogUniform(form)
    expected = getattr(kl, f"log_uniform_{form}")(LOG_ALPHA)
    assert_equal(prior.kl_divergence(THETA, LOG_SIGMA2, LOG_ALPHA), expected)


def test_ard():
    """Oracle: log1p(theta^2 / sigma2) / 2 in NumPy."""
    expected = 0.5 * np.log1p(np.exp(-LOG_ALPHA))
    found = priors.ARD().kl_divergence(THETA, LOG_SIGMA2, LOG_ALPHA)
    assert_close(found, expected, 1e-5)


def test_gaussian():
    """Oracle: quadrature of the definition."""

    def divergence(theta, log_sigma2):
        posterior = stats.norm(theta, np.exp(0.5 * log_sigma2))
        prior = stats.norm(0.0, 0.7)
        return integrate.quad(
            lambda w: (
                posterior.pdf(w) * (posterior.logpdf(w) - prior.logpdf(w))
            ),
            theta - 9.0 * posterior.std(),
            theta + 9.0 * posterior.std(),
        )[0]

    found = priors.Gaussian(0.7).kl_divergence(THETA, LOG_SIGMA2, LOG_ALPHA)
    assert_close(found, np.vectorize(divergence)(THETA, LOG_SIGMA2), 1e-5)


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda: priors.LogUniform("hron"), ValueError, "molchanov"),
        (lambda: priors.LogUniform(None), ValueError, "kl=None"),
        (lambda: priors.Gaussian(0.0), ValueError, "greater than 0"),
        (lambda: priors.Gaussian(float("inf")), ValueError, "stddev=inf"),
        (lambda: priors.Gaussian("1"), TypeError, "stddev='1'"),
        (lambda: priors.Gaussian(mean=0.0), ValueError, "mean=0.0"),
        (lambda: priors.ScaleMixture(0.0), ValueError, "pi=0.0"),
        (lambda: priors.ScaleMixture(1.0), ValueError, "pi=1.0"),
        (lambda: priors.ScaleMixture(0.5, 1.0, 1.0), ValueError, "stddev_2=1"),
        (lambda: priors.ScaleMixture(0.5, "1"), TypeError, "stddev_1='1'"),
    ],
)
def test_bad_arguments(make, error, named):
    with pytest.raises(error, match=named):
        make()


def test_base_class_is_abstract():
    with pytest.raises(NotImplementedError, match="kl_divergence"):
        priors.Prior().kl_divergence(THETA, LOG_SIGMA2, LOG_ALPHA)
