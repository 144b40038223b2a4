"""Layers that multiply by a kernel: dense, einsum and convolutions."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import rename_operation
from keras_vd._backend.names import Names
from keras_vd.rules.activations import evaluate_constants, is_elementwise
from keras_vd.rules.channelwise import by_data_format
from keras_vd.rules.factors import Values, along, of_channels, scaled
from keras_vd.rules.graph import Node
from keras_vd.rules.rule import Rule, finite, rule_for, to_numpy
from keras_vd.rules.sizes import macs_at, positions, product


class LinearRule(Rule):
    """`activation(sum over inputs + bias)`, with one kernel.

    What constant inputs add goes into the bias. Where they are not the same to
    the layer at every position, one channel of ones takes their place, the
    kernel of which is the sum of theirs, each times its constant.

    Attributes:
        reads: `(inputs, outputs)`: whether the kernel is not all zero there.
        sums: `(inputs, outputs)`: the kernel summed over its other axes.
        bias: `(outputs,)`, zero where the layer has none.
    """

    works_per_step = True
    can_merge_constants = True

    def __init__(self, layer: Any, uses: list[Node]) -> None:
        super().__init__(layer, uses)
        kernel = self._kernel()
        kernel = kernel.reshape(-1, *kernel.shape[-2:])
        self.reads = (kernel != 0.0).any(axis=0)
        self.sums = kernel.sum(axis=0)
        self.bias = np.zeros(kernel.shape[-1])
        if layer.bias is not None:
            self.bias = to_numpy(layer.bias)
        # A softmax needs all outputs of the layer, but not all of its inputs.
        self.mixes_outputs = not is_elementwise(layer.activation)
        if self.mixes_outputs:
            self.outputs_reason = "its activation mixes channels"

    def _kernel(self) -> np.ndarray:
        """Return the kernel, float64, as `(..., inputs, outputs)`."""
        return to_numpy(self.layer.kernel)

    def _known_inputs(self, node: Node) -> np.ndarray:
        """Return which inputs add a known number to the sum, `(inputs,)`."""
        constants = self.constants_of(node.inputs[0])
        known = ~np.isnan(constants)
        return known & (constants == 0.0) if self.sees_borders() else known

    def _mergeable_inputs(self, node: Node) -> np.ndarray:
        """Return which inputs a channel of ones can stand for, `(inputs,)`."""
        constants = self.constants_of(node.inputs[0])
        is_left = ~np.isnan(constants) & ~self._known_inputs(node)
        return is_left & self.merges_constants

    def _share(self, node: Node, inputs: np.ndarray) -> np.ndarray:
        """Compute what constant inputs add to the sum, `(outputs,)`."""
        return node.inputs[0].constant[inputs] @ self.sums[inputs]

    def find_constants(self, node: Node) -> None:
        if self.mixes_outputs:
            return
        known = self._known_inputs(node)
        fixed = ~self.reads[~known].any(axis=0)
        values = np.where(fixed, self.bias + self._share(node, known), 0.0)
        layer = self.layer
        values = evaluate_constants(layer, layer.activation, finite(values))
        node.outputs[0].constant = np.where(fixed, values, np.nan)

    def require(self, node: Node) -> None:
        if self.mixes_outputs and not node.is_gone:
            node.outputs[0].keep[:] = True
        read = self.reads[:, node.outputs[0].keep].any(axis=1)
        replaced = self._known_inputs(node) | self._mergeable_inputs(node)
        node.inputs[0].keep |= read & ~replaced

    def _new_bias(self) -> np.ndarray:
        """Compute the kept outputs' bias, with what removed inputs add."""
        node = self.uses[0]
        removed = self._known_inputs(node) & ~self.input.keep
        return (self.bias + self._share(node, removed))[self.output.keep]

    def _with_bias(
        self, config: dict[str, Any], weights: list[np.ndarray]
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Append the new bias; a layer without one gets it only if needed."""
        bias = self._new_bias()
        if not config["use_bias"] and not bias.any():
            return config, weights
        return {**config, "use_bias": True}, [*weights, bias]

    def _kernel_of_ones(self) -> np.ndarray | None:
        """Compute the kernel that a channel of ones gets, `(..., 1, outputs)`.

        None if no such channel is needed.
        """
        node = self.uses[0]
        merged = self._mergeable_inputs(node) & ~self.input.keep
        if not merged.any():
            return None
        kernel = self._kernel()[..., merged, :][..., self.output.keep]
        kernel = kernel * node.inputs[0].constant[merged, None]
        found = kernel.sum(axis=-2, keepdims=True)
        return found if found.any() else None

    def _sliced(self) -> np.ndarray:
        kernel = self._kernel()[..., self.input.keep, :]
        kernel = kernel[..., self.output.keep]
        ones = self._kernel_of_ones()
        return kernel if ones is None else np.concatenate([kernel, ones], -2)

    @property
    def inputs_kept(self) -> tuple[int, int]:
        kept, every = super().inputs_kept
        return kept + (self._kernel_of_ones() is not None), every

    def call(
        self, layer: Any, args: tuple[Any, ...], kwargs: Any, names: Names
    ) -> Any:
        if self._kernel_of_ones() is not None:
            inputs, *rest = args
            sides = [(0, 0)] * len(inputs.shape)
            sides[self.input.axis] = (0, 1)
            inputs = ops.pad(inputs, sides, constant_values=1)
            rename_operation(inputs, names.unique(f"{layer.name}_ones"))
            args = (inputs, *rest)
        return super().call(layer, args, kwargs, names)


@rule_for(keras.layers.Dense)
class DenseRule(LinearRule):
    """The last axis of the input, times a matrix."""

    @classmethod
    def macs(cls, layer: Any, node: Node) -> int | None:
        return macs_at(node.inputs[0].shape[1:-1], layer.kernel)

    @classmethod
    def absorbed(cls, layer: Any, factors: np.ndarray) -> Values | None:
        last = along(factors, -1)
        return None if last is None else [scaled(layer.kernel, last, 0)]

    def shrunk(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        kernel = self._sliced()
        config = {**self.config, "units": kernel.shape[-1]}
        return self._with_bias(config, [kernel])


@rule_for(keras.layers.EinsumDense)
class EinsumDenseRule(LinearRule):
    """A dense layer, written as an equation such as "abc,cd->abd"."""

    EQUATION = re.compile(r"^(\.{3}|)(\w*)(\w),\3(\w)->\1\2\4$")

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        found = cls.EQUATION.match(layer.equation)
        if found is None or found[4] in found[2] + found[3]:
            return f"its equation is {layer.equation!r}"
        if layer.bias_axes not in (None, found[4]):
            return f"its bias has the axes {layer.bias_axes!r}"
        return super().refusal(layer, node)

    @classmethod
    def macs(cls, layer: Any, node: Node) -> int | None:
        """Multiply the sizes of all axes in the equation but the batch."""
        shape = node.inputs[0].shape
        inputs, kernel = layer.equation.split("->")[0].split(",")
        # Axes that "..." stands for count too; they come first or last.
        named = len(inputs.replace("...", ""))
        if inputs.endswith("..."):
            sizes, rest = shape[:named], shape[named:]
        else:
            start = len(shape) - named
            sizes, rest = shape[start:], shape[:start]
        letters = dict(zip(inputs.replace("...", ""), sizes, strict=True))
        letters |= zip(kernel, layer.kernel.shape, strict=True)
        first = inputs[0] if inputs[0] != "." else None
        every = [size for letter, size in letters.items() if letter != first]
        return product((*every, *(rest[1:] if first is None else rest)))

    @classmethod
    def absorbed(cls, layer: Any, factors: np.ndarray) -> Values | None:
        inputs, kernel = layer.equation.split("->")[0].split(",")
        axes = [i for i, size in enumerate(factors.shape) if size > 1]
        if len(axes) != 1:
            return None
        # Counted from the end: an ellipsis may stand for axes before it.
        axis = axes[0] - factors.ndim
        letters = inputs.split("...")[-1]
        if -axis > len(letters) or letters[axis] not in kernel:
            return None
        position = kernel.index(letters[axis])
        return [scaled(layer.kernel, factors.reshape(-1), position)]

    def shrunk(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        kernel = self._sliced()
        config = self.config
        shape = config["output_shape"]
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        config["output_shape"] = (*shape[:-1], kernel.shape[-1])
        bias = self._new_bias()
        if config["bias_axes"] is None and not bias.any():
            return config, [kernel]
        config["bias_axes"] = config["equation"][-1]
        return config, [kernel, bias]


def is_padded(layer: Any) -> bool:
    """Tell whether zeros around the input take part in a convolution."""
    return layer.padding != "valid" and any(k > 1 for k in layer.kernel_size)


@rule_for(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
class ConvRule(LinearRule):
    """A convolution with a kernel `(size, ..., inputs, outputs)`."""

    @classmethod
    def of(cls, layer: Any) -> type[Rule]:
        is_grouped = cls is ConvRule and layer.groups > 1
        return GroupedConvRule if is_grouped else cls

    @classmethod
    def channels_first(
        cls, layer: Any, node: Node
    ) -> tuple[bool | None, bool | None]:
        return by_data_format(layer)

    @classmethod
    def macs(cls, layer: Any, node: Node) -> int | None:
        return macs_at(positions(layer, node.outputs[0]), layer.kernel)

    @classmethod
    def absorbed(cls, layer: Any, factors: np.ndarray) -> Values | None:
        channels = of_channels(layer, factors)
        return None if channels is None else cls._scaled(layer, channels)

    @classmethod
    def _scaled(cls, layer: Any, channels: np.ndarray) -> Values:
        """Multiply the kernel by a factor for each channel of the inputs."""
        # Each group of filters reads channels of its own.
        value = to_numpy(layer.kernel)
        grouped = value.reshape((*value.shape[:-1], layer.groups, -1))
        channels = np.broadcast_to(channels, layer.groups * value.shape[-2])
        factors = channels.reshape(layer.groups, -1).T[..., None]
        return [(layer.kernel, (grouped * factors).reshape(value.shape))]

    def sees_borders(self) -> bool:
        return is_padded(self.layer)

    def shrunk(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        kernel = self._sliced()
        config = {**self.config, "filters": kernel.shape[-1]}
        return self._with_bias(config, [kernel])


class GroupedConvRule(ConvRule):
    """Convolutions side by side, each with channels and filters of its own.

    The kernel is `(size, ..., inputs of a group, filters)`, with the filters of
    a group next to each other. Groups go as a whole.
    """

    can_merge_constants = False

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        if not is_elementwise(layer.activation):
            return "its activation mixes channels"
        return Rule.refusal(layer, node)

    def find_constants(self, node: Node) -> None:
        groups = self.layer.groups
        # (groups, inputs of one, filters of one)
        reads, sums = (
            np.moveaxis(x.reshape(len(x), groups, -1), 1, 0)
            for x in (self.reads, self.sums)
        )
        known = self._known_inputs(node).reshape(groups, -1, 1)
        constants = node.inputs[0].constant.reshape(groups, -1, 1)
        constants = np.where(known, constants, 0.0)
        is_fixed = ~(reads & ~known).any(axis=1).ravel()
        values = self.bias + (constants * sums).sum(axis=1).ravel()
        values = evaluate_constants(
            self.layer, self.layer.activation, finite(values)
        )
        node.outputs[0].constant = np.where(is_fixed, values, np.nan)

    def require(self, node: Node) -> None:
        tensors = (node.inputs[0], node.outputs[0])
        rows = [x.keep.reshape(self.layer.groups, -1) for x in tensors]
        keep = np.concatenate(rows, axis=1).any(axis=1)
        for tensor, row in zip(tensors, rows, strict=True):
            tensor.keep |= np.repeat(keep, row.shape[1])

    def shrunk(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        keep = self.output.keep
        kernel = self._kernel()[..., keep]
        config = {**self.config, "filters": kernel.shape[-1]}
        groups = int(np.count_nonzero(self.input.keep)) // kernel.shape[-2]
        weights = [kernel, self.bias[keep]] if config["use_bias"] else [kernel]
        return {**config, "groups": groups}, weights


@rule_for(
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
class ConvTransposeRule(ConvRule):
    """A transposed convolution; kernel `(size, ..., outputs, inputs)`."""

    @classmethod
    def macs(cls, layer: Any, node: Node) -> int | None:
        return macs_at(positions(layer, node.inputs[0]), layer.kernel)

    @classmethod
    def _scaled(cls, layer: Any, channels: np.ndarray) -> Values:
        return [scaled(layer.kernel, channels, -1)]

    def _kernel(self) -> np.ndarray:
        return np.swapaxes(to_numpy(self.layer.kernel), -1, -2)

    def sees_borders(self) -> bool:
        # Every output position sees another part of the kernel.
        return True

    def shrunk(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        config, (kernel, *bias) = super().shrunk()
        return config, [np.swapaxes(kernel, -1, -2), *bias]


@rule_for(keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
class SeparableConvRule(ConvRule):
    """A depthwise convolution, then one of size 1 over all channels."""

    # The sum of such kernels is not one of their kind.
    can_merge_constants = False

    @classmethod
    def macs(cls, layer: Any, node: Node) -> int | None:
        kernels = (layer.depthwise_kernel, layer.pointwise_kernel)
        return macs_at(positions(layer, node.outputs[0]), *kernels)

    @classmethod
    def _scaled(cls, layer: Any, channels: np.ndarray) -> Values:
        return [scaled(layer.depthwise_kernel, channels, -2)]

    def _kernel(self) -> np.ndarray:
        depthwise = to_numpy(self.layer.depthwise_kernel)
        channels, multiplier = depthwise.shape[-2:]
        pointwise = to_numpy(self.layer.pointwise_kernel)
        pointwise = pointwise.reshape(channels, multiplier, -1)
        # The products are not summed over the multiplier, so that one is zero
        # only if one of its factors is.
        products = depthwise[..., None] * pointwise
        return np.moveaxis(products, -2, 0)

    def shrunk(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        keep = self.input.keep
        depthwise = to_numpy(self.layer.depthwise_kernel)
        pointwise = to_numpy(self.layer.pointwise_kernel)
        rows = np.repeat(keep, depthwise.shape[-1])
        pointwise = pointwise[..., rows, :][..., self.output.keep]
        config = {**self.config, "filters": pointwise.shape[-1]}
        return self._with_bias(config, [depthwise[..., keep, :], pointwise])


@rule_for(keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
class DepthwiseConvRule(Rule):
    """A convolution of every channel by itself, to one or several outputs.

    The kernel is `(size, ..., channels, multiplier)`; the outputs of a channel
    stand next to each other.
    """

    works_per_step = True
    hands_on = True

    def __init__(self, layer: Any, uses: list[Node]) -> None:
        super().__init__(layer, uses)
        self.kernel = to_numpy(layer.kernel)
        self.multiplier = self.kernel.shape[-1]

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        if not is_elementwise(layer.activation):
            return "its activation mixes channels"
        return super().refusal(layer, node)

    @classmethod
    def channels_first(
        cls, layer: Any, node: Node
    ) -> tuple[bool | None, bool | None]:
        return by_data_format(layer)

    @classmethod
    def macs(cls, layer: Any, node: Node) -> int | None:
        return macs_at(positions(layer, node.outputs[0]), layer.kernel)

    @classmethod
    def absorbed(cls, layer: Any, factors: np.ndarray) -> Values | None:
        channels = of_channels(layer, factors)
        if channels is None:
            return None
        return [scaled(layer.kernel, channels, -2)]

    def sees_borders(self) -> bool:
        return is_padded(self.layer)

    def find_constants(self, node: Node) -> None:
        constants = self.constants_of(node.inputs[0])[:, None]
        kernel = self.kernel.reshape(-1, *self.kernel.shape[-2:])
        # (channels, multiplier)
        values = constants * kernel.sum(axis=0)
        if self.sees_borders():
            values = np.where(constants == 0.0, values, np.nan)
        values = np.where((kernel == 0.0).all(axis=0), 0.0, values).ravel()
        if self.layer.bias is not None:
            values = values + to_numpy(self.layer.bias)
        node.outputs[0].constant = evaluate_constants(
            self.layer, self.layer.activation, finite(values)
        )

    def require(self, node: Node) -> None:
        (inputs,), (outputs,) = node.inputs, node.outputs
        used = outputs.keep.reshape(-1, self.multiplier).any(axis=1)
        inputs.keep |= used
        outputs.keep |= np.repeat(inputs.keep, self.multiplier)

    def shrunk(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        weights = [self.kernel[..., self.input.keep, :]]
        if self.layer.bias is not None:
            weights.append(to_numpy(self.layer.bias)[self.output.keep])
        return self.config, weights
