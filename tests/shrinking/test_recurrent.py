"""Recurrent layers, embeddings and what is wrapped around layers."""

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
    predict,
    sequential,
    shrink,
    weights_of,
)

KINDS = {
    "simple": (layers.SimpleRNN, 1, 0, {}),
    "lstm": (layers.LSTM, 4, 2, {}),
    "gru": (layers.GRU, 3, 2, {}),
    "gru before": (layers.GRU, 3, 2, {"reset_after": False}),
}
UNITS = 5


def stack(name, **options):
    """A recurrent layer between two dense ones, and its cell."""
    cls, gates, candidate, extra = KINDS[name]
    layer = cls(UNITS, **{"return_sequences": True} | extra | options)
    model = sequential(
        (3, 2), layers.Dense(4, "sigmoid"), layer, layers.Dense(2)
    )
    return model, layer.cell, gates, candidate


def columns(candidate, *units):
    return np.s_[..., [candidate * UNITS + unit for unit in units]]


def stop(cell, candidate, *units, recurrent=True):
    """Units that nothing is let into: no candidate, whatever the gates do."""
    change(cell.kernel, columns(candidate, *units))
    if recurrent:
        change(cell.recurrent_kernel, columns(candidate, *units))
    if cell.bias is not None:
        change(cell.bias, columns(candidate, *units))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("use_bias", [True, False])
def test_units_without_a_candidate(name, use_bias):
    """By hand: units 0 and 3; unit 1 has a bias, which grows with time."""
    model, cell, _, candidate = stack(name, use_bias=use_bias)
    stop(cell, candidate, 0, 1, 3)
    if use_bias:
        change(cell.bias, columns(candidate, 1), value=0.5)
    _, report = checked(model)
    assert report.rows[1].kept_outputs == (3 if use_bias else 2)
    assert report.rows[2].kept_inputs == report.rows[1].kept_outputs


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.core if name == "gru" else ())
        for name in KINDS
    ],
)
def test_units_of_zero_may_feed_each_other(name):
    """Units 0 and 3 read each other alone; then 3 reads unit 1 as well."""
    model, cell, _, candidate = stack(name)
    stop(cell, candidate, 0, 3)
    (first,) = columns(candidate, 0)[1]
    (third,) = columns(candidate, 3)[1]
    change(cell.recurrent_kernel, (3, first), (0, third), value=0.5)
    assert checked(model)[1].rows[1].kept_outputs == 3
    change(cell.recurrent_kernel, (1, third), value=0.5)
    assert checked(model)[1].rows[1].kept_outputs == 5


def test_the_bias_of_what_a_gru_remembers():
    """Unit 0 lets in nothing but that bias, which its reset gate varies."""
    model, cell, _, candidate = stack("gru")
    stop(cell, candidate, 0)
    change(cell.bias, (1, candidate * UNITS), value=0.5)
    assert checked(model)[1].rows[1].kept_outputs == 5


def test_activations_that_are_not_zero_at_zero():
    model, cell, _, candidate = stack("lstm", activation="sigmoid")
    stop(cell, candidate, 0)
    assert checked(model)[1].rows[1].kept_outputs == 5


@pytest.mark.parametrize("name", KINDS)
def test_units_that_nobody_reads(name):
    """Unit 2 is read by itself alone, unit 1 by unit 0 as well."""
    model, cell, gates, _ = stack(name)
    change(model.layers[2].kernel, np.s_[1:3])
    own = [gate * UNITS + 2 for gate in range(gates)]
    others = [x for x in range(gates * UNITS) if x not in own]
    change(cell.recurrent_kernel, (2, others))
    smaller, report = checked(model)
    assert report.rows[1].kept_outputs == 4
    assert smaller.layers[1].units == 4


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("use_bias", [True, False])
def test_inputs(name, use_bias):
    """Feature 0 is constant, 1 is not read; a bias is gained if needed."""
    model, cell, _, _ = stack(name, use_bias=use_bias)
    change(model.layers[0].kernel, np.s_[:, 0])
    change(cell.kernel, np.s_[1])
    smaller, report = checked(model)
    assert report.rows[1].kept_inputs == 2
    assert smaller.layers[1].use_bias


@pytest.mark.parametrize("name", KINDS)
def test_gates_of_units_of_zero_read_nothing(name):
    """Unit 0 stays, as 'sine' reads it; its gates alone read feature 0."""
    inputs = keras.Input((3, 2))
    cls, gates, candidate, extra = KINDS[name]
    layer = cls(UNITS, **extra)
    hidden = layers.Dense(4, name="first")(inputs)
    model = keras.Model(inputs, keras.ops.sin(layer(hidden)))
    fill(model)
    stop(layer.cell, candidate, 0)
    rest = [x for x in range(gates * UNITS) if x % UNITS]
    change(layer.cell.kernel, (0, rest))
    _, report = checked(model)
    assert report.rows[0].kept_outputs == 3
    assert report.rows[1].kept_outputs == 5


@pytest.mark.core
def test_states_keep_their_width():
    """What starts from another state, or returns its own, keeps more."""
    inputs = keras.Input((3, 2))
    encoder = layers.LSTM(UNITS, return_state=True, name="encoder")
    _, *states = encoder(inputs)
    decoder = layers.LSTM(UNITS, name="decoder")
    decoded = decoder(inputs, initial_state=states)
    model = keras.Model(inputs, layers.Dense(2)(decoded))
    fill(model)
    for layer in (encoder, decoder):
        stop(layer.cell, 2, 0, 1)
    _, report = checked(model)
    assert [row.kept_outputs for row in report.rows] == [5, 5, 2]
    # Returned, but read by a layer that can do with less of them.
    model = keras.Model(inputs, layers.Dense(2)(states[1]))
    assert [x.kept_outputs for x in checked(model)[1].rows] == [3, 2]


@pytest.mark.core
def test_stateful_layers_keep_their_units():
    inputs = keras.Input(batch_shape=(4, 3, 2))
    layer = layers.GRU(UNITS, stateful=True)
    model = keras.Model(inputs, layers.Dense(2)(layer(inputs)))
    fill(model)
    stop(layer.cell, 2, 0)
    change(layer.cell.kernel, np.s_[0])
    smaller, report = shrink(model, gather_inputs=True)
    assert (report.rows[0].kept_inputs, report.rows[0].kept_outputs) == (1, 5)
    # The second batch starts from the state after the first.
    for _ in range(2):
        assert_equal_predictions(model, smaller, random_inputs(4, 3, 2))


MODES = [
    pytest.param("concat", marks=pytest.mark.core),
    *("sum", "ave", "mul", None),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_bidirectional(name, mode):
    """Forward units 0, 1 and 2 stay zero, backward 2 and 3.

    Both directions keep as many; what is not read of the merged units goes
    from both, and a product is zero where one of its factors is.
    """
    cls, _, candidate, extra = KINDS[name]
    inputs = keras.Input((3, 2))
    layer = layers.Bidirectional(
        cls(UNITS, return_sequences=True, **extra), merge_mode=mode
    )
    outputs = layer(inputs)
    if mode is None:
        outputs = layers.Concatenate()(outputs)
    model = keras.Model(inputs, layers.Dense(2)(outputs))
    fill(model)
    stop(layer.forward_layer.cell, candidate, 0, 1, 2)
    stop(layer.backward_layer.cell, candidate, 2, 3)
    smaller, _ = checked(model)
    new = smaller.layers[1]
    counts = [new.forward_layer.units, new.backward_layer.units]
    # Of a product only unit 4 is not zero, which reads all that are not zero
    # themselves: 3 forwards, 0 and 1 backwards.
    expected = {"concat": 3, "sum": 4, "ave": 4, "mul": 4, None: 3}[mode]
    assert counts == [expected] * 2


def test_directions_that_differ():
    """Another kind of layer backwards is more than the rule knows."""
    inputs = keras.Input((3, 2))
    layer = layers.Bidirectional(
        layers.LSTM(4), backward_layer=layers.GRU(4, go_backwards=True)
    )
    model = keras.Model(inputs, layers.Dense(2)(layer(inputs)))
    fill(model)
    stop(layer.forward_layer.cell, 2, 0)
    _, report = checked(model)
    assert report.is_unchanged
    assert "known type" in report.kept_whole[layer.name]


def embedded(words=40, columns=6, mask_zero=False):
    inputs = keras.Input((5,), dtype="int32")
    layer = layers.Embedding(words, columns, mask_zero=mask_zero, name="words")
    model = keras.Model(
        inputs, layers.Dense(2)(layers.LSTM(3, name="rnn")(layer(inputs)))
    )
    fill(model)
    return model, layer


def ids(words=40):
    generator = np.random.default_rng(2)
    found = generator.integers(0, words, (6, 5))
    found[:, :2] = [0, 1]
    return found


@pytest.mark.core
@pytest.mark.parametrize("mask_zero", [False, True])
def test_words_that_share_a_row(mask_zero):
    """Words 0 to 9 and 30 to 39 are zero; but 0 stands for "no word"."""
    model, layer = embedded(mask_zero=mask_zero)
    change(layer.embeddings, np.s_[:10], np.s_[30:])
    smaller, report = checked(model, ids())
    (row,) = [x for x in report.rows if x.name == "words"]
    assert row.kept_inputs == 21 + mask_zero
    assert row.kept_parameters == row.kept_inputs * 6 + 40
    assert smaller.get_layer("words").mask_zero == mask_zero
    # Sharing is undone where it costs more than it saves.
    change(layer.embeddings, np.s_[:10], value=np.arange(60).reshape(10, 6))
    change(
        layer.embeddings, np.s_[30:33], value=100 + np.arange(18).reshape(3, 6)
    )
    assert checked(model, ids())[1].rows[0].kept_inputs == 40


def test_columns():
    """Column 0 is the same for all words; column 1 is not read."""
    model, layer = embedded()
    change(layer.embeddings, np.s_[:, 0], value=0.5)
    change(model.get_layer("rnn").cell.kernel, np.s_[1])
    _, report = checked(model, ids())
    assert report.rows[0].kept_outputs == 4
    assert report.rows[1].kept_inputs == 4


def test_pretrained_embedding():
    """An initializer that holds the table does not come along."""
    table = np.random.default_rng(0).normal(size=(30, 4))
    table[:, 1] = 0.0
    inputs = keras.Input((5,), dtype="int32")
    layer = layers.Embedding(30, 4, keras.initializers.Constant(table))
    outputs = layers.Dense(2)(layers.Flatten()(layer(inputs)))
    model = keras.Model(inputs, outputs)
    smaller, report = checked(model, ids(30))
    assert report.rows[0].kept_outputs == 3
    np.testing.assert_allclose(
        to_float64(smaller.layers[1].embeddings), table[:, [0, 2, 3]], rtol=1e-6
    )


def test_an_embedding_that_is_used_twice():
    inputs = [keras.Input((5,), dtype="int32", name=name) for name in "ab"]
    shared = layers.Embedding(40, 6)
    first, second = (layers.Flatten()(shared(x)) for x in inputs)
    joined = layers.Subtract()([first, second])
    model = keras.Model(inputs, layers.Dense(2)(joined))
    fill(model)
    change(shared.embeddings, np.s_[5:35], np.s_[:, 1])
    _, report = checked(model, [ids(), ids()[::-1]])
    assert report.rows[0].kept_inputs == 11
    assert report.rows[0].kept_outputs == 5


def test_masking_reads_all_features():
    """A step is masked when all features are: none of them may go."""
    model = sequential(
        (4, 3), layers.Dense(5, "relu"), layers.Masking(), layers.GRU(3)
    )
    change(model.layers[0].kernel, np.s_[:, 1])
    change(model.layers[2].cell.kernel, np.s_[0])
    inputs = random_inputs(6, 4, 3)
    inputs[:, 2] = 0.0
    model.layers[0].bias.assign(np.zeros(5))
    _, report = checked(model, inputs)
    assert report.is_unchanged


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.Dense(3, "sigmoid"),
        lambda: layers.Conv2D(3, 2, activation="sigmoid"),
        layers.Flatten,
        layers.BatchNormalization,
        layers.MaxPooling2D,
        lambda: layers.PReLU(shared_axes=[1, 2]),
    ],
)
def test_time_distributed(layer):
    """Channels 0 and 1 of 4 go through the layer, one of them a constant."""
    model = sequential(
        (3, 4, 4, 2),
        layers.Dense(4, "sigmoid"),
        layers.TimeDistributed(layer(), name="steps"),
        layers.TimeDistributed(layers.Dense(5, use_bias=False)),
        layers.Dense(2),
    )
    change(model.layers[0].kernel, np.s_[:, 0])
    if model.layers[1].weights and len(model.layers[1].layer.weights) == 2:
        change(model.layers[1].layer.kernel, np.s_[..., 1, :])
        kept = 2
    else:
        size = model.layers[2].layer.kernel.shape[0]
        change(model.layers[2].layer.kernel, np.s_[np.arange(1, size, 4)])
        kept = 2
    _, report = checked(model)
    assert report.rows[0].kept_outputs == kept


def test_unknown_layers_in_time_distributed():
    model = sequential(
        (3, 4, 2),
        layers.Dense(4),
        layers.TimeDistributed(layers.LayerNormalization()),
        layers.Dense(2),
    )
    change(model.layers[0].kernel, np.s_[:, 0])
    _, report = checked(model)
    assert report.is_unchanged
    assert "LayerNorm" in report.kept_whole[model.layers[1].name]


@pytest.mark.core
def test_masks_still_work():
    """Oracle: the model; and words behind a mask change nothing."""
    model, layer = embedded(mask_zero=True)
    change(layer.embeddings, np.s_[20:], np.s_[:, 1])
    stop(model.get_layer("rnn").cell, 2, 0)
    smaller, report = checked(model, ids())
    assert report.kept_parameters < report.parameters
    words = ids()
    words[:, 3:] = 0
    shorter = predict(smaller, words)[0]
    words = np.roll(words, 1, axis=1)
    words[:, 0] = 0
    np.testing.assert_allclose(
        predict(smaller, words)[0], shorter, rtol=1e-5, atol=1e-6
    )
    assert weights_of(smaller, "rnn")[0].shape == (5, 12)
