"""Operations of `keras.ops`: what is dead goes on both sides of them."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_vd
from tests.helpers.arrays import random_inputs
from tests.helpers.comparing import (
    assert_equal_predictions,
    change,
    checked,
    fill,
)

NUMBERS = np.arange(1.0, 7.0, dtype="float32")


def around(function, shape=(4, 5, 3), width=6, reader=None):
    """Units 0 and 1 of six are constant, and unit 2 is not read.

    So it is where the function does not change the number of units; elsewhere
    all that it makes is read.
    """
    inputs = keras.Input(shape)
    x = function(layers.Dense(width, name="first")(inputs))
    outputs = (reader or layers.Dense(2, name="last"))(x)
    model = keras.Model(inputs, outputs)
    fill(model)
    change(model.get_layer("first").kernel, np.s_[:, :2])
    change(model.get_layer("first").bias, 0, value=0.25)
    change(model.get_layer("first").bias, 1)
    if x.shape[-1] == width:
        change(model.get_layer("last").kernel, np.s_[2])
    return model


def kept(model, inputs=None):
    _, report = checked(model, inputs)
    return {row.name: row.kept_outputs for row in report.rows}["first"]


# Those that treat each unit by itself, and leave constants constant.
EACH = {
    "number": lambda x: x * 2.0 + 1,
    "number first": lambda x: 3.0 - x,
    "quotient": lambda x: x / 4.0,
    "divide": lambda x: ops.divide(x, 4.0),
    "power": lambda x: ops.abs(x) ** 2,
    "maximum": lambda x: ops.maximum(0.1, x),
    "one each": lambda x: x * NUMBERS,
    "one each, with axes": lambda x: ops.subtract(NUMBERS[None, None, None], x),
    "tensor": lambda x: x + ops.convert_to_tensor(NUMBERS),
    "MobileNetV3, sigmoid": lambda x: layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0),
    "MobileNetV3, swish": lambda x: x * ops.relu6(x + 3.0) * (1.0 / 6.0),
    "clip": lambda x: ops.clip(x, -0.5, 0.5),
    "square root": lambda x: ops.sqrt(ops.abs(x)),
    "mean": lambda x: ops.mean(x, axis=1),
    "mean of two": lambda x: ops.mean(x, axis=(1, 2)),
    "kept axis": lambda x: ops.max(x, axis=-2, keepdims=True),
    "sum": lambda x: ops.sum(x, axis=(1, 2)),
    "reshape": lambda x: ops.reshape(x, (-1, 20, 6)),
    "inferred": lambda x: ops.reshape(x, (-1, 20, 1, 6)),
    "transpose": lambda x: ops.transpose(x, (0, 2, 1, 3)),
    "new axis": lambda x: ops.expand_dims(x, 1),
    "less axes": lambda x: ops.squeeze(x[:, :1], axis=1),
    "stack": lambda x: ops.stack([x, x], axis=1),
    "concatenate": lambda x: ops.concatenate([x, x], axis=1),
    "split": lambda x: ops.split(x, 2, axis=1)[1],
    "step": lambda x: x[:, -1],
    "steps": lambda x: x[:, 1:3, ..., None, :],
    "negative": lambda x: -x,
    "copy": lambda x: ops.stop_gradient(ops.copy(x)),
    "cast": lambda x: ops.cast(ops.cast(x, "float64"), "float32"),
}


@pytest.mark.core
@pytest.mark.parametrize("name", EACH)
def test_units_one_by_one(name):
    """By hand: the constants go into the bias, what is not read goes."""
    if name == "cast" and keras.backend.backend() == "jax":
        pytest.skip("JAX has no float64 by default.")
    assert kept(around(EACH[name])) == 3


# What they need, of six units of which 0 and 1 are constant.
PARTS = {
    "slice": (lambda x: x[..., 1:4], 2),
    "open slice": (lambda x: x[..., 3:], 3),
    "from behind": (lambda x: x[..., -3:-1], 2),
    "split": (lambda x: ops.split(x, 2, axis=-1)[1], 3),
    "indices": (lambda x: ops.split(x, [3, 4], axis=-1)[2], 2),
    "joined again": (
        lambda x: ops.concatenate([x[..., 3:4], x[..., 5:]], axis=-1),
        2,
    ),
    "reshape": (lambda x: ops.reshape(x, (-1, 4, 5, 2, 3)), 6),
    "flattened": (lambda x: ops.reshape(x, (-1, 4 * 5 * 6)), 4),
    "pad": (lambda x: ops.pad(x, [(0, 0)] * 3 + [(1, 2)]), 4),
    "ones": (
        lambda x: ops.pad(x, [(0, 0)] * 3 + [(0, 1)], constant_values=1),
        4,
    ),
}


@pytest.mark.core
@pytest.mark.parametrize("name", PARTS)
def test_parts_of_the_units(name):
    """Oracle: by hand, units that are read and not constant."""
    function, expected = PARTS[name]
    assert kept(around(function)) == expected


# Why all units stay.
BARRIERS = {
    "it mixes channels": lambda x: ops.mean(x, axis=-1, keepdims=True),
    "it moves the axis": lambda x: ops.transpose(x, (0, 3, 1, 2)),
    "it moves the axis of": lambda x: x[..., 0],
    "one after the other": lambda x: x[..., ::2],
    "it moves": lambda x: ops.stack([x, x], axis=-1),
}


@pytest.mark.parametrize("reason", BARRIERS)
def test_barriers(reason):
    model = around(BARRIERS[reason])
    assert kept(model) == 6


@pytest.mark.core
def test_padding_with_a_number_that_a_unit_has():
    """Oracle: by hand. Unit 1 is zero, as the padding; unit 0 is not."""
    sides = [(0, 0), (1, 1), (1, 0), (0, 0)]
    model = around(lambda x: ops.pad(x, sides))
    assert kept(model) == 4
    model = around(lambda x: ops.pad(x, sides, constant_values=0.25))
    assert kept(model) == 4
    model = around(lambda x: ops.pad(x, [*sides[:3], (2, 1)], "reflect"))
    assert kept(model) == 6


@pytest.mark.core
@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow",
    reason="There, Keras cannot do it.",
)
def test_padding_all_axes_alike():
    """Backends differ in what that is, so all stays."""
    assert kept(around(lambda x: ops.pad(x, 1))) == 6


@pytest.mark.core
def test_sums_over_an_unknown_number_of_steps():
    """Oracle: by hand. Only zero is known."""
    model = around(lambda x: ops.sum(x, axis=1), (None, 3))
    inputs = random_inputs(4, 5, 3)
    assert kept(model, inputs) == 4


@pytest.mark.parametrize("variable", [NUMBERS, np.float32(2.0)])
def test_variables_without_a_layer_are_not_looked_into(variable):
    variable = keras.Variable(variable)
    model = around(lambda x: x * variable)
    _, report = keras_vd.shrink(model, return_report=True, verbose=0)
    assert report.is_unchanged


@pytest.mark.core
def test_attention_written_as_operations():
    """Oracle: by hand. In it all stays; before and behind it goes what can."""
    inputs = keras.Input((5, 4))
    hidden = layers.Dense(7, "relu", name="before")(inputs)
    query, key, value = (
        layers.Dense(6, name=name)(hidden) for name in ("q", "k", "v")
    )
    heads = [
        ops.transpose(ops.reshape(x, (-1, 5, 2, 3)), (0, 2, 1, 3))
        for x in (query, key, value)
    ]
    scores = ops.matmul(heads[0], ops.transpose(heads[1], (0, 1, 3, 2)))
    mixed = ops.matmul(ops.softmax(scores * 3**-0.5), heads[2])
    mixed = ops.reshape(ops.transpose(mixed, (0, 2, 1, 3)), (-1, 5, 6))
    x = layers.Dense(8, "relu", name="behind")(mixed)
    model = keras.Model(inputs, layers.Dense(2)(x))
    fill(model)
    for name in ("before", "behind"):
        change(model.get_layer(name).kernel, np.s_[:, :3])
    for name in "qkv":
        change(model.get_layer(name).kernel, np.s_[:, 1])
    _, report = checked(model)
    rows = {row.name: row.kept_outputs for row in report.rows}
    assert [rows[x] for x in ("before", "q", "k", "v")] == [4, 6, 6, 6]
    assert rows["behind"] == 5


@pytest.mark.integration
@pytest.mark.core
def test_shrunk_operations_are_saved_and_loaded(tmp_path):
    """Oracle: the very numbers of the model that was saved."""
    functions = {
        name: function
        for name, function in (
            EACH | {k: v for k, (v, _) in PARTS.items()}
        ).items()
        if name != "cast"
    }
    inputs = keras.Input((4, 5, 3))
    outputs = []
    for i, function in enumerate(functions.values()):
        x = function(layers.Dense(6, name=f"first_{i}")(inputs))
        outputs.append(layers.Dense(2)(x))
    model = keras.Model(inputs, outputs)
    fill(model)
    for i in range(len(functions)):
        change(model.get_layer(f"first_{i}").kernel, np.s_[:, :2])
    smaller, _ = checked(model)
    smaller.save(tmp_path / "smaller.keras")
    loaded = keras.saving.load_model(tmp_path / "smaller.keras")
    inputs = random_inputs(4, 4, 5, 3)
    assert_equal_predictions(smaller, loaded, inputs, rtol=1e-7)


@pytest.mark.core
def test_operations_in_a_nested_model_that_is_used_twice():
    """Their numbers are those of both uses."""
    inner = keras.Input((6,))
    x = ops.concatenate([inner[..., :3] * NUMBERS[:3], inner[..., 4:]], -1)
    part = keras.Model(inner, ops.pad(x, [(0, 0), (1, 0)]))
    inputs = keras.Input((3,))
    read = [layers.Dense(6, name=name)(inputs) for name in "ab"]
    joined = layers.Concatenate()([part(x) for x in read])
    model = keras.Model(inputs, layers.Dense(2, name="last")(joined))
    fill(model)
    for name in "ab":
        change(model.get_layer(name).kernel, np.s_[:, 0])
        change(model.get_layer(name).bias, 0, value=0.5)
    change(model.get_layer("a").kernel, np.s_[:, 1])
    _, report = checked(model)
    rows = {row.name: row.kept_outputs for row in report.rows}
    assert (rows["a"], rows["b"]) == (4, 4)
