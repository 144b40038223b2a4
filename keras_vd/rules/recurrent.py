"""Recurrent layers: find hidden units that stay zero or that nobody reads."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_vd._backend.keras_internals import computing_class
from keras_vd.rules.activations import evaluate, is_elementwise
from keras_vd.rules.factors import Values, along, scaled
from keras_vd.rules.graph import GraphTensor, Node
from keras_vd.rules.rule import (
    Inner,
    Rule,
    absorbed_by,
    config_of,
    macs_of,
    rule_for,
    to_numpy,
)
from keras_vd.rules.sizes import macs_at, total

# Number of gates, and the index of the candidate among them.
GATES: dict[type, tuple[int, int]] = {
    keras.layers.SimpleRNN: (1, 0),
    keras.layers.LSTM: (4, 2),
    keras.layers.GRU: (3, 2),
}


def units_refusal(layer: Any) -> str | None:
    """Return why units of a recurrent layer cannot be removed one by one.

    None if they can.
    """
    activations = (
        layer.activation,
        getattr(layer, "recurrent_activation", None),
    )
    if not all(is_elementwise(x) for x in activations):
        return "its activation mixes units"
    return None


class Units:
    """The hidden units of one recurrent layer.

    Attributes:
        kernel: `(inputs, gates, units)`.
        recurrent_kernel: `(units, gates, units)`.
        bias: `(1, gates, units)`, zero where there is none; a GRU with
            `reset_after` has a second row, for the recurrent kernel.
        zero: `(units,)`: whether output and state are always zero.
        keep: `(units,)`: whether a unit stays.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        cell, units = layer.cell, layer.units
        gates, self.candidate = GATES[computing_class(type(layer))]
        self.kernel = to_numpy(cell.kernel).reshape(-1, gates, units)
        self.recurrent_kernel = to_numpy(cell.recurrent_kernel).reshape(
            units, gates, units
        )
        rows = 2 if getattr(layer, "reset_after", False) else 1
        self.bias = np.zeros((rows, gates, units))
        if layer.use_bias:
            self.bias = to_numpy(cell.bias).reshape(self.bias.shape)
        self.zero = np.zeros(units, bool)
        self.keep = np.zeros(units, bool)

    def find_zero(self, constants: np.ndarray) -> None:
        """Find the units whose state is always zero.

        A unit stays at zero if its candidate is zero, whatever the other gates
        do. For that, inputs and bias must add up to 0, and all units that the
        candidate reads must themselves stay at zero.

        Args:
            constants: `(inputs,)`: constants of the inputs, or NaN.
        """
        if evaluate(self.layer.activation, np.zeros((1, 1))).any():
            return
        known = ~np.isnan(constants)
        kernel = self.kernel[:, self.candidate]
        total = self.bias[0, self.candidate]
        total = total + constants[known] @ kernel[known]
        zero = ~kernel[~known].any(axis=0) & (total == 0.0)
        zero &= ~self.bias[1:, self.candidate].any(axis=0)
        remembered = self.recurrent_kernel[:, self.candidate] != 0.0
        before = None
        while before is None or (zero != before).any():
            before = zero
            zero = zero & ~remembered[~zero].any(axis=0)
        self.zero = zero

    def require(self, constants: np.ndarray) -> np.ndarray:
        """Keep the units that kept ones read; return the inputs read.

        Args:
            constants: `(inputs,)`: constants of the inputs, or NaN.

        Returns:
            `(inputs,)`: whether an input that is not constant is read.
        """
        reads = (self.recurrent_kernel != 0.0).any(axis=1)
        before = -1
        while before != np.count_nonzero(self.keep):
            before = int(np.count_nonzero(self.keep))
            self.keep |= reads[:, self.keep & ~self.zero].any(axis=1) & (
                ~self.zero
            )
        # A unit that is always zero stays so whatever its gates are, so what
        # these read is not needed.
        read = self.kernel[:, :, self.keep & ~self.zero].any(axis=(1, 2))
        return read & np.isnan(constants)

    def pad(self, count: int) -> None:
        """Keep more units until there are `count`, always-zero ones first."""
        spare = np.flatnonzero(~self.keep)
        spare = spare[np.argsort(~self.zero[spare], kind="stable")]
        missing = count - np.count_nonzero(self.keep)
        self.keep[spare[: max(missing, 0)]] = True

    def shrunk(
        self, config: dict[str, Any], inputs: GraphTensor, constants: np.ndarray
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Return the config and the weights of the kept units.

        Args:
            config: Config of the layer before.
            inputs: The tensor that it reads.
            constants: `(inputs,)`: constants of the inputs, or NaN. The bias
                takes over those of removed inputs.
        """
        removed = ~inputs.keep & ~np.isnan(constants)
        bias = self.bias.copy()
        bias[0] += np.tensordot(
            constants[removed], self.kernel[removed], axes=1
        )
        bias = bias[..., self.keep]
        kernels = (
            self.kernel[inputs.keep][..., self.keep],
            self.recurrent_kernel[self.keep][..., self.keep],
        )
        units = int(np.count_nonzero(self.keep))
        weights = [x.reshape(len(x), -1) for x in kernels]
        config = {**config, "units": units}
        if config["use_bias"] or bias.any():
            config["use_bias"] = True
            rows = (len(bias), -1) if len(bias) > 1 else -1
            weights.append(bias.reshape(rows))
        return config, weights


def _starts_at_zero(layer: Any, node: Node) -> bool:
    is_given = any(node.kwargs.get("mask") is not x for x in node.others)
    return not (layer.stateful or is_given)


@rule_for(*GATES)
class RecurrentRule(Rule):
    """A layer of one direction; its outputs and states have the same units."""

    def __init__(self, layer: Any, uses: list[Node]) -> None:
        super().__init__(layer, uses)
        self.units = Units(layer)
        self.starts_at_zero = all(_starts_at_zero(layer, x) for x in uses)

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        if len(node.inputs) != 1:
            return "it is called in an unusual way"
        return units_refusal(layer)

    @classmethod
    def macs(cls, layer: Any, node: Node) -> int | None:
        weights = (layer.cell.kernel, layer.cell.recurrent_kernel)
        return macs_at((node.inputs[0].shape[1],), *weights)

    @classmethod
    def absorbed(cls, layer: Any, factors: np.ndarray) -> Values | None:
        last = along(factors, -1)
        return None if last is None else [scaled(layer.cell.kernel, last, 0)]

    def find_constants(self, node: Node) -> None:
        if self.starts_at_zero:
            self.units.find_zero(self.constants_of(node.inputs[0]))
        for tensor in node.outputs:
            tensor.constant = np.where(self.units.zero, 0.0, np.nan)

    def require(self, node: Node) -> None:
        units = self.units
        for tensor in node.outputs:
            units.keep |= tensor.keep
        if not self.starts_at_zero:
            units.keep[:] = True
        read = units.require(self.constants_of(node.inputs[0]))
        node.inputs[0].keep |= read
        for tensor in node.outputs:
            tensor.keep |= units.keep

    def shrunk(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        constants = self.constants_of(self.input)
        config = self.config
        return self.units.shrunk(config, self.input, constants)


@rule_for(keras.layers.Bidirectional)
class BidirectionalRule(Rule):
    """A layer of two directions, which must have the same number of units.

    Keras assumes that the backward layer has as many as the forward one.
    """

    def __init__(self, layer: Any, uses: list[Node]) -> None:
        super().__init__(layer, uses)
        self.directions = (
            Units(layer.forward_layer),
            Units(layer.backward_layer),
        )
        self.starts_at_zero = all(_starts_at_zero(layer, x) for x in uses)
        # Whether unit `j` of the output is computed from unit `j` of both.
        self.is_merged = layer.merge_mode in ("sum", "ave", "mul")

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        one, other = layer.forward_layer, layer.backward_layer
        kinds = {computing_class(type(x)) for x in (one, other)}
        if len(kinds) > 1 or not kinds <= set(GATES):
            return "its directions are not two layers of a known type"
        if one.units != other.units:
            return "its directions differ in size"
        if len(node.inputs) != 1:
            return "it is called in an unusual way"
        return units_refusal(one) or units_refusal(other)

    @classmethod
    def macs(cls, layer: Any, node: Node) -> int | None:
        directions = (layer.forward_layer, layer.backward_layer)
        return total(macs_of(direction, node) for direction in directions)

    @classmethod
    def absorbed(cls, layer: Any, factors: np.ndarray) -> Values | None:
        forward = absorbed_by(layer.forward_layer, factors)
        backward = absorbed_by(layer.backward_layer, factors)
        if forward is None or backward is None:
            return None
        return [*forward, *backward]

    def _parts(self, node: Node) -> list[tuple[GraphTensor, slice, Units]]:
        """List for each output which channels are the units of a direction."""
        one, other = self.directions
        size = len(one.keep)
        every = slice(0, size)
        outputs = list(node.outputs)
        if self.layer.merge_mode is None:
            first, second = outputs[:2]
            parts = [(first, every, one), (second, every, other)]
        else:
            first = second = outputs[0]
            start = 0 if self.is_merged else size
            later = slice(start, start + size)
            parts = [(first, every, one), (second, later, other)]
        states = [x for x in outputs if x is not first and x is not second]
        half = len(states) // 2
        parts += [(tensor, every, one) for tensor in states[:half]]
        return parts + [(tensor, every, other) for tensor in states[half:]]

    def find_constants(self, node: Node) -> None:
        for units in self.directions:
            if self.starts_at_zero:
                units.find_zero(self.constants_of(node.inputs[0]))
        for tensor, part, units in self._parts(node):
            tensor.constant[part] = np.where(units.zero, 0.0, np.nan)
        if self.is_merged:
            one, other = (units.zero for units in self.directions)
            is_product = self.layer.merge_mode == "mul"
            zero = one | other if is_product else one & other
            node.outputs[0].constant = np.where(zero, 0.0, np.nan)

    def require(self, node: Node) -> None:
        for tensor, part, units in self._parts(node):
            units.keep |= tensor.keep[part]
        constants = self.constants_of(node.inputs[0])
        for units in self.directions:
            if not self.starts_at_zero:
                units.keep[:] = True
            node.inputs[0].keep |= units.require(constants)
        for tensor, part, units in self._parts(node):
            tensor.keep[part] |= units.keep

    def settle(self) -> None:
        one, other = self.directions
        for units, model in ((one, other), (other, one)):
            units.pad(int(np.count_nonzero(model.keep)))

    def shrunk(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        constants = self.constants_of(self.input)
        config = self.config
        weights = []
        names = ("layer", "backward_layer")
        for name, units in zip(names, self.directions, strict=True):
            inner, arrays = units.shrunk(
                config_of(units.layer), self.input, constants
            )
            config[name] = Inner(units.layer, inner)
            weights += arrays
        return config, weights
