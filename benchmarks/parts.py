"""What a variational step adds to two products, each part on its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

import keras_vd
from benchmarks.networks import Case
from benchmarks.steps import Run
from keras_vd._backend.noise import standard_normal


def part_runs(case: Case, model: keras.Model) -> dict[str, Run]:
    """Functions that run a part of the training step as often as asked.

    Args:
        case: A network of dense layers.
        model: The network, made of keras_vd's layers.
    """
    seeds = keras.random.SeedGenerator(0)
    shapes = [(case.batch_size, units) for units in case.sizes[1:]]

    def draws() -> list[Any]:
        return [standard_normal(shape, "float32", seeds) for shape in shapes]

    weights = keras_vd.variational_weights(model)
    variables = [v for w in weights for v in (w.weight, w.log_sigma2)]

    def divergence() -> Any:
        return ops.sum(ops.stack([w.kl_divergence() for w in weights]))

    return {
        "normal draws": _repeat(_compile(draws, [seeds.state])),
        "KL and gradient": _repeat(_compile_gradient(divergence, variables)),
    }


def _repeat(function: Callable[[], Any]) -> Run:
    def run(steps: int) -> None:
        for _ in range(steps):
            results = function()
        if keras.backend.backend() == "jax":
            import jax

            jax.block_until_ready(results)
        else:
            ops.convert_to_numpy(ops.ravel(results[0])[0])

    return run


def _compile(
    function: Callable[[], list[Any]], variables: list[keras.Variable]
) -> Callable[[], Any]:
    """Compile as the backend's `fit` does by default.

    Args:
        function: Returns a list of tensors.
        variables: What it reads that is not a constant.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    if keras.backend.backend() == "jax":
        import jax

        compiled = jax.jit(_stateless(function, variables))
        values = [variable.value for variable in variables]
        return lambda: compiled(values)
    return function


def _compile_gradient(
    function: Callable[[], Any], variables: list[keras.Variable]
) -> Callable[[], Any]:
    """Compile the gradients of a scalar function with regard to variables."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        def gradients() -> list[Any]:
            with tf.GradientTape() as tape:
                value = function()
            return tape.gradient(value, [v.value for v in variables])

        return tf.function(gradients)
    if keras.backend.backend() == "jax":
        import jax

        gradient = jax.jit(jax.grad(_stateless(function, variables)))
        values = [variable.value for variable in variables]
        return lambda: gradient(values)
    import torch

    return lambda: torch.autograd.grad(
        function(), [variable.value for variable in variables]
    )


def _stateless(
    function: Callable[[], Any], variables: list[keras.Variable]
) -> Callable[[list[Any]], Any]:
    def stateless(values: list[Any]) -> Any:
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return function()

    return stateless
