"""Elementwise functions of whole weights, in few passes over memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras

# Entries of a weight from which on it pays to start a compiled kernel.
MIN_SIZE = 2**14


def recomputed(
    function: Callable[..., tuple[Any, ...]],
    variables: Sequence[Any],
    constants: Sequence[Any],
) -> tuple[Any, ...]:
    """Call a function of weight-sized tensors; keep none of its temporaries.

    TensorFlow on a CPU would make one pass over memory per operation. Here
    the function and its gradient, which computes it once more, become one XLA
    kernel each. JAX compiles whole steps anyway, and made to recompute takes
    longer; PyTorch, which compiles nothing, goes its usual way.

    Args:
        function: Of `(variables, *constants)`, with a tuple of tensors for
            result; deterministic, and of nothing but its arguments.
        variables: Float tensors that gradients are wanted for.
        constants: Other tensors.

    Returns:
        What `function` returns.
    """
    is_tensorflow = keras.backend.backend() == "tensorflow"
    if is_tensorflow and _is_worth_a_kernel(variables):
        return _as_kernels(function, variables, constants)
    return function(variables, *constants)


def _is_worth_a_kernel(variables: Sequence[Any]) -> bool:
    import tensorflow as tf

    # With a GPU Keras compiles whole steps; not every other device can. Calls
    # outside a graph would be compiled for the sake of one.
    return (
        tf.inside_function()
        and max(variable.shape.num_elements() for variable in variables)
        >= MIN_SIZE
        and all(
            device.device_type == "CPU"
            for device in tf.config.list_logical_devices()
        )
    )


def _as_kernels(
    function: Callable[..., tuple[Any, ...]],
    variables: Sequence[Any],
    constants: Sequence[Any],
) -> tuple[Any, ...]:
    import tensorflow as tf

    kernel = functools.partial(tf.function, jit_compile=True, autograph=False)
    # Keras' own conversion hands its variables on as they are.
    variables = [tf.convert_to_tensor(variable) for variable in variables]
    constants = [tf.convert_to_tensor(constant) for constant in constants]

    @kernel
    def backward(
        variables: Sequence[Any],
        constants: Sequence[Any],
        upstream: Sequence[Any],
    ) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(variables)
            outputs = function(variables, *constants)
        return tape.gradient(
            outputs,
            variables,
            upstream,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )

    @tf.custom_gradient
    def call(*variables: Any) -> tuple[Any, Any]:
        def gradient(*upstream: Any) -> Any:
            return backward(variables, constants, upstream)

        return kernel(function)(variables, *constants), gradient

    outputs: tuple[Any, ...] = call(*variables)
    return outputs
