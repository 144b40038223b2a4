from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras.src.testing import TestCase

import keras_vd
from keras_vd import layers, posteriors
from tests.helpers.arrays import to_numpy
from tests.helpers.attention import has
from tests.helpers.contract import (
    IS_JAX,
    KL_WEIGHT,
    MAX_Z,
    Case,
    LayerContract,
    MixedPrecisionContract,
    assert_close,
    assert_equal,
    assert_moments,
    check_every_argument,
    parametrize,
    randomize,
)
from tests.helpers.plain import plain_class

ATTRIBUTES = ("query", "key", "gate", "value", "output")
PROJECTIONS = ("query", "key", "value", "attention_output")


def projections(layer):
    """Sublayers by their own names, in the order in which Keras makes them."""
    found = [getattr(layer, f"_{name}_dense", None) for name in ATTRIBUTES]
    return {x.name: x for x in found if x is not None}


@dataclasses.dataclass(frozen=True)
class AttentionCase(Case):
    """An attention layer, the weights of which belong to its projections.

    Attributes:
        source: What is attended to, made from the inputs; by default these.
    """

    weights: tuple[str, ...] = PROJECTIONS
    source: Callable[[Any], Any] = lambda inputs: inputs

    def build(self, layer: Any) -> Any:
        shape = (1, *self.input_shape)
        layer.build(shape, self.source(np.zeros(shape)).shape)
        return layer

    def make(self, **arguments: Any) -> Any:
        options = {"kl_weight": KL_WEIGHT, **self.all_arguments, **arguments}
        layer = self.build(self.layer(**options))
        randomize(layer)
        return layer

    def linear(self) -> AttentionCase:
        return self

    def call(self, layer: Any, inputs: Any, **options: Any) -> Any:
        return layer(inputs, self.source(inputs), **options)

    def model(self, layer: Any) -> keras.Model:
        inputs = keras.Input(self.input_shape)
        return keras.Model(inputs, self.call(layer, inputs))

    def posteriors(self, layer: Any) -> list[posteriors.WeightPosterior]:
        if not layer.built:  # only then are there projections
            self.build(layer)
        sublayers = projections(layer)
        found = [sublayers[name].kernel_posterior for name in self.weights]
        return found + ([layer.heads_group] if self.groups else [])

    def trainable_paths(self, layer: Any) -> list[str]:
        return [
            *(f"{name}/kernel" for name in self.weights),
            *(f"{name}/kernel_posterior/log_sigma2" for name in self.weights),
            *(f"{name}_group/scales" for name in self.groups),
            *(f"{name}_group/log_sigma2" for name in self.groups),
        ]

    def plain(self, layer: Any, means: Any) -> Any:
        names = self.weights + self.groups
        means = dict(zip(names, means, strict=True))
        plain = self.build(plain_class(self.layer)(**self.arguments))
        for name, target in projections(plain).items():
            kernel = np.array(means[name])
            if name == "attention_output" and self.groups:
                for head, value in enumerate(means["heads"]):
                    kernel[head] *= value
            target.kernel.assign(kernel)
            if target.bias is not None:
                target.bias.assign(to_numpy(projections(layer)[name].bias))
        return plain


MULTI_HEAD = AttentionCase(
    "multi_head",
    layers.VDMultiHeadAttention,
    (4, 6),
    {"num_heads": 4, "key_dim": 3},
    core=True,
    groups=("heads",),
)
CASES = [
    MULTI_HEAD,
    AttentionCase(
        "cross",
        layers.VDMultiHeadAttention,
        (4, 6),
        {
            "num_heads": 2,
            "key_dim": 3,
            "value_dim": 2,
            "output_shape": 5,
            "use_bias": False,
        },
        source=lambda inputs: inputs[:, :3, 2:4],
    ),
    AttentionCase(
        "images",
        layers.VDMultiHeadAttention,
        (2, 3, 4),
        {"num_heads": 2, "key_dim": 3, "attention_axes": (1, 2)},
    ),
    AttentionCase(
        "gated",
        layers.VDMultiHeadAttention,
        (4, 6),
        {"num_heads": 4, "key_dim": 2, "value_dim": 3, "use_gate": True},
        weights=("query", "key", "gate", "value", "attention_output"),
        groups=("heads",),
    ),
    AttentionCase(
        "grouped_query",
        layers.VDGroupQueryAttention,
        (4, 6),
        {"num_query_heads": 4, "num_key_value_heads": 2, "head_dim": 3},
        core=True,
        groups=("heads",),
    ),
]
CASES = [case for case in CASES if case.name != "gated" or has("use_gate")]
BOTH = [case for case in CASES if case.core]


@parametrize(CASES)
class TestContract(LayerContract):
    def test_keras_own_layer_test(self, case: Case) -> None:
        """Oracle: Keras' harness, and counts worked out by hand.

        Trainable: as for other layers, with a bias for each projection.
        Others: a seed generator for each posterior and for the dropout.
        """
        num_posteriors = len(case.weights + case.groups)
        has_bias = case.arguments.get("use_bias", True)
        query = (2, *case.input_shape)
        value = case.source(np.zeros(query)).shape
        TestCase().run_layer_test(
            case.layer,
            init_kwargs={
                **case.all_arguments,
                "kl_weight": KL_WEIGHT,
                "dropout": 0.25,
            },
            input_shape={"query_shape": query, "value_shape": value},
            call_kwargs={"training": True},
            expected_output_shape=(
                *query[:-1],
                case.arguments.get("output_shape", query[-1]),
            ),
            expected_num_trainable_weights=(
                2 * num_posteriors + has_bias * len(case.weights)
            ),
            expected_num_non_trainable_weights=2 * num_posteriors,
            expected_num_non_trainable_variables=3 * num_posteriors + 1,
            expected_num_seed_generators=num_posteriors + 1,
            expected_num_losses=num_posteriors,
            supports_masking=True,
            # Keras' harness trains layers of one argument only.
            run_training_check=False,
            run_mixed_precision_check=case.core,
        )


@parametrize(BOTH)
class TestMixedPrecision(MixedPrecisionContract):
    pass


def softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def slow_attention(layer, query, source, allowed=None):
    """One head after the other, from the posteriors' variables.

    Returns:
        The output without its bias by head, `(heads, batch, T, dim)`, and the
        scores, `(batch, heads, T, S)`.
    """
    found = projections(layer)

    def projected(name, inputs, head):
        kernel = to_numpy(found[name].kernel)
        head = head * kernel.shape[1] // num_heads
        bias = to_numpy(found[name].bias)[head]
        return inputs @ kernel[:, head] + bias

    output = to_numpy(found["attention_output"].kernel)
    num_heads = len(output)
    shares, scores = [], []
    for head in range(num_heads):
        q = projected("query", query, head)
        k, v = (projected(name, source, head) for name in ("key", "value"))
        logits = q @ np.swapaxes(k, 1, 2) / np.sqrt(k.shape[-1])
        if allowed is not None:
            logits = np.where(allowed, logits, -1e9)
        scores.append(softmax(logits))
        shares.append(scores[-1] @ v @ output[head])
    return np.stack(shares), np.stack(scores, axis=1)


def masks(name):
    """Arguments of a call, and what may attend to what, `(batch, T, S)`."""
    allowed = np.ones((3, 4, 4), bool)
    if name == "causal":
        return {"use_causal_mask": True}, allowed & np.tri(4, dtype=bool)
    if name == "padding":
        allowed[1, :, 2:] = False
        return {"value_mask": allowed[:, 0]}, allowed
    if name == "explicit":
        allowed = np.random.default_rng(2).uniform(size=(3, 4, 4)) < 0.6
        allowed |= np.eye(4, dtype=bool)
        return {"attention_mask": allowed}, allowed
    return {}, allowed


@pytest.mark.core
@pytest.mark.parametrize("mask", ["none", "causal", "padding", "explicit"])
@pytest.mark.parametrize("case", BOTH, ids=lambda case: case.name)
def test_masks_and_scores(case, mask):
    """Oracle: slow attention in NumPy; a pruned head adds exactly 0."""
    layer, inputs = case.make(), case.inputs()
    scales = to_numpy(layer.heads_group.weight)
    layer.heads_group.keep_mask.assign([True, False, True, True])
    arguments, allowed = masks(mask)
    shares, scores = slow_attention(layer, inputs, inputs, allowed)
    scales = scales * [1.0, 0.0, 1.0, 1.0]
    bias = to_numpy(layer._output_dense.bias)
    expected = np.tensordot(scales, shares, axes=1) + bias
    assert_close(layer(inputs, inputs, **arguments), expected, 1e-5)
    outputs, found = layer(
        inputs, inputs, return_attention_scores=True, **arguments
    )
    assert_close(outputs, expected, 1e-5)
    assert_close(found, scores, 1e-5)


@pytest.mark.core
def test_mask_of_an_embedding():
    """Identity: what a masked token holds plays no part."""
    ids = keras.Input((4,), dtype="int32")
    tokens = keras.layers.Embedding(9, 6, mask_zero=True)(ids)
    outputs = MULTI_HEAD.make()(tokens, tokens)
    model = keras.Model(ids, outputs)
    table = model.layers[1].embeddings
    padded = np.array([[3, 5, 0, 0]])
    before = to_numpy(model(padded))[:, :2]
    changed = to_numpy(table).copy()
    changed[0] += 7.0
    table.assign(changed)
    assert_close(to_numpy(model(padded))[:, :2], before)


@pytest.mark.core
@pytest.mark.parametrize("case", BOTH, ids=lambda case: case.name)
def test_one_label_per_projection(case):
    """Oracle: by hand."""
    layer = case.make(name="attention")
    report = keras_vd.sparsity_report(layer)
    assert [row.name for row in report.rows] == [
        f"attention/{name}" for name in PROJECTIONS
    ]
    assert [row.name for row in report.groups] == ["attention/heads"]
    rows = {row.name.split("/")[1]: row for row in report.rows}
    assert (rows["query"].inputs, rows["query"].outputs) == (6, 12)
    output = rows["attention_output"]
    assert (output.inputs, output.outputs) == (12, 6)
    layer.heads_group.keep_mask.assign([True, False, False, True])
    report = keras_vd.sparsity_report(layer)
    assert report.rows[-1].active_inputs == 6
    assert report.rows[-1].nonzero == 36
    assert report.groups[0].active == 2


def quiet(layer, name):
    """Take the noise of all but one projection away."""
    for found in projections(layer).values():
        posterior = found.kernel_posterior
        level = 0.0 if found.name == name else -40.0
        posterior.log_sigma2.assign(np.full(found.kernel.shape, level))


@pytest.mark.core
@pytest.mark.parametrize("name", PROJECTIONS)
def test_training_reaches_every_projection(name):
    """Each is noisy in training, with others quiet, and none at inference."""
    layer, inputs = MULTI_HEAD.make(groups=()), MULTI_HEAD.inputs()
    quiet(layer, name)
    first, second = (
        to_numpy(layer(inputs, inputs, training=True)) for _ in range(2)
    )
    assert np.abs(first - second).max() > 1e-2
    assert_equal(layer(inputs, inputs), layer(inputs, inputs))


@pytest.mark.core
def test_noise_of_values_is_independent_for_every_token():
    """Oracle: closed form, for attention to all tokens alike.

    With queries of zero a head's output is the mean over S tokens of the
    values, of variance sum_s (x_s^2 @ sigma2) / S^2. One sample of the weight
    for all tokens would give (sum_s x_s)^2 @ sigma2 / S^2.
    """
    keras.utils.set_random_seed(0)
    layer = MULTI_HEAD.make(groups=())
    quiet(layer, "value")
    layer.query_dense.kernel.assign(np.zeros((6, 4, 3)))
    layer.query_dense.bias.assign(np.zeros((4, 3)))
    example = MULTI_HEAD.inputs(1)
    batch = np.repeat(example, 4000, axis=0)
    draws = to_numpy(layer(batch, batch, training=True)).astype("float64")
    variance = np.einsum("sd,dhv->hv", example[0] ** 2, np.ones((6, 4, 3)))
    output = to_numpy(layer.output_dense.kernel)
    assert_moments(
        draws[:, 0],
        to_numpy(layer(example, example))[0, 0],
        np.einsum("hv,hvo->o", variance / 4**2, output**2),
    )


@pytest.mark.core
def test_noise_of_outputs_is_independent_for_every_token():
    """Oracle: correlation 0 within 5 / sqrt(n), between all tokens."""
    keras.utils.set_random_seed(0)
    layer = MULTI_HEAD.make(groups=())
    quiet(layer, "attention_output")
    batch = np.repeat(MULTI_HEAD.inputs(1), 4000, axis=0)
    draws = to_numpy(layer(batch, batch, training=True)).reshape(4000, -1)
    correlation = np.corrcoef(draws, rowvar=False)
    np.fill_diagonal(correlation, 0.0)
    assert np.abs(correlation).max() < MAX_Z / np.sqrt(4000)


@pytest.mark.core
def test_dropout_is_of_training_alone():
    """Same seed, same dropout; inference is that of the layer without."""
    plain = MULTI_HEAD.make(groups=())
    outputs = []
    for _ in range(2):
        layer = MULTI_HEAD.make(groups=(), dropout=0.5, seed=3)
        quiet(layer, None)
        inputs = MULTI_HEAD.inputs()
        outputs.append(to_numpy(layer(inputs, inputs, training=True)))
        assert_close(layer(inputs, inputs), plain(inputs, inputs), 1e-5)
    assert_close(outputs[0], outputs[1], 1e-3)
    assert np.abs(outputs[0] - to_numpy(plain(inputs, inputs))).max() > 0.1


@pytest.mark.core
@pytest.mark.parametrize("name", ["sparse_vd", "vd", "ard", "gaussian"])
def test_every_posterior_learns(name):
    """One step of `fit` changes all that can be trained, to finite values."""
    layer = MULTI_HEAD.make(posterior=name)
    model = MULTI_HEAD.model(layer)
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    before = [to_numpy(x).copy() for x in model.trainable_variables]
    model.train_on_batch(MULTI_HEAD.inputs(), np.ones((3, 4, 6)))
    for old, variable in zip(before, model.trainable_variables, strict=True):
        new = to_numpy(variable)
        assert np.isfinite(new).all()
        # The same number on all scores of a token changes no softmax.
        if not variable.path.endswith("key/bias"):
            assert np.abs(new - old).max() > 0.0, variable.path


@pytest.mark.core
@pytest.mark.parametrize("case", BOTH, ids=lambda case: case.name)
def test_deterministic_layer(case, tmp_path):
    """Oracle: the variational layer's inference, half of it pruned."""
    layer = case.make(name="attention")
    for posterior in case.posteriors(layer):
        posterior.log_sigma2.assign(
            np.where(np.arange(posterior.theta.shape[-1]) % 2, 9.0, -5.0)
            + 0.0 * to_numpy(posterior.log_sigma2)
        )
    model, inputs = case.model(layer), case.inputs()
    report = keras_vd.prune(model)
    assert report.sparsity > 0.4
    plain = keras_vd.to_deterministic(model)
    assert type(plain.get_layer("attention")) is plain_class(case.layer)
    assert_close(plain(inputs), model(inputs))
    plain.save(tmp_path / "plain.keras")
    loaded = keras.saving.load_model(tmp_path / "plain.keras")
    assert_close(loaded(inputs), model(inputs))


def test_annealing_reaches_every_projection():
    """Oracle: max_weight / num_examples, after the last epoch."""
    model = MULTI_HEAD.model(MULTI_HEAD.make(kl_weight=None))
    model.compile("sgd", "mse", run_eagerly=not IS_JAX)
    annealing = keras_vd.callbacks.KLAnnealing(
        num_examples=3, start_epoch=0, warmup_epochs=1, verbose=0
    )
    history = model.fit(
        *(MULTI_HEAD.inputs(), np.ones((3, 4, 6))),
        epochs=2,
        verbose=0,
        callbacks=[annealing],
    )
    weights = keras_vd.variational_weights(model)
    assert len(weights) == 5
    for posterior in weights:
        assert to_numpy(posterior.kl_weight) == pytest.approx(1 / 3)
    assert history.history["kl"][-1] > 0.0


@pytest.mark.core
@pytest.mark.parametrize("case", BOTH, ids=lambda case: case.name)
def test_files_have_the_parts_of_keras_own(case, tmp_path):
    """A seed that only the config used was one part more."""
    plain, parts = plain_class(case.layer)(**case.arguments), []
    for name, one in (("plain", plain), ("vd", case.make())):
        case.model(one).save_weights(path := tmp_path / f"{name}.weights.h5")
        with h5py.File(path) as file:
            (content,) = (x for x in file["layers"].values() if len(x) > 1)
            parts.append(set(content) - {"vars"})
    assert parts[1] - {"heads_group"} == parts[0]


@pytest.mark.parametrize(
    "use",
    [
        lambda: MULTI_HEAD.make().quantize("int8"),
        lambda: MULTI_HEAD.make().enable_lora(2),
        lambda: MULTI_HEAD.make().query_dense.enable_lora(2),
        lambda: MULTI_HEAD.make(dtype="int8_from_float32"),
        lambda: MULTI_HEAD.make(dtype="float16"),
    ],
)
def test_lora_quantization_and_float16_are_refused(use):
    with pytest.raises(ValueError, match=r"to_deterministic|mixed_float16"):
        use()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"posterior": "sparse"}, "Argument `posterior`"),
        ({"kl_weight": -1.0}, "kl_weight"),
        ({"groups": ("head",)}, "'heads'"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        layers.VDMultiHeadAttention(2, 3, **arguments)


@pytest.mark.core
def test_missing_kl_weight_names_the_projection():
    layer = MULTI_HEAD.make(kl_weight=None, name="attention", groups=())
    with pytest.raises(ValueError, match=r"'attention/query'.*KLAnnealing"):
        layer(MULTI_HEAD.inputs(), MULTI_HEAD.inputs(), training=True)


COMMON = {
    "dropout": 0.5,
    "use_bias": False,
    "kernel_initializer": "ones",
    "bias_initializer": "ones",
    "kernel_regularizer": "l2",
    "bias_regularizer": "l2",
    "activity_regularizer": "l2",
    "kernel_constraint": "non_neg",
    "bias_constraint": "non_neg",
    "seed": 3,
    "groups": ("heads",),
}
NEWER = {"sliding_window": 3, "use_gate": True}
COMMON |= {name: value for name, value in NEWER.items() if has(name)}


@pytest.mark.parametrize(
    ("layer", "arguments"),
    [
        (
            layers.VDMultiHeadAttention,
            {
                **{"num_heads": 2, "key_dim": 3, "value_dim": 4},
                **{"output_shape": (5,), "attention_axes": (1,), **COMMON},
            },
        ),
        (
            layers.VDGroupQueryAttention,
            {
                **{"num_query_heads": 4, "num_key_value_heads": 2},
                **{"head_dim": 3, **COMMON},
            },
        ),
    ],
)
def test_every_argument_survives_the_config(layer, arguments):
    check_every_argument(layer, arguments)


@pytest.mark.integration
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="It reads a TensorFlow graph",
)
def test_exported_graph_holds_no_random_operation(tmp_path):
    from tensorflow.core.protobuf import saved_model_pb2

    inputs = keras.Input((4, 6))
    layer = layers.VDMultiHeadAttention(2, 3, dropout=0.5, groups=("heads",))
    model = keras.Model(inputs, layer(inputs, inputs, use_causal_mask=True))
    model.export(tmp_path / "model", verbose=False)
    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((tmp_path / "model/saved_model.pb").read_bytes())
    graph = proto.meta_graphs[0].graph_def
    nodes = [*graph.node]
    for function in graph.library.function:
        nodes += function.node_def
    assert len(nodes) > 20
    assert not [node.op for node in nodes if "Random" in node.op]


@pytest.mark.core
def test_nothing_is_tracked_twice():
    """Oracle: by hand; a projection that Keras replaced would show."""
    layer = MULTI_HEAD.make(groups=())
    names = [x.path.split("/", 1)[1] for x in layer.weights]
    assert sorted(names) == sorted(
        f"{name}/{weight}"
        for name in PROJECTIONS
        for weight in (
            *("kernel", "bias", "kernel_posterior/log_sigma2"),
            *("kernel_posterior/keep_mask", "kernel_posterior/kl_weight"),
        )
    )
    assert len({id(x) for x in layer.weights}) == 20
    assert all(
        type(x) is layers.VDEinsumDense for x in projections(layer).values()
    )
