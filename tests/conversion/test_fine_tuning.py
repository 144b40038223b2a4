"""Zeros that `freeze_zeros` keeps, however training goes on."""

import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_vd
from keras_vd.conversion.fine_tuning import FrozenZeros
from tests.helpers.arrays import random_inputs, to_float64
from tests.helpers.models import compile_quickly

L = keras.layers
STEPS, FEATURES = 5, 4


def sequences(*layers):
    return keras.Sequential([keras.Input((STEPS, FEATURES)), *layers])


def attention():
    inputs = keras.Input((STEPS, FEATURES))
    outputs = L.MultiHeadAttention(2, 3)(inputs, inputs)
    outputs = L.GroupQueryAttention(3, 2, 1)(outputs, outputs)
    return keras.Model(inputs, outputs)


def shared():
    """One layer that is used twice, in a nested model."""
    layer = L.Dense(FEATURES)
    inputs = keras.Input((STEPS, FEATURES))
    inner = keras.Model(inputs, layer(L.ReLU()(layer(inputs))))
    return sequences(inner, L.Dense(2))


# One model for each way in which a config keeps constraints.
MODELS = {
    "dense": lambda: sequences(
        L.Dense(6), L.EinsumDense("abc,cd->abd", (STEPS, 2))
    ),
    "conv": lambda: sequences(
        L.Conv1D(3, 2), L.Conv1DTranspose(3, 2), L.SeparableConv1D(3, 2)
    ),
    "depthwise": lambda: sequences(L.DepthwiseConv1D(2, depth_multiplier=2)),
    "embedding": lambda: keras.Sequential(
        [keras.Input((STEPS,), dtype="int32"), L.Embedding(7, 3)]
    ),
    "recurrent": lambda: sequences(
        L.LSTM(3, return_sequences=True), L.GRU(2, return_sequences=True)
    ),
    "cells": lambda: sequences(
        L.RNN(L.StackedRNNCells([L.SimpleRNNCell(3), L.LSTMCell(2)]))
    ),
    "bidirectional": lambda: sequences(L.Bidirectional(L.LSTM(3))),
    "two directions": lambda: sequences(
        L.Bidirectional(
            L.GRU(2), backward_layer=L.GRU(2, go_backwards=True, name="other")
        )
    ),
    "time distributed": lambda: sequences(L.TimeDistributed(L.Dense(3))),
    "attention": attention,
    "shared": shared,
}


def inputs_of(model):
    if model.inputs[0].dtype == "int32":
        return np.random.default_rng(0).integers(0, 7, (8, STEPS))
    return random_inputs(8, *model.inputs[0].shape[1:])


def is_bias(variable):
    return len(variable.shape) < 2 or variable.name == "bias"


def half_zero(model, seed=0):
    """Give every weight random values, half of them zeros."""
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        value = rng.normal(size=variable.shape)
        if not is_bias(variable):
            value *= rng.random(variable.shape) < 0.5
        variable.assign(value)
    return model


def zeros(model):
    return [
        to_float64(v) == 0 for v in model.trainable_variables if not is_bias(v)
    ]


def train(model, optimizer=None, epochs=2, **options):
    """Fit to targets that no weight of size 0 would give."""
    x = inputs_of(model)
    y = 3.0 + random_inputs(8, *model.outputs[0].shape[1:], seed=1)
    optimizer = optimizer or keras.optimizers.Adam(0.1)
    compile_quickly(model, optimizer=optimizer, loss="mse", **options)
    model.fit(x, y, epochs=epochs, verbose=0)


def assert_frozen(model, expected, **options):
    """Oracle: the zeros of before, and everything else has moved."""
    free = [v for v in model.trainable_variables if not is_bias(v)]
    before = [to_float64(v) for v in free]
    train(model, **options)
    after = [to_float64(v) for v in free]
    assert len(after) == len(expected)
    for old, new, zero in zip(before, after, expected, strict=True):
        assert not new[zero].any()
        assert not (new[~zero] == 0).any()
        assert zero.all() or (new != old).any()


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("name", MODELS)
def test_zeros_hold_after_saving_and_cloning(name, tmp_path):
    model = half_zero(MODELS[name]())
    expected = zeros(model)
    # No warning: each has a place for its constraints.
    keras_vd.freeze_zeros(model)
    model.save(tmp_path / "frozen.keras")
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    loaded = keras.saving.load_model(tmp_path / "frozen.keras")
    again = keras.models.model_from_json(loaded.to_json())
    again.set_weights(loaded.get_weights())
    for one in (model, loaded, clone, again):
        assert_frozen(one, expected)


class Squared(L.Layer):
    """A layer whose weight has no constraint in its config."""

    def build(self, input_shape):
        size = input_shape[-1]
        self.square = self.add_weight(shape=(size, size), name="square")

    def call(self, inputs):
        return keras.ops.matmul(inputs, self.square)


class Composite(L.Layer):
    """A layer that makes another one, whose config is not its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = L.Dense(FEATURES)

    def build(self, input_shape):
        self.inner.build(input_shape)

    def call(self, inputs):
        return self.inner(inputs)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = L.Dense(FEATURES)

    def call(self, inputs):
        return self.inner(inputs)


@pytest.mark.core
@pytest.mark.parametrize("kind", [Squared, Composite])
def test_zeros_without_a_place_in_the_config_hold_and_are_named(kind):
    model = half_zero(sequences(L.Dense(FEATURES), kind()))
    expected = zeros(model)
    path = model.layers[1].weights[0].path
    with pytest.warns(UserWarning, match=rf"(?s)\['{path}'\].*this model only"):
        keras_vd.freeze_zeros(model)
    assert_frozen(model, expected)


def test_zeros_of_a_subclassed_model():
    model = Subclassed()
    model(random_inputs(8, STEPS, FEATURES))
    half_zero(model)
    expected = to_float64(model.inner.kernel) == 0
    with pytest.warns(UserWarning, match="kernel.*this model only"):
        keras_vd.freeze_zeros(model)
    model.compile("sgd", "mse")
    x = random_inputs(8, STEPS, FEATURES)
    model.fit(x, x + 1.0, verbose=0)
    assert not to_float64(model.inner.kernel)[expected].any()


OPTIMIZERS = {
    "adam": lambda **o: keras.optimizers.Adam(0.1, **o),
    "adamw": lambda **o: keras.optimizers.AdamW(0.1, weight_decay=0.1, **o),
    "momentum": lambda **o: keras.optimizers.SGD(0.01, momentum=0.9, **o),
    "lion": lambda **o: keras.optimizers.Lion(0.01, **o),
    "muon": lambda **o: keras.optimizers.Muon(0.1, **o),
    "rmsprop": lambda **o: keras.optimizers.RMSprop(0.01, **o),
    "accumulated": lambda **o: keras.optimizers.Adam(
        0.1, gradient_accumulation_steps=2, **o
    ),
    "overwritten": lambda **o: keras.optimizers.Adam(
        0.1, ema_overwrite_frequency=2, **o
    ),
    "scaled": lambda **o: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(0.1, **o), initial_scale=8.0
    ),
}


@pytest.mark.core
@pytest.mark.parametrize(
    ("name", "use_ema"),
    [(name, True) for name in OPTIMIZERS] + [("muon", False), ("lion", False)],
)
def test_zeros_hold_with_every_optimizer(name, use_ema):
    if not hasattr(keras.optimizers, "Muon") and name == "muon":
        pytest.skip("this Keras has no Muon")
    options = {"use_ema": True, "ema_momentum": 0.5} if use_ema else {}
    model = half_zero(sequences(L.Dense(3), L.Dense(2)))
    expected = zeros(model)
    keras_vd.freeze_zeros(model)
    optimizer = OPTIMIZERS[name](**options)
    assert_frozen(model, expected, optimizer=optimizer, epochs=4)


@pytest.mark.core
@pytest.mark.parametrize("on_epoch", [False, True])
def test_zeros_hold_in_averages_that_are_swapped_in(on_epoch):
    """Also where the average was kept before the zeros were."""

    class Look(keras.callbacks.Callback):
        seen = 0

        def on_test_batch_begin(self, batch, logs=None):
            found = zeros(self.model)
            for new, zero in zip(found, expected, strict=True):
                assert new[zero].all()
            self.seen += 1

    model = half_zero(sequences(L.Dense(3), L.Dense(2)))
    optimizer = keras.optimizers.Adam(0.1, use_ema=True)
    train(model, optimizer)
    half_zero(model)
    expected = zeros(model)
    # The training step of before, compiled on JAX, is not used any more.
    keras_vd.freeze_zeros(model)
    look = Look()
    x, y = inputs_of(model), np.ones((8, STEPS, 2))
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=on_epoch)
    model.fit(x, y, verbose=0, callbacks=[swap, look], validation_data=(x, y))
    assert look.seen == 1
    for new, zero in zip(zeros(model), expected, strict=True):
        assert new[zero].all()


@pytest.mark.core
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
def test_zeros_hold_in_16_bits(policy):
    model = half_zero(sequences(L.Dense(3, dtype=policy), L.Dense(2)))
    expected = zeros(model)
    keras_vd.freeze_zeros(model)
    dtype = model.layers[0].kernel.dtype
    assert_frozen(model, expected, optimizer=keras.optimizers.SGD(0.1))
    assert model.layers[0].kernel.dtype == dtype


@pytest.mark.core
@pytest.mark.parametrize("name", ["dense", "conv", "recurrent", "attention"])
@pytest.mark.integration
def test_what_shrink_leaves_stays_frozen(name):
    """Oracle: the zeros of the smaller model, of which some are left."""
    model = half_zero(MODELS[name]())
    first = model.trainable_variables[0]
    value = to_float64(first)
    value[..., 0] = 0.0
    first.assign(value)
    keras_vd.freeze_zeros(model)
    smaller = keras_vd.shrink(model, verbose=0)
    expected = zeros(smaller)
    assert any(zero.any() for zero in expected)
    clone = keras.models.clone_model(smaller)
    clone.set_weights(smaller.get_weights())
    for one in (smaller, clone):
        assert_frozen(one, expected)


@pytest.mark.integration
@pytest.mark.core
def test_a_frozen_model_is_converted_with_its_zeros():
    model = half_zero(attention())
    expected = zeros(model)
    keras_vd.freeze_zeros(model)
    variational = keras_vd.to_variational(
        model, posterior="gaussian", kl_weight=1e-3, verbose=0
    )
    train(variational)
    plain = keras_vd.to_deterministic(variational)
    for new, zero in zip(zeros(plain), expected, strict=True):
        assert new[zero].all()


@pytest.mark.core
def test_constraints_of_the_user_come_first_and_stay():
    model = sequences(L.Dense(3, kernel_constraint=keras.constraints.NonNeg()))
    half_zero(model)
    model.layers[0].kernel.assign(np.abs(to_float64(model.layers[0].kernel)))
    expected = zeros(model)
    for _ in range(2):  # once more changes nothing
        keras_vd.freeze_zeros(model)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    train(clone, keras.optimizers.SGD(1.0))
    (kernel,) = [to_float64(v) for v in clone.trainable_variables[:1]]
    assert not kernel[expected[0]].any()
    assert (kernel >= 0.0).all()


@pytest.mark.core
def test_what_starts_at_zero_is_not_frozen():
    """Biases of attention and GRUs are matrices; frozen layers may thaw."""
    model = sequences(L.GRU(2, return_sequences=True), L.Dense(3))
    kernel = model.layers[1].kernel
    kernel.assign(to_float64(kernel) * [[1], [0]])
    model.layers[1].trainable = False
    keras_vd.freeze_zeros(model)
    model.layers[1].trainable = True
    train(model)
    assert to_float64(model.layers[0].cell.bias).all()
    assert not to_float64(kernel)[1].any()
    assert to_float64(kernel)[0].all()


@pytest.mark.core
def test_models_whose_zeros_would_not_hold_are_refused():
    model = half_zero(sequences(L.Dense(3, name="mine")))
    model.layers[0].enable_lora(1)
    with pytest.raises(ValueError, match=r"LoRA.*'mine'"):
        keras_vd.freeze_zeros(model)
    with pytest.raises(ValueError, match="must be built"):
        keras_vd.freeze_zeros(keras.Sequential([L.Dense(3)]))


@pytest.mark.core
def test_a_constraint_of_another_shape_says_so():
    model = half_zero(sequences(L.Dense(3)))
    keras_vd.freeze_zeros(model)
    config = model.layers[0].get_config()
    other = keras.Sequential([keras.Input((9,)), L.Dense.from_config(config)])
    with pytest.raises(ValueError, match=r"(?s)\(4, 3\).*\(9, 3\)"):
        train(other)


def test_masks_are_small_and_not_trusted():
    """Oracle: 2% of ones take 0.14 bits each, by their entropy."""
    rng = np.random.default_rng(0)
    mask = rng.random((1000, 1000)) < 0.02
    constraint = FrozenZeros({"kernel": mask})
    config = constraint.get_config()
    packed = config["masks"]["kernel"]
    assert len(packed["nonzero"]) < 0.01 * 4 * mask.size
    copy = FrozenZeros.from_config(config)
    np.testing.assert_array_equal(copy.masks["kernel"], mask)
    for shape in ([10, 10], [1000, 2000]):
        packed["shape"] = shape
        with pytest.raises(ValueError, match="a bit for each weight"):
            FrozenZeros.from_config(config)


@pytest.mark.integration
def test_compressed_files_need_no_keras_vd(tmp_path):
    model = half_zero(MODELS["attention"]())
    keras_vd.freeze_zeros(model)
    path = tmp_path / "small.keras"
    keras_vd.deployment.save_compressed(model, path)
    code = (
        "import sys, keras; keras.models.load_model(sys.argv[1]); "
        "assert 'keras_vd' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, path], check=True)
    # And the model itself is as before.
    assert_frozen(model, zeros(model))


def test_freezing_is_silent_where_there_are_no_zeros():
    model = sequences(Squared())
    model.layers[0].square.assign(np.ones((FEATURES, FEATURES)))
    keras_vd.freeze_zeros(model)
    assert model.layers[0].square.constraint is None
