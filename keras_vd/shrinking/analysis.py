"""Find what a model can do without.

Constants are found going forwards through the graph, and what is needed for the
outputs is found going backwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import keras
import numpy as np

from keras_vd._backend.keras_internals import refuses_unread_inputs
from keras_vd.rules.finding import find_rules
from keras_vd.rules.graph import Graph, GraphTensor, Node
from keras_vd.rules.rule import Rule, join


@dataclasses.dataclass(eq=False)
class Plan:
    """A graph in which every tensor knows what it keeps.

    Attributes:
        graph: The graph.
        rules: The rule of each layer or operation, by its id, in the order of
            first use.
        gathered: Tensors from which the kept channels are picked out by their
            positions: inputs of the model, with the value None, and outputs of
            a Flatten, with the tensor that it flattens as the value.
        keeps_layers: Whether something of every tensor stays, so that no layer
            goes.
    """

    graph: Graph
    rules: dict[int, Rule]
    gathered: dict[GraphTensor, GraphTensor | None]
    keeps_layers: bool = False

    def rule_of(self, node: Node) -> Rule:
        """Return the rule of the layer that a node calls."""
        return self.rules[id(node.operation)]

    def present(self, tensor: GraphTensor) -> np.ndarray:
        """Return which channels of a gathered tensor exist, `(width,)`."""
        flattened = self.gathered[tensor]
        if flattened is None:
            return np.ones(tensor.width, bool)
        return np.resize(flattened.keep, tensor.width)

    @property
    def is_unchanged(self) -> bool:
        """Whether there is nothing to remove."""
        return not any(rule.is_reduced for rule in self.rules.values())


def make_plan(
    graph: Graph,
    gather_inputs: bool | None,
    kept_whole: Mapping[int, str] | None = None,
    keeps_layers: bool = False,
) -> Plan:
    """Find what a model can do without.

    Args:
        graph: The model; `constant` and `keep` of its tensors are set.
        gather_inputs: As in `shrink`.
        kept_whole: Reasons by the `id` of layers that are to be kept whole.
        keeps_layers: Whether all layers stay, with one unit at least.
    """
    plan = Plan(graph, find_rules(graph, kept_whole), {}, keeps_layers)
    if gather_inputs is not False:
        plan.gathered = _gatherable_inputs(graph) | _gatherable_flat(plan)
    _find_constants(plan)
    _settle(plan)
    # Picking out channels costs more than it saves unless half of them go.
    least = 0.5 if gather_inputs is None else 0.0
    dead = {x: np.mean(~x.keep[plan.present(x)]) for x in plan.gathered}
    worth = {k: v for k, v in plan.gathered.items() if 0.0 < dead[k] >= least}
    if len(worth) < len(plan.gathered):
        plan.gathered = worth
        _settle(plan)
    return plan


def _find_constants(plan: Plan) -> None:
    """Find constant channels, until passes over the graph find no more.

    A single pass is not enough: a constant must be one in all uses of a layer,
    some of which may come later.
    """
    before = -1
    while before != (count := _count_constants(plan)):
        before = count
        for node in plan.graph.nodes:
            plan.rule_of(node).find_constants(node)


def _count_constants(plan: Plan) -> int:
    known = (~np.isnan(tensor.constant) for tensor in plan.graph.tensors)
    return sum(int(np.count_nonzero(x)) for x in known)


def _gatherable_inputs(graph: Graph) -> dict[GraphTensor, GraphTensor | None]:
    return {
        tensor: None
        for tensor, layer in zip(graph.inputs, graph.input_layers, strict=True)
        if tensor.has_channels and not (layer.sparse or layer.optional)
    }


def _gatherable_flat(plan: Plan) -> dict[GraphTensor, GraphTensor | None]:
    """Find outputs of Flatten layers from which channels can be picked.

    In such an output a channel may be read at some positions and not at others.
    """
    return {
        node.outputs[0]: node.inputs[0]
        for node in plan.graph.nodes
        if isinstance(node.operation, keras.layers.Flatten)
        and len(plan.rule_of(node).uses) == 1
        and not plan.rule_of(node).reason
    }


def _settle(plan: Plan) -> None:
    """Find the smallest sets of channels that keep the model's outputs right.

    The sets only ever grow: a rule that is asked again adds to them.
    """
    graph = plan.graph
    whole = [
        *graph.outputs,
        *(x for x in graph.inputs if x not in plan.gathered),
    ]
    for node in graph.nodes:
        whole += node.others
    for tensor in whole:
        tensor.keep[:] = True
    _repeat(plan)
    while emptied := _emptied(plan) or _cut_off(plan):
        for tensor in emptied:
            tensor.keep[_cheapest(tensor)] = True
        _repeat(plan)


def _emptied(plan: Plan) -> list[GraphTensor]:
    """Return the last tensor with nothing left that some layer still needs."""
    if plan.keeps_layers:
        tensors = reversed(plan.graph.tensors)
        return [x for x in tensors if not x.keep.any()][:1]
    needed: set[GraphTensor] = set()
    for node in plan.graph.nodes:
        rule = plan.rule_of(node)
        for tensor in node.inputs:
            if not tensor.keep.any() and not rule.can_do_without(node, tensor):
                needed.add(tensor)
        # A node that stays makes all of its outputs, so none may be empty.
        if not node.is_gone:
            needed.update(x for x in node.outputs if not x.keep.any())
    return [x for x in reversed(plan.graph.tensors) if x in needed][:1]


def _cut_off(plan: Plan) -> list[GraphTensor]:
    """Return tensors with nothing left that an input needs to be read at all.

    They lie between the first input of which the outputs know nothing and the
    next tensor of which they do. There are none where Keras lets models have
    inputs that nothing reads.
    """
    if not refuses_unread_inputs():
        return []
    nodes = plan.graph.nodes
    read = set(plan.graph.outputs)
    for node in reversed(nodes):
        if not read.isdisjoint(node.outputs):
            read.update(x for x in _read_by(node) if x.keep.any())
    for unread in plan.graph.inputs:
        if unread in read:
            continue
        before: dict[GraphTensor, GraphTensor | None] = {unread: None}
        for node in nodes:
            tensor = next((x for x in _read_by(node) if x in before), None)
            if tensor is None:
                continue
            if read.isdisjoint(node.outputs):
                before |= {x: tensor for x in node.outputs if x not in before}
                continue
            path = []
            while tensor is not None:
                path.append(tensor)
                tensor = before[tensor]
            return [x for x in path if not x.keep.any()]
    return []


def _read_by(node: Node) -> list[GraphTensor]:
    return [*node.inputs, *node.others]


def _cheapest(tensor: GraphTensor) -> int:
    """Return the index of the channel whose keeping costs least.

    This is a constant one, if there is any, as it needs no inputs.
    """
    return int(np.argmax(~np.isnan(tensor.constant)))


def _repeat(plan: Plan) -> None:
    before = -1
    while before != (count := _count(plan)):
        before = count
        _require(plan)
        for rule in plan.rules.values():
            # Uses of a layer that is kept whole have no sets to share.
            if rule.ties_uses and not rule.reason and len(rule.uses) > 1:
                _tie(rule)
        if _count(plan) == before:
            for rule in plan.rules.values():
                rule.settle()
            _require(plan)


def _require(plan: Plan) -> None:
    for node in reversed(plan.graph.nodes):
        (first, *_) = node.outputs
        flattened = plan.gathered.get(first)
        if flattened is None:
            plan.rule_of(node).require(node)
        else:
            # A channel of the flattened tensor can go if it is read at none
            # of its positions.
            rows = first.keep.reshape(-1, flattened.width)
            flattened.keep |= rows.any(axis=0)


def _tie(rule: Rule) -> None:
    """Keep the same channels in all uses of a layer."""
    for tensors in zip(
        *((*x.inputs, *x.outputs) for x in rule.uses), strict=True
    ):
        join(tensors)


def _count(plan: Plan) -> int:
    return sum(int(np.count_nonzero(x.keep)) for x in plan.graph.tensors)
