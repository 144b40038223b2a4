"""Fold gates into the weights of the layers after them.

A gate multiplies units by constants at inference. A layer after it may let such
factors pass (a ReLU, a pooling), or it may be linear in its inputs, so that its
kernel can hold them. Where every path from a gate leads to a layer whose kernel
holds the factors, the gate itself is not needed any more.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
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
from keras_vd.rules.rule import absorbed_by, known_rule

# A layer that absorbs factors into its weights, and the factors: an array that
# broadcasts to one example of the layer's inputs.
Target = tuple[keras.layers.Layer, np.ndarray]


def find_folds(model: keras.Model) -> dict[StructuredGate, list[Target]]:
    """Find the gates of a model that can go, and what absorbs their factors.

    Args:
        model: A built model; what is neither Sequential nor Functional, at
            any level, is left alone.
    """
    parts = [functional_part(layer) for layer in flatten_layers(model)]
    # A Sequential model and the Functional one inside it are one graph.
    graphs = [
        _Graph(part, graph_calls(part))
        for part in {id(part): part for part in parts}.values()
        if part is not None
    ]
    uses = _count_uses(model, graphs)
    folds = {}
    for graph in graphs:
        for call in graph.calls:
            gate = call.operation
            if isinstance(gate, StructuredGate) and uses[id(gate)] == 1:
                targets = graph.targets(call, gate.constant_factors())
                if targets and all(_is_alone(x, uses) for x, _ in targets):
                    folds[gate] = targets
    return folds


def _count_uses(model: keras.Model, graphs: list[_Graph]) -> Counter[int]:
    """Count the calls of each layer, by its `id`.

    These are its calls in graphs, and one for each layer that contains it and
    has no graph.
    """
    uses = Counter(id(call.operation) for x in graphs for call in x.calls)
    for layer in flatten_layers(model):
        if functional_part(layer) is None:
            uses.update({id(x) for x in sublayers(layer)})
    return uses


def _is_alone(layer: keras.layers.Layer, uses: Counter[int]) -> bool:
    """Tell whether a layer, and each layer in it, is used only once."""
    return all(uses[id(below)] == 1 for below in flatten_layers(layer))


@dataclasses.dataclass(frozen=True)
class _Graph:
    """One Functional model and its calls."""

    functional: keras.Model
    calls: list[Call]

    def targets(
        self, call: Call, factors: np.ndarray | None
    ) -> list[Target] | None:
        """List the layers that absorb the factors of a call's output.

        None if something that reads the output can neither absorb them nor
        pass them on, or if the output is one of the model's.
        """
        if factors is None:
            return None
        (output,) = call.outputs
        if any(output is x for x in self.functional.outputs):
            return None
        found: list[Target] = []
        for reader in self.calls:
            if not _reads(reader, output):
                continue
            if not reader.args or reader.args[0] is not output:
                return None
            layer = reader.operation
            if absorbed_by(layer, factors) is not None:
                found.append((layer, factors))
                continue
            further = self.targets(
                reader, _passed_on(layer, factors, output.shape[1:])
            )
            if further is None:
                return None
            found.extend(further)
        return found


def _reads(call: Call, tensor: Any) -> bool:
    read = keras.tree.flatten((call.args, call.kwargs))
    return any(x is tensor for x in read)


def _passed_on(
    layer: Any, factors: np.ndarray, shape: tuple[Any, ...]
) -> np.ndarray | None:
    """Return the factors of a layer's outputs, as `Rule.passed_on` does.

    A gate, for which there is no rule, lets them pass if its own factors are
    constant.
    """
    if isinstance(layer, StructuredGate):
        return None if layer.constant_factors() is None else factors
    rule = known_rule(layer)
    return None if rule is None else rule.passed_on(layer, factors, shape)


def absorb(layer: Any, factors: np.ndarray) -> None:
    """Absorb the factors of a layer's inputs into its weights."""
    for variable, value in absorbed_by(layer, factors) or ():
        variable.assign(value)
