"""What the library takes from Keras' private side, pinned.

A failure here means that this Keras release is not supported yet.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import ops
from keras.src.saving.serialization_lib import ObjectSharingScope

from keras_vd import posteriors
from keras_vd._backend import keras_internals as internals
from tests.helpers.arrays import to_numpy
from tests.helpers.contract import assert_equal


class Probe(keras.layers.Layer):
    """Notes in which type its variable is read during a call."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, inputs):
        self.usual = ops.convert_to_tensor(self.scale).dtype
        self.full = internals.full_precision_value(self.scale).dtype
        return inputs


@pytest.mark.core
def test_full_precision_value():
    """Oracle: variables are float32 under a mixed policy, when asked."""
    probe = Probe(dtype="mixed_bfloat16")
    probe(np.ones((1, 2), "float32"))
    assert keras.backend.standardize_dtype(probe.usual) == "bfloat16"
    assert keras.backend.standardize_dtype(probe.full) == "float32"


@pytest.mark.core
def test_walking_layers():
    """Oracle: a model put together by hand."""
    inner = keras.layers.Dense(2)
    wrapper = keras.layers.TimeDistributed(inner)
    dropout = keras.layers.Dropout(0.5)
    model = keras.Sequential([keras.Input((3, 2)), wrapper, dropout])
    assert internals.sublayers(wrapper) == [inner]
    found = internals.flatten_layers(model)
    assert {id(layer) for layer in found} >= {
        id(layer) for layer in (model, wrapper, inner, dropout)
    }
    assert len({id(layer) for layer in found}) == len(found)


@pytest.mark.core
def test_own_variables():
    """Oracle: by hand; a sublayer's variables are its own."""
    batch_norm = keras.layers.BatchNormalization()
    batch_norm.build((None, 2))
    assert [v.name for v in internals.own_variables(batch_norm)] == [
        "gamma",
        "beta",
        "moving_mean",
        "moving_variance",
    ]
    wrapper = keras.layers.TimeDistributed(keras.layers.Dense(2))
    wrapper.build((None, 3, 2))
    assert internals.own_variables(wrapper) == []


def residual_model():
    """A shared layer, an operation, a mask and two outputs."""
    ids = keras.Input((4,), name="ids", dtype="int32")
    features = keras.Input((2,), name="features")
    embedded = keras.layers.Embedding(5, 3, mask_zero=True, name="embed")(ids)
    summary = keras.layers.SimpleRNN(2, name="rnn")(embedded)
    shared = keras.layers.Dense(2, name="shared")
    first = shared(features)
    second = shared(first + summary)
    return keras.Model({"ids": ids, "features": features}, [second, first])


@pytest.mark.core
def test_graph_calls():
    """Oracle: a graph written down by hand.

    The mask of an embedding is an argument of the layer that reads it.
    """
    model = residual_model()
    assert internals.functional_part(model) is model
    calls = internals.graph_calls(model)
    kinds = [type(call.operation).__name__ for call in calls]
    assert sorted(kinds) == [
        "Add",
        "Dense",
        "Dense",
        "Embedding",
        "InputLayer",
        "InputLayer",
        "NotEqual",
        "SimpleRNN",
    ]
    known = set()
    for call in calls:
        tensors = keras.tree.flatten((call.args, call.kwargs))
        tensors = [x for x in tensors if isinstance(x, keras.KerasTensor)]
        assert known >= {id(tensor) for tensor in tensors}
        assert bool(tensors) == (kinds.pop(0) != "InputLayer")
        known |= {id(tensor) for tensor in call.outputs}
    assert known >= {id(tensor) for tensor in model.outputs}
    (rnn,) = [x for x in calls if x.operation is model.get_layer("rnn")]
    (mask,) = [x for x in calls if type(x.operation).__name__ == "NotEqual"]
    assert rnn.kwargs["mask"] is mask.outputs[0]
    assert rnn.args[0] is model.get_layer("embed").output
    uses = [x for x in calls if x.operation is model.get_layer("shared")]
    assert uses[1].outputs[0] is model.output[0]
    assert uses[0].outputs[0] is model.output[1]


@pytest.mark.core
def test_functional_part():
    class Doubled(keras.Model):
        def call(self, inputs):
            return 2 * super().call(inputs)

    class Named(keras.Model):
        pass

    sequential = keras.Sequential([keras.layers.Dense(2), keras.layers.ReLU()])
    assert internals.functional_part(sequential) is None
    sequential.build((None, 3))
    functional = internals.functional_part(sequential)
    calls = internals.graph_calls(functional)
    assert [x.operation for x in calls[1:]] == sequential.layers
    arguments = {"inputs": functional.input, "outputs": functional.output}
    assert internals.functional_part(Doubled(**arguments)) is None
    named = Named(**arguments)
    assert internals.functional_part(named) is named
    assert internals.functional_part(keras.layers.Dense(2)) is None


@pytest.mark.core
def test_refuses_unread_inputs():
    """Oracle: a model with such an input."""
    inputs = [keras.Input((2,)), keras.Input((3,))]
    outputs = keras.layers.Dense(2)(inputs[1])
    expected = nullcontext()
    if internals.refuses_unread_inputs():
        expected = pytest.raises(ValueError, match="not connected")
    with expected:
        keras.Model(inputs, outputs)


def decayed(optimizer, variables):
    """Which variables a step without gradients has made smaller."""
    for variable in variables:
        variable.assign(np.ones(variable.shape))
    optimizer.apply(
        [ops.zeros(variable.shape) for variable in variables], variables
    )
    return [bool(np.all(to_numpy(v) < 0.99)) for v in variables]


@pytest.mark.core
@pytest.mark.parametrize("is_scaled", [False, True])
def test_exclude_from_weight_decay(is_scaled):
    """Oracle: a step of AdamW with zero gradients, which only decays."""
    variables = [
        keras.Variable(np.ones(2, "float32"), name=name)
        for name in ("kernel", "users_own", "ours", "later")
    ]
    inner = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    inner.exclude_from_weight_decay([variables[1]])
    optimizer = inner
    if is_scaled:
        if keras.backend.backend() == "jax":
            pytest.skip("LossScaleOptimizer.apply is not eager on JAX")
        optimizer = keras.optimizers.LossScaleOptimizer(inner)
    internals.exclude_from_weight_decay(optimizer, [variables[2]])
    optimizer.build(variables)
    assert decayed(optimizer, variables) == [True, False, False, True]
    internals.exclude_from_weight_decay(optimizer, [variables[3]])
    assert decayed(optimizer, variables) == [True, False, False, False]


def test_optimizers_without_exclusions_are_accepted():
    variable = keras.Variable(np.ones(2, "float32"))
    optimizer = keras.optimizers.SGD(0.1)
    internals.exclude_from_weight_decay(optimizer, [variable])
    optimizer.apply([ops.ones(2)], [variable])
    assert_equal(variable, np.float32(1.0) - np.float32(0.1) * np.ones(2, "f"))


@pytest.mark.core
@pytest.mark.parametrize("is_broken", [False, True])
def test_replaced_attributes(is_broken):
    """Identity: the very same attributes afterwards, also after an error.

    In between, a tensor neither is tracked nor stands in any list of weights.
    """
    cell = keras.layers.SimpleRNNCell(2)
    cell.build((None, 3))
    kernel, before = cell.kernel, dict(vars(cell))
    paths = [weight.path for weight in cell.weights]
    expected = pytest.raises(ArithmeticError) if is_broken else nullcontext()
    with (
        expected,
        internals.replaced_attributes(cell, kernel=ops.ones((3, 2)), extra=5),
    ):
        assert_equal(cell.kernel, np.ones((3, 2)))
        assert cell.extra == 5
        assert [weight.path for weight in cell.weights] == paths
        assert any(weight is kernel for weight in cell.trainable_weights)
        if is_broken:
            raise ArithmeticError
    assert cell.kernel is kernel
    assert not hasattr(cell, "extra")
    after = vars(cell)
    assert set(after) == set(before)
    assert all(after[name] is before[name] for name in before)
    assert [weight.path for weight in cell.weights] == paths


@pytest.mark.core
def test_replaced_attributes_in_each_other():
    """Oracle: the inner value, then the outer one, then none."""
    cell = keras.layers.SimpleRNNCell(2)
    with internals.replaced_attributes(cell, extra=1):
        with internals.replaced_attributes(cell, extra=2):
            assert cell.extra == 2
        assert cell.extra == 1
    assert not hasattr(cell, "extra")


CELLS = {
    "simple_rnn": (keras.layers.SimpleRNNCell(2), ["call"]),
    "lstm": (keras.layers.LSTMCell(2), ["call"]),
    "lstm_split": (
        keras.layers.LSTMCell(2, implementation=1),
        ["call", "_compute_carry_and_output"],
    ),
    "gru": (keras.layers.GRUCell(2), ["call"]),
    "gru_split": (keras.layers.GRUCell(2, implementation=1), ["call"]),
    "gru_reset_before": (
        keras.layers.GRUCell(2, reset_after=False),
        ["call"],
    ),
}


@pytest.mark.core
@pytest.mark.parametrize("name", CELLS)
def test_with_other_ops(name):
    """Oracle: both kernels at twice their size, by doubling all products.

    A cell has to compute all of its products with `ops.matmul`, through the
    name `ops` of its module, and the copy must leave that module alone.
    """
    cell, methods = CELLS[name]
    if not cell.built:
        cell.build((None, 3))
    module = sys.modules[type(cell).__module__]
    module_ops = module.ops
    kernels = [cell.kernel, cell.recurrent_kernel]
    products = []

    def doubled(inputs, kernel):
        products.append(kernel.shape)
        return 2.0 * ops.matmul(inputs, kernel)

    inputs = np.random.default_rng(0).normal(size=(1, 3)).astype("float32")
    states = [np.full((1, 2), 0.5, "float32")] * (1 + ("lstm" in name))
    plain = to_numpy(cell(inputs, states)[0])
    copies = {
        method: internals.with_other_ops(getattr(cell, method), matmul=doubled)
        for method in methods
    }
    with internals.replaced_attributes(cell, **copies):
        outputs = to_numpy(cell(inputs, states)[0])
    assert module.ops is module_ops
    assert module.ops.matmul is not doubled
    assert_equal(cell(inputs, states)[0], plain)
    # All columns of both kernels take part, and nothing does twice.
    assert sum(shape[1] for shape in products) == sum(
        kernel.shape[1] for kernel in kernels
    )
    twice = {
        name: 2.0 * ops.convert_to_tensor(kernel)
        for name, kernel in zip(
            ("kernel", "recurrent_kernel"), kernels, strict=True
        )
    }
    with internals.replaced_attributes(cell, **twice):
        expected = to_numpy(cell(inputs, states)[0])
    np.testing.assert_allclose(outputs, expected, rtol=1e-6, atol=1e-6)
    assert np.abs(outputs - plain).max() > 1e-3


@pytest.mark.core
def test_splitting_in_cells():
    """Oracle: by hand; an LSTM that splits its kernel does so with `ops`."""
    cell = keras.layers.LSTMCell(2, implementation=1)
    cell.build((None, 3))
    shapes = []

    def split(tensor, sections, axis=0):
        shapes.append((tuple(tensor.shape), sections, axis))
        return ops.split(tensor, sections, axis=axis)

    call = internals.with_other_ops(cell.call, split=split)
    states = [np.zeros((1, 2), "float32")] * 2
    with internals.replaced_attributes(cell, call=call):
        outputs = cell(np.ones((1, 3), "float32"), states)[0]
    assert shapes == [((3, 8), 4, 1), ((8,), 4, 0)]
    assert_equal(outputs, cell(np.ones((1, 3), "float32"), states)[0])


@pytest.mark.core
@pytest.mark.parametrize("kind", ["multi_head", "grouped_query"])
def test_with_projections(kind, monkeypatch):
    """Oracle: by hand; what attention layers build goes by one name."""
    layer = {
        "multi_head": lambda: keras.layers.MultiHeadAttention(2, 3),
        "grouped_query": lambda: keras.layers.GroupQueryAttention(3, 2, 2),
    }[kind]()
    made = []

    class Noted(keras.layers.EinsumDense):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    module = sys.modules[type(layer).__module__]
    einsum_dense = module.EinsumDense
    for name in ("_make_output_dense", "build"):
        if hasattr(layer, name):
            method = getattr(type(layer), name).__get__(layer)
            copy = internals.with_projections(method, Noted)
            monkeypatch.setattr(layer, name, copy)
    layer.build((None, 4, 6), (None, 4, 6))
    assert module.EinsumDense is einsum_dense
    names = ["query", "key", "value", "attention_output"]
    assert [x.name for x in made] == names
    found = internals.attention_projections(layer)
    assert list(found) == ["query", "key", "value", "output"]
    assert made == list(found.values())
    weights = [id(x) for one in made for x in one.weights]
    assert [id(x) for x in layer.weights] == weights
    kinds = [type(x) for x in internals.sublayers(layer)]
    assert kinds.count(Noted) == 4
    assert keras.layers.EinsumDense not in kinds


@pytest.mark.core
def test_mask_of():
    """Oracle: by hand; attention shows no mask in the graph."""
    ids = keras.Input((4,), dtype="int32")
    words = keras.layers.Embedding(5, 3, mask_zero=True)(ids)
    outputs = keras.layers.MultiHeadAttention(1, 2)(words, words)
    assert [
        internals.mask_of(x) is not None for x in (ids, words, outputs)
    ] == [*(False, True, True)]
    calls = internals.graph_calls(keras.Model(ids, outputs))
    assert not any("mask" in name for x in calls for name in x.kwargs)


class Epochs(keras.callbacks.Callback):
    """Starts at an epoch, and notes those that follow."""

    def __init__(self, start):
        super().__init__()
        self.start = start
        self.seen = []

    def on_train_begin(self, logs=None):
        internals.start_at_epoch(self.model, self.start)

    def on_epoch_begin(self, epoch, logs=None):
        self.seen.append(epoch)


@pytest.mark.core
def test_start_at_epoch():
    """Oracle: `fit` calls the callback at the beginning of each epoch."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    epochs = Epochs(3)
    model.fit(
        np.ones((2, 2)), np.ones(2), epochs=5, verbose=0, callbacks=[epochs]
    )
    assert epochs.seen == [3, 4]


@pytest.mark.core
def test_portable_operations_tell_minus_zero_from_zero():
    """Oracle: Keras' own, which read bits; signs by hand."""
    x = ops.convert_to_tensor([[0.0, -0.0, 0.0], [-1.0, -0.0, -2.0]])

    def results():
        return [
            to_numpy(ops.argmax(x, -1)),
            to_numpy(ops.argmin(x, -1)),
            to_numpy(ops.signbit(x)),
            to_numpy(ops.signbit(ops.cast(x, "int32"))),
        ]

    expected = results()
    assert expected[2].tolist() == [[0, 1, 0], [1, 1, 1]]
    with internals.portable_operations():
        found = results()
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.core
def test_copied_operation():
    """Oracle: the operation, whose use in a model stays its only one."""
    inputs = keras.Input((3,))
    outputs = ops.clip(inputs, 0.0, 0.5)
    model = keras.Model(inputs, outputs)
    operation = internals.graph_calls(model)[-1].operation
    copy = internals.copied_operation(operation, "mine")
    assert type(copy) is type(operation)
    other = keras.Input((3,))
    copied = keras.Model(other, copy(other))
    assert copied.layers[0] is not model.layers[0]
    assert [x.name for x in copied.operations][-1] == "mine"
    x = np.array([[-1.0, 0.25, 2.0]], "float32")
    assert_equal(copied(x), model(x))
    assert len(internals.graph_calls(model)) == 2
    assert operation.output is outputs


@pytest.mark.core
def test_is_made_from_graph():
    class Same(keras.Model):
        def call(self, inputs, training=None, mask=None):
            return 2 * super().call(inputs, training, mask)

    class Other(keras.Model):
        def __init__(self, units):
            inputs = keras.Input((units,))
            super().__init__(inputs, keras.layers.Identity()(inputs))

    class Lazy(keras.Model):
        pass

    inputs = keras.Input((3,))
    outputs = keras.layers.Identity()(inputs)
    assert internals.is_made_from_graph(Same(inputs, outputs))
    assert not internals.is_made_from_graph(Other(3))
    assert not internals.is_made_from_graph(Lazy())
    assert not internals.is_made_from_graph(keras.Sequential())


@pytest.mark.core
def test_arguments_of_lambda():
    def double(x):
        return 2 * x

    layer = keras.layers.Lambda(double, output_shape=(3,), arguments={})
    assert internals.arguments_of_lambda(layer) == {
        "function": double,
        "output_shape": (3,),
        "mask": None,
        "arguments": {},
    }


@pytest.mark.core
def test_objects_by_identity():
    """What is known is taken as it is; all else is made anew."""
    inner, other = keras.layers.Dense(2), keras.layers.Dense(3)
    wrapper = keras.layers.TimeDistributed(inner)
    with internals.objects_by_identity(
        lambda number: number == id(inner), lambda number: other
    ):
        made = keras.layers.TimeDistributed.from_config(wrapper.get_config())
        given = keras.saving.deserialize_keras_object(
            internals.reference(inner)
        )
    assert made.layer is given is other
    made = keras.layers.TimeDistributed.from_config(wrapper.get_config())
    assert made.layer not in (inner, other)
    assert made.layer.units == 2


@pytest.mark.core
def test_configs_without_references():
    """One object twice in a model: its config refers to it unless told not to.

    The oracle of the setting is Keras itself, which does refer.
    """
    shared = keras.initializers.Constant(0.5)
    posterior = posteriors.SparseVD()
    with ObjectSharingScope():
        seen = [keras.initializers.serialize(shared) for _ in range(2)]
        with internals.no_references():
            unseen = [keras.initializers.serialize(shared) for _ in range(2)]
        templates = [posteriors.serialize(posterior) for _ in range(2)]
    assert json.dumps(seen).count("shared_object_id") == 2
    assert "shared_object_id" not in json.dumps([unseen, templates])


@pytest.mark.core
def test_classes_that_compute_the_same():
    class Adapted(keras.layers.Dense):
        """With a docstring and a method of its own."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

        def get_config(self):
            return super().get_config()

        def mine(self):
            return 1

    class Changed(Adapted):
        def call(self, inputs, training=None):
            return inputs

    assert internals.overridden(Adapted, keras.layers.Dense) == []
    assert internals.overridden(Changed, keras.layers.Dense) == ["call"]
    assert internals.extended(Changed, "keras") is keras.layers.Dense
    assert internals.computing_class(keras.layers.LSTM) is keras.layers.LSTM
    assert internals.computing_class(Adapted) is keras.layers.Dense
    assert internals.computing_class(Changed) is Changed
    assert internals.computing_class(int) is int


@pytest.mark.core
def test_own_trainable_variables():
    """Oracle: by hand; also of a layer that is frozen."""
    layer = keras.layers.BatchNormalization(trainable=False)
    layer.build((None, 2))
    found = internals.own_trainable_variables(layer)
    assert [v.name for v in found] == ["gamma", "beta"]


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("use_ema", [False, True])
def test_running_average(use_ema):
    """Oracle: the optimizer's own, whose name says of which variable.

    A constraint is called for each variable, in the optimizer's name scope.
    """
    seen = {}

    class Ask(keras.constraints.Constraint):
        def __call__(self, value):
            seen[value.path] = internals.running_average(value)
            return ops.convert_to_tensor(value)

    layer = keras.layers.Dense(2, kernel_constraint=Ask())
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3), layer])
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, use_ema=use_ema)
    model.compile(optimizer, "mse")
    x = np.ones((4, 3), "float32")
    model.fit(x, x[:, :2], verbose=0)
    assert list(seen) == [layer.kernel.path]
    average = seen[layer.kernel.path]
    if use_ema:
        assert any(average is x for x in optimizer.variables)
        assert average.path.endswith("kernel_average")
        assert layer.kernel.path.replace("/", "_") in average.path
    else:
        assert average is None
    assert internals.running_average(layer.kernel) is None


class FitLook(keras.callbacks.Callback):
    """Notes what is known of the `fit` that calls it."""

    def __init__(self):
        super().__init__()
        self.counts = []

    def on_train_begin(self, logs=None):
        self.fit = internals.running_fit()
        internals.build_for_fit(self.model, self.fit)
        self.was_built = all(layer.built for layer in self.model.layers)

    def on_test_begin(self, logs=None):
        self.counts.append(internals.counted_examples(self.model))

    def on_epoch_end(self, epoch, logs=None):
        self.counts.append(internals.counted_examples(self.model))


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("steps_per_epoch", [None, 2])
def test_running_fit(steps_per_epoch):
    """Oracle: the arguments of `fit`.

    Its model is built by then; validation starts the count of examples anew.
    """
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    look = FitLook()
    x = np.ones((9, 3), "float32")
    model.fit(
        x,
        x[:, :1],
        batch_size=2,
        steps_per_epoch=steps_per_epoch,
        validation_data=(x[:3], x[:3, :1]),
        verbose=0,
        callbacks=[look],
    )
    assert look.was_built
    assert look in look.fit.callbacks.callbacks
    assert look.fit.is_one_pass is (steps_per_epoch is None)
    assert look.fit.steps == (steps_per_epoch or 5)
    assert look.counts == [4.0 if steps_per_epoch else 9.0, 3.0]
    # Outside of `fit` nothing is known.
    look.on_train_begin()
    assert look.fit.callbacks is None
    assert look.fit.steps is None
    assert look.fit.is_one_pass is False


@pytest.mark.core
def test_compilation():
    """Oracle: `compile` makes a new one each time, nothing else does."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    assert internals.compilation(model) is None
    found = []
    for _ in range(2):
        model.compile("sgd", "mse")
        model.predict(np.ones((1, 2)), verbose=0)
        found.append(internals.compilation(model))
        assert internals.compilation(model) is found[-1]
    assert found[0] is not found[1]


class _Rows(keras.utils.PyDataset):
    epochs = 0

    @property
    def num_batches(self):
        return 3

    def __getitem__(self, index):
        return np.full((2, 1), index), np.zeros(2)

    def on_epoch_end(self):
        self.epochs += 1


@pytest.mark.core
def test_input_batches():
    """Oracle: by hand, for arrays, data sets, generators and others."""
    arrays = internals.input_batches({"a": np.arange(5)[:, None]}, 2, None)
    assert arrays.is_array
    assert not arrays.is_endless
    assert (arrays.num_batches, arrays.num_examples) == (3, 5)
    assert [batch["a"].ravel().tolist() for batch in arrays] == [
        *([0, 1], [2, 3], [4])
    ]
    rows = _Rows()
    found = internals.input_batches(rows, None, 2)
    assert not found.is_array
    assert (found.num_batches, found.num_examples) == (2, None)
    assert [batch[0, 0] for batch in found] == [0, 1]
    assert rows.epochs == 1
    generator = internals.input_batches(
        ((np.ones((2, 1)),) for _ in range(2)), None, None
    )
    assert not generator.is_endless
    assert generator.num_batches is None
    assert [batch.shape for batch in generator] == [(2, 1)] * 2
    for other in ("x", [1.0], None, np.float32(1.0), iter([1])):
        assert internals.input_batches(other, None, None) is None


def test_a_data_set_without_an_end():
    """Oracle: `repeat` of TensorFlow."""
    tf = pytest.importorskip("tensorflow")
    once = tf.data.Dataset.from_tensor_slices(np.ones((3, 1))).batch(2)
    assert not internals.input_batches(once, None, None).is_endless
    filtered = once.filter(lambda x: True)
    assert not internals.input_batches(filtered, None, None).is_endless
    endless = internals.input_batches(once.repeat(), None, 4)
    assert endless.is_endless
    assert len(list(endless)) == 4


@pytest.mark.core
def test_operations_at_the_end_of_a_graph():
    """Oracle: by their names, the last one to be called."""
    inputs = keras.Input((2, 3))
    for name, kind in internals.SOFTMAX_OPERATIONS.items():
        function = {"Softmax": ops.softmax, "LogSoftmax": ops.log_softmax}[name]
        model = keras.Model(inputs, function(inputs, axis=1))
        operation = internals.graph_calls(model)[-1].operation
        assert isinstance(operation, kind)
        assert operation.axis == 1
    for function in (
        lambda x: ops.cast(x, "float16"),
        lambda x: ops.reshape(x, (-1, 6)),
        lambda x: ops.squeeze(x[:, :1], 1),
    ):
        model = keras.Model(inputs, function(inputs))
        operation = internals.graph_calls(model)[-1].operation
        assert isinstance(operation, internals.RESHAPING_OPERATIONS)


def test_loss_options():
    losses = (
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, axis=1),
        keras.losses.CategoricalCrossentropy(axis=2),
        keras.losses.Dice(),
    )
    found = [internals.loss_options(x) for x in losses]
    assert [x.get("from_logits", False) for x in found] == [True, False, False]
    assert [x.get("axis") for x in found] == [1, 2, None]


def test_labels_per_example():
    def model(*shape):
        inputs = keras.Input(shape)
        return keras.Model(inputs, keras.layers.Activation("relu")(inputs))

    shapes = [(3,), (5, 3), (4, 5, 3), (None, 3)]
    found = [internals.labels_per_example(model(*x)) for x in shapes]
    assert found == [1, 5, 20, None]
    assert internals.labels_per_example(keras.Model()) is None
    for outputs in ([], [model(3).output, model(5, 3).output]):
        several = SimpleNamespace(outputs=outputs)
        assert internals.labels_per_example(several) is None
    assert internals.labels_per_example(SimpleNamespace(outputs=None)) is None


@pytest.mark.core
def test_rematerialization():
    """Oracle: what Keras documents of the scope's modes."""
    found = {}
    for mode in ("full", "activations", "larger_than"):
        with keras.RematScope(mode=mode):
            layer = keras.layers.Dense(2)
        found[mode] = internals.may_be_rematerialized(layer)
    assert found == {"full": True, "activations": False, "larger_than": True}
    with keras.RematScope(mode="list_of_layers", layer_names=["a"]):
        pair = [keras.layers.Dense(2, name=name) for name in "ab"]
    assert list(map(internals.may_be_rematerialized, pair)) == [True, False]
    assert not internals.may_be_rematerialized(keras.layers.Dense(2))


@pytest.mark.core
def test_resize_variable():
    """Oracle: values by hand; the variable trains in its new shape."""
    layer = keras.layers.Dense(3)
    layer.build((None, 2))
    kernel = layer.kernel
    value = np.arange(2.0, dtype="float32").reshape(2, 1)
    internals.resize_variable(kernel, value)
    assert layer.kernel is kernel is layer.trainable_variables[0]
    assert tuple(kernel.shape) == (2, 1)
    assert_equal(kernel, value)
    kernel.assign(value + 1.0)
    assert_equal(kernel, value + 1.0)
    internals.register_variables(layer)
    if keras.backend.backend() == "torch":
        shapes = {tuple(x.shape) for x in layer.parameters()}
        assert shapes == {(2, 1), (3,)}
    mask = keras.Variable(np.ones(3, bool), dtype="bool", trainable=False)
    internals.resize_variable(mask, np.array([True, False]))
    assert_equal(mask, [True, False])


def _resized_model(optimizer="adam"):
    """Return a compiled model and the same with one unit less, in place."""
    layers = [keras.layers.Dense(3, name="a"), keras.layers.Dense(2, name="b")]
    model = keras.Sequential()
    for layer in (keras.Input((4,)), *layers):
        model.add(layer)
    model.compile(optimizer, "mse")
    model.fit(np.ones((4, 4)), np.ones((4, 2)), verbose=0)
    slots = internals.optimizer_slots(model.optimizer)
    with internals.known_to_optimizer(model.optimizer):
        for variable, keep in (
            (layers[0].kernel, np.s_[:, :2]),
            (layers[0].bias, np.s_[:2]),
            (layers[1].kernel, np.s_[:2]),
        ):
            for one in (variable, *slots.get(id(variable), ())):
                internals.resize_variable(one, to_numpy(one)[keep])
    twin = keras.layers.Dense(2)
    twin.build((None, 4))
    internals.adopt_sizes(layers[0], twin)
    twin = keras.layers.Dense(2)
    twin.build((None, 2))
    internals.adopt_sizes(layers[1], twin)
    return model


@pytest.mark.core
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_models_of_another_size(optimizer):
    """Oracle: shapes by hand; without the functions `fit` would fail."""
    model = _resized_model(optimizer)
    internals.refresh_shapes(internals.functional_part(model))
    old = model.train_function
    internals.forget_functions(model)
    assert model.train_function is not old
    first, second = model.layers
    assert first.output.shape == second.input.shape == (None, 2)
    assert {x.output_tensors[0].shape for x in first._inbound_nodes} == {
        (None, 2)
    }
    assert second.get_build_config()["input_shape"] == (None, 2)
    assert first.units == 2
    model.fit(np.ones((4, 4)), np.ones((4, 2)), epochs=2, verbose=0)
    assert model.predict(np.ones((1, 4)), verbose=0).shape == (1, 2)


@pytest.mark.core
@pytest.mark.parametrize("is_scaled", [False, True])
def test_known_to_optimizer(is_scaled):
    """Oracle: a variable stays out of weight decay in its new shape."""
    optimizer = keras.optimizers.AdamW(0.0, weight_decay=0.5)
    if is_scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    kept, decayed = (keras.Variable(np.ones(3, "float32")) for _ in range(2))
    optimizer.build([kept, decayed])
    internals.exclude_from_weight_decay(optimizer, [kept])
    slots = internals.optimizer_slots(optimizer)
    assert {len(x) for x in slots.values()} == {2}
    with internals.known_to_optimizer(optimizer):
        for variable in (kept, decayed):
            for one in (variable, *slots[id(variable)]):
                internals.resize_variable(one, to_numpy(one)[:2])
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    assert inner._get_variable_index(decayed) == 1
    assert not inner._use_weight_decay(kept)
    assert inner._use_weight_decay(decayed)


@pytest.mark.core
def test_optimizer_slots_of_other_shapes():
    optimizer = keras.optimizers.Adafactor()
    optimizer.build([keras.Variable(np.ones((3, 2), "float32"))])
    with pytest.raises(ValueError, match="Adafactor"):
        internals.optimizer_slots(optimizer)


@pytest.mark.core
def test_is_used_elsewhere():
    inputs = keras.Input((2,))
    one, other = keras.layers.Dense(3), keras.layers.Dense(4)
    hidden = one(inputs)
    model = keras.Model(inputs, other(hidden))
    assert not internals.is_used_elsewhere(one, model.layers)
    keras.layers.Dense(5)(hidden)
    assert internals.is_used_elsewhere(one, model.layers)
    assert not internals.is_used_elsewhere(other, model.layers)


class Speaking(keras.layers.Dense):
    """A layer with a method of its own."""

    def speak(self):
        return "hello"

    def _whisper(self):
        return "..."


@pytest.mark.core
def test_own_methods():
    assert internals.own_methods(Speaking) == ["speak"]
    assert internals.own_methods(Probe) == ["build", "call"]
    assert internals.own_methods(keras.layers.Dense) == []


class Doubling(keras.layers.Dense):
    """Takes an argument `training`, unlike `Dense`, and more weights."""

    def call(self, inputs, training=None):
        factor = 2.0 if training else 1.0
        return factor * super().call(inputs) + self.shift


@pytest.mark.core
def test_change_class():
    """Identity: the object stays, and with it its place in models."""
    layer = keras.layers.Dense(3)
    model = keras.Sequential([keras.Input((2,)), layer])
    inputs = np.ones((1, 2), "float32")
    before = to_numpy(model(inputs))
    with internals.change_class(layer, Doubling):
        layer.shift = layer.add_weight(shape=(), initializer="ones")
    assert model.layers[0] is layer
    assert_equal(model(inputs), before + 1.0)
    assert_equal(model(inputs, training=True), 2.0 * before + 1.0)
    assert len(model.weights) == 3
    with pytest.raises(ValueError, match="cannot add new elements of state"):
        layer.other = keras.layers.Dense(1)


@pytest.mark.core
def test_is_better_when_larger():
    """Oracle: what the names of the metrics say."""

    def oddity(labels, outputs):
        return outputs[:, 0]

    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae", "accuracy", oddity])
    inputs = np.ones((2, 3))
    model.fit(inputs, inputs[:, :1], verbose=0)
    found = {
        name: internals.is_better_when_larger(model, name)
        for name in ("loss", "val_loss", "mae", "val_mae", "val_accuracy")
    }
    assert found == {name: name == "val_accuracy" for name in found}
    with pytest.raises(ValueError, match="Received: monitor='oddity'"):
        internals.is_better_when_larger(model, "oddity")


@pytest.mark.core
def test_custom_scale_layer():
    """Oracle: the sum, which is all that the layer does."""
    one, two = np.ones((2, 3), "float32"), np.full((2, 3), 4.0, "float32")
    layer = internals.CustomScaleLayer(0.5)
    np.testing.assert_array_equal(to_numpy(layer([one, two])), one + two / 2)
    assert layer.weights == []


def test_without_values():
    """Oracle: the shapes alone; a kernel of 10^14 numbers fits no memory."""

    def make():
        return keras.Sequential(
            [keras.Input((10**7,)), keras.layers.Dense(10**7)]
        )

    model = internals.without_values(make)
    assert [tuple(x.shape) for x in model.weights] == [
        (10**7, 10**7),
        (10**7,),
    ]
    with pytest.raises(ZeroDivisionError):
        internals.without_values(lambda: 1 // 0)
    # Nothing is left that a later scope would give values to.
    with keras.StatelessScope():
        pass
    assert len(keras.layers.Dense(2)(np.ones((1, 2)))) == 1
