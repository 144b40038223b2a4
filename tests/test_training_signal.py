"""Training steps in which no layer learns that it is training."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_vd import layers
from keras_vd.callbacks import KLAnnealing
from tests.helpers.arrays import random_inputs

pytestmark = pytest.mark.core

X = random_inputs(8, 5)
Y = np.zeros((8, 2), "float32")


class Deaf(keras.Model):
    """A model whose `call` knows nothing of training."""

    def __init__(self, inner=None, **options):
        super().__init__()
        self.dropout = keras.layers.Dropout(0.0)
        self.inner = inner or layers.VDDense(2, kl_weight=1e-3, **options)

    def call(self, x):
        return self.inner(x)


class DeafBehindDropout(Deaf):
    """Keras hands the default of an earlier layer on."""

    def call(self, x):
        return self.inner(self.dropout(x))


class Forgetful(keras.Model):
    """A training step of one's own that forgets to say so."""

    def __init__(self):
        super().__init__()
        self.inner = layers.VDDense(2, kl_weight=1e-3)

    def call(self, x, training=None):
        return self.inner(x, training=training)

    def train_step(self, *arguments):
        self(arguments[-1][0])
        return super().train_step(*arguments)


class Steps(keras.Model):
    """Another training step of one's own."""

    def __init__(self, *parts):
        super().__init__()
        self.net = keras.Sequential(
            [keras.Input((5,)), *parts, layers.VDDense(2, kl_weight=1e-3)]
        )

    def call(self, x, training=None):
        return self.net(x, training=training)

    def outputs_of(self, x):
        return self(x)

    def train_step(self, *arguments):
        self.outputs_of(arguments[-1][0])
        return super().train_step(*arguments)


class ForgetfulBehindDropout(Steps):
    def __init__(self):
        super().__init__(keras.layers.Dropout(0.1))


class ForgetfulByDefault(Steps):
    def call(self, x, training=False):
        return self.net(x, training=training)


class ForgetfulOfAPart(Steps):
    """As for a generator, or a teacher."""

    def outputs_of(self, x):
        return self.net(x)


class InferenceOnPurpose(Steps):
    def outputs_of(self, x):
        return self(x, training=False), self.net(x, training=False)


def plain_output():
    """A frozen layer, and one to train."""
    part = keras.Sequential(
        [
            keras.Input((5,)),
            layers.VDDense(3, trainable=False),
            keras.layers.Dense(2),
        ]
    )
    return Deaf(part)


class Hearing(keras.Model):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, x, training=None):
        return self.inner(x)


def nested():
    part = keras.Sequential(
        [keras.Input((5,)), layers.VDDense(2, kl_weight=1e-3)]
    )
    return Deaf(part)


def gated():
    part = keras.Sequential(
        [
            keras.Input((5,)),
            layers.LogNormalDropout(kl_weight=1e-3),
            keras.layers.Dense(2),
        ]
    )
    return Deaf(part)


def recurrent():
    part = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Reshape((5, 1)),
            layers.VDLSTM(2, kl_weight=1e-3),
        ]
    )
    return Deaf(part)


@pytest.mark.parametrize(
    "make",
    [
        *(Deaf, DeafBehindDropout, Forgetful, ForgetfulBehindDropout),
        *(ForgetfulByDefault, ForgetfulOfAPart, nested, gated, recurrent),
    ],
    ids=lambda make: make.__name__,
)
@pytest.mark.parametrize("run_eagerly", [False, True])
def test_the_first_step_is_refused(make, run_eagerly):
    model = make()
    model(X)
    model.compile("sgd", "mse", run_eagerly=run_eagerly)
    with pytest.raises(ValueError, match="training=None"):
        model.train_on_batch(X, Y)


def test_no_kl_weight_makes_no_difference():
    model = Deaf(layers.VDDense(2))
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="training=None"):
        model.fit(X, Y, verbose=0)


def test_inference_is_not_refused():
    model = Deaf()
    model.compile("sgd", "mse")
    model.evaluate(X, Y, verbose=0)
    model.predict(X, verbose=0)
    model.test_on_batch(X, Y)
    model(X)
    assert not model.inner.kernel_posterior.has_drawn


def test_a_part_that_is_not_trained_on_purpose():
    model = InferenceOnPurpose()
    model(X)
    model.compile("sgd", "mse")
    model.train_on_batch(X, Y)
    assert model.net.layers[-1].kernel_posterior.has_drawn


def test_frozen_layers_need_not_know():
    model = plain_output()
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0)


@pytest.mark.integration
def test_layers_in_between_need_not_know():
    model = Hearing(nested())
    model.compile("sgd", "mse")
    if keras.backend.backend() == "jax":
        # There Keras hands nothing on from the outermost `call`.
        with pytest.raises(ValueError, match="hand it on"):
            model.fit(X, Y, verbose=0)
        return
    model.fit(X, Y, verbose=0)
    assert model.inner.inner.layers[0].kernel_posterior.has_drawn


class Silent(keras.Model):
    """Says that it is not training, whatever it is told."""

    def __init__(self):
        super().__init__()
        self.inner = layers.VDDense(2)

    def call(self, x, training=None):
        return self.inner(x, training=False)


def test_the_callback_notices_that_nothing_was_drawn():
    model = Silent()
    model(X)
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="drew no noise"):
        model.fit(X, Y, verbose=0, callbacks=[KLAnnealing(8, verbose=0)])


def test_the_callback_accepts_a_frozen_model():
    model = plain_output().inner
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0, callbacks=[KLAnnealing(8, verbose=0)])


def test_a_second_fit_is_not_refused():
    model = keras.Sequential([keras.Input((5,)), layers.VDDense(2)])
    model.compile("sgd", "mse")
    for _ in range(2):
        model.fit(X, Y, verbose=0, callbacks=[KLAnnealing(8, verbose=0)])
    assert model.layers[0].kernel_posterior.has_drawn
