"""What a training step is made of, counted in its graph or its jaxpr.

Oracle of the numbers: lists, by hand, of what a step cannot do without. One
that grows is a step that became slower, or larger.
"""

from __future__ import annotations

import collections
import itertools
import math
import re

import keras
import numpy as np
import pytest

import keras_vd
from keras_vd._backend.fusing import MIN_SIZE

INPUTS, UNITS, BATCH = 320, 128, 6
SHAPE = (INPUTS, UNITS)
assert math.prod(SHAPE) >= MIN_SIZE

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="counted in its graph"
)
on_jax = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="counted in its jaxpr"
)


def dense(posterior, units=UNITS):
    return keras_vd.layers.VDDense(units, posterior=posterior, kl_weight=1e-4)


LAYERS = {
    "plain": lambda: keras.layers.Dense(UNITS),
    "sparse_vd": lambda: dense("sparse_vd"),
    "exact": lambda: dense(
        keras_vd.posteriors.SparseVD(prior=keras_vd.priors.LogUniform("exact"))
    ),
    "gaussian": lambda: dense("gaussian"),
    "unit": lambda: dense(keras_vd.posteriors.SparseVD(share="unit")),
    "rank1": lambda: dense(keras_vd.posteriors.SparseVD(share="rank1")),
    "vd": lambda: dense("vd"),
    "weight": lambda: dense(keras_vd.posteriors.SparseVD(estimator="weight")),
    "embedding": lambda: keras_vd.layers.VDEmbedding(
        INPUTS, UNITS, kl_weight=1e-4
    ),
    "lstm": lambda: keras_vd.layers.VDLSTM(UNITS // 4, kl_weight=1e-4),
}


def build(layer):
    """A model of one layer, and a batch for it."""
    is_table = isinstance(layer, keras.layers.Embedding)
    shape = (INPUTS,)
    if is_table:
        shape = (5,)
    elif isinstance(layer, keras.layers.RNN):
        shape = (3, INPUTS)
    inputs = keras.Input(shape, dtype="int32" if is_table else "float32")
    model = keras.Model(inputs, layer(inputs))
    model.compile(keras.optimizers.SGD(0.01), "mse")
    model.optimizer.build(model.trainable_variables)
    targets = np.zeros((BATCH, *model.output_shape[1:]), "float32")
    return model, np.ones((BATCH, *shape), inputs.dtype), targets


def operations_of_a_step(layer):
    """The operations of a training step's graph on TensorFlow."""
    import tensorflow as tf

    model, *batch = build(layer)
    step = tf.function(lambda x, y: model.train_step((x, y)), autograph=False)
    graph = step.get_concrete_function(*map(tf.constant, batch)).graph
    return graph.get_operations()


def temporaries(operations):
    """Number of float tensors of the weight's shape, by type of operation.

    What XLA compiles is one operation, whatever is in it. Reading a variable
    writes nothing, and what nobody reads is never computed.
    """
    free = ("ReadVariableOp", "Identity", "IdentityN", "Placeholder")
    return collections.Counter(
        operation.type
        for operation in operations
        for output in operation.outputs
        if output.shape == SHAPE and output.dtype.is_floating
        if operation.type not in free and output.consumers()
    )


# Products: gradients of the weights that they read. Updates: rate * gradient
# of theta and of the noise parameter. Kernels: the weights that the products
# read, and the gradients.
@pytest.mark.integration
@on_tensorflow
@pytest.mark.parametrize(
    ("name", "products", "updates", "kernels"),
    [
        ("plain", 1, 1, 0),
        ("sparse_vd", 2, 2, 4),
        ("exact", 2, 2, 4),
        ("gaussian", 2, 2, 4),
        ("unit", 1, 1, 2),
        ("rank1", 1, 1, 2),
        ("vd", 2, 1, 3),
        ("weight", 1, 2, 4),
        ("embedding", 0, 2, 4),
    ],
)
def test_temporaries_in_the_graph(name, products, updates, kernels):
    expected = {
        "MatMul": products,
        "Mul": updates,
        "PartitionedCall": kernels,
    }
    counted = temporaries(operations_of_a_step(LAYERS[name]()))
    assert counted == {kind: n for kind, n in expected.items() if n}


# With the inputs, and its gradient by the weight.
@on_tensorflow
@pytest.mark.parametrize(
    ("name", "products"),
    [("plain", 2), ("sparse_vd", 4), ("unit", 2), ("rank1", 2)],
)
def test_products_in_the_graph(name, products):
    """Of the weight's size: what shared variances need beside is not."""
    sizes = {SHAPE, (BATCH, UNITS)}
    found = [
        operation
        for operation in operations_of_a_step(LAYERS[name]())
        if operation.type == "MatMul"
        and tuple(operation.outputs[0].shape) in sizes
    ]
    assert len(found) == products


@on_jax
@pytest.mark.core
@pytest.mark.parametrize(
    ("name", "products"), [("plain", 1), ("sparse_vd", 2), ("unit", 1)]
)
def test_products_in_the_jaxpr(name, products):
    """Gradients of weights, outside of the branch for pruned ones."""
    _, compiled = equations_of_a_step(LAYERS[name]())
    text = compiled.as_text()
    shape = rf"f32\[{INPUTS},{UNITS}\]"
    found = re.findall(rf"= {shape}\S* dot\(", text[text.index("ENTRY") :])
    assert len(found) == products


@on_tensorflow
@pytest.mark.parametrize(
    ("name", "kernels"), [("sparse_vd", 2), ("vd", 2), ("weight", 3)]
)
def test_compiled_kernels(name, kernels):
    """One for the pass, one for its gradient, one for noise of that size."""
    calls = [
        operation
        for operation in operations_of_a_step(LAYERS[name]())
        if operation.type == "PartitionedCall"
    ]
    compiled = [call for call in calls if call.get_attr("_XlaMustCompile")]
    assert len(calls) == len(compiled) == kernels


@on_tensorflow
@pytest.mark.parametrize("name", ["sparse_vd", "embedding", "lstm"])
def test_inference_needs_no_compiler(name):
    """Exported, these graphs run where there is no XLA."""
    import tensorflow as tf

    model, inputs, _ = build(LAYERS[name]())
    predict = tf.function(lambda x: model(x, training=False))
    graph = predict.get_concrete_function(tf.constant(inputs)).graph
    operations = list(graph.as_graph_def().node)
    for function in graph.as_graph_def().library.function:
        operations.extend(function.node_def)
    assert len(operations) > 5
    assert not any("_XlaMustCompile" in node.attr for node in operations)


def equations_of_a_step(layer, units=UNITS):
    """The jaxpr of a training step, flat, and its compiled form."""
    import jax

    model, *batch = build(layer)
    state = tuple(
        [variable.value for variable in group]
        for group in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    )
    traced = jax.jit(model.train_step, donate_argnums=0).trace(state, batch)
    return list(_flat(traced.jaxpr.jaxpr)), traced.lower().compile()


def _flat(jaxpr):
    import jax

    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(list(equation.params.values())):
            if hasattr(parameter, "eqns") or hasattr(parameter, "jaxpr"):
                yield from _flat(getattr(parameter, "jaxpr", parameter))


# A gradient and an update; for "sparse_vd" two of each, and mean, variance,
# signal-to-noise ratio, KL and slope of the KL, which is all of it.
WRITTEN = {
    "plain": 2,
    "sparse_vd": 9,
    "exact": 11,
    "gaussian": 10,
    "vd": 8,
    # Without what a variance for each weight takes.
    "unit": 7,
}


@on_jax
@pytest.mark.core
@pytest.mark.parametrize("name", WRITTEN)
def test_tensors_of_the_weights_size(name):
    """Each is a loop of its own, and a pass over memory."""
    _, compiled = equations_of_a_step(LAYERS[name]())
    text = compiled.as_text()
    written = re.findall(
        rf"= f32\[{INPUTS},{UNITS}\]\S* (\w+)", text[text.index("ENTRY") :]
    )
    counted = [operation for operation in written if operation != "parameter"]
    assert 2 <= len(counted) <= WRITTEN[name], counted


@on_jax
@pytest.mark.core
@pytest.mark.parametrize(
    ("posterior", "most"), [("sparse_vd", 5.5), ("vd", 3.5)]
)
def test_memory_that_xla_plans(posterior, most):
    """In weight matrices; masks are a quarter of one, and few more are held."""
    _, compiled = equations_of_a_step(dense(posterior, INPUTS * 8))
    weight = 4 * INPUTS * INPUTS * 8
    planned = compiled.memory_analysis().temp_size_in_bytes / weight
    assert 2 < planned < most


# Two normals are made of one draw.
DRAWS = {
    "sparse_vd": BATCH * UNITS // 2,
    "vd": BATCH * UNITS // 2,
    "weight": INPUTS * UNITS // 2,
    "embedding": INPUTS * UNITS // 2,
    "lstm": (INPUTS + UNITS // 4) * UNITS // 2,
}


@on_tensorflow
@pytest.mark.parametrize("name", DRAWS)
def test_draws_in_the_graph(name):
    drawn = [
        math.prod(operation.outputs[0].shape)
        for operation in operations_of_a_step(LAYERS[name]())
        if "StatelessRandomUniform" in operation.type
    ]
    assert sum(drawn) == DRAWS[name]


@on_jax
@pytest.mark.core
@pytest.mark.parametrize("name", DRAWS)
def test_draws_in_the_jaxpr(name):
    equations, _ = equations_of_a_step(LAYERS[name]())
    drawn = [
        math.prod(equation.outvars[-1].aval.shape)
        for equation in equations
        if equation.primitive.name in ("random_bits", "rng_bit_generator")
    ]
    assert sum(drawn) == DRAWS[name]


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="it does not trace"
)
@pytest.mark.parametrize("name", ["sparse_vd", "lstm"])
def test_traces(name, monkeypatch):
    """Oracle: after an epoch and a validation Python has nothing to do.

    Whatever the annealed weight, the seeds and the masks become.
    """
    layer = LAYERS[name]()
    model, inputs, targets = build(layer)
    weights = keras_vd.variational_weights(model)
    calls = collections.Counter()
    uses = ("project", "draw", "draw_parts")
    for weight, use in itertools.product(weights, uses):
        start = getattr(weight, use)

        def count(*arguments, start=start, key=(weight.label, use), **options):
            calls[key] += 1
            return start(*arguments, **options)

        monkeypatch.setattr(weight, use, count)

    def fit(initial_epoch):
        annealing = keras_vd.callbacks.KLAnnealing(BATCH, 1, 1, verbose=0)
        model.fit(
            inputs,
            targets,
            batch_size=BATCH // 2,
            initial_epoch=initial_epoch,
            epochs=initial_epoch + 3,
            validation_data=(inputs, targets),
            callbacks=[annealing],
            verbose=0,
        )

    fit(0)
    first = dict(calls)
    assert {label for label, _ in first} == {w.label for w in weights}
    # Once for the shapes, once to train and once to validate.
    assert set(first.values()) <= {1, 2, 3}
    keras_vd.prune(model)
    fit(3)
    assert dict(calls) == first
