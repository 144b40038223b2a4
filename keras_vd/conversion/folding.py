"""Gates that the layers after them can take into their weights.

A gate multiplies units by constants at inference. What follows may let such
factors pass (a ReLU, a pooling) or be linear in its inputs, so that its kernel
can hold them. Where all that reads a gate ends in such layers, the gate itself
is not needed any more.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from keras_vd._backend.keras_internals import (
    Call,
    computed_class,
    flatten_layers,
    functional_part,
    graph_calls,
    sublayers,
)
from keras_vd.layers.base import VariationalLayer, keras_class
from keras_vd.layers.structured import StructuredGate

# A layer that takes factors in, and the factors: an array that broadcasts to
# one example of the layer's inputs.
Target = tuple[keras.layers.Layer, np.ndarray]

_IDENTITIES = (
    layers.ActivityRegularization,
    layers.AlphaDropout,
    layers.Dropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.Identity,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
)
# Linear in each channel, or a maximum: factors >= 0 of channels pass.
_CHANNELWISE = (
    *(layers.AveragePooling1D, layers.AveragePooling2D),
    *(layers.AveragePooling3D, layers.MaxPooling1D, layers.MaxPooling2D),
    *(layers.MaxPooling3D, layers.Cropping1D, layers.Cropping2D),
    *(layers.Cropping3D, layers.ZeroPadding1D, layers.ZeroPadding2D),
    *(layers.ZeroPadding3D, layers.UpSampling1D, layers.UpSampling2D),
    layers.UpSampling3D,
)
_GLOBAL_POOLING = (
    *(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D),
    *(layers.GlobalAveragePooling3D, layers.GlobalMaxPooling1D),
    *(layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D),
)
_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_TRANSPOSED = (
    *(layers.Conv1DTranspose, layers.Conv2DTranspose),
    layers.Conv3DTranspose,
)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
_RECURRENT = (layers.SimpleRNN, layers.LSTM, layers.GRU)
_HOMOGENEOUS = tuple(
    keras.activations.get(name) for name in ("linear", "relu", "leaky_relu")
)


def find_folds(model: keras.Model) -> dict[StructuredGate, list[Target]]:
    """Which gates of a model can go, and what takes their factors in.

    Args:
        model: A built model; what is neither Sequential nor Functional, at
            any level, is left alone.
    """
    parts = [functional_part(layer) for layer in flatten_layers(model)]
    # A Sequential model and the Functional one inside it are one graph.
    graphs = [
        _Graph(part, graph_calls(part))
        for part in {id(part): part for part in parts}.values()
        if part is not None
    ]
    uses = _count_uses(model, graphs)
    folds = {}
    for graph in graphs:
        for call in graph.calls:
            gate = call.operation
            if isinstance(gate, StructuredGate) and uses[id(gate)] == 1:
                targets = graph.targets(call, gate.constant_factors())
                if targets and all(_is_alone(x, uses) for x, _ in targets):
                    folds[gate] = targets
    return folds


def _count_uses(model: keras.Model, graphs: list[_Graph]) -> Counter[int]:
    """How often layers are called, in graphs and by layers around them."""
    uses = Counter(id(call.operation) for x in graphs for call in x.calls)
    for layer in flatten_layers(model):
        if functional_part(layer) is None:
            uses.update({id(x) for x in sublayers(layer)})
    return uses


def _is_alone(layer: keras.layers.Layer, uses: Counter[int]) -> bool:
    """Whether nobody else uses a layer, or what is in it."""
    return all(uses[id(below)] == 1 for below in flatten_layers(layer))


@dataclasses.dataclass(frozen=True)
class _Graph:
    """One Functional model and its calls."""

    functional: keras.Model
    calls: list[Call]

    def targets(
        self, call: Call, factors: np.ndarray | None
    ) -> list[Target] | None:
        """What takes in the factors of a call's output; None if not all do."""
        if factors is None:
            return None
        (output,) = call.outputs
        if any(output is x for x in self.functional.outputs):
            return None
        found: list[Target] = []
        for reader in self.calls:
            if not _reads(reader, output):
                continue
            if not reader.args or reader.args[0] is not output:
                return None
            layer = reader.operation
            if _absorbed(layer, factors) is not None:
                found.append((layer, factors))
                continue
            further = self.targets(
                reader, _passed_on(layer, factors, output.shape[1:])
            )
            if further is None:
                return None
            found.extend(further)
        return found


def _reads(call: Call, tensor: Any) -> bool:
    read = keras.tree.flatten((call.args, call.kwargs))
    return any(x is tensor for x in read)


def _along(factors: np.ndarray, axis: int) -> np.ndarray | None:
    """Factors of one axis, if they do not depend on the others."""
    is_alone = factors.size == factors.shape[axis]
    return factors.reshape(-1) if is_alone else None


def _channels(layer: Any, factors: np.ndarray) -> np.ndarray | None:
    is_first = getattr(layer, "data_format", None) == "channels_first"
    return _along(factors, 0 if is_first else -1)


def _passed_on(
    layer: Any, factors: np.ndarray, shape: tuple[Any, ...]
) -> np.ndarray | None:
    """Factors of the outputs, if the inputs' factors simply pass `layer`.

    Args:
        layer: Any operation.
        factors: Not negative; broadcasts to one example of the inputs.
        shape: Shape of that example.
    """
    kind = computed_class(type(layer))
    if isinstance(layer, StructuredGate):
        return None if layer.constant_factors() is None else factors
    if kind in _IDENTITIES:
        return factors
    if kind is layers.Activation:
        return factors if layer.activation in _HOMOGENEOUS else None
    if kind is layers.ReLU:
        is_plain = layer.max_value is None and layer.threshold == 0
        return factors if is_plain else None
    if kind in (layers.LeakyReLU, layers.PReLU):
        return factors
    if kind in _CHANNELWISE:
        return None if _channels(layer, factors) is None else factors
    if kind in _GLOBAL_POOLING:
        channels = _channels(layer, factors)
        return factors if layer.keepdims and channels is not None else channels
    if kind in (layers.Flatten, layers.Reshape) and None not in shape:
        is_first = getattr(layer, "data_format", None) == "channels_first"
        if is_first and len(shape) > 1:
            return None
        target = layer.compute_output_shape((1, *shape))[1:]
        return np.broadcast_to(factors, shape).reshape(target)
    return None


def absorb(layer: Any, factors: np.ndarray) -> None:
    """Change the weights of `layer` as if its inputs had these factors."""
    for variable, value in _absorbed(layer, factors) or ():
        variable.assign(value)


def _absorbed(
    layer: Any, factors: np.ndarray
) -> list[tuple[keras.Variable, np.ndarray]] | None:
    """Weights that take the factors of the inputs in; None if none can."""
    if getattr(layer, "lora_enabled", False) or getattr(
        layer, "quantization_mode", None
    ):
        return None
    is_variational = isinstance(layer, VariationalLayer)
    kind = (keras_class if is_variational else computed_class)(type(layer))
    last = _along(factors, -1) if factors.ndim else None
    if kind is layers.Dense and last is not None:
        return [_scaled(layer.kernel, last, 0)]
    if kind is layers.EinsumDense:
        return _absorbed_by_einsum(layer, factors)
    if kind is layers.BatchNormalization:
        return _absorbed_by_normalization(layer, factors)
    if kind in _RECURRENT and last is not None:
        return [_scaled(layer.cell.kernel, last, 0)]
    if kind is layers.Bidirectional:
        forward = _absorbed(layer.forward_layer, factors)
        backward = _absorbed(layer.backward_layer, factors)
        if forward is None or backward is None:
            return None
        return [*forward, *backward]
    if kind in (*_CONVOLUTIONS, *_TRANSPOSED, *_DEPTHWISE, *_SEPARABLE):
        channels = _channels(layer, factors)
        if channels is None:
            return None
        if kind in _CONVOLUTIONS:
            return _absorbed_by_convolution(layer, channels)
        if kind in _TRANSPOSED:
            return [_scaled(layer.kernel, channels, -1)]
        kernel = layer.kernel if kind in _DEPTHWISE else layer.depthwise_kernel
        return [_scaled(kernel, channels, -2)]
    return None


def _scaled(
    variable: keras.Variable, factors: np.ndarray, axis: int
) -> tuple[keras.Variable, np.ndarray]:
    """A variable, and its value with factors along one axis."""
    value = ops.convert_to_numpy(variable)
    shape = [1] * value.ndim
    shape[axis] = -1
    return variable, value * factors.reshape(shape)


def _absorbed_by_convolution(
    layer: Any, channels: np.ndarray
) -> list[tuple[keras.Variable, np.ndarray]]:
    # Each group of filters reads channels of its own.
    value = ops.convert_to_numpy(layer.kernel)
    grouped = value.reshape((*value.shape[:-1], layer.groups, -1))
    channels = np.broadcast_to(channels, layer.groups * value.shape[-2])
    factors = channels.reshape(layer.groups, -1).T[..., None]
    return [(layer.kernel, (grouped * factors).reshape(value.shape))]


def _absorbed_by_einsum(
    layer: Any, factors: np.ndarray
) -> list[tuple[keras.Variable, np.ndarray]] | None:
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
    return [_scaled(layer.kernel, factors.reshape(-1), position)]


def _absorbed_by_normalization(
    layer: Any, factors: np.ndarray
) -> list[tuple[keras.Variable, np.ndarray]] | None:
    axis = layer.axis if layer.axis < 0 else layer.axis - 1
    factors_of_axis = _along(factors, axis)
    if factors_of_axis is None or not (layer.scale and layer.center):
        return None
    # gamma (f x - m) / s + beta = (gamma f) (x - m) / s + beta + shift
    gamma, beta, average, variance = map(
        ops.convert_to_numpy,
        (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance),
    )
    shift = (factors_of_axis - 1.0) * gamma * average
    shift /= np.sqrt(variance + layer.epsilon)
    return [
        (layer.gamma, gamma * factors_of_axis),
        (layer.beta, beta + shift),
    ]
