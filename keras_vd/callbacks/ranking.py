"""The choice of the weights, groups and gates that stay, by their signal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd.layers.structured import StructuredGate
from keras_vd.posteriors import Posterior, WeightPosterior
from keras_vd.posteriors.finding import required_posteriors

# A size that is at most this share below what is allowed needs no search.
_CLOSE = 0.995


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """What can go of one posterior.

    Attributes:
        posterior: The posterior.
        is_alive: Bool array of the shape of `keep_mask`: what is not zero.
        axes: Axes over which entries can only go together.
        shape: Shape of `is_alive` in which these axes can be told apart.
        scores: What each of them says, `(candidates,)`; -inf if it is zero.
    """

    posterior: Posterior
    is_alive: np.ndarray
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    scores: np.ndarray

    def fix(self, is_kept: np.ndarray) -> None:
        """Keep some of the candidates, and of these what is not zero.

        Args:
            is_kept: Bool array `(candidates,)`.
        """
        sizes = [1 if i in self.axes else x for i, x in enumerate(self.shape)]
        mask = self.is_alive.reshape(self.shape) & is_kept.reshape(sizes)
        self.posterior.keep_mask.assign(mask.reshape(self.is_alive.shape))


def find_candidates(
    model: keras.layers.Layer, is_by_unit: bool
) -> list[Candidates]:
    """Rank what can go: weights, or the input units that they read.

    Groups and gates are ranked beside them. The score of a weight is the
    information that it holds, log(1 + 1 / alpha) / 2 nats but for a constant
    that makes up for its posterior's threshold; that of a unit is the mean of
    its weights.

    Args:
        model: A built model.
        is_by_unit: Whether all weights of an input unit go together. If not,
            gates stay as they are unless there is nothing else.
    """
    posteriors = required_posteriors(model)
    if not is_by_unit:
        weights = [x for x in posteriors if isinstance(x, WeightPosterior)]
        posteriors = list(weights or posteriors)
    return [_candidates(posterior, is_by_unit) for posterior in posteriors]


def _candidates(posterior: Any, is_by_unit: bool) -> Candidates:
    is_alive = ops.convert_to_numpy(posterior.mean()) != 0.0
    margin = ops.convert_to_numpy(posterior.margin()).astype("float64")
    nats = np.where(is_alive, 0.5 * np.logaddexp(0.0, margin), 0.0)
    shape, axes = is_alive.shape, ()
    if is_by_unit and not isinstance(posterior, StructuredGate):
        shape, axes = _unit_axes(posterior)
    nats, alive = nats.reshape(shape), is_alive.reshape(shape)
    scores = np.where(alive.any(axes), nats.mean(axes), -np.inf)
    return Candidates(posterior, is_alive, axes, shape, scores.ravel())


def _unit_axes(posterior: WeightPosterior) -> tuple[Any, Any]:
    """Return a shape of the weight, and its axes that run over no inputs."""
    shape, inputs = tuple(posterior.weight.shape), posterior.axes.inputs
    groups = posterior.axes.conv_groups
    if groups > 1:
        # Each group of outputs reads its own channels.
        shape = (*shape[:-1], groups, shape[-1] // groups)
        inputs = (len(shape) - 3, len(shape) - 2)
    inputs = tuple(axis % len(shape) for axis in inputs)
    return shape, tuple(i for i in range(len(shape)) if i not in inputs)


def least_size(
    candidates: list[Candidates], measure: Callable[[], float]
) -> float:
    """Measure a model of which only the best of each posterior is left.

    All masks are as they were afterwards.
    """
    masks = [ops.convert_to_numpy(x.posterior.keep_mask) for x in candidates]
    _keep_best(candidates, 0)
    size = measure()
    for candidate, mask in zip(candidates, masks, strict=True):
        candidate.posterior.keep_mask.assign(mask)
    return size


def fix_best(
    candidates: list[Candidates],
    measure: Callable[[], float],
    most: float,
) -> float:
    """Keep as many candidates as a size allows, and prune all others.

    The best of each posterior stays in any case. What is zero already is
    pruned for good, too.

    Args:
        candidates: The candidates.
        measure: Function that returns the size of the model as it is; it must
            not fall when more is kept.
        most: The largest size allowed.

    Returns:
        The size of the model now.
    """
    low, high = 0, sum(np.isfinite(x.scores).sum() for x in candidates)
    _keep_best(candidates, high)
    size = measure()
    if size <= most:
        return size
    while high - low > 1 and not _CLOSE * most <= size <= most:
        count = (low + high) // 2
        _keep_best(candidates, count)
        size = measure()
        low, high = (count, high) if size <= most else (low, count)
    if size > most:
        _keep_best(candidates, low)
        size = measure()
    return size


def _keep_best(candidates: list[Candidates], count: int) -> None:
    """Keep the best of each posterior, and of all the `count` best ones."""
    scores = np.concatenate([x.scores for x in candidates])
    is_kept = np.zeros(scores.size, bool)
    is_kept[np.argsort(-scores, kind="stable")[:count]] = True
    ends = np.cumsum([x.scores.size for x in candidates])[:-1]
    for candidate, kept in zip(
        candidates, np.split(is_kept, ends), strict=True
    ):
        kept[np.argmax(candidate.scores)] = True
        candidate.fix(kept)
