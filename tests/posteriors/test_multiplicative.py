from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from scipy import integrate, special

from keras_vd import layers, posteriors
from tests.helpers.arrays import to_numpy
from tests.helpers.contract import (
    MAX_Z,
    Case,
    assert_close,
    assert_equal,
    assert_moments,
    draw,
    is_possible_here,
    sequential,
    training_gradients,
)
from tests.helpers.plain import plain_linear

DENSE = Case("dense", layers.VDDense, (4,), {"units": 3})
CONV = Case("conv", layers.VDConv1D, (5, 2), {"filters": 2, "kernel_size": 2})


def assert_covariance(draws, expected):
    """Sample covariance within MAX_Z standard deviations.

    The sample covariance c_jk of n normal draws has variance
    (c_jj c_kk + c_jk^2) / n.
    """
    variances = np.diag(expected)
    spread = np.sqrt(
        (np.outer(variances, variances) + expected**2) / len(draws)
    )
    error = np.cov(draws, rowvar=False) - expected
    assert np.abs(error / spread).max() < MAX_Z


@pytest.mark.core
@pytest.mark.parametrize("noise", ["weight", "input"])
@pytest.mark.parametrize("share", ["layer", "unit"])
def test_moments_of_the_outputs(noise, share):
    """Oracle: Kingma 2015, closed form.

    Independent noise has covariance diag(x^2 @ (alpha * theta^2)); one factor
    per input has sum_i alpha_i x_i^2 theta_ij theta_ik between j and k.
    """
    keras.utils.set_random_seed(0)
    layer = DENSE.make(posterior=posteriors.VD(noise=noise, share=share))
    posterior, example = layer.kernel_posterior, DENSE.inputs(1)
    theta = to_numpy(layer.kernel).astype("float64")
    shape = {"layer": (1, 1), "unit": (4, 1) if noise == "input" else (1, 3)}
    assert tuple(posterior.shared_log_alpha.shape) == shape[share]
    alpha = np.broadcast_to(np.exp(to_numpy(posterior.log_alpha)), (4, 3))
    scaled = example[0][:, None] * np.sqrt(alpha) * theta
    covariance = scaled.T @ scaled
    if noise == "weight":
        covariance = np.diag(np.diag(covariance))
    draws = draw(layer, example)
    mean = (example @ theta + to_numpy(layer.bias))[0]
    assert_moments(draws, mean, np.diag(covariance))
    assert_covariance(draws, covariance)


@pytest.mark.core
@pytest.mark.parametrize("noise", ["weight", "input"])
def test_fixed_alpha_is_gaussian_dropout(noise):
    """Oracle: Keras' GaussianDropout in front of Dense; variance 2/n each.

    Its noise on the inputs is that of noise="input"; independent noise on the
    weights has the same variances, without the covariances.
    """
    keras.utils.set_random_seed(0)
    rate, num_draws = 0.3, 8000
    alpha = rate / (1.0 - rate)
    layer = DENSE.make(
        posterior=posteriors.VD(
            alpha_init=alpha, learn_alpha=False, noise=noise
        ),
        kl_weight=None,
    )
    layer.kernel_posterior.shared_log_alpha.assign([[math.log(alpha)]])
    example = DENSE.inputs(1)
    dropout = keras.layers.GaussianDropout(rate, seed=0)
    dropped = dropout(np.repeat(example, num_draws, axis=0), training=True)
    theirs = to_numpy(dropped) @ to_numpy(layer.kernel)
    ours = draw(layer, example, num_draws) - to_numpy(layer.bias)
    gap = theirs.mean(0) - ours.mean(0)
    z_mean = gap / np.sqrt((theirs.var(0) + ours.var(0)) / num_draws)
    assert np.abs(z_mean).max() < MAX_Z
    z_variance = np.log(theirs.var(0) / ours.var(0)) / math.sqrt(4 / num_draws)
    assert np.abs(z_variance).max() < MAX_Z
    if noise == "input":
        theirs, ours = (np.corrcoef(x, rowvar=False) for x in (theirs, ours))
        assert np.abs(theirs - ours).max() < MAX_Z * math.sqrt(2 / num_draws)


@pytest.mark.core
@pytest.mark.parametrize("noise", ["weight", "input"])
def test_fixed_alpha_needs_no_kl_weight(noise):
    """Its divergence is a constant; it counts only where asked for."""
    options = {"learn_alpha": False, "noise": noise}
    layer = DENSE.make(posterior=posteriors.VD(**options), kl_weight=None)
    layer(DENSE.inputs(), training=True)
    assert layer.losses == []
    assert len(layer.trainable_weights) == 2
    layer.kernel_posterior.kl_weight.assign(0.5)
    layer(DENSE.inputs(), training=True)
    divergence = to_numpy(layer.kernel_posterior.kl_divergence())
    assert_close(layer.losses[0], 0.5 * divergence)
    learned = DENSE.make(posterior=posteriors.VD(noise=noise), kl_weight=None)
    with pytest.raises(ValueError, match="KLAnnealing"):
        learned(DENSE.inputs(), training=True)


@pytest.mark.core
@pytest.mark.parametrize("max_alpha", [0.5, None])
def test_alpha_is_bounded(max_alpha):
    """Oracle: the bound itself, after a step that wants more."""
    layer = DENSE.make(
        posterior=posteriors.VD(alpha_init=0.4, max_alpha=max_alpha),
        kl_weight=1e3,
    )
    log_alpha = layer.kernel_posterior.shared_log_alpha
    log_alpha.assign([[math.log(0.4)]])
    model = sequential(DENSE, layer)
    model.compile(keras.optimizers.SGD(1e-2), "mse")
    model.train_on_batch(DENSE.inputs(), np.zeros((3, 3)))
    alpha = math.exp(to_numpy(log_alpha).item())
    if max_alpha is None:
        assert alpha > 1.0
    else:
        assert alpha == pytest.approx(max_alpha, rel=1e-6)


@pytest.mark.core
@pytest.mark.parametrize("share", ["layer", "unit", "weight"])
def test_kl_divergence(share):
    """Oracle: 2 * integral of Dawson's function; every weight counts."""
    posterior = DENSE.make(posterior=posteriors.VD(share=share))
    posterior = posterior.kernel_posterior
    ends = np.sqrt(0.5 * np.exp(-to_numpy(posterior.log_alpha)))
    assert ends.shape == (4, 3)
    expected = sum(
        2.0 * integrate.quad(special.dawsn, 0.0, end)[0] for end in ends.flat
    )
    assert_close(posterior.kl_divergence(), expected, 2e-3)


@pytest.mark.core
@pytest.mark.parametrize(
    "options",
    [{"share": "weight"}, {"share": "unit"}, {"noise": "input"}],
    ids=str,
)
def test_alpha_learns_from_the_outputs(options):
    layer = DENSE.make(posterior=posteriors.VD(**options), kl_weight=0.0)
    gradients = training_gradients(layer, DENSE.inputs())
    for path in ("kernel", "kernel_posterior/log_alpha"):
        assert np.isfinite(gradients[path]).all()
        assert np.all(gradients[path] != 0.0)


def test_pruned_weights_are_zero_with_noise_on_the_inputs():
    """Oracle: noise free outputs of a layer with nothing left."""
    layer = DENSE.make(posterior=posteriors.VD(noise="input"))
    layer.kernel_posterior.prune(-20.0)
    outputs = layer(DENSE.inputs(), training=True)
    expected = np.broadcast_to(to_numpy(layer.bias), (3, 3))
    assert_equal(outputs, expected)


def test_bounded_alpha_never_prunes_and_unbounded_does():
    layer = DENSE.make(posterior="vd")
    layer.kernel_posterior.prune()
    assert layer.kernel_posterior.sparsity() == 0.0
    free = DENSE.make(posterior=posteriors.VD(max_alpha=None, share="weight"))
    log_alpha = np.where(np.arange(12).reshape(4, 3) < 5, 4.0, 2.0)
    free.kernel_posterior.shared_log_alpha.assign(log_alpha)
    free.kernel_posterior.prune()
    assert free.kernel_posterior.sparsity() == pytest.approx(5 / 12)


@pytest.mark.core
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_noise_on_the_inputs_of_a_convolution(data_format):
    """Oracle: independent factors per position and channel, closed form."""
    keras.utils.set_random_seed(0)
    arguments = {"filters": 2, "kernel_size": 2, "data_format": data_format}
    last = data_format == "channels_last"
    case = Case("conv", layers.VDConv1D, (5, 3) if last else (3, 5), arguments)
    if not is_possible_here(case):
        pytest.skip("Keras' layer does not run here, either")
    layer = case.make(posterior=posteriors.VD(noise="input", share="unit"))
    log_alpha = to_numpy(layer.kernel_posterior.shared_log_alpha)
    assert log_alpha.shape == (1, 3, 1)
    alpha = np.exp(log_alpha)[0] if not last else np.exp(log_alpha)[0, :, 0]
    example, theta = case.inputs(1), to_numpy(layer.kernel)
    variance = plain_linear(
        keras.layers.Conv1D, arguments, alpha * example**2, theta**2
    )
    plain = case.plain(layer, [theta])
    assert_moments(
        draw(layer, example), to_numpy(plain(example))[0], variance[0]
    )


def test_noise_on_the_inputs_of_groups():
    """With groups a row of the kernel belongs to several channels."""
    layer = layers.VDConv1D(
        2,
        2,
        groups=2,
        posterior=posteriors.VD(noise="input", share="unit"),
        kl_weight=0.0,
    )
    with pytest.raises(ValueError, match="share='layer'"):
        layer(np.zeros((1, 5, 4), "float32"), training=True)


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"alpha_init": 0.0}, ValueError, "alpha_init"),
        ({"alpha_init": 2.0}, ValueError, "alpha_init"),
        ({"alpha_init": "0.5"}, TypeError, "alpha_init"),
        ({"max_alpha": 0}, ValueError, "max_alpha"),
        ({"max_alpha": True}, TypeError, "max_alpha"),
        ({"noise": "output"}, ValueError, "noise"),
        ({"noise": "input", "share": "weight"}, ValueError, "share='weight'"),
        (
            {"noise": "input", "estimator": "weight"},
            ValueError,
            "estimator='weight'",
        ),
    ],
)
def test_bad_options(options, error, named):
    with pytest.raises(error, match=named) as caught:
        posteriors.VD(**options)
    for name, value in options.items():
        assert f"{name}={value!r}" in str(caught.value) or name == "noise"


@pytest.mark.core
@pytest.mark.parametrize("prior", ["log_uniform", "ard"])
def test_a_constant_divergence_needs_no_weight(prior):
    posterior = posteriors.VD(learn_alpha=False, prior=prior)
    layer = layers.VDDense(2, posterior=posterior)
    layer(np.ones((1, 3)), training=True)
    assert layer.losses == []


@pytest.mark.core
@pytest.mark.parametrize("prior", ["gaussian", "scale_mixture"])
def test_a_divergence_that_depends_on_the_weights_needs_one(prior):
    posterior = posteriors.VD(learn_alpha=False, prior=prior)
    layer = layers.VDDense(2, posterior=posterior)
    with pytest.raises(ValueError, match="kl_weight"):
        layer(np.ones((1, 3)), training=True)
