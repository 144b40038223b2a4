"""Channels on axis 1: the same goes as where they come last."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tests.helpers.arrays import to_float64
from tests.helpers.comparing import change, checked, fill, weights_of

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(
        keras.backend.backend() == "tensorflow",
        reason="TensorFlow has no such convolutions on CPUs.",
    ),
]

SCALE = np.arange(1.0, 7.0).reshape(6, 1, 1)


def conv(filters, size=1, **options):
    return layers.Conv2D(filters, size, data_format="channels_first", **options)


def around(function, reader=None):
    """Channels 0 and 1 of six are constant, and channel 2 is not read."""
    inputs = keras.Input((3, 5, 4))
    x = function(conv(6, name="first")(inputs))
    outputs = (reader or conv(2, name="last"))(x)
    model = keras.Model(inputs, outputs)
    fill(model)
    change(model.get_layer("first").kernel, np.s_[..., :2])
    change(model.get_layer("first").bias, 0, value=0.25)
    change(model.get_layer("first").bias, 1)
    kernel = model.get_layer("last").kernel
    if kernel.shape[-2] == 6:
        change(kernel, np.s_[..., 2, :])
    return model


def kept(model, **options):
    _, report = checked(model, **options)
    return {row.name: row.kept_outputs for row in report.rows}["first"]


def first(kind, *arguments, **options):
    return getattr(layers, kind)(
        *arguments, data_format="channels_first", **options
    )


EACH = {
    "nothing": lambda x: x,
    "activation": layers.Activation("tanh"),
    "batch": layers.BatchNormalization(axis=1),
    "pooling": first("MaxPooling2D", 2),
    "average": first("AveragePooling2D", 2),
    "padding": lambda x: first("ZeroPadding2D", 1)(x * 0.0 + x),
    "up": first("UpSampling2D", 2),
    "cropping": first("Cropping2D", 1),
    "depthwise": first("DepthwiseConv2D", 2),
    "dropout": first("SpatialDropout2D", 0.5),
    "slopes": layers.PReLU(shared_axes=[2, 3]),
    "all slopes": layers.PReLU(),
    "scale": layers.Rescaling(SCALE.tolist(), 0.5),
    "numbers": lambda x: x * SCALE.astype("float32") + 1.0,
    "sum": lambda x: x + ops.relu(x),
    "mean": lambda x: ops.mean(x, axis=2, keepdims=True),
    "side by side": lambda x: layers.Concatenate(axis=2)([x, x]),
    "to and fro": lambda x: layers.Permute((3, 1, 2))(
        layers.Permute((2, 3, 1))(x)
    ),
    "transposed": lambda x: ops.transpose(
        ops.tanh(ops.transpose(x, (0, 2, 3, 1))), (0, 3, 1, 2)
    ),
}
# Zeros around a constant that is not zero: channel 0 stays.
BORDERS = {"padding"}


@pytest.mark.parametrize("name", EACH)
def test_channels_one_by_one(name):
    """Oracle: by hand; the constants go into the bias, what is unread goes."""
    function = EACH[name]
    if isinstance(function, keras.layers.Layer):
        function = type(function).from_config(function.get_config())
    assert kept(around(function)) == (4 if name in BORDERS else 3)


# Layers that read channels on axis 1, and what they make has them last.
ENDS = {
    "pooling": first("GlobalAveragePooling2D"),
    "mean": lambda x: ops.mean(x, axis=(2, 3)),
    "permuted": layers.Permute((2, 3, 1)),
}


@pytest.mark.parametrize("name", ENDS)
def test_channels_are_last_in_the_end(name):
    assert kept(around(ENDS[name], layers.Dense(2, name="last"))) == 3


@pytest.mark.parametrize("format", ["channels_first", "channels_last"])
def test_flattened(format):
    """Oracle: by hand; which entries are those of a channel."""
    flat = layers.Flatten(data_format=format, name="flat")
    model = around(flat, layers.Dense(2, name="last"))
    # Channel 2 is read at no position, channel 3 at some.
    kernel = to_float64(model.get_layer("last").kernel)
    if format == "channels_last":
        kernel = channels = kernel.reshape(6, 20, 2)
    else:
        kernel = kernel.reshape(20, 6, 2)
        channels = np.swapaxes(kernel, 0, 1)
    channels[2] = 0.0
    channels[3, :15] = 0.0
    model.get_layer("last").kernel.assign(kernel.reshape(120, 2))
    assert kept(model) == 3
    smaller, report = checked(model, gather_inputs=True)
    rows = {row.name: row.kept_inputs for row in report.rows}
    assert rows["last"] == 5 + 20 + 20
    assert weights_of(smaller, "last")[0].shape == (45, 2)


def test_constants_become_one_channel():
    """Oracle: by hand; that of ones is the third, on axis 1."""
    model = around(lambda x: x, conv(2, 3, padding="same", name="last"))
    change(model.get_layer("first").bias, 1, value=-0.5)
    smaller, report = checked(model)
    rows = {row.name: row.kept_inputs for row in report.rows}
    assert rows["last"] == 4
    kernel = to_float64(model.get_layer("last").kernel)
    expected = 0.25 * kernel[..., 0, :] - 0.5 * kernel[..., 1, :]
    found = weights_of(smaller, "last")[0][..., -1, :]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["Conv", "SeparableConv", "Transpose"])
def test_other_convolutions(kind):
    kinds = {
        "Conv": lambda: conv(4, 2, groups=2, name="last"),
        "SeparableConv": lambda: first("SeparableConv2D", 2, 2, name="last"),
        "Transpose": lambda: first("Conv2DTranspose", 2, 2, name="last"),
    }
    inputs = keras.Input((3, 5, 4))
    x = conv(6, name="first")(inputs)
    last = kinds[kind]()
    x = conv(2, name="end")(last(x))
    model = keras.Model(inputs, x)
    fill(model)
    for weight in last.weights:
        if kind == "Conv":
            change(model.get_layer("end").kernel, np.s_[..., :2, :])
        elif "kernel" in weight.name:
            axis = -1 if kind == "Transpose" else -2
            values = np.moveaxis(to_float64(weight), axis, 0)
            values[:3] = 0.0
            weight.assign(np.moveaxis(values, 0, axis))
    assert kept(model) == 3


def test_a_dead_input_is_left_out():
    """Oracle: by hand. It is picked out along axis 1."""
    inputs = keras.Input((6, 4, 5))
    model = keras.Model(inputs, conv(2, 2, name="first")(inputs))
    fill(model)
    change(model.get_layer("first").kernel, np.s_[..., :4, :])
    smaller, report = checked(model)
    assert report.rows[0].kept_inputs == 2
    assert weights_of(smaller, "first")[0].shape == (2, 2, 2, 2)


def test_groups_of_a_normalization():
    """Oracle: by hand. Of three groups, one is read by nobody."""
    layer = layers.GroupNormalization(3, axis=1, epsilon=0.1, name="norm")
    model = around(layer)
    change(model.get_layer("last").kernel, np.s_[..., :2, :])
    assert kept(model) == 4


def test_both_kinds_in_one_model():
    """What is between them is kept whole, and what is on either side goes."""
    inputs = keras.Input((3, 5, 4))
    x = conv(6, name="first")(inputs)
    x = conv(4, name="second")(x)
    x = layers.Dense(5, name="third")(x)
    model = keras.Model(inputs, layers.Dense(2, name="last")(x))
    fill(model)
    for name in ("first", "second", "third"):
        change(model.get_layer(name).kernel, np.s_[..., 0])
    _, report = checked(model)
    rows = {row.name: row.kept_outputs for row in report.rows}
    assert rows == {"first": 6, "second": 4, "third": 4, "last": 2}
    assert "come first" in report.kept_whole["second"]
