"""Layers that treat channels one by one: what is constant, and stays so."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.helpers.arrays import to_float64
from tests.helpers.comparing import change, checked, sequential, weights_of


def between(layer, bias=0.0, shape=(6, 6, 2), reader=None):
    """Channel 1 of 3 is a constant, and goes through a layer to a reader."""
    conv = getattr(layers, f"Conv{len(shape) - 1}D")
    model = sequential(shape, conv(3, 1), layer, reader or conv(2, 1))
    change(model.layers[0].kernel, np.s_[..., 1])
    change(model.layers[0].bias, 1, value=bias)
    return model


# Layer, and whether a constant other than zero is still the same everywhere.
LAYERS = {
    "batch normalization": (layers.BatchNormalization, True),
    "without gamma": (
        lambda: layers.BatchNormalization(scale=False, center=False),
        True,
    ),
    "axis": (lambda: layers.BatchNormalization(axis=3), True),
    "relu": (layers.ReLU, True),
    "leaky": (layers.LeakyReLU, True),
    "elu": (layers.ELU, True),
    "activation": (lambda: layers.Activation("gelu"), True),
    "prelu": (layers.PReLU, False),
    "shared prelu": (lambda: layers.PReLU(shared_axes=[1, 2]), True),
    "dropout": (lambda: layers.Dropout(0.5), True),
    "spatial": (lambda: layers.SpatialDropout2D(0.5), True),
    "noise": (lambda: layers.GaussianNoise(0.5), True),
    "rescaling": (lambda: layers.Rescaling(0.5, 0.25), True),
    "max": (lambda: layers.MaxPooling2D(2, padding="same"), True),
    "average": (lambda: layers.AveragePooling2D(2), True),
    "average same": (
        lambda: layers.AveragePooling2D(4, padding="same"),
        False,
    ),
    "upsampling": (layers.UpSampling2D, True),
    "bilinear": (lambda: layers.UpSampling2D(interpolation="bilinear"), True),
    "bicubic": (lambda: layers.UpSampling2D(interpolation="bicubic"), False),
    "padding": (layers.ZeroPadding2D, False),
    "cropping": (layers.Cropping2D, True),
    "permute": (lambda: layers.Permute((2, 1, 3)), True),
    "identity": (layers.Identity, True),
}


# Backends differ in how they pool, interpolate and pad.
CORE = ("max", "average same", "bilinear", "bicubic", "prelu")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.core if name in CORE else ())
        for name in LAYERS
    ],
)
@pytest.mark.parametrize("bias", [0.0, -0.75])
def test_constants_in_between(name, bias):
    """A constant goes into the last bias; one that has borders stays."""
    layer, is_even = LAYERS[name]
    model = between(layer(), bias)
    _, report = checked(model)
    assert report.rows[0].kept_outputs == (2 if is_even or bias == 0 else 3)
    assert report.rows[-1].kept_inputs == report.rows[0].kept_outputs


@pytest.mark.parametrize(
    "layer",
    [
        layers.GlobalAveragePooling2D,
        layers.GlobalMaxPooling2D,
        lambda: layers.GlobalAveragePooling2D(keepdims=True),
    ],
)
def test_global_pooling(layer):
    model = between(layer(), 0.5, reader=layers.Dense(2))
    assert checked(model)[1].rows[0].kept_outputs == 2


def test_batch_normalization_by_hand():
    """A dead channel is beta - gamma * mean / deviation behind it.

    With padding, that is too much; a gamma of zero leaves beta alone.
    """
    same = layers.SeparableConv2D(2, 3, padding="same")
    model = between(layers.BatchNormalization(name="norm"), reader=same)
    smaller, report = checked(model)
    assert report.rows[0].kept_outputs == 3
    norm = model.get_layer("norm")
    change(norm.gamma, 1)
    change(norm.beta, 1)
    smaller, report = checked(model)
    assert report.rows[0].kept_outputs == 2
    for found, old in zip(
        weights_of(smaller, "norm"), norm.weights, strict=True
    ):
        np.testing.assert_array_equal(found, to_float64(old)[[0, 2]])
    # Whatever a gamma of zero is multiplied by, it is beta.
    change(norm.gamma, 0)
    change(norm.beta, 0)
    assert checked(model)[1].rows[0].kept_outputs == 1


def test_batch_normalization_elsewhere():
    model = between(layers.BatchNormalization(axis=1))
    _, report = checked(model)
    assert report.is_unchanged
    assert "those around it last" in report.kept_whole[model.layers[1].name]


@pytest.mark.core
def test_rescaling_with_numbers_per_channel():
    """By hand: 0.5 behind a scale of 0, whatever comes; the rest is read."""
    layer = layers.Rescaling([2.0, 1.0, 0.0], [0.0, 0.0, 0.5], name="scale")
    model = between(layer, 0.25)
    smaller, report = checked(model)
    assert report.rows[0].kept_outputs == 1
    assert smaller.get_layer("scale").scale == [2.0]
    assert smaller.get_layer("scale").offset == [0.0]


def test_numbers_of_prelu_are_sliced():
    model = between(layers.PReLU(shared_axes=[1, 2], name="prelu"), 1.0)
    smaller, _ = checked(model)
    slopes = to_float64(model.get_layer("prelu").alpha)
    found = weights_of(smaller, "prelu")[0]
    np.testing.assert_array_equal(found, slopes[..., [0, 2]])


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: layers.Softmax(), "unknown: Softmax"),
        (lambda: layers.Activation("softmax"), "mixes channels"),
        (lambda: layers.LayerNormalization(), "all of its channels"),
        (lambda: layers.UnitNormalization(), "unknown"),
        (lambda: layers.Lambda(keras.ops.tanh), "a Lambda may compute any"),
        (lambda: layers.Permute((3, 1, 2)), "moves the axis"),
    ],
)
def test_barriers(layer, reason):
    """What they read is kept, what it is made of is not."""
    model = sequential(
        (4, 4, 2),
        layers.Conv2D(3, 1, activation="relu"),
        layers.Conv2D(3, 1),
        layer(),
        layers.Conv2D(2, 1),
    )
    change(model.layers[0].kernel, np.s_[..., 0])
    change(model.layers[1].kernel, np.s_[..., 0])
    _, report = checked(model)
    assert [row.kept_outputs for row in report.rows][:2] == [2, 3]
    assert reason in report.kept_whole[model.layers[2].name]
    name = model.layers[1].name
    assert report.kept_whole.get(name) is None  # It has lost an input.


def test_training_mode_is_left_alone():
    inputs = keras.Input((3,))
    hidden = layers.Dense(4)(inputs)
    hidden = layers.BatchNormalization(name="norm")(hidden, training=True)
    model = keras.Model(inputs, layers.Dense(2)(hidden))
    change(model.layers[1].kernel, np.s_[:, 1])
    _, report = checked(model)
    assert report.is_unchanged
    assert "training=True" in report.kept_whole["norm"]


def test_channels_first():
    model = keras.Sequential(
        [
            keras.Input((3, 4, 4)),
            layers.MaxPooling2D(1, data_format="channels_first"),
            layers.Dense(3),
            layers.Dense(2),
        ]
    )
    change(model.layers[1].kernel, np.s_[:, 1])
    _, report = checked(model, inputs=None)
    assert report.rows[0].kept_outputs == 2
    reason = report.kept_whole[model.layers[0].name]
    assert reason == "its channels come first, those around it last"


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_numbers_of_a_rescaling_may_have_leading_axes(axes):
    """Oracle: by hand. The channel times 0 goes, whatever the nesting."""
    scale = np.array([2.0, 0.0, 3.0]).reshape((1,) * (axes - 1) + (3,))
    model = sequential(
        (4, 3), layers.Rescaling(scale.tolist()), layers.Conv1D(2, 2)
    )
    _, report = checked(
        keras.Sequential(
            [keras.Input((4, 5)), layers.Conv1D(3, 1), *model.layers]
        )
    )
    first = report.rows[0]
    assert (first.outputs, first.kept_outputs) == (3, 2)
