"""Biases with a posterior: weights whose input is the constant 1."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from scipy import stats

import keras_vd
from keras_vd import layers, posteriors, priors
from tests.helpers.arrays import random_inputs, to_numpy

pytestmark = pytest.mark.core


def make_dense(**options):
    layer = layers.VDDense(
        3, **{"bias_posterior": "gaussian", "kl_weight": 0.1, **options}
    )
    model = keras.Sequential([keras.Input((4,)), layer])
    layer.bias.assign([0.5, -1.0, 2.0])
    return model, layer


@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_variance_of_outputs(estimator):
    """Oracle: x^2 @ sigma2 + sigma2 of the bias, at rows that are all equal."""
    options = {"log_sigma2_init": -4.0, "estimator": estimator}
    _, layer = make_dense(
        posterior=posteriors.Gaussian(**options),
        bias_posterior=posteriors.Gaussian(
            log_sigma2_init=0.0, estimator=estimator
        ),
    )
    x = np.repeat(random_inputs(1, 4), 4000, axis=0)
    if estimator == "local":
        drawn = to_numpy(layer(x, training=True))
    else:
        calls = [layer(x[:1], training=True) for _ in range(40)]
        drawn = np.concatenate([to_numpy(call) for call in calls])
    expected = np.exp(-4.0) * np.square(x[0]).sum() + 1.0
    error = 5.0 * np.sqrt(2.0 / len(drawn))
    np.testing.assert_allclose(drawn.var(0), expected, rtol=error)
    mean = x[0] @ to_numpy(layer.kernel) + to_numpy(layer.bias)
    bound = 5.0 * np.sqrt(expected / len(drawn))
    np.testing.assert_allclose(drawn.mean(0), mean, atol=bound)


def test_divergence_is_added_to_the_losses():
    """Oracle: SciPy's entropy and log density, times the KL weight."""
    prior = priors.Gaussian(0.5, scale="fan_in")
    _, layer = make_dense(bias_posterior=posteriors.Gaussian(prior=prior))
    layer(random_inputs(2, 4), training=True)
    theta, variance = to_numpy(layer.bias), np.exp(-10.0)
    terms = (
        -stats.norm(theta, variance**0.5).entropy()
        - stats.norm(0.0, 0.5).logpdf(theta)
        + 0.5 * variance / 0.25
    )
    found = to_numpy(layer.bias_posterior.losses[0])
    np.testing.assert_allclose(found, 0.1 * terms.sum(), rtol=1e-5)
    total = sum(float(to_numpy(loss)) for loss in layer.losses)
    kernel = float(to_numpy(layer.kernel_posterior.losses[0]))
    np.testing.assert_allclose(total, kernel + 0.1 * terms.sum(), rtol=1e-5)


def test_pruned_biases_are_zero_and_counted_apart():
    """Identity: to_deterministic predicts the same."""
    model, layer = make_dense(bias_posterior="sparse_vd")
    layer.bias_posterior.log_sigma2.assign([-10.0, 4.0, -10.0])
    report = keras_vd.prune(model)
    assert (report.weights, report.biases, report.nonzero_biases) == (12, 3, 2)
    x = random_inputs(5, 4)
    expected = model.predict(x, verbose=0)
    plain = keras_vd.to_deterministic(model)
    assert to_numpy(plain.layers[-1].bias)[1] == 0.0
    np.testing.assert_allclose(plain.predict(x, verbose=0), expected, atol=1e-6)


@pytest.mark.parametrize("posterior", ["sparse_vd", "ard"])
def test_new_biases_are_kept(posterior):
    """Biases start at 0; the mean of a clipped one would get no gradient."""
    layer = layers.VDDense(3, bias_posterior=posterior)
    layer.build((None, 4))
    log_alpha = to_numpy(layer.bias_posterior.log_alpha)
    assert np.all(log_alpha < layer.bias_posterior.threshold)


def test_recurrent_bias_is_drawn_and_saved(tmp_path):
    layer = layers.VDGRU(3, bias_posterior="gaussian", kl_weight=0.1)
    model = keras.Sequential([keras.Input((5, 2)), layer])
    assert keras_vd.variational_weights(model)[-1].label == f"{layer.name}/bias"
    for posterior in (layer.kernel_posterior, layer.recurrent_kernel_posterior):
        posterior.keep_mask.assign(np.zeros(posterior.keep_mask.shape, bool))
    x = random_inputs(2, 5, 2)
    # Only the bias is left, so that both sequences are the same at all draws.
    first, again = (to_numpy(layer(x, training=True)) for _ in range(2))
    np.testing.assert_allclose(first[0], first[1], atol=1e-6)
    assert np.abs(first - again).max() > 1e-5
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[-1].bias_posterior.prior.stddev == 1.0
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6
    )


def test_conversion_keeps_predictions():
    plain = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, use_bias=False),
            keras.layers.Dense(2, bias_initializer="ones"),
        ]
    )
    model = keras_vd.to_variational(
        plain, bias_posterior="sparse_vd", kl_weight=0.1, verbose=0
    )
    assert [x.bias_posterior is None for x in model.layers] == [True, False]
    x = random_inputs(5, 4)
    np.testing.assert_allclose(
        model.predict(x, verbose=0), plain.predict(x, verbose=0), atol=1e-6
    )


def test_frozen_bias_has_no_noise():
    _, layer = make_dense()
    layer.trainable = False
    x = random_inputs(2, 4)
    found = to_numpy(layer(x, training=True))
    np.testing.assert_allclose(found, to_numpy(layer(x)), atol=1e-6)
    assert not layer.losses


@pytest.mark.parametrize(
    "make",
    [
        lambda **k: layers.VDDense(3, use_bias=False, **k),
        lambda **k: layers.VDEmbedding(3, 4, **k),
        lambda **k: layers.VDMultiHeadAttention(2, 4, use_bias=False, **k),
    ],
)
def test_layers_without_a_bias(make):
    with pytest.raises(ValueError, match="has no bias"):
        make(bias_posterior="gaussian")


@pytest.mark.parametrize(
    ("posterior", "message"),
    [
        (posteriors.VD(noise="input"), "noise='weight'"),
        (posteriors.SparseVD(share="rank1"), "share='weight'"),
        ("normal", "must be one of"),
    ],
)
def test_posteriors_that_no_bias_has(posterior, message):
    with pytest.raises(ValueError, match=message):
        layers.VDDense(3, bias_posterior=posterior)


def test_prior_scaled_by_fan_in():
    """Oracle: the same prior, of the width by hand."""
    for layer, shape, fan_in in (
        (layers.VDDense, (4,), 4),
        (layers.VDConv1D, (9, 2), 6),
        (layers.VDDepthwiseConv1D, (9, 2), 3),
    ):
        arguments = {
            layers.VDDense: {"units": 5},
            layers.VDConv1D: {"filters": 5, "kernel_size": 3},
            layers.VDDepthwiseConv1D: {"kernel_size": 3},
        }[layer]
        prior = priors.Gaussian(0.5, scale="fan_in")
        made = layer(**arguments, posterior=posteriors.Gaussian(prior=prior))
        made.build((None, *shape))
        weight = made.kernel_posterior
        scaled = to_numpy(weight.kl_divergence())
        weight.prior = priors.Gaussian(0.5 / fan_in**0.5)
        np.testing.assert_allclose(scaled, to_numpy(weight.kl_divergence()))
    mixture = priors.ScaleMixture(0.5, 1.0, 0.1, scale="fan_in").at_fan_in(4)
    assert (mixture.stddev_1, mixture.stddev_2) == (0.5, 0.05)
    with pytest.raises(ValueError, match="scale"):
        priors.Gaussian(scale="fan_out")
