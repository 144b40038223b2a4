"""Small models, data and slow counts that tests of whole models share."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np

from keras_vd import layers, variational_weights
from tests.helpers.arrays import random_inputs, to_float64

REPOSITORY = pathlib.Path(__file__).parents[2]


def classification_data(examples=16):
    """Inputs of 6 features and labels of 3 classes."""
    labels = np.random.default_rng(3).integers(0, 3, examples)
    return random_inputs(examples, 6), labels


def mlp(posterior="ard", **options):
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.VDDense(
                5, activation="relu", posterior=posterior, **options
            ),
            layers.VDDense(
                3, activation="softmax", posterior=posterior, **options
            ),
        ]
    )


def compile_quickly(model, **options):
    """Compile for a fit of a few steps."""
    # Tracing takes TensorFlow longer than those steps do; JAX would compile
    # every operation by itself.
    model.compile(
        **{"optimizer": "sgd", "loss": "sparse_categorical_crossentropy"}
        | options,
        run_eagerly=keras.backend.backend() == "tensorflow",
    )


def plain_mlp():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])


def nested():
    """Variational layers on three levels, one of them in TimeDistributed."""
    inner = keras.Sequential(
        [
            keras.Input((2, 4)),
            keras.layers.TimeDistributed(
                layers.VDDense(4, name="steps", posterior="ard")
            ),
            keras.layers.Flatten(),
        ],
        name="inner",
    )
    inputs = keras.Input((6,))
    hidden = layers.VDDense(8, "relu", name="first", posterior="ard")(inputs)
    hidden = inner(keras.layers.Reshape((2, 4))(hidden))
    outputs = layers.VDDense(3, "softmax", name="last", posterior="ard")(hidden)
    return keras.Model(inputs, outputs)


def randomize(model, seed=11):
    """Random values everywhere, about 2 in 5 weights above the threshold.

    Also gives biases, gains, offsets and moving statistics values other than
    those they start from, so that a copy that forgets one is noticed.
    """
    generator = np.random.default_rng(seed)
    posteriors = variational_weights(model)
    noise = {
        id(variable)
        for posterior in posteriors
        for variable in posterior.variables
    }
    for variable in model.variables:
        is_float = keras.backend.is_float_dtype(variable.dtype)
        if id(variable) not in noise and is_float:
            variable.assign(generator.uniform(0.2, 1.0, variable.shape))
    for posterior in posteriors:
        sign = generator.choice([-1.0, 1.0], posterior.weight.shape)
        posterior.weight.assign(sign * to_float64(posterior.weight))
        kept = generator.uniform(size=posterior.weight.shape) < 0.6
        set_kept(posterior, kept)


def set_kept(posterior, kept):
    """Put log_alpha at -4 where `kept` and at 6 elsewhere."""
    log_theta2 = np.log(np.square(to_float64(posterior.weight)) + 1e-8)
    posterior.log_sigma2.assign(log_theta2 + np.where(kept, -4.0, 6.0))


def log_alpha(posterior):
    """log_alpha from the variables alone, by its definition."""
    log_theta2 = np.log(np.square(to_float64(posterior.weight)) + 1e-8)
    return to_float64(posterior.log_sigma2) - log_theta2


def inference_weight(posterior, threshold=3.0):
    """The weight at inference, from the variables alone."""
    kept = (log_alpha(posterior) < threshold) & (
        to_float64(posterior.keep_mask) > 0
    )
    return np.where(kept, to_float64(posterior.weight), 0.0)


def ard_kl(posterior):
    """KL of an "ard" posterior: the sum of log(1 + 1 / alpha) / 2."""
    return 0.5 * np.log1p(np.exp(-log_alpha(posterior))).sum()


def run_python(code, *arguments, **environment):
    """Run `code` in a new interpreter in the repository; its output."""
    settings = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **settings, **environment},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


class Wrapping(keras.Model):
    """A subclassed model that `get_config` and `from_config` rebuild."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def build(self, input_shape):
        self.inner.build(input_shape)

    def call(self, inputs, training=None):
        return 2 * self.inner(inputs, training=training)

    def get_config(self):
        inner = keras.saving.serialize_keras_object(self.inner)
        return {**super().get_config(), "inner": inner}

    @classmethod
    def from_config(cls, config):
        inner = keras.saving.deserialize_keras_object(config.pop("inner"))
        return cls(inner, **config)


class Kill(keras.callbacks.Callback):
    """Ends training after the first step of an epoch.

    Args:
        doomed: The epoch.
        with_process: Whether the process dies, or an error ends `fit`.
    """

    def __init__(self, doomed, with_process=True):
        super().__init__()
        self.doomed = doomed
        self.with_process = with_process
        self.epoch = None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (self.doomed, 0):
            if self.with_process:
                os._exit(9)
            raise KeyboardInterrupt
