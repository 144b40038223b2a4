"""One of two functions, chosen while a compiled step runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_vd._backend.fusing import (
    gradients_on_tensorflow,
    is_traced,
    traced_once,
)
from keras_vd._backend.types import Tensor


def is_all_true(mask: Tensor) -> Any:
    """Tell whether a mask that seldom changes is True everywhere.

    On PyTorch, a mask is only looked at when it has changed, as a look waits
    for the device.

    Args:
        mask: Bool tensor; on PyTorch, that of a variable.

    Returns:
        Bool scalar; a bool of Python on PyTorch.
    """
    if keras.backend.backend() != "torch":
        # On a CPU, XLA compares bytes faster than truth values.
        return ops.equal(ops.min(ops.cast(mask, "uint8")), 1)
    import torch

    # A compiled step leaves its graph here: what it finds may change later.
    return torch.compiler.disable(_look)(mask)


def _look(mask: Tensor) -> bool:
    looks = _looks()
    version, found = looks.get(mask, (None, None))
    if version != mask._version:
        found = bool(mask.all())
        looks[mask] = mask._version, found
    return bool(found)


@functools.cache
def _looks() -> Any:
    """Return what masks were, and at which version, as long as they exist."""
    from torch.utils.weak import WeakIdKeyDictionary

    return WeakIdKeyDictionary()


def either(
    predicate: Tensor,
    first: Callable[..., Tensor],
    second: Callable[..., Tensor],
    tensors: Sequence[Any],
    constants: Sequence[Any] = (),
    find_key: Callable[[], Any] = lambda: None,
) -> Tensor:
    """Call `first` where `predicate` holds, else `second`.

    Nothing of a call is kept for the gradient, which computes it once more:
    compilers would make room for what both functions keep, and fill it with
    zeros for the one that was not called.

    Args:
        predicate: Bool scalar.
        first: Of the tensors and the constants; returns a tensor.
        second: Likewise, of the same shape and dtype.
        tensors: Float tensors that gradients are wanted for.
        constants: Other tensors. The functions depend on nothing else.
        find_key: Returns a hashable that is equal for functions that do the
            same, which TensorFlow then traces once; None if not known.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return _either_on_tensorflow(
            predicate, first, second, tensors, constants, find_key()
        )
    if backend == "jax" and is_traced(predicate):
        return _either_on_jax(predicate, first, second, tensors, constants)
    chosen = first if predicate else second
    return chosen(*tensors, *constants)


def _either_on_tensorflow(
    predicate: Tensor,
    first: Callable[..., Tensor],
    second: Callable[..., Tensor],
    tensors: Sequence[Any],
    constants: Sequence[Any],
    key: Any,
) -> Tensor:
    import tensorflow as tf

    # Keras' own conversion returns a variable unchanged.
    constants = [tf.convert_to_tensor(x) for x in constants]

    def choose(
        predicate: Tensor, tensors: Sequence[Any], constants: Sequence[Any]
    ) -> Tensor:
        operands = (*tensors, *constants)
        return tf.cond(
            predicate, lambda: first(*operands), lambda: second(*operands)
        )

    def gradients(
        predicate: Tensor,
        tensors: Sequence[Any],
        constants: Sequence[Any],
        upstream: Tensor,
    ) -> Any:
        def of(function: Callable[..., Tensor]) -> Any:
            return gradients_on_tensorflow(
                lambda tensors: function(*tensors, *constants),
                tensors,
                upstream,
            )

        return tf.cond(predicate, lambda: of(first), lambda: of(second))

    def call_once(function: Callable[..., Any], name: str) -> Any:
        is_shared = key is not None and tf.inside_function()
        return traced_once(function, (key, name)) if is_shared else function

    @tf.custom_gradient
    def call(*tensors: Any) -> tuple[Any, Any]:
        def gradient(upstream: Tensor) -> Any:
            pullback = call_once(gradients, "gradients")
            return pullback(predicate, tensors, constants, upstream)

        outputs = call_once(choose, "outputs")(predicate, tensors, constants)
        return outputs, gradient

    return call(*map(tf.convert_to_tensor, tensors))


def _either_on_jax(
    predicate: Tensor,
    first: Callable[..., Tensor],
    second: Callable[..., Tensor],
    tensors: Sequence[Any],
    constants: Sequence[Any],
) -> Tensor:
    import jax

    def gradients(
        function: Callable[..., Tensor],
        tensors: Sequence[Any],
        constants: Sequence[Any],
        upstream: Tensor,
    ) -> Any:
        _, pullback = jax.vjp(lambda *x: function(*x, *constants), *tensors)
        return pullback(upstream)

    @jax.custom_vjp  # type: ignore[untyped-decorator]
    def call(
        predicate: Tensor, tensors: Sequence[Any], constants: Sequence[Any]
    ) -> Tensor:
        return jax.lax.cond(predicate, first, second, *tensors, *constants)

    def forward(*operands: Any) -> tuple[Tensor, Any]:
        return call(*operands), operands

    def backward(operands: Any, upstream: Tensor) -> Any:
        predicate, tensors, constants = operands
        found = jax.lax.cond(
            predicate,
            functools.partial(gradients, first),
            functools.partial(gradients, second),
            tensors,
            constants,
            upstream,
        )
        return None, found, None

    call.defvjp(forward, backward)
    return call(predicate, tuple(tensors), tuple(constants))
