"""Frozen layers do in training what they do at inference."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_vd
from keras_vd import layers, posteriors
from tests.helpers.arrays import to_float64
from tests.helpers.contract import KL_WEIGHT, assert_close, assert_equal

pytestmark = pytest.mark.core

SEQUENCES = np.random.default_rng(5).normal(size=(3, 4, 6)).astype("float32")
WORDS = np.array([[1, 2, 3, 4]])
CASES = {
    "dense": (lambda **o: layers.VDDense(3, **o), SEQUENCES),
    "groups": (
        lambda **o: layers.VDDense(3, groups=("input", "output"), **o),
        SEQUENCES,
    ),
    "weight_samples": (
        lambda **o: layers.VDDense(
            3, posterior=posteriors.SparseVD(estimator="weight"), **o
        ),
        SEQUENCES,
    ),
    "input_noise": (
        lambda **o: layers.VDDense(
            3, posterior=posteriors.VD(noise="input"), **o
        ),
        SEQUENCES,
    ),
    "embedding": (lambda **o: layers.VDEmbedding(9, 3, **o), WORDS),
    "lstm": (
        lambda **o: layers.VDLSTM(3, groups=("units", "gates"), **o),
        SEQUENCES,
    ),
    "sequences": (
        lambda **o: layers.VDGRU(3, weight_samples="sequence", **o),
        SEQUENCES,
    ),
    "log_normal": (layers.LogNormalDropout, SEQUENCES),
    "beta_bernoulli": (layers.BetaBernoulliDropout, SEQUENCES),
    "dependent": (layers.DependentBetaBernoulliDropout, SEQUENCES),
}


def make(case):
    build, inputs = CASES[case]
    layer = build(kl_weight=KL_WEIGHT)
    layer(inputs)
    return layer, inputs


@pytest.mark.parametrize("case", CASES)
def test_frozen_layers_have_no_noise_and_no_kl(case):
    layer, inputs = make(case)
    noisy = to_float64(layer(inputs, training=True))
    assert len(layer.losses) > 0
    expected = to_float64(layer(inputs))
    assert np.abs(noisy - expected).max() > 1e-4
    layer.trainable = False
    assert_close(layer(inputs, training=True), expected)
    assert layer.losses == []
    layer.trainable = True
    layer(inputs, training=True)
    assert len(layer.losses) > 0


def test_frozen_attention_has_no_noise_and_no_kl():
    layer = layers.VDMultiHeadAttention(
        2, 3, groups=("heads",), kl_weight=KL_WEIGHT
    )
    expected = to_float64(layer(SEQUENCES, SEQUENCES))
    layer.trainable = False
    assert_close(layer(SEQUENCES, SEQUENCES, training=True), expected)
    assert layer.losses == []


def test_a_frozen_layer_needs_no_kl_weight():
    layer = layers.VDDense(3, trainable=False)
    assert_equal(layer(SEQUENCES, training=True), layer(SEQUENCES))


def test_a_frozen_part_of_a_layer_is_left_alone():
    layer, inputs = make("groups")
    layer.kernel_posterior.trainable = False
    layer(inputs, training=True)
    assert len(layer.losses) == 2  # of the two kinds of groups


def test_monte_carlo_predictions_draw_frozen_layers():
    model = keras.Sequential(
        [keras.Input((6,)), layers.VDDense(3, posterior="gaussian")]
    )
    model.trainable = False
    prediction = keras_vd.predict_mc(
        model, SEQUENCES[:, 0], num_samples=4, task="regression"
    )
    assert (prediction.standard_deviation > 0.0).all()


def test_only_what_is_not_frozen_is_trained():
    frozen = layers.VDDense(3, kl_weight=KL_WEIGHT, trainable=False)
    model = keras.Sequential(
        [keras.Input((6,)), frozen, layers.VDDense(2, kl_weight=KL_WEIGHT)]
    )
    before = [to_float64(x) for x in frozen.weights]
    model.compile("adam", "mse")
    loss = model.train_on_batch(SEQUENCES[:, 0], np.zeros((3, 2)))
    for variable, value in zip(frozen.weights, before, strict=True):
        assert_equal(variable, value)
    # Of the second layer alone, and little besides.
    kl = KL_WEIGHT * keras_vd.kl_divergence(model.layers[1])
    assert kl < loss < kl + 20.0
