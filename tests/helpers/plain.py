"""Plain Keras layers as oracles of variational ones."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import keras
import numpy as np

from tests.helpers.arrays import to_numpy


def plain_class(layer_class: type) -> type:
    """The layer of Keras, or KerasHub, that a variational layer stands for."""
    name = layer_class.__name__.removeprefix("VD")
    # Exported under another name than that of its class.
    if name == "GroupedQueryAttention":
        name = "GroupQueryAttention"
    if name == "PositionEmbedding":
        keras_hub: Any = importlib.import_module("keras_hub")
        return keras_hub.layers.PositionEmbedding
    return getattr(keras.layers, name)


def plain_linear(
    layer_class: type, arguments: dict[str, Any], inputs: Any, kernel: Any
) -> np.ndarray:
    """`inputs` through a Keras layer, without bias and activation."""
    linear = {"activation": None}
    if "bias_axes" in inspect.signature(layer_class).parameters:
        linear["bias_axes"] = None
    else:
        linear["use_bias"] = False
    plain = layer_class(**{**arguments, **linear})
    plain.build(np.shape(inputs))
    plain.weights[0].assign(kernel)
    return to_numpy(plain(inputs))


def linear_moments(
    layer_class: type,
    arguments: dict[str, Any],
    inputs: Any,
    thetas: list[Any],
    sigma2s: list[Any],
) -> tuple[np.ndarray, np.ndarray, float]:
    """Moments of a variational layer's outputs, biases left out.

    Args:
        layer_class: The Keras layer.
        arguments: Its arguments.
        inputs: One or more examples.
        thetas: Means of each weight.
        sigma2s: Variances of each weight.

    Returns:
        Mean, variance and a bound on the kurtosis.
    """
    if len(thetas) == 2:
        return _separable_moments(arguments, inputs, thetas, sigma2s)
    mean = plain_linear(layer_class, arguments, inputs, thetas[0])
    variance = plain_linear(layer_class, arguments, inputs**2, sigma2s[0])
    return mean, variance, 3.0


def _separable_moments(
    arguments: dict[str, Any],
    inputs: Any,
    thetas: list[Any],
    sigma2s: list[Any],
) -> tuple[np.ndarray, np.ndarray, float]:
    """Moments of y = sum_c h_c p_c for independent normals h_c and p_c.

    With h ~ N(m, v) and p ~ N(t, s), E y = sum m t and
    Var y = sum v t^2 + sum (m^2 + v) s =: a + b.

    y - E y = A + sqrt(V) e with A ~ N(0, a), V = sum h^2 s and E V = b.
    Var h^2 = 2 v^2 + 4 m^2 v <= 2 (m^2 + v)^2, so E V^2 <= 3 b^2, and
    E (y - E y)^4 = E A^4 + 6 E A^2 V + 3 E V^2
    <= 3 a^2 + 6 sqrt(3 a^2 3 b^2) + 9 b^2 <= 9 (a + b)^2.
    """
    rank = np.ndim(inputs) - 2
    depthwise = {
        name: arguments[name]
        for name in (
            "kernel_size",
            "strides",
            "padding",
            "depth_multiplier",
            "dilation_rate",
            "data_format",
        )
        if name in arguments
    }
    is_first = arguments.get("data_format") == "channels_first"
    first = getattr(keras.layers, f"DepthwiseConv{rank}D")

    def pointwise(hidden: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        kernel = np.reshape(kernel, np.shape(kernel)[-2:])
        if is_first:
            return np.einsum("bc...,cf->bf...", hidden, kernel)
        return hidden @ kernel

    hidden = plain_linear(first, depthwise, inputs, thetas[0])
    spread = plain_linear(first, depthwise, inputs**2, sigma2s[0])
    mean = pointwise(hidden, thetas[1])
    variance = pointwise(spread, thetas[1] ** 2) + pointwise(
        hidden**2 + spread, sigma2s[1]
    )
    return mean, variance, 9.0
