"""ONNX files that hold only what is not zero."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_vd.deployment.coding import Stream, encode
from keras_vd.deployment.drawing import flat_inputs
from keras_vd.deployment.interface import TOLERANCES
from keras_vd.deployment.onnx_graphs import dense_graph, graphs
from keras_vd.deployment.readers import Arrays
from keras_vd.deployment.writer import Writer


def export_onnx(
    model: keras.Model,
    path: str | os.PathLike[str],
    weights: str = "float32",
    x: Any = None,
) -> None:
    """Write a plain model as an ONNX file that holds only what is not zero.

    The weights are unpacked by ordinary operations of ONNX on constants. ONNX
    Runtime does this once, when it opens the file, and then computes as fast as
    with dense weights. Look-ups of strings and integers are written too; layers
    that split or hash text are not.

    Args:
        model: A built model of plain Keras layers; not changed. Subclassed
            models and layers made of layers are written out, see
            `keras_vd.to_functional`.
        path: File to write, with the ending `.onnx`. An existing file is
            replaced once the new one has been read back and its outputs are
            those of `model`.
        weights: "float32", or "int8" for weights in 8 bits, in steps of 1/127
            of the largest weight of each array. Outputs may then differ by 5%
            of the largest one before it is an error.
        x: Inputs for the check, as the model takes them; a few drawn at
            random by default.

    Raises:
        TypeError: if `model` is no Keras model.
        ValueError: if `model` is not built, has layers of `keras_vd`, stateful
            ones, some that compute with bfloat16 or weights that are not
            finite, if `weights` is neither, `path` has another ending, `x`
            another shape, or `model` does not take the inputs drawn.
        ImportError: if onnx, onnxruntime or the converter of the running
            backend is not installed (tf2onnx for TensorFlow).
        OSError: if the file cannot be written.
        RuntimeError: if ONNX or ONNX Runtime lacks an operation, with its name
            and layer and what the converter logged, or if the outputs of what
            was written differ.

    Example:
        >>> import os, tempfile
        >>> from keras_vd import deployment
        >>> path = os.path.join(tempfile.mkdtemp(), "small.onnx")
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> deployment.export_onnx(model, path)  # doctest: +SKIP
    """
    with WRITER.opened(model, path, weights) as opened:
        WRITER.write(opened, path, flat_inputs(opened, x), weights=weights)


def convert(model: keras.Model, arrays: Arrays, weights: str | None) -> bytes:
    """Return the content of a model's ONNX file.

    Args:
        model: The model.
        arrays: Inputs that it takes.
        weights: "float32" or "int8" to pack sparse weights; None to leave the
            file dense, as it was converted.
    """
    proto = dense_graph(model, arrays)
    if weights is not None:
        _pack(proto.graph, weights)
        _shorten_names(proto.graph)
        proto.producer_name = proto.graph.doc_string = ""
    return proto.SerializeToString()


def _pack(graph: Any, weights: str) -> None:
    """Replace sparse constants by operations that unpack them."""
    from onnx import numpy_helper

    arrays = [numpy_helper.to_array(tensor) for tensor in graph.initializer]
    stream = encode(arrays, weights)
    if stream is None:
        return
    names = [graph.initializer[i].name for i in stream.positions]
    for i in reversed(stream.positions):
        del graph.initializer[i]
    constants, nodes = _unpacking(stream, names)
    graph.initializer.extend(constants)
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def _unpacking(
    stream: Stream, names: Sequence[str]
) -> tuple[list[Any], list[Any]]:
    """Return constants and nodes that make the dense arrays of a stream."""
    from onnx import TensorProto, helper, numpy_helper

    constants: list[Any] = []
    nodes: list[Any] = []

    def constant(value: Any) -> str:
        name = f"packed/constant_{len(constants)}"
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def apply(operation: str, *inputs: str, **attributes: Any) -> str:
        name = f"packed/value_{len(nodes)}"
        nodes.append(helper.make_node(operation, inputs, [name], **attributes))
        return name

    one, first = constant(np.int64(1)), constant(np.int64(0))
    gaps = apply("Cast", constant(stream.gaps), to=TensorProto.INT64)
    is_skip = apply("Equal", gaps, constant(np.int64(stream.skip)))
    is_entry = apply("Cast", apply("Not", is_skip), to=TensorProto.INT64)
    ends = apply("CumSum", apply("Add", gaps, is_entry), first)
    # An entry after `n` values is at position `n`, one less than the running
    # sum. Codes without an entry cannot be left out, because ONNX Runtime does
    # not fold operations whose number of results depends on values. Such a code
    # writes a zero over the last of its zeros instead.
    indices = apply("Sub", ends, one)
    which = apply("Sub", apply("CumSum", is_entry, first), one)
    values = apply("Gather", constant(stream.values), which)
    values = apply("Cast", values, to=TensorProto.FLOAT)
    values = apply("Mul", values, apply("Cast", is_entry, to=TensorProto.FLOAT))
    size = constant(np.array([sum(stream.sizes)], np.int64))
    flat = apply(
        "ScatterElements", apply("ConstantOfShape", size), indices, values
    )
    parts = [f"packed/part_{i}" for i in range(len(names))]
    sizes = constant(np.array(stream.sizes, np.int64))
    nodes.append(helper.make_node("Split", [flat, sizes], parts, axis=0))
    for i, (part, name) in enumerate(zip(parts, names, strict=True)):
        if stream.scales is not None:
            part = apply("Mul", part, constant(stream.scales[i]))
        shape = constant(np.array(stream.shapes[i], np.int64))
        nodes.append(helper.make_node("Reshape", [part, shape], [name]))
    return constants, nodes


def _shorten_names(graph: Any) -> None:
    """Rename all values to numbers, except inputs and outputs of the model."""
    kept = {x.name for x in [*graph.input, *graph.output]} | {""}
    short: dict[str, str] = {}

    def shorten(name: str) -> str:
        if name in kept:
            return name
        while (new := short.setdefault(name, f"{len(short):x}")) in kept:
            short[name] = new + "_"
        return short[name]

    for part in graphs(graph):
        part.name = "graph"
        del part.value_info[:]
        # The body of a loop sees the values around it, so all graphs share one
        # numbering.
        for item in [*part.input, *part.output, *part.initializer]:
            item.name = shorten(item.name)
        for node in part.node:
            node.name = node.doc_string = ""
            node.input[:] = map(shorten, node.input)
            node.output[:] = map(shorten, node.output)


WRITER = Writer(
    "export_onnx",
    "ONNX Runtime",
    convert,
    ending=".onnx",
    packages=(("onnx", "runtimes"), ("onnxruntime", "runtimes")),
    tolerances=TOLERANCES,
    unknown_types=("bfloat16",),
)
