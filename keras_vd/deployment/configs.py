"""The config of a plain model, in few bytes.

What a constructor restores by itself is left out, long lists of integers are
taken out, and the text is compressed with a dictionary of what such texts
usually hold. A model is made of a config only if all its classes are layers,
operations and the like of Keras or registered, and none of them runs code that
a file brings with it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import Any

import keras

from keras_vd._backend.keras_internals import flatten_layers

LARGEST = 2**26  # bytes of text; a hundred times what large models have
LONG = 16  # integers; shorter lists stay in the text
LISTED, TENSOR = "#", "@"
USUAL_MODULE, USUAL_DTYPE = "keras.layers", "float32"
# Part of the format of files, as are all transformations here.
DICTIONARY = (
    b'"sparse":true,"ragged":true,"optional":true,"kwargs":{"mask":null},"'
    b'training":false,{"module":"keras.initializers","class_name":"","config":{'
    b'"module":"keras.src.ops.numpy","class_name":"Take","axis":-1},{"class_na'
    b'me":"__numpy__","config":{"value":{"#":"dtype":"int32"},"registered_name'
    b'":null"negative_slope":"units":"return_sequences":true,"num_heads":"key_'
    b'dim":"equation":"output_shape":"bias_axes":"input_dim":"output_dim":"rate'
    b'":"target_shape":"dilation_rate":"depth_multiplier":"momentum":"epsilon":'
    b'"Embedding""LSTM""GRU""Dropout""Reshape""Rescaling","config":{"name":"resc'
    b'aling","scale":"offset":"LayerNormalization""EinsumDense""Add""Concatenat'
    b'e""ZeroPadding2D""padding":[[0,1],[0,1]]"DepthwiseConv2D""SeparableConv2D'
    b'""GlobalAveragePooling2D""AveragePooling2D""BatchNormalization","config":{'
    b'"name":"batch_normalization","activation":"linear""gelu""tanh""sigmoid""so'
    b'ftmax"Conv1D""use_bias":false,"padding":"same","strides":[2,2]{"module":"k'
    b'eras.src.models.functional","class_name":"Functional","config":{"name":"f'
    b'unctional","layers":[{"class_name":"InputLayer","config":{"batch_shape":[n'
    b'ull,224,224,3],"dtype":"float32","name":"input_layer"},"inbound_nodes":[{"'
    b'args":[{"@":["flatten",0,0]}],"kwargs":{}}]}],"input_layers":["input_layer'
    b'",0,0],"output_layers":["dense",0,0]}}{"module":"keras","class_name":"Sequ'
    b'ential","config":{"name":"sequential","layers":[{"class_name":"InputLayer"'
    b',"config":{"batch_shape":[null,28,28,1],"name":"input_layer_1"}},{"class_n'
    b'ame":"Conv2D","config":{"name":"vd_conv2d_1","filters":32,"kernel_size":[3'
    b',3],"activation":"relu"}},{"class_name":"MaxPooling2D","config":{"name":"m'
    b'ax_pooling2d_1"}},{"class_name":"Flatten","config":{"name":"flatten_1"}},{'
    b'"class_name":"Dense","config":{"name":"vd_dense_1","units":100,"activation'
    b'":"relu"}},{"class_name":"Dense","config":{"name":"vd_dense_2","units":10}'
    b"}]}}"
)
# They bring code, or files, of their own.
REFUSED = ("Lambda", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer")
# What Keras calls things that are not classes.
PLAIN_THINGS = (
    "__bytes__",
    "__ellipsis__",
    "__keras_tensor__",
    "__numpy__",
    "__tensor__",
    "__tuple__",
)


def check_archivable(model: keras.Model) -> None:
    """Raise if a model is more than its config and the values of its weights.

    Raises:
        ValueError: if so, with the layers.
    """
    found = [
        layer.name
        for layer in flatten_layers(model)
        if type(layer).__name__ in REFUSED or hasattr(layer, "save_assets")
    ]
    if found:
        raise ValueError(
            f"Layers {found} of '{model.name}' hold code, or data that is no "
            "weight, such as a vocabulary, which an archive does not: use "
            "`keras_vd.deployment.save_compressed`."
        )


def pack(model: keras.Model) -> tuple[bytes, list[list[int]]]:
    """Describe a model without the values of its weights.

    Returns:
        The text, compressed, and the lists of integers that are not in it.

    Raises:
        ValueError: if the config does not give the same model again.
    """
    full = _described(model)
    for config in (_shortened(full), full):
        lists: list[list[int]] = []
        text = json.dumps(_without_lists(config, lists), separators=(",", ":"))
        packed = _compress(text)
        again = _described(build(unpack(packed), list(lists)))
        if _with_numbered_operations(again) == _with_numbered_operations(full):
            return packed, lists
    raise ValueError(
        f"The config of '{model.name}' does not give the same model again: "
        "the `get_config` of one of its layers leaves something out."
    )


def unpack(packed: bytes) -> Any:
    """Return the config that `pack` has described, without lists of integers.

    Raises:
        ValueError: if this is no such description.
    """
    stream = zlib.decompressobj(-15, zdict=DICTIONARY)
    try:
        text = stream.decompress(packed, LARGEST)
    except zlib.error as error:
        raise ValueError(f"The config cannot be read: {error}.") from error
    if not stream.eof or stream.unused_data:
        raise ValueError("The config is cut short, or too long.")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("The config is nested too deeply.") from error


def lengths_of_lists(config: Any) -> list[int]:
    """List the lengths of the lists that are not in a config, in order.

    Raises:
        ValueError: if one is no length.
    """
    found = [node[LISTED] for node in _nodes(config) if LISTED in node]
    if not all(type(length) is int and length > 0 for length in found):
        raise ValueError(f"Lists cannot have the lengths {found}.")
    return found


def build(config: Any, lists: list[list[int]]) -> keras.Model:
    """Make a model of what `unpack` has returned.

    Args:
        config: The config.
        lists: The lists of integers that are not in it.

    Raises:
        ValueError: if it is not the config of a model that may be made.
    """
    waiting = iter(lists)
    restored = _restored(config, waiting)
    _check_allowed(restored)
    try:
        model = keras.saving.deserialize_keras_object(restored)
    # Each class has errors of its own.
    except Exception as error:
        raise ValueError(f"The config gives no model: {error}") from error
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"The config gives a {type(model).__name__}, which is no model."
        )
    return model


def _described(model: keras.Model) -> Any:
    config = keras.saving.serialize_keras_object(model)
    # As it will be once it has been read: tuples have become lists.
    return json.loads(json.dumps({**config, "compile_config": None}))


def _with_numbered_operations(config: Any) -> Any:
    """Number the operations, whose names Keras 3.10 does not keep."""
    names = {
        node["name"]: f"operation {i}"
        for i, node in enumerate(_nodes(config))
        if "inbound_nodes" in node
        and str(node.get("module")).startswith("keras.src.ops")
    }

    def numbered(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: numbered(value) for key, value in node.items()}
        if isinstance(node, list):
            return [numbered(item) for item in node]
        return names.get(node, node) if isinstance(node, str) else node

    return numbered(config)


def _compress(text: str) -> bytes:
    stream = zlib.compressobj(9, wbits=-15, zdict=DICTIONARY)
    return stream.compress(text.encode()) + stream.flush()


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Iterate over the dictionaries of a config, in the order of its text."""
    if isinstance(node, dict):
        yield node
    if isinstance(node, (dict, list)):
        for item in node.values() if isinstance(node, dict) else node:
            yield from _nodes(item)


def _without_lists(node: Any, lists: list[list[int]]) -> Any:
    """Move long lists of integers from a config to `lists`."""
    if isinstance(node, dict):
        return {k: _without_lists(v, lists) for k, v in node.items()}
    if not isinstance(node, list):
        return node
    if len(node) >= LONG and all(
        type(item) is int and abs(item) < 2**24 for item in node
    ):
        lists.append(node)
        return {LISTED: len(node)}
    return [_without_lists(item, lists) for item in node]


def _shortened(node: Any) -> Any:
    """Leave out what `_restored` or a constructor of Keras restores."""
    if isinstance(node, list):
        return [_shortened(item) for item in node]
    if not isinstance(node, dict):
        return node
    name: Any = node.get("class_name")
    config: Any = node.get("config")
    if name == "__keras_tensor__":
        return {TENSOR: config["keras_history"]}
    if name == "DTypePolicy":
        return config["name"]
    short = {key: _shortened(value) for key, value in node.items()}
    if not (name and isinstance(config, dict) and "module" in node):
        return short
    if node["module"].startswith("keras."):
        short.pop("build_config", None)
    short = {k: v for k, v in short.items() if v is not None or k == "config"}
    if short.get("name") == config.get("name"):
        short.pop("name", None)
    if node["module"] == USUAL_MODULE:
        short["config"] = _without_defaults(node, short["config"])
        if short["config"].get("dtype") == USUAL_DTYPE:
            del short["config"]["dtype"]
        del short["module"]
    return short


def _without_defaults(node: dict[str, Any], short: Any) -> dict[str, Any]:
    """Leave out what a layer of Keras is made with by default.

    Args:
        node: The description of the layer.
        short: Its config, with shorter parts.
    """

    def described(config: Any) -> Any:
        copy = json.loads(json.dumps({**node, "config": config}))
        layer = keras.saving.deserialize_keras_object(_restored(copy, iter(())))
        return json.loads(json.dumps(layer.get_config()))

    try:
        full = described(short)
    # Parts of layers may make sense within these alone.
    except Exception:
        return short
    # The process that reads the file may have other defaults for these.
    for key in [k for k in short if k not in ("name", "dtype", "data_format")]:
        shorter = {k: v for k, v in short.items() if k != key}
        try:
            is_default = described(shorter) == full
        # Constructors have errors of their own for what is missing.
        except Exception:
            continue
        if is_default:
            short = shorter
    return short


def _restored(node: Any, lists: Iterator[list[int]]) -> Any:
    """Put back what `_shortened` and `_without_lists` have left out."""
    if isinstance(node, list):
        return [_restored(item, lists) for item in node]
    if not isinstance(node, dict):
        return node
    if LISTED in node:
        return next(lists)
    if TENSOR in node:
        # Keras reads the shape from the layer that the history names.
        config = {"shape": [1], "dtype": "float32"}
        config["keras_history"] = node[TENSOR]
        return {"class_name": "__keras_tensor__", "config": config}
    full = {key: _restored(value, lists) for key, value in node.items()}
    is_object = isinstance(full.get("class_name"), str)
    if is_object and isinstance(full.get("config"), dict):
        if full["class_name"] not in PLAIN_THINGS:
            if "module" not in full:
                full["module"] = USUAL_MODULE
                full["config"].setdefault("dtype", USUAL_DTYPE)
            full.setdefault("registered_name", None)
        if "inbound_nodes" in full:
            full.setdefault("name", full["config"].get("name"))
    return full


def _check_allowed(config: Any) -> None:
    """Raise a ValueError if a config names a class that no archive may hold."""
    for node in _nodes(config):
        name = node.get("class_name")
        if name is None or name in PLAIN_THINGS:
            continue
        module, registered = node.get("module"), node.get("registered_name")
        is_known = isinstance(module, str) and (
            module in ("keras", "builtins") or module.startswith("keras.")
        )
        if isinstance(registered, str) and not is_known:
            known = keras.saving.get_registered_object(registered)
            is_known = known is not None
        if not is_known or name in REFUSED or name.startswith("__"):
            raise ValueError(
                f"The config names {name!r} of {module!r}, which is neither "
                "from Keras nor registered, or may run code of its own."
            )
