"""The course of a training that keeps a quality and gets small meanwhile."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import is_better_when_larger
from keras_vd.callbacks.ranking import Ranking
from keras_vd.callbacks.sizes import cut_epoch
from keras_vd.posteriors.finding import required_posteriors
from keras_vd.pruning import prune
from keras_vd.sparsity import sparsity_report

# Share of the epochs that train the plain network, if its quality is not given.
_PLAIN = 0.25
# w at first and at most, and how many of its logs a third of the epochs can
# cover.
_START, _HIGHEST, _RANGE = math.exp(-4.0), math.exp(3.0), 8.0
# Up to this w a KL that grows is a remedy for a model that overfits.
_BOUND = 1.0
# How much of what is left goes in each epoch of the end that allows it: a tenth
# or, where there are few, as much as makes it 20 times smaller if all do.
_STEP, _END = 0.1, math.log(20.0)


class BudgetCourse:
    """The way to the smallest model whose quality stays within a budget.

    The KL weight is a dual variable, which grows while the budget holds and
    falls while it does not. It is remembered in the posteriors. Where the
    model overfits, a stronger KL is what is missing, and it grows as well.

    Args:
        budget: By how much the metric may be worse.
        monitor: Name of the metric in the logs, or None.
        reference: What it may be worse than, or None.
        num_examples: What w is divided by in the posteriors.
    """

    def __init__(
        self,
        budget: float,
        monitor: str | None,
        reference: float | None,
        num_examples: int,
    ) -> None:
        self.budget, self.monitor = budget, monitor
        self._given, self._num_examples = reference, num_examples
        self._best: list[np.ndarray] | None = None

    def begin(self, model: keras.Model, first: int, epochs: int) -> None:
        """Get ready for a `fit`, as `SizeCourse.begin` does."""
        self._model = model
        self._epochs, self._cut = epochs, cut_epoch(epochs)
        share = _PLAIN if self._given is None else 1 / 12
        self._start = min(self._cut, math.ceil(share * epochs))
        self._reference = self._given
        self._sign = 0.0
        self._limit = math.nan
        self._best = None
        self._best_rank = (math.inf, math.inf)
        self._plain_value = self._trained = math.nan
        if first and self._given is None:
            raise ValueError(
                "Argument `reference` must be given where a run is continued, "
                "since the plain network was measured in its first epochs: "
                "with their best value of the monitored metric. Received: "
                f"reference=None, and a `fit` that begins with epoch {first}."
            )

    def memory(self) -> dict[str, Any]:
        """Return what the model does not hold, with the best state so far."""
        if self._best is None:
            return {}
        weights = {f"weight/{i}": x for i, x in enumerate(self._best)}
        plain = np.array([self._plain_value, self._trained])
        return {"rank": np.array(self._best_rank), "plain": plain, **weights}

    def recall(self, memory: dict[str, Any]) -> None:
        """Remember what `memory` returned in a run that was interrupted."""
        rest = dict(memory)
        first, second = map(float, rest.pop("rank"))
        self._best_rank = first, second
        self._plain_value, self._trained = map(float, rest.pop("plain"))
        self._best = [rest[f"weight/{i}"] for i in range(len(rest))]

    def weight_of(self, epoch: int) -> float:
        """Return w of an epoch that begins; prune the model when it is time."""
        if epoch < self._start:
            return 0.0
        if epoch >= self._cut:
            if epoch == self._cut:
                prune(self._model)
            return 0.0
        return self._current() or _START

    def _current(self) -> float:
        weights = [x.kl_weight for x in required_posteriors(self._model)]
        largest = max(float(ops.convert_to_numpy(x)) for x in weights)
        return max(largest, 0.0) * self._num_examples

    def judge(self, epoch: int, logs: dict[str, Any]) -> tuple[float, float]:
        """Judge an epoch that ends, and set w for the next one.

        Args:
            epoch: The epoch.
            logs: Its logs.

        Returns:
            The limit of the metric, and its value.

        Raises:
            ValueError: if the metric is not in the logs, or it is not known
                whether it shall be large or small.
        """
        value = self._read(logs)
        if self.monitor == "loss":
            value -= self._penalty()
        if not self._sign:
            larger = is_better_when_larger(self._model, str(self.monitor))
            self._sign = -1.0 if larger else 1.0
        if epoch < self._start:
            self._measure_plain(value, self._read_training(logs))
        assert self._reference is not None
        self._limit = self._reference + self._sign * self.budget
        excess = self._sign * (value - self._limit)
        self._remember(excess)
        if epoch + 1 < self._epochs:
            self._adapt(epoch, excess, self._overfits(logs, excess))
        return self._limit, value

    def _overfits(self, logs: dict[str, Any], excess: float) -> bool:
        """Tell whether it is out of budget and has learned more than before."""
        if not excess > 0.0:
            return False
        # False where one of them is not known.
        return self._sign * (self._read_training(logs) - self._trained) < 0.0

    def _read_training(self, logs: dict[str, Any]) -> float:
        """Read the metric of the training data, NaN if that is not known."""
        assert self.monitor is not None
        name = self.monitor.removeprefix("val_")
        if name == self.monitor or name not in logs:
            return math.nan
        value = float(logs[name])
        return value - self._penalty() if name == "loss" else value

    def _penalty(self) -> float:
        """Compute what the KL adds to the training loss, as it is now."""
        factors = (
            (x.kl_scale, x.kl_weight, x.kl_divergence())
            for x in required_posteriors(self._model)
            if x.trainable
        )
        return sum(
            math.prod(float(ops.convert_to_numpy(x)) for x in numbers)
            for numbers in factors
        )

    def _measure_plain(self, value: float, trained: float) -> None:
        """Remember the values of the plain network's best epoch so far."""
        if self._sign * (value - self._plain_value) >= 0.0:
            return
        self._plain_value, self._trained = value, trained
        if self._given is None:
            self._reference = value
            # What was within the budget of a worse one may not be any more.
            self._best_rank = (math.inf, math.inf)

    def _read(self, logs: dict[str, Any]) -> float:
        if self.monitor is None:
            self.monitor = "val_loss" if "val_loss" in logs else "loss"
        if self.monitor not in logs:
            raise ValueError(
                "Argument `monitor` must name a metric that `fit` logs in "
                f"every epoch. Received: monitor={self.monitor!r}, and logs of "
                f"{sorted(logs)}."
            )
        return float(logs[self.monitor])

    def _remember(self, excess: float) -> None:
        """Keep a copy of the smallest state in budget, or the best one."""
        size = self._measure()
        is_over = not excess <= 0.0
        rank = (math.inf, excess) if is_over else (size, excess)
        if rank < self._best_rank:
            self._best_rank = rank
            self._best = self._model.get_weights()

    def _adapt(self, epoch: int, excess: float, overfits: bool) -> None:
        """Set the KL weight for the next epoch, or prune before it."""
        if epoch + 1 > self._cut:
            if excess <= 0.0:
                ranking = Ranking(self._model, is_by_unit=False)
                left = math.exp(-_END / (self._epochs - self._cut))
                share = min(1.0 - _STEP, left)
                ranking.fix(self._measure, share * self._measure())
        elif epoch >= self._start:
            step = min(1.0, 3.0 * _RANGE / self._epochs)
            error = np.clip(-excess / max(self.budget, 1e-12), -1.0, 1.0)
            current, highest = self._current(), _HIGHEST
            if overfits:
                error, highest = 1.0, max(current, _BOUND)
            weight = min(highest, current * math.exp(step * error))
            for posterior in required_posteriors(self._model):
                posterior.kl_weight.assign(weight / self._num_examples)

    def _measure(self) -> int:
        _, size = sparsity_report(self._model).entries
        return size

    def close(self, last: int) -> str | None:
        """Go back to the best state; return why the wish was not met."""
        if self._best is not None:
            self._model.set_weights(self._best)
        if math.isfinite(self._best_rank[0]):
            return None
        return (
            f"`{self.monitor}` was never within the budget of "
            f"{self.budget:g}: the limit is {self._limit:.4g}, and the model "
            f"has the state that came closest. Train longer, or allow more; "
            "noise at the start (`log_sigma2_init`) may be too large, too."
        )
