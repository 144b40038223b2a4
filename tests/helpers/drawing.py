"""Models of every kind of noise, for tests of what is drawn."""

import keras
import numpy as np

from keras_vd import layers, posteriors
from tests.helpers.arrays import random_inputs, to_float64

# Log variance whose noise float32 does not see beside means of about 1.
NO_NOISE = -60.0


def gaussian(log_sigma2=-2.0, **options):
    return posteriors.Gaussian(log_sigma2_init=log_sigma2, **options)


def sequential(shape, *stack, **options):
    model = keras.Sequential([keras.Input(shape, **options), *stack])
    for variable in model.weights:  # biases that are not 0
        if variable.name in ("bias", "moving_mean", "beta"):
            values = random_inputs(*variable.shape, seed=5)
            variable.assign(0.3 * values)
    return model


class Probe(keras.layers.Layer):
    """Counts how often Python sees it: once for each compilation."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def call(self, inputs):
        self.calls += 1
        return inputs


def snapshot(model):
    return [to_float64(variable) for variable in model.variables]


def assert_unchanged(model, before):
    for variable, values in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(to_float64(variable), values)


def recurrent_layer():
    options = {"posterior": gaussian(), "groups": ("gates",)}
    return keras.layers.Bidirectional(
        layers.VDLSTM(4, dropout=0.5, recurrent_dropout=0.5, seed=0, **options)
    )


STACKS = {
    "dense": lambda: ((6,), [layers.VDDense(4, posterior=gaussian())]),
    "input noise": lambda: (
        (6,),
        [layers.VDDense(4, posterior=posteriors.VD(noise="input"))],
    ),
    "convolution": lambda: (
        (6, 6, 2),
        [
            layers.VDConv2D(3, 3, posterior=gaussian(), groups=("output",)),
            layers.VDSeparableConv2D(2, 2, posterior=gaussian()),
        ],
    ),
    "embedding": lambda: (
        (4,),
        [layers.VDEmbedding(9, 5, posterior=gaussian())],
    ),
    "recurrent": lambda: ((4, 3), [recurrent_layer()]),
    "sequences": lambda: (
        (4, 3),
        [layers.VDGRU(4, weight_samples="sequence", posterior=gaussian())],
    ),
    "log-normal": lambda: ((6,), [layers.LogNormalDropout(mu_init=-1.0)]),
    "beta-bernoulli": lambda: ((6,), [layers.BetaBernoulliDropout()]),
    "dependent": lambda: ((6,), [layers.DependentBetaBernoulliDropout()]),
    "hard concrete": lambda: ((6,), [layers.HardConcreteDropout()]),
}
