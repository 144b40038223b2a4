"""Files for the runtimes compute what the model computes, and stay small."""

import importlib.util
import json
import pathlib
import shutil
import subprocess
import zipfile

import keras
import numpy as np
import pytest

import keras_vd
from keras_vd import deployment
from keras_vd.deployment.coding import encode, encode_gaps
from keras_vd.deployment.readers import READERS
from keras_vd.deployment.stripping import strip_saved_model
from tests.helpers.arrays import random_inputs, to_float64
from tests.helpers.deployment import (
    BACKEND,
    ON_TENSORFLOW,
    dense_model,
    size,
    sparse,
)
from tests.helpers.models import REPOSITORY, mlp, run_python

SAVED_MODELS = pytest.mark.skipif(
    BACKEND == "torch", reason="PyTorch writes no SavedModel."
)


def installed(*names):
    missing = [n for n in names if importlib.util.find_spec(n) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {missing}")


def lstm_model(units=4):
    ids = keras.Input((None,), dtype="int32")
    embedding = keras.layers.Embedding(50, 6, mask_zero=True)
    hidden = keras.layers.LSTM(units)(embedding(ids))
    model = keras.Model(ids, keras.layers.Dense(2)(hidden))
    embedding.set_weights([sparse(50, 6, kept=0.3)])
    return model


def two_inputs():
    """Inputs as a dictionary, two outputs."""
    inputs = {
        "b": keras.Input((4,), name="b"),
        "a": keras.Input((2,), name="a"),
    }
    joined = keras.layers.Concatenate()([inputs["a"], inputs["b"]])
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(20)(joined))
    outputs = [keras.layers.Dense(2)(hidden), keras.layers.Dense(5)(hidden)]
    return keras.Model(inputs, outputs)


def convolutional():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(3, "softmax"),
        ]
    )


MODELS = {
    "dense": (dense_model, lambda n: [random_inputs(n, 32)]),
    "lstm": (
        lstm_model,
        lambda n: [
            np.random.default_rng(n).integers(0, 50, (n, 9)).astype("int32")
        ],
    ),
    "two_inputs": (
        two_inputs,
        lambda n: [random_inputs(n, 2, seed=1), random_inputs(n, 4, seed=2)],
    ),
    "convolutional": (convolutional, lambda n: [random_inputs(n, 8, 8, 1)]),
}
WRITERS = {
    "keras": (deployment.save_compressed, {}, "Keras", "m.keras"),
    "saved": (deployment.export_saved_model, {}, "TensorFlow", "m"),
    "compiled": (
        deployment.export_saved_model,
        {"jit_compile": True},
        "TensorFlow",
        "m",
    ),
    "packed": (deployment.export_packed, {}, "TensorFlow", "m"),
    "litert": (deployment.export_litert, {}, "LiteRT", "m.tflite"),
    "litert_float32": (
        deployment.export_litert,
        {"weights": "float32"},
        "LiteRT",
        "m.tflite",
    ),
    "onnx": (deployment.export_onnx, {}, "ONNX Runtime", "m.onnx"),
}
ROUNDED = {
    "packed": (deployment.export_packed, "TensorFlow", "m"),
    "litert": (deployment.export_litert, "LiteRT", "m.tflite"),
    "onnx": (deployment.export_onnx, "ONNX Runtime", "m.onnx"),
}


def flat_outputs(model, arrays):
    structure = getattr(model, "input", model.inputs[0])
    outputs = model(keras.tree.pack_sequence_as(structure, arrays))
    return [to_float64(output) for output in keras.tree.flatten(outputs)]


@pytest.mark.integration
@ON_TENSORFLOW
@installed("ai_edge_litert", "onnxruntime", "tf2onnx")
@pytest.mark.filterwarnings("ignore")  # of the converters
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", MODELS)
def test_every_runtime_computes_what_keras_computes(name, writer, tmp_path):
    # Oracle: the model itself, for two batch sizes.
    build, inputs = MODELS[name]
    keras.utils.set_random_seed(1)
    model = build()
    function, options, runtime, file = WRITERS[writer]
    function(model, tmp_path / file, **options)
    names = [tensor.name for tensor in model.inputs]
    for batch_size in (1, 5) if runtime != "LiteRT" else (1,):
        arrays = inputs(batch_size)
        call = READERS[runtime](str(tmp_path / file), names)(arrays)
        for found, expected in zip(
            call(), flat_outputs(model, arrays), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@ON_TENSORFLOW
@installed("ai_edge_litert", "onnxruntime", "tf2onnx")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("writer", ROUNDED)
def test_weights_of_8_bits_are_close(writer, tmp_path):
    model = dense_model()
    function, runtime, file = ROUNDED[writer]
    function(model, tmp_path / file, weights="int8")
    x = random_inputs(1, 32)
    names = [tensor.name for tensor in model.inputs]
    (found,) = READERS[runtime](str(tmp_path / file), names)([x])()
    (expected,) = flat_outputs(model, [x])
    largest = np.abs(expected).max()
    assert 1e-6 < np.abs(found - expected).max() / largest < 0.05


@ON_TENSORFLOW
@installed("onnxruntime", "tf2onnx")
@pytest.mark.filterwarnings("ignore")
def test_only_what_is_not_zero_takes_space(tmp_path):
    # Oracle: 4 + 1 bytes per entry and some constant for the graph.
    shapes = (300, 400)
    model = keras.Sequential(
        [keras.Input((300,)), keras.layers.Dense(400, use_bias=False)]
    )
    sizes = {}
    for kept in (0.01, 0.05):
        model.layers[0].set_weights([sparse(*shapes, kept=kept)])
        entries = np.count_nonzero(model.get_weights()[0])
        for writer in ("packed", "onnx"):
            function, _, _, file = WRITERS[writer]
            path = tmp_path / f"{kept}_{file}"
            function(model, path)
            sizes[writer, kept] = (entries, size(path))
    for writer in ("packed", "onnx"):
        (few, small), (many, large) = (sizes[writer, k] for k in (0.01, 0.05))
        assert 4.5 < (large - small) / (many - few) < 5.5
    assert sizes["onnx", 0.01][1] < 8000
    assert sizes["packed", 0.01][1] < 20000


@pytest.mark.core
def test_compressed_files_are_uncompiled_and_deflated(tmp_path):
    model = dense_model()
    model.compile("adam", "mse")
    model.fit(random_inputs(4, 32), random_inputs(4, 3), verbose=0)
    for layer in model.layers[:2]:  # Adam moves no zero for long, yet it did
        kernel = to_float64(layer.kernel)
        layer.kernel.assign(sparse(*kernel.shape))
    model.save(tmp_path / "stored.keras")
    deployment.save_compressed(model, path := tmp_path / "m.keras")
    with zipfile.ZipFile(path) as archive:
        for item in archive.infolist():
            assert item.compress_type == zipfile.ZIP_DEFLATED
    assert 6 * size(path) < size(tmp_path / "stored.keras")
    loaded = keras.models.load_model(path)
    assert not loaded.compiled
    assert model.compiled
    for found, expected in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(to_float64(found), to_float64(expected))


@pytest.mark.parametrize("gap", [0, 1, 254, 255, 256, 510, 511, 70000])
def test_gaps_are_positions(gap):
    # Oracle: by hand, one code after the other.
    positions = np.cumsum([gap, gap + 1, 3, 1, gap + 1])
    codes = encode_gaps(positions)
    skip, here, found = int(np.iinfo(codes.dtype).max), -1, []
    for code in codes.tolist():
        here += code + (code != skip)
        if code != skip:
            found.append(here)
    assert found == positions.tolist()


def test_streams_take_only_what_gets_smaller():
    arrays = [
        sparse(40, 40),
        np.full((40, 40), 0.5, "float32"),
        sparse(3, 3),
        np.zeros((50, 50), "float32"),
        np.zeros((50, 50), "int32"),
    ]
    stream = encode(arrays, "float32")
    assert stream.positions == (0, 3)
    assert stream.gaps.dtype == np.uint8
    np.testing.assert_array_equal(stream.values, arrays[0][arrays[0] != 0])
    assert encode(arrays[1:3], "float32") is None
    assert encode(arrays, "int8").positions == (0, 1, 3)


def test_ids_are_not_rounded():
    """`shrink` turns ids of words into others by a table of floats."""
    ids = np.zeros((900, 1), "float32")
    ids[::3, 0] = np.arange(300)
    assert encode([ids, sparse(40, 40)], "float32").positions == (0, 1)
    stream = encode([ids, sparse(40, 40)], "int8")
    assert stream.positions == (0, 1)
    np.testing.assert_array_equal(stream.values[:299], np.arange(1, 300))
    assert stream.scales[0] == 1.0
    assert stream.values.dtype == np.int16
    assert np.abs(stream.values[299:]).max() == 127
    # More than 16 bits hold stays as it is.
    ids[-1] = 40_000
    assert encode([ids, sparse(40, 40)], "int8").positions == (1,)


@pytest.mark.integration
@ON_TENSORFLOW
@installed("onnxruntime", "tf2onnx")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("writer", ["packed", "onnx"])
def test_shrunk_words_in_8_bits(writer, tmp_path):
    """Oracle: Keras; a wrong word would be far off."""
    embedding = keras.layers.Embedding(900, 4)
    model = keras.Sequential(
        [keras.Input((6,)), embedding, keras.layers.GRU(3)]
    )
    vectors = np.zeros((900, 4), "float32")
    vectors[::3] = np.random.default_rng(0).normal(size=(300, 4))
    embedding.set_weights([vectors])
    small = keras_vd.shrink(model, verbose=0)
    assert small.count_params() < model.count_params()
    ids = np.random.default_rng(1).integers(0, 900, (8, 6))
    function = {
        "packed": deployment.export_packed,
        "onnx": deployment.export_onnx,
    }[writer]
    # It checks the outputs by itself.
    function(small, tmp_path / f"m.{writer}", weights="int8", x=ids)


READ = """
import json, sys
sys.modules.update({"keras": None, "keras_vd": None})
import numpy as np
import tensorflow as tf

x = np.load(sys.argv[1])
outputs = []
for path in sys.argv[2:]:
    loaded = tf.saved_model.load(path)
    served = loaded.serve(tf.constant(x)).numpy()
    function = loaded.signatures["serving_default"]
    name = list(function.structured_input_signature[1])[0]
    (output,) = function(**{name: tf.constant(x)}).values()
    assert np.array_equal(served, output.numpy())
    outputs.append(served.tolist())
loaded_keras = [n for n, m in sys.modules.items() if m and n == "keras"]
print(json.dumps([loaded_keras, outputs]))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A model, inputs, outputs, and a SavedModel of each kind."""
    folder = tmp_path_factory.mktemp("served")
    model = dense_model()
    deployment.export_saved_model(model, folder / "plain")
    deployment.export_saved_model(model, folder / "compiled", jit_compile=True)
    deployment.export_packed(model, folder / "packed")
    x = random_inputs(2, 32)
    return folder, x, flat_outputs(model, [x])[0]


KINDS = ("plain", "compiled", "packed")


@pytest.mark.integration
@SAVED_MODELS
@installed("tensorflow")
@pytest.mark.core
@pytest.mark.filterwarnings("ignore")
def test_tensorflow_serves_without_keras(served):
    folder, x, expected = served
    np.save(folder / "x.npy", x)
    paths = [folder / kind for kind in KINDS]
    result = run_python(READ, folder / "x.npy", *paths)
    assert result.returncode == 0, result.stderr
    imported, outputs = json.loads(result.stdout.splitlines()[-1])
    assert imported == []
    for found in outputs:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@ON_TENSORFLOW
def test_each_weight_is_written_once(served):
    folder, _, _ = served
    weights = 4 * dense_model().count_params()
    assert weights < size(folder / "plain") < weights + 30000
    assert 3 * size(folder / "packed") < weights


@ON_TENSORFLOW
def test_stripping_leaves_no_long_names(served, tmp_path):
    shutil.copytree(served[0] / "plain", tmp_path / "plain")
    before = size(tmp_path / "plain" / "saved_model.pb")
    strip_saved_model(tmp_path / "plain")
    after = size(tmp_path / "plain" / "saved_model.pb")
    assert after < 0.7 * before
    strip_saved_model(tmp_path / "plain")
    assert size(tmp_path / "plain" / "saved_model.pb") == after


@pytest.mark.integration
@ON_TENSORFLOW
@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
def test_a_c_program_serves_them(served, tmp_path):
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    include, lib = tf.sysconfig.get_include(), tf.sysconfig.get_lib()
    header = pathlib.Path(include, "tensorflow", "c", "c_api.h")
    libraries = sorted(pathlib.Path(lib).glob("libtensorflow_*.so.2"))
    if not header.exists() or len(libraries) < 2:
        pytest.skip("needs the headers and libraries of TensorFlow's wheel")
    source = REPOSITORY / "tests" / "clients" / "saved_model.c"
    program = tmp_path / "client"
    command = ["gcc", "-Wall", "-Werror", source, "-o", program]
    command += [f"-I{include}", *libraries, f"-Wl,-rpath,{lib}"]
    subprocess.run(command, check=True, capture_output=True)
    folder, x, expected = served
    for kind in KINDS:
        content = (folder / kind / "saved_model.pb").read_bytes()
        proto = saved_model_pb2.SavedModel.FromString(content)
        signature = proto.meta_graphs[0].signature_def["serving_default"]
        ((_, entry),) = signature.inputs.items()
        ((_, result),) = signature.outputs.items()
        name, index = result.name.split(":")
        numbers = [entry.name.split(":")[0], name, index, *x.shape, *x.flat]
        done = subprocess.run(
            [program, folder / kind, *map(str, numbers)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        found = np.array(done.stdout.split(), "float32")
        np.testing.assert_allclose(
            found, expected.ravel(), rtol=1e-5, atol=1e-5, err_msg=kind
        )


ALL_WRITERS = [
    (deployment.save_compressed, "m.keras"),
    (deployment.export_saved_model, "m"),
    (deployment.export_packed, "m"),
    (deployment.export_litert, "m.tflite"),
    (deployment.export_onnx, "m.onnx"),
]


@pytest.mark.core
@pytest.mark.parametrize(("function", "file"), ALL_WRITERS)
def test_variational_models_are_refused(function, file, tmp_path):
    with pytest.raises(ValueError, match="convert it first"):
        function(mlp(), tmp_path / file)
    with pytest.raises(TypeError, match="must be a Keras model"):
        function(3, tmp_path / file)
    unbuilt = keras.Sequential([keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="whose inputs are known"):
        function(unbuilt, tmp_path / file)


def test_arguments_are_checked(tmp_path):
    model = dense_model()
    with pytest.raises(ValueError, match="`path` must end in"):
        deployment.save_compressed(model, tmp_path / "m.zip")
    with pytest.raises(ValueError, match="`weights` must be one of"):
        deployment.export_litert(model, tmp_path / "m.tflite", "int8_sparse")
    with pytest.raises(ValueError, match="`batch_size` must be an integer"):
        deployment.export_litert(model, tmp_path / "m.tflite", batch_size=0)
    for x in (random_inputs(2, 31), random_inputs(0, 32), [random_inputs(2)]):
        with pytest.raises(ValueError, match="`x` must hold inputs of"):
            deployment.save_compressed(model, tmp_path / "m.keras", x=x)


@pytest.mark.core
@pytest.mark.parametrize(("function", "file"), ALL_WRITERS)
def test_a_backend_that_cannot_write_says_what_to_do(
    function, file, tmp_path, monkeypatch
):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    if function in (
        deployment.save_compressed,
        deployment.export_onnx,
    ):
        pytest.skip("any backend can")
    with pytest.raises(RuntimeError, match="KERAS_BACKEND=tensorflow") as told:
        function(dense_model(), tmp_path / file)
    assert "save_compressed" in str(told.value)


@ON_TENSORFLOW
@pytest.mark.parametrize(
    ("module", "function", "file"),
    [
        (
            "ai_edge_litert.interpreter",
            deployment.export_litert,
            "m.tflite",
        ),
        ("onnxruntime", deployment.export_onnx, "m.onnx"),
        ("tf2onnx", deployment.export_onnx, "m.onnx"),
    ],
)
def test_a_missing_package_is_named(
    module, function, file, tmp_path, monkeypatch
):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ImportError, match=r"keras-vd\[runtimes\]") as told:
        function(dense_model(), tmp_path / file)
    assert module.partition(".")[0] in str(told.value)


LOAD = """
import sys, keras, numpy as np
model = keras.models.load_model(sys.argv[1])
with np.load(sys.argv[2]) as data:
    found = model.predict(data["x"], verbose=0)
    np.testing.assert_allclose(found, data["y"], rtol=1e-4, atol=1e-5)
print(keras.backend.backend())
"""


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_compressed_files_load_on_every_backend(backend, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"needs {backend}")
    if backend == BACKEND:
        pytest.skip("checked by the writer")
    model, x = dense_model(), random_inputs(3, 32)
    deployment.save_compressed(model, tmp_path / "m.keras")
    (y,) = flat_outputs(model, [x])
    np.savez(tmp_path / "data.npz", x=x, y=y)
    files = (tmp_path / "m.keras", tmp_path / "data.npz")
    result = run_python(LOAD, *files, KERAS_BACKEND=backend)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [backend]


@ON_TENSORFLOW
@installed("ai_edge_litert")
@pytest.mark.filterwarnings("ignore")
def test_what_litert_computes_wrongly_is_not_written(tmp_path):
    # The sparse kernel of LiteRT 2.3 fails for 102 inputs.
    model = keras.Sequential([keras.Input((102,)), keras.layers.Dense(200)])
    model.set_weights([sparse(102, 200, kept=0.02), sparse(200, kept=1.0)])
    path = tmp_path / "m.tflite"
    with pytest.raises(RuntimeError, match="no multiple of 4"):
        deployment.export_litert(model, path)
    assert list(tmp_path.iterdir()) == []
    deployment.export_litert(model, path, "float32")
    assert path.exists()
