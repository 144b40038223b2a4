"""Dense layers and convolutions: what goes, worked out by hand."""

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


@pytest.mark.core
def test_constant_units_end_up_in_the_next_bias():
    """Unit 0 has no inputs, so it is sigmoid(bias); unit 2 nobody reads."""
    model = sequential(
        (3,),
        layers.Dense(4, "sigmoid", name="first"),
        layers.Dense(2, name="second"),
    )
    first, second = model.layers
    change(first.kernel, np.s_[:, 0])
    change(second.kernel, np.s_[2])
    smaller, _ = checked(model)
    kernel, bias = to_float64(first.kernel), to_float64(first.bias)
    constant = 1.0 / (1.0 + np.exp(-bias[0]))
    expected = to_float64(second.bias) + constant * to_float64(second.kernel)[0]
    found = weights_of(smaller, "second")
    np.testing.assert_allclose(found[1], expected, rtol=1e-6)
    np.testing.assert_array_equal(found[0], to_float64(second.kernel)[[1, 3]])
    np.testing.assert_array_equal(
        weights_of(smaller, "first")[0], kernel[:, [1, 3]]
    )
    assert isinstance(smaller, keras.Sequential)
    assert [x.name for x in smaller.layers] == ["first", "second"]


@pytest.mark.core
@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_a_layer_without_bias_gains_one_if_it_must(activation):
    """Dead units are sigmoid(0) = 0.5 or relu(0) = 0."""
    model = sequential(
        (3,),
        layers.Dense(4, activation, use_bias=False),
        layers.Dense(2, use_bias=False, name="last"),
    )
    change(model.layers[0].kernel, np.s_[:, 1:3])
    smaller, report = checked(model)
    is_needed = activation == "sigmoid"
    assert smaller.get_layer("last").use_bias == is_needed
    assert report.kept_parameters == 3 * 2 + 2 * 2 + 2 * is_needed


def test_what_died_downstream_goes_upstream():
    """By hand: a chain in which one dead row after the other falls."""
    model = sequential(
        (4,), *(layers.Dense(3, "tanh", name=f"d{i}") for i in range(4))
    )
    change(model.layers[3].kernel, np.s_[0])
    change(model.layers[2].kernel, (0, np.s_[1:]), (1, np.s_[1:]))
    change(model.layers[1].kernel, (2, 2))
    _, report = checked(model)
    # d3 does not read unit 0 of d2, which alone reads units 0 and 1 of d1;
    # the one that is left, 2, does not read unit 2 of d0.
    assert [row.kept_outputs for row in report.rows] == [2, 1, 2, 3]
    assert [row.kept_inputs for row in report.rows] == [4, 2, 1, 2]


@pytest.mark.parametrize("place", ["kernel", "next kernel", "both"])
def test_a_dead_layer_keeps_one_unit(place):
    model = sequential(
        (4,), layers.Dense(5, "sigmoid"), layers.Dense(3, name="last")
    )
    if place != "next kernel":
        model.layers[0].kernel.assign(np.zeros((4, 5)))
    if place != "kernel":
        model.layers[1].kernel.assign(np.zeros((5, 3)))
    smaller, report = checked(model)
    assert report.rows[0].kept_outputs == 1
    assert smaller.output_shape == (None, 3)


def test_dead_outputs_of_the_model_stay():
    model = sequential((4,), layers.Dense(3, "sigmoid", name="only"))
    model.layers[0].kernel.assign(np.zeros((4, 3)))
    smaller, report = checked(model)
    assert smaller.output_shape == (None, 3)
    assert report.rows[0].kept_outputs == 3


@pytest.mark.parametrize(
    ("dead", "gather", "kept"),
    [(2, None, 6), (3, None, 3), (2, True, 4), (4, False, 6), (6, None, 1)],
)
def test_gathering_inputs(dead, gather, kept):
    """By default only where at least half of the features are dead."""
    model = sequential((6,), layers.Dense(3), layers.Dense(2))
    change(model.layers[0].kernel, np.s_[:dead])
    smaller, report = checked(model, gather_inputs=gather)
    assert report.rows[0].kept_inputs == kept
    assert smaller.input_shape == model.input_shape


@pytest.mark.core
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((), ()),
        ((layers.Rescaling(0.5),), (layers.Dropout(0.5),)),
        ((), (layers.ReLU(),)),
    ],
)
def test_gathering_from_a_flattened_input(before, after, tmp_path):
    model = sequential(
        (2, 3, 2),
        *(*before, layers.Flatten(), *after),
        *(layers.Dense(3), layers.Dense(2)),
    )
    # 5 of 12 features are read, of both channels and both rows.
    dead = np.setdiff1d(np.arange(12), (0, 3, 4, 8, 11))
    change(model.layers[-2].kernel, np.s_[dead])
    smaller, report = checked(model)
    assert report.rows[-2].kept_inputs == 5
    assert smaller.input_shape == model.input_shape
    smaller.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_equal_predictions(model, loaded, random_inputs(4, 2, 3, 2))
    # Not worth it for less than half, and not wanted.
    assert checked(model, gather_inputs=False)[1].is_unchanged
    fill(model)
    change(model.layers[-2].kernel, np.s_[:5])
    assert checked(model)[1].is_unchanged
    assert checked(model, gather_inputs=True)[1].rows[-2].kept_inputs == 7


def test_a_flattened_input_that_others_read_too():
    """Oracle: two readers of the same features; the union stays."""
    image = keras.Input((2, 3))
    flat = layers.Flatten()(image)
    one, other = layers.Dense(2, name="one"), layers.Dense(2, name="other")
    model = keras.Model(image, [one(flat), other(flat)])
    fill(model)
    change(one.kernel, np.s_[1:])
    change(other.kernel, np.s_[:1], np.s_[2:])
    _, report = checked(model)
    assert [row.kept_inputs for row in report.rows] == [2, 2]


def test_behind_a_batch_normalization_entries_are_gathered_too():
    model = sequential(
        (2, 3), layers.BatchNormalization(), layers.Flatten(), layers.Dense(2)
    )
    change(model.layers[-1].kernel, np.s_[:4])
    assert checked(model)[1].rows[-1].kept_inputs == 2


@pytest.mark.core
def test_gathering_from_flattened_channels(tmp_path):
    """Channel 1 of 3 goes altogether, of the others 3 of 18 entries stay."""
    model = sequential(
        (3, 3, 1), layers.Conv2D(3, 1), layers.Flatten(), layers.Dense(2)
    )
    kept = [0, 5, 24]  # row, column, channel: (0, 0, 0), (0, 1, 2), (2, 2, 0)
    dead = np.setdiff1d(np.arange(27), kept)
    change(model.layers[-1].kernel, np.s_[dead])
    smaller, report = checked(model)
    assert [row.kept_outputs for row in report.rows] == [2, 2]
    assert report.rows[-1].kept_inputs == 3
    assert smaller.layers[1].filters == 2
    smaller.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_equal_predictions(model, loaded, random_inputs(4, 3, 3, 1))
    # As whole channels only, if entries are not to be gathered.
    _, report = checked(model, gather_inputs=False)
    assert report.rows[-1].kept_inputs == 18


def test_softmax_in_a_hidden_layer_needs_all_of_its_units():
    model = sequential((4,), layers.Dense(3, "softmax"), layers.Dense(2))
    change(model.layers[0].kernel, np.s_[:, 0])
    change(model.layers[1].kernel, np.s_[0])
    _, report = checked(model)
    assert report.is_unchanged
    assert "mixes channels" in report.kept_whole[model.layers[0].name]


@pytest.mark.core
def test_activations_of_the_user():
    """One that works entry by entry is like Keras' own; no other is."""

    def shifted(x):
        return keras.ops.tanh(x) + 0.25

    def centred(x):
        return x - keras.ops.mean(x, axis=-1, keepdims=True)

    def scaled(x):
        return x / (0.1 + keras.ops.max(keras.ops.abs(x)))

    for activation, kept in ((shifted, 3), (centred, 4), (scaled, 4)):
        model = sequential((3,), layers.Dense(4, activation), layers.Dense(2))
        change(model.layers[0].kernel, np.s_[:, 1])
        smaller, report = checked(model)
        assert report.rows[0].kept_outputs == kept
        assert smaller.layers[0].activation is activation or kept == 4


@pytest.mark.parametrize("equation", ["abc,cd->abd", "...c,cd->...d"])
@pytest.mark.parametrize("bias_axes", ["d", None])
def test_einsum_dense(equation, bias_axes):
    options = {"equation": equation, "bias_axes": bias_axes}
    shapes = [5, 4] if "..." in equation else [(2, 5), (2, 4)]
    model = sequential(
        (2, 3),
        layers.EinsumDense(
            output_shape=shapes[0], activation="sigmoid", **options
        ),
        layers.EinsumDense(output_shape=shapes[1], **options, name="last"),
    )
    change(model.layers[0].kernel, np.s_[:, :2])
    smaller, report = checked(model)
    assert report.rows[0].kept_outputs == 3
    assert smaller.get_layer("last").bias is not None


def test_other_equations_are_kept_whole():
    model = sequential(
        (2, 3), layers.EinsumDense("abc,cde->abde", (2, 4, 5)), layers.Dense(2)
    )
    change(model.layers[0].kernel, np.s_[:, :, 1])
    _, report = checked(model)
    assert report.is_unchanged
    assert "equation" in report.kept_whole[model.layers[0].name]


def constant_channel(padding, size, bias=0.0, activation="sigmoid"):
    """A convolution whose channel 1 is sigmoid(bias), and one that reads it."""
    model = sequential(
        (5, 6, 2),
        layers.Conv2D(3, 3, activation=activation, padding=padding),
        layers.Conv2D(4, size, padding=padding, use_bias=False, name="reader"),
    )
    change(model.layers[0].kernel, np.s_[..., 1])
    change(model.layers[0].bias, 1, value=bias)
    return model


@pytest.mark.core
@pytest.mark.parametrize(
    ("padding", "size", "activation", "read", "gains"),
    [
        ("valid", 2, "sigmoid", 2, True),  # Goes to the next bias.
        ("same", 2, "sigmoid", 3, False),  # Not the same at the border.
        ("same", 1, "sigmoid", 2, True),  # Sees no border.
        ("same", 2, "relu", 2, False),  # Zero, as the border is.
    ],
)
def test_constant_channels(padding, size, activation, read, gains):
    model = constant_channel(padding, size, activation=activation)
    smaller, report = checked(model)
    assert report.rows[0].kept_outputs == 2
    assert report.rows[1].kept_inputs == read
    assert smaller.get_layer("reader").use_bias == gains


def test_padding_is_blamed_only_where_it_matters():
    """Oracle: by hand, which layer needs the constant channel."""
    for stack, reason in (
        # A kernel of size 1 has no border, and reads all else.
        (
            [layers.Conv2D(3, 1, padding="same"), layers.Softmax()],
            "nothing in it is dead",
        ),
        ([layers.MaxPooling2D(2, 1, "same"), layers.Softmax()], "'softmax'"),
        ([layers.ZeroPadding2D()], "an output past its inputs"),
        ([layers.AveragePooling2D(2, 1, "same")], "padding='same'"),
        ([layers.DepthwiseConv2D(2, padding="same")], "padding='same'"),
    ):
        model = sequential(
            (5, 6, 2), layers.Conv2D(3, 3, activation="sigmoid"), *stack
        )
        if reason != "nothing in it is dead":
            change(model.layers[0].kernel, np.s_[..., 1])
        stack[-1].name = "softmax"
        _, report = checked(model)
        assert reason in report.kept_whole[model.layers[0].name]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kind", ["", "Transpose"])
def test_convolutions_of_all_ranks(rank, kind):
    """Channel 0 is dead, channel 1 not read; the layer in front as well."""
    cls = getattr(layers, f"Conv{rank}D{kind}")
    model = sequential(
        (3,) * rank + (2,),
        cls(4, 2, strides=2, activation="relu"),
        cls(3, 1, padding="same"),
    )
    inputs, outputs = (-2, -1) if not kind else (-1, -2)
    first, second = (to_float64(x.kernel) for x in model.layers)
    np.moveaxis(first, outputs, 0)[0] = 0.0
    np.moveaxis(second, inputs, 0)[1] = 0.0
    model.layers[0].kernel.assign(first)
    model.layers[1].kernel.assign(second)
    change(model.layers[0].bias, 0, value=-0.5)  # relu makes it 0.
    assert checked(model)[1].rows[0].kept_outputs == 2


@pytest.mark.core
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_separable_convolution(padding):
    """Input channel 0: no depthwise; 1: no pointwise; 2: a constant."""
    model = sequential(
        (5, 5, 3),
        layers.Conv2D(4, 1, activation="sigmoid"),
        layers.SeparableConv2D(
            4, 3, depth_multiplier=2, padding=padding, activation="relu"
        ),
        layers.Conv2D(2, 1),
    )
    _, separable, last = model.layers
    change(separable.depthwise_kernel, np.s_[:, :, 0])
    change(separable.pointwise_kernel, np.s_[..., 2:4, :])
    change(model.layers[0].kernel, np.s_[..., 2])
    change(last.kernel, np.s_[..., 1, :])
    _, report = checked(model)
    assert report.rows[0].kept_outputs == (1 if padding == "valid" else 2)
    assert report.rows[1].kept_outputs == 3


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_depthwise_convolution(padding):
    """Channel 0 is a constant; of channel 1 nothing is read, of 2 half."""
    model = sequential(
        (5, 5, 2),
        layers.Conv2D(4, 1, activation="sigmoid"),
        layers.DepthwiseConv2D(
            3, depth_multiplier=2, padding=padding, activation="relu"
        ),
        layers.Conv2D(2, 1),
    )
    change(model.layers[0].kernel, np.s_[..., 0])
    change(model.layers[2].kernel, np.s_[..., 2:5, :])
    _, report = checked(model)
    kept = 2 if padding == "valid" else 3
    assert report.rows[0].kept_outputs == kept
    assert report.rows[1].kept_outputs == 2 * kept
    # A kernel of zeros makes constants of any input.
    change(model.layers[1].kernel, np.s_[:, :, 3])
    _, report = checked(model)
    assert report.rows[0].kept_outputs == kept - 1


@pytest.mark.core
@pytest.mark.parametrize("groups", [2, 6])
def test_groups_of_a_convolution_go_as_a_whole(groups):
    """Oracle: by hand. Of the first group nothing is read, of the second half.

    The third is constant, which the next bias takes up.
    """
    model = sequential(
        (5, 5, 2),
        layers.Conv2D(6, 1, name="before"),
        layers.Conv2D(12, 3, groups=groups, activation="tanh", name="grouped"),
        layers.Conv2D(2, 1, name="after"),
    )
    size = 12 // groups
    change(model.get_layer("after").kernel, np.s_[..., :size, :])
    half = np.s_[..., size : size + size // 2, :]
    change(model.get_layer("after").kernel, half)
    gone = 1
    if groups > 2:
        third = np.s_[..., 2 * size : 3 * size]
        change(model.get_layer("grouped").kernel, third)
        gone = 2
    smaller, report = checked(model)
    rows = {row.name: row for row in report.rows}
    kept = (groups - gone) * 6 // groups, (groups - gone) * size
    assert rows["before"].kept_outputs == kept[0]
    assert rows["grouped"].kept_outputs == kept[1]
    assert smaller.get_layer("grouped").groups == groups - gone
    assert smaller.get_layer("grouped").kernel.shape[-2] == 6 // groups


def test_groups_see_borders():
    """A constant is not the same behind a border, and zero is."""
    model = sequential(
        (5, 5, 2),
        layers.Conv2D(4, 1, activation="relu", name="before"),
        layers.Conv2D(4, 3, padding="same", groups=2, name="grouped"),
        layers.Conv2D(2, 1),
    )
    change(model.layers[0].kernel, np.s_[..., :2])
    change(model.layers[0].bias, np.s_[:2], value=0.5)
    assert checked(model)[1].is_unchanged
    change(model.layers[0].bias, np.s_[:2], value=-0.5)
    assert checked(model)[1].rows[0].kept_outputs == 2


def test_lora_and_subclasses_are_kept_whole():
    class Doubled(layers.Dense):
        def call(self, inputs, training=None):
            return 2.0 * super().call(inputs)

    for cls in (layers.Dense, Doubled):
        model = sequential((3,), cls(4), layers.Dense(2))
        if cls is layers.Dense:
            model.layers[0].enable_lora(1)
        change(model.layers[0].variables[0], np.s_[:, 1])
        _, report = checked(model)
        assert report.is_unchanged
        words = "unknown: Doubled" if cls is Doubled else "LoRA"
        assert words in report.kept_whole[model.layers[0].name]


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.LeakyReLU(0.2),
        lambda: layers.ReLU(1.0),
        lambda: layers.ELU(),
        lambda: layers.Activation("tanh"),
    ],
)
def test_a_layer_as_activation_works_on_every_unit(make, recurrent):
    kind = layers.SimpleRNN if recurrent else layers.Dense
    model = sequential((3, 2), kind(4, activation=make()), layers.Dense(2))
    change(model.layers[0].weights[0], np.s_[:, :2])
    change(model.layers[1].kernel, np.s_[1:3])
    if recurrent:
        change(model.layers[0].weights[1], np.s_[1:3])
    _, report = checked(model)
    # Dense: two that are read by nobody, and one that is constant.
    assert report.rows[0].kept_outputs == (2 if recurrent else 1)


def test_a_layer_with_weights_as_activation_keeps_all_units():
    model = sequential(
        (4,), layers.Dense(4, activation=layers.PReLU()), layers.Dense(2)
    )
    change(model.layers[1].kernel, np.s_[1:3])
    _, report = checked(model)
    assert report.rows[0].kept_outputs == 4
    assert "mixes channels" in report.kept_whole[model.layers[0].name]
