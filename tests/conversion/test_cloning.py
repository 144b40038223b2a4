"""Every way in which models are rebuilt: layers by identity, not by name.

Oracle everywhere: the model itself, whose predictions, weights and trainable
flags its copies have.
"""

import keras
import numpy as np
import pytest
from keras import ops

import keras_vd
from keras_vd import layers
from keras_vd._backend.keras_internals import flatten_layers
from keras_vd.conversion.cloning import copy_model
from tests.helpers.arrays import random_inputs, to_float64
from tests.helpers.models import Wrapping
from tests.helpers.sharing import NAMES, SHARED, Doubling, K, chain, graph

MODELS = {**SHARED, **NAMES}
# A few on all backends: rebuilding is the same on each.
SOME = [
    pytest.param(name, marks=[pytest.mark.core] if i % 6 == 0 else [])
    for i, name in enumerate(MODELS)
]


def fill(model, dead=0.0):
    """Random weights; at this rate, columns of kernels are zero."""
    generator = np.random.default_rng(3)
    for variable in model.variables:
        if keras.backend.is_float_dtype(variable.dtype):
            values = generator.uniform(0.2, 1.0, variable.shape)
            if variable.name not in ("gamma", "moving_variance"):
                values *= generator.choice([-1.0, 1.0], variable.shape)
            if len(variable.shape) > 1:
                values *= generator.uniform(size=variable.shape[-1]) >= dead
            variable.assign(values)


def predict(model, inputs):
    outputs = model(inputs, training=False)
    return [to_float64(x) for x in keras.tree.flatten(outputs)]


def assert_equal_predictions(model, other):
    inputs = random_inputs(3, *model.input_shape[1:])
    for one, two in zip(
        predict(model, inputs), predict(other, inputs), strict=True
    ):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-5)


def shapes(model):
    return [tuple(weight.shape) for weight in model.weights]


@pytest.mark.parametrize("name", SOME)
def test_copies(name):
    model = MODELS[name]()
    fill(model)
    copy = copy_model(model)
    assert_equal_predictions(model, copy)
    assert shapes(copy) == shapes(model)
    own = {id(x) for x in (*flatten_layers(model), *model.variables)}
    assert not own & {id(x) for x in (*flatten_layers(copy), *copy.variables)}


@pytest.mark.integration
@pytest.mark.parametrize("name", SOME)
def test_conversion_and_back(name):
    model = MODELS[name]()
    fill(model)
    variational = keras_vd.to_variational(model, kl_weight=1.0, verbose=0)
    assert_equal_predictions(model, variational)
    plain = keras_vd.to_deterministic(variational)
    assert_equal_predictions(model, plain)
    assert shapes(plain) == shapes(model)
    for one, other in zip(plain.weights, model.weights, strict=True):
        np.testing.assert_array_equal(to_float64(one), to_float64(other))


@pytest.mark.integration
@pytest.mark.parametrize("dead", [0.0, 0.5])
@pytest.mark.parametrize("name", SOME)
def test_shrinking(name, dead):
    model = MODELS[name]()
    fill(model, dead)
    smaller = keras_vd.shrink(model, verbose=0)
    assert_equal_predictions(model, smaller)
    assert smaller.count_params() <= model.count_params()


def test_a_layer_twice_in_a_sequential_model_survives_a_file(tmp_path):
    """Keras' file of the model itself forgets the second use."""
    model = SHARED["ReLU twice"]()
    fill(model, 0.5)
    smaller = keras_vd.shrink(model, verbose=0)
    assert smaller.count_params() < model.count_params()
    for copy in (smaller, copy_model(model)):
        copy.save(tmp_path / "copy.keras")
        loaded = keras.saving.load_model(tmp_path / "copy.keras")
        assert_equal_predictions(model, loaded)


def test_shared_variational_layers_stay_one():
    """110 parameters, and one KL divergence per step."""
    shared = layers.VDDense(10, kl_weight=1.0)
    inner = [graph(shared, (10,)), graph(lambda x: K.ReLU()(shared(x)), (10,))]
    model = graph(lambda x: K.Concatenate()([one(x) for one in inner]), (10,))
    plain = keras_vd.to_deterministic(model)
    assert plain.count_params() == 110
    assert_equal_predictions(model, plain)
    again = keras_vd.to_variational(plain, kl_weight=1.0, verbose=0)
    again(random_inputs(2, 10), training=True)
    assert len(keras_vd.variational_weights(again)) == len(again.losses) == 1


def test_a_gate_is_not_folded_into_what_a_wrapper_shares():
    dense = K.Dense(4)
    gate = layers.LogNormalDropout()
    model = graph(
        lambda x: dense(gate(K.TimeDistributed(dense)(x))), shape=(3, 4)
    )
    fill(model)
    gate.mu.assign(np.full(4, -1.0))
    plain = keras_vd.to_deterministic(model)
    assert plain.count_params() == 20
    assert_equal_predictions(model, plain)


VERBS = {
    "copy": copy_model,
    "to_variational": lambda m: keras_vd.to_variational(m, verbose=0),
    "to_deterministic": keras_vd.to_deterministic,
    "shrink": lambda m: keras_vd.shrink(m, verbose=0),
}


class Owner(K.Layer):
    """Makes its layer by itself, which nobody else can be given."""

    def __init__(self, cls=None, **kwargs):
        super().__init__(**kwargs)
        self.inner = (cls or K.Dense)(6)

    def build(self, shape):
        self.inner.build(shape)

    def call(self, inputs):
        return self.inner(inputs)

    def get_config(self):
        return K.Layer.get_config(self)


class Scaling(Owner):
    """An owner that cannot be written out."""

    def build(self, shape):
        super().build(shape)
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, inputs):
        return self.scale * self.inner(inputs)


@pytest.mark.parametrize("verb", VERBS)
def test_what_cannot_stay_shared_is_refused_in_words(verb):
    owner = Scaling()
    last = layers.VDDense(2) if verb == "to_deterministic" else K.Dense(2)
    model = graph(lambda x: last(owner.inner(owner(x))))
    with pytest.raises(ValueError, match=r"'dense.*several places.*get_config"):
        VERBS[verb](model)


@pytest.mark.parametrize("verb", ["to_variational", "shrink"])
def test_what_is_written_out_stays_shared(verb):
    owner = Owner()
    model = graph(lambda x: K.Dense(2)(owner.inner(owner(x))))
    fill(model)
    copy = VERBS[verb](model)
    assert_equal_predictions(model, copy)
    kernels = [w for w in copy.weights if w.name == "kernel"]
    assert len(kernels) == 2


@pytest.mark.parametrize("verb", ["copy", "to_variational", "shrink"])
def test_configs_that_do_not_rebuild_a_layer(verb):
    class Forgetful(K.Layer):
        def __init__(self, factor, **kwargs):
            super().__init__(**kwargs)
            self.factor = factor

        def call(self, inputs):
            return inputs * self.factor

        def get_config(self):
            return super().get_config()

    model = chain(Forgetful(2.0, name="mine"), K.Dense(2))
    with pytest.raises(ValueError, match=r"'mine' cannot be rebuilt.*Forgetf"):
        VERBS[verb](model)


def test_settings_that_configs_do_not_hold():
    inner = chain(K.Dense(6), Doubling(K.Dense(6)), K.Dense(6))
    model = chain(inner, K.Dense(2), K.Dense(2))
    inner.layers[1].inner.trainable = False
    model.layers[1].trainable = False
    copy = copy_model(model)
    flags = [weight.trainable for weight in model.weights]
    assert [weight.trainable for weight in copy.weights] == flags
    assert flags.count(False) == 4


def test_functions_are_taken_as_they_are():
    """Names in a function's module are not in its bytecode."""
    factor = np.float32(2.0)
    model = chain(
        K.Lambda(lambda x: ops.tanh(x) * factor),
        K.Dense(4, activation=lambda x: ops.sin(x) + len(OPTIONS)),
        K.Dense(4, activation=K.PReLU()),
        K.Dense(2),
    )
    model(random_inputs(1, 6))
    fill(model)
    for verb in ("copy", "to_variational", "shrink"):
        assert_equal_predictions(model, VERBS[verb](model))


OPTIONS = ("a", "b")


def test_operations_with_arguments_of_all_kinds():
    order = np.array([1, 0, 2])

    def build(x):
        y = x[:, 1:3, ::2] * ops.sum(x, axis=1, keepdims=True)[..., :3]
        y = ops.where(y > 0, y, -y) + ops.take(y, order, axis=-1)
        return K.Dense(2)(ops.vectorized_map(lambda row: row * 2.0, y))

    model = graph(build, (4, 6))
    for verb in ("copy", "to_variational", "shrink"):
        assert_equal_predictions(model, VERBS[verb](model))


class Trainer(keras.Model):
    """A Functional model with a training step of its own."""

    def train_step(self, *arguments):
        raise NotImplementedError


class Doubled(keras.Model):
    """A Functional model that does more than its graph."""

    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training, mask)


class Block(keras.Model):
    """A Functional model with a constructor of its own."""

    def __init__(self, units=5, **kwargs):
        inputs = keras.Input((6,))
        super().__init__(inputs, K.Dense(2)(K.Dense(units)(inputs)), **kwargs)


def test_classes_of_models():
    """Kept where they are made from inputs and outputs, as models are.

    A copy has a `call` that cannot be told by a graph; a conversion writes out
    what it calls.
    """
    inputs = keras.Input((6,))
    functional = type(keras.Model(inputs, inputs))
    for model, *classes in (
        (Trainer(inputs, K.Dense(2)(inputs)), Trainer, Trainer),
        (Doubled(inputs, K.Dense(2)(inputs)), Doubled, functional),
        (Block(4), functional, functional),
        (chain(Block(4), K.Dense(2)), keras.Sequential, keras.Sequential),
    ):
        for verb, cls in zip(("copy", "to_variational"), classes, strict=True):
            copy = VERBS[verb](model)
            assert type(copy) is cls
            assert copy.name == model.name
            assert_equal_predictions(model, copy)


def test_a_model_with_a_call_of_its_own_that_shares_a_layer():
    shared = K.Dense(6)
    inputs = keras.Input((6,))
    hidden = shared(K.ReLU()(shared(inputs)))
    inner = Doubled(inputs, hidden)
    model = graph(lambda x: K.Dense(2)(shared(inner(shared(x)))))
    fill(model)
    for verb in ("copy", "to_variational", "shrink"):
        copy = VERBS[verb](model)
        assert_equal_predictions(model, copy)
    assert copy.count_params() == model.count_params()


def test_a_subclassed_model_inside_a_functional_one():
    shared = chain(K.Dense(6), K.ReLU())
    model = graph(lambda x: K.Dense(2)(shared(Wrapping(shared)(x))))
    fill(model)
    for verb in ("copy", "to_variational", "shrink"):
        copy = VERBS[verb](model)
        assert_equal_predictions(model, copy)
    assert copy.count_params() == model.count_params()


def test_layers_that_have_adapted_to_data():
    data = np.float32([[1, 5, 9], [2, 7, 4], [8, 6, 3]])
    normalization, bins = K.Normalization(), K.Discretization(num_bins=3)
    for layer in (normalization, bins):
        layer.adapt(data)
    model = chain(normalization, K.Dense(4), bins, shape=(3,))
    fill_kernel = np.random.default_rng(2).normal(size=(3, 4))
    model.layers[1].kernel.assign(fill_kernel)
    for verb in ("copy", "to_variational", "shrink"):
        assert_equal_predictions(model, VERBS[verb](model))


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="Strings are TensorFlow's."
)
@pytest.mark.parametrize("mode", ["int", "tf_idf"])
def test_vocabularies(mode):
    texts = np.array(["the cat", "the dog sat", "a cat"])
    words = K.TextVectorization(output_mode=mode)
    words.adapt(texts)
    inputs = keras.Input((), dtype="string")
    hidden = words(inputs)
    if mode == "int":
        hidden = K.GlobalMaxPooling1D()(K.Embedding(9, 4)(hidden))
    model = keras.Model(inputs, K.Dense(2)(hidden))
    expected = predict(model, ops.convert_to_tensor(texts))
    assert np.ptp(expected[0], axis=0).all()
    for verb in ("copy", "to_variational", "shrink"):
        found = predict(VERBS[verb](model), ops.convert_to_tensor(texts))
        np.testing.assert_allclose(found, expected, atol=1e-6)


# Subclasses of Keras' layers.


class Repaired(K.DepthwiseConv2D):
    """As old files need it: their `groups` is no argument any more."""

    def __init__(self, *args, groups=1, **kwargs):
        super().__init__(*args, **kwargs)


class Tagged(K.Dense):
    """More arguments than Keras', and one that is fixed."""

    def __init__(self, tag, **kwargs):
        super().__init__(**{**kwargs, "units": 5})
        self.tag = tag

    def get_config(self):
        return {**super().get_config(), "tag": self.tag}

    def describe(self):
        return self.tag


def adapted():
    return chain(
        K.Conv2D(3, 1, name="first"),
        Repaired(3, padding="same", name="depthwise"),
        *(K.BatchNormalization(), K.ReLU(), K.Flatten()),
        Tagged("mine", name="tagged"),
        K.Dense(2),
        shape=(4, 4, 3),
    )


def test_subclasses_that_only_adapt_the_constructor():
    model = adapted()
    fill(model)
    variational, report = keras_vd.to_variational(
        model, return_report=True, verbose=0
    )
    assert {"depthwise", "tagged"} < set(report.converted)
    assert_equal_predictions(model, variational)
    plain = keras_vd.to_deterministic(variational)
    assert type(plain.get_layer("tagged")) is K.Dense
    assert_equal_predictions(model, plain)
    kernel = model.get_layer("tagged").kernel
    kernel.assign(to_float64(kernel) * [1, 0, 1, 0, 0])
    first = model.get_layer("first").kernel
    first.assign(to_float64(first) * [1, 0, 1])
    model.get_layer("first").bias.assign([1.0, 0.0, 1.0])
    smaller, report = keras_vd.shrink(model, return_report=True, verbose=0)
    assert_equal_predictions(model, smaller)
    by_name = {row.name: row for row in report.rows}
    assert by_name["depthwise"].kept_outputs == 2
    assert by_name["tagged"].kept_outputs == 2


def test_a_gate_goes_into_a_subclass_that_only_adapts_the_constructor():
    gate = layers.LogNormalDropout()
    model = chain(K.Dense(6), gate, Tagged("mine"), K.Dense(2))
    fill(model)
    gate.mu.assign(np.full(6, -1.0))
    plain = keras_vd.to_deterministic(model)
    assert len(plain.layers) == 3
    assert_equal_predictions(model, plain)


class OwnCall(K.Dense):
    def call(self, inputs, training=None):
        return super().call(inputs, training=training)


class OwnBuild(K.Dense):
    def build(self, input_shape):
        super().build(input_shape)


class OwnShape(K.Dense):
    def compute_output_shape(self, input_shape):
        return super().compute_output_shape(input_shape)


class OwnProperty(K.Dense):
    @property
    def kernel(self):
        return 2 * super().kernel


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (OwnCall, "call"),
        (OwnBuild, "build"),
        (OwnShape, "compute_output_shape"),
        (OwnProperty, "kernel"),
    ],
)
def test_subclasses_that_override_anything_else_stay(cls, name):
    model = chain(cls(4, name="mine"), K.Dense(2))
    _, report = keras_vd.to_variational(model, return_report=True, verbose=0)
    assert report.skipped == {
        "mine": f"a subclass of Dense that overrides `{name}`"
    }
    _, report = keras_vd.shrink(model, return_report=True, verbose=0)
    assert report.kept_whole["mine"] == f"unknown: {cls.__name__}"


def test_a_mixin_counts_as_well():
    class Noisy:
        def call(self, inputs, training=None):
            return 2 * super().call(inputs)

    class Mine(Noisy, K.Dense):
        pass

    model = chain(Mine(4, name="mine"), K.Dense(2))
    _, report = keras_vd.to_variational(model, return_report=True, verbose=0)
    assert "overrides `call`" in report.skipped["mine"]


def test_a_variational_subclass_with_another_operation_is_refused():
    class Doubled(layers.VDDense):
        def _linear_op(self, inputs, kernel):
            return 2 * super()._linear_op(inputs, kernel)

    model = chain(Doubled(2))
    with pytest.raises(ValueError, match=r"'Doubled' overrides `_linear_op`"):
        keras_vd.to_deterministic(model)
