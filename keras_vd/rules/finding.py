"""Find the rules of all layers and operations of a model."""

from __future__ import annotations

from collections.abc import Mapping

import keras

from keras_vd._backend.keras_internals import flatten_layers, own_variables
from keras_vd.rules.graph import Graph, Node
from keras_vd.rules.rule import Rule, find_rule


def find_rules(
    graph: Graph, kept_whole: Mapping[int, str] | None = None
) -> dict[int, Rule]:
    """Return the rule of each layer or operation, in the order of first use.

    Args:
        graph: The model.
        kept_whole: Reasons by the `id` of layers that are to be kept whole.

    Returns:
        The rules by the `id` of the layer or operation.
    """
    uses: dict[int, list[Node]] = {}
    for node in graph.nodes:
        uses.setdefault(id(node.operation), []).append(node)
    reasons = {**_sharing(uses), **(kept_whole or {})}
    return {
        key: find_rule(nodes[0].operation, nodes, reasons.get(key))
        for key, nodes in uses.items()
    }


def _sharing(uses: dict[int, list[Node]]) -> dict[int, str]:
    """Return why layers are kept that share weights with other layers.

    The reasons are keyed by the `id` of the layer. One layer that is called
    several times has a single entry in `uses` and does not count.
    """
    owners: dict[int, list[keras.layers.Layer]] = {}
    for nodes in uses.values():
        layer = nodes[0].operation
        if isinstance(layer, keras.layers.Layer):
            for below in flatten_layers(layer):
                if own_variables(below):
                    owners.setdefault(id(below), []).append(layer)
    return {
        id(layer): f"it shares weights with '{other.name}'"
        for sharing in owners.values()
        for layer in sharing
        for other in sharing
        if other is not layer
    }
