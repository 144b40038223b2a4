"""Layers that normalize over channels: what of these they can do without."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_vd.rules.channelwise import axis_refusal, by_axis, layers_named
from keras_vd.rules.graph import Node
from keras_vd.rules.rule import Rule, join, rule_for, to_numpy


class NormalizingRule(Rule):
    """A layer that reads all channels, with a gain and an offset for each."""

    @classmethod
    def channels_first(
        cls, layer: Any, node: Node
    ) -> tuple[bool | None, bool | None]:
        return by_axis(_axes(layer)[0], node)

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        if len(_axes(layer)) > 1:
            return "it normalizes over several axes"
        refusal = axis_refusal(_axes(layer)[0], node)
        return refusal or super().refusal(layer, node)

    @property
    def gain(self) -> np.ndarray:
        """Factor of each channel, `(width,)`."""
        if not self.layer.scale:
            return np.ones(self.input.width)
        return to_numpy(self.layer.gamma)

    @property
    def offset(self) -> np.ndarray:
        """What is added to each channel, `(width,)`."""
        if not self.layer.center:
            return np.zeros(self.input.width)
        return to_numpy(self.layer.beta)

    def find_constants(self, node: Node) -> None:
        # Whatever a gain of zero is multiplied by, it is the offset.
        is_fixed = self.gain == 0.0
        node.outputs[0].constant = np.where(is_fixed, self.offset, np.nan)


def _axes(layer: Any) -> list[int]:
    return list(layer.axis) if np.ndim(layer.axis) else [layer.axis]


@rule_for(keras.layers.GroupNormalization)
class GroupNormalizationRule(NormalizingRule):
    """Groups of channels, each normalized by itself; they go as a whole."""

    def require(self, node: Node) -> None:
        (inputs,), (outputs,) = node.inputs, node.outputs
        size = inputs.width // self.layer.groups
        kept = (inputs.keep | outputs.keep).reshape(-1, size).any(axis=1)
        for tensor in (inputs, outputs):
            tensor.keep |= np.repeat(kept, size)

    def shrunk(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        keep = self.input.keep
        weights = [to_numpy(x)[keep] for x in self.layer.weights]
        size = self.input.width // self.layer.groups
        groups = int(np.count_nonzero(keep)) // size
        return {**self.config, "groups": groups}, weights


@rule_for(*layers_named("RMSNormalization"))
class RMSNormalizationRule(NormalizingRule):
    """Division by the root of the mean square, which zeros do not change.

    With `d` of `D` channels left, the mean of the squares is `D / d` times
    what it was. So are, in the new layer, epsilon and the square of the gain.
    """

    @property
    def gain(self) -> np.ndarray:
        return to_numpy(self.layer.scale)

    @property
    def offset(self) -> np.ndarray:
        return np.zeros(self.input.width)

    def find_constants(self, node: Node) -> None:
        super().find_constants(node)
        is_zero = self.constants_of(node.inputs[0]) == 0.0
        (outputs,) = node.outputs
        outputs.constant = np.where(is_zero, 0.0, outputs.constant)

    def require(self, node: Node) -> None:
        (inputs,) = node.inputs
        if not node.is_gone:
            inputs.keep |= self.constants_of(inputs) != 0.0
        join((inputs, *node.outputs))

    def shrunk(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        keep = self.input.keep
        ratio = keep.size / np.count_nonzero(keep)
        config = {**self.config, "epsilon": self.layer.epsilon * ratio}
        return config, [self.gain[keep] * np.sqrt(ratio)]


@rule_for(keras.layers.LayerNormalization)
class LayerNormalizationRule(NormalizingRule):
    """A layer that needs all of its inputs, and no reader of its dead outputs.

    It makes them all the same; the others can be picked out behind it.
    """

    outputs_reason = "it normalizes over all of its channels"
    can_gather_outputs = True

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        if getattr(layer, "rms_scaling", False):
            return "its argument `rms_scaling` is set"
        return super().refusal(layer, node)
