"""Fold gates into the weights of the layers after them.

A gate multiplies units by constants at inference. A layer after it may let such
factors pass (a ReLU, a pooling), or it may be linear in its inputs, so that its
kernel can hold them. Where every path from a gate leads to a layer whose kernel
holds the factors, the gate itself is not needed any more.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_vd._backend.keras_internals import (
    Call,
    flatten_layers,
    functional_part,
    graph_calls,
    sublayers,
)
from keras_vd.layers.structured import StructuredGate
from keras_vd.rules.merging import ConcatenateRule
from keras_vd.rules.rule import absorbed_by, known_rule

# A layer that absorbs factors into its weights, and the factors: an array that
# broadcasts to one example of the layer's inputs.
Target = tuple[keras.layers.Layer, np.ndarray]


def find_folds(model: keras.Model) -> dict[StructuredGate, list[Target]]:
    """Find the gates of a model that can go, and what absorbs their factors.

    A gate that is used several times can go if that holds for each use.

    Args:
        model: A built model; what is neither Sequential nor Functional, at
            any level, is left alone.
    """
    parts = [functional_part(layer) for layer in flatten_layers(model)]
    # A Sequential model and the Functional one inside it are one graph.
    graphs = [
        FoldingGraph(part, graph_calls(part))
        for part in {id(part): part for part in parts}.values()
        if part is not None
    ]
    uses = count_uses(model, graphs)
    outputs: dict[StructuredGate, list[tuple[FoldingGraph, Any]]] = {}
    for graph in graphs:
        for call in graph.calls:
            if isinstance(call.operation, StructuredGate):
                gated = graph, call.outputs[0]
                outputs.setdefault(call.operation, []).append(gated)
    folds = {}
    for gate, found in outputs.items():
        factors = gate.constant_factors()
        if factors is None or len(found) != uses[id(gate)]:
            continue
        targets = [graph.targets(output, factors) for graph, output in found]
        merged = merge(targets, uses)
        if merged:
            folds[gate] = merged
    return folds


def count_uses(model: keras.Model, graphs: list[FoldingGraph]) -> Counter[int]:
    """Count the calls of each layer, by its `id`.

    These are its calls in graphs, and one for each layer that contains it and
    has no graph.
    """
    uses = Counter(id(call.operation) for x in graphs for call in x.calls)
    for layer in flatten_layers(model):
        if functional_part(layer) is None:
            uses.update({id(x) for x in sublayers(layer)})
    return uses


def merge(
    found: Iterable[list[Target] | None], uses: Counter[int]
) -> list[Target] | None:
    """Join what absorbs the factors of several uses of a gate.

    A layer may absorb factors only if all of its uses read the same ones.

    Args:
        found: What absorbs the factors of each use; None if nothing can.
        uses: Number of uses of each layer, by its `id`.

    Returns:
        Each layer once, with its factors; None if the gate cannot go.
    """
    merged: dict[int, Target] = {}
    counts: Counter[int] = Counter()
    for targets in found:
        if targets is None:
            return None
        for layer, factors in targets:
            _, first = merged.setdefault(id(layer), (layer, factors))
            if not np.array_equal(first, factors):
                return None
            counts[id(layer)] += 1
    for key, (layer, _) in merged.items():
        below = flatten_layers(layer)
        if any(uses[id(x)] != counts[key] for x in below):
            return None
    return list(merged.values())


@dataclasses.dataclass(frozen=True)
class FoldingGraph:
    """One Functional model and its calls."""

    functional: keras.Model
    calls: list[Call]

    def targets(
        self,
        output: Any,
        factors: np.ndarray | None,
        readers: list[Call] | None = None,
    ) -> list[Target] | None:
        """List the layers that absorb the factors of a tensor.

        A layer stands in the list once for each call that reads them.

        Args:
            output: The symbolic tensor.
            factors: They broadcast to one example of it.
            readers: The calls that get them; None for all that read `output`.

        Returns:
            None if one of them can neither absorb the factors nor pass them
            on, or if they reach an output of the model.
        """
        if factors is None:
            return None
        if readers is None:
            if any(output is x for x in self.functional.outputs):
                return None
            readers = [x for x in self.calls if _reads(x, output)]
        found: list[Target] = []
        for reader in readers:
            layer = reader.operation
            first = reader.args[0] if reader.args else None
            if first is output and absorbed_by(layer, factors) is not None:
                found.append((layer, factors))
                continue
            further = self.targets(
                reader.outputs[0], _passed_on(reader, output, factors)
            )
            if further is None:
                return None
            found.extend(further)
        return found


def _reads(call: Call, tensor: Any) -> bool:
    read = keras.tree.flatten((call.args, call.kwargs))
    return any(x is tensor for x in read)


def _passed_on(call: Call, read: Any, factors: np.ndarray) -> np.ndarray | None:
    """Return the factors of a call's output, as `Rule.passed_on` does.

    A gate, for which there is no rule, lets them pass if its own factors are
    constant.
    """
    layer, shape = call.operation, read.shape[1:]
    first = call.args[0] if call.args else None
    rule = known_rule(layer)
    if rule is ConcatenateRule and isinstance(first, (list, tuple)):
        return ConcatenateRule.joined(
            layer,
            [factors if x is read else None for x in first],
            [x.shape[1:] for x in first],
        )
    if first is not read:
        return None
    if isinstance(layer, StructuredGate):
        return None if layer.constant_factors() is None else factors
    return None if rule is None else rule.passed_on(layer, factors, shape)


def absorb(layer: Any, factors: np.ndarray) -> None:
    """Absorb the factors of a layer's inputs into its weights."""
    for variable, value in absorbed_by(layer, factors) or ():
        variable.assign(value)
