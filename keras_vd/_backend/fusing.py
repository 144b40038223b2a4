"""Elementwise functions of large tensors, in few passes over memory."""

from __future__ import annotations

import functools
import inspect
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_vd._backend.types import Tensor

# A tensor needs at least this many entries for a compiled kernel to pay off.
MIN_SIZE = 2**14
USUAL_BATCH_SIZE = 2**7

# Classes of moments that compilers turn into fewer or faster loops, by the
# `_log_variances` of the posterior that they are for. Modules enter their own.
# A key is the function object itself, so a method that overrides another one
# does not get the class of that one by accident.
FAST_MOMENTS: dict[Callable[..., Any], type] = {}
# Likewise, classes of moments for PyTorch, of few operations.
EAGER_MOMENTS: dict[Callable[..., Any], type] = {}

# Functions of TensorFlow by the graph that calls them, and a key.
_FUNCTIONS: Any = weakref.WeakKeyDictionary()


def compiled(function: Callable[..., Any], *tensors: Any) -> Any:
    """Call an elementwise function whose gradient is not needed.

    TensorFlow on a CPU makes one pass over memory per operation, so there the
    function is compiled to one XLA kernel if its arguments are large. JAX
    compiles whole steps anyway, and PyTorch calls the function as it is.

    Args:
        function: Deterministic, and a function of its arguments alone.
        *tensors: Its arguments.
    """
    if _is_worth_a_kernel(tensors):
        return _kernel(function, key_of(function))(*tensors)
    return function(*tensors)


def recomputed(
    function: Callable[..., tuple[Any, ...]],
    variables: Sequence[Any],
    constants: Sequence[Any],
    find_key: Callable[[], Any] = lambda: None,
) -> tuple[Any, ...]:
    """Call an elementwise function without storing its temporaries.

    This is `compiled` with a gradient: to compute it, a second kernel computes
    the function once more. JAX is left alone, as recomputing takes longer
    there.

    Args:
        function: Called as `function(variables, *constants)`, it returns a
            tuple of tensors. Deterministic, and a function of its arguments
            alone.
        variables: Float tensors whose gradients are needed.
        constants: Other tensors.
        find_key: Returns a hashable that is equal for functions that do the
            same, or None: see `key_of`. Asked where there are kernels.

    Returns:
        What `function` returns.
    """
    if keras.backend.backend() == "tensorflow":
        variables, constants = map(_tensors, (variables, constants))
    if _is_worth_a_kernel(variables):
        key = find_key() or key_of(function)
        return _with_gradient(function, variables, constants, key)
    return function(variables, *constants)


def forgetting(function: Callable[..., Any], *tensors: Any) -> Any:
    """Call a cheap function that computes its gradient from its arguments.

    On JAX, nothing else is kept for the gradient. `recomputed` does so on
    TensorFlow, and this function leaves that as it is.

    Args:
        function: A function of tensors, and of constants.
        *tensors: Its arguments.
    """
    if keras.backend.backend() == "jax" and any(map(is_traced, tensors)):
        import jax

        return jax.checkpoint(function)(*tensors)
    return function(*tensors)


def is_traced(tensor: Tensor) -> bool:
    """Tell whether JAX traces a tensor, instead of computing it at once."""
    import jax

    return isinstance(tensor, jax.core.Tracer)


def no_gradient(tensor: Tensor) -> Any:
    """Return what a custom gradient gives for a tensor that needs none."""
    # Compilers leave the zeros out. PyTorch would write them.
    return (
        None if keras.backend.backend() == "torch" else ops.zeros_like(tensor)
    )


def total(terms: Tensor) -> Tensor:
    """Sum a tensor that an elementwise function of large tensors gives.

    XLA on a CPU computes what it adds up entry by entry, without vectors. The
    sum is therefore a product with ones, before which XLA has to write the
    terms to memory, in a loop with vectors.

    Args:
        terms: Float tensor of known shape.

    Returns:
        Scalar of the same type.
    """
    shape = tuple(terms.shape)
    if keras.backend.backend() == "torch" or math.prod(shape) < MIN_SIZE:
        return ops.sum(terms)
    columns = shape[-1]
    rows = ops.reshape(terms, (-1, columns))
    return ops.sum(ops.matmul(rows, ops.ones((columns, 1), terms.dtype)))


def rounded(product: Any) -> Tensor:
    """Round a product before it is added to something.

    XLA recomputes a cheap value in each loop that reads it, and in some of
    these loops fuses the product and the sum into one operation, which rounds
    differently. The largest of several outputs in one loop is then not the
    largest in another: a softmax of outputs near 1e9 overflows. A bound between
    product and sum prevents that. It is near the largest float, so that it
    changes no ordinary value.
    """
    if keras.backend.backend() == "torch":
        return product
    is_half = keras.backend.standardize_dtype(product.dtype) == "float16"
    bound = 6e4 if is_half else 3e38
    # Not `ops.minimum`, whose gradient costs more.
    return ops.where(ops.greater(product, bound), bound, product)


def fast_moments(
    log_variances: Callable[..., Any], tensors: Sequence[Any], usual: type
) -> type:
    """Return the class of moments to compute with.

    Args:
        log_variances: The posterior's method: a key of `FAST_MOMENTS`, or any
            other function.
        tensors: The tensors that moments are about to be computed from.
        usual: The class where there is no other one, or where operations on
            these tensors are not compiled.
    """
    backend = keras.backend.backend()
    if backend == "torch" and not _is_compiling():
        return EAGER_MOMENTS.get(log_variances, usual)
    if backend == "jax" or _is_worth_a_kernel(tensors):
        return FAST_MOMENTS.get(log_variances, usual)
    return usual


def _is_compiling() -> bool:
    import torch

    return bool(torch.compiler.is_compiling())


def _is_worth_a_kernel(tensors: Sequence[Any]) -> bool:
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    # Only for CPUs: with a GPU Keras compiles whole steps, and other devices
    # may be unable to. Outside a graph, every single call would be compiled.
    return (
        tf.inside_function()
        and max(map(usual_size, tensors)) >= MIN_SIZE
        and all(
            device.device_type == "CPU"
            for device in tf.config.list_logical_devices()
        )
    )


def usual_size(tensor: Tensor) -> int:
    """Count the entries of a tensor, for a batch of usual size if not known.

    Return 0 if another size is not known. A kernel is compiled anew for each
    size, and texts, for example, come in many lengths.
    """
    batch_size, *sizes = tensor.shape if len(tensor.shape) else (1,)
    if None in sizes:
        return 0
    return math.prod(sizes) * (batch_size or USUAL_BATCH_SIZE)


def _tensors(variables: Sequence[Any]) -> list[Any]:
    """Convert variables to tensors.

    Keras' own conversion returns a variable of TensorFlow unchanged.
    """
    import tensorflow as tf

    return [tf.convert_to_tensor(variable) for variable in variables]


def _kernel(function: Callable[..., Any], key: Any) -> Any:
    """Return a function that is compiled to one kernel; see `traced_once`."""
    return traced_once(function, key, jit_compile=True)


def traced_once(
    function: Callable[..., Any], key: Any, jit_compile: bool | None = None
) -> Any:
    """Return a function of TensorFlow, within a graph the same for equal keys.

    Many layers of one kind are then traced and compiled once for each shape.

    Args:
        function: A function of its arguments alone.
        key: Hashable, equal for functions that do the same; None if not known.
        jit_compile: Whether XLA compiles it.
    """
    import tensorflow as tf

    def make_function() -> Any:
        return tf.function(function, jit_compile=jit_compile, autograph=False)

    if key is None:
        return make_function()
    functions = _FUNCTIONS.setdefault(tf.compat.v1.get_default_graph(), {})
    if key not in functions:
        functions[key] = make_function()
    return functions[key]


def key_of(function: Callable[..., Any]) -> Any:
    """Return what is equal for functions that do the same; None if unknown.

    Methods of objects do the same if these have an equal `_recipe`.
    """
    if isinstance(function, functools.partial):
        key = key_of(function.func)
        options = (function.args, tuple(sorted(function.keywords.items())))
        return (key, options) if key and _is_hashable(options) else None
    if inspect.ismethod(function):
        recipe = getattr(function.__self__, "_recipe", None)
        return recipe and (recipe, function.__func__)
    return None if getattr(function, "__closure__", None) else function


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def gradients_on_tensorflow(
    function: Callable[[Sequence[Any]], Any],
    variables: Sequence[Any],
    upstream: Any,
) -> Any:
    """Compute the gradients of a function of tensors, zeros included.

    Args:
        function: Returns a tensor or a tuple of tensors.
        variables: What it is computed from.
        upstream: Gradients of what it returns.
    """
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(variables)
        outputs = function(variables)
    return tape.gradient(
        outputs,
        variables,
        upstream,
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )


def _with_gradient(
    function: Callable[..., tuple[Any, ...]],
    variables: Sequence[Any],
    constants: Sequence[Any],
    key: Any,
) -> tuple[Any, ...]:
    import tensorflow as tf

    def backward(
        variables: Sequence[Any],
        constants: Sequence[Any],
        upstream: Sequence[Any],
    ) -> Any:
        return gradients_on_tensorflow(
            lambda variables: function(variables, *constants),
            variables,
            upstream,
        )

    @tf.custom_gradient
    def call(*variables: Any) -> tuple[Any, Any]:
        def gradient(*upstream: Any) -> Any:
            kernel = _kernel(backward, key and (key, "gradient"))
            return kernel(variables, constants, upstream)

        return _kernel(function, key)(variables, *constants), gradient

    outputs: tuple[Any, ...] = call(*variables)
    return outputs
