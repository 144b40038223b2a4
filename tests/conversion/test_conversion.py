import json

import keras
import numpy as np
import pytest

import keras_vd
from keras_vd import layers
from keras_vd._backend.keras_internals import flatten_layers
from keras_vd.layers.base import VariationalLayer
from tests.helpers.arrays import random_inputs, to_float64
from tests.helpers.convertible import (
    CORE,
    MODELS,
    Fixed,
    everything,
    inputs_of,
    predict,
    stack,
)
from tests.helpers.models import (
    Wrapping,
    classification_data,
    compile_quickly,
    mlp,
    nested,
    plain_mlp,
    randomize,
    run_python,
    set_kept,
)


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
    zeros = sum((w == 0).sum() for w in map(to_float64, plain.weights))
    assert zeros > 0 or "gaussian" in config
    # A subclassed model, written out, has a layer for its input.
    assert [layer.name for layer in plain.layers if layer.name != "inputs"] == [
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
        to_float64(first.bias) - to_float64(normalization.moving_mean)
    ) / (np.sqrt(to_float64(normalization.moving_variance)))
    hidden = standardized * to_float64(normalization.gamma)
    hidden += to_float64(normalization.beta)
    kernel = to_float64(plain.layers[2].kernel)
    (found,) = predict(plain, random_inputs(2, 6))
    expected = hidden @ kernel + to_float64(last.bias)
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


@pytest.mark.integration
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


def test_model_that_makes_its_layers_by_itself():
    """Oracle: the model; it is refused only if it cannot be written out."""
    model = Fixed(name="mine")
    model.build((None, 6))
    randomize(model)
    inputs = random_inputs(5, 6)
    expected = predict(model, inputs)
    found = predict(keras_vd.to_deterministic(model), inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    model.activity_regularizer = keras.regularizers.L2(0.1)
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
    before = [to_float64(layer.kernel) for layer in plain.layers]
    keras_vd.freeze_zeros(plain)
    compile_quickly(plain, optimizer=keras.optimizers.Adam(0.1))
    plain.fit(*classification_data(8), epochs=2, verbose=0)
    for layer, old in zip(plain.layers, before, strict=True):
        new = to_float64(layer.kernel)
        assert not new[old == 0].any()
        assert (new != old)[old != 0].any()
    norms = np.linalg.norm(to_float64(second.kernel), axis=0)
    assert norms.max() <= 0.010001
    # Biases are no weights to keep at zero.
    assert to_float64(second.bias).any()
    with pytest.raises(TypeError, match="`model` must be a Keras model"):
        keras_vd.freeze_zeros(first)


def test_a_layer_with_a_call_of_its_own_is_refused():
    class Doubled(layers.VDDense):
        def call(self, inputs, training=None):
            return 2.0 * super().call(inputs, training)

    model = keras.Sequential([keras.Input((6,)), Doubled(2)])
    with pytest.raises(ValueError, match=r"'Doubled' overrides `call`"):
        keras_vd.to_deterministic(model)
