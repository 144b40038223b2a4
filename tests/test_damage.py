"""A packed SavedModel with other bits in its weights is an error."""

import keras
import numpy as np
import pytest

from keras_vd import deployment
from keras_vd.deployment.coding import checksum
from keras_vd.deployment.readers import read_saved_model

SAVED_MODELS = pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="PyTorch writes no SavedModel."
)


def sparse_model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((60,), name="x"), keras.layers.Dense(50)]
    )
    kernel, bias = model.get_weights()
    kept = np.random.default_rng(0).uniform(size=kernel.shape) < 0.05
    model.set_weights([np.where(kept, kernel + 1.0, 0.0), bias])
    return model


def weight_constants(saved):
    """Constants of the codes, values and scales."""
    for meta in saved.meta_graphs:
        for function in meta.graph_def.library.function:
            if not any(x.op == "ScatterNd" for x in function.node_def):
                continue
            for node in function.node_def:
                if node.op == "Const" and node.attr["value"].tensor.dtype != 7:
                    yield node.attr["value"].tensor


@SAVED_MODELS
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_other_bits_in_packed_weights_are_an_error(weights, tmp_path):
    """Oracle: the predictions of the undamaged file."""
    tf = pytest.importorskip("tensorflow")
    from tensorflow.core.protobuf import saved_model_pb2

    deployment.export_packed(sparse_model(), path := tmp_path / "m", weights)
    x = np.random.default_rng(1).normal(size=(3, 60)).astype("float32")

    def predict():
        return read_saved_model(str(path), ["x"])([x])()[0]

    expected = predict()
    file = path / "saved_model.pb"
    content, generator, refused = file.read_bytes(), np.random.default_rng(2), 0
    for _ in range(12):
        saved = saved_model_pb2.SavedModel.FromString(content)
        found = [t for t in weight_constants(saved) if len(t.tensor_content)]
        tensor = found[generator.integers(len(found))]
        array = np.frombuffer(tensor.tensor_content, np.uint8).copy()
        place = generator.integers(len(array))
        array[place] ^= 1 << generator.integers(8)
        tensor.tensor_content = array.tobytes()
        file.write_bytes(saved.SerializeToString())
        try:
            np.testing.assert_array_equal(predict(), expected)
        except (ValueError, tf.errors.InvalidArgumentError):
            refused += 1
    assert refused > 6


@pytest.mark.core
def test_checksum():
    """Oracle: the sum written out, in Python's integers."""
    values = np.array([1.5, -2.0, 3e-40], "float32")
    positions = np.array([0, 70_000, 2**33])
    bits = [int(x) for x in values.view("int32")]
    assert checksum(positions, values) == sum(
        (int(p) % 65521 + 1) * (b % 65521)
        for p, b in zip(positions, bits, strict=True)
    )
    integers = np.array([-127, 5, 0], "int8")
    assert checksum(np.arange(3), integers) == (65521 - 127) + 2 * 5
