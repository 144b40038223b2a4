"""Gradients of backend-agnostic functions, as NumPy arrays."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np


def gradient(fn: Callable[..., Any], *arrays: Any) -> list[np.ndarray]:
    """Differentiate sum(fn(*arrays)) with the autodiff of the backend.

    Args:
        fn: Function of tensors that returns a tensor of any shape.
        *arrays: Array-likes, the points to differentiate at.

    Returns:
        One array per input, of its shape and dtype.
    """
    arrays = [np.asarray(x) for x in arrays]
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        tensors = [tf.constant(x) for x in arrays]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            total = tf.reduce_sum(fn(*tensors))
        gradients = tape.gradient(total, tensors, unconnected_gradients="zero")
        return [g.numpy() for g in gradients]
    if backend == "jax":
        import jax

        gradients = jax.grad(
            lambda *inputs: fn(*inputs).sum(), argnums=range(len(arrays))
        )(*(jax.numpy.asarray(x) for x in arrays))
        return [np.asarray(g) for g in gradients]
    if backend == "torch":
        import torch

        tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
        # convert_to_tensor moves the inputs to Keras' device, if it has one
        total = fn(*(keras.ops.convert_to_tensor(x) for x in tensors)).sum()
        gradients = torch.autograd.grad(
            total, tensors, allow_unused=True, materialize_grads=True
        )
        return [g.detach().cpu().numpy() for g in gradients]
    raise NotImplementedError(f"No gradient for backend {backend!r}")
