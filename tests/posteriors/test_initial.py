"""Priors around the weight that training began with."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from scipy import stats

import keras_vd
from keras_vd import layers, posteriors, priors
from keras_vd._backend.fusing import MIN_SIZE
from tests.helpers.arrays import random_inputs, to_numpy
from tests.helpers.contract import (
    Case,
    assert_close,
    assert_equal,
    training_gradients,
)

DENSE = Case("dense", layers.VDDense, (4,), {"units": 3})
PRIOR = priors.Gaussian(0.5, mean="initial")


def normals(posterior, initial, stddev=0.5):
    """Divergence of normals, from SciPy's entropy and log density.

    E log p(w) is the log density at the mean less sigma^2 / (2 s^2).
    """
    theta = to_numpy(posterior.theta).astype("float64")
    variance = np.exp(to_numpy(posterior.log_sigma2).astype("float64"))
    entropy = stats.norm(theta, np.sqrt(variance)).entropy()
    log_prior = stats.norm(initial, stddev).logpdf(theta)
    terms = -entropy - log_prior + 0.5 * variance / stddev**2
    return np.sum(np.broadcast_to(terms, theta.shape))


@pytest.mark.core
@pytest.mark.parametrize("share", ["weight", "unit", "rank1"])
def test_divergence_to_the_initial_weight(share):
    """Oracle: SciPy's normals around the first value of the kernel."""
    layer = layers.VDDense(
        3, posterior=posteriors.Gaussian(prior=PRIOR, share=share)
    )
    layer.build((None, 4))
    posterior = layer.kernel_posterior
    initial = to_numpy(layer.kernel).copy()
    assert_close(posterior.kl_divergence(), normals(posterior, initial), 1e-5)
    layer.kernel.assign(initial + np.linspace(-1.0, 2.0, 12).reshape(4, 3))
    assert_equal(posterior.prior_mean, initial)
    assert_close(posterior.kl_divergence(), normals(posterior, initial), 1e-5)


@pytest.mark.core
@pytest.mark.parametrize("units", [3, MIN_SIZE // 64])
def test_gradients(units):
    """Oracle: the derivatives by hand, of theta and of log sigma^2."""
    layer = layers.VDDense(
        units,
        use_bias=False,
        posterior=posteriors.Gaussian(prior=PRIOR),
        kl_weight=1.0,
    )
    layer.build((None, 64))
    initial = to_numpy(layer.kernel).copy()
    change = np.random.default_rng(0).normal(size=initial.shape)
    layer.kernel.assign(initial + change)
    # Inputs of zero leave nothing but the divergence.
    found = training_gradients(layer, np.zeros((2, 64), "float32"))
    slope = 0.5 * (np.exp(-10.0) / 0.25 - 1.0)
    expected = {
        "kernel": change / 0.25,
        "kernel_posterior/log_sigma2": np.full_like(change, slope),
    }
    for name, value in expected.items():
        assert_close(found[name], value, 1e-4)


@pytest.mark.core
@pytest.mark.parametrize("kind", ["sparse_vd", "ard", "vd"])
def test_with_posteriors_of_other_names(kind):
    """Oracle: the closed form, by the log alpha that the posterior tells."""
    kinds = {
        "sparse_vd": posteriors.SparseVD,
        "ard": posteriors.ARD,
        "vd": posteriors.VD,
    }
    layer = DENSE.make(posterior=kinds[kind](prior=PRIOR))
    posterior = layer.kernel_posterior
    initial = to_numpy(posterior.prior_mean).astype("float64")
    theta = to_numpy(posterior.theta).astype("float64")
    log_alpha = to_numpy(posterior.log_alpha).astype("float64")
    variance = np.exp(log_alpha) * (theta**2 + 1e-8)
    terms = (theta - initial) ** 2 + variance
    expected = np.sum(terms / 0.5 - 0.5 + np.log(0.5) - np.log(variance) / 2)
    assert_close(posterior.kl_divergence(), expected, 1e-3)


@pytest.mark.core
def test_a_converted_model_begins_at_its_trained_weights():
    """Identity: the kernels of the plain model, and 1 for group variables."""
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model = keras_vd.to_variational(
        plain,
        posterior=posteriors.Gaussian(prior=PRIOR),
        groups=("output",),
    )
    layer = model.layers[-1]
    assert_equal(layer.kernel_posterior.prior_mean, plain.layers[-1].kernel)
    assert_equal(layer.output_group.prior_mean, np.ones(3))
    layer.kernel.assign(np.ones((4, 3)))
    layer.kernel_posterior.start_from_weight()
    assert_equal(layer.kernel_posterior.prior_mean, np.ones((4, 3)))


@pytest.mark.core
@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_files(tmp_path, name):
    """Identity: the initial weight, after training has moved the weight."""

    def make():
        return keras.Sequential(
            [
                keras.Input((4,)),
                layers.VDDense(
                    3, posterior=posteriors.Gaussian(prior=PRIOR), kl_weight=1.0
                ),
            ]
        )

    model = make()
    initial = to_numpy(model.layers[0].kernel).copy()
    model.layers[0].kernel.assign(initial + 1.0)
    if name.endswith(".keras"):
        model.save(tmp_path / name)
        loaded = keras.saving.load_model(tmp_path / name)
    else:
        model.save_weights(tmp_path / name)
        loaded = make()
        loaded.load_weights(tmp_path / name)
    posterior = loaded.layers[0].kernel_posterior
    assert posterior.prior.get_config() == {
        "stddev": 0.5,
        "mean": "initial",
        "scale": None,
    }
    assert_equal(posterior.prior_mean, initial)
    assert_equal(posterior.weight, initial + 1.0)


@pytest.mark.core
def test_training_leaves_the_initial_weight_alone():
    """Oracle: a large KL weight pulls weights back to where they began."""
    layer = layers.VDDense(
        3, posterior=posteriors.Gaussian(prior=PRIOR), kl_weight=1.0
    )
    model = keras.Sequential([keras.Input((4,)), layer])
    initial = to_numpy(layer.kernel).copy()
    layer.kernel.assign(initial + 1.0)
    model.compile(
        keras.optimizers.SGD(0.1),
        "mse",
        loss_weights=[0.0],
        run_eagerly=keras.backend.backend() == "tensorflow",
    )
    x = random_inputs(4, 4)
    model.fit(x, np.zeros((4, 3)), batch_size=4, epochs=20, verbose=0)
    assert_equal(layer.kernel_posterior.prior_mean, initial)
    assert_close(layer.kernel, initial, 1e-3)


def test_other_priors_keep_no_initial_weight():
    """Oracle: the names of the variables."""
    for prior in ("gaussian", "ard", "log_uniform"):
        layer = DENSE.make(posterior=posteriors.Gaussian(prior=prior))
        names = [x.name for x in layer.kernel_posterior.variables]
        assert "prior_mean" not in names


def test_not_with_model_reduction():
    with pytest.raises(ValueError, match="mean='zero'") as error:
        posteriors.Gaussian(criterion="bmr", prior=PRIOR)
    assert "Received: mean='initial'" in str(error.value)
