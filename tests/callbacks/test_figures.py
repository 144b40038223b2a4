"""Tests of the KL of each layer in the logs."""

import keras
import numpy as np
import pytest

import keras_vd


@pytest.mark.parametrize("wanted", [True, False])
def test_layer_kl_is_that_of_the_posteriors_only_on_request(wanted):
    # Oracle: each posterior's own KL, by the layer's name, after one epoch.
    layers = [
        keras_vd.layers.VDDense(3, name="hidden"),
        keras_vd.layers.VDDense(1, name="top"),
    ]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile("sgd", "mse")
    annealing = keras_vd.callbacks.KLAnnealing(
        8, verbose=0, log_layer_kl=wanted
    )
    x = np.ones((8, 4), "float32")
    logs = model.fit(x, x[:, :1], verbose=0, callbacks=[annealing]).history
    if not wanted:
        assert not [name for name in logs if name.startswith("kl/")]
        return
    for layer in layers:
        expected = float(keras_vd.kl_divergence(layer))
        assert logs[f"kl/{layer.name}"] == pytest.approx([expected])
    parts = logs["kl/hidden"][0] + logs["kl/top"][0]
    assert logs["kl"] == pytest.approx([parts])
