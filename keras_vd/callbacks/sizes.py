"""The course of a training towards a size of the model."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_vd.callbacks import advice
from keras_vd.callbacks.ranking import Ranking
from keras_vd.callbacks.schedules import Schedule
from keras_vd.callbacks.wishes import TOLERANCE, Wish
from keras_vd.posteriors.finding import required_posteriors

# Share of the epochs after which it is fixed what is zero.
_CUT = 0.7
# Share of the wish, as logs, that the KL shall have reached by then. The rest
# is left to the ranking, because what the KL has removed has lost its value.
_AIM = 0.8
# The log of what is left to the ranking, at most: what the KL has not made
# useless is missed when it goes.
_REST = 0.25
# How many times too large a model is for which the KL may have had no time.
_SUDDEN = 10.0
# How fast the log of the KL weight falls ahead of the plan, per wish, and rises
# behind it, and the most that it rises to. The log of a ratio at the end grows
# by about 0.7 per log of the weight, so that a network of 100x needs a weight
# of e^-4 to become one of 5x; it has that when it is 0.13 wishes ahead.
_SLOPE, _HIGHEST = 30.0, 2.0


def cut_epoch(epochs: int) -> int:
    """Return the epoch before which it is fixed what is zero."""
    return min(epochs - 1, round(_CUT * epochs))


class SizeCourse:
    """The way to a size: first by the KL, then by ranking what is left.

    Nothing is remembered from one epoch to the next that could not be found
    out from the model.

    Args:
        wish: The size.
    """

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self._warmup = Schedule(None, None, "linear")

    def begin(self, model: keras.Model, first: int, epochs: int) -> None:
        """Get ready for a `fit`.

        Args:
            model: The model.
            first: First epoch.
            epochs: Epoch before which it ends.

        Raises:
            ValueError: if the wish cannot be met.
        """
        self._model = model
        self._epochs, self._cut = epochs, cut_epoch(epochs)
        self._total = self.wish.whole(model)
        self._most = self.wish.most(self._total)
        self._size = self._measure()
        ranking = Ranking(model, self.wish.is_by_unit)
        least = ranking.least_size(self._measure)
        if not least <= self._most < self._total:
            name, value = self.wish.name, self.wish.value
            wished = f"{name}={value!r}"
            if name != "nonzero_ratio" and self._most != value:
                wished += f", which is {self._most:,.0f}"
            raise ValueError(
                f"Argument `{name}` must be possible: '{model.name}' "
                f"begins with {self._describe(self._total)} and can come to "
                f"{self._describe(least)}, with one unit or weight of each "
                f"layer. Received: {wished}."
            )

    def _measure(self) -> int:
        return self.wish.size(self._model)

    def _describe(self, size: float) -> str:
        return self.wish.describe(self._total, size)

    def weight_of(self, epoch: int) -> float:
        """Return w of an epoch that begins; prune the model when it is time."""
        if epoch >= self._cut:
            self._settle(is_cut=epoch == self._cut)
            return 0.0
        share = self._warmup.share(epoch, self._epochs)
        wished = math.log(self._total / self._most)
        done = math.log(self._total / max(self._size, 1)) / wished
        aim = max(_AIM, 1.0 - _REST / wished)
        time = (epoch + 1) / self._cut
        plan = aim * (1.0 - (1.0 - time) ** 2.5)
        # At first it is behind for want of time.
        highest = _HIGHEST ** max(0.0, 2.0 * time - 1.0)
        factor = min(highest, math.exp(_SLOPE * (plan - done)))
        # Nothing is left of the weight where the wish is reached.
        left = min(1.0, max(1.0 - done, 0.0) / (1.0 - plan))
        return share * factor * left**2

    def _settle(self, is_cut: bool) -> None:
        """Fix what is zero, or keep to what is fixed.

        Args:
            is_cut: Whether it is time to fix it. Later it is only done where a
                run has begun after that, with another model.
        """
        if is_cut and self._size > _SUDDEN * self._most:
            advice.warn(
                f"the model has {self._describe(self._size)} where what is "
                f"left is pruned to {self._describe(self._most)}: the KL may "
                "have had too few steps to make the rest useless. If the model "
                "is worse from here on, train for more epochs, or with a "
                "higher learning rate.",
                "KLTarget",
            )
        if is_cut or self._size > self._most:
            ranking = Ranking(self._model, self.wish.is_by_unit)
            self._size = ranking.fix(self._measure, self._most)
        else:
            self._revive()

    def _revive(self) -> None:
        """Have all count that was kept when it was fixed what is zero."""
        posteriors = required_posteriors(self._model)
        masks = [ops.convert_to_numpy(x.keep_mask) for x in posteriors]
        if all(mask.all() for mask in masks):
            return
        # Small weights pass the threshold while they change their sign.
        for posterior, mask in zip(posteriors, masks, strict=True):
            posterior.revive(mask)

    def judge(self, epoch: int, logs: dict[str, Any]) -> tuple[float, float]:
        """Measure the model at the end of an epoch.

        Returns:
            The size that is wished for, and the size of the model.
        """
        if epoch >= self._cut:
            self._revive()
        self._size = self._measure()
        figure = self.wish.figure
        return figure(self._total, self._most), figure(self._total, self._size)

    def close(self, last: int) -> str | None:
        """Return why the wish was not met after the last epoch; None if so."""
        if last >= self._cut:
            self._revive()
        size = self._measure()
        if abs(size / self._most - 1.0) <= TOLERANCE:
            return None
        if last < self._cut:
            why = (
                "training has stopped before the epoch in which what is left "
                f"is pruned, {self._cut} (counted from 0)"
            )
        elif size > self._most:
            why = (
                "another callback has changed weights after they were pruned, "
                "such as `EarlyStopping(restore_best_weights=True)`"
            )
        else:
            why = (
                "gates that are closed, and what `prune` or "
                "`ShrinkWhileTraining` has removed, cannot come back, and one "
                "unit more may be too much"
            )
        return (
            f"the model has {self._describe(size)}, and not "
            f"{self._describe(self._most)}: {why}."
        )
