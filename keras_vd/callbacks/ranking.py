"""The choice of the weights, groups and gates that stay, by their signal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd.callbacks.wishes import TOLERANCE
from keras_vd.layers.structured import StructuredGate
from keras_vd.posteriors import Posterior, WeightPosterior
from keras_vd.posteriors.finding import required_posteriors

# A size that is at most this share below what is allowed needs no search.
_CLOSE = 0.995
# How many posteriors are tried, one by one, to come closer to a size.
_TRIES = 16


class Ranking:
    """An order of all that can go: weights, or the input units they read.

    Groups and gates are ranked beside them. What a weight says is the
    information that it holds, log(1 + 1 / alpha) / 2 nats but for a constant
    that makes up for its posterior's threshold, or about what the log evidence
    loses without it if its posterior knows no threshold but Bayesian model
    reduction; for a unit it is the sum of its weights. Behind all others come
    those that are zero but not pruned yet, by how far they are past the
    threshold. Biases are no part of it, as no size counts them alone: their
    own thresholds decide on them.

    Args:
        model: A built model.
        is_by_unit: Whether all weights of an input unit go together. If not,
            gates stay as they are unless there is nothing else.
    """

    def __init__(self, model: keras.layers.Layer, is_by_unit: bool) -> None:
        posteriors = [x for x in required_posteriors(model) if not _is_bias(x)]
        if not is_by_unit:
            weights = [x for x in posteriors if isinstance(x, WeightPosterior)]
            posteriors = [*weights] or posteriors
        self._parts = [_Part(posterior, is_by_unit) for posterior in posteriors]
        scores = np.concatenate([part.scores for part in self._parts])
        self._order = np.argsort(-scores, kind="stable")
        self._size = int(np.isfinite(scores).sum())

    def least_size(self, measure: Callable[[], int]) -> int:
        """Measure the model with no more than the best of each posterior.

        The model is as it was afterwards.

        Args:
            measure: Function that returns the size of the model as it is.
        """
        size = self._measure_with(self._order[:0], measure)
        for part in self._parts:
            part.restore()
        return size

    def fix(self, measure: Callable[[], int], most: float) -> int:
        """Keep as many as a size allows, and prune all others for good.

        The best of each posterior stays in any case. What stays gets less
        noise where it is close to the threshold or past it, so that it counts
        and goes on to do so.

        Args:
            measure: As of `least_size`; the size must not fall when more is
                kept.
            most: The largest size allowed.

        Returns:
            The size of the model now.
        """
        chosen, size = self._most_of(
            self._order[: self._size], self._order[:0], measure, most
        )
        if _is_close(size, most):
            return size
        chosen = self._filled(chosen, size, measure, most)
        return self._measure_with(chosen, measure)

    def _filled(
        self,
        chosen: np.ndarray,
        size: int,
        measure: Callable[[], int],
        most: float,
    ) -> np.ndarray:
        """Choose others where the next candidate of all would be too much.

        It may be one of many sizes, or make others count for more, as `shrink`
        picks out inputs only where at most half of them are left. Other
        posteriors may have something that fits. If that is not enough, they
        lose more in its place, against the order, to meet the wish.
        """
        order = self._order[: self._size]
        if chosen.size == order.size:
            return chosen
        parts = np.repeat(
            np.arange(len(self._parts)), [x.scores.size for x in self._parts]
        )[order]
        found = chosen
        # Of each posterior, in the order of their best candidates.
        for part in list(dict.fromkeys(parts[chosen.size :]))[:_TRIES]:
            own = order[chosen.size :][parts[chosen.size :] == part]
            # Most often not even one fits.
            if self._measure_with(np.append(found, own[:1]), measure) > most:
                continue
            found, more = self._most_of(own, found, measure, most)
            size = max(size, more)
            if _is_close(size, most):
                return found
        if size >= (1.0 - TOLERANCE) * most:
            return found
        is_own = parts == parts[chosen.size]
        whole, other_size = self._most_of(
            order[~is_own], order[is_own], measure, most
        )
        return whole if other_size > size else found

    def _most_of(
        self,
        candidates: np.ndarray,
        others: np.ndarray,
        measure: Callable[[], int],
        most: float,
    ) -> tuple[np.ndarray, int]:
        """Add as many of the candidates to others as a size allows.

        Returns:
            What is chosen, and the size with it; 0 if no candidate is.
        """
        low, high, reached = 0, candidates.size + 1, 0
        while high - low > 1 and not _is_close(reached, most):
            count = (low + high) // 2
            more = np.append(others, candidates[:count])
            size = self._measure_with(more, measure)
            if size <= most:
                low, reached = count, size
            else:
                high = count
        return np.append(others, candidates[:low]), reached

    def _measure_with(
        self, chosen: np.ndarray, measure: Callable[[], int]
    ) -> int:
        self._keep(chosen)
        return measure()

    def _keep(self, chosen: np.ndarray) -> None:
        """Keep the best of each posterior, and those chosen by index."""
        is_kept = np.zeros(self._order.size, bool)
        is_kept[chosen] = True
        ends = np.cumsum([part.scores.size for part in self._parts])[:-1]
        for part, kept in zip(
            self._parts, np.split(is_kept, ends), strict=True
        ):
            kept[np.argmax(part.scores)] = True
            part.restore()
            part.keep(kept)


def _is_close(size: float, most: float) -> bool:
    return _CLOSE * most <= size <= most


class _Part:
    """What can go of one posterior.

    Attributes:
        scores: What each candidate says, `(candidates,)`; -inf where it is
            pruned.
    """

    def __init__(self, posterior: Any, is_by_unit: bool) -> None:
        self._posterior: Posterior = posterior
        self._before = [
            (x, ops.convert_to_numpy(x))
            for x in (*posterior.trainable_variables, posterior.keep_mask)
        ]
        mask = ops.convert_to_numpy(posterior.keep_mask)
        self._mask = mask
        self._is_zero = ops.convert_to_numpy(posterior.own_mean()) == 0.0
        margin = ops.convert_to_numpy(posterior.margin()).astype("float64")
        self._shape, self._axes = mask.shape, tuple[int, ...]()
        if is_by_unit and not isinstance(posterior, StructuredGate):
            self._shape, self._axes = _unit_axes(posterior)
        nats = np.where(self._is_zero, 0.0, 0.5 * np.logaddexp(0.0, margin))
        distance = np.where(mask, np.minimum(margin, 0.0), -np.inf)
        unit_nats, unit_distance = (
            x.reshape(self._shape) for x in (nats, distance)
        )
        is_zero = self._is_zero.reshape(self._shape).all(self._axes)
        self.scores = np.where(
            is_zero,
            unit_distance.max(self._axes) - 1.0,
            unit_nats.sum(self._axes),
        ).ravel()

    def restore(self) -> None:
        """Give all variables the values that they had."""
        for variable, value in self._before:
            variable.assign(value)

    def keep(self, is_kept: np.ndarray) -> None:
        """Keep some of the candidates, and of these what is not pruned.

        Args:
            is_kept: Bool array `(candidates,)`.
        """
        sizes = [1 if i in self._axes else x for i, x in enumerate(self._shape)]
        is_chosen = np.broadcast_to(is_kept.reshape(sizes), self._shape)
        mask = self._mask & is_chosen.reshape(self._mask.shape)
        is_back = np.broadcast_to(
            (is_kept & (self.scores < 0.0)).reshape(sizes), self._shape
        )
        # What is zero in a unit that is not is pruned for good.
        mask &= ~self._is_zero | is_back.reshape(self._mask.shape)
        self._posterior.revive(mask)
        self._posterior.keep_mask.assign(mask)


def _is_bias(posterior: Posterior) -> bool:
    return isinstance(posterior, WeightPosterior) and posterior.is_bias


def _unit_axes(
    posterior: WeightPosterior,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return a shape of the weight, and its axes that run over no inputs."""
    shape, inputs = tuple(posterior.weight.shape), posterior.axes.inputs
    groups = posterior.axes.conv_groups
    if groups > 1:
        # Each group of outputs reads its own channels.
        shape = (*shape[:-1], groups, shape[-1] // groups)
        inputs = (len(shape) - 3, len(shape) - 2)
    inputs = tuple(axis % len(shape) for axis in inputs)
    return shape, tuple(i for i in range(len(shape)) if i not in inputs)
