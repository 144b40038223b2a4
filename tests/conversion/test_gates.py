"""`to_variational` with gates and groups.

Oracles: the trained model, whose predictions must stay; the gated one, for what
becomes of it; and models built at half the width, for what `shrink` leaves.
"""

import keras
import numpy as np
import pytest

import keras_vd
from keras_vd import layers, posteriors
from keras_vd._backend.keras_internals import flatten_layers
from keras_vd.shrinking.variational import shrink_in_place
from tests.helpers import gateable
from tests.helpers.arrays import random_inputs, to_float64, to_numpy
from tests.helpers.gateable import GATED, K, classified, normalized
from tests.helpers.gates import gates_of
from tests.helpers.models import compile_quickly

WIDTH = 4
TEMPLATES = {
    "log_normal": layers.LogNormalDropout,
    "beta_bernoulli": layers.BetaBernoulliDropout,
    "hard_concrete": layers.HardConcreteDropout,
}


def trained(build, width=WIDTH, seed=0):
    """A model whose weights are far from those that it starts from."""
    model = build(width)
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        if len(weight.shape) > 1:
            value = generator.normal(0.0, 0.4, weight.shape)
        else:
            value = generator.uniform(0.3, 1.0, weight.shape)
        weight.assign(value)
    return model


def gated(model, posterior=None, gates="log_normal", **options):
    return keras_vd.to_variational(
        model, posterior, gates=gates, verbose=0, **options
    )


def report_of(model, **options):
    return gated(model, return_report=True, **options)[1]


def reasons(report):
    return {row.layers: row.reason for row in report.streams if row.reason}


def inputs_of(model, rows=6):
    return [
        np.roll(random_inputs(rows, *x.shape[1:]), i, axis=0)
        for i, x in enumerate(model.inputs)
    ]


def predict(model):
    inputs = inputs_of(model)
    return to_float64(model(inputs if len(inputs) > 1 else inputs[0]))


def assert_equal(one, other):
    """Predictions are equal to 1e-5 of the largest."""
    one, other = predict(one), predict(other)
    largest = np.abs(other).max()
    assert largest > 0.01
    assert len(np.unique(other.round(4), axis=0)) > 1
    np.testing.assert_allclose(one, other, rtol=0.0, atol=1e-5 * largest)


def close_half(model):
    """Close every other gate, as `prune` would."""
    for gate in gates_of(model):
        gate.keep_mask.assign(np.arange(gate.units) % 2 == 1)


parametrize = pytest.mark.parametrize(
    "build", [pytest.param(x, id=x.__name__) for x in GATED]
)


@parametrize
def test_predictions_stay(build):
    """Oracle: the trained model, which stays as it is, too."""
    model = trained(build)
    before = [to_numpy(x) for x in model.weights]
    config = model.get_config()
    variational, report = gated(model, return_report=True)
    assert report.gated == GATED[build]
    names = [gate.name for gate in gates_of(variational)]
    assert sorted(names) == sorted(GATED[build])
    assert not keras_vd.variational_weights(variational)
    assert_equal(variational, model)
    assert model.get_config() == config
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(to_numpy(weight), value)


@pytest.mark.integration
@parametrize
def test_closed_channels_go(build):
    """Oracles: the gated model, and one that was built at half the width."""
    variational = gated(trained(build))
    close_half(variational)
    plain = keras_vd.to_deterministic(variational)
    assert not [x for x in flatten_layers(plain) if isinstance(x, K.Rescaling)]
    assert_equal(plain, variational)
    smaller = keras_vd.shrink(plain, verbose=0)
    assert_equal(smaller, variational)
    expected = build(WIDTH // 2).count_params()
    # A convolution in front of a shortcut may get a bias.
    assert smaller.count_params() == pytest.approx(expected, rel=0.02)


@pytest.mark.core
@pytest.mark.integration
@pytest.mark.parametrize("gates", TEMPLATES)
@pytest.mark.parametrize("posterior", [None, "sparse_vd"])
def test_every_gate_and_kernels_as_well(gates, posterior):
    """Oracles: the trained model; draws of gates that change predictions."""
    model = trained(gateable.resnet)
    variational = gated(model, posterior, gates, kl_weight=1e-3)
    found = gates_of(variational)
    assert {type(x) for x in found} == {TEMPLATES[gates]}
    assert all(float(to_numpy(x.kl_weight)) == np.float32(1e-3) for x in found)
    assert_equal(variational, model)
    weights = keras_vd.variational_weights(variational)
    assert len(weights) == (9 if posterior else 0)
    inputs = inputs_of(model)[0]
    noisy = to_float64(variational(inputs, training=True))
    assert np.abs(noisy - predict(model)).max() > 1e-4
    # One KL for each gate, wherever it is used.
    assert len(variational.losses) == len(found) + len(weights)


def test_draws_are_right_on_average():
    """Open gates are noise around the trained model, not a smaller one.

    Oracle: the trained model, linear, so that its mean is that for mean gates.
    An example has Bernoulli gates of its own, each open in two of three.
    """
    model = keras.Sequential(
        [keras.Input((3,)), K.Dense(64, name="a"), K.Dense(2, name="b")]
    )
    for weight in model.weights:
        weight.assign(np.full(weight.shape, 0.5))
    gate = layers.BetaBernoulliDropout(a_init=20.0, b_init=20.0)
    variational = gated(model, gates=gate, kl_weight=0.0)
    inputs = np.ones((2000, 3), "float32")
    drawn = to_float64(variational(inputs, training=True)).mean(axis=0)
    expected = to_float64(model(inputs[:1]))[0]
    np.testing.assert_allclose(drawn, expected, rtol=0.05)
    assert gates_of(variational)[0].get_config()["a_init"] == 20.0


def test_gates_stand_where_they_should():
    """After activation and normalization, before pooling and dropout."""
    kinds = [type(x).__name__ for x in gated(trained(gateable.vgg)).layers]
    gate = "LogNormalDropout"
    assert kinds == [
        *("Conv2D", gate, "Conv2D", "BatchNormalization", "ReLU", gate),
        *("MaxPooling2D", "Conv2D", gate, "Flatten", "Dense", gate, "Dense"),
    ]
    kinds = [type(x).__name__ for x in gated(trained(gateable.mlp)).layers]
    assert kinds == [
        *("Dense", gate, "Dropout", "Dense", "BatchNormalization", "ReLU"),
        *(gate, "Dense"),
    ]


def test_a_chain_stays_sequential_and_a_subclass_what_it_is():
    class Chain(keras.Sequential):
        pass

    model = Chain([keras.Input((6,)), *trained(gateable.mlp).layers])
    assert type(gated(model)) is Chain


@pytest.mark.integration
@pytest.mark.parametrize("gates", TEMPLATES)
def test_training_and_saving(gates, tmp_path):
    """Oracles: the model before it is saved; gates that training has moved."""
    model = trained(gateable.resnet)
    variational = gated(model, "sparse_vd", gates)
    x = inputs_of(model, 16)[0]
    y = np.random.default_rng(0).integers(0, gateable.CLASSES, 16)
    compile_quickly(
        variational,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        optimizer=keras.optimizers.Adam(0.01),
    )
    annealing = keras_vd.callbacks.KLAnnealing(
        num_examples=16, start_epoch=0, warmup_epochs=1
    )
    before = [to_numpy(x.mean()) for x in gates_of(variational)]
    variational.fit(x, y, epochs=2, verbose=0, callbacks=[annealing])
    for gate, mean in zip(gates_of(variational), before, strict=True):
        assert np.abs(to_numpy(gate.mean()) - mean).max() > 1e-6
    close_half(variational)
    expected = predict(variational)
    assert shrink_in_place(variational)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(
        predict(variational), expected, rtol=0.0, atol=1e-5 * largest
    )
    assert variational.get_layer("a_inner").filters == WIDTH // 2
    variational.fit(x, y, epochs=1, verbose=0)
    variational.save(tmp_path / "gated.keras")
    loaded = keras.saving.load_model(tmp_path / "gated.keras")
    np.testing.assert_array_equal(predict(loaded), predict(variational))
    assert len(gates_of(loaded)) == len(GATED[gateable.resnet])
    smaller = keras_vd.shrink(keras_vd.to_deterministic(loaded), verbose=0)
    assert_equal(smaller, variational)
    assert smaller.count_params() < 0.35 * model.count_params()


def test_prune_closes_gates_everywhere():
    """Oracle: `shrink`, which finds nothing of the channels in any branch."""
    variational = gated(trained(gateable.resnet))
    (gate,) = (x for x in gates_of(variational) if x.name == "b_outer_gate")
    gate.log_sigma.assign([-5.0, 3.0] * WIDTH)
    keras_vd.prune(variational)
    smaller = keras_vd.shrink(keras_vd.to_deterministic(variational), verbose=0)
    for name in ("b_outer", "b_shortcut", "c_outer"):
        assert smaller.get_layer(name).filters == WIDTH
    assert smaller.get_layer("b_inner").filters == 2 * WIDTH


def test_channels_that_have_no_gate():
    """Every layer with a kernel is in the report, with a reason."""
    model = trained(gateable.feed_forward)
    report = report_of(model)
    found = reasons(report)
    assert found[("classes",)] == "the model returns them"
    assert found[("attention",)].startswith("inputs of the model are added")
    assert "it normalizes over all" in found[("narrow",)]
    assert "classes" in str(report)
    assert "wide_gate" in str(report)
    assert report.to_dict()["streams"][2]["reason"] == found[("narrow",)]

    found = reasons(report_of(trained(gateable.recurrent)))
    assert found == {("lstm",): "the model returns them"}


def odd(build, shape=(4, 6)):
    """A model with a gate on `free`, and something odd before it."""
    inputs = keras.Input(shape)
    x = build(inputs)
    x = K.Dense(4, "relu", name="free")(K.Flatten()(x))
    return keras.Model(inputs, K.Dense(2, name="end")(x))


def with_lambda(x):
    return K.Lambda(lambda y: y * 2.0, name="odd", output_shape=(4, 3))(
        K.Dense(3, name="dense")(x)
    )


def softmax(x):
    return K.Dense(3, "softmax", name="dense")(x)


def lonely(x):
    return K.Dense(1, name="dense")(x)


def added_to_inputs(x):
    return x + K.Dense(6, name="dense")(x)


def lstm(x):
    return K.LSTM(3, name="dense")(x)


def unread(x):
    """What reads the channels does not hand the factors on."""
    x = K.Dense(3, name="dense")(x)
    return K.TimeDistributed(K.Dense(2, name="inner"), name="other")(x)


def grouped(x):
    return K.Conv1D(4, 1, groups=2, name="dense")(x)


def multiplied(x):
    return K.DepthwiseConv1D(2, depth_multiplier=2, name="dense")(x)


def used_elsewhere(x):
    """`again` reads gated channels, and others that are none of a layer's."""
    again = K.Dense(6, name="again")
    return K.Concatenate()([again(K.Dense(6, name="dense")(x)), again(x)])


def state(x):
    start = K.Dense(3, name="dense")(K.GlobalAveragePooling1D()(x))
    return K.GRU(3, name="gru")(x, initial_state=start)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (with_lambda, "'odd' needs all of them: a Lambda may"),
        (softmax, "'dense' needs all of them: its activation mixes channels"),
        (lonely, "'dense' needs all of them: there is only one"),
        (added_to_inputs, "inputs of the model are added"),
        (lstm, "'dense' needs all of them: its units depend on each other"),
        (unread, "no weights take in a factor past 'other'"),
        (grouped, "'dense' needs all of them: its units depend"),
        (multiplied, "'dense' needs all of them: its units depend"),
        (used_elsewhere, "inputs of the model are added"),
        (state, "'gru' needs all of them: it reads them as a mask or state"),
    ],
)
def test_why_there_is_no_gate(build, expected):
    model = trained(lambda _: odd(build))
    variational, report = gated(model, return_report=True)
    assert ("free",) in report.gated.values()
    (reason,) = (v for k, v in reasons(report).items() if "dense" in k)
    assert reason.startswith(expected)
    assert_equal(variational, model)


def test_a_gate_of_ones_own_and_a_function():
    model = trained(gateable.resnet)
    gate = layers.HardConcreteDropout(
        log_alpha_init=1.0, kl_scale=0.5, name="mine"
    )
    variational = gated(model, gates=gate, kl_weight=0.25)
    found = gates_of(variational)
    assert {x.kl_scale for x in found} == {0.5}
    assert {x.log_alpha_init for x in found} == {1.0}
    assert {x.initial_kl_weight for x in found} == {0.25}
    assert "mine" not in {x.name for x in found}
    assert_equal(variational, model)

    def choose(layer):
        if layer.name == "c_outer":
            return None
        return "beta_bernoulli" if "inner" in layer.name else gate

    variational, report = gated(model, gates=choose, return_report=True)
    assert reasons(report)["b_outer", "b_shortcut", "c_outer"] == "not chosen"
    kinds = {x.name: type(x) for x in gates_of(variational)}
    assert kinds == {
        "stem_gate": layers.HardConcreteDropout,
        "a_inner_gate": layers.BetaBernoulliDropout,
        "b_inner_gate": layers.BetaBernoulliDropout,
        "c_inner_gate": layers.BetaBernoulliDropout,
    }
    assert_equal(variational, model)


def test_names_that_are_taken():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            K.Dense(4, name="a"),
            K.Dense(4, name="a_gate"),
            K.Dense(2, name="b"),
        ]
    )
    names = [x.name for x in gated(model).layers]
    assert names == ["a", "a_gate_2", "a_gate", "a_gate_gate", "b"]


def test_policies():
    policy = keras.DTypePolicy("mixed_bfloat16")
    model = keras.Sequential(
        [keras.Input((3,)), K.Dense(4, dtype=policy), K.Dense(2, dtype=policy)]
    )
    (gate,) = gates_of(gated(model))
    assert gate.compute_dtype == "bfloat16"
    assert gate.mu.dtype == "float32"


class Block(K.Layer):
    """A user's layer, made of layers."""

    def __init__(self, **options):
        super().__init__(**options)
        self.conv = K.Conv2D(WIDTH, 3, padding="same", name="conv")
        self.norm = K.BatchNormalization()

    def call(self, inputs):
        return keras.ops.relu(inputs + self.norm(self.conv(inputs)))


def test_layers_made_of_layers():
    inputs = keras.Input((8, 8, 3))
    x = normalized(inputs, WIDTH, name="stem")
    x = Block(name="b")(Block(name="a")(x))
    model = trained(lambda _: classified(inputs, x))
    variational, report = gated(model, return_report=True)
    assert list(report.gated) == ["stem_gate"]
    assert len(report.gated["stem_gate"]) == 3
    assert_equal(variational, model)
    close_half(variational)
    smaller = keras_vd.shrink(keras_vd.to_deterministic(variational), verbose=0)
    assert_equal(smaller, variational)
    assert smaller.get_layer("stem").filters == WIDTH // 2


def test_frozen_backbones_and_what_is_included():
    """`include` and frozen layers are about kernels, not about gates."""
    model = trained(gateable.transferred)
    model.get_layer("backbone").trainable = False
    variational, report = gated(
        model, "sparse_vd", include="classes", return_report=True
    )
    assert report.converted == ["classes"]
    assert report.gated == GATED[gateable.transferred]
    assert "backbone/stem" in report.skipped
    assert not variational.get_layer("stem").trainable
    assert all(x.trainable for x in gates_of(variational))
    assert_equal(variational, model)


def test_groups():
    """Oracle: the trained model; a closed head, which `shrink` removes."""
    model = trained(gateable.feed_forward)
    variational, report = keras_vd.to_variational(
        model, groups=("heads", "input"), return_report=True, verbose=0
    )
    groups = {row.name: row.groups for row in report.rows if row.groups}
    assert groups == {
        "attention": ("heads",),
        "wide": ("input",),
        "narrow": ("input",),
        "classes": ("input",),
    }
    assert "(heads)" in str(report)
    assert_equal(variational, model)
    heads = variational.get_layer("attention").heads_group
    assert isinstance(heads, posteriors.SparseVD)
    heads.keep_mask.assign([True, False])
    plain = keras_vd.to_deterministic(variational)
    assert_equal(plain, variational)
    smaller = keras_vd.shrink(plain, verbose=0)
    assert smaller.get_layer("attention").num_heads == 1
    assert_equal(smaller, variational)


def test_groups_and_gates_at_once():
    model = trained(gateable.feed_forward)
    variational, report = gated(
        model, "sparse_vd", groups=("heads",), return_report=True
    )
    assert report.gated == GATED[gateable.feed_forward]
    assert variational.get_layer("attention").group_names == ("heads",)
    assert_equal(variational, model)


def test_groups_by_a_function():
    model = trained(gateable.mlp)
    variational = keras_vd.to_variational(
        model,
        groups=lambda x: ("input", "output") if x.name == "two" else (),
        verbose=0,
    )
    assert variational.get_layer("two").group_names == ("input", "output")
    assert variational.get_layer("one").group_names == ()
    assert_equal(variational, model)


def test_grouped_convolutions_have_no_groups_of_weights():
    model = keras.Sequential(
        [
            keras.Input((6, 4)),
            K.Conv1D(4, 1, groups=2, name="grouped"),
            K.Conv1D(4, 1, name="whole"),
        ]
    )
    variational = keras_vd.to_variational(model, groups=("input",), verbose=0)
    assert variational.get_layer("grouped").groups == 2
    assert variational.get_layer("grouped").group_names == ()
    assert variational.get_layer("whole").group_names == ("input",)
    assert_equal(variational, model)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gates": "l0"}, ValueError, "gates='l0'"),
        ({"gates": 3}, TypeError, "Received: 3"),
        ({"gates": True}, TypeError, "Received: True"),
        ({"gates": layers.LogNormalDropout}, TypeError, "type type"),
        ({"gates": K.Dropout(0.5)}, TypeError, "of type Dropout"),
        ({"gates": ["log_normal"]}, TypeError, "of type list"),
        ({"gates": lambda layer: 3}, TypeError, "Received: 3"),
        ({"gates": lambda layer: "l0"}, ValueError, "gates='l0'"),
        ({"gates": lambda layer: None}, ValueError, "not chosen"),
        ({"gates": layers.LogNormalDropout(axis=1)}, ValueError, "axis=1"),
        (
            {"gates": layers.HardConcreteDropout(log_alpha_init=-4.0)},
            ValueError,
            "start open",
        ),
        (
            {"gates": layers.DependentBetaBernoulliDropout()},
            ValueError,
            "does not depend on inputs",
        ),
        ({}, ValueError, "posterior=None, gates=None"),
        ({"groups": ("input",)}, ValueError, "groups=\\('input',\\)"),
        (
            {"gates": "log_normal", "groups": ("input",)},
            ValueError,
            "posterior=None, groups",
        ),
        (
            {"posterior": "vd", "groups": ("heads",)},
            ValueError,
            "'input', 'output'",
        ),
        ({"posterior": "vd", "groups": "input"}, TypeError, "type str"),
        ({"posterior": "vd", "groups": 3}, TypeError, "type int"),
        (
            {"posterior": "vd", "groups": ("input", "input")},
            ValueError,
            "different names",
        ),
        (
            {"posterior": "vd", "groups": lambda layer: ("heads",)},
            ValueError,
            "'heads'",
        ),
    ],
)
def test_errors(options, error, message):
    options = {"posterior": None, **options}
    with pytest.raises(error, match=message):
        keras_vd.to_variational(trained(gateable.mlp), verbose=0, **options)


def test_models_without_channels_that_could_go():
    model = keras.Sequential([keras.Input((3,)), K.Dense(2, name="only")])
    with pytest.raises(ValueError, match=r"'only'.*the model returns them"):
        gated(model)
    model = keras.Sequential([keras.Input((3,)), K.ReLU()])
    with pytest.raises(ValueError, match="no layers with kernels"):
        gated(model)


class Conditional(keras.Model):
    """Its `call` looks at values, and cannot be written out."""

    def __init__(self):
        super().__init__()
        self.dense = K.Dense(3)

    def call(self, inputs):
        if float(keras.ops.sum(inputs)) > 0.0:
            return self.dense(inputs)
        return inputs


def test_a_model_that_cannot_be_written_out():
    model = Conditional()
    model(np.ones((1, 3), "float32"))
    with pytest.raises(ValueError, match="connections are known"):
        gated(model)
