"""Layers that treat every channel by itself and keep the number of channels."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import UNARY_OPERATIONS, LayerScale
from keras_vd.rules.activations import evaluate_constants, is_elementwise
from keras_vd.rules.factors import Values, along, of_channels
from keras_vd.rules.graph import GraphTensor, Node
from keras_vd.rules.rule import Rule, finite, join, rule_for, to_numpy

_HOMOGENEOUS = tuple(
    keras.activations.get(name) for name in ("linear", "relu", "leaky_relu")
)


def layers_named(*names: str) -> list[type]:
    """List those of the named layers that the installed Keras has."""
    return [
        getattr(keras.layers, name)
        for name in names
        if hasattr(keras.layers, name)
    ]


def by_data_format(layer: Any) -> tuple[bool, bool]:
    """Return `Rule.channels_first` of a layer that says it itself."""
    first = getattr(layer, "data_format", None) == "channels_first"
    return first, first


def by_axis(axis: int, node: Node) -> tuple[bool, bool]:
    """Return `Rule.channels_first` of a layer with one axis of channels."""
    first = axis % len(node.inputs[0].shape) == 1
    return first, first


def axis_refusal(axis: int, node: Node) -> str | None:
    """Return why a rule does not cover this axis of channels."""
    rank = len(node.inputs[0].shape)
    is_known = axis % rank in (1, rank - 1)
    return None if is_known else "its channels are neither first nor last"


class OnAnyAxis(Rule):
    """A rule to which it is the same which axis is that of channels."""

    @classmethod
    def channels_first(
        cls, layer: Any, node: Node
    ) -> tuple[bool | None, bool | None]:
        return None, None


class ChannelwiseRule(Rule):
    """A layer that leaves a constant channel constant, with the same value."""

    ties_uses = False
    works_per_step = True
    hands_on = True

    @classmethod
    def channels_first(
        cls, layer: Any, node: Node
    ) -> tuple[bool | None, bool | None]:
        return by_data_format(layer)

    def find_constants(self, node: Node) -> None:
        node.outputs[0].constant = self._constants(
            self.constants_of(node.inputs[0])
        )

    def _constants(self, constants: np.ndarray) -> np.ndarray:
        return constants

    def require(self, node: Node) -> None:
        join((*node.inputs, *node.outputs))


@rule_for(
    *layers_named(
        *("Cropping1D", "Cropping2D", "Cropping3D"),
        *("UpSampling1D", "UpSampling3D"),
        *("MaxPooling1D", "MaxPooling2D", "MaxPooling3D"),
    )
)
class SpatialRule(ChannelwiseRule):
    """A layer over neighbouring positions, linear per channel or a maximum."""

    @classmethod
    def passed_on(
        cls, layer: Any, factors: np.ndarray, shape: tuple[Any, ...]
    ) -> np.ndarray | None:
        return None if of_channels(layer, factors) is None else factors


@rule_for(
    *layers_named(
        *("Identity", "Dropout", "AlphaDropout", "GaussianDropout"),
        *("GaussianNoise", "SpatialDropout1D", "SpatialDropout2D"),
        *("SpatialDropout3D", "ActivityRegularization"),
    )
)
class IdentityRule(OnAnyAxis, ChannelwiseRule):
    """A layer that does nothing at inference."""

    @classmethod
    def passed_on(
        cls, layer: Any, factors: np.ndarray, shape: tuple[Any, ...]
    ) -> np.ndarray | None:
        return factors


@rule_for(keras.layers.RepeatVector)
class RepeatVectorRule(ChannelwiseRule):
    """A layer that repeats its input at every step."""


@rule_for(
    *layers_named(
        *("GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D")
    )
)
class GlobalPoolingRule(ChannelwiseRule):
    """A pooling to one value of each channel."""

    @classmethod
    def passed_on(
        cls, layer: Any, factors: np.ndarray, shape: tuple[Any, ...]
    ) -> np.ndarray | None:
        channels = of_channels(layer, factors)
        return factors if layer.keepdims and channels is not None else channels


@rule_for(
    *layers_named("AveragePooling1D", "AveragePooling2D", "AveragePooling3D")
)
class AverageRule(SpatialRule):
    """A mean over positions; a border or a mask may change a constant."""

    def sees_borders(self) -> bool:
        # Backends differ in whether zeros around the input count.
        return bool(getattr(self.layer, "padding", "valid") != "valid")

    def find_constants(self, node: Node) -> None:
        super().find_constants(node)
        # The mean of an example without any valid step is not a number.
        if self.sees_borders() or node.others:
            values = node.outputs[0].constant
            node.outputs[0].constant = np.where(values == 0.0, values, np.nan)


@rule_for(
    *layers_named(
        *("GlobalAveragePooling1D", "GlobalAveragePooling2D"),
        "GlobalAveragePooling3D",
    )
)
class GlobalAverageRule(GlobalPoolingRule, AverageRule):
    """The mean of each channel over all positions."""


@rule_for(
    *layers_named("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D"),
)
class ZeroPaddingRule(SpatialRule):
    """Zeros around the input: only a channel of zeros stays constant."""

    def sees_borders(self) -> bool:
        return True

    def _constants(self, constants: np.ndarray) -> np.ndarray:
        return np.where(constants == 0.0, constants, np.nan)


@rule_for(keras.layers.UpSampling2D)
class UpSamplingRule(SpatialRule):
    """Interpolation, of which some kinds overshoot or fade at the border."""

    def sees_borders(self) -> bool:
        return self.layer.interpolation not in ("nearest", "bilinear")

    def _constants(self, constants: np.ndarray) -> np.ndarray:
        if not self.sees_borders():
            return constants
        return np.where(constants == 0.0, constants, np.nan)


@rule_for(keras.layers.Permute)
class PermuteRule(ChannelwiseRule):
    """A change of axes, from or to channels that come first or last."""

    @classmethod
    def _axes(cls, layer: Any, node: Node) -> tuple[int, ...]:
        """Return which axis of the input each axis of the output is."""
        return (0, *layer.dims)

    @classmethod
    def channels_first(
        cls, layer: Any, node: Node
    ) -> tuple[bool | None, bool | None]:
        axes = cls._axes(layer, node)
        last = len(axes) - 1
        is_put_last = axes[-1] == 1 < last
        return is_put_last, axes[1] == last and not is_put_last

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        axes = cls._axes(layer, node)
        if axes[node.outputs[0].axis] - len(axes) != node.inputs[0].axis:
            return "it moves the axis of channels"
        return super().refusal(layer, node)


@rule_for(*layers_named("ELU"), *UNARY_OPERATIONS.values())
class ElementwiseRule(OnAnyAxis, ChannelwiseRule):
    """A function of every entry by itself."""

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        if not is_elementwise(getattr(layer, "activation", None)):
            return "its activation mixes channels"
        # The bounds of `keras.ops.clip`.
        bounds = [getattr(layer, x, 0.0) for x in ("x_min", "x_max")]
        if any(map(np.ndim, bounds)):
            return "its numbers are not one for all channels"
        return super().refusal(layer, node)

    def _constants(self, constants: np.ndarray) -> np.ndarray:
        return evaluate_constants(self.layer, self.layer.call, constants)


class RampRule(ElementwiseRule):
    """A function that may have f(c x) = c f(x) for every c >= 0."""

    @classmethod
    def passed_on(
        cls, layer: Any, factors: np.ndarray, shape: tuple[Any, ...]
    ) -> np.ndarray | None:
        return factors if cls._is_homogeneous(layer) else None

    @classmethod
    def _is_homogeneous(cls, layer: Any) -> bool:
        return True


@rule_for(keras.layers.LeakyReLU)
class LeakyReLURule(RampRule):
    """A ramp with two slopes."""


@rule_for(keras.layers.Activation)
class ActivationRule(RampRule):
    """A layer that applies an activation function."""

    @classmethod
    def _is_homogeneous(cls, layer: Any) -> bool:
        return layer.activation in _HOMOGENEOUS


@rule_for(keras.layers.ReLU)
class ReLURule(RampRule):
    """A ramp, which may start elsewhere than at 0 or have a maximum."""

    @classmethod
    def _is_homogeneous(cls, layer: Any) -> bool:
        return layer.max_value is None and layer.threshold == 0


@rule_for(keras.layers.PReLU)
class PReLURule(OnAnyAxis, ChannelwiseRule):
    """A ramp with slopes of the shape of one example, 1 along shared axes."""

    ties_uses = True

    @classmethod
    def passed_on(
        cls, layer: Any, factors: np.ndarray, shape: tuple[Any, ...]
    ) -> np.ndarray | None:
        return factors

    def _constants(self, constants: np.ndarray) -> np.ndarray:
        # Where the slope differs between positions, a constant stays constant
        # only if it is not negative.
        slopes = np.moveaxis(to_numpy(self.layer.alpha), self.input.axis, -1)
        slopes = slopes.reshape(-1, slopes.shape[-1])
        is_even = (slopes == slopes[0]).all(axis=0)
        values = np.where(constants < 0.0, constants * slopes[0], constants)
        return np.where(is_even | (constants >= 0.0), values, np.nan)

    def shrunk(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        slopes = to_numpy(self.layer.alpha)
        return self.config, [columns(slopes, self.input)]


@rule_for(keras.layers.Rescaling)
class RescalingRule(OnAnyAxis, ChannelwiseRule):
    """`scale * x + offset`, each a number or an array of them."""

    def __init__(self, layer: Any, uses: list[Node]) -> None:
        super().__init__(layer, uses)
        self.ties_uses = np.size(layer.scale) + np.size(layer.offset) > 2

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        if node.inputs[0].shape != node.outputs[0].shape:
            return "its numbers change the shape"
        return super().refusal(layer, node)

    def _constants(self, constants: np.ndarray) -> np.ndarray:
        scale, offset = (
            per_channel(np.asarray(value), self.input)
            for value in (self.layer.scale, self.layer.offset)
        )
        is_zero = (scale == 0.0) | (constants == 0.0)
        return finite(np.where(is_zero, 0.0, constants * scale) + offset)

    def shrunk(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        config = self.config
        for name in ("scale", "offset"):
            values = np.asarray(getattr(self.layer, name), np.float64)
            if values.size > 1:
                config[name] = columns(values, self.input).tolist()
        return config, []


def per_channel(array: np.ndarray, tensor: GraphTensor) -> np.ndarray:
    """Return the number that each channel has at all positions, or NaN.

    Args:
        array: Broadcasts to one example.
        tensor: What it is for.
    """
    array = array.reshape((1,) * (-tensor.axis - array.ndim) + array.shape)
    rows = np.moveaxis(array, tensor.axis, -1).astype(np.float64)
    rows = rows.reshape(-1, rows.shape[-1])
    rows = np.broadcast_to(rows, (len(rows), tensor.width))
    return np.where((rows == rows[0]).all(axis=0), rows[0], np.nan)


def columns(array: np.ndarray, tensor: GraphTensor) -> np.ndarray:
    """Return the numbers of a tensor's kept channels, or those of all."""
    axis = tensor.axis
    is_one = array.ndim < -axis or array.shape[axis] == 1
    return array if is_one else np.compress(tensor.keep, array, axis)


@rule_for(keras.layers.Normalization)
class NormalizationRule(OnAnyAxis, ChannelwiseRule):
    """A mean and a variance along some axes, given or from data."""

    ties_uses = True

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        rank = len(node.inputs[0].shape)
        axes = _sorted_axes(layer, rank)
        if 0 in axes:
            return "its numbers are a batch"
        # Keras 3.10 takes means of other axes from data only.
        if cls._varies(layer, node) and axes != [*range(axes[0], rank)]:
            return "the axes of its numbers are not the last ones"
        return super().refusal(layer, node)

    @classmethod
    def _varies(cls, layer: Any, node: Node) -> bool:
        """Tell whether channels have numbers of their own."""
        rank = len(node.inputs[0].shape)
        return node.inputs[0].axis % rank in _sorted_axes(layer, rank)

    def _numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and variance, which broadcast to one example."""
        mean, variance = self.layer.mean, self.layer.variance
        return to_numpy(mean)[0], to_numpy(variance)[0]

    def _constants(self, constants: np.ndarray) -> np.ndarray:
        mean, variance = (per_channel(x, self.input) for x in self._numbers())
        deviation = np.maximum(np.sqrt(variance), keras.config.epsilon())
        if self.layer.invert:
            return finite(mean + constants * deviation)
        return finite((constants - mean) / deviation)

    def shrunk(self) -> tuple[dict[str, Any], list[np.ndarray]] | None:
        if not self._varies(self.layer, self.uses[0]):
            return None
        config = self.config
        rank = len(self.layer.axis)
        for name, values in zip(
            ("mean", "variance"), self._numbers(), strict=True
        ):
            kept = columns(values, self.input)
            config[name] = kept.reshape(kept.shape[-rank:]).tolist()
        return config, []


def _sorted_axes(layer: Any, rank: int) -> list[int]:
    return sorted(axis % rank for axis in layer.axis)


@rule_for(LayerScale)
class LayerScaleRule(ChannelwiseRule):
    """A factor for each channel, as in ConvNeXt."""

    ties_uses = True

    def _constants(self, constants: np.ndarray) -> np.ndarray:
        factors = to_numpy(self.layer.gamma)
        return finite(np.where(factors == 0.0, 0.0, constants * factors))

    def shrunk(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        factors = to_numpy(self.layer.gamma)[self.input.keep]
        return {**self.config, "projection_dim": factors.size}, [factors]


@rule_for(keras.layers.BatchNormalization)
class BatchNormalizationRule(ChannelwiseRule):
    """A layer that at inference is a factor and an offset per channel."""

    ties_uses = True

    @classmethod
    def channels_first(
        cls, layer: Any, node: Node
    ) -> tuple[bool | None, bool | None]:
        return by_axis(layer.axis, node)

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        return axis_refusal(layer.axis, node) or super().refusal(layer, node)

    @classmethod
    def absorbed(cls, layer: Any, factors: np.ndarray) -> Values | None:
        axis = layer.axis if layer.axis < 0 else layer.axis - 1
        factors_of_axis = along(factors, axis)
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

    def _constants(self, constants: np.ndarray) -> np.ndarray:
        layer = self.layer
        mean, variance = map(
            to_numpy, (layer.moving_mean, layer.moving_variance)
        )
        scale = 1.0 / np.sqrt(variance + layer.epsilon)
        if layer.scale:
            scale = scale * to_numpy(layer.gamma)
        # A channel with a factor of zero becomes constant, whatever its input.
        constants = np.where(scale == 0.0, mean, constants)
        values = (constants - mean) * scale
        return finite(values + (to_numpy(layer.beta) if layer.center else 0.0))

    def shrunk(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        keep = self.input.keep
        weights = [to_numpy(x)[keep] for x in self.layer.weights]
        return self.config, weights
