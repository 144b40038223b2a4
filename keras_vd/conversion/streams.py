"""Find the channels of a model that gates can switch off.

Channels that can only go together are one stream: what a convolution makes, the
normalization and activation of it, and whatever sums add to it. A gate for a
stream stands before each layer that mixes its channels, so that every path
through the model meets it once for each such layer. A channel whose gate is
closed is read by nothing any more, in any branch.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_vd._backend.keras_internals import (
    Call,
    computing_class,
    flatten_layers,
    graph_calls,
)
from keras_vd.conversion.folding import FoldingGraph, count_uses, merge
from keras_vd.layers.base import COUNTERPARTS, VariationalLayer
from keras_vd.rules.channelwise import (
    GlobalPoolingRule,
    IdentityRule,
    SpatialRule,
)
from keras_vd.rules.finding import find_rules
from keras_vd.rules.graph import Graph, GraphTensor, Node, read_graph
from keras_vd.rules.merging import ConcatenateRule, ReshapeRule
from keras_vd.rules.rule import Rule

# What a gate stands before rather than after: it makes no difference to the
# outputs, and the tensor of all uses of a gate has one number of axes there.
_AFTER_GATES = (GlobalPoolingRule, IdentityRule, ReshapeRule, SpatialRule)
# A tensor and a node that reads it.
_Edge = tuple[GraphTensor, Node]


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """Channels that can only go together.

    Attributes:
        makers: The layers with kernels that make them, in order.
        units: Number of channels.
        reads: Symbolic tensors and the calls that are to read them through a
            gate.
        reason: Why there can be no gate; None if there can.
    """

    makers: list[keras.layers.Layer]
    units: int
    reads: list[tuple[Any, Call]]
    reason: str | None


def find_streams(functional: keras.Model) -> list[Stream]:
    """Find the streams of a plain Functional model, in order.

    Only those that layers with kernels make are returned.
    """
    return _Finder(functional).find()


class _Finder:
    """What is known about the streams of a model.

    Attributes:
        graph: The model.
        rules: The rule of each layer or operation, by its `id`.
        readers: The nodes that read a tensor as data.
        root: A representative of the stream that each tensor belongs to.
    """

    def __init__(self, functional: keras.Model) -> None:
        self.graph: Graph = read_graph(functional)
        self.rules = find_rules(self.graph)
        self.folding = FoldingGraph(functional, graph_calls(functional))
        self.uses = count_uses(functional, [self.folding])
        self.readers: dict[GraphTensor, list[Node]] = {}
        self.root = {tensor: tensor for tensor in self.graph.tensors}
        for node in self.graph.nodes:
            for tensor in dict.fromkeys(node.inputs):
                self.readers.setdefault(tensor, []).append(node)
            if self._hands_on(node):
                self._unite([*node.inputs, *node.outputs])
        for rule in self.rules.values():
            if rule.ties_uses and not rule.reason:
                tensors = ((*x.inputs, *x.outputs) for x in rule.uses)
                for tied in zip(*tensors, strict=True):
                    self._unite(tied)
        self._obstacles: dict[GraphTensor, str | None] = {}

    def find(self) -> list[Stream]:
        makers: dict[GraphTensor, dict[int, Node]] = {}
        for node in self.graph.nodes:
            if _has_kernel(node.operation) and node.outputs:
                root = self._root_of(node.outputs[0])
                makers.setdefault(root, {})[id(node.operation)] = node
        return [
            self._stream(root, list(x.values())) for root, x in makers.items()
        ]

    def _stream(self, root: GraphTensor, makers: list[Node]) -> Stream:
        units = makers[0].outputs[0].width
        reason, edges = self._obstacle(root), list[_Edge]()
        if reason is None:
            edges = self._edges(root)
            reason = self._misplaced(edges, units)
        return Stream(
            [node.operation for node in makers],
            units,
            [] if reason else _reads(edges),
            reason or self._unabsorbed(edges, units),
        )

    def _rule_of(self, node: Node) -> Rule:
        return self.rules[id(node.operation)]

    def _root_of(self, tensor: GraphTensor) -> GraphTensor:
        while self.root[tensor] is not tensor:
            tensor = self.root[tensor]
        return tensor

    def _unite(self, tensors: Any) -> None:
        first, *others = map(self._root_of, tensors)
        for other in others:
            self.root[other] = first

    def _tensors(self, root: GraphTensor) -> list[GraphTensor]:
        return [x for x in self.graph.tensors if self._root_of(x) is root]

    def _hands_on(self, node: Node) -> bool:
        """Tell whether what a node makes are the channels that it reads."""
        rule = self._rule_of(node)
        widths = {x.width for x in (*node.inputs, *node.outputs)}
        is_same = len(widths) == 1 or isinstance(rule, ReshapeRule)
        return not rule.reason and rule.hands_on and is_same

    def _obstacle(self, root: GraphTensor) -> str | None:
        """Return why channels of a stream cannot go one by one."""
        if root not in self._obstacles:
            # Layers that are used several times may lead back to the stream.
            self._obstacles[root] = None
            self._obstacles[root] = self._find_obstacle(root)
        return self._obstacles[root]

    def _find_obstacle(self, root: GraphTensor) -> str | None:
        tensors = self._tensors(root)
        if any(x in self.graph.outputs for x in tensors):
            return "the model returns them"
        if any(x in self.graph.inputs for x in tensors):
            return "inputs of the model are added to them, or multiplied"
        for node in self.graph.nodes:
            makes = any(x in tensors for x in node.outputs)
            reason = self._why_not_made(node) if makes else None
            for tensor in tensors if reason is None else ():
                reason = reason or self._why_not_lost(node, tensor)
            if reason:
                return f"'{node.operation.name}' needs all of them: {reason}"
        if all(self._hands_on(x) for t in tensors for x in self._readers(t)):
            return "nothing reads them"
        return None

    def _readers(self, tensor: GraphTensor) -> list[Node]:
        return self.readers.get(tensor, [])

    def _why_not_made(self, node: Node) -> str | None:
        """Return why a node must make all of its outputs, by trying."""
        rule = self._rule_of(node)
        if rule.reason or rule.hands_on:
            return rule.reason
        rule = _untouched(rule)
        for use in rule.uses:
            for tensor in use.outputs:
                tensor.keep[0] = True
        _ask(rule)
        (first, *_) = node.outputs
        is_free = first.width > 1 and not first.keep[1:].any()
        reason = rule.outputs_reason or "its units depend on each other"
        if first.width == 1:
            reason = "there is only one"
        _reset(rule)
        return None if is_free else reason

    def _why_not_lost(self, node: Node, tensor: GraphTensor) -> str | None:
        """Return why a node must read a tensor's channel that is 0.

        None if it does not, or does not read the tensor.
        """
        if tensor in node.others:
            return "it reads them as a mask or state"
        if tensor not in node.inputs or self._hands_on(node):
            return None
        rule = self._rule_of(node)
        if rule.reason:
            return rule.reason
        if isinstance(rule, ConcatenateRule):
            return self._obstacle(self._root_of(node.outputs[0]))
        position = node.inputs.index(tensor)
        rule = _untouched(rule)
        for use in rule.uses:
            for one in use.outputs:
                one.keep[:] = True
            use.inputs[position].constant[0] = 0.0
        _ask(rule)
        is_read = tensor.keep[0]
        _reset(rule)
        return "it depends on all channels" if is_read else None

    def _edges(self, root: GraphTensor) -> list[_Edge]:
        """List what is to read a gate's output: layers that mix channels."""
        edges = {
            (tensor, node): None
            for tensor in self._tensors(root)
            for node in self._readers(tensor)
            if not self._hands_on(node)
        }
        for node in reversed(self.graph.nodes):
            made = [
                (x, reader) for x in node.outputs for reader in self._readers(x)
            ]
            is_free = made and all(edge in edges for edge in made)
            if is_free and self._comes_after_gates(node):
                for edge in made:
                    del edges[edge]
                edges[node.inputs[0], node] = None
        return list(edges)

    def _comes_after_gates(self, node: Node) -> bool:
        rule = self._rule_of(node)
        if not isinstance(rule, _AFTER_GATES) or not self._hands_on(node):
            return False
        shape = node.inputs[0].shape[1:]
        return rule.passed_on(rule.layer, _ones(shape), shape) is not None

    def _misplaced(self, edges: list[_Edge], units: int) -> str | None:
        for tensor, node in edges:
            if node.path:
                return f"'{node.path[0]}' is a model that cannot be taken apart"
            if tensor.width != units:
                return f"'{node.operation.name}' reads them in another shape"
        if len({len(tensor.shape) for tensor, _ in edges}) > 1:
            return "they are read from tensors of several numbers of axes"
        return None

    def _unabsorbed(self, edges: list[_Edge], units: int) -> str | None:
        """Return which layer's weights cannot take in factors of a gate."""
        found = []
        for symbolic, call in _reads(edges):
            factors = _ones((*symbolic.shape[1:-1], units))
            targets = self.folding.targets(symbolic, factors, [call])
            if targets is None:
                return (
                    f"no weights take in a factor past '{call.operation.name}'"
                )
            found.append(targets)
        if merge(found, self.uses) is None:
            return "a layer that reads them is used for other inputs, too"
        return None


def _ones(shape: tuple[Any, ...]) -> np.ndarray:
    """Return factors that depend on the channel only."""
    return np.ones((*[1] * (len(shape) - 1), shape[-1]))


def _reads(edges: list[_Edge]) -> list[tuple[Any, Call]]:
    """Return the symbolic tensors and the calls that edges stand for."""
    found = {}
    for tensor, node in edges:
        call = node.call
        for one, symbolic in zip(
            keras.tree.flatten((node.args, node.kwargs)),
            keras.tree.flatten((call.args, call.kwargs)),
            strict=True,
        ):
            if one is tensor:
                found[id(symbolic), id(call.outputs[0])] = symbolic, call
    return list(found.values())


def _has_kernel(operation: Any) -> bool:
    """Tell whether a layer, or one in it, has a variational form."""
    return isinstance(operation, keras.layers.Layer) and any(
        isinstance(x, VariationalLayer)
        or computing_class(type(x)) in COUNTERPARTS
        for x in flatten_layers(operation)
    )


def _untouched(rule: Rule) -> Rule:
    """Return the rule of a layer that has not been asked anything yet."""
    return type(rule)(rule.layer, rule.uses)


def _ask(rule: Rule) -> None:
    for use in rule.uses:
        rule.require(use)
    rule.settle()
    for use in rule.uses:
        rule.require(use)


def _reset(rule: Rule) -> None:
    for use in rule.uses:
        for tensor in (*use.inputs, *use.outputs):
            tensor.keep[:] = False
            tensor.constant[:] = np.nan
