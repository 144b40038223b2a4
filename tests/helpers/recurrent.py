"""Slow recurrent layers in NumPy, and helpers for tests of the real ones."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from keras import ops

from keras_vd import layers, variational_weights
from tests.helpers.arrays import to_numpy
from tests.helpers.contract import Case

KERNELS = ("kernel", "recurrent_kernel")
# By the name of the layer: blocks of columns, and the candidate among them.
GATES = {"VDSimpleRNN": (1, 0), "VDLSTM": (4, 2), "VDGRU": (3, 2)}


@dataclasses.dataclass(frozen=True)
class RecurrentCase(Case):
    """A recurrent layer, the weights of which belong to its cell.

    Attributes:
        weight_samples: Value of that argument.
    """

    weights: tuple[str, ...] = KERNELS
    weight_samples: str = "batch"

    @property
    def all_arguments(self) -> dict[str, Any]:
        return {**super().all_arguments, "weight_samples": self.weight_samples}

    def owner(self, layer: Any) -> Any:
        return layer.cell

    def linear(self) -> RecurrentCase:
        return self


def make_case(
    name: str, layer: type, core: bool = False, **options: Any
) -> RecurrentCase:
    """A case of 3 units and 4 steps of 2 features.

    Args:
        name: Name of the case, and of its layer.
        layer: Class of the layer.
        core: Whether to run it on all backends.
        **options: Arguments; `groups` and `weight_samples` go where they
            belong.
    """
    own = {
        key: options.pop(key)
        for key in {"groups", "weight_samples"} & set(options)
    }
    return RecurrentCase(
        name,
        layer,
        (4, 2),
        {"units": 3, **options},
        core,
        multiply=multiplier(layer),
        **own,
    )


def multiplier(layer: type) -> Callable[..., dict[str, np.ndarray]]:
    """How group variables multiply the weights of a kind of layer.

    One entry after the other, as the documentation has it.
    """
    num_gates, candidate = GATES[layer.__name__]

    def multiply(
        weights: dict[str, np.ndarray], scales: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        weights = {name: np.array(value) for name, value in weights.items()}
        kernel, recurrent = (weights[name] for name in KERNELS)
        bias = weights.get("bias", np.zeros(kernel.shape[1]))
        num_units = len(recurrent)
        for entry, value in enumerate(scales.get("input", ())):
            kernel[entry] *= value
        for column, value in enumerate(scales.get("gates", ())):
            kernel[:, column] *= value
            recurrent[:, column] *= value
            is_candidate = column // num_units == candidate
            if value == 0.0 and is_candidate and bias.ndim == 2:
                bias[1, column] = 0.0
        for unit, value in enumerate(scales.get("units", ())):
            column = candidate * num_units + unit
            kernel[:, column] *= value
            recurrent[:, column] *= value
            if value == 0.0:
                bias[..., column] = 0.0
                recurrent[unit] = 0.0
                for gate in range(num_gates):
                    kernel[:, gate * num_units + unit] = 0.0
                    recurrent[:, gate * num_units + unit] = 0.0
        return weights

    return multiply


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def simple_rnn_step(x, states, weights, reset_after):
    (h,) = states
    x = x @ weights["kernel"] + weights["bias"]
    h = np.tanh(x + h @ weights["recurrent_kernel"])
    return h, [h]


def lstm_step(x, states, weights, reset_after):
    h, c = states
    z = x @ weights["kernel"] + h @ weights["recurrent_kernel"]
    i, f, candidate, o = np.split(z + weights["bias"], 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(candidate)
    h = sigmoid(o) * np.tanh(c)
    return h, [h, c]


def gru_step(x, states, weights, reset_after):
    """As in Cho et al. 2014, or its variant with the reset at the end."""
    (h,) = states
    bias, recurrent_bias = weights["bias"], 0.0
    if bias.ndim == 2:
        bias, recurrent_bias = bias
    x_z, x_r, x_h = np.split(x @ weights["kernel"] + bias, 3)
    inner = h @ weights["recurrent_kernel"] + recurrent_bias
    h_z, h_r, h_h = np.split(inner, 3)
    z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
    if reset_after:
        candidate = np.tanh(x_h + r * h_h)
    else:
        last = weights["recurrent_kernel"][:, -len(h) :]
        candidate = np.tanh(x_h + (r * h) @ last)
    h = z * h + (1.0 - z) * candidate
    return h, [h]


STEPS = {
    "VDSimpleRNN": simple_rnn_step,
    "VDLSTM": lstm_step,
    "VDGRU": gru_step,
}


def slow_rnn(
    layer: Any,
    sequence: np.ndarray,
    weights: dict[str, np.ndarray],
    mask: np.ndarray | None = None,
    states: list[np.ndarray] | None = None,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """One sequence through Keras' equations, step by step.

    Args:
        layer: Recurrent layer with the activations of Keras.
        sequence: Of shape `(steps, features)`.
        weights: Kernels of this sequence; the bias is the layer's own.
        mask: Bool for each step.
        states: States to start from.

    Returns:
        Outputs of shape `(steps, units)`, and the last states.
    """
    units = weights["recurrent_kernel"].shape[0]
    bias = np.zeros(weights["kernel"].shape[1])
    if layer.cell.bias is not None:
        bias = to_numpy(layer.cell.bias)
    weights = {"bias": bias, **weights}
    weights = {name: value.astype("float64") for name, value in weights.items()}
    if states is None:
        states = [np.zeros(units)] * (1 + isinstance(layer, layers.VDLSTM))
    mask = np.ones(len(sequence), "bool") if mask is None else mask
    steps = list(zip(sequence.astype("float64"), mask, strict=True))
    outputs, output = [], np.zeros(units)
    for inputs, is_seen in reversed(steps) if layer.go_backwards else steps:
        if is_seen:
            output, states = STEPS[type(layer).__name__](
                inputs, states, weights, getattr(layer, "reset_after", None)
            )
        is_zero = layer.zero_output_for_mask and not is_seen
        outputs.append(np.zeros(units) if is_zero else output)
    return np.stack(outputs), states


@contextlib.contextmanager
def rewound(layer: Any) -> Iterator[None]:
    """Afterwards, the posteriors' noise starts again where it was before."""
    states = [
        (
            posterior.seed_generator.state,
            to_numpy(posterior.seed_generator.state),
        )
        for posterior in variational_weights(layer)
    ]
    states = [(state, np.array(value)) for state, value in states]
    yield
    for state, value in states:
        state.assign(value)


def redraw(layer: Any) -> dict[str, np.ndarray]:
    """Kernels and group variables that a rewound recurrent layer draws.

    Group variables are not multiplied into the kernels yet.
    """
    groups = {
        name: getattr(layer, f"{name}_group") for name in layer.group_names
    }
    ones = {name: ops.ones_like(group.theta) for name, group in groups.items()}
    found = {
        **{
            name: getattr(layer, f"{name}_posterior").draw(ones)
            for name in KERNELS
        },
        **{name: group.draw({}) for name, group in groups.items()},
    }
    return {name: to_numpy(drawn) for name, drawn in found.items()}


def sequence_weights(
    drawn: dict[str, Any], sequence: int
) -> dict[str, np.ndarray]:
    """Kernels of one sequence, mean + deviation * (r outer s).

    Args:
        drawn: `FlippedKernel`s by the name of the weight.
        sequence: Index into the batch.
    """
    return {
        name: to_numpy(kernel.mean)
        + to_numpy(kernel.deviation)
        * np.outer(
            to_numpy(kernel.input_signs)[sequence],
            to_numpy(kernel.output_signs)[sequence],
        )
        for name, kernel in drawn.items()
    }


def record_flipped(monkeypatch: Any) -> list[Any]:
    """List that `FlippedKernel`s join as they are drawn."""
    drawn, draw = [], layers.recurrent.FlippedKernel.draw

    def record(*args: Any) -> Any:
        drawn.append(draw(*args))
        return drawn[-1]

    monkeypatch.setattr(layers.recurrent.FlippedKernel, "draw", record)
    return drawn
