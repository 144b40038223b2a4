"""Quantiles and intervals of predictive distributions."""

import numpy as np
import pytest
import scipy.special
import scipy.stats

from keras_vd import layers, predict_mc
from keras_vd.uncertainty import MonteCarloPrediction
from tests.helpers.arrays import random_inputs
from tests.helpers.drawing import gaussian, sequential

pytestmark = pytest.mark.core

LEVELS = [1e-9, 0.025, 0.5, 0.8, 1.0 - 1e-6]


def prediction_of(samples, noise=None, task="regression"):
    return MonteCarloPrediction(
        mean=samples.mean(0),
        standard_deviation=samples.std(0),
        predictive_entropy=None,
        mutual_information=None,
        calibration=None,
        num_samples=len(samples),
        task=task,
        samples=samples,
        noise=None if noise is None else np.asarray(noise),
    )


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def mixture_cdf(values, means, stddevs):
    return scipy.stats.norm.cdf(values, means, stddevs).mean(axis=0)


@pytest.mark.parametrize(
    "noise",
    [0.5, [0.5, 2.0, 1e-3], np.exp(2.0 * normal(7, 4, 3, seed=1))],
    ids=["one", "by column", "by draw"],
)
def test_quantiles_of_targets(noise):
    """Oracle: SciPy's distribution function gives the level back."""
    means = 3.0 * normal(7, 4, 3)
    quantiles = prediction_of(means, noise).quantile(LEVELS)
    assert quantiles.shape == (5, 4, 3)
    assert quantiles.dtype == "float64"
    for level, values in zip(LEVELS, quantiles, strict=True):
        np.testing.assert_allclose(
            mixture_cdf(values, means, noise), level, rtol=1e-5, atol=1e-12
        )


def test_one_draw_is_a_normal_distribution():
    """Oracle: SciPy's quantile, also far from 0."""
    means = 1e4 + normal(1, 4, 1)
    found = prediction_of(means, 0.1).quantile(0.975)
    np.testing.assert_allclose(
        found, scipy.stats.norm.ppf(0.975, means[0], 0.1), rtol=1e-12
    )


def test_an_interval_holds_its_share_of_targets():
    """Oracle: percentiles of many draws from the mixture."""
    means, stddevs = normal(20, 3), np.exp(normal(20, 3, seed=1))
    lower, upper = prediction_of(means, stddevs).interval(0.9)
    draws = np.random.default_rng(2).normal(means, stddevs, (40_000, 20, 3))
    draws = draws.reshape(-1, 3)
    inside = ((draws > lower) & (draws < upper)).mean(0)
    np.testing.assert_allclose(inside, 0.9, atol=0.003)
    ends = np.percentile(draws, [5, 95], axis=0)
    np.testing.assert_allclose([lower, upper], ends, rtol=0.03)


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_without_noise_they_are_those_of_the_draws(task):
    samples = scipy.special.softmax(normal(50, 4, 3), axis=-1)
    prediction = prediction_of(samples, task=task)
    np.testing.assert_allclose(
        prediction.quantile([0.1, 0.5]),
        np.percentile(samples, [10, 50], axis=0),
    )
    lower, upper = prediction.interval()
    np.testing.assert_allclose(lower, np.percentile(samples, 2.5, axis=0))
    np.testing.assert_allclose(upper, np.percentile(samples, 97.5, axis=0))
    np.testing.assert_array_equal(
        prediction.quantile(0.5), prediction.quantile(np.array([0.5]))[0]
    )


def test_noise_widens_the_interval_of_a_model():
    model = sequential((6,), layers.VDDense(2, posterior=gaussian()))

    def width(noise):
        prediction = predict_mc(
            model,
            random_inputs(5, 6),
            30,
            seed=0,
            task="regression",
            noise=noise,
            return_samples=True,
        )
        lower, upper = prediction.interval(0.8)
        return upper - lower

    assert (width(None) > 0.0).all()
    assert (width(3.0) > width(None)).all()
    # Above that of the noise alone, by what the weights leave open.
    assert (width(3.0) > 6.0 * scipy.stats.norm.ppf(0.9)).all()


def test_without_draws_there_are_none():
    model = sequential((6,), layers.VDDense(2, posterior=gaussian()))
    prediction = predict_mc(
        model, random_inputs(5, 6), 2, task="regression", noise=1.0
    )
    with pytest.raises(ValueError, match="`return_samples=True`"):
        prediction.quantile(0.5)
    with pytest.raises(ValueError, match="`return_samples=True`"):
        prediction.interval()


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (0.0, ValueError),
        (1.0, ValueError),
        (-0.1, ValueError),
        (95, ValueError),
        (np.nan, ValueError),
        ("0.5", TypeError),
        (None, TypeError),
        (True, TypeError),
    ],
)
def test_levels_that_are_none_are_refused(value, error):
    prediction = prediction_of(normal(5, 4, 1))
    with pytest.raises(error, match="`q` must be"):
        prediction.quantile(value)
    with pytest.raises(error, match="`q` must be"):
        prediction.quantile([0.5, value])
    with pytest.raises(error, match="`level` must be"):
        prediction.interval(value)


def test_no_levels_are_refused():
    with pytest.raises(ValueError, match="`q` must have at least one entry"):
        prediction_of(normal(5, 4, 1)).quantile([])
