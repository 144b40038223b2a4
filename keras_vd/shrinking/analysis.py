"""Find what a model can do without.

Constants are found going forwards through the graph, and what is needed for the
outputs is found going backwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from keras_vd._backend.keras_internals import refuses_unread_inputs
from keras_vd.rules.finding import find_rules
from keras_vd.rules.graph import Graph, GraphTensor, Node
from keras_vd.rules.merging import FlattenRule
from keras_vd.rules.rule import Rule, join
from keras_vd.shrinking.sides import place_channels


@dataclasses.dataclass(eq=False)
class Plan:
    """A graph in which every tensor knows what it keeps.

    Attributes:
        graph: The graph.
        rules: The rule of each layer or operation, by its id, in the order of
            first use.
        gathered: Tensors from which the kept channels are picked out by their
            positions: outputs of a Flatten, with its node as the value, and
            inputs of the model and outputs of layers that stay whole, with the
            value None.
        keeps_layers: Whether something of every tensor stays, so that no layer
            goes.
        round_to: What the widths of layers' outputs are rounded up to
            multiples of.
        filled: How many channels a tensor keeps only to that end.
    """

    graph: Graph
    rules: dict[int, Rule]
    gathered: dict[GraphTensor, Node | None]
    keeps_layers: bool = False
    round_to: int = 1
    filled: dict[GraphTensor, int] = dataclasses.field(default_factory=dict)

    def rule_of(self, node: Node) -> Rule:
        """Return the rule of the layer that a node calls."""
        return self.rules[id(node.operation)]

    def present(self, tensor: GraphTensor) -> np.ndarray:
        """Return which channels of a gathered tensor exist, `(width,)`."""
        node = self.gathered[tensor]
        if node is None:
            return np.ones(tensor.width, bool)
        return self.flattening(node).spread(node, node.inputs[0].keep)

    def flattening(self, node: Node) -> FlattenRule:
        """Return the rule of a Flatten of which entries are picked out."""
        rule = self.rule_of(node)
        assert isinstance(rule, FlattenRule)
        return rule

    @property
    def is_unchanged(self) -> bool:
        """Whether there is nothing to remove."""
        return not any(rule.is_reduced for rule in self.rules.values())


def make_plan(
    graph: Graph,
    gather_inputs: bool | None,
    kept_whole: Mapping[int, str] | None = None,
    keeps_layers: bool = False,
    round_to: int = 1,
) -> Plan:
    """Find what a model can do without.

    Args:
        graph: The model; `constant` and `keep` of its tensors are set.
        gather_inputs: As in `shrink`.
        kept_whole: Reasons by the `id` of layers that are to be kept whole.
        keeps_layers: Whether all layers stay, with one unit at least.
        round_to: As in `shrink`.
    """
    place_channels(graph)
    rules = find_rules(graph, kept_whole)
    for rule in rules.values():
        rule.merges_constants = rule.can_merge_constants and not keeps_layers
    plan = Plan(graph, rules, {}, keeps_layers, round_to)
    if gather_inputs is not False:
        plan.gathered = _gatherable_inputs(graph) | _gatherable_outputs(plan)
    _find_constants(plan)
    _settle(plan)
    # Picking out channels costs more than it saves unless half of them go.
    least = 0.5 if gather_inputs is None else 0.0
    dead = {x: np.mean(~x.keep[plan.present(x)]) for x in plan.gathered}
    worth = {k: v for k, v in plan.gathered.items() if 0.0 < dead[k] >= least}
    if len(worth) < len(plan.gathered):
        plan.gathered = worth
        _settle(plan)
    _round_up(plan)
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


def _gatherable_inputs(graph: Graph) -> dict[GraphTensor, Node | None]:
    return {
        tensor: None
        for tensor, layer in zip(graph.inputs, graph.input_layers, strict=True)
        if tensor.has_channels and not (layer.sparse or layer.optional)
    }


def _gatherable_outputs(plan: Plan) -> dict[GraphTensor, Node | None]:
    """Find outputs from which channels can be picked, as in `Plan.gathered`.

    In that of a Flatten a channel may be read at some positions and not at
    others.
    """
    found: dict[GraphTensor, Node | None] = {}
    for node in plan.graph.nodes:
        rule = plan.rule_of(node)
        if len(rule.uses) == 1 and not rule.reason:
            if isinstance(rule, FlattenRule):
                found[node.outputs[0]] = node
            elif rule.can_gather_outputs:
                found[node.outputs[0]] = None
    return found


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
            _add_channels(tensor, 1)
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
        # Most layers that stay make all of their outputs.
        if not (node.is_gone or rule.can_omit_outputs):
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


def _round_up(plan: Plan) -> None:
    """Round widths up, and note by how much."""
    needed = {tensor: _kept(tensor) for tensor in plan.graph.tensors}
    while found := _uneven(plan):
        _add_channels(*found)
        _repeat(plan)
    plan.filled = {x: _kept(x) - count for x, count in needed.items()}


def _uneven(plan: Plan) -> tuple[GraphTensor, int] | None:
    """Return a tensor to be rounded up, and how many channels that takes.

    Only the layers that make channels of their own count: the others hand on
    the numbers of these, or their sum.
    """
    for node in reversed(plan.graph.nodes):
        tensor, rule = node.outputs[0], plan.rule_of(node)
        missing = min(-_kept(tensor) % plan.round_to, int((~tensor.keep).sum()))
        if missing and not rule.hands_on and not node.is_gone:
            return tensor, missing
    return None


def _add_channels(tensor: GraphTensor, count: int) -> None:
    """Keep some more channels of a tensor, those whose keeping costs least.

    These are constant ones, if there are any, as they need no inputs.
    """
    gone = np.flatnonzero(~tensor.keep)
    order = np.argsort(np.isnan(tensor.constant[gone]), kind="stable")
    tensor.keep[gone[order[:count]]] = True


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
        if first not in plan.gathered:
            plan.rule_of(node).require(node)
        elif plan.gathered[first] is None:
            for tensor in node.inputs:
                tensor.keep |= first.keep.any()
        else:
            # A channel of the flattened tensor can go if it is read at none
            # of its positions.
            read = plan.flattening(node).channels_of(node, first.keep)
            node.inputs[0].keep |= read


def _tie(rule: Rule) -> None:
    """Keep the same channels in all uses of a layer."""
    for tensors in zip(
        *((*x.inputs, *x.outputs) for x in rule.uses), strict=True
    ):
        join(tensors)


def _count(plan: Plan) -> int:
    return sum(map(_kept, plan.graph.tensors))


def _kept(tensor: GraphTensor) -> int:
    return int(np.count_nonzero(tensor.keep))
