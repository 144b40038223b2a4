"""experiments.models: what it tries, what it counts, what it prints."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

import experiments.models.__main__ as models
import keras_vd
from experiments.models import dying, networks
from keras_vd._backend.keras_internals import CustomScaleLayer
from tests.helpers.arrays import to_numpy


def cnn(width):
    """Channels of `width` and twice that, in kinds that networks have."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(width, 3, use_bias=False)(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.DepthwiseConv2D(3)(x)
    x = keras.layers.SeparableConv2D(2 * width, 3)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x))


def test_channels_that_are_dead():
    """Oracle: the parameters of a network three quarters as wide."""
    model = cnn(8)
    assert dying.channels(model) == cnn(6).count_params()
    kernel = to_numpy(model.layers[1].kernel)
    assert (kernel[..., [3, 7]] == 0.0).all()
    assert (np.delete(kernel, [3, 7], axis=-1) != 0.0).all()
    assert (to_numpy(model.layers[-1].kernel) != 0.0).all()
    hidden = keras.Model(model.inputs, model.layers[-2].output)
    dead = (to_numpy(hidden(networks.images(8))) == 0.0).all(axis=0)
    assert dead.tolist() == [False, False, False, True] * 4


def inception(width):
    """Two branches side by side, and a scaled sum over both of them."""
    inputs = keras.Input((8, 8, 3))
    branches = [keras.layers.Conv2D(n * width, 3)(inputs) for n in range(1, 3)]
    x = keras.layers.Concatenate()(branches)
    x = CustomScaleLayer(0.5)([x, keras.layers.Conv2D(3 * width, 1)(x)])
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    return keras.Model(inputs, keras.layers.Dense(10)(x))


def test_channels_that_are_dead_along_a_stream():
    """Oracle: a network three quarters as wide, and equal predictions."""
    model = inception(8)
    assert dying.channels(model) == inception(6).count_params()
    images = networks.images(8)
    smaller = keras_vd.shrink(model, verbose=0)
    assert smaller.count_params() == inception(6).count_params()
    np.testing.assert_allclose(
        to_numpy(smaller(images)), to_numpy(model(images)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.integration
def test_two_networks(tmp_path, capsys):
    rows = models.main(
        ["--only", "TwoTowers", "ResidualCNN", "--out", str(tmp_path)]
    )
    assert [x["name"] for x in rows] == ["ResidualCNN", "TwoTowers"]
    for row in rows:
        assert row["converted"] == 1.0
        assert row["difference"] == row["plain_difference"] == 0.0
        assert row["kl"] > 0.0
        assert row["shrunk"] == row["without"] < row["parameters"]
        assert row["shrunk_difference"] < 1e-6
        assert not any(row["files"].values())
    assert json.loads((tmp_path / "models.json").read_text()) == {"rows": rows}
    assert "| TwoTowers | 1,204 | 100.0 |" in capsys.readouterr().out


@pytest.mark.core
def test_differences():
    one = [np.array([1.0, 2.0]), np.array([[10.0]])]
    other = [np.array([1.0, 2.5]), np.array([[20.0]])]
    assert models.difference(one, other) == 0.5


def test_a_name_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        models.main(["--only", "AlexNet"])
    assert "AlexNet" in capsys.readouterr().err
