"""Sixty epochs of MNIST without a value that is not finite."""

import os

import keras
import numpy as np
import pytest

import keras_vd
from experiments.mnist import data as mnist_data
from keras_vd import layers

GATES = (
    layers.LogNormalDropout,
    layers.BetaBernoulliDropout,
    layers.DependentBetaBernoulliDropout,
    layers.HardConcreteDropout,
)


class AllFinite(keras.callbacks.Callback):
    """Fails at the end of the first epoch that leaves a NaN or an infinity."""

    def on_epoch_end(self, epoch, logs=None):
        assert np.isfinite(list(logs.values())).all(), (epoch, logs)
        for variable in self.model.variables:
            values = np.asarray(keras.ops.convert_to_numpy(variable), "float64")
            assert np.isfinite(values).all(), (epoch, variable.path)
        for layer in self.model.layers:
            if isinstance(layer, GATES):
                means = keras.ops.convert_to_numpy(layer.mean())
                assert np.isfinite(means).all(), (epoch, layer.name)


@pytest.mark.slow
@pytest.mark.skipif(
    "TFDS_DATA_DIR" not in os.environ, reason="TFDS_DATA_DIR is not set"
)
@pytest.mark.parametrize("rate", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("gate", GATES)
def test_sixty_epochs_of_mnist(gate, rate):
    keras.utils.set_random_seed(0)
    images = mnist_data.load("mnist", None)
    network = [keras.Input((28, 28, 1)), keras.layers.Flatten()]
    for units in (500, 300):
        network += [gate(), keras.layers.Dense(units, activation="relu")]
    model = keras.Sequential([*network, gate(), keras.layers.Dense(10)])
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    annealing = keras_vd.callbacks.KLAnnealing(60000, 0, 0, verbose=0)
    model.fit(
        images.x_train,
        images.y_train,
        batch_size=200,
        epochs=60,
        verbose=0,
        callbacks=[annealing, AllFinite()],
    )
    # Finite because it learns, not because it stands still. At inference: at
    # the smallest rate most Beta-Bernoulli gates are still closed in training.
    _, accuracy = model.evaluate(images.x_test, images.y_test, verbose=0)
    assert accuracy > 0.9
