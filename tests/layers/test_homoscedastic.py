"""`HomoscedasticNoise`: what it learns is what the residuals say."""

import keras
import numpy as np
import pytest

import keras_vd
from tests.helpers.arrays import random_inputs, to_numpy

STDDEVS = np.array([0.5, 2.0])


def network(stddev_init=1.0, trainable=True):
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(2, trainable=trainable),
            keras_vd.layers.HomoscedasticNoise(stddev_init, name="noise"),
        ]
    )


@pytest.mark.core
def test_means_pass_and_every_input_has_the_same_noise():
    model, x = network(stddev_init=0.3), random_inputs(5, 3)
    outputs = to_numpy(model(x))
    kernel, bias = model.layers[0].get_weights()
    np.testing.assert_allclose(outputs[:, :2], x @ kernel + bias, atol=1e-5)
    np.testing.assert_allclose(outputs[:, 2:], 2 * np.log(0.3), atol=1e-6)
    assert model.output_shape == (None, 4)
    steps = keras_vd.layers.HomoscedasticNoise()(np.zeros((2, 3, 1)))
    assert tuple(steps.shape) == (2, 3, 2)


@pytest.mark.core
def test_it_learns_the_mean_square_of_the_residuals():
    """Oracle: the maximum likelihood of a normal distribution's variance."""
    model, x = network(trainable=False), random_inputs(64, 3)
    noise = STDDEVS * random_inputs(64, 2, seed=1)
    y = to_numpy(model(x))[:, :2] + noise
    model.compile(keras.optimizers.Adam(0.1), keras_vd.losses.GaussianNLL())
    # 200 times the same batch.
    x, y = np.tile(x, (200, 1)), np.tile(y, (200, 1))
    model.fit(x, y, batch_size=64, shuffle=False, verbose=0)
    found = to_numpy(model.get_layer("noise").log_variance)
    expected = np.log(np.square(noise).mean(axis=0))
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.core
def test_a_plain_model_returns_the_same(tmp_path):
    x = random_inputs(5, 3)
    model = keras_vd.to_variational(network(), verbose=0)
    noise = model.get_layer("noise")
    noise.log_variance.assign([0.7, -1.5])
    expected = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    plain = keras_vd.to_deterministic(model)
    small = keras_vd.shrink(plain, verbose=0)
    assert type(plain.get_layer("noise")) is keras.layers.Dense
    for other in (loaded, plain, small):
        found = other.predict(x, verbose=0)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.core
def test_predictions_have_its_noise():
    model, x = network(), random_inputs(5, 3)
    model = keras_vd.to_variational(model, posterior="gaussian", verbose=0)
    model.get_layer("noise").log_variance.assign(2 * np.log(STDDEVS))
    model.compile(loss=keras_vd.losses.GaussianNLL())
    prediction = keras_vd.predict_mc(model, x, 3, seed=0, verbose=0)
    expected = np.broadcast_to(STDDEVS**2, (5, 2))
    np.testing.assert_allclose(
        prediction.aleatoric_variance, expected, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("value", "error"), [(0.0, ValueError), (-1, ValueError), ("1", TypeError)]
)
def test_a_start_that_is_no_standard_deviation(value, error):
    with pytest.raises(error, match="`stddev_init`"):
        keras_vd.layers.HomoscedasticNoise(value)
