"""Layers that wrap another layer."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_vd.rules.graph import Node
from keras_vd.rules.rule import Inner, Rule, known_rule, macs_of, rule_for


@rule_for(keras.layers.TimeDistributed)
class TimeDistributedRule(Rule):
    """A layer applied at every step, to which the rule of that layer applies.

    The additional axis of steps comes before the axes that the rule looks at.
    """

    def __init__(self, layer: Any, uses: list[Node]) -> None:
        super().__init__(layer, uses)
        self.inner = _inner_rule(layer)(layer.layer, uses)
        self.ties_uses = self.inner.ties_uses
        self.hands_on = self.inner.hands_on
        self.outputs_reason = self.inner.outputs_reason

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        rule = _inner_rule(layer)
        if rule is None or not rule.works_per_step:
            return f"it repeats an unknown {type(layer.layer).__name__}"
        if any(rule.channels_first(layer.layer, node)):
            return "its channels come first"
        return rule.refusal(layer.layer, node)

    @classmethod
    def macs(cls, layer: Any, node: Node) -> int | None:
        return macs_of(layer.layer, node)

    def sees_borders(self) -> bool:
        return bool(self.inner.sees_borders())

    def find_constants(self, node: Node) -> None:
        self.inner.find_constants(node)

    def require(self, node: Node) -> None:
        self.inner.require(node)

    def shrunk(self) -> tuple[dict[str, Any], list[np.ndarray]] | None:
        inner = self.inner.shrunk()
        if inner is None:
            return None
        wrapped = Inner(self.layer.layer, inner[0])
        return {**self.config, "layer": wrapped}, inner[1]


def _inner_rule(layer: Any) -> Any:
    return known_rule(layer.layer)
