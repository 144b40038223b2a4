"""Training steps and predictions as `fit` and `predict` make them.

What is timed is the function that `fit` calls for every batch,
`model.train_function`, fed with one batch that is on the device already: no
callbacks, no logs, no copies of data. Steps follow each other without waiting;
a run waits for its last one. The same holds for `model.predict_function`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

Run = Callable[[int], None]


def device_name() -> str:
    """What Keras computes on."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.devices()[0].device_kind
    if keras.backend.backend() == "torch":
        import torch

        has_gpu = torch.cuda.is_available()
        return torch.cuda.get_device_name() if has_gpu else "cpu"
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    details = tf.config.experimental.get_device_details
    return details(gpus[0]).get("device_name", "GPU") if gpus else "cpu"


class KerasTraining:
    """A model that is trained step by step on one batch.

    Args:
        model: Compiled model, of Keras or of `tf_keras`.
        x: Inputs of the batch.
        y: Targets.
    """

    def __init__(self, model: Any, x: np.ndarray, y: np.ndarray) -> None:
        self.model = model
        self._batch = (x, y)

    def first_step(self) -> float:
        """Trace, compile and make a first step by `fit`.

        Returns:
            Seconds until it is done.
        """
        batches = _batches(_backend(self.model), self._batch)
        is_keras = isinstance(self.model, keras.Model)
        steps = self.model.steps_per_execution if is_keras else 1
        start = time.perf_counter()
        self.model.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)
        return time.perf_counter() - start

    def make_run(self) -> Run:
        """Make a function that goes on with as many executions as asked.

        One execution makes `steps_per_execution` steps.
        """
        function, backend = self.model.train_function, _backend(self.model)
        if backend == "jax":
            batches = _jax_batches(self._batch)
            return _run_jax(function, batches, training_variables(self.model))
        if backend == "torch":
            batch = tuple(map(keras.ops.convert_to_tensor, self._batch))
            return _run_torch(function, [batch])
        return _run_tensorflow(function, iter(_batches(backend, self._batch)))


def training_variables(model: keras.Model) -> tuple[list[Any], ...]:
    """The state of `train_step` on JAX."""
    return (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )


def prediction_run(model: Any, x: np.ndarray) -> Run:
    """Make a function that predicts as often as asked.

    Args:
        model: Keras model.
        x: Inputs of one batch.
    """
    model.predict(x, batch_size=len(x), verbose=0)
    function = model.predict_function
    if _backend(model) == "jax":
        variables = (model.trainable_variables, model.non_trainable_variables)
        return _run_jax(function, _jax_batches((x,)), variables)
    batch = [(keras.ops.convert_to_tensor(x),)]
    if _backend(model) == "torch":
        return _run_torch(function, batch)
    return _run_tensorflow(function, batch)


def _backend(model: Any) -> str:
    is_keras = isinstance(model, keras.Model)
    return keras.backend.backend() if is_keras else "tensorflow"


def _batches(backend: str, batch: tuple[np.ndarray, ...]) -> Any:
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.data.Dataset.from_tensors(batch).repeat()

    def repeat() -> Iterator[tuple[np.ndarray, ...]]:
        while True:
            yield batch

    return repeat()


def _run_tensorflow(function: Any, batches: Any) -> Run:
    import tensorflow as tf

    def run(steps: int) -> None:
        for _ in range(steps):
            results = function(batches)
        for result in tf.nest.flatten(results):
            result.numpy()

    return run


def _jax_batches(batch: tuple[np.ndarray, ...]) -> Iterator[Any]:
    import jax

    return itertools.repeat(jax.device_put(batch))


def _run_jax(function: Any, batches: Iterator[Any], variables: Any) -> Run:
    import jax

    # The function donates its arguments; the model shall keep its own.
    state = tuple(
        [jax.numpy.copy(variable.value) for variable in group]
        for group in variables
    )

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            results, state = function(state, batches)
        jax.block_until_ready((results, state))

    return run


def _run_torch(function: Any, batches: Any) -> Run:
    import torch

    def run(steps: int) -> None:
        for _ in range(steps):
            function(batches)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run
