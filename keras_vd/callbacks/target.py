"""The callback that finds the KL weight for a size, or for a quality."""

from __future__ import annotations

import math
import os
import warnings
from typing import Any

import keras
from keras import ops

from keras_vd.callbacks.base import KLWeightCallback
from keras_vd.callbacks.ranking import find_candidates, fix_best, least_size
from keras_vd.callbacks.schedules import Schedule
from keras_vd.callbacks.wishes import Wish
from keras_vd.layers.log_normal import LogNormalDropout
from keras_vd.posteriors.finding import required_posteriors

# Share of the epochs after which it is fixed what is zero.
_CUT = 0.7
# Share of the wish, as logs, that the KL shall have reached by then. The rest
# is left to the ranking: what the KL has removed does not come back.
_AIM = 0.8
# How fast the log of the KL weight falls and rises with the distance from the
# plan, measured in wishes, and how far it may rise. In experiments the log of
# the ratio at the end grew by 0.7 per log of the weight, and the log of the
# weight has to go down by 4 before a network of 100x becomes one of 5x.
_FALL, _RISE, _HIGHEST = 30.0, 10.0, 1.0
# KL weight after the cut, as long as nothing more falls.
_AFTERWARDS = 0.1
TOLERANCE = 0.05


class KLTarget(KLWeightCallback):
    """doc."""

    def __init__(
        self,
        num_examples: int,
        nonzero_ratio: float | None = None,
        parameters: float | None = None,
        macs: float | None = None,
        n_active: float | None = None,
        verbose: int = 1,
        tensorboard: str | os.PathLike[str] | None = None,
        log_layers: bool = True,
    ) -> None:
        super().__init__(num_examples, verbose, tensorboard, log_layers)
        wishes = {
            "nonzero_ratio": nonzero_ratio,
            "parameters": parameters,
            "macs": macs,
            "n_active": n_active,
        }
        given = {k: v for k, v in wishes.items() if v is not None}
        if len(given) != 1:
            raise ValueError(
                f"KLTarget takes exactly one wish, one of {list(wishes)}. "
                f"Received: {given or 'none'}."
            )
        self.wish = Wish(*next(iter(given.items())))
        self._warmup = Schedule(None, None, "linear")

    def cut_epoch(self, epochs: int) -> int:
        """Return the epoch before which it is fixed what is zero.

        Args:
            epochs: Int >= 2: number of epochs of the run.
        """
        return max(1, min(epochs - 1, round(_CUT * epochs)))

    def _begin_run(self, first: int) -> None:
        self._epochs = _epochs_of(self)
        self._cut = self.cut_epoch(self._epochs)
        posteriors = required_posteriors(self.model)
        if not any(x.trainable and _prunes(x) for x in posteriors):
            raise ValueError(
                "KLTarget found nothing to prune: no posterior of "
                f"'{self.model.name}' that is trained has a threshold."
            )
        # Of the plain model, as `shrink` counts from.
        self._total = self.wish.whole(self.model)
        self._most = self.wish.most(self._total)
        self._size = self.wish.size(self.model)
        candidates = find_candidates(self.model, self.wish.is_by_unit)
        least = least_size(candidates, self._measure)
        if not least <= self._most < self._total:
            raise ValueError(
                f"Argument `{self.wish.name}` must be possible: '"
                f"{self.model.name}' begins with "
                f"{self._describe(self._total)} and must keep "
                f"{self._describe(least)}. Received: "
                f"{self.wish.name}={self.wish.value!r}."
            )

    def _measure(self) -> int:
        return self.wish.size(self.model)

    def _describe(self, size: float) -> str:
        return self.wish.describe(self._total, size)

    def _weight_of(self, epoch: int) -> float:
        if epoch >= self._cut:
            return self._weight_afterwards()
        share = self._warmup.share(epoch, self._epochs)
        # Log of the reduction, in wishes.
        done = math.log(self._total / max(self._size, 1))
        lead = done / math.log(self._total / self._most) - self._plan(epoch)
        log_weight = min(_HIGHEST, -lead * (_FALL if lead > 0 else _RISE))
        return share * math.exp(log_weight) / self.num_examples

    def _plan(self, epoch: int) -> float:
        """Return what share of the wish, as logs, shall be reached by then."""
        return _AIM * (1.0 - (1.0 - (epoch + 1) / self._cut) ** 2.5)

    def _weight_afterwards(self) -> float:
        if self._size > self._most:
            candidates = find_candidates(self.model, self.wish.is_by_unit)
            self._size = fix_best(candidates, self._measure, self._most)
        is_safe = self._size > (1.0 - 0.5 * TOLERANCE) * self._most
        return _AFTERWARDS * is_safe / self.num_examples

    def _judge(self, epoch: int, logs: dict[str, Any]) -> dict[str, Any]:
        self._size = self._measure()
        return {"target": self._most, "target_state": self._size}

    def _close_run(self, last: int) -> None:
        size = self._measure()
        if abs(size / self._most - 1.0) > TOLERANCE:
            warnings.warn(
                f"KLTarget: missed: {self._describe(size)}", stacklevel=2
            )


def _epochs_of(callback: keras.callbacks.Callback) -> int:
    return (callback.params or {}).get("epochs") or 0


def _prunes(posterior: Any) -> bool:
    if posterior.threshold is not None:
        return True
    return isinstance(posterior, LogNormalDropout)
