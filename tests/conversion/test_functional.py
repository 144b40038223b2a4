"""Models of users written out; oracle everywhere: the model itself.

Predictions are compared to the last bit, as parts are called as before.
"""

import random
import re
from collections import Counter

import keras
import numpy as np
import pytest
from keras import ops

import keras_vd
from keras_vd import layers
from keras_vd._backend.keras_internals import flatten_layers
from keras_vd.conversion.functional import written_out
from tests.helpers.arrays import random_inputs, to_numpy
from tests.helpers.composites import (
    MODELS,
    Classifier,
    K,
    Residual,
    TransformerBlock,
    called,
    guide,
    random_model,
)
from tests.helpers.models import compile_quickly, randomize

# What takes TensorFlow long.
LARGE = ("two texts and numbers", "vision")
SOME = [
    pytest.param(
        name,
        marks=[
            *([pytest.mark.core] if i % 3 == 0 else []),
            *([pytest.mark.integration] if name in LARGE else []),
        ],
    )
    for i, name in enumerate(MODELS)
]


def write(model):
    return keras_vd.to_functional(model, return_report=True, verbose=0)


def outputs(model, inputs, training=False):
    found = model(inputs, training=training)
    return [to_numpy(x) for x in keras.tree.flatten(found)]


def assert_same(model, other, inputs, training=False):
    pairs = zip(
        outputs(model, inputs, training),
        outputs(other, inputs, training),
        strict=True,
    )
    for one, two in pairs:
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)


def values(model):
    return {id(x): to_numpy(x).copy() for x in model.variables}


def assert_written_out(model, inputs):
    """Equal predictions, layers, weights and training; names of their own."""
    randomize(model)
    known = {id(x) for x in flatten_layers(model)}
    functional, report = write(model)
    assert report.written_out
    assert not report.kept_whole
    assert_same(model, functional, inputs)

    parts = [
        x for x in flatten_layers(functional) if not isinstance(x, keras.Model)
    ]
    made = [x for x in parts if id(x) not in known]
    assert all(not x.weights for x in made)
    composites = [x for x in parts if type(x).__module__.startswith("tests")]
    assert not composites
    assert {id(x) for x in functional.variables} == values(model).keys()
    names = Counter(x.name for x in functional.operations)
    assert max(names.values()) == 1

    before = values(model)
    for one in (model, functional):
        for variable in model.variables:
            variable.assign(before[id(variable)])
        outputs(one, inputs, training=True)
        if one is model:
            expected = values(model)
    for key, value in values(model).items():
        np.testing.assert_array_equal(value, expected[key])
    return functional


@pytest.mark.parametrize("name", SOME)
def test_models(name):
    model, inputs = MODELS[name]()
    functional = assert_written_out(model, inputs)
    again, _ = write(model)
    assert [x.name for x in again.operations] == [
        x.name for x in functional.operations
    ]


@pytest.mark.parametrize("name", SOME)
def test_training_without_noise(name):
    """The same outputs, which batch normalization and dropout change."""
    model, inputs = MODELS[name]()
    randomize(model)
    functional, _ = write(model)
    for layer in flatten_layers(model):
        if isinstance(layer, K.Dropout):
            layer.rate = 0.0
    assert_same(model, functional, inputs, training=True)


# Masks that a convolution does not hand on.
@pytest.mark.filterwarnings("ignore:.*input with a mask attach:UserWarning")
@pytest.mark.parametrize(
    "seed",
    [
        *(2, 5, 11),
        *(
            pytest.param(seed, marks=pytest.mark.integration)
            for seed in (0, 1, 3, 4, 6, 7, 8, 9, 10)
        ),
    ],
)
def test_random_models(seed):
    model, inputs = random_model(seed)
    functional = assert_written_out(model, inputs)
    assert_same(model, functional, inputs, training=True)


def test_a_file_needs_no_class_of_the_user(tmp_path):
    for name in ("guide", "dictionaries", "masks", "vision"):
        model, inputs = MODELS[name]()
        functional, _ = write(model)
        functional.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert_same(functional, loaded, inputs)


def test_names():
    """What is clear without it does not say where it comes from."""
    keras.utils.clear_session(free_memory=False)
    model, _ = MODELS["composites of one class"]()
    functional, report = write(model)
    assert [x.name for x in functional.layers[1:]] == [
        *("one_norm", "one_hidden", "one_out"),
        *("two_norm", "two_hidden", "two_out", "out"),
    ]
    assert report.written_out == ["one", "two"]
    model, _ = MODELS["subclassed"]()
    functional, report = write(model)
    assert [x.name for x in functional.layers[-2:]] == [
        *(model.drop.name, "head")
    ]
    assert report.written_out == [
        *("classifier", "stack", "stack/block_0", "stack/block_1")
    ]


def test_names_within_a_context():
    """Verbs leave the names and calls of the model as they were."""
    model, inputs = MODELS["composites of one class"]()
    names = [x.name for x in flatten_layers(model)]
    variational, report = keras_vd.to_variational(
        model, return_report=True, verbose=0
    )
    assert [x.name for x in flatten_layers(model)] == names
    assert [x.name for x in variational.layers[1:]] == [
        *("one_norm", "one_hidden", "one_out"),
        *("two_norm", "two_hidden", "two_out", "out"),
    ]
    assert report.converted == ["one_hidden", "one_out"] + [
        *("two_hidden", "two_out", "out")
    ]
    with written_out(model) as written:
        assert_same(model, written.model, inputs)
    copy = keras.models.clone_model(model)
    # Keras gives the copy of an input another name.
    names = [[x.name for x in m.layers[1:]] for m in (copy, model)]
    assert names[0] == names[1]


class Part(K.Layer):
    """What a user's layer may do that parts alone do not."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = K.Dense(6, name="dense")

    def build(self, shape):
        self.dense.build(shape)


class OwnWeights(Part):
    def build(self, shape):
        super().build(shape)
        self.scale = self.add_weight(shape=(6,), name="scale")

    def call(self, x):
        return self.dense(x) * self.scale


class OwnLoss(Part):
    def call(self, x):
        y = self.dense(x)
        self.add_loss(ops.mean(y))
        return y


class OwnRegularizer(Part):
    def __init__(self):
        super().__init__(activity_regularizer="l2")

    def call(self, x):
        return self.dense(x)


class PythonRandom(Part):
    def call(self, x):
        return x if random.random() < 0.5 else self.dense(x)


class NumPyRandom(Part):
    def call(self, x):
        return self.dense(x) * float(np.random.normal())  # noqa: NPY002


class KerasRandom(Part):
    def call(self, x):
        return self.dense(x) + keras.random.normal((6,))


class Counting(Part):
    number = 0

    def call(self, x):
        self.number += 1
        return self.dense(x) * self.number


class OtherInTraining(Part):
    def call(self, x, training=None):
        return self.dense(x) * (2.0 if training else 1.0)


class AlwaysTraining(Part):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.drop = K.Dropout(0.5)

    def call(self, x):
        return self.drop(self.dense(x), training=True)


class BatchSize(Part):
    def call(self, x):
        return self.dense(x) + ops.zeros((ops.shape(x)[0], 6))


class ReadsKernel(Part):
    def call(self, x):
        return ops.matmul(self.dense(x), ops.transpose(self.dense.kernel))


class HidesCalls(Part):
    def call(self, x):
        return ops.cond(ops.max(x) > 0, lambda: self.dense(x), lambda: x)


class Unused(Part):
    def call(self, x):
        self.dense(x)
        return x


class MakesLayers(Part):
    def call(self, x):
        return K.Dense(3)(self.dense(x))


class Frozen(Part):
    def __init__(self):
        super().__init__(trainable=False)

    def call(self, x):
        return self.dense(x)


KEPT = {
    OwnWeights: r"weights of its own, \['scale'\]: put them into a layer",
    OwnLoss: "adds a loss: add it in a layer without parts",
    OwnRegularizer: "an activity regularizer: give it to a layer inside",
    PythonRandom: "draws random numbers: use layers such as",
    NumPyRandom: "draws random numbers: use layers such as",
    KerasRandom: "draws random numbers: use layers such as",
    Counting: "in one call than in the next",
    OtherInTraining: "other things in training than at inference",
    AlwaysTraining: r"calls 'dropout.*' with training=True",
    BatchSize: r"symbolic tensors \(.*-1 for a size that is None",
    ReadsKernel: "reads 'kernel' of 'dense' instead of calling",
    HidesCalls: r"passes a function to 'cond.*', which hides",
    Unused: "calls 'dense' without using what that returns",
    MakesLayers: r"makes 'dense_.*': make it in `__init__`",
    Frozen: "is frozen, and layers inside it are not",
}


@pytest.mark.parametrize("cls", KEPT)
def test_kept_whole(cls):
    """The rest is written out; what is kept is the layer itself."""
    kept = cls(name="kept") if cls not in (OwnRegularizer, Frozen) else cls()
    inputs = keras.Input((6,))
    model = keras.Model(inputs, K.Dense(2)(kept(Residual()(inputs))))
    functional, report = write(model)
    assert list(report.kept_whole) == [kept.name]
    assert len(report.written_out) == 1
    assert any(x is kept for x in functional.layers)
    (reason,) = report.kept_whole.values()
    assert re.search(KEPT[cls], reason, re.DOTALL), reason


class Scaling(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = K.Dense(6, name="dense")
        self.scale = self.add_weight(shape=(), name="scale")

    def call(self, x):
        return self.scale * self.dense(x)


class Branching(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = K.Dense(6, name="dense")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x) if ops.max(x) > 0 else x


@pytest.mark.core
@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (Scaling, r"weights of its own, \['scale'\]: put them into a layer"),
        (Branching, "symbolic tensors .*: use `keras.ops` only"),
    ],
)
def test_models_that_cannot_be_written_out(cls, reason):
    model, inputs = called(cls(name="mine"), random_inputs(2, 6))
    expected = outputs(model, inputs)
    with pytest.raises(
        ValueError, match=f"'mine', of type .*cannot: .*{reason}"
    ):
        keras_vd.to_functional(model)
    with pytest.raises(ValueError, match=f"cannot be written out: .*{reason}"):
        keras_vd.shrink(model)
    variational = keras_vd.to_variational(model, verbose=0)
    assert isinstance(variational, cls)
    np.testing.assert_array_equal(outputs(variational, inputs), expected)
    np.testing.assert_array_equal(outputs(model, inputs), expected)


@pytest.mark.core
def test_what_is_no_built_model():
    with pytest.raises(TypeError, match="`model` must be a Keras model"):
        keras_vd.to_functional(K.Dense(2))
    with pytest.raises(ValueError, match="call it on data"):
        keras_vd.to_functional(Classifier())


def test_a_model_without_composites_is_returned():
    sequential = keras.Sequential([keras.Input((3, 4)), K.LSTM(2), K.Dense(2)])
    functional, report = write(sequential)
    assert not report.rows
    assert type(functional).__name__ == "Functional"
    assert functional.layers[1:] == sequential.layers
    assert write(functional)[0] is functional


class Arguments(keras.Model):
    def call(self, first, second):
        return first + second


def test_several_arguments():
    model = Arguments()
    model(random_inputs(2, 6), random_inputs(2, 6))
    with pytest.raises(
        ValueError, match=r"arguments, `first` and \['second'\]"
    ):
        keras_vd.to_functional(model)


class Logging(Classifier):
    def train_step(self, *arguments):
        return super().train_step(*arguments)


@pytest.mark.integration
def test_training_steps_of_ones_own_are_not_lost_in_silence():
    model, _ = called(Logging(name="mine"), random_inputs(2, 6))
    _, report = write(model)
    assert report.differences == ("`train_step` of Logging is left behind.",)
    assert isinstance(keras_vd.to_variational(model, verbose=0), Logging)
    with pytest.raises(ValueError, match=r"`train_step`.*to_functional"):
        keras_vd.shrink(model)


class Untold(keras.Model):
    def __init__(self, rate):
        super().__init__()
        self.drop, self.dense = K.Dropout(rate), K.Dense(3)
        self.spare = K.Dense(2, name="spare")
        self.spare.build((None, 6))

    def call(self, inputs):
        return self.dense(self.drop(inputs))


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_differences(rate):
    """Keras trains no layer in a `call` that does not take `training`."""
    model, _ = called(Untold(rate), random_inputs(2, 6))
    _, report = write(model)
    gone, *told = report.differences
    assert gone == "Layers that `call` does not use are gone: ['spare']."
    assert len(told) == (rate > 0)
    assert all("In `fit`, layers are told that they train" in x for x in told)
    assert all(x in str(report) for x in ("untold", "Written out: 1 of 1"))


def test_a_wrapper_of_keras_calls_its_layer_by_itself():
    block = Residual(name="block")
    block.compute_output_shape = lambda shape: shape
    inputs = keras.Input((3, 6))
    model = keras.Model(inputs, K.TimeDistributed(block)(inputs))
    functional, report = write(model)
    assert functional is model
    (reason,) = report.kept_whole.values()
    assert re.search(
        "'time_distributed.*', of type TimeDistributed, calls it", reason
    )


class Pairwise(K.Layer):
    """Splits a batch whose size it has read."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = K.Dense(6)

    def call(self, x):
        batch = ops.shape(x)[0]
        heads = ops.reshape(self.dense(x), (batch, -1, 2, 3))
        return ops.reshape(ops.transpose(heads, (0, 2, 1, 3)), (batch, 2, 12))


def test_reshaping_by_a_size_that_is_none(tmp_path):
    inputs = keras.Input((4, 6))
    model = keras.Model(inputs, K.Dense(2)(Pairwise()(inputs)))
    functional = assert_written_out(model, random_inputs(3, 4, 6))
    functional.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same(model, loaded, random_inputs(5, 4, 6))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64"])
def test_types(policy):
    inputs = keras.Input((5, 8), dtype="float32")
    keras.config.set_dtype_policy(policy)
    try:
        block = TransformerBlock(8, 2, 8)
        model = keras.Model(inputs, block(inputs))
    finally:
        keras.config.set_dtype_policy("float32")
    assert_written_out(model, random_inputs(3, 5, 8))


@pytest.mark.core
@pytest.mark.integration
def test_inputs_of_subclassed_models():
    """Words where an embedding reads them; structures as they were."""
    model, _ = MODELS["two texts and numbers"]()
    functional, _ = write(model)
    assert [x.dtype for x in functional.inputs] == ["int32", "int32", "float32"]
    assert isinstance(functional.input, list)
    model, _ = MODELS["dictionaries"]()
    functional, _ = write(model)
    assert sorted(functional.input) == ["first", "second"]
    assert sorted(functional.output) == ["a", "b"]


@pytest.mark.integration
@pytest.mark.core
def test_shrinking_the_guide():
    """Half of the hidden units are dead: what a model of half the width has."""
    model, inputs = guide(units=16)
    randomize(model)
    (block,) = (x for x in model.layers if isinstance(x, TransformerBlock))
    _, out = block.ffn.layers
    kernel = to_numpy(out.kernel).copy()
    kernel[::2] = 0.0
    out.kernel.assign(kernel)
    smaller = keras_vd.shrink(model, verbose=0)
    assert smaller.count_params() == guide(units=8)[0].count_params()
    for one, two in zip(
        outputs(model, inputs), outputs(smaller, inputs), strict=True
    ):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)


@pytest.mark.integration
def test_the_guide_from_training_to_a_file(tmp_path):
    """At least 90% of the parameters of kernels become variational."""
    model, inputs = guide(steps=10, vocabulary=20, width=8)
    variational = keras_vd.to_variational(model, verbose=0)
    assert_same(model, variational, inputs)
    kernels = sum(w.size for w in map(to_numpy, model.weights) if w.ndim > 1)
    converted = sum(
        to_numpy(x.theta).size
        for x in keras_vd.variational_weights(variational)
    )
    assert converted >= 0.9 * kernels

    labels = np.arange(len(inputs)) % 2
    compile_quickly(variational, optimizer="adam")
    history = variational.fit(
        inputs,
        labels,
        epochs=3,
        verbose=0,
        callbacks=[
            keras_vd.callbacks.KLAnnealing(len(inputs), 0, 1, verbose=0)
        ],
    )
    assert np.isfinite(history.history["loss"]).all()
    assert history.history["kl"][-1] > 0
    variational.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same(variational, loaded, inputs)
    keras_vd.prune(loaded)
    plain = keras_vd.to_deterministic(loaded)
    smaller = keras_vd.shrink(plain, verbose=0)
    for other in (plain, smaller):
        for one, two in zip(
            outputs(loaded, inputs), outputs(other, inputs), strict=True
        ):
            np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)


def test_a_subclassed_variational_model_becomes_plain():
    """Oracle: its predictions."""

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.block = [layers.VDDense(5, "relu"), layers.VDDense(3)]

        def call(self, inputs, training=None):
            for layer in self.block:
                inputs = layer(inputs, training=training)
            return inputs

    model, inputs = called(Model(), random_inputs(3, 6))
    randomize(model)
    plain = keras_vd.to_deterministic(model)
    assert [type(x) for x in plain.layers[1:]] == [K.Dense, K.Dense]
    np.testing.assert_allclose(
        outputs(plain, inputs), outputs(model, inputs), rtol=1e-6
    )
