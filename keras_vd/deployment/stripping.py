"""Strip SavedModels of what only people and debuggers read.

What TensorFlow needs to load and run the graph stays: shapes of arguments and
results, the names of inputs and outputs, and the table of objects.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Attributes that loading a graph finds out again, or that nothing reads.
UNREAD = ("_output_shapes", "_class", "_xla_inferred_shapes")


def strip_saved_model(folder: Path) -> None:
    """Make the graph of a SavedModel smaller without changing what it does."""
    from tensorflow.core.protobuf import saved_model_pb2

    file = folder / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for meta in saved.meta_graphs:
        meta.meta_info_def.ClearField("stripped_op_list")
        graph = meta.graph_def
        _strip_nodes(graph.node)
        for function in graph.library.function:
            _strip_nodes(function.node_def)
            _shorten_names(function)
    file.write_bytes(saved.SerializeToString(deterministic=True))


def _strip_nodes(nodes: Iterable[Any]) -> None:
    from tensorflow.python.framework import op_def_registry

    for node in nodes:
        node.ClearField("experimental_debug_info")
        for name in UNREAD:
            node.attr.pop(name, None)
        definition = op_def_registry.get(node.op)
        for attribute in definition.attr if definition else ():
            if (
                attribute.HasField("default_value")
                and attribute.name in node.attr
                and node.attr[attribute.name] == attribute.default_value
            ):
                del node.attr[attribute.name]


def _shorten_names(function: Any) -> None:
    """Rename the nodes of a function to numbers.

    A reference is a node's name, the name of its result and an index, as in
    `dense:z:0`, or `^dense` for a node that has to run first. Arguments keep
    their names.
    """
    arguments = {argument.name for argument in function.signature.input_arg}
    numbers = (f"{i:x}" for i in itertools.count())
    free = (number for number in numbers if number not in arguments)
    names = {node.name: next(free) for node in function.node_def}

    def shorten(reference: str) -> str:
        prefix = "^" * reference.startswith("^")
        name, *rest = reference.removeprefix("^").split(":")
        return prefix + ":".join([names.get(name, name), *rest])

    for node in function.node_def:
        node.name = names[node.name]
        node.input[:] = map(shorten, node.input)
    for results in (function.ret, function.control_ret):
        for key, reference in list(results.items()):
            results[key] = shorten(reference)
