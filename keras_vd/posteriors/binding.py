"""What a posterior knows of the weight that it belongs to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras


@dataclasses.dataclass(frozen=True)
class Axes:
    """What the axes of a weight mean.

    Attributes:
        inputs: Axes that run over input units; may count from the end.
        outputs: Axes that run over output units, likewise.
        conv_groups: Number of groups of a grouped convolution.
        channel: Axis of the layer's inputs that runs over input units.
        is_table: Whether inputs are looked up, one at a time, not summed.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    conv_groups: int = 1
    channel: int = -1
    is_table: bool = False

    def counted_from_start(self, rank: int) -> Axes:
        """Return the same axes of a weight with `rank` axes, none negative."""
        return dataclasses.replace(
            self,
            inputs=tuple(axis % rank for axis in self.inputs),
            outputs=tuple(axis % rank for axis in self.outputs),
        )

    def fan_in(self, shape: Sequence[int]) -> int:
        """Count the weights that add up to one output, as at stride 1.

        Args:
            shape: Shape of the weight, from whose start the axes count.
        """
        if self.is_table:
            return 1
        sizes = [n for i, n in enumerate(shape) if i not in self.outputs]
        return max(1, math.prod(sizes))


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Variables that each multiply a group of a weight's entries.

    Attributes:
        posterior: Their posterior, a `WeightPosterior`.
        expand: Spreads their values, of shape `(groups,)`, over the weight.
    """

    posterior: Any
    expand: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Binding:
    """The weight of a layer, as its posterior refers to it.

    Keras neither tracks nor saves what a dataclass holds, and must not: the
    weight and the groups belong to other layers.

    Attributes:
        weight: Variable whose value is the posterior mean.
        label: Name of the weight in reports and messages.
        axes: What its axes mean.
        groups: The groups that multiply it, by what they are called.
        is_bias: Whether it is a bias: a weight whose input is always 1.
    """

    weight: keras.Variable
    label: str
    axes: Axes
    groups: Mapping[str, Group] = dataclasses.field(default_factory=dict)
    is_bias: bool = False
