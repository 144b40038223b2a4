"""Predictive distributions made by a function of the outputs."""

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats

from keras_vd import layers, predict_mc
from tests.helpers.arrays import random_inputs

pytestmark = pytest.mark.core


class Student:
    """The methods of a distribution of TensorFlow Probability, by SciPy."""

    def __init__(self, outputs):
        location, scale = outputs[:, :1], np.exp(outputs[:, 1:])
        self.frozen = scipy.stats.t(5.0, location, scale)

    def mean(self):
        return self.frozen.mean().astype("float32")

    def variance(self):
        return self.frozen.var()

    def log_prob(self, values):
        return self.frozen.logpdf(values)

    def cdf(self, values):
        return self.frozen.cdf(values)


class NoCDF(Student):
    cdf = None


def predict(head, **options):
    layer = layers.VDDense(
        2, posterior="gaussian", bias_posterior="gaussian", kl_weight=0.1
    )
    model = keras.Sequential([keras.Input((6,)), layer])
    layer.bias_posterior.log_sigma2.assign([-1.0, -2.0])
    x = random_inputs(4, 6)
    options = {"seed": 1, "return_samples": True, "verbose": 0, **options}
    return predict_mc(model, x, 7, noise=head, **options)


def test_mixture_of_the_draws():
    """Oracle: SciPy's distributions of all draws, averaged by hand."""
    found = predict(Student)
    parts = [Student(x).frozen for x in found._outputs]
    means = np.stack([part.mean() for part in parts])
    np.testing.assert_allclose(found.mean, means.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        found.epistemic_variance, means.var(0), rtol=1e-4
    )
    np.testing.assert_allclose(
        found.aleatoric_variance,
        np.mean([part.var() for part in parts], 0),
        rtol=1e-5,
    )
    y = random_inputs(4, 1)
    logs = np.stack([part.logpdf(y)[:, 0] for part in parts])
    np.testing.assert_allclose(
        found.log_likelihood(y),
        scipy.special.logsumexp(logs, axis=0) - np.log(7),
        rtol=1e-5,
    )
    for q in (0.01, 0.5, 0.9):
        shares = [part.cdf(found.quantile(q)) for part in parts]
        np.testing.assert_allclose(np.mean(shares, 0), q, atol=1e-5)


def test_without_a_distribution_function():
    found = predict(NoCDF)
    with pytest.raises(ValueError, match="has no `cdf`"):
        found.interval()


def test_not_a_distribution():
    with pytest.raises(ValueError, match="has no `mean`"):
        predict(lambda outputs: outputs.tolist())


def assert_mixture(found, parts):
    """Compare with SciPy's distributions of all draws, averaged by hand."""
    means = np.stack([part.mean() for part in parts])
    np.testing.assert_allclose(found.mean, means.mean(0), rtol=1e-5)
    variances = np.stack([part.var() for part in parts])
    np.testing.assert_allclose(
        found.aleatoric_variance, variances.mean(0), rtol=1e-5
    )
    y = random_inputs(*found.mean.shape)
    logs = np.stack([part.logpdf(y).sum(-1) for part in parts])
    np.testing.assert_allclose(
        found.log_likelihood(y),
        scipy.special.logsumexp(logs, axis=0) - np.log(len(parts)),
        rtol=1e-4,
    )


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="TensorFlow Probability is a TensorFlow library",
)
@pytest.mark.parametrize("is_independent", [False, True])
def test_heads_of_tensorflow_probability(is_independent):
    """Oracle: SciPy's Student distributions of two columns."""
    tfp = pytest.importorskip("tensorflow_probability")

    def head(outputs):
        scale = np.exp(outputs[:, 1:]) * np.array([1.0, 2.0], "float32")
        made = tfp.distributions.StudentT(5.0, outputs[:, :1], scale)
        if is_independent:
            return tfp.distributions.Independent(made, 1)
        return made

    found = predict(head)
    assert found.mean.shape == (4, 2)
    parts = [
        scipy.stats.t(5.0, x[:, :1], np.exp(x[:, 1:]) * [1.0, 2.0])
        for x in found._outputs.astype("float64")
    ]
    assert_mixture(found, parts)
    if is_independent:
        # The distribution function of both columns at once.
        with pytest.raises(ValueError, match="of each column"):
            found.quantile(0.5)
        return
    lower, upper = found.interval(0.9)
    for bound, q in ((lower, 0.05), (upper, 0.95)):
        shares = [part.cdf(bound) for part in parts]
        np.testing.assert_allclose(np.mean(shares, 0), q, atol=1e-5)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="TensorFlow Probability is a TensorFlow library",
)
def test_a_distribution_of_tensorflow_probability_without_cdf():
    """Oracle: SciPy's normals, for the density that there is."""
    tfp = pytest.importorskip("tensorflow_probability")

    def head(outputs):
        scales = np.exp(outputs[:, 1:]) * np.ones(2, "float32")
        means = outputs[:, :1] + np.array([0.0, 1.0], "float32")
        return tfp.distributions.MultivariateNormalDiag(means, scales)

    found = predict(head)
    parts = [
        scipy.stats.norm(x[:, :1] + [0.0, 1.0], np.exp(x[:, 1:]) * np.ones(2))
        for x in found._outputs.astype("float64")
    ]
    assert_mixture(found, parts)
    with pytest.raises(ValueError, match="implements `cdf`"):
        found.interval()


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="distributions of PyTorch"
)
def test_heads_of_torch():
    """Oracle: SciPy's normals."""
    torch = pytest.importorskip("torch")

    def head(outputs):
        location, scale = map(torch.as_tensor, (outputs[:, :1], outputs[:, 1:]))
        return torch.distributions.Normal(location, torch.exp(scale))

    found = predict(head)
    parts = [
        scipy.stats.norm(x[:, :1], np.exp(x[:, 1:]))
        for x in found._outputs.astype("float64")
    ]
    assert_mixture(found, parts)
    shares = [part.cdf(found.quantile(0.9)) for part in parts]
    np.testing.assert_allclose(np.mean(shares, 0), 0.9, atol=1e-5)
