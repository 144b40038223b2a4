"""Layers in a `keras.RematScope`, which repeats calls for the gradient."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_vd import layers
from tests.helpers.arrays import random_inputs

pytestmark = pytest.mark.core

MAKERS = {
    "dense": lambda **k: layers.VDDense(3, kl_weight=1e-3, **k),
    "lstm": lambda **k: layers.VDLSTM(3, kl_weight=1e-3, **k),
    "gate": lambda **k: layers.LogNormalDropout(kl_weight=1e-3, **k),
}


@pytest.mark.parametrize("mode", ["full", "larger_than"])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_calls_are_not_repeated(make, mode):
    with keras.RematScope(mode=mode):
        with pytest.raises(ValueError, match=r"'mine'.*keras\.RematScope"):
            make(name="mine")


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_layers_that_are_not_named_may_be_there(make):
    scope = keras.RematScope(mode="list_of_layers", layer_names=["other"])
    with scope:
        make(name="mine")
        with pytest.raises(ValueError, match=r"'other'.*keras\.RematScope"):
            make(name="other")


def fitted(scope):
    keras.utils.set_random_seed(0)
    with scope:
        model = keras.Sequential(
            [
                keras.Input((4,)),
                layers.VDDense(8, activation="relu", kl_weight=1e-3),
                keras.layers.Dense(2),
            ]
        )
    model.compile("sgd", "mse")
    x = random_inputs(8, 4)
    history = model.fit(x, x[:, :2], epochs=2, shuffle=False, verbose=0)
    return history.history["loss"]


@pytest.mark.integration
def test_activations_may_be_repeated():
    """Oracle: the same training without the scope."""
    without = fitted(keras.RematScope(mode="list_of_layers", layer_names=[]))
    found = fitted(keras.RematScope(mode="activations"))
    np.testing.assert_allclose(found, without, rtol=1e-5)
