"""Elementwise functions of large tensors, in few passes over memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_vd._backend.types import Tensor

# Entries of a tensor from which on it pays to start a compiled kernel.
MIN_SIZE = 2**14
USUAL_BATCH_SIZE = 2**7

# By the very function, other forms of it that compilers make less of: their
# authors enter them, and what each takes is said where it is used. A method
# that overrides another is another function, and has no form by accident.
FAST_FORMS: dict[Callable[..., Any], Any] = {}


def compiled(function: Callable[..., Any], *tensors: Any) -> Tensor:
    """Call an elementwise function that no gradient is wanted of.

    TensorFlow on a CPU would make one pass over memory per operation; here
    the function becomes one XLA kernel. JAX compiles whole steps anyway;
    PyTorch goes its usual way.

    Args:
        function: Of nothing but its arguments, and deterministic.
        *tensors: Its arguments.
    """
    if _is_worth_a_kernel(tensors):
        return _kernel(function)(*tensors)
    return function(*tensors)


def recomputed(
    function: Callable[..., tuple[Any, ...]],
    variables: Sequence[Any],
    constants: Sequence[Any],
) -> tuple[Any, ...]:
    """Call an elementwise function, and keep none of its temporaries.

    As `compiled`, with the gradient, which computes the function once more,
    as another kernel. JAX, made to recompute, takes longer.

    Args:
        function: Of `(variables, *constants)`, with a tuple of tensors for
            result; deterministic, and of nothing but its arguments.
        variables: Float tensors that gradients are wanted for.
        constants: Other tensors.

    Returns:
        What `function` returns.
    """
    if keras.backend.backend() == "tensorflow":
        variables, constants = map(_tensors, (variables, constants))
    if _is_worth_a_kernel(variables):
        return _with_gradient(function, variables, constants)
    return function(variables, *constants)


def rounded(product: Any) -> Tensor:
    """Round a product before it is added to something.

    XLA computes what is cheap anew in each loop that reads it, and takes a
    product and a sum for one operation in some of them. Then the largest of
    several outputs is not the largest elsewhere: softmax of outputs of 1e9
    overflows. A bound keeps the two apart, here one near the largest float.
    """
    if keras.backend.backend() == "torch":
        return product
    is_half = keras.backend.standardize_dtype(product.dtype) == "float16"
    bound = 6e4 if is_half else 3e38
    # The gradient of a minimum would cost more.
    return ops.where(ops.greater(product, bound), bound, product)


def fast_form(function: Callable[..., Any], tensors: Sequence[Any]) -> Any:
    """Return what computes the same as a function, where a compiler runs it.

    Args:
        function: A key of `FAST_FORMS`, or any other function.
        tensors: What it is about to be computed of.

    Returns:
        The entry; None if there is none, or if no compiler makes few loops of
        what is done to these tensors.
    """
    is_compiled = keras.backend.backend() == "jax"
    if is_compiled or _is_worth_a_kernel(tensors):
        return FAST_FORMS.get(function)
    return None


def _is_worth_a_kernel(tensors: Sequence[Any]) -> bool:
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    # With a GPU Keras compiles whole steps; not every other device can. Calls
    # outside a graph would be compiled for the sake of one.
    return (
        tf.inside_function()
        and max(map(_size, tensors)) >= MIN_SIZE
        and all(
            device.device_type == "CPU"
            for device in tf.config.list_logical_devices()
        )
    )


def _size(tensor: Tensor) -> int:
    """Entries of a weight, or of the outputs for a batch of usual size.

    0 if there is no telling: each new size is compiled anew, and texts have
    many lengths.
    """
    batch_size, *sizes = tensor.shape if len(tensor.shape) else (1,)
    if None in sizes:
        return 0
    return math.prod(sizes) * (batch_size or USUAL_BATCH_SIZE)


def _tensors(variables: Sequence[Any]) -> list[Any]:
    """Values; Keras' own conversion hands TensorFlow's variables on."""
    import tensorflow as tf

    return [tf.convert_to_tensor(variable) for variable in variables]


def _kernel(function: Callable[..., Any]) -> Any:
    import tensorflow as tf

    return tf.function(function, jit_compile=True, autograph=False)


def _with_gradient(
    function: Callable[..., tuple[Any, ...]],
    variables: Sequence[Any],
    constants: Sequence[Any],
) -> tuple[Any, ...]:
    import tensorflow as tf

    @_kernel
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

        return _kernel(function)(variables, *constants), gradient

    outputs: tuple[Any, ...] = call(*variables)
    return outputs
