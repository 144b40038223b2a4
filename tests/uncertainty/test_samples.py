"""All draws of a prediction, which `return_samples` keeps."""

import keras
import numpy as np
import pytest
import scipy.special

from keras_vd import layers, predict_mc
from keras_vd.uncertainty import sampler
from tests.helpers.arrays import random_inputs
from tests.helpers.drawing import gaussian, sequential
from tests.helpers.models import mlp

pytestmark = pytest.mark.core


def test_samples_are_what_the_statistics_are_of():
    """Oracle: NumPy's moments of the samples, over batches of 4, 4 and 1."""
    model = mlp("gaussian")
    prediction = predict_mc(
        model, random_inputs(9, 6), 12, 4, seed=0, return_samples=True
    )
    samples = prediction.samples
    assert samples.shape == (12, 9, 3)
    assert samples.dtype == "float32"
    np.testing.assert_allclose(samples.sum(-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(samples.mean(0), prediction.mean, rtol=1e-5)
    np.testing.assert_allclose(
        samples.std(0), prediction.standard_deviation, rtol=1e-3, atol=1e-7
    )
    assert (samples[0] != samples[1]).any()


def test_samples_do_not_depend_on_the_batch_size():
    model = sequential((6,), layers.VDDense(2, posterior=gaussian()))
    inputs = random_inputs(7, 6)

    def samples(batch_size):
        return predict_mc(
            model,
            inputs,
            5,
            batch_size,
            seed=3,
            task="regression",
            return_samples=True,
        ).samples

    np.testing.assert_allclose(samples(2), samples(7), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(samples(2), samples(2))


def test_samples_of_logits_are_probabilities(monkeypatch):
    logits = np.random.default_rng(0).normal(size=(3, 4, 2))
    draws = iter(logits)
    monkeypatch.setattr(
        sampler.Sampler, "predict_on_batch", lambda *_: next(draws)
    )
    model = sequential((6,), layers.VDDense(2))
    prediction = predict_mc(
        model,
        random_inputs(4, 6),
        3,
        task="multi-label",
        return_samples=True,
    )
    np.testing.assert_allclose(
        prediction.samples, scipy.special.expit(logits), rtol=1e-6
    )


def test_samples_of_several_outputs():
    inputs = keras.Input((3,))
    model = keras.Model(
        inputs,
        [
            layers.VDDense(3, activation="softmax")(inputs),
            layers.VDDense(1)(inputs),
        ],
    )
    both = predict_mc(
        model,
        random_inputs(5, 3),
        4,
        task=["classification", "regression"],
        return_samples=True,
    )
    assert [x.samples.shape for x in both] == [(4, 5, 3), (4, 5, 1)]


def test_samples_are_only_kept_on_request():
    assert predict_mc(mlp(), random_inputs(2, 6), 2).samples is None
    with pytest.raises(TypeError, match="`return_samples` must be True or"):
        predict_mc(mlp(), random_inputs(2, 6), 2, return_samples=1)
