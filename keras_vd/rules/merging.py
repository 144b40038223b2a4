"""Layers that join tensors, or that rearrange the channels of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_vd._backend.keras_internals import (
    MOVING_OPERATIONS,
    computing_class,
)
from keras_vd._backend.names import Names
from keras_vd.rules.channelwise import OnAnyAxis
from keras_vd.rules.factors import along
from keras_vd.rules.graph import GraphTensor, Node
from keras_vd.rules.rule import Rule, join, rule_for


class MergeRule(OnAnyAxis, Rule):
    """Tensors of the same channels, combined channel by channel."""

    ties_uses = False
    hands_on = True

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        tensors = (*node.inputs, *node.outputs)
        if len(node.inputs) < 2 or len(node.outputs) > 1:
            return "it is called in an unusual way"
        if len({len(tensor.shape) for tensor in tensors}) > 1:
            return "its inputs have different numbers of axes"
        if len({tensor.shape[tensor.axis] for tensor in tensors}) > 1:
            return "its inputs have different numbers of channels"
        return None

    def find_constants(self, node: Node) -> None:
        constants = np.stack([self.constants_of(x) for x in node.inputs])
        node.outputs[0].constant = self._combined(constants)

    def _combined(self, constants: np.ndarray) -> np.ndarray:
        """Compute the constants of the output, `(width,)`.

        Args:
            constants: `(tensors, width)`: those of the inputs.
        """
        return FUNCTIONS[computing_class(type(self.layer))](constants)

    def require(self, node: Node) -> None:
        join((*node.inputs, *node.outputs))

    def call(
        self, layer: Any, args: tuple[Any, ...], kwargs: Any, names: Names
    ) -> Any:
        # An input of which nothing is left has no tensor any more.
        if isinstance(args[0], (list, tuple)):
            args = ([x for x in args[0] if x is not None], *args[1:])
        return super().call(layer, args, kwargs, names)


def _product(constants: np.ndarray) -> np.ndarray:
    # Zero in one input makes the product zero, even where another input is not
    # constant.
    has_zero = (constants == 0.0).any(axis=0)
    return np.where(has_zero, 0.0, constants.prod(axis=0))


# NaN stands for what is not constant; all of these return NaN where an input is
# NaN, except a product with zero.
FUNCTIONS: dict[type, Callable[[np.ndarray], np.ndarray]] = {
    keras.layers.Add: lambda x: x.sum(axis=0),
    keras.layers.Subtract: lambda x: x[0] - x[1],
    keras.layers.Average: lambda x: x.mean(axis=0),
    keras.layers.Maximum: lambda x: x.max(axis=0),
    keras.layers.Minimum: lambda x: x.min(axis=0),
    keras.layers.Multiply: _product,
}
rule_for(*FUNCTIONS)(MergeRule)


@rule_for(keras.layers.Multiply, keras.layers.Maximum, keras.layers.Minimum)
class MaskedMergeRule(MergeRule):
    """A function that leaves out the steps that an input's mask leaves out.

    Which steps these are is not known, so the result is constant only where it
    is the same whichever steps are left out.
    """

    def find_constants(self, node: Node) -> None:
        super().find_constants(node)
        if not any(x.may_be_masked for x in node.inputs):
            return
        constants = np.stack([self.constants_of(x) for x in node.inputs])
        is_certain = (constants == constants[0]).all(axis=0)
        if isinstance(self.layer, keras.layers.Multiply):
            # Keras puts ones in place of what a mask leaves out, and zeros
            # where all inputs leave a step out.
            is_certain &= constants[0] == 0.0
            for tensor, values in zip(node.inputs, constants, strict=True):
                if not tensor.may_be_masked:
                    is_certain |= values == 0.0
        found = node.outputs[0].constant
        node.outputs[0].constant = np.where(is_certain, found, np.nan)


@rule_for(keras.layers.Add)
class AddRule(MergeRule):
    """A sum, from which a branch that is all zero can be left out."""

    def _skipped(self, node: Node) -> list[GraphTensor]:
        """List inputs of zeros, unless the output needs their shape or mask."""
        zero = [x for x in node.inputs if (self.constants_of(x) == 0.0).all()]
        rest = [x for x in node.inputs if x not in zero]
        is_shaped = any(x.shape == node.outputs[0].shape for x in rest)
        return zero if is_shaped and _keeps_mask(node, rest) else []

    def require(self, node: Node) -> None:
        skipped = self._skipped(node)
        join((*(x for x in node.inputs if x not in skipped), *node.outputs))
        # If another layer needs one of them, the sum reads them all as before.
        if any(x.keep.any() for x in skipped):
            super().require(node)

    def can_do_without(self, node: Node, tensor: GraphTensor) -> bool:
        return node.is_gone or tensor in self._skipped(node)


def _keeps_mask(node: Node, rest: list[GraphTensor]) -> bool:
    """Tell whether some of a merge's inputs give the same mask as all of them.

    A sum or concatenation leaves out only the steps that the masks of all its
    inputs leave out; an input without a mask leaves out none.
    """
    if not any(x.may_be_masked for x in node.inputs):
        return True
    # Which layers in a nested model get a mask is not certain.
    if node.path:
        return False
    if not all(x.may_be_masked for x in rest):
        return True
    return all(x.mask is node.inputs[0].mask for x in node.inputs)


@rule_for(keras.layers.Concatenate, MOVING_OPERATIONS["Concatenate"])
class ConcatenateRule(MergeRule):
    """Tensors side by side, along the channels or along another axis."""

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        if not all(x.has_channels for x in (*node.inputs, *node.outputs)):
            return "the number of its channels is not known"
        joined = keras.tree.flatten(node.args[0])
        if not all(isinstance(x, GraphTensor) for x in joined):
            return "it joins a tensor with numbers"
        return None

    @classmethod
    def joined(
        cls,
        layer: Any,
        factors: list[np.ndarray | None],
        shapes: list[tuple[Any, ...]],
    ) -> np.ndarray | None:
        """Return the factors of the outputs, from those of each input.

        Args:
            layer: The layer.
            factors: Of each input, as in `passed_on`; None for an input that
                has none.
            shapes: Shape of one example of each input.

        Returns:
            An array that broadcasts to one example of the outputs; None if
            the factors depend on more than the channel, or if the channels are
            not what is joined.
        """
        rank = len(shapes[0]) + 1
        if layer.axis % rank != rank - 1:
            return None
        parts = []
        for one, shape in zip(factors, shapes, strict=True):
            part = np.ones(shape[-1]) if one is None else along(one, -1)
            if part is None or part.size != shape[-1]:
                return None
            parts.append(part)
        return np.concatenate(parts).reshape(*[1] * (rank - 2), -1)

    def joins_channels(self, node: Node) -> bool:
        """Tell whether a use puts channels side by side."""
        (outputs,) = node.outputs
        return (self.layer.axis - outputs.axis) % len(outputs.shape) == 0

    def find_constants(self, node: Node) -> None:
        if self.joins_channels(node):
            node.outputs[0].constant = np.concatenate(
                [self.constants_of(x) for x in node.inputs]
            )
        else:
            super().find_constants(node)

    def _combined(self, constants: np.ndarray) -> np.ndarray:
        is_same = (constants == constants[0]).all(axis=0)
        return np.where(is_same, constants[0], np.nan)

    def can_do_without(self, node: Node, tensor: GraphTensor) -> bool:
        if node.is_gone:
            return True
        rest = [x for x in node.inputs if x.keep.any()]
        return self.joins_channels(node) and _keeps_mask(node, rest)

    def require(self, node: Node) -> None:
        if not self.joins_channels(node):
            super().require(node)
            return
        (outputs,) = node.outputs
        for tensor, part in zip(node.inputs, self._parts(node), strict=True):
            tensor.keep |= outputs.keep[part]
            outputs.keep[part] |= tensor.keep

    def _parts(self, node: Node) -> list[slice]:
        """Return where the channels of each input are in the output."""
        ends = np.cumsum([tensor.width for tensor in node.inputs])
        return [
            slice(end - tensor.width, end)
            for tensor, end in zip(node.inputs, ends, strict=True)
        ]


@rule_for(keras.layers.Reshape)
class ReshapeRule(Rule):
    """A new shape for the same entries in the same order.

    As the last axis runs fastest, entry `j` of a last axis of size `m * width`
    is channel `j % width` of a last axis of size `width`, whatever the other
    axes are. So both sides keep the same channels, `m` times on one of them.
    """

    works_per_step = True
    hands_on = True

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        refusal = super().refusal(layer, node)
        if refusal is not None:
            return refusal
        tensors = (*node.inputs, *node.outputs)
        if not all(x.has_channels for x in tensors):
            return "the number of its channels is not known"
        narrow, wide = sorted(x.width for x in tensors)
        return "it mixes channels" if not narrow or wide % narrow else None

    @classmethod
    def passed_on(
        cls, layer: Any, factors: np.ndarray, shape: tuple[Any, ...]
    ) -> np.ndarray | None:
        if None in shape:
            return None
        target = layer.compute_output_shape((1, *shape))[1:]
        return np.broadcast_to(factors, shape).reshape(target)

    def find_constants(self, node: Node) -> None:
        constants = self.constants_of(node.inputs[0])
        width = node.outputs[0].width
        if width >= constants.size:
            constants = np.resize(constants, width)
        else:
            rows = constants.reshape(-1, width)
            is_same = (rows == rows[0]).all(axis=0)
            constants = np.where(is_same, rows[0], np.nan)
        node.outputs[0].constant = constants

    def require(self, node: Node) -> None:
        tensors = (node.inputs[0], node.outputs[0])
        width = min(tensor.width for tensor in tensors)
        rows = [tensor.keep.reshape(-1, width) for tensor in tensors]
        keep = np.logical_or.reduce(np.concatenate(rows))
        for tensor in tensors:
            tensor.keep |= np.resize(keep, tensor.width)

    def shrunk(self) -> tuple[dict[str, Any], list[np.ndarray]] | None:
        width = int(np.count_nonzero(self.output.keep))
        *sizes, _ = self.config["target_shape"]
        return {**self.config, "target_shape": (*sizes, width)}, []


@rule_for(keras.layers.Flatten)
class FlattenRule(ReshapeRule):
    """One axis for all entries of an example.

    Keras puts channels last before it flattens with
    `data_format="channels_first"`. Without, they vary slowest if they come
    first.
    """

    ties_uses = False

    @classmethod
    def channels_first(
        cls, layer: Any, node: Node
    ) -> tuple[bool | None, bool | None]:
        first = layer.data_format == "channels_first"
        return first or None, False

    @classmethod
    def passed_on(
        cls, layer: Any, factors: np.ndarray, shape: tuple[Any, ...]
    ) -> np.ndarray | None:
        if layer.data_format == "channels_first" and len(shape) > 1:
            return None
        return super().passed_on(layer, factors, shape)

    def spread(self, node: Node, channels: np.ndarray) -> np.ndarray:
        """Return for each entry of the output what is said of its channel."""
        width = node.outputs[0].width
        if not self._varies_slowest(node):
            return np.resize(channels, width)
        return np.repeat(channels, width // max(1, channels.size))

    def channels_of(self, node: Node, entries: np.ndarray) -> np.ndarray:
        """Return which channels any of these entries of the output are of."""
        (inputs,) = node.inputs
        if not self._varies_slowest(node):
            rows = entries.reshape(-1, inputs.width).T
        else:
            rows = entries.reshape(inputs.width, -1)
        return np.asarray(rows.any(axis=1))

    def _varies_slowest(self, node: Node) -> bool:
        is_moved = self.layer.data_format == "channels_first"
        return node.inputs[0].axis != -1 and not is_moved

    def find_constants(self, node: Node) -> None:
        constants = self.constants_of(node.inputs[0])
        node.outputs[0].constant = self.spread(node, constants)

    def require(self, node: Node) -> None:
        (inputs,), (outputs,) = node.inputs, node.outputs
        inputs.keep |= self.channels_of(node, outputs.keep)
        outputs.keep |= self.spread(node, inputs.keep)

    def shrunk(self) -> None:
        return None
