"""Files are checked with inputs that the model takes, or errors say `x=`."""

import keras
import numpy as np
import pytest

from keras_vd import deployment
from keras_vd.deployment.drawing import flat_inputs
from keras_vd.deployment.interface import (
    difference,
    input_names,
    output_names,
    outputs_check,
)
from keras_vd.deployment.requirements import require
from tests.helpers.arrays import random_inputs, to_float64

pytestmark = pytest.mark.core
BACKEND = keras.backend.backend()
layers = keras.layers


@keras.saving.register_keras_serializable("tests")
class Positions(layers.Layer):
    """Adds a vector for each of at most `length` positions."""

    def __init__(self, length, **kwargs):
        super().__init__(**kwargs)
        self.length = length

    def build(self, shape):
        self.table = self.add_weight(shape=(self.length, shape[-1]))

    def call(self, inputs):
        return inputs + self.table[: keras.ops.shape(inputs)[1]]

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        return {**super().get_config(), "length": self.length}


def transformer(length):
    ids = keras.Input((None,), dtype="int32")
    hidden = Positions(length)(layers.Embedding(30, 4)(ids))
    attention = layers.MultiHeadAttention(2, 2)
    hidden = layers.LayerNormalization()(hidden + attention(hidden, hidden))
    return keras.Model(ids, layers.Dense(2, activation="gelu")(hidden))


def writers():
    found = [(deployment.save_compressed, "m.keras")]
    if BACKEND == "tensorflow":
        found += [
            (deployment.export_onnx, "m.onnx"),
            (deployment.export_litert, "m.tflite"),
        ]
    if BACKEND != "torch":
        found += [
            (deployment.export_saved_model, "saved"),
            (deployment.export_packed, "packed"),
        ]
    return found


def skip_without_runtimes(function):
    if function is deployment.export_onnx:
        pytest.importorskip("tf2onnx")
        pytest.importorskip("onnxruntime")
    if function is deployment.export_litert:
        pytest.importorskip("ai_edge_litert")


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")  # of the converters
@pytest.mark.parametrize(("function", "file"), writers())
def test_no_more_steps_than_a_model_has_positions(function, file, tmp_path):
    # Each writer checks its outputs by itself.
    skip_without_runtimes(function)
    if BACKEND == "jax" and function is not deployment.save_compressed:
        pytest.skip("JAX exports no open axis that is compared with a number")
    model = transformer(5)
    function(model, tmp_path / file)
    ids = np.random.default_rng(0).integers(0, 30, (2, 5))
    function(model, tmp_path / file, x=ids)
    with pytest.raises(ValueError, match="`x=`") as told:
        function(model, tmp_path / file, x=np.zeros((2, 7)))
    assert "7)" in str(told.value)


@pytest.mark.parametrize("length", [1, 3, 5, 9, 40])
def test_drawn_lengths_fit(length):
    (ids,) = flat_inputs(transformer(length), None)
    assert ids.shape[1] <= length < 2 * ids.shape[1] or ids.shape[1] == 16
    assert ids.max() < 30


def test_drawn_lengths_are_enough_for_a_convolution():
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, layers.Conv1D(2, 40)(inputs))
    (drawn,) = flat_inputs(model, None)
    assert drawn.shape == (3, 64, 3)


def test_a_fixed_batch_is_kept(tmp_path):
    inputs = keras.Input(batch_shape=(4, 3))
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    assert flat_inputs(model, None)[0].shape == (4, 3)
    deployment.save_compressed(model, tmp_path / "m.keras")


@pytest.mark.parametrize(
    ("dtype", "allowed"),
    [("bool", {0, 1}), ("uint8", range(256)), ("int8", range(128))],
)
def test_drawn_numbers_fit_their_type(dtype, allowed, tmp_path):
    inputs = keras.Input((20,), dtype=dtype)
    outputs = layers.Dense(2)(keras.ops.cast(inputs, "float32"))
    model = keras.Model(inputs, outputs)
    (drawn,) = flat_inputs(model, None)
    assert drawn.dtype == dtype
    assert len(set(drawn.flat)) > 1
    assert set(drawn.astype(int).flat) <= set(allowed)
    deployment.save_compressed(model, tmp_path / "m.keras")


def test_outputs_that_are_nan_ask_for_inputs(tmp_path):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.ops.log(layers.Dense(3)(inputs)))
    model.set_weights([np.eye(3), np.zeros(3)])
    with pytest.raises(ValueError, match="`x=`"):
        deployment.save_compressed(model, tmp_path / "m.keras")
    positive = np.abs(random_inputs(2, 3)) + 1
    deployment.save_compressed(model, tmp_path / "m.keras", x=positive)


def test_recurrent_states_are_refused(tmp_path):
    inputs = keras.Input(batch_shape=(2, 3, 4))
    recurrent = layers.LSTM(2, stateful=True, name="memory")
    model = keras.Model(inputs, recurrent(inputs))
    for function, file in writers():
        with pytest.raises(ValueError, match="keep a state") as told:
            function(model, tmp_path / file)
        assert "memory" in str(told.value)


@pytest.mark.parametrize("names", [("a", ".a", "x1_a"), ("x2_a", "a", ".a")])
def test_names_of_inputs_differ(names):
    tensors = [keras.Input((1,), name=name) for name in names]
    model = keras.Model(tensors, layers.Concatenate()(tensors))
    found = input_names(model)
    assert len(set(found)) == len(names)


def test_differences_of_all_types():
    # Oracle: by hand.
    def one(*values, dtype="float32"):
        return [np.array(values, dtype)]

    assert difference(one(1, 4), one(2, 4)) == 0.25
    assert difference(one(0, dtype="uint8"), one(200, dtype="uint8")) == 1
    assert difference(one(True, dtype=bool), one(True, dtype=bool)) == 0
    infinite = one(-np.inf, 2)
    assert difference(infinite, infinite) == 0
    assert difference(one(1, 2), infinite) == np.inf
    assert np.isnan(difference(one(np.nan), one(1)))
    assert difference([np.zeros((3, 0))], [np.zeros((3, 0))]) == 0
    text = [np.array([b"a", b"b"], object)]
    assert difference([np.array(["a", "b"])], text) == 0
    assert difference([np.array(["a", "c"])], text) == np.inf


def nested_outputs():
    inputs = keras.Input((3,))
    return keras.Model(
        inputs,
        {
            "a9": layers.Dense(2)(inputs),
            "a10": [layers.Dense(2)(inputs), inputs > 0],
            "none": inputs[:, :0],
        },
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("function", "file"), writers())
def test_outputs_in_structures(function, file, tmp_path):
    skip_without_runtimes(function)
    if function is deployment.export_litert:
        pytest.skip("LiteRT has no outputs of size 0")
    model = nested_outputs()
    assert output_names(model) == [f"output_{i}" for i in range(4)]
    function(model, tmp_path / file)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("function", "file"), writers())
def test_16_bits_are_compared_by_their_own_steps(function, file, tmp_path):
    skip_without_runtimes(function)
    model = keras.Sequential(
        [
            keras.Input((40,)),
            layers.Dense(30, "tanh", dtype="mixed_float16"),
            layers.Dense(20, dtype="mixed_float16"),
        ]
    )
    if function is deployment.export_litert:
        with pytest.raises(ValueError, match="dtype='float32'"):
            function(model, tmp_path / file)
        assert list(tmp_path.iterdir()) == []
        return
    function(model, tmp_path / file)
    assert to_float64(model(random_inputs(2, 40))).shape == (2, 20)


@pytest.mark.filterwarnings("ignore")  # JAX has no float64 by default
@pytest.mark.parametrize(
    "policy", ["mixed_float16", "mixed_bfloat16", "float64"]
)
@pytest.mark.parametrize(("function", "file"), writers())
def test_types_that_a_runtime_does_not_know(function, file, policy, tmp_path):
    skip_without_runtimes(function)
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, dtype=policy, name="short")]
    )
    unknown = {
        deployment.export_litert: (
            "mixed_float16",
            "mixed_bfloat16",
            "float64",
        ),
        deployment.export_onnx: ("mixed_bfloat16",),
    }
    if policy not in unknown.get(function, ()):
        function(model, tmp_path / file)
        return
    with pytest.raises(ValueError, match=r"\['short'\] of"):
        function(model, tmp_path / file)
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be_run(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    path = tmp_path / "model.file"

    def reader(path, names):
        def prepare(arrays):
            raise RuntimeError("Node number 3 failed to invoke.")

        return prepare

    arrays = [random_inputs(2, 4)]
    check = outputs_check(model, reader, arrays, advice="Use other weights.")
    with pytest.raises(RuntimeError, match=r"cannot compute.*Use other.*Node"):
        check(path)


@pytest.mark.parametrize(
    ("extra", "command"),
    [
        ("runtimes", 'pip install "keras-vd\\[runtimes\\]"$'),
        (None, "pip install missing$"),
    ],
)
def test_what_is_missing_is_named_with_its_command(extra, command):
    with pytest.raises(ImportError, match=command):
        require("missing.part", extra)
