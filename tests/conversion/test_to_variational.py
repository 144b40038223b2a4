import json

import keras
import numpy as np
import pytest

import keras_vd
from keras_vd import layers, posteriors, to_variational
from keras_vd._backend.keras_internals import flatten_layers
from tests.helpers.arrays import random_inputs, to_float64
from tests.helpers.convertible import CORE, MODELS, Scale, inputs_of, predict
from tests.helpers.models import (
    Wrapping,
    classification_data,
    compile_quickly,
    log_alpha,
    mlp,
    plain_mlp,
    randomize,
    set_kept,
)


def convert(model, *arguments, **options):
    return to_variational(model, *arguments, **options, verbose=0)


def report_of(model, **options):
    return convert(model, return_report=True, **options)[1]


def recurrent():
    return keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            keras.layers.Embedding(9, 4, mask_zero=True, name="words"),
            keras.layers.Bidirectional(
                keras.layers.LSTM(3, return_sequences=True, name="lstm"),
                name="both",
            ),
            keras.layers.GRU(4, return_sequences=True, name="gru"),
            keras.layers.SimpleRNN(2, name="simple"),
            keras.layers.Dense(2, name="last"),
        ]
    )


def residual():
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(6, "relu", name="first")(inputs)
    hidden = keras.ops.relu(hidden + inputs)
    normalized = keras.layers.BatchNormalization(name="norm")(hidden)
    return keras.Model(inputs, keras.layers.Dense(3, name="second")(normalized))


def transformer():
    """Self, cross and grouped attention between normalizations."""
    queries, values = keras.Input((4, 6)), keras.Input((5, 3))
    hidden = keras.layers.LayerNormalization(name="norm")(queries)
    hidden += keras.layers.MultiHeadAttention(2, 3, name="own")(hidden, hidden)
    hidden += keras.layers.MultiHeadAttention(
        3, 2, use_bias=False, name="other"
    )(hidden, values)
    grouped = keras.layers.GroupQueryAttention(3, 4, 2, name="grouped")
    hidden += grouped(hidden, hidden)
    hidden = keras.layers.EinsumDense("abc,cd->abd", (4, 7), name="wide")(
        hidden
    )
    return keras.Model([queries, values], hidden)


def deep():
    """`Dense` layers of one name, on two levels."""
    inner = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(4, name="dense")], name="inner"
    )
    return keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(4, name="dense"), inner]
    )


def kind_of(layer):
    is_posterior = isinstance(layer, posteriors.WeightPosterior)
    return "posterior" if is_posterior else type(layer)


@pytest.mark.integration
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.core if name in CORE else ())
        for name in MODELS
        if name not in ("not trainable", "user's variational layer")
    ],
)
def test_predictions_and_weights_stay(name):
    """Oracle: the plain model, and what the way back makes of it."""
    build, shapes = MODELS[name]
    source = build()
    randomize(source)
    plain = keras_vd.to_deterministic(source)
    inputs = inputs_of(shapes)
    expected = predict(plain, inputs)
    before = [to_float64(weight) for weight in plain.weights]
    variational = convert(plain, "ard")
    for one, other in zip(predict(variational, inputs), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    kinds, others = (
        [kind_of(layer) for layer in flatten_layers(x)]
        for x in (variational, source)
    )
    if name == "subclassed":
        # It was written out: only its layers are what they were.
        assert set(others) - set(kinds) == {Wrapping}
    else:
        assert kinds == others
    weights = keras_vd.variational_weights(variational)
    assert {type(weight) for weight in weights} == {posteriors.ARD}
    back = keras_vd.to_deterministic(variational)
    for one, other in zip(back.weights, before, strict=True):
        np.testing.assert_array_equal(to_float64(one), other)
    # The copy shares nothing with its source, which is as it was.
    for weight in variational.weights:
        weight.assign(np.zeros(weight.shape))
    for one, other in zip(plain.weights, before, strict=True):
        np.testing.assert_array_equal(to_float64(one), other)
    assert not variational.compiled


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("posterior", ["sparse_vd", "ard", "vd", "gaussian"])
def test_recurrent_and_residual_models(posterior):
    for build, inputs in (
        (recurrent, np.array([[3, 8, 1, 0, 0], [7, 2, 2, 5, 1]])),
        (residual, random_inputs(4, 6)),
    ):
        model = build()
        randomize(model)
        variational, report = convert(
            model, posterior=posterior, kl_weight=0.01, return_report=True
        )
        np.testing.assert_allclose(
            predict(variational, inputs)[0],
            predict(model, inputs)[0],
            rtol=1e-6,
            atol=1e-6,
        )
        found = keras_vd.variational_weights(variational)
        assert {type(x) for x in found} == {type(posteriors.get(posterior))}
        for weight in found:
            assert float(to_float64(weight.kl_weight)) == pytest.approx(0.01)
        if build is recurrent:
            assert report.skipped == {}
            assert len(found) == 1 + 4 + 2 + 2 + 1
        else:
            assert list(report.skipped) == ["norm"]


@pytest.mark.integration
@pytest.mark.core
def test_attention():
    model = transformer()
    randomize(model)
    inputs = [random_inputs(2, 4, 6), random_inputs(2, 5, 3)]
    variational, report = convert(model, kl_weight=0.01, return_report=True)
    np.testing.assert_allclose(
        predict(variational, inputs)[0],
        predict(model, inputs)[0],
        rtol=1e-6,
        atol=1e-6,
    )
    assert list(report.skipped) == ["norm"]
    weights = keras_vd.variational_weights(variational)
    assert len(weights) == 3 * 4 + 1
    # Noise in all of them, by their own size.
    starts = [float(to_float64(x.log_sigma2).max()) for x in weights]
    assert len(set(starts)) == len(weights)
    back = keras_vd.to_deterministic(variational)
    for one, other in zip(back.weights, model.weights, strict=True):
        np.testing.assert_array_equal(to_float64(one), to_float64(other))
    variational(inputs, training=True)
    assert len(variational.losses) == len(weights)


@pytest.mark.integration
@pytest.mark.core
def test_converted_models_train_and_save(tmp_path):
    x, y = classification_data()
    model = convert(residual(), kl_weight=1 / len(x))
    compile_quickly(
        model,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    before = [to_float64(p.theta) for p in keras_vd.variational_weights(model)]
    model.fit(x, y, epochs=1, batch_size=8, verbose=0)
    after = [to_float64(p.theta) for p in keras_vd.variational_weights(model)]
    assert all((a != b).any() for a, b in zip(before, after, strict=True))
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(predict(loaded, x)[0], predict(model, x)[0])


@pytest.mark.core
def test_kl_weight_of_a_posterior_object():
    for template, given, expected in (
        (posteriors.ARD(kl_weight=0.5), None, 0.5),
        (posteriors.ARD(kl_weight=0.5), 0.25, 0.25),
    ):
        model = convert(plain_mlp(), template, kl_weight=given)
        (weight,) = keras_vd.variational_weights(model)
        assert float(to_float64(weight.kl_weight)) == expected


@pytest.mark.core
def test_a_posterior_for_each_layer():
    def choose(layer):
        if isinstance(layer, keras.layers.Dense):
            return "ard"
        return posteriors.SparseVD(kl_scale=len(layer.name))

    model = convert(recurrent(), choose, include=["gru", "last"])
    found = keras_vd.variational_weights(model)
    assert [type(x).__name__ for x in found] == ["SparseVD", "SparseVD", "ARD"]
    assert [x.kl_scale for x in found] == [3.0, 3.0, 1.0]


def test_a_function_that_returns_no_posterior():
    with pytest.raises(ValueError, match="posterior"):
        convert(plain_mlp(), lambda layer: layer)


def test_training_asks_for_a_kl_weight():
    model = convert(plain_mlp())
    with pytest.raises(ValueError, match=r"KLAnnealing\(num_examples=N\)"):
        model(random_inputs(2, 6), training=True)


# Where the noise starts.


@pytest.mark.core
@pytest.mark.parametrize("share", ["weight", "unit", "layer"])
@pytest.mark.parametrize("given", [None, -1.0, -20.0])
def test_start_of_the_variances(share, given):
    """Oracle: the docstring's sentence, weight by weight."""
    plain = plain_mlp()
    theta = np.linspace(-1.0, 1.0, 18).reshape(6, 3) ** 3
    theta[0, 1] = 0.0
    plain.layers[0].kernel.assign(theta)
    template = posteriors.SparseVD(
        share=share, threshold=2.0, log_sigma2_init=given
    )
    (posterior,) = keras_vd.variational_weights(convert(plain, template))
    start = np.log(np.mean(theta**2) + 1e-8) - 3 if given is None else given
    most = np.log(theta**2 + 1e-8) + 2.0 - 3.0
    if share == "unit":
        most = np.tile(most.min(axis=0), (6, 1))
    elif share == "layer":
        most = np.full((6, 3), most.min())
    expected = np.minimum(start, most)
    found = np.broadcast_to(to_float64(posterior.log_sigma2), (6, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (log_alpha(posterior) <= -1.0 + 1e-4).all()
    np.testing.assert_allclose(to_float64(posterior.mean()), theta, rtol=1e-6)


@pytest.mark.core
def test_a_posterior_that_never_prunes_takes_what_was_given():
    plain = plain_mlp()
    template = posteriors.Gaussian(log_sigma2_init=-1.5)
    (posterior,) = keras_vd.variational_weights(convert(plain, template))
    np.testing.assert_array_equal(to_float64(posterior.log_sigma2), -1.5)


# What is converted, and what is not.


class Linear(keras.layers.Dense):
    """A user's subclass, with a `call` of its own."""

    def call(self, inputs, training=None):
        return super().call(inputs, training=training)


@keras.saving.register_keras_serializable("tests")
class Owner(keras.layers.Layer):
    """A user's layer that reads a weight of a `Dense` by itself."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(4, name="own")

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, inputs):
        return keras.ops.matmul(inputs, self.dense.kernel)


@pytest.mark.integration
def test_what_stays_and_why():
    frozen = keras.layers.Dense(4, name="frozen", trainable=False)
    lora = keras.layers.Dense(4, name="lora")
    model = keras.Sequential(
        [
            keras.Input((6,)),
            Linear(4, name="subclass"),
            Owner(name="owner"),
            Scale(2.0, name="scale"),
            frozen,
            lora,
            keras.layers.Dense(4, name="half", dtype="float16"),
            keras.layers.ReLU(),
            layers.VDDense(4, name="ours"),
            layers.LogNormalDropout(name="gate"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(2, name="good"),
        ]
    )
    lora.enable_lora(2)
    variational, report = convert(model, return_report=True)
    assert report.converted == ["good"]
    words = {
        "subclass": "a subclass of Dense that overrides `call`",
        "owner/own": "reads its weights, and not only calls it",
        "scale": "no variational form of Scale",
        "frozen": "frozen",
        "lora": "LoRA",
        "half": "float16",
        "ours": "variational already",
        "gate": "variational already",
    }
    assert set(report.skipped) == set(words)
    for name, word in words.items():
        assert word in report.skipped[name], name
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert "Converted: 1 of 9 layers" in str(report)
    assert "reads its weights" in report._repr_html_()
    inputs = random_inputs(3, 6)
    np.testing.assert_allclose(
        predict(variational, inputs)[0], predict(model, inputs)[0], rtol=1e-6
    )


def test_rnn_of_cells_stays():
    model = keras.Sequential(
        [
            keras.Input((5, 3)),
            keras.layers.RNN([keras.layers.LSTMCell(2, name="cell")]),
            keras.layers.Dense(1, name="last"),
        ]
    )
    report = report_of(model)
    assert report.converted == ["last"]
    assert "no variational form of LSTMCell" in str(report.skipped)


def test_posteriors_that_are_there_stay_as_they_are():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.VDDense(4, posterior="ard", kl_weight=0.25),
            keras.layers.Dense(3),
        ]
    )
    ours = model.layers[0].kernel_posterior
    set_kept(ours, np.arange(24).reshape(6, 4) % 2 == 0)
    ours.prune()
    new = convert(model, "gaussian").layers[0].kernel_posterior
    assert type(new) is posteriors.ARD
    for one, other in zip(ours.weights, new.weights, strict=True):
        np.testing.assert_array_equal(to_float64(one), to_float64(other))


@keras.saving.register_keras_serializable(package="tests")
class Tied(keras.layers.Layer):
    """Reads the weights of another layer."""

    def __init__(self, dense, **options):
        super().__init__(**options)
        self.dense = dense

    def call(self, inputs):
        return keras.ops.matmul(inputs, keras.ops.transpose(self.dense.kernel))

    def get_config(self):
        return {
            **super().get_config(),
            "dense": keras.saving.serialize_keras_object(self.dense),
        }

    @classmethod
    def from_config(cls, config):
        dense = keras.saving.deserialize_keras_object(config.pop("dense"))
        return cls(dense, **config)


@pytest.mark.core
def test_weights_that_code_of_the_user_shares_stay():
    """What it reads would have no noise, and no zeros."""
    dense, inputs = keras.layers.Dense(4, name="dense"), keras.Input((3,))
    outputs = Tied(dense, name="tied")(dense(inputs))
    outputs = keras.layers.Dense(2, name="last")(outputs)
    model = keras.Model(inputs, outputs)
    converted, report = keras_vd.to_variational(
        model, return_report=True, verbose=0
    )
    assert "'tied' has it too" in str(report.skipped)
    assert type(converted.get_layer("last")) is keras_vd.layers.VDDense
    assert type(converted.get_layer("dense")) is keras.layers.Dense
    x = random_inputs(4, 3)
    np.testing.assert_allclose(
        to_float64(converted(x)), to_float64(model(x)), rtol=1e-6, atol=1e-6
    )


def test_a_layer_called_twice_stays_one_layer():
    shared = keras.layers.Dense(6, name="shared")
    inputs = keras.Input((6,))
    model = keras.Model(inputs, shared(keras.layers.ReLU()(shared(inputs))))
    variational = convert(model, kl_weight=1.0)
    variational(random_inputs(2, 6), training=True)
    assert len(keras_vd.variational_weights(variational)) == 1
    assert len(variational.losses) == 1


@pytest.mark.parametrize(
    ("options", "converted"),
    [
        ({}, ["inner/shared", "last"]),
        ({"include": "shared"}, ["inner/shared"]),
        ({"include": "inner"}, ["inner/shared"]),
        ({"exclude": "inner"}, ["last"]),
    ],
)
def test_a_layer_shared_with_a_nested_model_is_chosen_once(options, converted):
    """In any of its places; the report has it in its first."""
    shared = keras.layers.Dense(6, name="shared")
    inner = keras.Sequential([keras.Input((6,)), shared], name="inner")
    inputs = keras.Input((6,))
    last = keras.layers.Dense(2, name="last")
    model = keras.Model(inputs, last(shared(inner(inputs))))
    report = report_of(model, **options)
    assert report.converted == converted
    assert len(report.rows) == 2


# include and exclude


@pytest.mark.parametrize(
    ("options", "converted"),
    [
        ({"include": "last"}, ["last"]),
        ({"include": ["words", "last"]}, ["words", "last"]),
        ({"include": "both"}, ["both/forward_lstm", "both/backward_lstm"]),
        ({"include": "both/forward_lstm"}, ["both/forward_lstm"]),
        ({"include": keras.layers.GRU}, ["gru"]),
        (
            {"include": (keras.layers.GRU, "words")},
            ["words", "gru"],
        ),
        (
            {"include": lambda layer: getattr(layer, "units", 9) == 2},
            ["simple", "last"],
        ),
        (
            {"exclude": [keras.layers.LSTM, "words", "gru"]},
            ["simple", "last"],
        ),
        (
            {"include": ["gru", "simple"], "exclude": keras.layers.GRU},
            ["simple"],
        ),
    ],
)
def test_include_and_exclude(options, converted):
    report = report_of(recurrent(), **options)
    assert report.converted == converted
    assert set(report.skipped.values()) == {"not chosen"}
    assert len(report.rows) == 6


def test_a_name_that_two_layers_have_means_both_and_a_path_means_one():
    assert report_of(deep(), include="dense").converted == [
        "dense",
        "inner/dense",
    ]
    assert report_of(deep(), include="inner/dense").converted == ["inner/dense"]
    assert report_of(deep(), exclude="inner").converted == ["dense"]


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("nobody", ValueError, "'nobody', which fits none"),
        (["last", keras.layers.Conv2D], ValueError, "which fits none"),
        (lambda layer: False, ValueError, "which fits none"),
        (3, TypeError, "names, layer classes"),
        (["last", None], TypeError, "names, layer classes"),
    ],
)
def test_selectors_that_make_no_sense(argument, value, error, message):
    with pytest.raises(error, match=message) as caught:
        convert(recurrent(), **{argument: value})
    assert argument in str(caught.value)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("model", TypeError, "must be a Keras model"),
        (lambda: keras.layers.Dense(3), TypeError, "must be a Keras model"),
        (
            lambda: keras.Sequential([keras.layers.Dense(3)]),
            ValueError,
            "must be built",
        ),
        (
            lambda: keras.Sequential(
                [keras.Input((3,)), keras.layers.BatchNormalization(name="bn")]
            ),
            ValueError,
            "has none: .*bn.*no variational form",
        ),
        (lambda: mlp(), ValueError, "variational already"),
    ],
)
def test_models_that_cannot_be_converted(model, error, message):
    with pytest.raises(error, match=message):
        convert(model() if callable(model) else model)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"posterior": "nobody"}, ValueError),
        ({"kl_weight": -1.0}, ValueError),
        ({"kl_weight": "much"}, TypeError),
    ],
)
def test_bad_options(options, error):
    with pytest.raises(error, match=next(iter(options))):
        convert(plain_mlp(), **options)


def test_a_subclassed_model_that_its_config_rebuilds():
    model = Wrapping(plain_mlp())
    model.build((None, 6))
    x = random_inputs(3, 6)
    expected = predict(model, x)[0]
    np.testing.assert_allclose(predict(convert(model), x)[0], expected)


def test_the_report_is_printed_unless_told_otherwise(capsys):
    to_variational(plain_mlp())
    assert "Converted: 1 of 1" in capsys.readouterr().out
    convert(plain_mlp())
    assert capsys.readouterr().out == ""


@pytest.mark.integration
@pytest.mark.parametrize(
    "name", ["MobileNetV2", "MobileNetV3Small", "ResNet50"]
)
def test_applications(name):
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(32, 32, 3), classes=5
    )
    randomize_statistics(model)
    variational, report = convert(model, return_report=True)
    kinds = {row.layer for row in report.rows if row.converted_to}
    assert (
        kinds
        == {
            "MobileNetV2": {"Conv2D", "DepthwiseConv2D", "Dense"},
            # It adds and multiplies by layers and by operations of equal names.
            "MobileNetV3Small": {"Conv2D", "DepthwiseConv2D"},
            "ResNet50": {"Conv2D", "Dense"},
        }[name]
    )
    assert set(report.skipped.values()) == {
        "no variational form of BatchNormalization"
    }
    x = random_inputs(2, 32, 32, 3)
    expected = predict(model, x)[0]
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(
        predict(variational, x)[0], expected, rtol=1e-6, atol=1e-6
    )


def randomize_statistics(model):
    """Values other than those that batch normalization starts from."""
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for variable in layer.variables:
                variable.assign(generator.uniform(0.5, 1.5, variable.shape))
