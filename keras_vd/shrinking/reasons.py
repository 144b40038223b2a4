"""Explain why layers were kept whole."""

from __future__ import annotations

import keras
import numpy as np

from keras_vd.rules.graph import GraphTensor, Node
from keras_vd.rules.rule import Rule
from keras_vd.shrinking.analysis import Plan


def find_reasons(plan: Plan) -> dict[str, str]:
    """Return why layers kept all of their channels, by their full names.

    These are layers with weights, and all layers whose rule has a reason.
    """
    readers = _readers(plan)
    found = {}
    for rule in plan.rules.values():
        if not isinstance(rule.layer, keras.layers.Layer):
            continue
        reason = rule.reason
        if reason is None and rule.layer.weights and not rule.is_reduced:
            reason = _reason(plan, rule, readers)
        if reason is not None:
            found[full_name(rule)] = reason
    return found


def full_name(rule: Rule) -> str:
    """Return the name of a layer, after those of the models around it."""
    return "/".join((*rule.uses[0].path, rule.layer.name))


def _readers(plan: Plan) -> dict[GraphTensor, list[Node]]:
    readers: dict[GraphTensor, list[Node]] = {}
    for node in plan.graph.nodes:
        for tensor in (*node.inputs, *node.others):
            readers.setdefault(tensor, []).append(node)
    return readers


def _reason(
    plan: Plan, rule: Rule, readers: dict[GraphTensor, list[Node]]
) -> str:
    """Return why a layer with a rule of its own has lost nothing."""
    if rule.outputs_reason is not None:
        return rule.outputs_reason
    is_dead = ~np.isnan(rule.output.constant)
    needed_by = _needed_by(plan, rule.output, readers)
    if rule.output.width == 1:
        return "it has a single output"
    if is_dead.any() and needed_by:
        return needed_by
    if needed_by == "its output is the model's output":
        return f"{needed_by}, and all of its inputs are used"
    return "nothing in it is dead"


def _needed_by(
    plan: Plan, output: GraphTensor, readers: dict[GraphTensor, list[Node]]
) -> str | None:
    """Return what needs all channels of a tensor, looked for downstream."""
    pending, seen = [output], {output}
    while pending:
        tensor = pending.pop(0)
        if tensor in plan.graph.outputs:
            return "its output is the model's output"
        for node in readers.get(tensor, ()):
            rule = plan.rule_of(node)
            if rule.reason is not None or tensor in node.others:
                return f"'{node.operation.name}' needs all of its outputs"
            # Constants of 0 stay constant at the border; NaN marks a channel
            # that is not constant, to which this does not apply.
            constants = np.nan_to_num(tensor.constant)
            is_even = rule.merges_constants or not rule.sees_borders()
            if constants.any() and not is_even:
                return (
                    f"'{node.operation.name}' has {_padding(rule.layer)}, "
                    "where a constant is not the same at the border"
                )
            for made in node.outputs if rule.hands_on else ():
                if made.width == tensor.width and made not in seen:
                    seen.add(made)
                    pending.append(made)
    return None


def _padding(layer: keras.layers.Layer) -> str:
    padding = getattr(layer, "padding", None)
    is_named = padding in ("same", "causal")
    return f"padding={padding!r}" if is_named else "an output past its inputs"
