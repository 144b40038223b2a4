"""A served model holds no noise, and needs neither Keras nor this package."""

import json

import keras
import numpy as np
import pytest

import keras_vd
from tests.helpers.arrays import random_inputs, to_float64
from tests.helpers.models import nested, randomize, run_python

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        keras.backend.backend() == "torch",
        reason="Keras exports no SavedModel on torch.",
    ),
]
BATCH_SIZES = (1, 7, 350)
MODELS = ("variational", "plain", "noisy")

# Run where neither Keras nor keras_vd can be imported. On JAX a SavedModel
# holds a serialized XLA program, in which operations have no names to look at.
READ = """
import json, os, sys

sys.modules.update({"keras": None, "keras_vd": None})
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

directory, found = sys.argv[1], {}
for name in json.loads(sys.argv[2]):
    path = os.path.join(directory, name)
    proto = saved_model_pb2.SavedModel()
    with open(os.path.join(path, "saved_model.pb"), "rb") as file:
        proto.ParseFromString(file.read())
    graph = proto.meta_graphs[0].graph_def
    nodes = list(graph.node)
    for function in graph.library.function:
        nodes.extend(function.node_def)
    # Two statements: what the loaded object owns lives as long as it does.
    loaded = tf.saved_model.load(path)
    outputs, repeats = [], True
    for inputs in np.load(os.path.join(directory, "inputs.npz")).values():
        outputs.append(loaded.serve(tf.constant(inputs)).numpy())
        repeats &= np.array_equal(
            loaded.serve(tf.constant(inputs)).numpy(), outputs[-1]
        )
    np.savez(path + ".npz", *outputs)
    found[name] = {
        "nodes": len(nodes),
        "random": sorted({n.op for n in nodes if "Random" in n.op}),
        "repeats": bool(repeats),
    }
found["imported"] = [
    name
    for name, module in sys.modules.items()
    if module and name.partition(".")[0] in ("keras", "keras_vd")
]
print(json.dumps(found))
"""


class Exported:
    def __init__(self, directory):
        self.directory = directory
        model = nested()
        randomize(model)
        for posterior in keras_vd.variational_weights(model):
            posterior.kl_weight.assign(0.1)
        inputs = {str(n): random_inputs(n, 6, seed=n) for n in BATCH_SIZES}
        np.savez(directory / "inputs.npz", **inputs)
        self.expected = [
            to_float64(model.predict(array, verbose=0, batch_size=512))
            for array in inputs.values()
        ]
        model.export(directory / "variational", verbose=False)
        plain = keras_vd.to_deterministic(model)
        plain.export(directory / "plain", verbose=False)
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint(
            "serve",
            lambda x: model(x, training=True),
            input_signature=[keras.InputSpec(shape=(None, 6), dtype="float32")],
        )
        archive.write_out(directory / "noisy", verbose=False)
        result = run_python(READ, directory, json.dumps(MODELS))
        assert result.returncode == 0, result.stderr
        self.found = json.loads(result.stdout.splitlines()[-1])

    def outputs(self, name):
        with np.load(self.directory / f"{name}.npz") as outputs:
            return list(outputs.values())


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return Exported(tmp_path_factory.mktemp("exported"))


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("name", ["variational", "plain"])
def test_served_outputs_equal_predict(name, exported):
    # Oracle: `model.predict`, for batches of three sizes.
    assert exported.found["imported"] == []
    for found, expected in zip(
        exported.outputs(name), exported.expected, strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert exported.found[name]["repeats"]


@pytest.mark.parametrize("name", ["variational", "plain"])
def test_graph_holds_no_random_operation(name, exported):
    assert exported.found[name]["nodes"] > 5
    assert exported.found[name]["random"] == []


def test_these_checks_can_fail(exported):
    # The same model served with its noise must not get past them.
    assert not exported.found["noisy"]["repeats"]
    noisy = exported.outputs("noisy")[2]
    assert np.abs(noisy - exported.expected[2]).max() > 0.01
    if keras.backend.backend() == "tensorflow":
        assert exported.found["noisy"]["random"]


@pytest.mark.core
@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="Looks into JAX programs."
)
@pytest.mark.parametrize("training", [False, True])
def test_jax_program_holds_random_operations_in_training_alone(training):
    import jax

    model = nested()
    for posterior in keras_vd.variational_weights(model):
        posterior.kl_weight.assign(0.1)
    program = jax.make_jaxpr(
        lambda x: model.stateless_call(
            [v.value for v in model.trainable_variables],
            [v.value for v in model.non_trainable_variables],
            x,
            training=training,
        )
    )(random_inputs(2, 6))
    noise = ("random_bits", "rng_bit_generator", "random_wrap", "erf_inv")
    assert any(name in str(program) for name in noise) == training
