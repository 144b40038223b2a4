"""`shrink` as a whole: what goes in, what comes out, what it says."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import keras_vd
from keras_vd.rules.costs import count_macs
from tests.helpers.arrays import random_inputs, to_float64
from tests.helpers.comparing import (
    assert_equal_predictions,
    change,
    checked,
    fill,
    sequential,
    shrink,
    weights_of,
)
from tests.helpers.models import mlp, run_python, set_kept


def half_dead(*shape, units=6):
    """A dense network with half of its first units dead."""
    model = sequential(
        shape,
        layers.Dense(units, "sigmoid", name="first"),
        layers.Dense(3, "relu", name="second"),
        layers.Dense(2, name="third"),
    )
    change(model.get_layer("first").kernel, np.s_[:, : units // 2])
    return model


def convolutional():
    model = sequential(
        (6, 6, 2),
        layers.Conv2D(4, 3, use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(3),
    )
    change(model.layers[0].kernel, np.s_[..., :2])
    return model


def words():
    inputs = keras.Input((4,), dtype="int32", name="ids")
    hidden = layers.Embedding(30, 6, mask_zero=True)(inputs)
    hidden = layers.Bidirectional(layers.LSTM(4))(hidden)
    model = keras.Model({"ids": inputs}, {"out": layers.Dense(2)(hidden)})
    fill(model)
    change(model.layers[1].embeddings, np.s_[10:], np.s_[:, 0])
    return model


def gathered():
    model = half_dead(8)
    change(model.layers[0].kernel, np.s_[:5])
    return model


MODELS = {
    "dense": (lambda: half_dead(5), random_inputs(4, 5)),
    "convolutional": (convolutional, random_inputs(4, 6, 6, 2)),
    "words": (words, {"ids": np.arange(12).reshape(3, 4) * 2}),
    "gathered": (gathered, random_inputs(4, 8)),
}


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("name", MODELS)
def test_round_trip(name, tmp_path):
    """Oracle: the very numbers of the model that was saved."""
    build, inputs = MODELS[name]
    model = build()
    smaller, report = checked(model, inputs)
    assert report.kept_parameters < report.parameters
    smaller.save(tmp_path / "smaller.keras")
    with keras.saving.custom_object_scope({}):
        loaded = keras.saving.load_model(tmp_path / "smaller.keras")
    assert_equal_predictions(smaller, loaded, inputs, rtol=1e-7)
    assert "keras_vd" not in smaller.to_json()


@pytest.mark.integration
@pytest.mark.skipif(
    keras.backend.backend() == "torch",
    reason="Keras exports no SavedModel on torch.",
)
def test_exported_models_are_served_by_tensorflow_alone(tmp_path):
    """Oracle: the model before it shrank."""
    for name, (build, inputs) in MODELS.items():
        model = build()
        keras_vd.shrink(model, verbose=0).export(tmp_path / name, verbose=False)
        inputs = inputs["ids"] if name == "words" else inputs
        np.save(tmp_path / f"{name}_inputs.npy", inputs)
    code = """
import sys
sys.modules.update({"keras": None, "keras_vd": None})
import numpy as np, tensorflow as tf
for name in sys.argv[2:]:
    path = f"{sys.argv[1]}/{name}"
    loaded = tf.saved_model.load(path)
    inputs = tf.constant(np.load(path + "_inputs.npy"))
    if name == "words":
        outputs = loaded.serve({"ids": tf.cast(inputs, tf.int32)})["out"]
    else:
        outputs = loaded.serve(inputs)
    np.save(path + "_outputs.npy", outputs.numpy())
"""
    result = run_python(code, tmp_path, *MODELS)
    assert result.returncode == 0, result.stderr
    for name, (build, inputs) in MODELS.items():
        (expected,) = (
            to_float64(x) for x in keras.tree.flatten(build()(inputs))
        )
        found = np.load(tmp_path / f"{name}_outputs.npy")
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.core
def test_interface_of_the_model_stays():
    """Names, shapes, types and structure, of inputs and outputs."""
    a = keras.Input((4,), name="a")
    b = keras.Input((3,), name="b", dtype="float16")
    hidden = layers.Dense(5, "relu", name="hidden")(a)
    joined = layers.Concatenate()([hidden, b])
    outputs = {"x": layers.Dense(2, name="x")(joined), "y": (hidden,)}
    model = keras.Model({"b": b, "a": a}, outputs, name="mine")
    fill(model)
    change(model.get_layer("x").kernel, np.s_[:2], np.s_[5:])
    inputs = {"a": random_inputs(4, 4), "b": random_inputs(4, 3)}
    smaller, _ = checked(model, inputs)
    assert smaller.name == "mine"
    assert smaller.input_shape == model.input_shape
    assert smaller.output_shape == model.output_shape
    assert smaller.output_names == model.output_names
    assert [x.dtype for x in smaller.inputs] == [x.dtype for x in model.inputs]
    assert [x.name for x in smaller.inputs] == [x.name for x in model.inputs]
    found, expected = smaller(inputs), model(inputs)
    assert set(found) == set(expected)
    assert isinstance(found["y"], type(expected["y"]))


@pytest.mark.core
def test_settings_of_layers_stay():
    model = sequential(
        (4,),
        layers.Dense(
            6,
            "tanh",
            kernel_regularizer=keras.regularizers.L2(0.5),
            bias_constraint=keras.constraints.NonNeg(),
            kernel_initializer=keras.initializers.Orthogonal(seed=3),
            dtype="mixed_bfloat16",
            name="first",
        ),
        layers.Dense(2, trainable=False, name="second"),
    )
    change(model.layers[0].kernel, np.s_[:, :3])
    change(model.layers[0].bias, np.s_[:3])
    smaller, report = shrink(model)
    assert report.rows[0].kept_outputs == 3
    for new, old in zip(smaller.layers, model.layers, strict=True):
        differing = {"units", "build_config"}
        configs = [
            {k: v for k, v in layer.get_config().items() if k not in differing}
            for layer in (new, old)
        ]
        assert configs[0] == configs[1]
        assert [x.dtype for x in new.weights] == [x.dtype for x in old.weights]
    assert not smaller.layers[1].trainable_weights


@pytest.mark.core
def test_nested_models_are_written_out():
    """A frozen Sequential model in a Functional one, called once."""
    inner = half_dead(5)
    inner.trainable = False
    inputs = keras.Input((4,))
    hidden = layers.Dense(5, name="first")(inputs)
    outputs = layers.Dense(2, name="last")(inner(hidden, training=False))
    model = keras.Model(inputs, outputs)
    fill(model)
    change(inner.get_layer("first").kernel, np.s_[:, 1:], np.s_[0])
    change(model.get_layer("last").kernel, np.s_[0])
    smaller, report = checked(model)
    by_name = {row.name: row for row in report.rows}
    assert by_name["first"].kept_outputs == 4
    prefix = f"{inner.name}/"
    assert by_name[prefix + "first"].kept_outputs == 1
    assert by_name[prefix + "third"].kept_outputs == 1
    names = [layer.name for layer in smaller.layers[1:]]
    assert names == ["first", f"{inner.name}_first", "second", "third", "last"]
    assert not smaller.get_layer("third").trainable
    assert smaller.get_layer("last").trainable


@pytest.mark.core
def test_shared_layers_and_models():
    """What is constant in one use may be something else in another."""
    inner = sequential(
        (3,), layers.Dense(4, "relu", name="a"), layers.Dense(3, name="b")
    )
    inputs = [keras.Input((3,), name=name) for name in ("one", "two")]
    first, second = (inner(x) for x in inputs)
    outputs = layers.Dense(2)(layers.Subtract()([inner(first), second]))
    model = keras.Model(inputs, outputs)
    fill(model)
    change(inner.get_layer("a").kernel, np.s_[:, 0])
    change(inner.get_layer("b").kernel, np.s_[:, 1], np.s_[1])
    smaller, report = checked(model)
    # Unit 0 of 'a' is a constant in all uses; unit 1 of 'b' in two of three.
    assert [row.kept_outputs for row in report.rows] == [2, 3, 2]
    assert len(smaller.layers) == len(set(smaller.layers)) == 6


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize(
    "shared",
    [
        layers.Activation("softmax"),
        layers.UnitNormalization(),
        layers.Lambda(keras.ops.flip),
        pytest.param(
            layers.Reshape((-1,)),
            marks=pytest.mark.skipif(
                not layers.Reshape((-1,)).built,
                reason="Reshape of Keras 3.10 keeps the width of its first use",
            ),
        ),
        layers.Dot(1),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_what_is_unknown_is_used_on_tensors_of_several_widths(shared):
    inputs = keras.Input((3,))
    read = [layers.Dense(n, name=f"read_{n}")(inputs) for n in (4, 2)]
    if isinstance(shared, layers.Dot):
        read = [[x, x] for x in read]
    model = keras.Model(inputs, [layers.Dense(2)(shared(x)) for x in read])
    fill(model)
    checked(model)


@pytest.mark.core
def test_a_nested_model_of_several_inputs_is_written_out():
    pair = [keras.Input((3,)), keras.Input((3,))]
    hidden = layers.Dense(4, "relu", name="hidden")
    inner = keras.Model(pair, hidden(layers.Add()(pair)))
    pair = [keras.Input((3,)), keras.Input((3,))]
    model = keras.Model(pair, layers.Dense(2)(inner(pair)))
    fill(model)
    change(hidden.kernel, np.s_[:, :2])
    rows = checked(model)[1].rows
    assert [row.kept_outputs for row in rows] == [2, 2]


@pytest.mark.core
def test_the_masks_of_several_inputs_stay_outside():
    """Keras' call of the nested model has a list of masks, of which none is."""
    pair = [keras.Input((4, 3)), keras.Input((4, 3))]
    x = layers.BatchNormalization()(pair[0] * pair[1])
    hidden, last = layers.Dense(4, name="hidden"), layers.SimpleRNN(2)
    inner = keras.Model(pair, last(hidden(x)))
    pair = [keras.Input((4, 3)), keras.Input((4, 3))]
    model = keras.Model(pair, layers.Dense(2)(inner(pair)))
    fill(model)
    change(last.cell.kernel, np.s_[:2])
    rows = {x.name.split("/")[-1]: x for x in checked(model)[1].rows}
    assert rows["hidden"].kept_outputs == 2


@pytest.mark.parametrize("other", [0.5, -0.5])
def test_constants_of_a_shared_layer(other):
    """Both of its uses see a constant: one bias takes up only the same."""
    inputs = keras.Input((3,))
    shared = layers.Dense(2, name="shared")
    read = [shared(layers.Dense(4, name=name)(inputs)) for name in "ab"]
    model = keras.Model(inputs, read)
    fill(model)
    for name, value in (("a", 0.5), ("b", other)):
        change(model.get_layer(name).kernel, np.s_[:, 0])
        change(model.get_layer(name).bias, 0, value=value)
    _, report = checked(model)
    kept = 3 if other == 0.5 else 4
    counts = {row.name: row.kept_outputs for row in report.rows}
    assert counts == {"a": kept, "b": kept, "shared": 2}


@pytest.mark.core
def test_layers_of_the_user_are_copied():
    class Twice(layers.Layer):
        """Never registered, with a weight and a layer of its own."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.inner = layers.Dense(4)

        def build(self, shape):
            self.inner.build(shape)
            self.scale = self.add_weight(shape=(), name="scale")

        def call(self, inputs):
            return self.scale * self.inner(inputs)

    model = sequential((3,), layers.Dense(5, "relu"), layers.Dense(4), Twice())
    change(model.layers[0].kernel, np.s_[:, 0])
    smaller, report = checked(model)
    assert [row.kept_outputs for row in report.rows] == [4, 4, 4]
    assert report.kept_whole[model.layers[2].name] == "unknown: Twice"
    for weight in smaller.weights:
        weight.assign(np.zeros(weight.shape))
    assert to_float64(model.layers[2].scale) != 0.0


@pytest.mark.core
def test_a_model_with_nothing_to_remove():
    """An equal model of the same kind, and a reason for every layer."""
    inner = sequential((5,), layers.Dense(4, "softmax", name="mixing"))
    inputs = keras.Input((5,))
    outputs = layers.Dense(3, name="last")(inner(inputs))
    model = keras.Model(inputs, outputs)
    fill(model)
    change(inner.layers[0].kernel, np.s_[:, 1])
    model.compile("adam", "mse")
    smaller, report = checked(model)
    assert report.is_unchanged
    assert report.parameters == report.kept_parameters
    assert set(report.kept_whole) == {f"{inner.name}/mixing", "last"}
    assert all(report.kept_whole.values())
    assert [type(x) for x in smaller.layers] == [type(x) for x in model.layers]
    assert "Nothing could be removed" in str(report)


@pytest.mark.core
def test_report():
    """Oracle: by hand."""
    model = half_dead(5)
    change(model.get_layer("second").kernel, np.s_[:, 1])
    smaller, report = checked(model)
    first, second, third = report.rows
    assert (first.name, first.layer) == ("first", "Dense")
    assert (first.inputs, first.kept_inputs) == (5, 5)
    assert (first.outputs, first.kept_outputs) == (6, 3)
    assert (first.parameters, first.kept_parameters) == (36, 18)
    assert (second.inputs, second.kept_inputs) == (6, 3)
    assert (third.kept_inputs, third.kept_outputs) == (2, 2)
    assert report.parameters == model.count_params() == 36 + 21 + 8
    assert report.kept_parameters == smaller.count_params() == 18 + 8 + 6
    assert report.macs == 30 + 18 + 6
    assert report.kept_macs == 15 + 6 + 4
    assert not report.is_unchanged
    assert json.loads(json.dumps(report.to_dict()))["kept_macs"] == 25
    for text in ("first (Dense)", "6 to 3", "36 to 18", "65 to 32", "54 to 25"):
        assert text in str(report)


@pytest.mark.core
def test_printing(capsys):
    model = half_dead(5)
    assert isinstance(keras_vd.shrink(model), keras.Model)
    assert "36 to 18" in capsys.readouterr().out
    keras_vd.shrink(model, verbose=0)
    assert capsys.readouterr().out == ""


@pytest.mark.core
def test_other_models_are_refused():
    for other in ("mlp", None, layers.Dense(3)):
        with pytest.raises(TypeError, match="`model` must be a Keras model"):
            keras_vd.shrink(other)
    unbuilt = keras.Sequential([layers.Dense(3)], name="unbuilt")
    with pytest.raises(ValueError, match="'unbuilt' is not: call it on data"):
        keras_vd.shrink(unbuilt)

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)
            self.scale = self.add_weight(shape=(), name="scale")

        def call(self, inputs):
            return self.scale * self.dense(inputs)

    model = Own()
    with pytest.raises(ValueError, match="call it on data"):
        keras_vd.shrink(model)
    model(random_inputs(1, 3))
    with pytest.raises(ValueError, match=r"written out: .*own, \['scale'\]"):
        keras_vd.shrink(model)
    with pytest.raises(ValueError, match=r"to_deterministic.*'vd_dense"):
        keras_vd.shrink(mlp())


@pytest.mark.core
def test_a_variational_model_shrinks_once_it_is_converted():
    """Oracle: the variational model's predictions."""
    model = mlp()
    kept = np.ones((6, 5), bool)
    kept[:, :2] = False
    set_kept(model.layers[0].kernel_posterior, kept)
    plain = keras_vd.to_deterministic(model)
    smaller, report = checked(plain, random_inputs(4, 6))
    assert report.rows[0].kept_outputs == 3
    assert_equal_predictions(model, smaller, random_inputs(4, 6))


MACS = {
    "dense": ((3,), layers.Dense(5), 15),
    "dense on steps": ((4, 3), layers.Dense(5), 60),
    "einsum": ((4, 3), layers.EinsumDense("abc,cd->abd", (4, 5)), 60),
    "heads": ((4, 3), layers.EinsumDense("abc,cde->abde", (4, 5, 2)), 120),
    "left": ((4, 3), layers.EinsumDense("...c,cd->...d", 5), 60),
    "conv": ((5, 6, 3), layers.Conv2D(4, 3), 3 * 4 * 9 * 3 * 4),
    "strides": ((8, 3), layers.Conv1D(4, 3, 2, "same"), 4 * 3 * 3 * 4),
    "groups": ((5, 5, 4), layers.Conv2D(2, 3, groups=2), 9 * 9 * 2 * 2),
    "transposed": ((5, 3), layers.Conv1DTranspose(4, 2, 2), 5 * 2 * 3 * 4),
    "depthwise": ((5, 3), layers.DepthwiseConv1D(2, 1, "valid", 2), 4 * 2 * 6),
    "separable": ((5, 3), layers.SeparableConv1D(4, 2), 4 * (2 * 3 + 3 * 4)),
    "lstm": ((7, 3), layers.LSTM(2), 7 * (3 + 2) * 8),
    "both ways": (
        (7, 3),
        layers.Bidirectional(layers.GRU(2)),
        2 * 7 * (3 + 2) * 6,
    ),
    "per step": ((7, 3), layers.TimeDistributed(layers.Dense(2)), 7 * 6),
    "unknown steps": ((None, 3), layers.LSTM(2), None),
    "unknown size": ((None, None, 3), layers.Conv2D(2, 1), None),
    "nothing": ((5, 3), layers.BatchNormalization(), 0),
}


@pytest.mark.parametrize("name", MACS)
def test_macs(name):
    """Oracle: by hand."""
    shape, layer, expected = MACS[name]
    model = keras.Sequential([keras.Input(shape), layer])
    assert count_macs(model) == expected


def test_macs_of_models_without_a_graph():
    assert count_macs(keras.Sequential([layers.Dense(2)])) is None


def test_kept_weights_are_the_same_to_the_bit():
    """Oracle: slices of the weights before."""
    model = half_dead(5)
    smaller, _ = shrink(model)
    for name, rows in (("first", np.s_[:, 3:]), ("second", np.s_[3:])):
        found = weights_of(smaller, name)[0]
        expected = to_float64(model.get_layer(name).kernel)[rows]
        np.testing.assert_array_equal(found, expected)


def test_a_file_of_a_layer_that_a_nested_model_shares(tmp_path):
    """Keras' own file of such a model does not load."""
    shared = layers.Dense(4, name="shared")
    inputs = keras.Input((4,))
    inner = keras.Model(inputs, shared(inputs), name="inner")
    model = keras.Model(inputs, shared(inner(inputs)))
    smaller = keras_vd.shrink(model, verbose=0)
    smaller.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = random_inputs(3, 4)
    np.testing.assert_allclose(
        to_float64(loaded(x)), to_float64(model(x)), rtol=1e-6
    )
    assert smaller.count_params() == 20
