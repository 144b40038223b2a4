"""Find out which tensors have their channels on axis 1."""

from __future__ import annotations

from keras_vd.rules.graph import Graph, GraphTensor
from keras_vd.rules.rule import known_rule


def place_channels(graph: Graph) -> None:
    """Set the axis of channels of every tensor of a graph.

    It is axis 1 for what layers with `data_format="channels_first"` read and
    make, and for all that is connected to it by layers that take either.
    Where one of these tensors is also read or made by a layer that wants the
    last axis, it is the last axis for all of them.
    """
    # A tensor without axes between those of batch and channels has no sides.
    tensors = [x for x in graph.tensors if len(x.shape) > 2]
    groups = {x: [x] for x in tensors}
    wanted: dict[GraphTensor, set[bool]] = {x: set() for x in tensors}
    for node in graph.nodes:
        rule = known_rule(node.operation)
        if rule is None:
            continue
        free: list[GraphTensor] = []
        sides = rule.channels_first(node.operation, node)
        for found, first in zip(
            (node.inputs, node.outputs), sides, strict=True
        ):
            for tensor in found:
                if tensor in groups and first is None:
                    free.append(tensor)
                elif tensor in groups:
                    wanted[tensor].add(bool(first))
        _connect(groups, free)
    for group in groups.values():
        if set.union(*(wanted[x] for x in group)) == {True}:
            for tensor in group:
                tensor.put_channels_first()


def _connect(
    groups: dict[GraphTensor, list[GraphTensor]], tensors: list[GraphTensor]
) -> None:
    """Make one group of those of some tensors."""
    found = {id(groups[x]): groups[x] for x in tensors}
    together = [x for group in found.values() for x in group]
    for tensor in together:
        groups[tensor] = together
