"""Learning rates of the experiments: by epoch, and of gates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops


class LearningRates(keras.callbacks.Callback):
    """Learning rates by epoch, as shares of those that `fit` begins with.

    Keras' own scheduler knows a single rate.
    """

    def __init__(self, share_at: Callable[[int], float]) -> None:
        super().__init__()
        self.share_at = share_at

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        optimizer = self.model.optimizer
        self.optimizers = getattr(optimizer, "optimizers", [optimizer])
        self.initial = [float(x.learning_rate) for x in self.optimizers]

    def on_epoch_begin(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        for optimizer, rate in zip(self.optimizers, self.initial, strict=True):
            optimizer.learning_rate = rate * self.share_at(epoch)


class PiecewiseLinear(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that goes linearly from each of some values to the next.

    Args:
        values: The first rate, those that follow, and the last one, which
            stays.
        steps: Steps from one to the next.
    """

    def __init__(self, values: Sequence[float], steps: int) -> None:
        self.values, self.steps = list(values), steps

    def __call__(self, step: Any) -> Any:
        last = len(self.values) - 1
        place = ops.minimum(ops.cast(step, "float32") / self.steps, last)
        places = ops.arange(last + 1, dtype="float32")
        nearness = ops.maximum(1.0 - ops.abs(place - places), 0.0)
        return ops.sum(nearness * ops.convert_to_tensor(self.values))

    def get_config(self) -> dict[str, Any]:
        return {"values": self.values, "steps": self.steps}


def make_optimizer(
    rate: float, gate_factor: float, gates: str, **options: Any
) -> keras.optimizers.Optimizer:
    """Adam, with a rate of its own for gates where that is another one.

    Args:
        rate: Learning rate.
        gate_factor: Learning rate of gates relative to that.
        gates: Regular expression for names of layers that are gates.
        **options: Of Adam.
    """
    adam = keras.optimizers.Adam(rate, **options)
    if gate_factor == 1.0:
        return adam
    faster = keras.optimizers.Adam(
        rate * gate_factor, name="adam_of_gates", **options
    )
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(adam, {rf"(.*/)?{gates}/.*": faster})
    )
