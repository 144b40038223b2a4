"""The share of its full weight that the KL divergence has, by epoch."""

from __future__ import annotations

import math
from collections.abc import Callable

from keras_vd._backend.validation import (
    check_choice,
    check_integer,
    check_number,
)

# Share of the full weight after a fraction t of the warm-up, 0 <= t <= 1.
_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "cosine": lambda t: 0.5 - 0.5 * math.cos(math.pi * t),
    "step": math.floor,
}
# A run of at least this many epochs has the longest default warm-up: 5 epochs
# at 0, and 15 until full strength.
_LONG = 60


class Schedule:
    """A warm-up, scaled to the epochs of a run unless its own are given.

    Args:
        start_epoch: Int >= 0 or None: first epoch of the warm-up.
        warmup_epochs: Int >= 0 or None: length of the warm-up.
        shape: Name of a shape, or a callable `epoch -> share`, which replaces
            both.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        start_epoch: int | None,
        warmup_epochs: int | None,
        shape: str | Callable[[int], float],
    ) -> None:
        if start_epoch is not None:
            start_epoch = check_integer("start_epoch", start_epoch, 0)
        if warmup_epochs is not None:
            warmup_epochs = check_integer("warmup_epochs", warmup_epochs, 0)
        if not callable(shape):
            check_choice("schedule", shape, _SHAPES)
        self._ends = start_epoch, warmup_epochs
        self._shape = shape

    @property
    def is_scaled(self) -> bool:
        """Whether the schedule depends on the number of epochs of the run."""
        return None in self._ends and not callable(self._shape)

    def _warmup(self, epochs: int | None) -> tuple[int, int]:
        """Return the first epoch and the length of the warm-up, in epochs."""
        epochs = _LONG if epochs is None else min(epochs, _LONG)
        start, length = self._ends
        return (
            epochs // 12 if start is None else start,
            epochs // 4 if length is None else length,
        )

    def share(self, epoch: int, epochs: int | None) -> float:
        """Return the share of the full weight in an epoch of a run.

        Args:
            epoch: The epoch, counted from 0.
            epochs: Number of epochs of the run; None: as in a long run.
        """
        if callable(self._shape):
            return check_number("schedule(epoch)", self._shape(epoch), 0.0)
        start, length = self._warmup(epochs)
        if epoch < start:
            return 0.0
        if epoch >= start + length:
            return 1.0
        return _SHAPES[self._shape]((epoch - start) / length)

    def full_epoch(self, epochs: int | None) -> int:
        """Return the first epoch from which on the weight is constant.

        Raises:
            ValueError: if the schedule is a callable and `epochs` is None.
        """
        if not callable(self._shape):
            return sum(self._warmup(epochs))
        if epochs is None:
            raise ValueError(
                "Argument `epochs` must be the number of epochs of the run, as "
                "a callable schedule does not say where it ends. Received: "
                "epochs=None."
            )
        shares = [self.share(epoch, epochs) for epoch in range(epochs)]
        while len(shares) > 1 and shares[-2] == shares[-1]:
            shares.pop()
        return len(shares) - 1
