import json

import keras
import numpy as np
import pytest

import keras_vd
from keras_vd import layers
from keras_vd._keras_internals import flatten_layers
from keras_vd.layers.base import VariationalLayer
from tests.models import (
    Wrapping,
    classification_data,
    compile_quickly,
    mlp,
    nested,
    plain_mlp,
    random_inputs,
    randomize,
    run_python,
    set_kept,
    to_numpy,
)


class Scale(keras.layers.Layer):
    """A user's layer that was never registered with Keras."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, input_shape):
        self.offset = self.add_weight(shape=input_shape[-1:], name="offset")

    def call(self, inputs):
        return inputs * self.factor + self.offset

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


class Tagged(layers.VDDense):
    """A user's own variational layer, with an argument of its own."""

    def __init__(self, units, tag, name=None, **kwargs):
        super().__init__(units, name=name, **kwargs)
        self.tag = tag

    def get_config(self):
        return {**super().get_config(), "tag": self.tag}


class Fixed(keras.Model):
    """A subclassed model that makes its layers by itself."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.VDDense(3, name="dense")

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, inputs, training=None):
        return self.dense(inputs, training=training)

    def get_config(self):
        return {}


def stack(*middle):
    return keras.Sequential(
        [keras.Input((6,)), layers.VDDense(4), *middle, layers.VDDense(3)]
    )


def sequential_without_input():
    model = keras.Sequential([layers.VDDense(5, "relu"), layers.VDDense(3)])
    model(np.zeros((1, 6), "float32"))
    return model


def two_inputs_and_outputs():
    first, second = keras.Input((6,), name="a"), keras.Input((4,), name="b")
    hidden = layers.VDDense(5)(first)
    joined = keras.layers.Concatenate()([hidden, layers.VDDense(2)(second)])
    return keras.Model(
        {"a": first, "b": second},
        [layers.VDDense(3, name="c")(joined), hidden],
    )


def shared_layer():
    shared = layers.VDDense(6)
    inputs = keras.Input((6,))
    return keras.Model(inputs, shared(keras.layers.ReLU()(shared(inputs))))


def shared_submodel():
    inner = stack(keras.layers.LayerNormalization())
    inputs = keras.Input((6,))
    other = keras.layers.ReLU()(inputs)
    return keras.Model(
        inputs, keras.layers.Subtract()([inner(inputs), inner(other)])
    )


def convolutions():
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.VDConv2D(4, 3, groups=2, padding="same", use_bias=False),
            layers.VDConv2DTranspose(3, 2, strides=2),
            layers.VDDepthwiseConv2D(2, depth_multiplier=2),
            layers.VDSeparableConv2D(4, 2, strides=2),
            keras.layers.Reshape((25, 4)),
            layers.VDConv1D(3, 2, padding="causal", dilation_rate=2),
            layers.VDEinsumDense("abc,cd->abd", (None, 2), bias_axes="d"),
        ]
    )


def not_trainable():
    model = stack(layers.VDDense(4, trainable=False))
    model.layers[2].trainable = False
    return model


def mixed_precision():
    bfloat16 = {"dtype": "mixed_bfloat16"}
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.VDDense(5, "relu", **bfloat16),
            layers.VDDense(3, **bfloat16),
        ]
    )


def compiled():
    model = mlp()

    def loss(targets, outputs):
        return keras.ops.mean(outputs)

    model.compile("adam", loss, metrics=["accuracy"])
    return model


# Builder of a model, and shapes of one example where not (6,).
MODELS = {
    "sequential": (mlp, None),
    "sequential without input": (sequential_without_input, None),
    "nested, TimeDistributed": (nested, None),
    "two inputs, two outputs": (
        two_inputs_and_outputs,
        {"a": (6,), "b": (4,)},
    ),
    "shared layer": (shared_layer, None),
    "shared submodel": (shared_submodel, None),
    "convolutions": (convolutions, (6, 6, 2)),
    "batch normalization": (
        lambda: stack(keras.layers.BatchNormalization()),
        None,
    ),
    "dropout": (lambda: stack(keras.layers.Dropout(0.5)), None),
    "user's layer": (lambda: stack(Scale(3.0)), None),
    "user's variational layer": (
        lambda: stack(Tagged(4, "mine", name="tagged")),
        None,
    ),
    "lambda": (lambda: stack(keras.layers.Lambda(lambda x: x + 1)), None),
    "mixed precision": (mixed_precision, None),
    "not trainable": (not_trainable, None),
    "compiled": (compiled, None),
    "other posteriors": (
        lambda: stack(layers.VDDense(4, posterior="gaussian", kl_weight=0.1)),
        None,
    ),
}


def wrapping():
    model = Wrapping(mlp())
    model.build((None, 6))
    return model


MODELS["subclassed"] = (wrapping, None)
CORE = (
    "sequential without input",
    "nested, TimeDistributed",
    "two inputs, two outputs",
    "shared submodel",
    "batch normalization",
    "mixed precision",
    "subclassed",
)


def inputs_of(shapes):
    if isinstance(shapes, dict):
        return {name: random_inputs(5, *s) for name, s in shapes.items()}
    return random_inputs(5, *(shapes or (6,)))


def predict(model, inputs):
    outputs = model(inputs, training=False)
    return [to_numpy(output) for output in keras.tree.flatten(outputs)]


def everything(model):
    return [to_numpy(variable) for variable in model.variables]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.core if name in CORE else ())
        for name in MODELS
    ],
)
def test_plain_model_predicts_the_same(name, tmp_path):
    """Oracle: the variational model itself, which must not change.

    About 2 in 5 of its weights are zero at inference, though `prune` was not
    called.
    """
    build, shapes = MODELS[name]
    model = build()
    randomize(model)
    inputs = inputs_of(shapes)
    expected, before = predict(model, inputs), everything(model)
    config = json.dumps(model.to_json())
    plain = keras_vd.to_deterministic(model)
    found = predict(plain, inputs)
    for one, other in zip(found, expected, strict=True):
        assert np.abs(other).max() > 0.01
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)

    posteriors = keras_vd.variational_weights(model)
    for layer in flatten_layers(plain):
        assert not type(layer).__module__.startswith("keras_vd")
        assert not isinstance(layer, VariationalLayer)
    assert "keras_vd" not in plain.to_json()
    own = sum(len(posterior.weights) for posterior in posteriors)
    assert len(plain.weights) == len(model.weights) - own
    assert not plain.compiled
    zeros = sum((w == 0).sum() for w in map(to_numpy, plain.weights))
    assert zeros > 0 or "gaussian" in config
    assert [layer.name for layer in plain.layers] == [
        layer.name for layer in model.layers
    ]
    assert [w.trainable for w in plain.weights] == [
        weight.trainable
        for weight in model.weights
        if not any(weight is v for p in posteriors for v in p.weights)
    ]

    # The copy shares nothing with its source, which is as it was.
    for weight in plain.weights:
        weight.assign(np.zeros(weight.shape))
    assert json.dumps(model.to_json()) == config
    for one, other in zip(everything(model), before, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(predict(model, inputs), expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.core
def test_moved_statistics_are_copied():
    # By hand: batch normalization of an all-zero kernel is a constant.
    model = stack(keras.layers.BatchNormalization(epsilon=0.0))
    randomize(model)
    first, normalization, last = model.layers
    set_kept(first.kernel_posterior, np.zeros((6, 4), "bool"))
    plain = keras_vd.to_deterministic(model)
    standardized = (
        to_numpy(first.bias) - to_numpy(normalization.moving_mean)
    ) / (np.sqrt(to_numpy(normalization.moving_variance)))
    hidden = standardized * to_numpy(normalization.gamma)
    hidden += to_numpy(normalization.beta)
    kernel = to_numpy(plain.layers[2].kernel)
    (found,) = predict(plain, random_inputs(2, 6))
    expected = hidden @ kernel + to_numpy(last.bias)
    np.testing.assert_allclose(found, [expected] * 2, rtol=1e-5, atol=1e-6)


@pytest.mark.core
def test_loaded_and_pruned_model(tmp_path):
    # Oracle: the model that was saved.
    model = nested()
    randomize(model)
    keras_vd.prune(model, 0.0)
    inputs = random_inputs(5, 6)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    (found,) = predict(keras_vd.to_deterministic(loaded), inputs)
    np.testing.assert_allclose(found, predict(model, inputs)[0], rtol=1e-6)


def test_plain_file_loads_where_keras_vd_is_not_installed(tmp_path):
    # Oracle: the variational model's predictions, in another process.
    model = nested()
    randomize(model)
    inputs = random_inputs(5, 6)
    keras_vd.to_deterministic(model).save(tmp_path / "plain.keras")
    np.save(tmp_path / "inputs.npy", inputs)
    code = """
import sys
sys.modules["keras_vd"] = None
import keras, numpy as np
model = keras.saving.load_model(sys.argv[1] + "/plain.keras")
outputs = model.predict(np.load(sys.argv[1] + "/inputs.npy"), verbose=0)
np.save(sys.argv[1] + "/outputs.npy", outputs)
"""
    result = run_python(code, tmp_path)
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(
        np.load(tmp_path / "outputs.npy"), predict(model, inputs)[0], atol=1e-6
    )


@pytest.mark.core
def test_subclassed_model_that_keras_builds_by_calling_it():
    class Lazy(Wrapping):
        build = keras.Model.build

    model = Lazy(layers.VDDense(3))
    model(random_inputs(1, 6))
    randomize(model)
    expected = predict(model, random_inputs(5, 6))
    found = predict(keras_vd.to_deterministic(model), random_inputs(5, 6))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_model_that_makes_its_layers_by_itself_is_refused():
    model = Fixed(name="mine")
    model.build((None, 6))
    with pytest.raises(ValueError, match=r"get_config.*'mine'.*\['dense'\]"):
        keras_vd.to_deterministic(model)


@pytest.mark.core
def test_other_models_are_refused():
    with pytest.raises(ValueError, match=r"variational layer.*plain model"):
        keras_vd.to_deterministic(plain_mlp())
    unbuilt = keras.Sequential([layers.VDDense(3)], name="unbuilt")
    with pytest.raises(ValueError, match="'unbuilt' is not: call it on data"):
        keras_vd.to_deterministic(unbuilt)
    for other in ("mlp", None, layers.VDDense(3)):
        with pytest.raises(TypeError, match="`model` must be a Keras model"):
            keras_vd.to_deterministic(other)


@pytest.mark.core
def test_freeze_zeros():
    """Zeros stay zeros in fine-tuning; other weights move.

    A constraint that is there already still applies, before the zeros.
    """
    model = mlp()
    randomize(model)
    plain = keras_vd.to_deterministic(model)
    first, second = plain.layers
    second.kernel.constraint = keras.constraints.MaxNorm(0.01)
    second.bias.assign(np.zeros(3))
    before = [to_numpy(layer.kernel) for layer in plain.layers]
    keras_vd.freeze_zeros(plain)
    compile_quickly(plain, optimizer=keras.optimizers.Adam(0.1))
    plain.fit(*classification_data(8), epochs=2, verbose=0)
    for layer, old in zip(plain.layers, before, strict=True):
        new = to_numpy(layer.kernel)
        assert not new[old == 0].any()
        assert (new != old)[old != 0].any()
    norms = np.linalg.norm(to_numpy(second.kernel), axis=0)
    assert norms.max() <= 0.010001
    # Biases are no weights to keep at zero.
    assert to_numpy(second.bias).any()
    with pytest.raises(TypeError, match="`model` must be a Keras model"):
        keras_vd.freeze_zeros(first)


def test_a_layer_with_a_call_of_its_own_is_refused():
    class Doubled(layers.VDDense):
        def call(self, inputs, training=None):
            return 2.0 * super().call(inputs, training)

    model = keras.Sequential([keras.Input((6,)), Doubled(2)])
    with pytest.raises(ValueError, match=r"'Doubled' overrides `call`"):
        keras_vd.to_deterministic(model)
