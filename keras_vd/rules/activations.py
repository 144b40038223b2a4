"""What activation functions do to constants and to channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

# Compared by identity, because a user's callable may not be hashable.
_ELEMENTWISE = {
    id(getattr(keras.activations, name))
    for name in (
        "linear relu relu6 leaky_relu elu selu celu gelu silu mish softplus "
        "softsign tanh sigmoid hard_sigmoid hard_silu hard_tanh exponential "
        "log_sigmoid sparse_plus sparse_sigmoid squareplus tanh_shrink "
        "soft_shrink hard_shrink threshold"
    ).split()
    if hasattr(keras.activations, name)
}
_MIXING = {
    id(getattr(keras.activations, name))
    for name in ("softmax", "log_softmax", "sparsemax", "glu")
    if hasattr(keras.activations, name)
}
# Compared by the exact class, because a subclass may compute anything.
_ELEMENTWISE_LAYERS = {
    getattr(keras.layers, name) for name in ("ReLU", "LeakyReLU", "ELU")
}


def is_elementwise(activation: Any) -> bool:
    """Tell whether an activation maps every entry by itself.

    A function that is not one of Keras' is tried out on a whole array and on
    one entry at a time; both must give the same results.
    """
    if activation is None or id(activation) in _ELEMENTWISE:
        return True
    if type(activation) in _ELEMENTWISE_LAYERS:
        return True
    if type(activation) is keras.layers.Activation:
        return is_elementwise(activation.activation)
    # Other layers may have weights, such as one slope per channel.
    is_layer = isinstance(activation, keras.layers.Layer)
    if id(activation) in _MIXING or is_layer:
        return False
    inputs = np.random.default_rng(0).normal(scale=2.0, size=(3, 4))
    inputs = inputs.astype("float32")
    try:
        whole = evaluate(activation, inputs)
        single = np.array(
            [evaluate(activation, x.reshape(1, 1))[0, 0] for x in inputs.flat]
        )
    except Exception:  # Whatever a user's function raises on such shapes.
        return False
    # Backends may round differently when they compute several entries at once.
    return whole.shape == inputs.shape and np.allclose(
        whole.reshape(-1), single, rtol=1e-5, atol=1e-6
    )


def evaluate(
    activation: Callable[[Any], Any] | None,
    values: np.ndarray,
    dtype: str = "float32",
) -> np.ndarray:
    """Apply an activation to an array: float64, NaN where it is not finite."""
    if activation is None or not values.size:
        return np.array(values, np.float64)
    tensor = ops.convert_to_tensor(np.asarray(values, dtype))
    results = np.array(ops.convert_to_numpy(activation(tensor)), np.float64)
    return np.where(np.isfinite(results), results, np.nan)


def evaluate_constants(
    layer: Any,
    activation: Callable[[Any], Any] | None,
    constants: np.ndarray,
) -> np.ndarray:
    """Apply an activation to a layer's known constants; the others stay NaN.

    Constants and results are `(width,)`.
    """
    known = ~np.isnan(constants)
    results = np.full_like(constants, np.nan)
    if known.any():
        # The results may go into a bias of the next layer, for which a result
        # in 16 bits would be too coarse.
        is_double = getattr(layer, "compute_dtype", None) == "float64"
        dtype = "float64" if is_double else "float32"
        results[known] = evaluate(activation, constants[known][None], dtype)[0]
    return results
