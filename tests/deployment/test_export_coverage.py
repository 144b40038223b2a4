"""What Keras computes is written for each runtime, or refused in words."""

import importlib.util

import keras
import numpy as np
import pytest

import keras_vd
from keras_vd.deployment.onnx_graphs import SUBSTITUTES, dense_graph
from keras_vd.deployment.readers import READERS, open_onnx
from tests.helpers.arrays import random_inputs, to_float64

pytestmark = [
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow",
        reason="Written from TensorFlow.",
    ),
    pytest.mark.skipif(
        any(
            importlib.util.find_spec(name) is None
            for name in ("ai_edge_litert", "onnxruntime", "tf2onnx")
        ),
        reason="needs the runtimes",
    ),
    pytest.mark.filterwarnings("ignore"),  # of the converters
]
layers = keras.layers
ACTIVATIONS = sorted(
    name
    for name, function in vars(keras.activations).items()
    if callable(function)
    and not name.startswith("_")
    and name not in ("get", "serialize", "deserialize")
)


def activation(name):
    function = getattr(keras.activations, name)
    if name == "threshold":
        return lambda x: function(x, 0.3, -1.0)
    return function


def many(shape, parts, dtype="float32"):
    """A model with one output for each of `parts`, functions of its input."""
    inputs = keras.Input(shape, dtype=dtype)
    outputs = {name: part(inputs) for name, part in parts.items()}
    return keras.Model(inputs, outputs)


def all_activations():
    functions = {name: activation(name) for name in ACTIVATIONS}
    functions["tanh_gelu"] = lambda x: keras.activations.gelu(x, True)
    parts = {k: layers.Activation(f) for k, f in functions.items()}
    return many((6,), parts)


def recurrent_activations():
    parts = {
        "gelu": layers.SimpleRNN(3, "gelu"),
        "celu": layers.LSTM(3, "celu"),
    }
    return many((4, 3), parts)


def held_constants():
    """Layers that hold tensors which are no weights; 300 are many."""
    rng = np.random.default_rng(0)
    adapted = layers.Normalization()
    adapted.adapt(rng.normal(size=(50, 300)))
    constant = keras.ops.convert_to_tensor(random_inputs(300))
    parts = {
        "normalization": adapted,
        "inverted": layers.Normalization(
            mean=rng.normal(size=300), variance=rng.random(300), invert=True
        ),
        "rescaling": layers.Rescaling(
            rng.random(300).tolist(), rng.random(300).tolist()
        ),
        "discretization": layers.Discretization(
            sorted(rng.normal(size=200).tolist())
        ),
        "one_hot": lambda x: layers.Discretization(
            [-1.0, 0.0, 1.0], output_mode="multi_hot"
        )(x),
        "captured": layers.Lambda(lambda x: x * constant),
        "operand": lambda x: keras.ops.where(x > 0, x, constant),
    }
    return many((300,), parts)


def vectors():
    names = "BatchNormalization LayerNormalization RMSNormalization"
    names += " UnitNormalization Softmax ReLU LeakyReLU PReLU ELU"
    parts = {name: getattr(layers, name)() for name in names.split()}
    names = "GaussianNoise GaussianDropout AlphaDropout Dropout"
    parts |= {name: getattr(layers, name)(0.5) for name in names.split()}
    parts["groups"] = layers.GroupNormalization(2)
    parts["argmax"] = lambda x: keras.ops.argmax(x, -1)
    parts["argmin"] = lambda x: keras.ops.argmin(x * 0 * -1, -1)
    parts["is_positive"] = lambda x: x > 0
    return many((6,), parts)


def images():
    names = "RandomFlip RandomRotation RandomZoom RandomContrast RandomHue"
    parts = {f"r_{name}": random_layer(name) for name in names.split()}
    parts |= {
        "grouped": layers.Conv2D(8, 3, groups=4, activation="gelu"),
        "dilated": layers.Conv2D(3, 3, dilation_rate=2, padding="same"),
        "transposed": layers.Conv2DTranspose(3, 3, 2, padding="same"),
        "depthwise": layers.DepthwiseConv2D(3, depth_multiplier=2),
        "separable": layers.SeparableConv2D(3, 2),
        "resized": layers.Resizing(5, 6),
        "upsampled": layers.UpSampling2D(2, interpolation="bilinear"),
        "pooled": layers.AveragePooling2D(3, 2, padding="same"),
        "cropped": layers.CenterCrop(5, 4),
    }
    return many((8, 8, 4), parts)


def random_layer(name):
    layer = getattr(layers, name)
    return layer() if name == "RandomFlip" else layer(0.1)


def sequences():
    def attention(layer, **options):
        return lambda x: layer(x, x, **options)

    parts = {
        "heads": attention(layers.MultiHeadAttention(2, 3)),
        "causal": attention(
            layers.MultiHeadAttention(2, 3, flash_attention=False),
            use_causal_mask=True,
        ),
        "grouped": attention(layers.GroupQueryAttention(3, 4, 2)),
        "dot": lambda x: layers.Attention(use_scale=True)([x, x]),
        "additive": lambda x: layers.AdditiveAttention()([x, x]),
        "einsum": layers.EinsumDense("abc,cd->abd", (None, 5)),
        "gru": layers.Bidirectional(layers.GRU(3, return_sequences=True)),
        "distributed": layers.TimeDistributed(layers.Dense(2, "gelu")),
        "causal_convolution": layers.Conv1D(3, 2, padding="causal"),
    }
    return many((5, 4), parts)


def numbers():
    parts = {
        "lookup": layers.IntegerLookup(vocabulary=[3, 5, 9]),
        "buckets": layers.IntegerLookup(
            vocabulary=[3, 5, 9], num_oov_indices=2
        ),
        "multi_hot": layers.IntegerLookup(
            vocabulary=[3, 5, 9], output_mode="multi_hot"
        ),
        "count": layers.IntegerLookup(
            vocabulary=[3, 5, 9], output_mode="count"
        ),
        "encoded": layers.CategoryEncoding(100, "multi_hot"),
        "words": layers.StringLookup(vocabulary=["a", "b"], invert=True),
    }
    return many((4,), parts, "int64")


def strings():
    parts = {
        "ids": layers.StringLookup(vocabulary=["a", "b"]),
        "one_hot": layers.StringLookup(
            vocabulary=["a", "b"], num_oov_indices=0, output_mode="one_hot"
        ),
        "tf_idf": layers.StringLookup(
            vocabulary=["a", "b"], idf_weights=[0.3, 2], output_mode="tf_idf"
        ),
    }
    return many((1,), parts, "string")


MODELS = [
    all_activations,
    recurrent_activations,
    held_constants,
    vectors,
    images,
    sequences,
    numbers,
    strings,
]


def some_inputs(model):
    (tensor,) = model.inputs
    shape = (2, *tensor.shape[1:])
    rng = np.random.default_rng(3)
    if tensor.dtype == "string":
        return rng.choice(["a", "b"], shape)
    if tensor.dtype == "int64":
        return rng.integers(0, 10, shape)
    return rng.normal(size=shape).astype("float32")


@pytest.mark.integration
@pytest.mark.parametrize("build", MODELS)
def test_onnx_runtime_computes_each_part(build, tmp_path):
    # Oracle: Keras, output by output.
    keras.utils.set_random_seed(1)
    model = build()
    x = some_inputs(model)
    keras_vd.deployment.export_onnx(model, path := tmp_path / "m.onnx", x=x)
    session = open_onnx(str(path))
    assert len(session.get_inputs()) == 1
    names = [output.name for output in session.get_outputs()]
    outputs = READERS["ONNX Runtime"](str(path), [])([x])()
    found = dict(zip(names, outputs, strict=True))
    expected = model(keras.ops.convert_to_tensor(x), training=False)
    assert sorted(found) == sorted(expected)
    for name, output in expected.items():
        output = keras.ops.convert_to_numpy(output)
        if output.dtype == object:
            assert found[name].tolist() == output.astype(str).tolist()
            continue
        assert found[name].dtype == output.dtype, name
        np.testing.assert_allclose(
            found[name], output, rtol=1e-4, atol=1e-5, err_msg=name
        )


@pytest.mark.integration
def test_counts_with_weights(tmp_path):
    """Oracle: NumPy."""
    ids = keras.Input((3,), dtype="int32")
    weights = keras.Input((3,))
    encoding = layers.CategoryEncoding(4, "count")
    model = keras.Model([ids, weights], encoding(ids, count_weights=weights))
    rows = np.array([[0, 2, 2], [1, 3, 1]], "int32")
    counts = np.array([[0.5, 2, 3], [4, 5, -1]], "float32")
    keras_vd.deployment.export_onnx(
        model, path := tmp_path / "m.onnx", x=[rows, counts]
    )
    (found,) = READERS["ONNX Runtime"](str(path), [])([rows, counts])()
    np.testing.assert_allclose(found, [[0.5, 0, 5, 0], [0, 3, 0, 5]])


def test_substitutes_compute_the_same():
    # Oracle: the operation of TensorFlow itself.
    import tensorflow as tf

    x = tf.constant(np.linspace(-5, 5, 101), tf.float32)
    raw = tf.raw_ops
    ids = tf.constant([[0, 2, 2, 7], [1, 1, 1, 0]])
    no_weights = tf.constant([], tf.float32)
    weights = tf.constant([[0.5, 2, 3, 4], [1, -1, 0.25, 3]])
    calls = [
        ("Erfc", raw.Erfc, {"x": x}, {}),
        ("Expm1", raw.Expm1, {"x": x}, {}),
        ("Bucketize", raw.Bucketize, {"input": x}, {"boundaries": [-1.0, 2]}),
    ]
    calls += [
        (
            "DenseBincount",
            raw.DenseBincount,
            {"input": ids, "size": 4, "weights": chosen},
            {"binary_output": binary},
        )
        for binary in (True, False)
        for chosen in (weights, no_weights)
    ]
    assert {call[0] for call in calls} == set(SUBSTITUTES)
    for name, operation, inputs, attributes in calls:
        tensors = [tf.convert_to_tensor(value) for value in inputs.values()]

        @tf.function
        def call(*values, call=operation, names=tuple(inputs), rest=attributes):
            return call(**dict(zip(names, values, strict=True)), **rest)

        graph = call.get_concrete_function(*tensors).graph.as_graph_def()
        (node,) = [node for node in graph.node if node.op == name]
        found = SUBSTITUTES[name][0](node, *tensors)
        expected = call(*tensors)
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_what_onnx_lacks_is_named_with_its_layer(tmp_path, caplog, capfd):
    model = keras.Sequential(
        [
            keras.Input((1,), dtype="int32"),
            layers.Hashing(7, name="crossed"),
            layers.Embedding(7, 2),
        ]
    )
    path = tmp_path / "m.onnx"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="ONNX has no operation") as told:
        keras_vd.deployment.export_onnx(model, path)
    for part in ("StringToHashBucketFast", "'crossed'", "export_saved_model"):
        assert part in str(told.value)
    # What the converter logged is in the error alone.
    assert "is not supported" in str(told.value)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert path.read_text() == "old"
    assert "tf2onnx" not in caplog.text + "".join(capfd.readouterr())


def test_a_converter_is_quiet_unless_it_fails(tmp_path, caplog, monkeypatch):
    import logging

    import tf2onnx

    convert = tf2onnx.convert.from_graph_def

    def noisy(*args, **kwargs):
        try:
            raise ZeroDivisionError("inside")
        except ZeroDivisionError:
            logging.getLogger("tf2onnx.tfonnx").exception("rewriter failed")
        return convert(*args, **kwargs)

    def failing(*args, **kwargs):
        noisy(*args, **kwargs)
        raise KeyError("outside")

    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    monkeypatch.setattr(tf2onnx.convert, "from_graph_def", noisy)
    keras_vd.deployment.export_onnx(model, tmp_path / "m.onnx")
    assert "inside" not in caplog.text
    monkeypatch.setattr(tf2onnx.convert, "from_graph_def", failing)
    with pytest.raises(RuntimeError, match="outside") as told:
        keras_vd.deployment.export_onnx(model, tmp_path / "m.onnx")
    assert "Traceback" in str(told.value)
    assert "ZeroDivisionError: inside" in str(told.value)


def test_text_is_refused_by_litert_in_words(tmp_path):
    with pytest.raises(ValueError, match="hold no layers for text") as told:
        keras_vd.deployment.export_litert(strings(), tmp_path / "m.tflite")
    assert "export_saved_model" in str(told.value)
    assert list(tmp_path.iterdir()) == []


def text_model():
    text = keras.Input((), dtype="string")
    number = keras.Input((2,))
    ids = layers.TextVectorization(
        vocabulary=["ab", "c"], output_sequence_length=4
    )(text)
    words = layers.Flatten()(layers.Embedding(9, 2)(ids))
    return keras.Model([text, number], layers.Concatenate()([words, number]))


@pytest.mark.parametrize(
    ("writer", "runtime", "file"),
    [
        (keras_vd.deployment.export_saved_model, "TensorFlow", "m"),
        (keras_vd.deployment.export_packed, "TensorFlow", "m"),
        (keras_vd.deployment.save_compressed, "Keras", "m.keras"),
    ],
)
def test_text_is_served(writer, runtime, file, tmp_path):
    # Oracle: Keras.
    model = text_model()
    writer(model, tmp_path / file)
    x = [np.array(["ab c", "C! x ab", ""]), random_inputs(3, 2)]
    writer(model, tmp_path / file, x=x)
    names = [tensor.name for tensor in model.inputs]
    (found,) = READERS[runtime](str(tmp_path / file), names)(x)()
    expected = to_float64(model([keras.ops.convert_to_tensor(a) for a in x]))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="and types"):
        writer(
            model, tmp_path / file, x=[random_inputs(3), random_inputs(3, 2)]
        )


def test_graphs_have_the_names_of_inputs_and_outputs():
    inputs = {
        "b": keras.Input((2,), name="b"),
        "a": keras.Input((2,), name="a"),
    }
    outputs = {"z": inputs["a"] + 1, "y": [inputs["b"] * 2, inputs["a"]]}
    x = [random_inputs(1, 2), random_inputs(1, 2)]
    graph = dense_graph(keras.Model(inputs, outputs), x).graph
    assert [x.name for x in graph.input] == ["a", "b"]
    assert [x.name for x in graph.output] == [
        "output_0",
        "output_1",
        "output_2",
    ]
