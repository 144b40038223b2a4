"""Models of KerasHub, with random weights: from plain to sparse and back.

These need the package `keras-hub`, which the other tests do not.
"""

from __future__ import annotations

import operator

import keras
import numpy as np
import pytest

import keras_vd
from experiments.models import hub
from experiments.models.__main__ import is_kernel, size_of
from tests.helpers.arrays import to_numpy

keras_hub = pytest.importorskip("keras_hub", exc_type=ImportError)
pytestmark = [
    pytest.mark.integration,
    # What KerasHub's own models give, without this library, too.
    pytest.mark.filterwarnings("ignore:.*passed an input with a mask attached"),
    # Backbones do not project back by themselves.
    pytest.mark.filterwarnings("ignore:.*for variables .*reverse_embeddings"),
    pytest.mark.filterwarnings("ignore:`compile\\(\\)` was not called"),
    pytest.mark.filterwarnings("ignore:`build\\(\\)` was called on layer"),
]

# Parameters that stay plain. T5: what its two attentions add for each of 32
# distances, for 2 heads. ViT: the class token.
LEFT = {"T5Backbone": 2 * 32 * 2, "ViTBackbone": 16}


def predictions(model, inputs):
    outputs = keras.tree.flatten(model(inputs, training=False))
    return [to_numpy(x).astype("float32") for x in outputs]


def assert_alike(found, expected, tolerance=0.0):
    for one, two in zip(found, expected, strict=True):
        atol = tolerance * np.abs(two).max()
        np.testing.assert_allclose(one, two, rtol=0.0, atol=atol)


@keras.saving.register_keras_serializable("tests_keras_hub")
def size(labels, outputs):
    return keras.ops.mean(keras.ops.square(outputs))


@pytest.mark.parametrize("name", hub.BUILDERS)
def test_there_and_back(name, tmp_path):
    """Identities: predictions, files, and the class of the model."""
    model, inputs = hub.BUILDERS[name]()
    expected = predictions(model, inputs)
    kernels = [size_of(x) for x in model.weights if is_kernel(x)]
    variational = keras_vd.to_variational(model, posterior="ard", verbose=0)
    assert isinstance(variational, type(model))
    assert_alike(predictions(variational, inputs), expected)
    weights = keras_vd.variational_weights(variational)
    sizes = sum(to_numpy(x.theta).size for x in weights)
    assert sizes == sum(kernels) - LEFT.get(name, 0)

    keras.Model.compile(
        variational,
        optimizer="sgd",
        loss=size,
        run_eagerly=True,
    )
    (first, *_) = expected
    labels = np.zeros((len(first), 1))
    if isinstance(variational.output, dict):
        labels = {key: labels for key in variational.output}
    annealing = keras_vd.callbacks.KLAnnealing(4, 0, 1, verbose=0)
    logs = keras.Model.fit(
        variational, inputs, labels, epochs=2, verbose=0, callbacks=[annealing]
    ).history
    assert logs["kl"][-1] > 0
    assert np.isfinite(logs["loss"]).all()

    for weight in weights:
        cut = float(np.quantile(to_numpy(weight.log_alpha), 0.5))
        weight.prune(np.clip(cut, -20.0, 20.0))
    expected = predictions(variational, inputs)
    variational.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_alike(predictions(loaded, inputs), expected)
    plain = keras_vd.to_deterministic(loaded)
    assert type(plain) is type(model)
    assert_alike(predictions(plain, inputs), expected, 1e-5)


def test_a_language_model_still_writes():
    """Oracle: what the plain model with the same weights writes."""
    model, _ = hub.causal_lm()
    prompt = {key: x[:2] for key, x in hub.texts().items()}
    prompt["padding_mask"][:, 4:] = 0
    prompt["token_ids"][:, 4:] = 0
    model.compile(sampler="greedy", run_eagerly=True)
    expected = model.generate(prompt, stop_token_ids=None)
    variational = keras_vd.to_variational(model, verbose=0)
    variational.compile(sampler="greedy", run_eagerly=True)
    found = variational.generate(prompt, stop_token_ids=None)
    assert (to_numpy(found["token_ids"])[:, 4:] > 0).any()
    np.testing.assert_array_equal(found["token_ids"], expected["token_ids"])


def test_hidden_units_and_heads_of_an_encoder_go():
    """Oracle: parameters of the layers that are left, counted by hand."""
    model, inputs = hub.bert()
    for layer in model.transformer_layers:
        for dense, axis in (
            (layer._feedforward_output_dense, 0),
            (layer._self_attention_layer._output_dense, 0),
        ):
            kernel = to_numpy(dense.kernel).copy()
            half = kernel.shape[axis] // 2
            kernel[:half] = 0.0
            dense.kernel.assign(kernel)
    smaller = keras_vd.shrink(model, verbose=0)
    # 16 hidden units of 33 + 16 weights, a head of 8 of 4 projections.
    gone = 2 * (16 * (16 + 1 + 16) + 3 * (16 + 1) * 8 + 8 * 16)
    assert smaller.count_params() == model.count_params() - gone
    found, expected = (
        keras.tree.flatten(x(inputs, training=False)) for x in (smaller, model)
    )
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            to_numpy(one), to_numpy(two), rtol=1e-4, atol=1e-5
        )


def test_tokens_and_positions_of_a_model_of_ones_own():
    """Identities: the composite is written out, with both of its tables."""
    inputs = keras.Input((8,), dtype="int32")
    embed = keras_hub.layers.TokenAndPositionEmbedding(20, 10, 4)
    model = keras.Model(inputs, keras.layers.Dense(2)(embed(inputs)))
    variational = keras_vd.to_variational(model, verbose=0)
    kinds = {type(x).__name__ for x in variational.layers}
    assert {"VDReversibleEmbedding", "VDPositionEmbedding"} <= kinds
    ids = np.arange(16).reshape(2, 8)
    expected = predictions(model, ids)
    assert_alike(predictions(variational, ids), expected)
    plain = keras_vd.to_deterministic(variational)
    assert_alike(predictions(plain, ids), expected)
    kinds = {type(x) for x in plain.layers}
    assert keras_hub.layers.PositionEmbedding in kinds


def let_die(rng, kernel, axis, units):
    """Zero some units along an axis of a kernel; return which."""
    values = to_numpy(kernel).copy()
    dead = rng.permutation(values.shape[axis])[:units]
    np.moveaxis(values, axis, 0)[dead] = 0.0
    kernel.assign(values)


def shrunk(model, inputs, gone, tmp_path):
    """Shrink; compare with the sizes, the model before, and the file."""
    before = predictions(model, inputs)
    smaller, report = keras_vd.shrink(model, verbose=0, return_report=True)
    assert smaller.count_params() == model.count_params() - gone
    assert_alike(predictions(smaller, inputs), before, 1e-5)
    smaller.save(tmp_path / "smaller.keras")
    loaded = keras.models.load_model(tmp_path / "smaller.keras")
    assert_alike(predictions(loaded, inputs), before, 1e-5)
    return smaller, report


# Of each network: its layers with hidden units, the kernel that reads these,
# and how many weights a unit has.
HIDDEN = {
    "GPT2Backbone": ("transformer_layers", "_feedforward_output_dense", 33),
    "GemmaBackbone": ("transformer_layers", "ffw_linear", 48),
    "T5Backbone": ("decoder_transformer_layers", "output_projector", 48),
    "GPT2CausalLM": ("transformer_layers", "_feedforward_output_dense", 33),
    "LlamaBackbone": ("transformer_layers", "_feedforward_output_dense", 48),
    "ViTBackbone": ("encoder_layers", "mlp.dense_2", 33),
}


def hidden_layers(name, model):
    layers, dense, size = HIDDEN[name]
    owner = getattr(model, "backbone", model)
    if name == "ViTBackbone":
        owner = owner.get_layer("vit_encoder")
    found = [
        operator.attrgetter(dense)(layer) for layer in getattr(owner, layers)
    ]
    return found, size


@pytest.mark.parametrize(("seed", "name"), list(enumerate(HIDDEN)))
def test_hidden_units_go_by_the_config(name, seed, tmp_path):
    """Oracle: weights of the dead units, counted by hand."""
    rng = np.random.default_rng(seed)
    model, inputs = hub.BUILDERS[name]()
    found, size = hidden_layers(name, model)
    units = found[0].kernel.shape[0]
    dead = [int(rng.integers(1, units)) for _ in found]
    for dense, number in zip(found, dead, strict=True):
        let_die(rng, dense.kernel, 0, number)
    if name in ("LlamaBackbone", "ViTBackbone"):
        # Their own config has one number for all layers.
        dead = [min(dead)] * len(dead)
    smaller, _ = shrunk(model, inputs, size * sum(dead), tmp_path)
    kept_class = name in ("LlamaBackbone", "ViTBackbone")
    assert (type(smaller) is type(model)) == kept_class


def test_groups_of_heads_go_by_the_config(tmp_path):
    """Oracle: two of four query heads, one of two of keys and values."""
    model, inputs = hub.gemma()
    for layer, group in zip(model.transformer_layers, (0, 1), strict=True):
        kernel = layer.attention.output_dense.kernel
        values = to_numpy(kernel).copy()
        values[2 * group : 2 * group + 2] = 0.0
        kernel.assign(values)
    # Of 16 inputs and 4 dimensions: 2 queries and outputs, a key, a value.
    gone = 2 * 16 * 4 * (2 + 2 + 1 + 1)
    smaller, report = shrunk(model, inputs, gone, tmp_path)
    for block in ("decoder_block_0", "decoder_block_1"):
        layer = smaller.get_layer(block)
        assert (layer.num_query_heads, layer.num_key_value_heads) == (2, 1)
        assert block not in report.kept_whole


def test_heads_whose_size_depends_on_their_number_stay(tmp_path):
    """Oracle: the report."""
    model, inputs = hub.gpt2()
    for layer in model.transformer_layers:
        let_die(
            np.random.default_rng(0),
            layer._self_attention_layer._output_dense.kernel,
            0,
            1,
        )
    _, report = shrunk(model, inputs, 0, tmp_path)
    for name in ("transformer_layer_0", "transformer_layer_1"):
        assert "no number in its config" in report.kept_whole[name]
