"""Biases with a posterior: conversion, and what becomes of constants."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

import keras_vd
from keras_vd import layers, posteriors, priors
from keras_vd.callbacks import KLAnnealing, ShrinkWhileTraining
from keras_vd.shrinking.variational import shrink_in_place
from tests.helpers.arrays import random_inputs, to_numpy

pytestmark = pytest.mark.core

K = keras.layers


@keras.saving.register_keras_serializable("tests_bias_posterior")
class Padded(K.Layer):
    """Reads the size of the batch, which is not known when a graph is made."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = K.Dense(4, "relu", use_bias=False, name="hidden")
        self.attention = K.MultiHeadAttention(2, 2, name="attention")
        self.out = K.Dense(3, bias_initializer="ones", name="out")

    def build(self, shape):
        self.hidden.build(shape)
        self.attention.build((*shape[:-1], 4), (*shape[:-1], 4))
        self.out.build((*shape[:-1], 4))

    def call(self, inputs):
        hidden = self.hidden(inputs)
        hidden = self.out(self.attention(hidden, hidden))
        return hidden + ops.zeros((ops.shape(hidden)[0], 1, 1))

    def compute_output_shape(self, shape):
        return (*shape[:-1], 3)


def test_parts_of_a_composite(tmp_path):
    """Identities: the predictions of the plain model, and of the file."""
    plain = keras.Sequential([keras.Input((4, 2)), Padded()])
    model, report = keras_vd.to_variational(
        plain,
        bias_posterior="gaussian",
        kl_weight=0.1,
        return_report=True,
        verbose=0,
    )
    assert not report.skipped
    found = keras_vd.variational_weights(model)
    # Four kernels of attention and the last one have a bias beside them.
    assert [len(found), sum(x.is_bias for x in found)] == [11, 5]
    part = model.layers[-1]
    assert part.hidden.bias_posterior is None
    assert part.out.bias_posterior.is_bias
    x = random_inputs(2, 4, 2)
    expected = plain.predict(x, verbose=0)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-6)
    part.out.bias_posterior.log_sigma2.assign([0.0, -1.0, -2.0])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    out = loaded.layers[-1].out
    assert loaded.layers[-1].hidden.bias_posterior is None
    np.testing.assert_array_equal(
        to_numpy(out.bias_posterior.log_sigma2), [0.0, -1.0, -2.0]
    )
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), expected, atol=1e-6
    )


def plain_pair(use_bias=True):
    return keras.Sequential(
        [
            keras.Input((4,)),
            K.Dense(3, use_bias=False, name="a"),
            K.Dense(2, use_bias=use_bias, name="b"),
        ]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"posterior": None, "gates": "log_normal"}, "biases have one beside"),
        ({"bias_posterior": "normal"}, "must be one of"),
        ({"bias_posterior": posteriors.VD(noise="input")}, "noise='weight'"),
        (
            {"bias_posterior": posteriors.Gaussian(kl_weight=0.1)},
            "kl_weight=None",
        ),
        ({"bias_posterior": lambda layer: "gaussian"}, "for layer 'a'"),
    ],
)
def test_what_is_refused(options, message):
    options = {"bias_posterior": "gaussian", "verbose": 0, **options}
    with pytest.raises(ValueError, match=message):
        keras_vd.to_variational(plain_pair(), **options)


def test_no_layer_has_a_bias():
    options = {"bias_posterior": "gaussian", "verbose": 0}
    with pytest.raises(ValueError, match="no layer that is converted"):
        keras_vd.to_variational(plain_pair(use_bias=False), **options)
    with pytest.raises(ValueError, match="no layer that is converted"):
        keras_vd.to_variational(plain_pair(), include=["a"], **options)


def test_a_function_chooses():
    model = keras_vd.to_variational(
        plain_pair(),
        bias_posterior=lambda x: posteriors.ARD() if x.use_bias else None,
        verbose=0,
    )
    first, last = model.layers
    assert first.bias_posterior is None
    assert isinstance(last.bias_posterior, posteriors.ARD)


SHRUNK = {
    "sparse_vd": posteriors.SparseVD(),
    "shared": posteriors.SparseVD(share="layer"),
    "initial": posteriors.Gaussian(
        prior=priors.Gaussian(0.5, mean="initial", scale="fan_in")
    ),
    "bmr": posteriors.Gaussian(prior=priors.Gaussian(3.0), criterion="bmr"),
    "vd": posteriors.VD(max_alpha=None, share="weight"),
}


def with_constants(bias_posterior):
    """Return 4-6-3 with two dead units, which are constants for the others."""
    options = {
        "kl_weight": 0.1,
        "posterior": "gaussian",
        "bias_posterior": bias_posterior,
    }
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.VDDense(6, "tanh", name="a", **options),
            layers.VDDense(3, name="b", **options),
        ]
    )
    first, last = model.layers
    mask = np.ones((4, 6), bool)
    mask[:, [1, 4]] = False
    first.kernel_posterior.keep_mask.assign(mask)
    first.bias.assign([0.1, 0.9, -0.3, 0.2, -1.2, 0.4])
    last.bias.assign([0.5, -1.0, 2.0])
    return model


@pytest.mark.parametrize(
    ("name", "is_pruned"),
    [
        ("sparse_vd", False),
        ("initial", True),
        *(
            pytest.param(name, is_pruned, marks=pytest.mark.integration)
            for name in SHRUNK
            for is_pruned in (False, True)
            if (name, is_pruned)
            not in (("sparse_vd", False), ("initial", True))
        ),
    ],
)
def test_a_bias_takes_over_constants(name, is_pruned):
    """Identity: the same predictions, with one entry that was zero."""
    model = with_constants(SHRUNK[name])
    posterior = model.layers[-1].bias_posterior
    if is_pruned:
        posterior.keep_mask.assign([True, False, True])
    elif name == "vd":
        posterior.shared_log_alpha.assign([-2.0, 6.0, -2.0])
    elif name == "shared":
        posterior.log_sigma2.assign([3.0])
    elif name == "bmr":
        posterior.log_sigma2.assign([-6.0, 0.0, -6.0])
    elif posterior.limit() is not None:
        posterior.log_sigma2.assign([-4.0, 4.0, -4.0])
    is_zero = to_numpy(posterior.mean()) == 0.0
    assert is_zero.any() == (is_pruned or posterior.limit() is not None)
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    x = random_inputs(5, 4)
    expected = model.predict(x, verbose=0)
    plain = keras_vd.to_deterministic(model)
    plain = keras_vd.shrink(plain, verbose=0)
    assert plain.layers[0].units == 4
    np.testing.assert_allclose(plain.predict(x, verbose=0), expected, atol=1e-5)
    assert shrink_in_place(model)
    assert model.layers[0].units == 4
    assert model.layers[0].bias_posterior.weight.shape == (4,)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-5)
    assert np.all(to_numpy(posterior.mean()) != 0.0)
    found = keras_vd.to_deterministic(model).predict(x, verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_initial_bias_moves_with_the_constants():
    """Identity: the KL, which is that of the change, and of the variance."""
    model = with_constants(SHRUNK["initial"])
    first, last = model.layers
    before = [to_numpy(x) for x in (last.bias, last.bias_posterior.prior_mean)]
    kept = to_numpy(first.bias_posterior.prior_mean)[[0, 2, 3, 5]]
    divergence = to_numpy(last.bias_posterior.kl_divergence())
    variances = to_numpy(last.bias_posterior.log_sigma2)
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    assert shrink_in_place(model)
    after = [to_numpy(x) for x in (last.bias, last.bias_posterior.prior_mean)]
    shifts = [new - old for new, old in zip(after, before, strict=True)]
    assert np.all(np.abs(shifts[0]) > 0.01)
    np.testing.assert_allclose(shifts[1], shifts[0], rtol=1e-5)
    np.testing.assert_allclose(
        to_numpy(last.bias_posterior.kl_divergence()), divergence, rtol=1e-5
    )
    np.testing.assert_array_equal(
        to_numpy(last.bias_posterior.log_sigma2), variances
    )
    found = to_numpy(first.bias_posterior.prior_mean)
    np.testing.assert_array_equal(found, kept)


@pytest.mark.integration
def test_shrinking_while_training():
    """Identity: a plain model of the sizes that are left."""
    model = with_constants("sparse_vd")
    model.compile("adam", "mse")
    x, y = random_inputs(16, 4), random_inputs(16, 3)
    model.fit(
        x,
        y,
        epochs=2,
        callbacks=[KLAnnealing(16), ShrinkWhileTraining()],
        verbose=0,
    )
    assert model.layers[0].units == 4
    posterior = model.layers[0].bias_posterior
    assert posterior.log_sigma2.shape == posterior.keep_mask.shape == (4,)
    assert np.all(np.isfinite(to_numpy(model(x, training=True))))
    plain = keras_vd.to_deterministic(model)
    np.testing.assert_allclose(
        plain.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5
    )


def test_a_pruned_recurrent_bias_that_takes_over_constants():
    """Identity: the predictions, with a bias of two rows and three gates."""
    options = {"kl_weight": 0.1, "bias_posterior": "sparse_vd"}
    model = keras.Sequential(
        [
            keras.Input((5, 2)),
            layers.VDConv1D(
                4, 1, activation="tanh", posterior="gaussian", **options
            ),
            layers.VDGRU(3, posterior="gaussian", **options),
        ]
    )
    conv, recurrent = model.layers
    mask = np.ones((1, 2, 4), bool)
    mask[..., 2] = False
    conv.kernel_posterior.keep_mask.assign(mask)
    conv.bias.assign([0.1, 0.2, 1.5, -0.5])
    recurrent.cell.bias.assign(0.2 + np.arange(18.0).reshape(2, 9) / 9.0)
    mask = np.arange(18).reshape(2, 9) % 4 != 1
    recurrent.bias_posterior.keep_mask.assign(mask)
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    x = random_inputs(3, 5, 2)
    expected = model.predict(x, verbose=0)
    assert shrink_in_place(model)
    assert conv.filters == 3
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-5)
    # Only the entries that a constant was added to are no longer zero.
    found = to_numpy(recurrent.bias_posterior.keep_mask)
    assert found[0].all()
    np.testing.assert_array_equal(found[1], mask[1])
