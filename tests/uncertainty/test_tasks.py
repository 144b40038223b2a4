"""What outputs are taken for: by arguments, activations and losses."""

import functools

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats

from keras_vd import calibration_report, layers, predict_mc
from keras_vd._backend.keras_internals import functional_part
from keras_vd.uncertainty.tasks import meanings
from tests.helpers.arrays import random_inputs

pytestmark = pytest.mark.core

LOGITS = {"from_logits": True}


def dense(units, activation=None, **options):
    return layers.VDDense(
        units, activation=activation, posterior="gaussian", **options
    )


def model_of(*stack, shape=(6,), loss=None):
    model = keras.Sequential([keras.Input(shape), *stack])
    if loss is not None:
        model.compile("sgd", loss)
    return model


def meaning(model, task=None, from_logits=None):
    outputs = functional_part(model).output
    (found,) = meanings(model, outputs, task, from_logits)
    return found.task, found.from_logits


class Subclassed(keras.Model):
    def __init__(self, units, activation=None):
        super().__init__()
        self.dense = dense(units, activation)
        self.build((None, 6))

    def build(self, input_shape):
        self.dense.build(input_shape)
        self.built = True

    def call(self, inputs):
        return self.dense(inputs)


def in_functional(operation, shape=(6,)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, operation(dense(3)(inputs)))


SOFTMAX = ("classification", False)
ACTIVATIONS = {
    "dense": (lambda: model_of(dense(3, "softmax")), SOFTMAX),
    "log_softmax": (
        lambda: model_of(dense(3, "log_softmax")),
        ("classification", True),
    ),
    "Activation": (
        lambda: model_of(dense(3), keras.layers.Activation("softmax")),
        SOFTMAX,
    ),
    "Softmax": (lambda: model_of(dense(3), keras.layers.Softmax()), SOFTMAX),
    "Softmax of an axis": (
        lambda: model_of(dense(3), keras.layers.Softmax(axis=1)),
        SOFTMAX,
    ),
    "operation": (lambda: in_functional(keras.ops.softmax), SOFTMAX),
    "log operation": (
        lambda: in_functional(keras.ops.log_softmax),
        ("classification", True),
    ),
    "sigmoid operation": (
        lambda: in_functional(keras.ops.sigmoid),
        ("multi-label", False),
    ),
    "cast": (
        lambda: in_functional(
            lambda x: keras.ops.cast(keras.ops.softmax(x), "float32")
        ),
        SOFTMAX,
    ),
    "mixed": (
        lambda: model_of(
            dense(3, "softmax", dtype="mixed_bfloat16"),
            keras.layers.Activation("linear", dtype="float32"),
        ),
        SOFTMAX,
    ),
    "dropout": (
        lambda: model_of(dense(3, "sigmoid"), keras.layers.Dropout(0.5)),
        ("multi-label", False),
    ),
    "nested": (
        lambda: model_of(dense(4), model_of(dense(3, "softmax"), shape=(4,))),
        SOFTMAX,
    ),
    "nested twice": (
        lambda: model_of(model_of(in_functional(keras.ops.softmax))),
        SOFTMAX,
    ),
    "over time": (
        lambda: model_of(
            keras.layers.TimeDistributed(dense(3, "softmax")), shape=(2, 6)
        ),
        SOFTMAX,
    ),
    "reshaped": (
        lambda: model_of(dense(3, "softmax"), keras.layers.Reshape((1, 3))),
        SOFTMAX,
    ),
    "convolution": (
        lambda: model_of(
            layers.VDConv1D(3, 1, activation="softmax"), shape=(5, 2)
        ),
        SOFTMAX,
    ),
    "one column": (lambda: model_of(dense(1, "sigmoid")), ("binary", False)),
    "several": (
        lambda: model_of(dense(4, "sigmoid")),
        ("multi-label", False),
    ),
    "one channel": (
        lambda: model_of(
            layers.VDConv1D(1, 1, activation="sigmoid"), shape=(5, 2)
        ),
        ("binary", False),
    ),
    "squeezed": (
        lambda: in_functional(
            lambda x: keras.ops.squeeze(keras.ops.sigmoid(x[:, :1]), -1)
        ),
        ("binary", False),
    ),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_last_activation_tells(name):
    make, expected = ACTIVATIONS[name]
    assert meaning(make()) == expected


def test_a_softmax_over_other_axes_tells_nothing():
    for stack in (
        [dense(3), keras.layers.Softmax(axis=1)],
        [dense(4, "softmax"), keras.layers.Reshape((4, 2))],
        [dense(3, "relu")],
        [dense(3, "softmax"), keras.layers.Rescaling(2.0)],
        [keras.layers.LSTM(3, activation="softmax")],
        [dense(3)],
    ):
        model = model_of(*stack, shape=(2, 6))
        with pytest.raises(ValueError, match="Argument `task` must be given"):
            meaning(model)


BINARY = keras.losses.BinaryCrossentropy
LOSSES = [
    (1, "sigmoid", "binary_crossentropy", ("binary", False)),
    (1, "sigmoid", "bce", ("binary", False)),
    (1, "sigmoid", "BinaryCrossentropy", ("binary", False)),
    (1, "sigmoid", "mse", ("regression", False)),
    (1, "sigmoid", keras.losses.MeanAbsoluteError(), ("regression", False)),
    (3, "sigmoid", "mean_squared_error", ("regression", False)),
    (3, "sigmoid", keras.losses.binary_crossentropy, ("multi-label", False)),
    (3, "softmax", "mse", ("classification", False)),
    (3, "softmax", "kl_divergence", ("classification", False)),
    (3, None, BINARY(**LOGITS), ("multi-label", True)),
    (1, None, BINARY(**LOGITS), ("binary", True)),
    (
        *(1, None),
        keras.losses.BinaryFocalCrossentropy(**LOGITS),
        ("binary", True),
    ),
    (
        *(3, None),
        keras.losses.SparseCategoricalCrossentropy(**LOGITS),
        ("classification", True),
    ),
    (
        *(3, None),
        functools.partial(keras.losses.categorical_crossentropy, **LOGITS),
        ("classification", True),
    ),
    (3, None, "huber", ("regression", False)),
    (3, "tanh", keras.losses.LogCosh(), ("regression", False)),
    (1, "softplus", keras.losses.Poisson(), ("regression", False)),
]


@pytest.mark.parametrize("kind", ["functional", "subclassed"])
@pytest.mark.parametrize(("units", "activation", "loss", "expected"), LOSSES)
def test_the_compiled_loss_tells(kind, units, activation, loss, expected):
    if kind == "functional":
        model = model_of(dense(units, activation), loss=loss)
        assert meaning(model) == expected
        return
    model = Subclassed(units, activation)
    model.compile("sgd", loss)
    if activation == "softmax":  # out of sight
        expected = ("regression", False) if loss == "mse" else None
    outputs = np.zeros((2, units))
    if expected is None:
        with pytest.raises(ValueError, match="Argument `task` must be given"):
            meanings(model, outputs, None, None)
        return
    (found,) = meanings(model, outputs, None, None)
    assert (found.task, found.from_logits) == expected


class OwnLoss(keras.losses.BinaryCrossentropy):
    pass


def test_a_loss_of_ones_own():
    model = model_of(dense(3), loss=OwnLoss(from_logits=True))
    assert meaning(model) == ("multi-label", True)
    for own in (lambda y, p: keras.ops.mean(p), "hinge", "dice"):
        model = model_of(dense(1, "sigmoid"), loss=own)
        with pytest.raises(ValueError, match="Argument `task` must be given"):
            meaning(model)
        assert meaning(model, "binary") == ("binary", False)


@pytest.mark.parametrize(
    "loss",
    [
        keras.losses.CategoricalCrossentropy(axis=1),
        keras.losses.SparseCategoricalCrossentropy(axis=1, from_logits=True),
        functools.partial(keras.losses.categorical_crossentropy, axis=-2),
    ],
    ids=["object", "sparse", "function"],
)
def test_classes_on_another_axis_are_refused(loss):
    model = keras.Sequential([keras.Input((6, 4)), dense(5)])
    model.compile(loss=loss)
    for task in (None, "classification"):
        with pytest.raises(ValueError, match="on the last axis"):
            meaning(model, task)


def test_a_model_from_a_file_tells_the_same(tmp_path):
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model = model_of(dense(3), loss=loss)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert meaning(again) == ("classification", True)


GIVEN = [
    (dense(3), None, ("multi-label", None), ("multi-label", True)),
    (dense(3), None, ("classification", True), ("classification", True)),
    (dense(3), None, ("regression", None), ("regression", False)),
    (dense(3, "softmax"), None, ("regression", False), ("regression", False)),
    (dense(3), "mse", ("multi-label", True), ("multi-label", True)),
    (dense(3, "relu"), None, ("multi-label", False), ("multi-label", False)),
    (dense(1), "bce", ("multi-label", True), ("multi-label", True)),
    (dense(1, "sigmoid"), "mse", ("binary", None), ("binary", False)),
    # A loss that does not suit the activation is a fault of training.
    (dense(3), "categorical_crossentropy", (None, True), (SOFTMAX[0], True)),
    (
        dense(3, "softmax"),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        *((None, False), SOFTMAX),
    ),
]


@pytest.mark.parametrize(("layer", "loss", "given", "expected"), GIVEN)
def test_what_is_given(layer, loss, given, expected):
    layer = type(layer).from_config(layer.get_config())
    assert meaning(model_of(layer, loss=loss), *given) == expected


REFUSED = [
    (3, "softmax", None, ("multi-label", None), "not go with .* 'softmax'"),
    (2, "softmax", None, ("binary", None), "that is 'classification'"),
    (3, "sigmoid", None, ("classification", None), "that is 'multi-label'"),
    (3, "softmax", None, (None, True), "contradicts the last activation"),
    (1, "sigmoid", None, (None, True), "contradicts the last activation"),
    (
        *(3, "softmax", keras.losses.CategoricalCrossentropy(**LOGITS)),
        *((None, None), "contradict each other"),
    ),
    (3, None, "bce", (None, None), "contradict each other"),
    (3, None, BINARY(**LOGITS), (None, False), "contradicts the last"),
    (3, "relu", BINARY(**LOGITS), (None, False), "contradicts the last"),
    (
        *(3, None, keras.losses.CategoricalCrossentropy(**LOGITS)),
        *(("multi-label", None), "that is 'classification'"),
    ),
    (
        *(3, "sigmoid", "categorical_crossentropy"),
        *((None, None), "that is 'multi-label'"),
    ),
    (3, "relu", None, ("classification", None), "`from_logits` must be given"),
    (3, None, "mse", ("multi-label", None), "contradict each other"),
    (3, None, "mse", (None, True), "these outputs are a regression"),
    (3, None, None, ("regression", True), "these outputs are a regression"),
    (1, None, None, ("classification", True), "pass `task='binary'`"),
    (3, None, None, ("binary", True), "'binary' is for outputs of one column"),
    (3, None, None, ("classes", None), "`task` must be one of"),
    (3, None, None, (["binary"], None), "`task` must be one of"),
    (3, None, None, ("binary", 1), "`from_logits` must be True, False or N"),
]


@pytest.mark.parametrize(
    ("units", "activation", "loss", "given", "message"), REFUSED
)
def test_contradictions_are_refused(units, activation, loss, given, message):
    model = model_of(dense(units, activation), loss=loss)
    with pytest.raises(ValueError, match=message):
        meaning(model, *given)


def several(losses, kind=dict):
    inputs = keras.Input((6,))
    outputs = {
        "a": dense(3, name="a")(inputs),
        "b": dense(1, name="b")(inputs),
        "c": dense(2, "softmax", name="c")(inputs),
    }
    if kind is list:
        outputs = list(outputs.values())
    model = keras.Model(inputs, outputs)
    model.compile("sgd", losses)
    return model


@pytest.mark.integration
@pytest.mark.parametrize("kind", [dict, list])
@pytest.mark.parametrize(
    "losses",
    [
        {"a": BINARY(**LOGITS), "b": "mse", "c": "bce"},
        {"c": None, "b": keras.losses.huber, "a": BINARY(**LOGITS)},
        [BINARY(**LOGITS), "mse", "categorical_crossentropy"],
    ],
)
def test_several_outputs(kind, losses):
    model = several(losses, kind)
    found = predict_mc(model, random_inputs(3, 6), 2)
    found = list(found.values()) if kind is dict else found
    tasks = [one.task for one in found]
    assert tasks == ["multi-label", "regression", "classification"]
    shapes = [np.shape(one.mutual_information) for one in found]
    assert shapes == [(3, 3), (), (3,)]


def test_several_outputs_by_structure():
    model = several(None)
    task = {"a": "classification", "b": "regression", "c": None}
    found = predict_mc(model, random_inputs(3, 6), 2, task=task)
    assert {name: one.task for name, one in found.items()} == task | {
        "c": "classification"
    }
    with pytest.raises(ValueError, match="Output 2 of 3: Argument `task`"):
        predict_mc(model, random_inputs(3, 6), 2, task={**task, "b": None})
    with pytest.raises(ValueError, match="`task` must have one entry for eac"):
        predict_mc(model, random_inputs(3, 6), 2, task={"a": "binary"})


@pytest.mark.parametrize("labels", [1, 3])
def test_labels_of_their_own(labels):
    """Oracle: SciPy's entropy of (p, 1 - p), for each label by itself."""
    task = "multi-label"
    linear = model_of(dense(labels))
    inputs = random_inputs(4, 6)
    draws = np.stack(
        [
            scipy.special.expit(
                predict_mc(linear, inputs, 1, seed=0, task="regression").mean
            )
        ]
    )
    one = predict_mc(linear, inputs, 1, seed=0, task=task)
    np.testing.assert_allclose(one.mean, draws[0], rtol=1e-5)
    prediction = predict_mc(linear, inputs, 30, seed=0, task=task)
    p = prediction.mean.astype("float64")
    assert p.shape == (4, labels)
    entropy = scipy.stats.entropy(np.stack([p, 1 - p]), axis=0)
    np.testing.assert_allclose(
        prediction.predictive_entropy, entropy, rtol=1e-5
    )
    assert prediction.mutual_information.shape == (4, labels)
    assert (prediction.mutual_information > 0.0).all()
    assert (prediction.mutual_information < entropy).all()


def test_calibration_of_labels_of_their_own():
    """Oracle: a binary prediction for each label of each example."""
    model, inputs = model_of(dense(3)), random_inputs(40, 6)
    labels = np.random.default_rng(0).integers(0, 2, (40, 3))
    prediction = predict_mc(
        model, inputs, 5, 16, labels=labels, task="multi-label"
    )
    expected = calibration_report(
        prediction.mean.reshape(-1, 1), labels.reshape(-1)
    )
    assert prediction.calibration == expected
    assert prediction.calibration.examples == 120
    for wrong in (labels[:, 0], labels + 1):
        with pytest.raises(ValueError, match="`labels` must be class numbers"):
            predict_mc(model, inputs, 2, labels=wrong, task="multi-label")


def test_labels_of_one_column():
    model, inputs = model_of(dense(1, "sigmoid")), random_inputs(10, 6)
    labels = np.arange(10) % 2
    flat = predict_mc(model, inputs, 3, labels=labels, seed=0)
    column = predict_mc(model, inputs, 3, labels=labels[:, None], seed=0)
    assert flat.task == "binary"
    assert flat.calibration == column.calibration
    assert flat.predictive_entropy.shape == (10,)


def test_a_column_that_was_squeezed():
    make, _ = ACTIVATIONS["squeezed"]
    labels = np.arange(4) % 2
    found = predict_mc(make(), random_inputs(4, 6), 3, labels=labels)
    assert found.mean.shape == found.predictive_entropy.shape == (4,)
    assert found.calibration.examples == 4


def test_a_regression_has_no_classes():
    model = model_of(dense(1, "sigmoid"), loss="mse")
    prediction = predict_mc(model, random_inputs(4, 6), 3)
    assert prediction.task == "regression"
    assert prediction.predictive_entropy is None
    assert prediction.mutual_information is None
    with pytest.raises(ValueError, match="`log_likelihood` of the prediction"):
        predict_mc(model, random_inputs(4, 6), 3, labels=[0, 1, 0, 1])


def test_outputs_are_checked():
    """Logits within [0, 1] are no probabilities by that alone."""
    model = model_of(dense(3, "relu"))
    inputs = random_inputs(4, 6)
    for task, message in (
        ("classification", r"within \[0, 1\] and sum to 1\. If these outputs"),
        ("multi-label", r"within \[0, 1\]\. If these outputs are logits"),
    ):
        with pytest.raises(ValueError, match=message):
            predict_mc(model, 9 * inputs, 2, task=task, from_logits=False)
    small = predict_mc(model_of(dense(1)), 0.01 * inputs, 2, task="binary")
    assert np.abs(small.mean - 0.5).max() < 0.1


def test_entries_of_outputs_are_found_by_name():
    """Leaves of a dict are sorted by name, whatever the order of its entries.

    Oracle: each output has the only task, labels and noise that fit it.
    """
    inputs = keras.Input((6,))
    outputs = {
        "number": dense(2)(inputs),
        "class": dense(3, "softmax")(inputs),
    }
    both = predict_mc(
        keras.Model(inputs, outputs),
        random_inputs(2, 6),
        2,
        task={"number": "regression", "class": "classification"},
        labels={"number": None, "class": [0, 2]},
        noise={"number": [0.1, 0.2], "class": None},
    )
    assert both["number"].task == "regression"
    np.testing.assert_allclose(both["number"].aleatoric_variance[0, 1], 0.04)
    assert both["class"].calibration.examples == 2
