"""The callbacks that a pipeline adds to those of the user."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import rich.progress

from keras_vd._backend.seeds import reseed
from keras_vd.pipeline.data import Shuffled


class KeepBest(keras.callbacks.Callback):
    """Callback that ends `fit` with the weights of the best epoch.

    That may be the state before the first one. Of equal ones it is the last.

    Args:
        monitor: Name of a metric in the logs.
        is_larger_better: Whether the metric shall be large.
        value: What it is before.
    """

    def __init__(
        self, monitor: str, is_larger_better: bool, value: float
    ) -> None:
        super().__init__()
        self._monitor = monitor
        self._sign = 1.0 if is_larger_better else -1.0
        self.value = value
        self._weights: list[np.ndarray] | None = None

    def memory(self) -> dict[str, Any]:
        """Return what a resumed run has to know."""
        weights = {f"weight/{i}": x for i, x in enumerate(self._weights or [])}
        return {"value": np.array(self.value), **weights}

    def recall(self, memory: dict[str, Any]) -> None:
        """Go on with what `memory` returned."""
        rest = dict(memory)
        self.value = float(rest.pop("value"))
        self._weights = [rest[f"weight/{i}"] for i in range(len(rest))]

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._weights = self.model.get_weights()

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        value = float((logs or {})[self._monitor])
        # Not so if the first one is NaN.
        if not self._sign * (value - self.value) < 0.0:
            if math.isfinite(value):
                self.value = value
                self._weights = self.model.get_weights()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.model.set_weights(self._weights)


class Ordered(keras.callbacks.Callback):
    """Callback that has each epoch depend on nothing but its number.

    Args:
        batches: What is trained on; it is told which epoch begins.
        seed: Int.
    """

    def __init__(self, batches: Any, seed: int) -> None:
        super().__init__()
        self._batches, self._seed = batches, seed

    def on_epoch_begin(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        reseed(1000 * self._seed + epoch)
        if isinstance(self._batches, Shuffled):
            self._batches.begin_epoch(epoch)


class Progress(keras.callbacks.Callback):
    """Callback that shows how many epochs are done, while `fit` goes on."""

    def __init__(self, bar: rich.progress.Progress) -> None:
        super().__init__()
        self._bar = bar

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        epochs = self.params["epochs"]
        self._task = self._bar.add_task("epochs", total=epochs)

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        self._bar.update(self._task, completed=epoch + 1)
