"""Layers that become variational in code that cannot be written out."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as K
from keras import ops

import keras_vd
from keras_vd import layers
from tests.helpers.arrays import random_inputs, to_numpy
from tests.helpers.models import compile_quickly, run_python

PACKAGE = "tests_in_place"


@keras.saving.register_keras_serializable(PACKAGE)
class Padded(K.Layer):
    """Reads the size of the batch, which is not known when a graph is made."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.steps = [K.Dense(units, "relu", name="hidden"), K.Dense(3)]
        self.attention = K.MultiHeadAttention(2, 2, name="attention")
        self.memory = K.LSTM(3, return_sequences=True, name="memory")

    def build(self, shape):
        self.attention.build(shape, shape)
        self.steps[0].build(shape)
        self.steps[1].build((*shape[:-1], self.units))
        self.memory.build((*shape[:-1], 3))

    def call(self, inputs):
        hidden = self.attention(inputs, inputs)
        for layer in self.steps:
            hidden = layer(hidden)
        hidden = self.memory(hidden)
        return hidden + ops.zeros((ops.shape(hidden)[0], 1, 1))

    def compute_output_shape(self, shape):
        return (*shape[:-1], 3)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(PACKAGE)
class Task(keras.Model):
    """A Functional model with a method of its own, as those of KerasHub."""

    def __init__(self, units, **kwargs):
        words = keras.Input((5,), dtype="int32")
        table = K.Embedding(9, 4, name="table")
        hidden = K.LayerNormalization(name="norm")(table(words))
        hidden = K.Dense(units, "relu", name="hidden")(hidden)
        super().__init__(words, K.Dense(9, name="logits")(hidden), **kwargs)
        self.units = units
        self.table = table

    def next_word(self, words):
        return np.argmax(to_numpy(self(words))[:, -1], axis=-1)

    def get_config(self):
        return {"name": self.name, "units": self.units}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable(PACKAGE)
class Branching(keras.Model):
    """A subclassed model whose `call` looks at values."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = K.Dense(6, name="dense")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x) if ops.max(x) > 0 else x


@keras.saving.register_keras_serializable(PACKAGE)
class Reading(Padded):
    """It computes with a kernel without calling the layer of it."""

    def call(self, inputs):
        outputs = super().call(inputs)
        return outputs + ops.matmul(inputs, self.steps[0].kernel)[..., :3]


def composite(cls=Padded):
    inputs = keras.Input((5, 4))
    hidden = cls(6, name="padded")(K.Dense(4, name="first")(inputs))
    return keras.Model(inputs, K.Dense(2, name="last")(hidden))


def words(size=3):
    return np.random.default_rng(0).integers(0, 9, (size, 5))


MODELS = {
    "composite": (composite, lambda n=3: random_inputs(n, 5, 4)),
    "nested": (
        lambda: keras.Sequential(
            [keras.Input((5, 4)), composite(), K.Dense(2, name="top")]
        ),
        lambda n=3: random_inputs(n, 5, 4),
    ),
    "with methods": (lambda: Task(6), words),
}
CONVERTED = {
    "composite": {
        *("first", "padded/attention", "padded/hidden", "padded/dense"),
        "last",
    },
    "with methods": {"table", "hidden", "logits"},
}


def convert(model, **options):
    return keras_vd.to_variational(
        model, return_report=True, verbose=0, **options
    )


def short(names):
    """Names without the numbers that Keras counts layers with."""
    return {name.rstrip("_0123456789") for name in names}


def predictions(model, inputs):
    return to_numpy(model(inputs, training=False))


@pytest.mark.core
@pytest.mark.parametrize("name", CONVERTED)
def test_what_becomes_variational(name):
    """All but the recurrent layer, whose cell computes by itself."""
    build, inputs = MODELS[name]
    model = build()
    variational, report = convert(model)
    assert short(report.converted) == CONVERTED[name]
    assert not keras_vd.variational_weights(model)
    np.testing.assert_array_equal(
        predictions(variational, inputs()), predictions(model, inputs())
    )
    if name == "composite":
        assert "made in the code" in report.skipped["padded/memory"]


@pytest.mark.core
def test_methods_stay():
    model = Task(6)
    variational, _ = convert(model)
    assert isinstance(variational, Task)
    assert type(variational.table) is layers.VDEmbedding
    np.testing.assert_array_equal(
        variational.next_word(words()), model.next_word(words())
    )
    plain = keras_vd.to_deterministic(variational)
    assert type(plain) is Task
    assert type(plain.table) is K.Embedding


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("name", MODELS)
def test_from_training_to_a_plain_model(name, tmp_path):
    """Identity: files, and the plain model, predict what the model does."""
    build, inputs = MODELS[name]
    model = build()
    plain_classes = [type(x) for x in model.layers]
    variational, _ = convert(model, posterior="ard")
    compile_quickly(variational, optimizer="adam", loss="mse")
    x = inputs(8)
    y = np.zeros(variational(x).shape)
    annealing = keras_vd.callbacks.KLAnnealing(8, 0, 1, verbose=0)
    before = to_numpy(keras_vd.variational_weights(variational)[0].theta)
    history = variational.fit(x, y, epochs=2, verbose=0, callbacks=[annealing])
    assert history.history["kl"][-1] > 0
    after = to_numpy(keras_vd.variational_weights(variational)[0].theta)
    assert np.abs(after - before).max() > 0
    for weight in keras_vd.variational_weights(variational):
        cut = float(np.quantile(to_numpy(weight.log_alpha), 0.7))
        weight.prune(np.clip(cut, -20.0, 20.0))
    assert keras_vd.sparsity_report(variational).nonzero_ratio > 1.2

    variational.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert len(keras_vd.variational_weights(loaded)) == len(
        keras_vd.variational_weights(variational)
    )
    expected = predictions(variational, x)
    np.testing.assert_array_equal(predictions(loaded, x), expected)
    for one in (variational, loaded):
        plain = keras_vd.to_deterministic(one)
        assert [type(x) for x in plain.layers] == plain_classes
        np.testing.assert_allclose(
            predictions(plain, x), expected, rtol=1e-5, atol=1e-6
        )
    loaded.fit(x, y, epochs=1, verbose=0)
    again, _ = convert(plain)
    np.testing.assert_allclose(
        predictions(again, x), expected, rtol=1e-5, atol=1e-6
    )


LOAD = """
import sys
import keras, numpy as np
import keras_vd
import tests.conversion.test_in_place
model = keras.saving.load_model(sys.argv[1])
print(len(keras_vd.variational_weights(model)), type(model).__name__)
"""


@pytest.mark.integration
def test_a_file_loads_in_another_process(tmp_path):
    """Where nothing was converted before."""
    variational, _ = convert(Task(6))
    variational.save(tmp_path / "model.keras")
    done = run_python(LOAD, tmp_path / "model.keras")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3", "VariationalTask"]


def test_a_subclassed_model_that_looks_at_values():
    model = Branching(name="mine")
    inputs = random_inputs(3, 6)
    model(inputs)
    variational, report = convert(model, kl_weight=0.1)
    assert report.converted == ["dense"]
    assert isinstance(variational, Branching)
    np.testing.assert_array_equal(
        predictions(variational, inputs), predictions(model, inputs)
    )
    one, two = (to_numpy(variational(inputs, training=True)) for _ in range(2))
    assert np.abs(one - two).max() > 0


@pytest.mark.core
def test_code_that_reads_weights_keeps_its_layers():
    """It would go on reading what is pruned; the rest becomes variational."""
    model = composite(Reading)
    variational, report = convert(model)
    assert report.converted == ["first", "last"]
    reason = report.skipped["padded/hidden"]
    assert "reads its weights, and not only calls it" in reason
    x = random_inputs(3, 5, 4)
    np.testing.assert_array_equal(
        predictions(variational, x), predictions(model, x)
    )


def test_what_was_pruned_before_stays_so():
    """The check of the code drops weights, for a moment."""
    inputs = keras.Input((5, 4))
    ours = layers.VDDense(4, name="ours")
    model = keras.Model(inputs, Padded(6)(ours(inputs)))
    mask = np.arange(16).reshape(4, 4) % 3 == 0
    ours.kernel_posterior.keep_mask.assign(mask)
    variational, _ = convert(model)
    kept = variational.get_layer("ours").kernel_posterior.keep_mask
    np.testing.assert_array_equal(to_numpy(kept), mask)
