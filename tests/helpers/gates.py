"""Gates with random variables, and their inference by closed forms."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats

from keras_vd import layers
from tests.helpers import beta_bernoulli, log_normal
from tests.helpers.arrays import to_float64, to_numpy

KL_WEIGHT = 0.1
BOUNDS = (-20.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Gate:
    """One kind of gate.

    Attributes:
        name: Name of the case in the test report.
        layer: Its class.
        threshold: What a gate has to exceed, by the documentation.
        trainable: Number of trainable variables.
        fixed: Number of other variables, seeds not counted.
    """

    name: str
    layer: type
    threshold: float
    trainable: int
    fixed: int

    def make(self, shape: tuple[int, ...] = (6,), **options: Any) -> Any:
        """A built layer; about half of its units are below the threshold."""
        layer = self.layer(**{"kl_weight": KL_WEIGHT, **options})
        layer.build((None, *shape))
        randomize(layer)
        return layer

    def exact_mean(self, layer: Any) -> np.ndarray:
        """E of every gate by its closed form, no mask applied."""
        if self.layer is layers.LogNormalDropout:
            return exact(layer, "mu", "log_sigma", log_normal_mean)
        if self.layer is layers.HardConcreteDropout:
            concrete = scipy.special.expit(to_float64(layer.log_alpha))
            return np.clip(1.2 * concrete - 0.1, 0.0, 1.0)
        return exact(
            layer,
            "a_unconstrained",
            "b_unconstrained",
            beta_bernoulli.exact_mean,
        )

    def exact_snr(self, layer: Any) -> np.ndarray:
        """Signal-to-noise ratio of a log-normal gate, no mask applied."""
        return exact(layer, "mu", "log_sigma", log_normal_snr)

    def exact_kl(self, layer: Any) -> np.ndarray:
        """KL of every unit by its closed form, in nats.

        Of a hard-concrete gate, how often a logistic variable around log_alpha
        is above 2 / 3 times the logit of 1 / 12, where the stretched gate is 0.
        """
        if self.layer is layers.LogNormalDropout:
            return exact(layer, "mu", "log_sigma", log_normal_kl)
        if self.layer is layers.HardConcreteDropout:
            edge = 2.0 / 3.0 * scipy.special.logit(1.0 / 12.0)
            locations = to_float64(layer.log_alpha)
            return scipy.stats.logistic.sf(edge, loc=locations)
        terms = exact(
            layer,
            "a_unconstrained",
            "b_unconstrained",
            lambda x, y: beta_bernoulli.exact_kl(x, y, layer.prior_alpha),
        )
        if self.layer is layers.BetaBernoulliDropout:
            return terms
        # KL(N(m, s^2), N(0, r^2)), Gaussians' textbook formula.
        s = np.log1p(np.exp(to_float64(layer.sigma_unconstrained)))
        m, r = to_float64(layer.normalization.beta), layer.prior_stddev
        return terms + np.log(r / s) + (s**2 + m**2) / (2 * r**2) - 0.5

    def criterion(self, layer: Any) -> np.ndarray:
        """What is compared to a threshold."""
        if self.layer is layers.LogNormalDropout:
            return self.exact_snr(layer)
        return self.exact_mean(layer)

    def inference(self, layer: Any, inputs: np.ndarray) -> np.ndarray:
        """Outputs at inference, by NumPy and the closed forms."""
        axis = layer.axis % inputs.ndim
        kept = to_numpy(layer.keep_mask).astype(bool)
        kept = kept & (self.criterion(layer) > self.threshold)
        gates = np.where(kept, self.exact_mean(layer), 0.0)
        if self.layer is layers.DependentBetaBernoulliDropout:
            gates = gates * self.openness(layer, inputs)
            gates = np.where(gates > self.threshold, gates, 0.0)
        else:
            gates = gates[None]
        shape = [1] * inputs.ndim
        shape[0], shape[axis] = gates.shape
        return inputs * gates.reshape(shape)

    def openness(self, layer: Any, inputs: np.ndarray) -> np.ndarray:
        """phi(x) at inference: batch normalization, cut off at 0 and 1."""
        axis = layer.axis % inputs.ndim
        others = tuple(i for i in range(1, inputs.ndim) if i != axis)
        normalization = layer.normalization
        phi = inputs.mean(axis=others) - to_float64(normalization.moving_mean)
        phi /= np.sqrt(to_float64(normalization.moving_variance) + 1e-3)
        phi = phi * to_float64(normalization.gamma) + to_float64(
            normalization.beta
        )
        return np.clip(phi, 0.0, 1.0)


def log_normal_mean(mu: Any, log_sigma: Any) -> Any:
    return log_normal.exact_mean(mu, log_sigma, BOUNDS)


def log_normal_snr(mu: Any, log_sigma: Any) -> Any:
    return log_normal.exact_snr(mu, log_sigma, BOUNDS)


def log_normal_kl(mu: Any, log_sigma: Any) -> Any:
    return log_normal.exact_kl(mu, log_sigma, BOUNDS)


def exact(layer: Any, first: str, second: str, fn: Any) -> np.ndarray:
    """A function of two variables of a layer, unit by unit, with mpmath."""
    mp = log_normal.MP
    pairs = zip(
        to_float64(getattr(layer, first)),
        to_float64(getattr(layer, second)),
        strict=True,
    )
    return np.array([float(fn(mp.mpf(x), mp.mpf(y))) for x, y in pairs])


def randomize(layer: Any, seed: int = 0) -> None:
    """Random variables, far from the threshold; every other unit below."""
    generator = np.random.default_rng(seed)
    size = layer.units
    is_open = np.arange(size) % 2 == 0

    def between(low: float, high: float) -> np.ndarray:
        return generator.uniform(low, high, size).astype("float32")

    if isinstance(layer, layers.LogNormalDropout):
        layer.mu.assign(np.where(is_open, between(-2, 1), between(-8, -4)))
        spread = np.where(is_open, between(-4, -2), between(0.5, 2))
        layer.log_sigma.assign(spread)
        return
    if isinstance(layer, layers.HardConcreteDropout):
        location = np.where(is_open, between(0.5, 2.5), between(-4.5, -3.0))
        layer.log_alpha.assign(location)
        return
    a = np.where(is_open, between(-2, 3), between(-10, -9))
    layer.a_unconstrained.assign(a)
    layer.b_unconstrained.assign(between(0.5, 1.5))
    if isinstance(layer, layers.DependentBetaBernoulliDropout):
        layer.sigma_unconstrained.assign(between(-3, 1))
        normalization = layer.normalization
        normalization.gamma.assign(between(0.2, 1))
        normalization.beta.assign(between(0, 1))
        normalization.moving_mean.assign(between(-0.5, 0.5))
        normalization.moving_variance.assign(between(0.5, 2))


LOG_NORMAL = Gate("log-normal", layers.LogNormalDropout, 1.0, 2, 2)
BERNOULLI = Gate("Beta-Bernoulli", layers.BetaBernoulliDropout, 1e-3, 2, 2)
DEPENDENT = Gate("dependent", layers.DependentBetaBernoulliDropout, 1e-3, 5, 4)
HARD_CONCRETE = Gate("hard concrete", layers.HardConcreteDropout, 0.0, 1, 2)
GATES = (LOG_NORMAL, BERNOULLI, DEPENDENT, HARD_CONCRETE)
parametrize = pytest.mark.parametrize(
    "gate", [pytest.param(gate, id=gate.name) for gate in GATES]
)
# Core for three of them: the Beta-Bernoulli gate is part of the dependent one.
parametrize_core = pytest.mark.parametrize(
    "gate",
    [
        pytest.param(
            gate,
            id=gate.name,
            marks=[] if gate is BERNOULLI else [pytest.mark.core],
        )
        for gate in GATES
    ],
)


def set_open(layer: Any) -> None:
    """Give every unit's variables the values of a gate that is wide open."""
    if isinstance(layer, layers.LogNormalDropout):
        layer.mu.assign(np.zeros(layer.units))
        layer.log_sigma.assign(np.full(layer.units, -5.0))
    elif isinstance(layer, layers.HardConcreteDropout):
        layer.log_alpha.assign(np.full(layer.units, 4.0))
    else:
        layer.a_unconstrained.assign(np.full(layer.units, 8.0))
        layer.b_unconstrained.assign(np.zeros(layer.units))


def set_threshold_case(layer: Any, kept: np.ndarray) -> None:
    """Put the gates that are not `kept` below the layer's threshold."""
    set_open(layer)
    if isinstance(layer, layers.LogNormalDropout):
        layer.log_sigma.assign(np.where(kept, -5.0, 2.0))
        layer.mu.assign(np.where(kept, 0.0, -10.0))
    elif isinstance(layer, layers.HardConcreteDropout):
        layer.log_alpha.assign(np.where(kept, 4.0, -4.0))
    else:
        layer.a_unconstrained.assign(np.where(kept, 8.0, -10.0))


def gates_of(model: keras.Model) -> list[Any]:
    """All gates of a model, in order."""
    from keras_vd._backend.keras_internals import flatten_layers
    from keras_vd.layers.structured import StructuredGate

    return [x for x in flatten_layers(model) if isinstance(x, StructuredGate)]
