"""What a draw is: one sample of all weights, for all examples and uses."""

import keras
import numpy as np
import pytest

from keras_vd import layers, posteriors, predict_mc
from tests.helpers.arrays import random_inputs, to_float64
from tests.helpers.drawing import (
    NO_NOISE,
    STACKS,
    assert_unchanged,
    gaussian,
    sequential,
    snapshot,
)

pytestmark = pytest.mark.core


@pytest.mark.integration
def test_draws_of_other_layers_are_independent():
    """Oracle: y ~ N(0, 3), and two layers' y are not correlated."""
    posterior = gaussian(0.0)
    inputs = keras.Input((3,))
    outputs = [
        layers.VDDense(2, posterior=posterior, use_bias=False)(inputs)
        for _ in range(2)
    ]
    outputs.append(keras.layers.Add()(outputs))
    model = keras.Model(inputs, outputs)
    for dense in model.layers[1:3]:
        dense.kernel.assign(np.zeros((3, 2)))
    predictions = predict_mc(
        model, np.ones((6, 3)), 400, batch_size=3, seed=0, task="regression"
    )
    for prediction, variance in zip(predictions, (3.0, 3.0, 6.0), strict=True):
        np.testing.assert_allclose(
            prediction.standard_deviation, np.sqrt(variance), rtol=0.2
        )


@pytest.mark.integration
@pytest.mark.parametrize("name", STACKS)
def test_the_size_of_batches_changes_nothing(name):
    """Nor does it whether an example stands alone: a draw is a function."""
    shape, stack = STACKS[name]()
    model = sequential(shape, *stack)
    inputs = (
        np.arange(20).reshape(5, 4) % 9
        if name == "embedding"
        else random_inputs(5, *shape)
    )

    def predict(inputs, batch_size):
        return predict_mc(
            *(model, inputs, 4, batch_size), seed=3, task="regression"
        )

    first = predict(inputs, 5)
    assert first.standard_deviation.max() > 1e-4
    for batch_size in (1, 2, 32):
        other = predict(inputs, batch_size)
        for field in ("mean", "standard_deviation"):
            np.testing.assert_allclose(
                getattr(other, field),
                getattr(first, field),
                rtol=2e-4,
                atol=1e-5,
            )
    alone = predict(inputs[3:4], None)
    np.testing.assert_allclose(
        alone.mean[0], first.mean[3], rtol=2e-4, atol=1e-5
    )


@pytest.mark.integration
def test_a_layer_that_is_used_twice_has_the_same_weights():
    """Oracle: f(x) - f(x) = 0 in every draw, for layers and for gates."""
    inputs = keras.Input((6,))
    differences = []
    for layer in (
        layers.VDDense(4, posterior=gaussian(), groups=("output",)),
        layers.DependentBetaBernoulliDropout(),
        layers.LogNormalDropout(),
    ):
        uses = [layer(keras.layers.ReLU()(inputs)) for _ in range(2)]
        differences.append(keras.layers.Subtract()(uses))
    model = keras.Model(inputs, differences)
    for prediction in predict_mc(
        model, random_inputs(3, 6), 5, task="regression"
    ):
        np.testing.assert_array_equal(prediction.standard_deviation, 0.0)


@pytest.mark.integration
def test_a_convolution_has_one_kernel_at_all_positions():
    """Oracle: of a constant image, what all pixels are in every draw."""
    stack = [
        layers.VDConv2D(3, 2, posterior=gaussian()),
        layers.VDConv2D(6, 2, groups=3, posterior=posteriors.VD(noise="input")),
        layers.VDSeparableConv2D(4, 2, posterior=gaussian()),
        keras.layers.Lambda(lambda x: x - x[:, :1, :1]),
    ]
    model = sequential((6, 6, 2), *stack)
    prediction = predict_mc(model, np.ones((2, 6, 6, 2)), 5, task="regression")
    np.testing.assert_allclose(prediction.standard_deviation, 0.0, atol=1e-5)


@pytest.mark.integration
@pytest.mark.parametrize("share", ["layer", "unit"])
def test_input_noise_is_one_factor_per_unit(share):
    """Oracle: y ~ N(x @ theta, alpha * x^2 @ theta^2), correlated.

    All outputs that read one unit alone are that unit times a constant.
    """
    dense = layers.VDDense(
        4, posterior=posteriors.VD(noise="input", share=share), use_bias=False
    )
    model = sequential((6,), dense)
    inputs, theta = random_inputs(3, 6), to_float64(dense.kernel)
    prediction = predict_mc(model, inputs, 1000, seed=0, task="regression")
    stddev = np.sqrt(0.25 * np.square(inputs) @ np.square(theta))
    np.testing.assert_allclose(prediction.standard_deviation, stddev, rtol=0.12)
    np.testing.assert_allclose(
        prediction.mean, inputs @ theta, atol=5 * stddev.max() / 1000**0.5
    )
    one = predict_mc(model, np.eye(6), 2, seed=1, task="regression")
    ratios = one.mean / theta
    np.testing.assert_allclose(ratios, ratios[:, :1] * np.ones(4), rtol=1e-4)


def test_channels_of_a_grouped_convolution_have_noise_of_their_own():
    """Oracle: a depthwise kernel of ones returns each channel's factor."""
    convolution = layers.VDConv1D(
        4, 1, groups=4, posterior=posteriors.VD(noise="input"), use_bias=False
    )
    model = sequential((3, 4), convolution)
    convolution.kernel.assign(np.ones((1, 1, 4)))
    mean = predict_mc(model, np.ones((2, 3, 4)), 1, task="regression").mean
    np.testing.assert_allclose(mean, mean[:1, :1] * np.ones((2, 3, 1)))
    assert len(np.unique(mean)) == 4


class AlwaysNoisy(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(7)

    def call(self, inputs):
        return inputs + keras.random.normal(
            keras.ops.shape(inputs), seed=self.seed_generator
        )


@pytest.mark.integration
def test_what_others_draw_is_seeded_too():
    dense = layers.VDDense(5, posterior=gaussian(NO_NOISE))
    model = sequential((6,), dense, AlwaysNoisy())
    before = snapshot(model)

    def predict(seed):
        return predict_mc(
            model, random_inputs(4, 6), 2, seed=seed, task="regression"
        )

    first = predict(1)
    np.testing.assert_array_equal(first.mean, predict(1).mean)
    assert (first.mean != predict(2).mean).any()
    assert (first.standard_deviation > 0.0).all()
    assert_unchanged(model, before)
