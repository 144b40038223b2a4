"""Constant channels that a bias cannot take up become one of ones."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.helpers.arrays import random_inputs, to_float64
from tests.helpers.comparing import (
    assert_equal_predictions,
    change,
    checked,
    fill,
    sequential,
    weights_of,
)

# Layers that see borders, and the shape of what they read.
READERS = {
    "same": ((5, 6, 2), lambda: layers.Conv2D(2, 3, padding="same")),
    "strides": ((5, 6, 2), lambda: layers.Conv2D(2, 3, 2, padding="same")),
    "no bias": (
        (5, 6, 2),
        lambda: layers.Conv2D(2, 3, padding="same", use_bias=False),
    ),
    "causal": ((5, 2), lambda: layers.Conv1D(2, 2, padding="causal")),
    "3D": ((4, 3, 3, 2), lambda: layers.Conv3D(2, 2, padding="same")),
    "transposed": ((5, 6, 2), lambda: layers.Conv2DTranspose(2, 3)),
}


def with_constants(shape, reader):
    """Two of four channels are constant, not zero, and not the same."""
    conv = getattr(layers, f"Conv{len(shape) - 1}D")
    model = sequential(shape, conv(4, 1, activation="tanh"), reader)
    change(model.layers[0].kernel, np.s_[..., :2])
    return model


@pytest.mark.core
@pytest.mark.parametrize("name", READERS)
def test_two_constants_become_one_channel(name):
    """Oracle: the model; and by hand, the sum of kernels times constants."""
    shape, reader = READERS[name]
    model = with_constants(shape, reader())
    smaller, report = checked(model)
    first, second = report.rows
    assert (first.kept_outputs, second.kept_inputs) == (2, 3)
    kernel = to_float64(model.layers[1].kernel)
    found = weights_of(smaller, model.layers[1].name)[0]
    if name == "transposed":
        kernel, found = (np.swapaxes(x, -1, -2) for x in (kernel, found))
    constants = np.tanh(to_float64(model.layers[0].bias)[:2])
    expected = np.tensordot(constants, kernel[..., :2, :], axes=(0, -2))
    np.testing.assert_allclose(found[..., 2, :], expected, rtol=1e-5)
    np.testing.assert_array_equal(found[..., :2, :], kernel[..., 2:, :])


@pytest.mark.integration
@pytest.mark.core
def test_blocks_with_half_of_their_channels_dead(tmp_path):
    """Oracle: the number of parameters of a network of half the width.

    Each convolution but the first reads one channel more than that one.
    """

    def blocks(width):
        stack = []
        for _ in range(4):
            stack += [
                layers.Conv2D(width, 3, padding="same", use_bias=False),
                layers.BatchNormalization(),
                layers.ReLU(),
            ]
        stack += [layers.GlobalAveragePooling2D(), layers.Dense(10)]
        return sequential((8, 8, 3), *stack)

    model, half = blocks(32), blocks(16)
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D):
            dead = generator.permutation(32)[:16]
            layer.kernel.assign(0.1 * layer.kernel)
            change(layer.kernel, np.s_[..., dead])
    assert model.count_params() == 29_354
    smaller, report = checked(model)
    assert report.kept_parameters == half.count_params() + 3 * 9 * 16 <= 8_400
    smaller.save(tmp_path / "smaller.keras")
    loaded = keras.saving.load_model(tmp_path / "smaller.keras")
    inputs = random_inputs(4, 8, 8, 3)
    assert_equal_predictions(smaller, loaded, inputs, rtol=1e-7)
    # There is nothing more to gain.
    assert checked(smaller)[1].is_unchanged


@pytest.mark.core
def test_constants_in_a_residual_stream():
    """Oracle: by hand. Channels 0 and 1 are constant in all of the stream."""
    inputs = keras.Input((5, 5, 2))
    x = layers.Conv2D(4, 1, name="stem")(inputs)
    for i in range(2):
        y = layers.Conv2D(3, 3, padding="same", name=f"in_{i}")(x)
        y = layers.Conv2D(4, 3, padding="same", name=f"out_{i}")(y)
        x = layers.ReLU()(layers.Add()([x, y]))
    outputs = layers.Conv2D(2, 3, padding="same", name="last")(x)
    model = keras.Model(inputs, outputs)
    fill(model)
    for name in ("stem", "out_0", "out_1"):
        change(model.get_layer(name).kernel, np.s_[..., :2])
        change(model.get_layer(name).bias, np.s_[:2], value=0.5)
    _, report = checked(model)
    rows = {row.name: row for row in report.rows}
    kept = [rows[name].kept_outputs for name in ("stem", "out_0", "out_1")]
    assert kept == [2, 2, 2]
    read = [rows[name].kept_inputs for name in ("in_0", "in_1", "last")]
    assert read == [3, 3, 3]


@pytest.mark.parametrize(("other", "kept"), [(0.5, 2), (-0.5, 4)])
def test_a_shared_convolution(other, kept):
    """It has one kernel for its channel of ones, so both must have the same."""
    inputs = keras.Input((4, 4, 2))
    shared = layers.Conv2D(2, 3, padding="same", name="shared")
    read = [layers.Conv2D(4, 1, name=name)(inputs) for name in "ab"]
    model = keras.Model(inputs, [shared(x) for x in read])
    fill(model)
    for name, value in (("a", 0.5), ("b", other)):
        change(model.get_layer(name).kernel, np.s_[..., :2])
        change(model.get_layer(name).bias, np.s_[:2], value=value)
    _, report = checked(model)
    counts = {row.name: row.kept_outputs for row in report.rows}
    assert counts == {"a": kept, "b": kept, "shared": 2}


def test_kernels_that_cancel_need_no_channel():
    model = with_constants((5, 5, 2), layers.Conv2D(2, 3, padding="same"))
    change(model.layers[0].bias, np.s_[:2], value=0.5)
    kernel = to_float64(model.layers[1].kernel)
    change(model.layers[1].kernel, np.s_[..., 1, :], value=-kernel[..., 0, :])
    _, report = checked(model)
    assert report.rows[1].kept_inputs == 2


def test_a_convolution_of_constants_alone():
    """Something of what it reads has to be left."""
    model = with_constants((5, 5, 2), layers.Conv2D(2, 3, padding="same"))
    change(model.layers[0].kernel, np.s_[:])
    _, report = checked(model)
    assert report.rows[0].kept_outputs == 1
    assert report.rows[1].kept_inputs == 2


@pytest.mark.parametrize(
    "reader",
    [
        lambda: layers.SeparableConv2D(2, 3, padding="same"),
        lambda: layers.DepthwiseConv2D(3, padding="same"),
    ],
)
def test_channels_that_are_read_one_by_one_stay(reader):
    model = with_constants((5, 5, 2), reader())
    _, report = checked(model)
    assert report.is_unchanged
    reason = report.kept_whole[model.layers[0].name]
    assert "padding='same'" in reason
