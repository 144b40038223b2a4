"""Two ways to choose the channels of a trained network that stay.

Both take them out with gates that are closed, so both remove the same kinds of
channels, all branches of a residual stream at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import keras_vd

# Trains a model for that many epochs; the learning rate decays, or stays. Takes
# callbacks.
Fit = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long to train.

    Attributes:
        epochs: Epochs in which channels are chosen.
        finetune_epochs: Epochs in which what is left trains on.
        steps: Number of times that magnitude removes channels.
    """

    epochs: int
    finetune_epochs: int
    steps: int = 5


def with_gates(
    model: keras.Model,
    fit: Fit,
    schedule: Schedule,
    num_examples: int,
    kl_weight: float,
) -> keras.Model:
    """Learn log-normal gates (Neklyudov et al. 2017), and drop the closed."""
    gated = keras_vd.to_variational(
        model, posterior=None, gates="log_normal", verbose=0
    )
    annealing = keras_vd.callbacks.KLAnnealing(
        num_examples,
        start_epoch=0,
        warmup_epochs=max(1, schedule.epochs // 3),
        max_weight=kl_weight,
    )
    fit(gated, schedule.epochs, False, [annealing])
    keras_vd.prune(gated)
    smaller, _ = _removed(gated)
    fit(smaller, schedule.finetune_epochs, True)
    return smaller


def by_magnitude(
    model: keras.Model, fit: Fit, schedule: Schedule, macs: int
) -> keras.Model:
    """Remove the channels of smallest kernels, step by step, and train on.

    The MACs that are left fall with the cube of the time that is left (Zhu and
    Gupta 2017, arXiv:1710.01878). Kernels of all layers are compared by the
    root mean square of what makes a channel (Li et al. 2017, arXiv:1608.08710).

    Args:
        model: The network.
        fit: Trains it.
        schedule: As for gates, for as long.
        macs: Multiplications of an example that may be left.
    """
    whole = macs_of(model)
    parts = np.array_split(np.arange(schedule.epochs), schedule.steps)
    for step, epochs in enumerate(parts, 1):
        share = (1.0 - step / schedule.steps) ** 3
        model = _thinned(model, int(macs + (whole - macs) * share))
        fit(model, len(epochs), False)
    fit(model, schedule.finetune_epochs, True)
    return model


def _thinned(model: keras.Model, macs: int) -> keras.Model:
    """Remove as few channels, the smallest first, as reach so many MACs."""
    gated, report = keras_vd.to_variational(
        model,
        posterior=None,
        gates="log_normal",
        return_report=True,
        verbose=0,
    )
    sizes = {
        row.name: _sizes([model.get_layer(name) for name in row.layers])
        for row in report.streams
        if row.name is not None
    }
    order = np.argsort(np.concatenate(list(sizes.values())), kind="stable")
    ends = np.cumsum([len(x) for x in sizes.values()])
    places = np.split(np.argsort(order), ends[:-1])
    ranks = dict(zip(sizes, places, strict=True))
    low, high = 0, len(order)
    # The number of channels that go, by bisection.
    while low < high:
        middle = (low + high) // 2
        _close(gated, ranks, middle)
        _, left = _removed(gated)
        if left <= macs:
            high = middle
        else:
            low = middle + 1
    _close(gated, ranks, low)
    smaller, _ = _removed(gated)
    return smaller


def _close(
    gated: keras.Model, ranks: dict[str, np.ndarray], number: int
) -> None:
    """Close the gates of that many lowest channels, but the last of each."""
    for name, values in ranks.items():
        keep = (values >= number) | (values == values.max())
        gated.get_layer(name).keep_mask.assign(keep)


def _sizes(layers: list[keras.layers.Layer]) -> np.ndarray:
    """Root mean square of the weights that make each channel."""
    kernels = [keras.ops.convert_to_numpy(x.kernel) for x in layers]
    squares = [
        np.square(x).reshape(-1, x.shape[-1]).mean(axis=0) for x in kernels
    ]
    return np.sqrt(np.mean(squares, axis=0))


def _removed(gated: keras.Model) -> tuple[keras.Model, int]:
    """Return a network without the channels that are closed, and its MACs."""
    plain = keras_vd.to_deterministic(gated)
    smaller, report = keras_vd.shrink(plain, return_report=True, verbose=0)
    return smaller, int(report.kept_macs or 0)


def is_gate(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras_vd.layers.LogNormalDropout)


def macs_of(model: keras.Model) -> int:
    """Multiplications for one example."""
    _, report = keras_vd.shrink(model, return_report=True, verbose=0)
    return int(report.macs or 0)
