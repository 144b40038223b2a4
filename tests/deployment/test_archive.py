"""Archives hold rounded weights in few bytes, and nothing harmful."""

import contextlib
import json
import sys
import zlib

import keras
import numpy as np
import pytest
from keras import layers

import keras_vd
from keras_vd import deployment
from keras_vd.deployment import configs
from keras_vd.deployment.archive_content import MAGIC
from tests.helpers.arrays import random_inputs, to_float64
from tests.helpers.deployment import BACKEND, dense_model, size
from tests.helpers.models import mlp

pytestmark = pytest.mark.core


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.kvd"


def values(model):
    return [keras.ops.convert_to_numpy(x) for x in model.weights]


def rounded(model, bits):
    """Oracle: weights on a grid of the largest of each kernel, by hand.

    The step has 8 significant bits, rounded up.
    """
    copy = keras.models.clone_model(model)
    for source, target in zip(model.layers, copy.layers, strict=True):
        if not source.weights:
            continue
        kernel, bias = source.get_weights()
        step = np.float32(np.abs(kernel).max() / (2 ** (bits - 1) - 1))
        digits = 2.0 ** (7 - np.floor(np.log2(step)))
        step = np.float32(np.ceil(step * digits) / digits)
        target.set_weights([np.rint(x / step) * step for x in (kernel, bias)])
    return copy


@pytest.mark.parametrize("bits", [2, 5, 16])
def test_weights_are_those_of_a_model_rounded_by_hand(bits, path):
    model = dense_model()
    before = values(model)
    deployment.save_archive(model, path, bits)
    loaded = deployment.load_archive(path)
    expected = rounded(model, bits)
    for found, value in zip(values(loaded), values(expected), strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-6)
    x = random_inputs(5, 32)
    np.testing.assert_allclose(
        to_float64(loaded(x)), to_float64(expected(x)), rtol=1e-5, atol=1e-6
    )
    for value, kept in zip(values(model), before, strict=True):
        np.testing.assert_array_equal(value, kept)  # `model` is not changed


def test_archives_are_smaller_than_compressed_files(path, tmp_path):
    model = dense_model()
    deployment.save_archive(model, path, 8)
    deployment.save_compressed(model, tmp_path / "m.keras")
    assert size(path) < size(tmp_path / "m.keras") / 3


def test_bits_by_name(path):
    """Oracle: how many different values the kernels then have."""
    model = dense_model()
    first, second = model.layers[0].name, model.layers[1].name
    names = {first: 3, f"{second}/kernel": 4}
    deployment.save_archive(model, path, names)
    loaded = deployment.load_archive(path)
    kernels = [layer.get_weights()[0] for layer in loaded.layers]
    # All integers of so many bits but the least one.
    assert len(np.unique(kernels[0])) <= 7 < len(np.unique(kernels[1])) <= 15
    np.testing.assert_array_equal(kernels[2], model.layers[2].get_weights()[0])


def functional():
    """Sums, nested layers, an embedding, states that are not trained."""
    ids = keras.Input((6,), dtype="int32", name="ids")
    hidden = layers.Embedding(20, 8)(ids)
    hidden = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(hidden)
    hidden = layers.MultiHeadAttention(2, 3)(hidden, hidden)
    hidden = layers.Conv1D(4, 3, padding="causal")(hidden)
    hidden = layers.Dropout(0.3, seed=1)(layers.BatchNormalization()(hidden))
    hidden = layers.Add()([hidden, layers.Dense(4, name="again")(hidden)])
    inner = keras.Sequential([keras.Input((6, 4)), layers.Dense(2)])
    outputs = layers.GlobalAveragePooling1D()(inner(hidden))
    return keras.Model(ids, {"a": outputs, "b": outputs * 2.0})


def image_model():
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(3, (3, 2), activation="relu"),
            layers.DepthwiseConv2D(3),
            layers.Flatten(),
            layers.Dense(2, "softmax"),
        ]
    )


@pytest.mark.parametrize("build", [functional, image_model])
def test_fine_steps_give_the_same_predictions(build, path):
    """Oracle: the model itself, as 24 bits are those of float32."""
    keras.utils.set_random_seed(0)
    model = build()
    deployment.save_archive(model, path, 24)
    loaded = deployment.load_archive(path)
    assert [x.name for x in loaded.layers] == [x.name for x in model.layers]
    shape = (3, *model.inputs[0].shape[1:])
    x = np.random.default_rng(0).integers(0, 20, shape)
    for found, expected in zip(
        keras.tree.flatten(loaded(x)),
        keras.tree.flatten(model(x)),
        strict=True,
    ):
        np.testing.assert_allclose(
            to_float64(found), to_float64(expected), rtol=1e-4, atol=1e-5
        )


class Holder(layers.Layer):
    """Has variables of many types, none of which is rounded."""

    TYPES = ("float32", "float16", "bfloat16", "int8", "int32", "uint8", "bool")

    def build(self, input_shape):
        for i, dtype in enumerate(self.TYPES):
            self.add_weight(
                name=f"v{i}",
                shape=(3, 2) if "float" not in dtype else (3,),
                dtype=dtype,
                initializer="ones",
                trainable=False,
                autocast=False,
            )

    def call(self, inputs):
        return inputs * 1.0


def test_types_that_are_not_rounded_stay_as_they_are(path):
    """Oracle: the values themselves."""
    model = keras.Sequential([keras.Input((2,)), Holder()])
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(rng.integers(0, 2, variable.shape))
    model.weights[0].assign([0.1, -1e-30, 3e38])
    with keras.saving.custom_object_scope({"Holder": Holder}):
        deployment.save_archive(model, path, 4)
        loaded = deployment.load_archive(path)
    for a, b in zip(loaded.weights, model.weights, strict=True):
        assert a.dtype == b.dtype
    for a, b in zip(values(loaded), values(model), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="neither from Keras nor registered"):
        deployment.load_archive(path)


@pytest.mark.parametrize(
    "posterior",
    [
        "sparse_vd",
        "ard",
        "vd",
        "gaussian",
        keras_vd.posteriors.SparseVD(share="unit"),
        keras_vd.posteriors.SparseVD(share="rank1"),
        keras_vd.posteriors.SparseVD(share="layer"),
    ],
    ids=str,
)
def test_variational_models_bring_their_own_bits(posterior, path):
    """Oracle: the shrunk model, of which no weight is off by over a step.

    Every weight is a whole number of steps that the bits can hold.
    """
    keras.utils.set_random_seed(1)
    model = mlp(posterior, groups=["input"])
    plain = keras_vd.to_deterministic(model)
    deployment.save_archive(model, path)
    loaded = deployment.load_archive(path)
    expected = keras_vd.shrink(plain, verbose=0)
    steps = keras_vd.precision.posterior_steps(model, plain)
    widths = keras_vd.bit_widths(model)
    assert len(values(loaded)) == len(values(expected)) == 4
    for layer, source in zip(loaded.layers, expected.layers, strict=True):
        for found, value in zip(
            layer.get_weights(), source.get_weights(), strict=True
        ):
            largest = steps[layer.name]
            assert np.abs(found - value).max() <= 0.5001 * largest
            if found.ndim > 1:
                limit = 2 ** (widths[layer.name] - 1) * 1.01
                assert np.abs(found).max() / largest <= limit


def test_noisier_posteriors_give_smaller_files(tmp_path):
    sizes = []
    for i, log_sigma2 in enumerate((-16.0, -10.0)):
        model = mlp("gaussian")
        for posterior in keras_vd.variational_weights(model):
            shape = posterior.log_sigma2.shape
            posterior.log_sigma2.assign(np.full(shape, log_sigma2))
        deployment.save_archive(model, file := tmp_path / f"{i}.kvd")
        sizes.append(size(file))
    assert sizes[1] < sizes[0]


def test_fine_tuned_models_take_the_bits_of_their_posteriors(path):
    """Zeros that are frozen stay zero, and the constraint is not kept."""
    model = mlp("sparse_vd")
    plain = keras_vd.to_deterministic(model)
    kernel = plain.layers[0].get_weights()[0]
    plain.layers[0].kernel.assign(np.maximum(kernel, 0.0))
    keras_vd.freeze_zeros(plain)
    deployment.save_archive(plain, path, keras_vd.bit_widths(model))
    loaded = deployment.load_archive(path)
    assert loaded.layers[0].kernel_constraint is None
    found = loaded.layers[0].get_weights()[0]
    assert (found[plain.layers[0].get_weights()[0] == 0] == 0).all()
    assert plain.layers[0].kernel_constraint is not None


def test_arguments_are_checked(path):
    model = dense_model()
    with pytest.raises(ValueError, match="`bits` must be given"):
        deployment.save_archive(model, path)
    for bits, error, message in (
        (1, ValueError, "at least 2"),
        (25, ValueError, "24 at most"),
        (True, TypeError, "integer"),
        ("8", TypeError, "integer"),
        ({"dense": 8.5}, TypeError, r"bits\['dense'\]"),
        ({"nobody": 8}, ValueError, "nobody"),
    ):
        with pytest.raises(error, match=message):
            deployment.save_archive(model, path, bits)
    with pytest.raises(ValueError, match="must end in"):
        deployment.save_archive(model, path.with_suffix(".keras"), 8)
    with pytest.raises(TypeError, match="Keras model"):
        deployment.save_archive(3, path, 8)
    normalization = keras.Sequential(
        [keras.Input((2,)), layers.BatchNormalization(name="norm")]
    )
    with pytest.raises(ValueError, match="norm"):
        deployment.save_archive(normalization, path, {"norm": 8})
    assert not path.exists()


def test_layers_with_code_or_vocabularies_are_refused(path):
    code = keras.Sequential([keras.Input((2,)), layers.Lambda(lambda x: x)])
    with pytest.raises(ValueError, match="hold code"):
        deployment.save_archive(code, path, 8)
    if BACKEND == "tensorflow":
        words = keras.Input((1,), dtype="string")
        lookup = layers.StringLookup(vocabulary=["a", "b"], name="lookup")
        text = keras.Model(words, lookup(words))
        with pytest.raises(ValueError, match="lookup"):
            deployment.save_archive(text, path, 8)


def test_a_missing_coder_says_what_to_install(path, monkeypatch):
    deployment.save_archive(dense_model(), path, 8)
    monkeypatch.setitem(sys.modules, "constriction", None)
    for call in (
        lambda: deployment.save_archive(dense_model(), path, 8),
        lambda: deployment.load_archive(path),
    ):
        with pytest.raises(ImportError, match=r"keras-vd\[archive\]"):
            call()


def small(path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    deployment.save_archive(model, path, 6)
    return bytearray(path.read_bytes())


def test_every_flipped_byte_and_every_cut_is_noticed(path):
    content = small(path)
    for i in range(len(content)):
        damaged = bytearray(content)
        damaged[i] ^= 0x55
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="no archive that can be read"):
            deployment.load_archive(path)
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match="no archive that can be read"):
            deployment.load_archive(path)


def sealed(body):
    """Make an archive whose checksum is right."""
    return MAGIC + zlib.crc32(body).to_bytes(4, "little") + body


def test_damage_with_a_right_checksum_is_harmless(path):
    """It gives other weights, or a ValueError."""
    content = small(path)
    rng = np.random.default_rng(0)
    for _ in range(100):
        body = bytearray(content[8:])
        body[rng.integers(len(body))] = rng.integers(256)
        path.write_bytes(sealed(bytes(body)))
        with contextlib.suppress(ValueError):
            deployment.load_archive(path)


def archive_of(text):
    """Make an archive of a config alone, with no values."""
    packed = configs._compress(text)
    length = bytes([len(packed) & 127 | 128, len(packed) >> 7])
    return sealed(length + packed + b"\0")


def layer(name, config, **others):
    return {"class_name": name, "config": {"name": "x", **config}, **others}


def sequential(*parts):
    entry = layer("InputLayer", {"batch_shape": [None, 4], "name": "in"})
    return {
        "module": "keras",
        "class_name": "Sequential",
        "config": {"name": "m", "layers": [entry, *parts]},
    }


HOSTILE = {
    "size": (sequential(layer("Dense", {"units": 10**12})), "asks for"),
    "sum of sizes": (
        sequential(
            *(layer("Dense", {"units": 5000, "name": f"x{i}"}) for i in "abc")
        ),
        "asks for",
    ),
    "list": ({"#": 10**12}, "asks for"),
    "negative list": ({"#": -1}, "lengths"),
    "no model": (layer("Dense", {"units": 3}), "no model"),
    "no class": (3, "no model"),
    "unknown class": (sequential(layer("Nothing", {})), "gives no model"),
    "missing argument": (sequential(layer("Dense", {})), "gives no model"),
    "other module": (
        sequential(layer("Popen", {"args": "ls"}, module="subprocess")),
        "neither from Keras",
    ),
    "code": (
        sequential(
            layer(
                "Lambda",
                {
                    "function": {
                        "class_name": "__lambda__",
                        "config": {"code": ""},
                    }
                },
            )
        ),
        "code of its own",
    ),
    "pickle": (sequential(layer("TorchModuleWrapper", {})), "code of its own"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_configs_are_refused(name, path):
    config, message = HOSTILE[name]
    path.write_bytes(archive_of(json.dumps(config)))
    with pytest.raises(ValueError, match=message):
        deployment.load_archive(path)


def test_a_config_that_swells_is_cut(path, monkeypatch):
    monkeypatch.setattr(configs, "LARGEST", 1000)
    path.write_bytes(archive_of("[" + "0," * 5000 + "0]"))
    with pytest.raises(ValueError, match="too long"):
        deployment.load_archive(path)


@pytest.mark.parametrize("text", ["[" * 10**5, "[1, 2", "\x00"])
def test_texts_that_are_no_configs_are_refused(text, path):
    path.write_bytes(archive_of(text))
    with pytest.raises(ValueError, match="no archive that can be read"):
        deployment.load_archive(path)


def test_long_lists_and_defaults_are_left_out_of_configs():
    """Oracle: what the text must still hold, and what it need not."""
    inputs = keras.Input((200,))
    kept = [*range(0, 150, 2), *range(150, 190)]
    outputs = keras.ops.take(inputs, np.array(kept), axis=-1)
    model = keras.Model(inputs, layers.Dense(7, name="last")(outputs))
    packed, lists = configs.pack(model)
    text = json.dumps(configs.unpack(packed))
    assert lists == [kept]
    assert "last" in text
    assert "units" in text
    assert "initializer" not in text
    assert "use_bias" not in text
    assert len(packed) < 200
    again = configs.build(configs.unpack(packed), lists)
    x = random_inputs(2, 200)
    again.set_weights(model.get_weights())
    np.testing.assert_allclose(
        to_float64(again(x)), to_float64(model(x)), rtol=1e-6
    )


def test_the_types_of_layers_do_not_depend_on_the_process(path):
    """Oracle: what the model was made with."""
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    deployment.save_archive(model, path, 6)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        loaded = deployment.load_archive(path)
    finally:
        keras.config.set_dtype_policy(before)
    assert loaded.layers[0].compute_dtype == "float32"
