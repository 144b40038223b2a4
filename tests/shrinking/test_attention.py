from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_vd
from keras_vd.rules.costs import count_macs
from tests.helpers.arrays import random_inputs, to_float64
from tests.helpers.attention import has, needs
from tests.helpers.comparing import (
    assert_equal_predictions,
    change,
    checked,
    fill,
)
from tests.helpers.models import run_python

SIZES = ("num_heads", "key_dim", "value_dim", "output_shape")
GROUPED_SIZES = ("num_query_heads", "num_key_value_heads", "head_dim")


def attending(layer, shape=(5, 6), then=None, **uses):
    """Self-attention, or what `then` makes of it; random, without zeros."""
    inputs = keras.Input(shape)
    outputs = layer(inputs, inputs, **uses)
    model = keras.Model(inputs, outputs if then is None else then(outputs))
    fill(model)
    return model


def multi_head(**options):
    # With dropout, keys and values may differ in size: no attention is fused.
    defaults = {"num_heads": 4, "key_dim": 3, "dropout": 0.5}
    return layers.MultiHeadAttention(
        **{**defaults, "name": "attention", **options}
    )


def sizes(model, names=SIZES):
    config = model.get_layer("attention").get_config()
    return tuple(config[name] for name in names)


def kernel_and_bias(projection, index):
    """Zeros at an index `(head, dims)` of a projection."""
    change(projection.kernel, (slice(None), *index))
    if projection.bias is not None:
        change(projection.bias, index)


@pytest.mark.core
@pytest.mark.parametrize("part", ["value", "output"])
def test_heads_go(part):
    """Oracle: the model before, and sizes worked out by hand."""
    layer = multi_head(value_dim=2)
    model = attending(layer)
    if part == "value":
        kernel_and_bias(layer.value_dense, (1, slice(None)))
        kernel_and_bias(layer.value_dense, (3, slice(None)))
    else:
        change(layer.output_dense.kernel, (1,), (3,))
    smaller, report = checked(model)
    assert sizes(smaller) == (2, 3, 2, (6,))
    parameters = 2 * 2 * (6 * 3 + 3) + 2 * (6 * 2 + 2) + 2 * 2 * 6 + 6
    assert report.kept_parameters == parameters
    assert not report.is_unchanged


@pytest.mark.core
def test_dimensions_go_where_every_head_has_some_to_spare():
    """Oracle: the model before; the most that a head has left is what stays.

    Other dimensions die in each head; the scale of the scores is that of the
    new size.
    """
    layer = multi_head(key_dim=5, value_dim=4)
    model = attending(layer)
    for head, dims in enumerate([(0, 1), (1, 4), (2, 3, 4), (0, 4)]):
        projection = layer.query_dense if head % 2 else layer.key_dense
        kernel_and_bias(projection, (head, list(dims)))
    for head, dim in enumerate([0, 3, 2, 1]):
        kernel_and_bias(layer.value_dense, (head, dim))
    smaller, report = checked(model)
    assert sizes(smaller) == (4, 3, 3, (6,))
    assert report.rows[0].kept_inputs == report.rows[0].inputs == 6


@pytest.mark.core
def test_fused_attention_stays_one_for_jax():
    """Oracle: the model before; keys and values of one size stay so."""
    layer = multi_head(dropout=0.0)
    model = attending(layer)
    kernel_and_bias(layer.key_dense, (slice(None), [0, 2]))
    kernel_and_bias(layer.value_dense, (slice(None), 1))
    smaller, _ = checked(model)
    assert sizes(smaller)[1:3] == (2, 2)


@pytest.mark.core
def test_keys_that_are_all_the_same_have_no_effect():
    """Oracle: the model before; a softmax knows differences only."""
    layer = multi_head()
    model = attending(layer)
    change(layer.key_dense.kernel, (slice(None), slice(None), 1))
    assert to_float64(layer.key_dense.bias).all()
    smaller, _ = checked(model)
    assert sizes(smaller)[:2] == (4, 2)


@pytest.mark.core
def test_queries_that_are_all_the_same_have_an_effect():
    """Oracle: the model before."""
    layer = multi_head()
    model = attending(layer)
    change(layer.query_dense.kernel, (slice(None), slice(None), 1))
    assert to_float64(layer.query_dense.bias).all()
    _, report = checked(model)
    assert report.is_unchanged


@pytest.mark.core
@pytest.mark.parametrize(
    "mask",
    [
        *("none", "causal", "padding"),
        pytest.param("window", marks=needs("sliding_window")),
    ],
)
def test_values_that_are_all_the_same_go_into_the_output_bias(mask):
    """Oracle: the model before.

    Where nothing may be attended to, Keras adds nothing, or the mean of all.
    """
    layer = multi_head(**{"sliding_window": 2} if mask == "window" else {})
    inputs, ends = keras.Input((5, 6)), []
    uses = {"use_causal_mask": mask == "causal"}
    if mask == "padding":
        ends = [keras.Input((5, 5), dtype="bool")]
        uses["attention_mask"] = ends[0]
    model = keras.Model([inputs, *ends], layer(inputs, inputs, **uses))
    fill(model)
    change(layer.value_dense.kernel, (slice(None), 1))
    allowed = np.random.default_rng(0).uniform(size=(4, 5, 5)) < 0.6
    allowed[0, 1] = False
    arrays = [random_inputs(4, 5, 6), allowed]
    smaller, _ = checked(model, arrays[: 1 + len(ends)])
    is_known = mask in ("none", "causal")
    assert sizes(smaller)[0] == 4 - is_known
    if is_known:
        (before, after) = (
            to_float64(x.get_layer("attention").output_dense.bias)
            for x in (model, smaller)
        )
        value = to_float64(layer.value_dense.bias)[1]
        share = value @ to_float64(layer.output_dense.kernel)[1]
        np.testing.assert_allclose(after, before + share, rtol=1e-5)


@pytest.mark.core
@pytest.mark.filterwarnings("ignore:.*was passed an input with a mask")
@pytest.mark.parametrize("is_nested", [False, True])
def test_a_mask_that_no_argument_shows(is_nested):
    """Oracle: the model before, on words of padding alone."""
    layer = multi_head()
    ids = keras.Input((5,), dtype="int32")
    words = layers.Embedding(9, 6, mask_zero=True)(ids)
    if is_nested:
        inside = keras.Input((5, 6))
        words = keras.Model(inside, layers.Dense(6)(inside))(words)
    model = keras.Model(ids, layer(words, words))
    fill(model)
    change(layer.value_dense.kernel, (slice(None), 1))
    padded = np.array([[0, 0, 0, 0, 0], [3, 4, 0, 0, 0]])
    smaller, _ = checked(model, padded)
    assert sizes(smaller)[0] == 4
    kernel_and_bias(layer.value_dense, (1, slice(None)))
    smaller, _ = checked(model, padded)
    assert sizes(smaller)[0] == 3


@pytest.mark.core
def test_inputs_that_nobody_reads_and_outputs_that_nobody_needs():
    """Oracle: the model before; the neighbours lose their units as well."""
    layer = multi_head(value_dim=2)
    after = layers.Dense(2, name="after")
    inputs = keras.Input((5, 6))
    x = layers.Dense(6, "tanh", name="before")(inputs)
    model = keras.Model(inputs, after(layer(x, x)))
    fill(model)
    for one in (layer.query_dense, layer.key_dense, layer.value_dense):
        change(one.kernel, (2,))
    change(layer.query_dense.kernel, (4,))
    change(after.kernel, (0,), (5,))
    smaller, report = checked(model)
    assert smaller.get_layer("before").units == 5
    assert sizes(smaller) == (4, 3, 2, (4,))
    rows = {row.name: row for row in report.rows}
    row = rows["attention"]
    assert (row.inputs, row.kept_inputs) == (6, 5)
    assert (row.outputs, row.kept_outputs) == (6, 4)


@pytest.mark.core
def test_constant_inputs_go_into_biases():
    """Oracle: the model before; without biases they stay, unless zero."""
    for use_bias in (True, False):
        layer = multi_head(use_bias=use_bias)
        inputs = keras.Input((5, 6))
        before = layers.Dense(6, name="before")
        x = before(inputs)
        model = keras.Model(inputs, layer(x, x))
        fill(model)
        change(before.kernel, (slice(None), [1, 3]))
        change(before.bias, (3,))
        smaller, report = checked(model)
        assert smaller.get_layer("before").units == (4 if use_bias else 5)
        assert report.kept_parameters < report.parameters


@pytest.mark.core
def test_cross_attention():
    """Oracle: the model before; each source loses what is not read of it."""
    layer = multi_head(value_dim=2, output_shape=3)
    ends = [keras.Input((n, 4)) for n in (5, 3, 3)]
    named = ("query", "value", "key")
    sources = [
        layers.Dense(4, name=name)(end)
        for name, end in zip(named, ends, strict=True)
    ]
    query, value, key = sources
    model = keras.Model(ends, layer(query, value, key=key))
    fill(model)
    change(layer.query_dense.kernel, (0,))
    change(layer.value_dense.kernel, (1,), (2,))
    change(layer.key_dense.kernel, (0,), (1,), (3,))
    change(layer.output_dense.kernel, (slice(None), 1))
    smaller, _ = checked(model)
    kept = [smaller.get_layer(name).units for name in named]
    assert kept == [3, 2, 1]
    assert sizes(smaller) == (4, 3, 2, (3,))


@pytest.mark.parametrize("dims", [1, 3])
def test_as_many_steps_as_heads(dims):
    """Keras on TensorFlow takes biases `(3, 1)` for those of 3 steps."""
    inputs = keras.Input((3, 4))
    before = layers.Dense(4, name="before")
    layer = layers.MultiHeadAttention(3, dims, name="attention")
    x = before(inputs)
    model = keras.Model(inputs, layer(x, x))
    fill(model)
    change(before.kernel, (slice(None), [1, 3]))
    if dims == 1:
        for part in (layer.query_dense, layer.key_dense, layer.value_dense):
            part.bias.assign(np.zeros((3, 1)))
    for part in (layer.query_dense, layer.key_dense):
        change(part.kernel, (slice(None), slice(None), slice(1, None)))
        change(part.bias, (slice(None), slice(1, None)))
    change(layer.output_dense.kernel, (slice(None), slice(1, None)))
    smaller, _ = checked(model)
    assert sizes(smaller)[:3] == (3, min(dims, 2), min(dims, 2))


@pytest.mark.core
@pytest.mark.parametrize("reader", ["dense", "add", "norm"])
def test_all_heads_may_go(reader):
    """Oracle: the model before; its output is the bias."""
    layer = multi_head()
    inputs = keras.Input((5, 6))
    made = layer(inputs, inputs)
    made = {
        "dense": lambda: layers.Dense(2)(made),
        "add": lambda: layers.Add()([inputs, made]),
        "norm": lambda: layers.LayerNormalization(epsilon=0.1)(made),
    }[reader]()
    model = keras.Model(inputs, made)
    fill(model)
    change(layer.output_dense.kernel, ())
    if reader == "add":
        change(layer.output_dense.bias, ())
    smaller, report = checked(model)
    names = [x.name for x in smaller.layers]
    if reader == "norm":
        assert sizes(smaller) == (1, 1, 1, (6,))
    elif reader == "dense":
        # Something has to say how many steps there are.
        assert report.kept_parameters < 30
    else:
        assert "attention" not in names


@pytest.mark.core
def test_shared_attention():
    """Oracle: the model before; all uses keep the same."""
    layer = multi_head()
    ends = [keras.Input((5, 6)) for _ in range(2)]
    model = keras.Model(ends, [layer(end, end) for end in ends])
    fill(model)
    kernel_and_bias(layer.value_dense, (slice(1, 3), slice(None)))
    smaller, _ = checked(model)
    assert sizes(smaller)[0] == 2


@pytest.mark.core
def test_images():
    """Oracle: the model before; attention along two axes."""
    layer = multi_head(attention_axes=(1, 2))
    model = attending(layer, (2, 3, 4))
    kernel_and_bias(layer.value_dense, (2, slice(None)))
    kernel_and_bias(layer.key_dense, (slice(None), 0))
    smaller, report = checked(model)
    assert sizes(smaller)[:3] == (3, 2, 3)
    projections = 6 * (4 * 2 * 2 + 4 * 3 + 3 * 4) * 3
    assert report.kept_macs == projections + 6 * 6 * 3 * (2 + 3)


@needs("use_gate")
def test_a_gate():
    """Oracle: the model before; a gate goes with the values behind it."""
    layer = multi_head(use_gate=True, value_dim=3)
    model = attending(layer)
    gate = layer._gate_dense
    # Constant: the values, the values and their gate, the gate alone.
    change(layer.value_dense.kernel, (slice(None), [0, 1]))
    change(gate.kernel, (slice(None), [1, 2]))
    kernel_and_bias(layer.value_dense, (3, 0))
    smaller, _ = checked(model)
    assert sizes(smaller) == (3, 3, 3, (6,))


@pytest.mark.core
def test_grouped_query_attention():
    """Oracle: the model before; as many heads stay in every group."""
    layer = layers.GroupQueryAttention(4, 6, 2, name="attention")
    model = attending(layer)
    change(layer._output_dense.kernel, (0,), (5,))
    # A key is dead if no query of its group meets it.
    kernel_and_bias(layer._query_dense, ([1, 2], 0))
    kernel_and_bias(layer._key_dense, (1, 3))
    kernel_and_bias(layer._value_dense, (slice(None), 2))
    smaller, report = checked(model)
    assert sizes(smaller, GROUPED_SIZES) == (4, 2, 3)
    assert report.rows[0].kept_outputs == 6
    kernel_and_bias(layer._value_dense, (0, slice(None)))
    smaller, _ = checked(model)
    assert sizes(smaller, GROUPED_SIZES) == (2, 1, 3)


@needs("use_gate")
def test_a_value_that_is_constant_behind_some_gates_alone():
    """Oracle: the model before; one head has it in the bias, one as it is."""
    layer = layers.GroupQueryAttention(3, 2, 1, use_gate=True, name="attention")
    model = attending(layer)
    change(layer._value_dense.kernel, (slice(None), slice(None), [0, 1]))
    change(layer._gate_dense.kernel, (slice(None), 0, 0))
    change(layer._gate_dense.kernel, (slice(None), slice(None), 1))
    kernel_and_bias(layer._key_dense, (0, 1))
    smaller, _ = checked(model)
    assert sizes(smaller, GROUPED_SIZES) == (2, 1, 2)


REFUSED = {
    "it returns its attention scores": lambda x: multi_head()(
        x, x, return_attention_scores=True
    ),
    "its mask has an axis of heads": lambda x: multi_head()(
        x, x, attention_mask=ops.ones((1, 4, 5, 5), "bool")
    ),
    "its outputs have several axes of channels": lambda x: multi_head(
        output_shape=(2, 3)
    )(x, x),
    "it is called with `training=True`": lambda x: multi_head()(
        x, x, training=True
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_kept_whole(reason):
    """Oracle: by hand, and the model before."""
    inputs = keras.Input((5, 6))
    model = keras.Model(inputs, REFUSED[reason](inputs))
    fill(model)
    layer = model.get_layer("attention")
    kernel_and_bias(layer.value_dense, (1, slice(None)))
    _, report = checked(model)
    assert report.kept_whole["attention"] == reason
    assert report.is_unchanged


def transformer(make=layers.MultiHeadAttention, dense=layers.Dense, **options):
    """Two blocks of attention and a feed-forward pair."""
    x = inputs = keras.Input((5, 8))
    for block in range(2):
        y = layers.LayerNormalization(epsilon=0.1, name=f"first_{block}")(x)
        layer = make(4, 3, name=f"attention_{block}", **options)
        x = layers.Add()([x, layer(y, y)])
        y = layers.LayerNormalization(epsilon=0.1, name=f"second_{block}")(x)
        y = dense(12, "relu", name=f"up_{block}")(y)
        x = layers.Add()([x, dense(8, name=f"down_{block}")(y)])
    return keras.Model(inputs, x)


@pytest.mark.core
def test_transformer():
    """Oracle: the model before; a norm needs all channels."""
    model = transformer()
    fill(model)
    for block in range(2):
        layer = model.get_layer(f"attention_{block}")
        kernel_and_bias(layer.value_dense, (block, slice(None)))
        change(model.get_layer(f"up_{block}").kernel, (slice(None), [0, 3, 4]))
        change(model.get_layer(f"down_{block}").kernel, (7,))
    smaller, report = checked(model)
    for block in range(2):
        attention = smaller.get_layer(f"attention_{block}")
        assert attention.num_heads == 3
        assert smaller.get_layer(f"up_{block}").units == 8
        reason = report.kept_whole[f"first_{block}"]
        assert reason == "it normalizes over all of its channels"


SERVE = """
import sys
import numpy as np
import tensorflow as tf

loaded = tf.saved_model.load(sys.argv[1])
inputs = np.load(sys.argv[2])
np.save(sys.argv[3], loaded.serve(tf.constant(inputs)).numpy())
"""


@pytest.mark.integration
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="One backend is enough for the export.",
)
def test_from_a_variational_model_to_a_served_one(tmp_path):
    """Oracle: the variational model's predictions."""
    model = transformer(
        keras_vd.layers.VDMultiHeadAttention,
        keras_vd.layers.VDDense,
        groups=(),
    )
    fill(model)
    for posterior in keras_vd.variational_weights(model):
        posterior.log_sigma2.assign(np.full(posterior.theta.shape, -12.0))
    for block in range(2):
        value = model.get_layer(f"attention_{block}").value_dense
        level = to_float64(value.kernel_posterior.log_sigma2)
        level[:, 1:3] = 9.0
        value.kernel_posterior.log_sigma2.assign(level)
    keras_vd.prune(model)
    plain = keras_vd.to_deterministic(model)
    inputs = random_inputs(3, 5, 8)
    smaller, report = checked(plain, inputs)
    assert smaller.get_layer("attention_1").num_heads == 2
    assert report.kept_macs < report.macs
    assert_equal_predictions(model, smaller, inputs)
    smaller.export(tmp_path / "model", verbose=False)
    np.save(tmp_path / "inputs.npy", inputs)
    paths = ("model", "inputs.npy", "outputs.npy")
    result = run_python(SERVE, *(tmp_path / name for name in paths))
    assert result.returncode == 0, result.stderr
    expected = to_float64(model(inputs))
    np.testing.assert_allclose(
        np.load(tmp_path / "outputs.npy"), expected, rtol=1e-4, atol=1e-4
    )


def test_macs():
    """Oracle: by hand; projections, scores and weighted sums."""
    assert count_macs(attending(multi_head(value_dim=2))) == (
        5 * 4 * 6 * (3 + 3 + 2 + 2) + 5 * 5 * 4 * (3 + 2)
    )
    if has("use_gate"):
        gated = multi_head(value_dim=2, use_gate=True)
        assert count_macs(attending(gated)) == (
            5 * 4 * 6 * (3 + 3 + 2 + 2 + 2) + 5 * 5 * 4 * (3 + 2)
        )
    query, value = keras.Input((5, 6)), keras.Input((3, 2))
    cross = keras.Model([query, value], multi_head()(query, value))
    assert count_macs(cross) == (
        5 * 4 * 6 * (3 + 3) + 3 * 4 * 2 * (3 + 3) + 5 * 3 * 4 * (3 + 3)
    )
    rows = attending(multi_head(attention_axes=(2,)), (2, 5, 6))
    assert count_macs(rows) == 2 * (
        5 * 4 * 6 * (3 + 3 + 3 + 3) + 5 * 5 * 4 * (3 + 3)
    )
    grouped = attending(layers.GroupQueryAttention(3, 4, 2))
    assert count_macs(grouped) == (
        5 * 6 * 3 * (4 + 2 + 2 + 4) + 5 * 5 * 4 * (3 + 3)
    )
    assert count_macs(attending(multi_head(), (None, 6))) is None
