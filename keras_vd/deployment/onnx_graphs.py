"""Convert a model to a dense ONNX graph that ONNX Runtime can open."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_vd._backend.keras_internals import flatten_layers, patch_tf2onnx
from keras_vd.deployment.interface import (
    input_names,
    output_names,
    precision_advice,
    predict,
)
from keras_vd.deployment.logs import collected_logs
from keras_vd.deployment.readers import Arrays, open_onnx
from keras_vd.deployment.requirements import require
from keras_vd.deployment.saved_models import traced

# The package that converts models, by backend.
CONVERTERS = {"tensorflow": "tf2onnx", "jax": "jax2onnx", "torch": "onnxscript"}
ADVICE = (
    "Replace what computes it, or write the model with `export_saved_model` or "
    "`export_litert`."
)


def dense_graph(model: keras.Model, arrays: Arrays) -> Any:
    """Convert a model to a `ModelProto` with dense weights.

    Args:
        model: The model.
        arrays: Inputs that it takes.

    Raises:
        ImportError: if the converter of the running backend is missing.
        RuntimeError: if ONNX or ONNX Runtime lacks what the model computes.
    """
    require("onnx")
    require("onnxruntime")
    backend = keras.backend.backend()
    converter = CONVERTERS[backend]
    # No extra installs the converters of other backends, which few users need.
    require(converter, "runtimes" if backend == "tensorflow" else None)
    with (
        collected_logs(converter, "tensorflow") as logs,
        warnings.catch_warnings(),
    ):
        # The converters use what other packages have deprecated.
        warnings.simplefilter("ignore")
        try:
            if backend == "tensorflow":
                proto = _from_tensorflow(model)
            else:
                proto = _from_keras(model, arrays)
        # The converters raise errors of many types.
        except Exception as error:
            reason = f"{converter} raised {type(error).__name__}: {error}"
            raise _refusal(model, reason, logs) from error
        _check_operations(model, proto, logs)
    return proto


def _from_keras(model: keras.Model, arrays: Arrays) -> Any:
    import onnx

    predict(model, arrays)  # Keras exports only what was called
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "dense.onnx")
        model.export(file, format="onnx", verbose=False)
        return onnx.load(file)


def _from_tensorflow(model: keras.Model) -> Any:
    """Convert without Keras' export, which takes layers' tensors for inputs."""
    import tf2onnx

    patch_tf2onnx()
    frozen = _frozen(traced(model))
    renamed = dict(zip(frozen.inputs, input_names(model), strict=True))
    renamed |= dict(zip(frozen.outputs, output_names(model), strict=True))
    lookup = partial(_write_lookup, frozen.tables)
    proto, _ = tf2onnx.convert.from_graph_def(
        frozen.graph,
        name="model",
        input_names=frozen.inputs,
        output_names=frozen.outputs,
        tensors_to_rename=renamed,
        custom_op_handlers={"LookupTableFindV2": (lookup, [])},
    )
    return proto


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A graph of TensorFlow without variables.

    Attributes:
        graph: The `GraphDef`.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        tables: Keys and values of the tables in it, by their node's name.
    """

    graph: Any
    inputs: list[str]
    outputs: list[str]
    tables: dict[str, tuple[np.ndarray, np.ndarray]]


def _frozen(concrete: Any) -> Frozen:
    """Freeze a function: what it captures becomes constants or tables."""
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    captured = {
        placeholder.op.name: value
        for value, placeholder in concrete.graph.captures
    }
    frozen = convert_variables_to_constants_v2(
        concrete, lower_control_flow=False, aggressive_inlining=True
    )
    graph = frozen.graph.as_graph_def(add_shapes=True)
    # Captured tensors that are no variables, and tables, are still inputs.
    held = [node for node in graph.node if node.name in captured]
    lookups = {
        node.input[0]: node.attr
        for node in graph.node
        if node.op == "LookupTableFindV2"
    }
    tables = {}
    for node in held:
        value = captured[node.name]
        if node.name in lookups:
            types = [lookups[node.name][key].type for key in ("Tin", "Tout")]
            tables[node.name] = _make_table(node, value, *types)
        else:
            _make_constant(node, value)
    _use_known_operations(graph)
    return Frozen(
        graph,
        [x.name for x in frozen.inputs if x.op.name not in captured],
        [x.name for x in frozen.outputs],
        tables,
    )


def _make_constant(node: Any, value: Any) -> None:
    import tensorflow as tf

    node.op = "Const"
    node.ClearField("attr")
    node.attr["dtype"].type = value.dtype.as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))


def _make_table(
    node: Any, handle: Any, key_type: int, value_type: int
) -> tuple[np.ndarray, np.ndarray]:
    """Turn a node into a table of its name; return its keys and values."""
    import tensorflow as tf

    node.op = "HashTableV2"
    node.ClearField("attr")
    node.attr["key_dtype"].type = key_type
    node.attr["value_dtype"].type = value_type
    node.attr["shared_name"].s = node.name.encode()
    keys, values = tf.raw_ops.LookupTableExportV2(
        table_handle=handle, Tkeys=key_type, Tvalues=value_type
    )
    return keys.numpy(), values.numpy()


def _write_lookup(
    tables: Mapping[str, tuple[np.ndarray, np.ndarray]],
    context: Any,
    node: Any,
    name: str,
    arguments: object,
) -> None:
    """Write a look-up in a table as a `LabelEncoder` of ONNX.

    tf2onnx calls this with the graph (`context`) and the node.
    """
    table, keys, default = node.inputs
    attributes = {}
    for kind, values in zip(
        ("keys", "values", "default"),
        (*tables[table.name], default.get_tensor_value(as_list=False)),
        strict=True,
    ):
        name, plain = _label_attribute(kind, np.asarray(values))
        attributes[name] = plain
    output = node.output[0]
    shape, dtype = context.get_shape(output), context.get_dtype(output)
    context.remove_node(node.name)
    context.make_node(
        "LabelEncoder",
        [keys.output[0]],
        attr=attributes,
        outputs=[output],
        name=node.name,
        domain="ai.onnx.ml",
        shapes=[shape],
        dtypes=[dtype],
    )
    if not context.find_output_consumers(table.output[0]):
        context.remove_node(table.name)


def _label_attribute(kind: str, values: np.ndarray) -> tuple[str, Any]:
    types = {
        "i": "int64",
        "f": "float",
        "O": "string",
        "U": "string",
        "S": "string",
    }
    name = f"{kind}_{types[values.dtype.kind]}"
    return (
        (name, values.item())
        if kind == "default"
        else (f"{name}s", values.tolist())
    )


def _dense_bincount(node: Any, x: Any, size: Any, weights: Any) -> Any:
    import tensorflow as tf

    # Not `tf.one_hot`, for which tf2onnx would need to know more of the shape.
    is_hit = tf.equal(tf.expand_dims(x, -1), tf.range(size))
    hits = tf.cast(is_hit, weights.dtype)
    if node.attr["binary_output"].b:
        return tf.reduce_max(hits, -2)
    # Weights are as many as ids or none at all, which stands for ones.
    ones = tf.reshape(tf.ones_like(x, weights.dtype), [-1])
    weights = tf.concat([tf.reshape(weights, [-1]), ones], 0)[: tf.size(x)]
    weights = tf.expand_dims(tf.reshape(weights, tf.shape(x)), -1)
    return tf.reduce_sum(hits * weights, -2)


def _erfc(node: Any, x: Any) -> Any:
    import tensorflow as tf

    return 1 - tf.math.erf(x)


def _expm1(node: Any, x: Any) -> Any:
    import tensorflow as tf

    return tf.exp(x) - 1


def _bucketize(node: Any, x: Any) -> Any:
    import tensorflow as tf

    bounds = tf.constant(list(node.attr["boundaries"].list.f), tf.float32)
    is_above = tf.expand_dims(tf.cast(x, tf.float32), -1) >= bounds
    return tf.reduce_sum(tf.cast(is_above, tf.int32), -1)


# For operations of TensorFlow that tf2onnx does not know or writes wrongly: a
# function that computes the same, the attributes that hold the types of its
# inputs, and the name that the operation gives its result.
SUBSTITUTES: dict[str, tuple[Callable[..., Any], list[str], str]] = {
    "Erfc": (_erfc, ["T"], "y"),
    "Expm1": (_expm1, ["T"], "y"),
    "Bucketize": (_bucketize, ["T"], "output"),
    "DenseBincount": (_dense_bincount, ["Tidx", "Tidx", "T"], "output"),
}


def _use_known_operations(graph: Any) -> None:
    """Replace the operations that tf2onnx does not know or writes wrongly."""
    _substitute(graph.node)
    for function in graph.library.function:
        _substitute(function.node_def, function.ret)
        # TensorFlow inlines functions, except those marked for XLA, as Keras
        # marks grouped convolutions.
        for name in ("_XlaMustCompile", "_noinline"):
            function.attr.pop(name, None)


def _substitute(nodes: Any, results: Any = None) -> None:
    """Substitute in a graph or, with `results`, in the body of a function.

    References in a body also have the name of a node's result, as in
    `gelu/Erfc:y:0`.
    """
    renamed: dict[str, str] = {}
    for node in list(nodes):
        node.attr.pop("_XlaMustCompile", None)
        if node.op in SUBSTITUTES:
            substitute, types, result = SUBSTITUTES[node.op]
            function = _traced(node, substitute, types)
            _put_in(nodes, node, function, results is not None)
            renamed[f"{node.name}:{result}:0"] = f"{node.name}:output:0"
    if results is None:
        return
    for node in nodes:
        node.input[:] = [renamed.get(x, x) for x in node.input]
    for key, reference in list(results.items()):
        results[key] = renamed.get(reference, reference)


def _traced(
    node: Any, substitute: Callable[..., Any], types: Sequence[str]
) -> Any:
    import tensorflow as tf

    specs = [
        tf.TensorSpec(None, tf.as_dtype(node.attr[name].type)) for name in types
    ]
    function = tf.function(partial(substitute, node), autograph=False)
    return function.get_concrete_function(*specs).function_def


def _put_in(nodes: Any, node: Any, function: Any, is_body: bool) -> None:
    """Add the nodes of a function; `node` becomes the identity of its result.

    Args:
        nodes: The nodes to add to.
        node: The node that the function replaces.
        function: The `FunctionDef`.
        is_body: Whether the nodes are in the body of a function.
    """
    arguments = [argument.name for argument in function.signature.input_arg]
    sources = dict(zip(arguments, node.input, strict=True))
    place = node.name

    def renamed(reference: str) -> str:
        if reference in sources:
            return sources[reference]
        full = f"{place}/{reference}"
        return full if is_body else full.partition(":")[0]

    for inner in function.node_def:
        new = nodes.add()
        new.CopyFrom(inner)
        new.name = f"{place}/{inner.name}"
        new.input[:] = map(renamed, inner.input)
    (result,) = function.ret.values()
    node.op = "Identity"
    node.input[:] = [renamed(result)]
    node.ClearField("attr")
    node.attr["T"].type = function.signature.output_arg[0].type


def _check_operations(model: keras.Model, proto: Any, logs: list[str]) -> None:
    """Raise unless ONNX Runtime has every operation of a graph."""
    import onnx

    versions = {x.domain: x.version for x in proto.opset_import}
    missing = {
        node.name: node.op_type
        for graph in graphs(proto.graph)
        for node in graph.node
        if node.domain not in versions
        or not onnx.defs.has(
            node.op_type,
            max_inclusive_version=versions[node.domain],
            domain=node.domain,
        )
    }
    if missing:
        named = [
            f"'{operation}' ({_place(model, name)})"
            for name, operation in missing.items()
        ]
        reason = f"ONNX has no operation {', '.join(dict.fromkeys(named))}."
        raise _refusal(model, reason, logs)
    try:
        open_onnx(proto.SerializeToString())
    # ONNX Runtime raises errors of many types.
    except Exception as error:
        raise _refusal(model, f"ONNX Runtime: {error}", logs) from error


def _place(model: keras.Model, name: str) -> str:
    """Describe the layer that a node belongs to, for a message.

    TensorFlow may have added a number to the name of the layer.
    """
    layers = {layer.name for layer in flatten_layers(model)}
    for part in reversed(name.split("/")[:-1]):
        for known in (part, re.sub(r"_\d+$", "", part)):
            if known in layers:
                return f"layer '{known}'"
    return f"node '{name}'"


def graphs(graph: Any) -> Iterator[Any]:
    """Yield a graph and the graphs inside it, such as the bodies of loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                if inner.node or inner.output:
                    yield from graphs(inner)


def _refusal(model: keras.Model, reason: str, logs: list[str]) -> RuntimeError:
    return RuntimeError(
        f"'{model.name}' cannot be written as ONNX from the "
        f"{keras.backend.backend()} backend. "
        + "\n".join([f"{reason} {ADVICE}{precision_advice(model)}", *logs])
    )
