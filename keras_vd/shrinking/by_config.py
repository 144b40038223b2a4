"""Shrink layers that have no rule by the numbers in their configs.

A block of a Transformer, say, may read the length of its inputs, so that it
cannot be written out. It can still be rebuilt with fewer hidden units or heads.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_vd._backend.keras_internals import computing_class, flatten_layers
from keras_vd._backend.names import Names
from keras_vd.conversion.cloning import Cloner, copy_trainable
from keras_vd.rules.graph import Node
from keras_vd.rules.rule import Rule, why_unknown
from keras_vd.shrinking.analysis import Plan
from keras_vd.shrinking.searching import (
    may_have_dead_units,
    smaller_config,
)
from keras_vd.shrinking.trials import Arguments, Config, StaysWholeError


class ResizedRule(Rule):
    """A layer without a rule that is rebuilt with smaller numbers.

    Attributes:
        smaller: The new config, and the new weights.
    """

    is_reduced = True

    def __init__(
        self,
        layer: Any,
        uses: list[Node],
        smaller: tuple[Config, list[np.ndarray]],
    ) -> None:
        super().__init__(layer, uses)
        self.smaller = smaller

    def shrunk(self) -> tuple[Config, list[np.ndarray]]:
        return self.smaller

    def call(
        self, layer: Any, args: tuple[Any, ...], kwargs: Any, names: Names
    ) -> Any:
        made = super().call(layer, args, kwargs, names)
        copy_trainable(_paired(self.layer, layer))
        return made


def resize_unknown(plan: Plan) -> None:
    """Replace rules of unknown layers that can be rebuilt with fewer units.

    Where something in such a layer is zero that cannot go, its reason says
    so.
    """
    for key, rule in plan.rules.items():
        is_gone = all(node.is_gone for node in rule.uses)
        is_unknown = rule.reason == why_unknown(rule.layer)
        if is_gone or not (is_unknown and hasattr(rule.layer, "weights")):
            continue
        if not may_have_dead_units(rule.layer):
            continue
        calls = [(node.args, node.kwargs) for node in rule.uses]
        try:
            kind = computing_class(type(rule.layer))
            found = smaller_config(rule.layer, kind, calls, plan.round_to)
            plan.rules[key] = ResizedRule(rule.layer, rule.uses, found)
        except StaysWholeError as error:
            rule.reason = f"{rule.reason}, and {error}"


def resized(
    model: keras.Model, round_to: int
) -> tuple[keras.Model, dict[int, Any]]:
    """Rebuild a model with smaller numbers in its own config.

    Returns:
        The model, and its layers by the `id` of the layer that each replaces.

    Raises:
        StaysWholeError: if no number can be smaller.
    """
    if not may_have_dead_units(model):
        raise StaysWholeError("none of its kernels has units of zeros")
    calls: list[Arguments] = [((model.input,), {})]
    kind = type(model)
    config, weights = smaller_config(model, kind, calls, round_to)
    made: keras.Model = Cloner(model).make(kind, config, model, model.name)
    made.set_weights(weights)
    pairs = _paired(model, made)
    copy_trainable(pairs)
    return made, {id(old): new for old, new in pairs}


def _paired(old: Any, new: Any) -> list[tuple[Any, Any]]:
    return list(zip(flatten_layers(old), flatten_layers(new), strict=True))
