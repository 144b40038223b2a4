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
from keras_vd.rules.costs import count_macs

# Trains a model for that many epochs; the learning rate decays, or stays. Takes
# callbacks.
Fit = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Size:
    """What a network takes.

    Attributes:
        macs: Multiplications of an example.
        parameters: Number of weights.
    """

    macs: int
    parameters: int

    def __le__(self, other: Size) -> bool:
        return self.macs <= other.macs and self.parameters <= other.parameters

    def on_the_way_to(self, larger: Size, share: float) -> Size:
        """The size that is that share of the way from this one."""
        pairs = zip(
            dataclasses.astuple(self), dataclasses.astuple(larger), strict=True
        )
        return Size(*(int(x + share * (y - x)) for x, y in pairs))

    def cost(self, smaller: Size) -> float:
        """Both shares that a smaller network has less of, summed."""
        macs = (self.macs - smaller.macs) / self.macs
        return macs + (self.parameters - smaller.parameters) / self.parameters


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

    def steps_to(self, whole: Size, wish: Size) -> list[tuple[int, Size]]:
        """Epochs of each step, and the size that may be left in it.

        What is to go falls with the cube of the time that is left (Zhu and
        Gupta 2017, arXiv:1710.01878).
        """
        parts = np.array_split(np.arange(self.epochs), self.steps)
        left = [(1.0 - i / self.steps) ** 3 for i in range(1, self.steps + 1)]
        return [
            (len(part), wish.on_the_way_to(whole, x))
            for part, x in zip(parts, left, strict=True)
        ]


def by_noise(
    model: keras.Model,
    fit: Fit,
    schedule: Schedule,
    wish: Size,
    num_examples: int,
    kl_weight: float,
) -> keras.Model:
    """Train on with log-normal gates, and close those with the most noise.

    Step by step, as `by_magnitude` does. A gate is as noisy as the loss lets it
    be, so that the square of its signal-to-noise ratio (Neklyudov et al. 2017,
    arXiv:1705.07283) stands for what is lost when it closes. The score of a
    channel is that square over the channel's cost, in MACs and parameters.

    Args:
        model: The network; stays as it is.
        fit: Trains a network.
        schedule: How long.
        wish: What may be left.
        num_examples: Number of training examples.
        kl_weight: Factor of the gates' KL.
    """
    gated, _ = with_gates(model)
    annealing = keras_vd.callbacks.KLAnnealing(
        num_examples, start_epoch=0, warmup_epochs=0, max_weight=kl_weight
    )
    for epochs, allowed in schedule.steps_to(size_of(model), wish):
        fit(gated, epochs, False, [annealing])
        costs = channel_costs(gated)
        # Those that are closed have 0.
        scores = {
            x.name: keras.ops.convert_to_numpy(x.snr()) ** 2 / costs[x.name]
            for x in _gates(gated)
        }
        _close_least(gated, scores, allowed)
    smaller, _ = _removed(gated)
    fit(smaller, schedule.finetune_epochs, True)
    return smaller


def by_magnitude(
    model: keras.Model, fit: Fit, schedule: Schedule, wish: Size
) -> keras.Model:
    """Remove the channels of smallest kernels, step by step, and train on.

    Channels are compared by the root mean square of the kernels that make them
    (Li et al. 2017, arXiv:1608.08710), relative to the mean of those that share
    a gate, as layers differ in the scale of their kernels.

    Args:
        model: The network; stays as it is.
        fit: Trains a network.
        schedule: As for gates, for as long.
        wish: What may be left.
    """
    for epochs, allowed in schedule.steps_to(size_of(model), wish):
        gated, made_by = with_gates(model)
        sizes = {
            name: _sizes([model.get_layer(x) for x in layers])
            for name, layers in made_by.items()
        }
        _close_least(gated, sizes, allowed)
        model, _ = _removed(gated)
        fit(model, epochs, False)
    fit(model, schedule.finetune_epochs, True)
    return model


def with_gates(model: keras.Model) -> tuple[keras.Model, dict[str, Any]]:
    """Put gates on all channels; tell of what layers, by the gates' names."""
    gated, report = keras_vd.to_variational(
        model,
        posterior=None,
        gates="log_normal",
        return_report=True,
        verbose=0,
    )
    return gated, report.gated


def _close_least(
    gated: keras.Model, scores: dict[str, np.ndarray], wish: Size
) -> None:
    """Close as few gates, of the least score, as reach a size.

    Args:
        gated: A network with gates.
        scores: Of each gate's channels, by its name.
        wish: What may be left.
    """
    order = np.argsort(np.concatenate(list(scores.values())), kind="stable")
    ends = np.cumsum([len(x) for x in scores.values()])
    places = np.split(np.argsort(order), ends[:-1])
    ranks = dict(zip(scores, places, strict=True))
    low, high = 0, len(order)
    # The number of channels that go, by bisection.
    while low < high:
        middle = (low + high) // 2
        _close(gated, ranks, middle)
        _, left = _removed(gated)
        if left <= wish:
            high = middle
        else:
            low = middle + 1
    _close(gated, ranks, low)


def _close(
    gated: keras.Model, ranks: dict[str, np.ndarray], number: int
) -> None:
    """Close the gates of that many lowest channels, but the last of each."""
    for name, values in ranks.items():
        keep = (values >= number) | (values == values.max())
        gated.get_layer(name).keep_mask.assign(keep)


def _sizes(layers: list[keras.layers.Layer]) -> np.ndarray:
    """Root mean square of each channel's weights, relative to their mean."""
    kernels = [keras.ops.convert_to_numpy(x.kernel) for x in layers]
    squares = [
        np.square(x).reshape(-1, x.shape[-1]).mean(axis=0) for x in kernels
    ]
    sizes = np.sqrt(np.mean(squares, axis=0))
    return sizes / sizes.mean()


def channel_costs(gated: keras.Model) -> dict[str, float]:
    """What one channel of each gate takes, by the gate's name; above 0."""
    _, whole = _removed(gated)
    costs = {}
    for gate in _gates(gated):
        mask = keras.ops.convert_to_numpy(gate.keep_mask)
        fewer = mask.copy()
        fewer[np.argmax(mask)] = False
        gate.keep_mask.assign(fewer)
        _, left = _removed(gated)
        gate.keep_mask.assign(mask)
        costs[gate.name] = max(whole.cost(left), 1e-9)
    return costs


def _removed(gated: keras.Model) -> tuple[keras.Model, Size]:
    """Return a network without the channels that are closed, and its size."""
    plain = keras_vd.to_deterministic(gated)
    smaller, report = keras_vd.shrink(plain, return_report=True, verbose=0)
    return smaller, Size(int(report.kept_macs or 0), smaller.count_params())


def _gates(model: keras.Model) -> list[keras_vd.layers.LogNormalDropout]:
    gate = keras_vd.layers.LogNormalDropout
    return [x for x in model.layers if isinstance(x, gate)]


def has_gates(model: keras.Model) -> bool:
    return bool(_gates(model))


def size_of(model: keras.Model) -> Size:
    return Size(count_macs(model) or 0, model.count_params())
