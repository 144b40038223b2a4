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
    flatten_layers,
    graph_calls,
)
from keras_vd.conversion.folding import FoldingGraph, count_uses, merge
from keras_vd.layers.base import VariationalLayer, variational_form
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

    A stream is named by one of its tensors, its root.

    Attributes:
        graph: The model.
        rules: The rule of each layer or operation, by its `id`.
        reads: The tensors that each node reads as data.
        readers: The nodes that read a tensor as data.
        members: The tensors of each stream.
        nodes: The nodes that read or make tensors of each stream, in order.
    """

    def __init__(self, functional: keras.Model) -> None:
        self.graph: Graph = read_graph(functional)
        self.rules = find_rules(self.graph)
        self.folding = FoldingGraph(functional, graph_calls(functional))
        self.uses = count_uses(functional, [self.folding])
        self.reads = {node: node.inputs for node in self.graph.nodes}
        self.readers: dict[GraphTensor, list[Node]] = {}
        self._parents = {tensor: tensor for tensor in self.graph.tensors}
        for node, read in self.reads.items():
            for tensor in dict.fromkeys(read):
                self.readers.setdefault(tensor, []).append(node)
        self._handing_on = {x for x in self.graph.nodes if self._hands_on(x)}
        for node in self._handing_on:
            self._unite([*self.reads[node], *node.outputs])
        for rule in self.rules.values():
            if rule.ties_uses and not rule.reason:
                tensors = ((*self.reads[x], *x.outputs) for x in rule.uses)
                for tied in zip(*tensors, strict=True):
                    self._unite(tied)
        self.members: dict[GraphTensor, list[GraphTensor]] = {}
        for tensor in self.graph.tensors:
            self.members.setdefault(self._root_of(tensor), []).append(tensor)
        self.nodes: dict[GraphTensor, list[Node]] = {}
        for node, read in self.reads.items():
            near = (*read, *node.others, *node.outputs)
            for root in dict.fromkeys(map(self._root_of, near)):
                self.nodes.setdefault(root, []).append(node)
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
        if reason is None:
            reason = self._unabsorbed(edges, units)
        return Stream(
            [node.operation for node in makers],
            units,
            [] if reason else _symbolic(edges),
            reason,
        )

    def _rule_of(self, node: Node) -> Rule:
        return self.rules[id(node.operation)]

    def _root_of(self, tensor: GraphTensor) -> GraphTensor:
        while self._parents[tensor] is not tensor:
            tensor = self._parents[tensor]
        return tensor

    def _unite(self, tensors: Any) -> None:
        first, *others = map(self._root_of, tensors)
        for other in others:
            self._parents[other] = first

    def _hands_on(self, node: Node) -> bool:
        """Tell whether what a node makes are the channels that it reads."""
        rule = self._rule_of(node)
        widths = {x.width for x in (*self.reads[node], *node.outputs)}
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
        members = self.members[root]
        if any(x in self.graph.outputs for x in members):
            return "the model returns them"
        if any(x in self.graph.inputs for x in members):
            return "inputs of the model are added to them, or multiplied"
        for node in self.nodes[root]:
            reason = None
            if any(self._root_of(x) is root for x in node.outputs):
                reason = self._why_not_made(node)
            if any(self._root_of(x) is root for x in node.others):
                reason = "it reads them as a mask or state"
            for position, tensor in enumerate(self.reads[node]):
                if reason is None and self._root_of(tensor) is root:
                    reason = self._why_not_lost(node, position)
            if reason:
                return f"'{node.operation.name}' needs all of them: {reason}"
        if not self._mixing(root):
            return "nothing reads them"
        return None

    def _mixing(self, root: GraphTensor) -> list[_Edge]:
        """List the tensors of a stream, with the nodes that mix channels."""
        return [
            (tensor, node)
            for tensor in self.members[root]
            for node in self.readers.get(tensor, ())
            if node not in self._handing_on
        ]

    def _why_not_made(self, node: Node) -> str | None:
        """Return why a node must make all of its outputs, by trying."""
        rule = self._rule_of(node)
        if rule.reason:
            return rule.reason
        if node in self._handing_on or isinstance(rule, ConcatenateRule):
            return None
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

    def _why_not_lost(self, node: Node, position: int) -> str | None:
        """Return why a node needs a channel that is 0 in one of its inputs."""
        rule = self._rule_of(node)
        if rule.reason:
            return rule.reason
        if node in self._handing_on:
            return None
        if isinstance(rule, ConcatenateRule):
            return self._obstacle(self._root_of(node.outputs[0]))
        rule = _untouched(rule)
        for use in rule.uses:
            for one in use.outputs:
                one.keep[:] = True
            self.reads[use][position].constant[0] = 0.0
        _ask(rule)
        is_read = self.reads[node][position].keep[0]
        _reset(rule)
        return "it depends on all channels" if is_read else None

    def _edges(self, root: GraphTensor) -> list[_Edge]:
        """List what is to read a gate's output: layers that mix channels."""
        edges = dict.fromkeys(self._mixing(root))
        for node in reversed(self.nodes[root]):
            if node not in self._handing_on:
                continue
            (made, *_) = node.outputs
            readers = [(made, x) for x in self.readers.get(made, ())]
            is_free = readers and all(edge in edges for edge in readers)
            if is_free and self._comes_after_gates(node):
                for edge in readers:
                    del edges[edge]
                edges[self.reads[node][0], node] = None
        return list(edges)

    def _comes_after_gates(self, node: Node) -> bool:
        rule = self._rule_of(node)
        shape = self.reads[node][0].shape[1:]
        return (
            isinstance(rule, _AFTER_GATES)
            and rule.passed_on(rule.layer, _ones(shape), shape) is not None
        )

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
        for symbolic, call in _symbolic(edges):
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


def _symbolic(edges: list[_Edge]) -> list[tuple[Any, Call]]:
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
        isinstance(x, VariationalLayer) or variational_form(x) is not None
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
