"""The likelihood of targets under Gaussian noise."""

import keras
import numpy as np
import pytest
import scipy.stats
from keras import ops

from keras_vd import losses
from tests.helpers.arrays import random_inputs, to_float64

pytestmark = pytest.mark.core


def test_learned_noise():
    """Oracle: SciPy's density of the normal distribution, in float64."""
    targets, outputs = random_inputs(5, 3), random_inputs(5, 6, seed=2)
    mean, log_variance = outputs[:, :3], outputs[:, 3:]
    logs = scipy.stats.norm.logpdf(targets, mean, np.exp(0.5 * log_variance))
    loss = losses.GaussianNLL(reduction=None)(targets, outputs)
    np.testing.assert_allclose(to_float64(loss), -logs.sum(-1), rtol=1e-5)
    average = losses.GaussianNLL()(targets, outputs)
    np.testing.assert_allclose(
        to_float64(average), -logs.sum(-1).mean(), rtol=1e-5
    )


@pytest.mark.parametrize("stddev", [0.3, [0.1, 2.0, 5.0]])
def test_fixed_noise(stddev):
    targets, outputs = random_inputs(5, 4, 3), random_inputs(5, 4, 3, seed=2)
    logs = scipy.stats.norm.logpdf(targets, outputs, stddev).sum(-1)
    loss = losses.GaussianNLL(stddev, reduction=None)(targets, outputs)
    np.testing.assert_allclose(to_float64(loss), -logs, rtol=1e-5)


def test_fixed_noise_of_outputs_without_columns():
    targets, outputs = random_inputs(5), random_inputs(5, seed=2)
    logs = scipy.stats.norm.logpdf(targets, outputs, 0.5)
    loss = losses.GaussianNLL(0.5)(targets, outputs)
    np.testing.assert_allclose(to_float64(loss), -logs.mean(), rtol=1e-5)


@pytest.mark.parametrize("log_variance", [-100.0, 100.0])
def test_extreme_variances(log_variance):
    """The inverse variance, exp(100), is no float32."""
    outputs = ops.convert_to_tensor([[1.0, log_variance]])
    loss = losses.GaussianNLL()(ops.convert_to_tensor([[1.0]]), outputs)
    expected = 0.5 * (np.log(2 * np.pi) + log_variance)
    np.testing.assert_allclose(to_float64(loss), expected, rtol=1e-5)


@pytest.mark.parametrize("stddev", [None, 0.3, (0.1, 2.0)])
def test_round_trip_of_the_config(stddev):
    loss = losses.GaussianNLL(stddev, name="noise")
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert isinstance(again, losses.GaussianNLL)
    assert again.get_config() == loss.get_config()
    assert again.name == "noise"


@pytest.mark.parametrize(
    ("stddev", "targets", "outputs", "message"),
    [
        (0.3, (5,), (5, 1), r"shape of the means .*\(5, 1\).*shape \(5,\)"),
        (0.3, (5, 1), (5,), "shape of the means"),
        (0.3, (5, 1), (5, 3), "shape of the means"),
        (None, (5,), (5, 2), "shape of the means"),
        (None, (5, 2), (5, 2), "shape of the means"),
        (None, (5, 1), (5, 3), r"\(examples, ..., 2 k\).*\(5, 3\)"),
        (None, (5,), (5,), "2 k"),
        ([0.1, 0.2], (5, 3), (5, 3), "`stddev` must have one entry for each"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(stddev, targets, outputs, message):
    loss = losses.GaussianNLL(stddev)
    with pytest.raises(ValueError, match=message):
        loss(np.zeros(targets, "float32"), np.zeros(outputs, "float32"))


@pytest.mark.parametrize(
    ("stddev", "error"),
    [
        (0.0, ValueError),
        (-1.0, ValueError),
        (np.inf, ValueError),
        ([], ValueError),
        ([1.0, 0.0], ValueError),
        ("0.1", TypeError),
        (True, TypeError),
        ([[0.1]], TypeError),
    ],
)
def test_a_noise_that_is_none_is_refused(stddev, error):
    with pytest.raises(error, match="`stddev` must"):
        losses.GaussianNLL(stddev)


def test_fit_refuses_targets_that_lack_the_column():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
    model.compile("sgd", losses.GaussianNLL())
    with pytest.raises(ValueError, match="Targets must have the shape of"):
        model.fit(random_inputs(8, 6), random_inputs(8), verbose=0)


@pytest.mark.integration
def test_a_fit_learns_the_noise():
    """Oracle: targets of one standard deviation, 0.5, and of mean x."""
    inputs = random_inputs(2000, 1)
    targets = inputs + 0.5 * random_inputs(2000, 1, seed=1)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.Adam(0.03), losses.GaussianNLL())
    model.fit(inputs, targets, epochs=8, verbose=0)
    mean, log_variance = model.predict(inputs, verbose=0).T
    np.testing.assert_allclose(mean, inputs[:, 0], atol=0.15)
    assert np.exp(0.5 * log_variance).mean() == pytest.approx(0.5, rel=0.1)
