"""Gates in `to_deterministic`: folded where that is exact, else a multiply.

Oracle everywhere: the variational model itself, whose gates are tested in
tests/layers/test_gates.py. The architectures are in tests/helpers/folding.py.
"""

import json

import keras
import numpy as np
import pytest

import keras_vd
from keras_vd._backend.keras_internals import flatten_layers
from keras_vd.layers.structured import StructuredGate
from tests.helpers.arrays import random_inputs, to_float64
from tests.helpers.folding import (
    CASES,
    CORE,
    Bernoulli,
    Dependent,
    Gate,
    K,
    Wrapping,
    chain,
)
from tests.helpers.gates import randomize as randomize_gate
from tests.helpers.models import run_python


def randomize(model, seed=5):
    """Values other than those that variables start from; half-open gates."""
    generator = np.random.default_rng(seed)
    posteriors = keras_vd.variational_weights(model)
    own = {id(v) for p in posteriors for v in p.variables}
    for variable in model.variables:
        is_float = keras.backend.is_float_dtype(variable.dtype)
        if id(variable) not in own and is_float:
            value = generator.uniform(0.2, 1.0, variable.shape)
            if len(variable.shape) > 1 or variable.name == "bias":
                value *= generator.choice([-1.0, 1.0], variable.shape)
            variable.assign(value)
    for layer in flatten_layers(model):
        if isinstance(layer, StructuredGate):
            randomize_gate(layer, seed)


def inputs_of(shape, rows=5):
    if isinstance(shape, dict):
        return {name: random_inputs(rows, *s) for name, s in shape.items()}
    return random_inputs(rows, *shape)


def predict(model, inputs):
    outputs = model(inputs, training=False)
    return [to_float64(x) for x in keras.tree.flatten(outputs)]


def assert_same_predictions(plain, model, shape):
    """Equal to 1e-6 of the largest output; 16 bits round after each layer."""
    inputs = inputs_of(shape)
    expected = predict(model, inputs)
    is_mixed = any(x.compute_dtype != "float32" for x in flatten_layers(model))
    for one, other in zip(predict(plain, inputs), expected, strict=True):
        largest = np.abs(other).max()
        assert largest > 0.01
        tolerance = (0.02 if is_mixed else 2e-6) * largest
        np.testing.assert_allclose(one, other, rtol=0.0, atol=tolerance)


def multiplies(model):
    """What is left of the gates: `Rescaling`s and submodels in their place."""
    return [
        x
        for x in flatten_layers(model)
        if isinstance(x, K.Rescaling) and x.name != "gates"
    ] + [x for x in flatten_layers(model) if x.name.startswith("dependent")]


def parametrized(names):
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(x, marks=pytest.mark.core if x in CORE else ())
            for x in names
        ],
    )


@pytest.mark.integration
@parametrized(CASES)
def test_plain_model_predicts_the_same(name, tmp_path):
    """Oracle: the variational model, which must not change.

    Kernels of what comes before and after differ from the original's only
    where they have taken in a gate; a `.keras` file holds all of it.
    """
    build, shape, left = CASES[name]
    model = build()
    randomize(model)
    before = [to_float64(v) for v in model.variables]
    config = json.dumps(model.get_config(), default=str)
    plain = keras_vd.to_deterministic(model)
    assert_same_predictions(plain, model, shape)
    assert left is None or len(multiplies(plain)) == left
    for layer in flatten_layers(plain):
        assert not type(layer).__module__.startswith("keras_vd")
    assert "keras_vd" not in plain.to_json()
    assert not plain.compiled

    custom = {"Wrapping": Wrapping}
    plain.save(tmp_path / "plain.keras")
    loaded = keras.saving.load_model(
        tmp_path / "plain.keras", custom, safe_mode=False
    )
    assert_same_predictions(loaded, model, shape)

    for weight in plain.weights:
        weight.assign(np.zeros(weight.shape))
    assert json.dumps(model.get_config(), default=str) == config
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(to_float64(variable), value)


@pytest.mark.parametrize("name", ["chain", "LeNet", "tanh", "dependent"])
def test_layers_keep_their_names_and_policies(name):
    # Oracle: the variational model, gates left out where they are folded.
    build, _, left = CASES[name]
    model = build()
    plain = keras_vd.to_deterministic(model)
    expected = [
        x for x in model.layers if left or not isinstance(x, StructuredGate)
    ]
    assert [x.name for x in plain.layers] == [x.name for x in expected]
    for one, other in zip(plain.layers, expected, strict=True):
        if not isinstance(one, keras.Model):
            assert one.dtype_policy.name == other.dtype_policy.name


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_policies_of_what_is_left(policy):
    model = chain(
        (6,),
        Gate(dtype=policy),
        K.Activation("tanh", dtype=policy),
        Dependent(dtype=policy),
        K.Dense(2, dtype=policy),
    )
    randomize(model)
    plain = keras_vd.to_deterministic(model)
    rescaling, activation, _, dense = plain.layers
    for layer in (rescaling, activation, dense):
        assert layer.dtype_policy.name == policy
    outputs = plain(random_inputs(2, 6))
    dtype = keras.backend.standardize_dtype(outputs.dtype)
    assert dtype == policy.removeprefix("mixed_")
    assert_same_predictions(plain, model, (6,))


def test_a_pruned_and_loaded_model(tmp_path):
    # Oracle: the model that was saved, also where variables have moved on.
    model = CASES["LeNet"][0]()
    randomize(model)
    keras_vd.prune(model)
    for layer in model.layers:
        if isinstance(layer, Gate):
            layer.log_sigma.assign(np.full(layer.units, -5.0))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    plain = keras_vd.to_deterministic(loaded)
    assert_same_predictions(plain, model, (8, 8, 2))
    assert multiplies(plain) == []


@pytest.mark.core
def test_folded_kernel_by_hand():
    # By hand: rows of the kernel times the gates, and dead rows.
    model = chain((6,), Gate(), K.Dense(3))
    randomize(model)
    gate, dense = model.layers
    (plain,) = keras_vd.to_deterministic(model).layers
    gates = to_float64(gate.mean())[:, None]
    assert (gates == 0.0).any()
    expected = to_float64(dense.kernel) * gates
    np.testing.assert_allclose(to_float64(plain.kernel), expected, rtol=1e-6)
    np.testing.assert_array_equal(
        to_float64(plain.bias), to_float64(dense.bias)
    )


def test_normalization_by_hand():
    # By hand: gamma (f x - m) / s + beta for one unit.
    model = chain((1,), Gate(), K.BatchNormalization(epsilon=0.5))
    gate, normalization = model.layers
    gate.mu.assign([-1.0])
    for name, value in {
        "gamma": 2.0,
        "beta": 3.0,
        "moving_mean": 5.0,
        "moving_variance": 0.75,
    }.items():
        getattr(normalization, name).assign([value])
    f = float(to_float64(gate.mean())[0])
    (found,) = predict(keras_vd.to_deterministic(model), np.float32([[7.0]]))
    expected = 2.0 * (f * 7.0 - 5.0) / np.sqrt(1.25) + 3.0
    assert found[0, 0] == pytest.approx(expected, rel=1e-5)


def test_a_gate_with_a_call_of_its_own_is_refused():
    class Shifted(Gate):
        def call(self, inputs, training=None):
            return super().call(inputs, training=training) + 1.0

    for reader in (K.Dense(2), K.Activation("tanh")):
        model = chain((6,), Shifted(), reader)
        with pytest.raises(ValueError, match=r"'Shifted' overrides `call`"):
            keras_vd.to_deterministic(model)


@pytest.fixture
def channels_first():
    before = keras.config.image_data_format()
    yield lambda: keras.config.set_image_data_format("channels_first")
    keras.config.set_image_data_format(before)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("rank", [2, 3])
def test_a_global_data_format_does_not_move_the_gates(
    rank, axis, channels_first
):
    """Oracle: the variational model; `Rescaling` reads the global format."""
    channels_first()
    shape = (6,) * rank
    model = chain(shape, Gate(axis=axis), K.Activation("tanh"))
    randomize(model)
    plain = keras_vd.to_deterministic(model)
    assert_same_predictions(plain, model, shape)
    assert len(multiplies(plain)) == 1


def test_rescaling_that_would_not_fit_is_refused(channels_first):
    # Keras takes two axes for those of images; a folded gate needs none.
    channels_first()
    for gate in (Gate(name="mine"), Dependent(name="mine")):
        model = chain((6,), gate, K.Activation("tanh"))
        with pytest.raises(ValueError, match=r"'mine'.*'channels_last'"):
            keras_vd.to_deterministic(model)
    model = chain((6,), Gate(), K.Dense(2))
    randomize(model)
    assert_same_predictions(keras_vd.to_deterministic(model), model, (6,))


def test_layers_with_channels_first(channels_first):
    # Oracle: the variational model. CPU convolutions need channels_last.
    channels_first()
    for build in (
        lambda: chain((6, 4, 4), Gate(axis=1), K.Flatten(), K.Dense(2)),
        lambda: chain(
            (6, 4), Gate(axis=1), K.GlobalAveragePooling1D(), K.Dense(2)
        ),
        lambda: chain((6, 4), Gate(), K.Flatten(), K.Dense(2)),
    ):
        model = build()
        randomize(model)
        shape = model.input_shape[1:]
        assert_same_predictions(keras_vd.to_deterministic(model), model, shape)


READ = """
import sys
sys.modules.update({"keras": None, "keras_vd": None})
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

for name in ("variational", "plain"):
    path = sys.argv[1] + "/" + name
    proto = saved_model_pb2.SavedModel()
    with open(path + "/saved_model.pb", "rb") as file:
        proto.ParseFromString(file.read())
    graph = proto.meta_graphs[0].graph_def
    nodes = [*graph.node]
    for function in graph.library.function:
        nodes.extend(function.node_def)
    random = {node.op for node in nodes if "Random" in node.op}
    assert len(nodes) > 5 and not random, random
    loaded = tf.saved_model.load(path)
    inputs = tf.constant(np.load(sys.argv[1] + "/inputs.npy"))
    np.save(path + ".npy", loaded.serve(inputs).numpy())
"""


@pytest.mark.integration
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="Looks into a TF graph."
)
def test_served_models_hold_no_random_operation(tmp_path):
    """Oracle: `predict`, in a process without Keras and this package."""
    model = chain(
        *((4, 4, 6), Gate(), K.Conv2D(6, 2), Bernoulli(), K.Activation("tanh")),
        *(K.Flatten(), Dependent(), K.Dense(3)),
    )
    randomize(model)
    inputs = random_inputs(7, 4, 4, 6)
    np.save(tmp_path / "inputs.npy", inputs)
    model.export(tmp_path / "variational", verbose=False)
    plain = keras_vd.to_deterministic(model)
    plain.export(tmp_path / "plain", verbose=False)
    result = run_python(READ, tmp_path)
    assert result.returncode == 0, result.stderr
    (expected,) = predict(model, inputs)
    for name in ("variational", "plain"):
        found = np.load(tmp_path / f"{name}.npy")
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
