"""Operations of `keras.ops`, written between the layers of a model."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import (
    BINARY_OPERATIONS,
    MOVING_OPERATIONS,
    REDUCING_OPERATIONS,
    rename_operation,
)
from keras_vd._backend.names import Names
from keras_vd.rules.channelwise import (
    ChannelwiseRule,
    OnAnyAxis,
    PermuteRule,
    columns,
    per_channel,
)
from keras_vd.rules.graph import GraphTensor, Node
from keras_vd.rules.merging import FUNCTIONS, MergeRule, ReshapeRule
from keras_vd.rules.rule import Rule, finite, rule_for
from keras_vd.rules.sizes import product


def _power(constants: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(constants[0] ** constants[1])


def _quotient(constants: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(constants[0] / constants[1])


_FUNCTIONS = {"Divide": _quotient, "TrueDivide": _quotient, "Power": _power} | {
    name: FUNCTIONS[getattr(keras.layers, name)]
    for name in ("Add", "Subtract", "Multiply", "Maximum", "Minimum")
}


@rule_for(*BINARY_OPERATIONS.values())
class ArithmeticRule(MergeRule):
    """Two tensors, or a tensor and numbers, combined entry by entry.

    Numbers with one column per channel lose those of removed channels.
    """

    def __init__(self, layer: Any, uses: list[Node]) -> None:
        super().__init__(layer, uses)
        # Numbers of their own for each channel are those of all uses.
        self.has_fixed_size = any(np.ndim(x) for x in _numbers(uses[0]))
        self.ties_uses = self.has_fixed_size

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        if len(node.args) != 2 or len(node.outputs) > 1:
            return "it is called in an unusual way"
        numbers = _numbers(node)
        if not numbers:
            return super().refusal(layer, node)
        (tensor,), (output,), (values,) = node.inputs, node.outputs, numbers
        if isinstance(values, keras.Variable):
            return "it reads a variable that no layer has"
        if tensor.shape != output.shape or not tensor.has_channels:
            return "its numbers change the shape"
        if np.ndim(_array(values)) == len(output.shape):
            # The number of examples would have to be theirs.
            is_one = len(_array(values)) == 1
            return None if is_one else "its numbers are a batch"
        return None

    def find_constants(self, node: Node) -> None:
        constants = np.stack(
            [
                self.constants_of(x)
                if isinstance(x, GraphTensor)
                else per_channel(_array(x), node.outputs[0])
                for x in node.args
            ]
        )
        node.outputs[0].constant = finite(self._combined(constants))

    def _combined(self, constants: np.ndarray) -> np.ndarray:
        kinds = {kind: name for name, kind in BINARY_OPERATIONS.items()}
        return _FUNCTIONS[kinds[type(self.layer)]](constants)

    def call(
        self, layer: Any, args: tuple[Any, ...], kwargs: Any, names: Names
    ) -> Any:
        if not self.output.keep.all():
            args = tuple(
                x
                if isinstance(x, keras.KerasTensor) or np.ndim(x) == 0
                else columns(_array(x), self.output)
                for x in args
            )
        return super().call(layer, args, kwargs, names)


def _numbers(node: Node) -> list[Any]:
    return [x for x in node.args if not isinstance(x, GraphTensor)]


def _array(values: Any) -> np.ndarray:
    """Return numbers, or a tensor of a backend, as an array."""
    return np.asarray(ops.convert_to_numpy(values))


def _axes(axis: Any, rank: int) -> set[int]:
    """Return axes of a tensor of some rank, counted from its first one."""
    given = [axis] if isinstance(axis, int) else axis
    return {int(x) % rank for x in given}


@rule_for(*REDUCING_OPERATIONS.values())
class ReducingRule(OnAnyAxis, ChannelwiseRule):
    """A mean, an extreme or a sum along other axes than that of channels."""

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        refusal = super().refusal(layer, node)
        if refusal is not None:
            return refusal
        (inputs,), rank = node.inputs, len(node.inputs[0].shape)
        if layer.axis is None or inputs.axis % rank in _axes(layer.axis, rank):
            return "it mixes channels"
        if getattr(layer, "initial", None) is not None:
            return "it has an initial value"
        return _other_channels(node)

    def find_constants(self, node: Node) -> None:
        super().find_constants(node)
        axis = self.layer.axis
        if type(self.layer) is not REDUCING_OPERATIONS["Sum"]:
            return
        shape = node.inputs[0].shape
        sizes = [shape[i] for i in _axes(axis, len(shape))]
        values = node.outputs[0].constant
        sums = values * (product(sizes) or np.nan)
        node.outputs[0].constant = np.where(values == 0.0, 0.0, sums)


def _other_channels(node: Node) -> str | None:
    """Return a reason if what a node makes has other channels than it reads."""
    tensors = (*node.inputs, *node.outputs)
    if not all(x.has_channels for x in tensors):
        return "the number of its channels is not known"
    if len({x.width for x in tensors}) > 1:
        return "it moves the axis of channels"
    return None


@rule_for(*(MOVING_OPERATIONS[x] for x in ("Copy", "StopGradient")))
class CopyRule(OnAnyAxis, ChannelwiseRule):
    """An operation that does nothing at inference."""


@rule_for(MOVING_OPERATIONS["Cast"])
class CastRule(OnAnyAxis, ChannelwiseRule):
    """Another type, in which a constant is the same if it is a float."""

    def find_constants(self, node: Node) -> None:
        super().find_constants(node)
        if not keras.backend.is_float_dtype(node.outputs[0].dtype):
            node.outputs[0].constant = np.full(node.outputs[0].width, np.nan)


@rule_for(MOVING_OPERATIONS["Transpose"])
class TransposeRule(PermuteRule):
    """The operation that does what the layer does."""

    @classmethod
    def _axes(cls, layer: Any, node: Node) -> tuple[int, ...]:
        rank = len(node.inputs[0].shape)
        if layer.axes is None:
            return tuple(range(rank))[::-1]
        return tuple(axis % rank for axis in layer.axes)

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        return super().refusal(layer, node) or _other_channels(node)


@rule_for(*(MOVING_OPERATIONS[x] for x in ("ExpandDims", "Squeeze")))
class AxisRule(ChannelwiseRule):
    """An axis of size 1 more or less, before that of channels."""

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        refusal = super().refusal(layer, node)
        if refusal is not None:
            return refusal
        # Without `axis`, which ones go depends on the number of channels left.
        rank = max(len(x.shape) for x in (*node.inputs, *node.outputs))
        if layer.axis is None or rank - 1 in _axes(layer.axis, rank):
            return "it moves the axis of channels"
        return _other_channels(node)


@rule_for(MOVING_OPERATIONS["Reshape"])
class NewShapeRule(ReshapeRule):
    """The operation that does what the layer does."""

    has_fixed_size = True

    @classmethod
    def passed_on(
        cls, layer: Any, factors: np.ndarray, shape: tuple[Any, ...]
    ) -> np.ndarray | None:
        return None

    def shrunk(self) -> None:
        return None

    def call(
        self, layer: Any, args: tuple[Any, ...], kwargs: Any, names: Names
    ) -> Any:
        *sizes, last = layer.newshape
        if last != -1:
            last = int(np.count_nonzero(self.output.keep))
        made = ops.reshape(args[0], (*sizes, last))
        rename_operation(made, layer.name)
        return made


@rule_for(MOVING_OPERATIONS["Stack"])
class StackRule(MergeRule):
    """Tensors of the same channels, along a new axis before these."""

    @classmethod
    def channels_first(
        cls, layer: Any, node: Node
    ) -> tuple[bool | None, bool | None]:
        return False, False

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        rank = len(node.outputs[0].shape)
        if layer.axis % rank == rank - 1:
            return "it moves the axis of channels"
        if len(node.inputs) != len(keras.tree.flatten(node.args)):
            return "it joins a tensor with numbers"
        return _other_channels(node)

    def _combined(self, constants: np.ndarray) -> np.ndarray:
        is_same = (constants == constants[0]).all(axis=0)
        return np.where(is_same, constants[0], np.nan)


class PartRule(Rule):
    """An operation whose outputs are ranges of its input's channels."""

    hands_on = True

    def _parts(self, node: Node) -> list[slice]:
        """Return which channels of the input each output has."""
        raise NotImplementedError

    def find_constants(self, node: Node) -> None:
        constants = self.constants_of(node.inputs[0])
        for tensor, part in zip(node.outputs, self._parts(node), strict=True):
            tensor.constant = constants[part]

    def require(self, node: Node) -> None:
        inputs = node.inputs[0]
        for tensor, part in zip(node.outputs, self._parts(node), strict=True):
            inputs.keep[part] |= tensor.keep
            tensor.keep |= inputs.keep[part]


def _indexes(key: Any, rank: int) -> list[Any] | None:
    """Return what is taken along each axis, `None` for a new one.

    None if it is something else than numbers and slices.
    """
    parts = list(key) if isinstance(key, (list, tuple)) else [key]
    known = (int, slice, type(Ellipsis), type(None))
    if not all(isinstance(x, known) for x in parts):
        return None
    if Ellipsis not in parts:
        parts.append(Ellipsis)
    place = parts.index(Ellipsis)
    taken = sum(x is not None and x is not Ellipsis for x in parts)
    parts[place : place + 1] = [slice(None)] * (rank - taken)
    return parts


@rule_for(MOVING_OPERATIONS["GetItem"])
class SliceRule(PartRule):
    """`x[..., start:stop]`, and anything along the other axes."""

    has_fixed_size = True

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        if len(node.args) != 2 or len(node.inputs) != 1:
            return "it is called in an unusual way"
        (tensor,), (output,) = node.inputs, node.outputs
        indexes = _indexes(node.args[1], len(tensor.shape))
        if indexes is None:
            return "its indices are tensors"
        last = indexes[-1]
        if not (tensor.has_channels and output.has_channels):
            return "the number of its channels is not known"
        if not isinstance(last, slice):
            return "it moves the axis of channels"
        if last.step not in (None, 1):
            return "it does not take channels one after the other"
        return None

    def _parts(self, node: Node) -> list[slice]:
        (inputs,) = node.inputs
        last = (_indexes(node.args[1], len(inputs.shape)) or [])[-1]
        return [slice(*last.indices(inputs.width))]

    def call(
        self, layer: Any, args: tuple[Any, ...], kwargs: Any, names: Names
    ) -> Any:
        inputs, key = args
        indexes = _indexes(key, len(inputs.shape)) or []
        (part,) = self._parts(self.uses[0])
        start = int(np.count_nonzero(self.input.keep[: part.start]))
        width = int(np.count_nonzero(self.output.keep))
        if not self.input.keep.all():
            indexes[-1] = slice(start, start + width)
            args = (inputs, tuple(indexes))
        return super().call(layer, args, kwargs, names)


@rule_for(MOVING_OPERATIONS["Split"])
class SplitRule(PartRule):
    """A tensor in parts, along the channels or along another axis."""

    can_omit_outputs = True
    has_fixed_size = True

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        if len(node.args) != 1 or len(node.inputs) != 1:
            return "it is called in an unusual way"
        if not all(x.has_channels for x in (*node.inputs, *node.outputs)):
            return "the number of its channels is not known"
        return None

    def _parts(self, node: Node) -> list[slice]:
        if not self._splits_channels:
            return [slice(None)] * len(node.outputs)
        ends = np.cumsum([tensor.width for tensor in node.outputs])
        return [
            slice(end - tensor.width, end)
            for tensor, end in zip(node.outputs, ends, strict=True)
        ]

    @property
    def _splits_channels(self) -> bool:
        rank = len(self.input.shape)
        return bool(self.layer.axis % rank == rank - 1)

    def call(
        self, layer: Any, args: tuple[Any, ...], kwargs: Any, names: Names
    ) -> Any:
        if not self._splits_channels or self.input.keep.all():
            return super().call(layer, args, kwargs, names)
        widths = [np.count_nonzero(x.keep) for x in self.uses[0].outputs]
        ends = np.cumsum([width for width in widths if width])
        if len(ends) == 1:
            parts = [args[0]]
        else:
            parts = ops.split(args[0], ends[:-1].tolist(), axis=layer.axis)
            rename_operation(parts[0], layer.name)
        made = iter(parts)
        return [next(made) if width else None for width in widths]


@rule_for(MOVING_OPERATIONS["Pad"])
class PadRule(Rule):
    """A number around a tensor, along the channels too.

    Attributes:
        sides: For each axis, how many entries are added before and after.
        value: The number.
    """

    hands_on = True
    has_fixed_size = True

    def __init__(self, layer: Any, uses: list[Node]) -> None:
        super().__init__(layer, uses)
        self.sides = [(int(a), int(b)) for a, b in layer.pad_width]
        self.value = float(_padding_value(uses[0]) or 0.0)

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        if layer.mode != "constant":
            return f"its mode is {layer.mode!r}"
        # Keras pads every axis, or on PyTorch the last one only.
        if len(layer.pad_width) == 1:
            return "it pads all axes alike"
        if not isinstance(_padding_value(node), (int, float, type(None))):
            return "its value is no number"
        if not all(x.has_channels for x in (*node.inputs, *node.outputs)):
            return "the number of its channels is not known"
        return super().refusal(layer, node)

    def sees_borders(self) -> bool:
        return any(map(any, self.sides[:-1]))

    def _inner(self, node: Node) -> slice:
        """Return which channels of the output are those of the input."""
        before, _ = self.sides[-1]
        return slice(before, before + node.inputs[0].width)

    def find_constants(self, node: Node) -> None:
        (inputs,), (outputs,) = node.inputs, node.outputs
        constants = self.constants_of(inputs)
        if self.sees_borders():
            is_same = constants == self.value
            constants = np.where(is_same, constants, np.nan)
        outputs.constant = np.full(outputs.width, self.value)
        outputs.constant[self._inner(node)] = constants

    def require(self, node: Node) -> None:
        (inputs,), (outputs,) = node.inputs, node.outputs
        part = self._inner(node)
        inputs.keep |= outputs.keep[part]
        outputs.keep[part] |= inputs.keep

    def call(
        self, layer: Any, args: tuple[Any, ...], kwargs: Any, names: Names
    ) -> Any:
        keep, part = self.output.keep, self._inner(self.uses[0])
        added = (keep[: part.start], keep[part.stop :])
        before, after = (int(np.count_nonzero(x)) for x in added)
        sides = [*self.sides[:-1], (before, after)]
        if not any(map(any, sides)):
            return args[0]
        made = ops.pad(args[0], sides, constant_values=self.value)
        rename_operation(made, layer.name)
        return made


def _padding_value(node: Node) -> Any:
    return (*node.args[1:], node.kwargs.get("constant_values"))[0]
