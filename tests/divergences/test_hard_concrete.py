"""Hard-concrete gates. Each test names its oracle."""

import keras
import numpy as np
import pytest
import scipy.stats
from keras import ops

from keras_vd.divergences import hard_concrete
from tests.helpers.arrays import to_numpy
from tests.helpers.gradients import gradient

pytestmark = pytest.mark.core

LOG_ALPHA = np.array([-4.6, -2.0, -0.5, 0.0, 1.0, 2.5, 4.6], "float32")
DRAWS = 200_000


def stretched_logit(gate):
    """Return the logit of the concrete variable behind a gate in (0, 1)."""
    concrete = (gate + 0.1) / 1.2
    return np.log(concrete / (1.0 - concrete))


@pytest.fixture(scope="module")
def draws():
    uniforms = np.random.default_rng(0).uniform(size=(DRAWS, 1))
    uniforms = ops.convert_to_tensor(uniforms, "float32")
    return to_numpy(
        hard_concrete.sample(ops.convert_to_tensor(LOG_ALPHA), uniforms)
    )


def test_probability_of_an_open_gate(draws):
    # Oracle: the logistic distribution, and the share of draws.
    found = to_numpy(hard_concrete.open_probability(LOG_ALPHA))
    edge = 2.0 / 3.0 * stretched_logit(0.0)
    expected = scipy.stats.logistic.sf(edge, loc=LOG_ALPHA)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    error = np.sqrt(expected * (1.0 - expected) / DRAWS)
    assert (abs((draws != 0.0).mean(0) - expected) < 5.0 * error).all()


@pytest.mark.parametrize("gate", [0.1, 0.5, 0.9, 1.0])
def test_distribution_of_draws(gate, draws):
    # Oracle: P(z < gate) by the logistic distribution, also just below 1,
    # where the rest of the probability is.
    below = 2.0 / 3.0 * stretched_logit(gate)
    expected = scipy.stats.logistic.cdf(below, loc=LOG_ALPHA)
    error = np.sqrt(expected * (1.0 - expected) / DRAWS) + 1e-5
    assert (abs((draws < gate).mean(0) - expected) < 5.0 * error).all()
    assert draws.min() == 0.0
    assert draws.max() == 1.0


def test_mean():
    # Oracle: the paper's formula in float64; its zero at -log(11).
    found = to_numpy(hard_concrete.mean(LOG_ALPHA))
    concrete = 1.0 / (1.0 + np.exp(-LOG_ALPHA.astype("float64")))
    expected = np.clip(1.2 * concrete - 0.1, 0.0, 1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    edge = -np.log(11.0) + np.array([-1e-3, 1e-3])
    closed, open_ = to_numpy(hard_concrete.mean(edge.astype("float32")))
    assert closed == 0.0 < open_


def test_gradients():
    # Oracle: derivative of a logistic distribution function is its density;
    # that of a draw, by differences in float64.
    (found,) = gradient(hard_concrete.open_probability, LOG_ALPHA)
    edge = 2.0 / 3.0 * stretched_logit(0.0)
    density = scipy.stats.logistic.pdf(edge, loc=LOG_ALPHA)
    np.testing.assert_allclose(found, density, rtol=1e-4)

    uniform = 0.4

    def gate(location):
        logit = (np.log(uniform / (1.0 - uniform)) + location) * 1.5
        return np.clip(1.2 / (1.0 + np.exp(-logit)) - 0.1, 0.0, 1.0)

    (found,) = gradient(
        lambda x: hard_concrete.sample(x, keras.ops.full((7,), uniform)),
        LOG_ALPHA,
    )
    locations = LOG_ALPHA.astype("float64")
    expected = (gate(locations + 1e-6) - gate(locations - 1e-6)) / 2e-6
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
