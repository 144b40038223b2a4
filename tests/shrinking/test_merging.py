"""Branches that meet: sums, products, channels side by side, new shapes."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_vd._backend.keras_internals import refuses_unread_inputs
from keras_vd.shrinking import analysis
from tests.helpers.arrays import random_inputs, to_float64
from tests.helpers.comparing import (
    assert_equal_predictions,
    change,
    checked,
    fill,
    sequential,
    shrink,
)


def branches(merge, units=(4, 4), activation="sigmoid", rest=()):
    """Two layers 'a' and 'b' that are merged and read by 'last'."""
    inputs = keras.Input((3,))
    a = layers.Dense(units[0], activation, name="a")(inputs)
    b = layers.Dense(units[1], activation, name="b")(inputs)
    x = merge(a, b)
    for layer in rest:
        x = layer(x)
    model = keras.Model(inputs, layers.Dense(2, name="last")(x))
    fill(model)
    return model


def kill(model, name, *units):
    change(model.get_layer(name).kernel, np.s_[:, list(units)])


def kept(report):
    return {row.name: row.kept_outputs for row in report.rows}


MERGES = ["Add", "Subtract", "Average", "Maximum", "Minimum", "Multiply"]


@pytest.mark.parametrize("name", MERGES)
def test_one_set_for_all_branches(name):
    """Unit 0 is a constant in both, 1 and 2 in one, 3 in none."""
    model = branches(lambda a, b: getattr(layers, name)()([a, b]))
    kill(model, "a", 0, 1)
    kill(model, "b", 0, 2)
    _, report = checked(model)
    assert kept(report) == {"a": 3, "b": 3, "last": 2}


OPERATIONS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "maximum": keras.ops.maximum,
    "minimum": keras.ops.minimum,
    "relu": lambda a, b: keras.ops.relu(a + b),
    "gelu": lambda a, b: keras.activations.gelu(a + b),
}


@pytest.mark.core
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name):
    model = branches(OPERATIONS[name])
    kill(model, "a", 0, 1)
    kill(model, "b", 0, 2)
    assert kept(checked(model)[1]) == {"a": 3, "b": 3, "last": 2}


def test_other_operations_are_barriers():
    for operation in (
        lambda a, b: keras.ops.floor(a + b),
        lambda a, b: keras.ops.softmax(a),
        lambda a, b: keras.ops.cumsum(a, axis=-1),
    ):
        model = branches(operation)
        kill(model, "a", 0)
        assert kept(checked(model)[1])["a"] == 4


def test_a_factor_of_zero():
    """By hand: units 0 and 1 are 0 in one branch or the other."""
    model = branches(lambda a, b: layers.Multiply()([a, b]), activation="relu")
    for name, unit in (("a", 0), ("b", 1)):
        kill(model, name, unit)
        change(model.get_layer(name).bias, unit, value=-1.0)
    assert kept(checked(model)[1]) == {"a": 2, "b": 2, "last": 2}


@pytest.mark.core
def test_a_zero_branch_of_a_sum_goes():
    model = branches(lambda a, b: layers.Add(name="sum")([a, b]), (4, 4), None)
    kill(model, "b", 0, 1, 2, 3)
    change(model.get_layer("b").bias, np.s_[:])
    smaller, report = checked(model)
    assert kept(report) == {"a": 4, "b": 0, "last": 2}
    assert "b" not in [layer.name for layer in smaller.layers]
    # Both of them: something has to be left.
    kill(model, "a", 0, 1, 2, 3)
    change(model.get_layer("a").bias, np.s_[:])
    assert kept(checked(model)[1]) == {"a": 1, "b": 1, "last": 2}


def words(name):
    """A masked branch."""
    inputs = keras.Input((4,), dtype="int32")
    x = layers.Embedding(9, 3, mask_zero=True)(inputs)
    return inputs, layers.Dense(5, name=name)(x)


def numbers(name):
    inputs = keras.Input((4, 3))
    return inputs, layers.Dense(5, name=name)(inputs)


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:.*with a mask attached")
@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize("dead", ["a", "b"])
@pytest.mark.parametrize("second", [words, numbers])
@pytest.mark.parametrize("name", [*MERGES, "Concatenate"])
def test_masked_branches(name, second, dead, is_nested):
    """Keras leaves masked steps out of some sums, and their mean."""
    (one, a), (two, b) = words("a"), second("b")

    def merged(tensors):
        x = getattr(layers, name)()(tensors)
        return layers.GlobalAveragePooling1D()(x)

    if is_nested:
        parts = [keras.Input(x.shape[1:]) for x in (a, b)]
        x = keras.Model(parts, merged(parts))([a, b])
    else:
        x = merged([a, b])
    model = keras.Model([one, two], layers.Dense(2)(x))
    fill(model)
    for variable in model.get_layer(dead).weights:
        variable.assign(np.zeros(variable.shape))
    generator = np.random.default_rng(0)
    inputs = [
        generator.integers(0, 3, (6, 4))
        if x.shape == (None, 4)
        else generator.normal(size=(6, 4, 3)).astype("float32")
        for x in model.inputs
    ]
    checked(model, inputs)


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("dead", ["a", "b"])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("name", ["Add", "Concatenate"])
def test_masks_that_only_attention_sees(name, both, dead):
    """Keras hands them on by no argument, and to losses by none at all."""
    (one, a), (two, b) = words("a"), words("b") if both else numbers("b")
    x = getattr(layers, name)()([a, b])
    model = keras.Model([one, two], [layers.MultiHeadAttention(2, 3)(x, x), x])
    attended = keras.Model(model.inputs, model.outputs[0])
    fill(attended)
    for variable in model.get_layer(dead).weights:
        variable.assign(np.zeros(variable.shape))
    generator = np.random.default_rng(0)
    inputs = [generator.integers(0, 3, (6, 4)) for _ in range(2)]
    if not both:
        inputs[1] = generator.normal(size=(6, 4, 3)).astype("float32")
    checked(attended, inputs)
    # A branch of the same mask may go.
    c = layers.Dense(5, name="c")(a)
    residual = layers.Add()([a, c])
    model = keras.Model(
        one, layers.MultiHeadAttention(2, 3)(residual, residual)
    )
    fill(model)
    for variable in model.get_layer("c").weights:
        variable.assign(np.zeros(variable.shape))
    assert kept(checked(model, inputs[0])[1])["c"] == 0


def with_part(make, width=3):
    """A Sequential model with a nested one, and a unit that nothing reads."""
    inputs = keras.Input((width,))
    part = keras.Model(inputs, make(inputs))
    first, second = layers.Dense(4, name="first"), layers.Dense(width)
    model = sequential((2,), first, second, part, layers.Dense(1))
    change(second.kernel, np.s_[0])
    return model


@pytest.mark.core
def test_a_sum_of_one_tensor_in_a_sequential_model():
    """Keras takes no tensor for its list of one."""
    model = with_part(lambda x: layers.Add()([x]))
    assert kept(checked(model)[1])["first"] == 3


@pytest.mark.core
def test_dropout_that_is_always_on_in_a_sequential_model():
    model = with_part(lambda x: layers.Dropout(0.5)(x, training=True), 400)
    smaller, report = shrink(model)
    assert kept(report)["first"] == 3
    first, second = (to_float64(smaller(np.ones((1, 2)))) for _ in range(2))
    assert first != second


def test_a_zero_branch_that_gives_the_shape_stays():
    inputs = keras.Input((4, 4, 2))
    image = layers.Conv2D(3, 1, name="image")(inputs)
    vector = layers.GlobalAveragePooling2D(keepdims=True)(inputs)
    summed = layers.Add()([image, layers.Dense(3, name="vector")(vector)])
    model = keras.Model(inputs, layers.Flatten()(summed))
    fill(model)
    for variable in model.get_layer("image").weights:
        variable.assign(np.zeros(variable.shape))
    assert checked(model)[0].output_shape == (None, 48)


@pytest.mark.core
@pytest.mark.parametrize("axis", [-1, 1])
def test_concatenation_of_channels(axis):
    """Units of 'a' stand in front of those of 'b'; each keeps its own."""
    model = branches(lambda a, b: layers.Concatenate(axis=axis)([a, b]), (3, 5))
    kill(model, "a", 0, 1)
    kill(model, "b", 0)
    change(model.get_layer("last").kernel, np.s_[6])
    assert kept(checked(model)[1]) == {"a": 1, "b": 3, "last": 2}


def test_a_branch_without_any_use_goes():
    model = branches(lambda a, b: layers.Concatenate()([a, b, a]), (3, 5))
    kill(model, "a", 0, 1, 2)
    smaller, report = checked(model)
    assert kept(report) == {"a": 0, "b": 5, "last": 2}
    assert len(smaller.layers) == 4


@pytest.mark.core
def test_an_input_without_any_use():
    """It remains an input, and nothing reads it where Keras allows that."""
    inputs = [keras.Input((2,), name="one"), keras.Input((3,), name="two")]
    joined = layers.Concatenate()(inputs)
    model = keras.Model(inputs, layers.Dense(2)(joined))
    fill(model)
    change(model.layers[-1].kernel, np.s_[:2])
    smaller, report = checked(model)
    assert report.rows[0].kept_inputs == 3 + refuses_unread_inputs()
    assert [x.name for x in smaller.inputs] == ["one", "two"]


@pytest.mark.core
@pytest.mark.parametrize("gather", [None, False])
def test_an_input_that_has_to_be_read(gather, monkeypatch, tmp_path):
    """Oracle: the model before; sizes by hand, where Keras demands it.

    One unit of the last layer that nothing reads stays, with all it reads.
    """
    monkeypatch.setattr(analysis, "refuses_unread_inputs", lambda: True)
    one, two = keras.Input((2,), name="one"), keras.Input((3,), name="two")
    hidden = layers.Dense(4, "relu", name="first")(two)
    hidden = layers.Dense(5, "relu", name="second")(hidden)
    joined = layers.Concatenate()([one, hidden])
    model = keras.Model([one, two], layers.Dense(2, name="last")(joined))
    fill(model)
    change(model.get_layer("last").kernel, np.s_[2:])
    smaller, report = checked(model, gather_inputs=gather)
    assert kept(report) == {"first": 4, "second": 1, "last": 2}
    assert report.rows[0].kept_inputs == 3
    assert keras.utils.get_source_inputs(smaller.output) == smaller.inputs
    smaller.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    inputs = [random_inputs(4, 2), random_inputs(4, 3)]
    assert_equal_predictions(model, loaded, inputs)


def test_concatenation_of_steps():
    """Along another axis a channel is constant where it is so in all."""
    inputs = keras.Input((2, 3))
    a = layers.Dense(4, name="a")(inputs)
    b = layers.Dense(4, name="b")(inputs)
    joined = layers.Concatenate(axis=1)([a, b])
    model = keras.Model(inputs, layers.Dense(2, name="last")(joined))
    fill(model)
    kill(model, "a", 0, 1)
    kill(model, "b", 0, 1)
    for name in "ab":
        change(model.get_layer(name).bias, 0, value=0.5)
    assert kept(checked(model)[1]) == {"a": 3, "b": 3, "last": 2}


def test_broadcasting_over_channels_is_kept_whole():
    model = branches(lambda a, b: layers.Multiply()([a, b]), (4, 1))
    kill(model, "a", 0)
    _, report = checked(model)
    assert kept(report) == {"a": 4, "b": 1, "last": 2}
    assert any("numbers of channels" in x for x in report.kept_whole.values())


def test_a_gate_per_channel():
    """Squeeze and excitation: what the gate closes, goes from the image."""
    inputs = keras.Input((4, 4, 2))
    image = layers.Conv2D(5, 3, name="image")(inputs)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(image)
    gate = layers.Dense(5, "relu", name="gate")(gate)
    gated = layers.Multiply()([image, gate])
    model = keras.Model(inputs, layers.Conv2D(2, 1, name="last")(gated))
    fill(model)
    kill(model, "gate", 0, 1)
    change(model.get_layer("gate").bias, np.s_[:2], value=-1.0)
    # The gate of channel 2 reads the image's channel 0, which so stays.
    change(model.get_layer("gate").kernel, np.s_[1])
    assert kept(checked(model)[1]) == {"image": 4, "gate": 4, "last": 2}
    change(model.get_layer("gate").kernel, np.s_[0])
    assert kept(checked(model)[1]) == {"image": 3, "gate": 3, "last": 2}


@pytest.mark.core
def test_flatten():
    """A channel goes when none of its 4 places is read; one is not enough."""
    model = sequential(
        (2, 2, 2), layers.Conv2D(3, 1), layers.Flatten(), layers.Dense(2)
    )
    change(model.layers[2].kernel, np.s_[0::3], np.s_[1:9:3])
    _, report = checked(model)
    assert report.rows[0].kept_outputs == 2
    assert report.rows[1].kept_inputs == 4 * 2


@pytest.mark.integration
@pytest.mark.parametrize(
    ("shape", "is_understood"),
    [
        ((-1,), True),
        ((16, 3), True),
        ((4, -1), True),
        ((4, 2, -1), True),
        ((3, 16), False),
        ((8, 2, -1), True),
        ((24, 2), False),
    ],
)
def test_reshape(shape, is_understood):
    """By hand: channels stay together where sizes divide each other."""
    model = sequential(
        (4, 4, 2),
        layers.Conv2D(3, 1),
        layers.Reshape(shape),
        layers.Dense(2),
    )
    change(model.layers[0].kernel, np.s_[..., 1])
    _, report = checked(model)
    assert report.rows[0].kept_outputs == (2 if is_understood else 3)


def test_reshape_to_more_axes():
    """Dense(12) as 4 places of 3 channels: one goes with all its places."""
    model = sequential(
        (5,),
        layers.Dense(12, "sigmoid"),
        layers.Reshape((2, 2, 3)),
        layers.Conv2D(2, 2),
    )
    change(model.layers[0].kernel, np.s_[:, 1::3], np.s_[:, 0:9:3])
    change(model.layers[0].bias, np.s_[1::3], value=0.5)
    _, report = checked(model)
    assert report.rows[0].kept_outputs == 8
    assert report.rows[1].kept_inputs == 2
    # Constant in all places, but not the same one.
    change(model.layers[0].bias, 1, value=0.75)
    assert checked(model)[1].is_unchanged
