"""Search for the numbers of a config that can be smaller.

Which of them counts what is found by trying, and so is what is dead: zeros in
the weights say what may be, and random numbers in the place of other weights
say what is.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import (
    computing_class,
    flatten_layers,
    sublayers,
)
from keras_vd.shrinking.trials import (
    NOTHING,
    Arguments,
    Arrays,
    Config,
    StaysWholeError,
    Trials,
)

# Weights that outweigh all biases.
_LARGE = 1e6

# Positions of weights in a layer, each with an axis.
Axes = tuple[tuple[int, int], ...]


def smaller_config(
    layer: Any, kind: Any, calls: list[Arguments], round_to: int
) -> tuple[Config, Arrays]:
    """Return a config with smaller numbers, and the weights for it.

    Args:
        layer: A layer or model; not changed.
        kind: Its class, or one that it extends and that computes the same.
        calls: Arguments with which it is called, tensors of a graph in them.
        round_to: As in `shrink`.

    Raises:
        StaysWholeError: if there is no such config.
    """
    with warnings.catch_warnings():
        # Keras gave them when the original was built.
        warnings.simplefilter("ignore")
        search = _Search(Trials(layer, kind, calls), round_to)
        search.run()
    if not search.changed:
        raise StaysWholeError(
            "no number in its config leaves out just what is zero in it"
        )
    return {**kind.get_config(layer), **search.changed}, search.values


def may_have_dead_units(layer: Any) -> bool:
    """Tell whether a kernel is all zero for some index of an axis.

    A layer with a single kernel has no units inside.
    """
    kernels = [x for x in layer.weights if len(x.shape) > 1]
    for kernel in kernels if len(kernels) > 1 else []:
        is_zero = ops.convert_to_numpy(kernel) == 0
        axes = range(is_zero.ndim)
        if any(
            is_zero.all(axis=tuple(x for x in axes if x != axis)).any()
            for axis in axes
        ):
            return True
    return False


@dataclasses.dataclass(frozen=True)
class _Fold:
    """Units that are constant to a dense layer, which may be in its bias.

    Attributes:
        kernel: Position of the kernel among the weights.
        bias: Position of the bias.
        constants: `(units,)`: what the layer reads; 0 for all other units.
    """

    kernel: int
    bias: int
    constants: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Units:
    """What numbers of a config count: hidden units, say, or heads.

    Attributes:
        entries: Names of the numbers in the config.
        count: Number of units.
        parts: Where they lie: weights, each with an axis on which the entries
            of a unit are next to each other. Parts are blocks, for example,
            each of which has as many units of its own.
    """

    entries: tuple[str, ...]
    count: int
    parts: tuple[Axes, ...]

    def of(self, values: Arrays, index: int, axis: int) -> np.ndarray:
        """Return a view of a weight, `(units, entries of one, ...)`."""
        moved = np.moveaxis(values[index], axis, 0)
        return moved.reshape(self.count, -1, *moved.shape[1:])

    def block(self, values: Arrays, index: int, axis: int) -> int:
        """Return the number of entries of a unit along an axis."""
        return int(values[index].shape[axis] // self.count)


class _Search:
    """The search, as far as it has come.

    Attributes:
        config: The config that has been found.
        values: The values of the weights that go with it.
        twin: A layer with this config.
        changed: What of the config is not as it was.
    """

    def __init__(self, trials: Trials, round_to: int) -> None:
        self.trials = trials
        self.round_to = round_to
        self.config, self.values = trials.config, trials.values
        self.twin = trials.twin
        self.changed: Config = {}

    def run(self) -> None:
        """Make numbers smaller, one by one, as far as that changes nothing.

        Pairs come first: heads of queries and of keys, in groups.
        """
        numbers = {
            key: value
            for key, value in self.config.items()
            if type(value) is int and value > 1
        }
        tried = {name: self._lost((name,)) for name in numbers}
        sizes = [name for name, (lost, _) in tried.items() if lost]
        for pair in itertools.combinations(sizes, 2):
            few, many = sorted(numbers[x] for x in pair)
            alone = all(tried[x][1] for x in pair)
            if many % few == 0 and not alone:
                self._remove(pair)
        for name in sizes:
            self._remove((name,))

    def _lost(
        self, entries: tuple[str, ...]
    ) -> tuple[dict[tuple[int, int], float], bool]:
        """Return what share of axes goes with one of what numbers count.

        Returns:
            The shares by weights and axes, and whether the layer still works.
        """
        count = math.gcd(*(self.config[x] for x in entries))
        fewer = {x: self.config[x] // count * (count - 1) for x in entries}
        try:
            made = self.trials.made({**self.config, **fewer})
        # A user's code may raise anything.
        except Exception:
            return {}, False
        works = self.trials.works(made)
        shapes = [tuple(x.shape) for x in made.weights]
        if [len(x) for x in shapes] != [x.ndim for x in self.values]:
            return {}, False
        return {
            (index, axis): 1.0 - new / size
            for index, value in enumerate(self.values)
            for axis, (size, new) in enumerate(
                zip(value.shape, shapes[index], strict=True)
            )
            if size != new
        }, works

    def _units(self, entries: tuple[str, ...]) -> _Units | None:
        """Return what some numbers count; None if there is no such thing."""
        lost, works = self._lost(entries)
        counts = {round(1.0 / share, 6) for share in lost.values()}
        kernels = {i for i, _ in lost if self.values[i].ndim > 1}
        # One kernel makes what a unit is, and another one reads it.
        if not works or len(counts) != 1 or len(kernels) < 2:
            return None
        (count,) = counts
        if count < 2 or count != int(count):
            return None
        parts = self._parts(self.trials.layer, tuple(lost))
        units = _Units(entries, int(count), tuple(parts))
        # Rows of a table could be counted, too: it needs as many as there are
        # places or words, and others are not looked up in a trial.
        fewest = self._numbers(units, 2)
        works = fewest is not None and self._works_with(fewest)
        return units if works else None

    def _works_with(self, fewer: Config) -> bool:
        try:
            made = self.trials.made({**self.config, **fewer})
        # A user's code may raise anything.
        except Exception:
            return False
        return self.trials.works(made)

    def _parts(self, layer: Any, axes: Axes) -> list[Axes]:
        """Split axes into those of blocks that have units of their own."""
        positions = {id(x): i for i, x in enumerate(self.trials.layer.weights)}
        inside = []
        for below in dict.fromkeys(sublayers(layer)):
            own = {positions[id(x)] for x in below.weights}
            within = tuple(x for x in axes if x[0] in own)
            kernels = {i for i, _ in within if self.values[i].ndim > 1}
            if len(kernels) == 1:
                return [axes]
            if within:
                inside.append((below, within))
        if sorted(x for _, within in inside for x in within) != sorted(axes):
            return [axes]
        return [
            part for below, own in inside for part in self._parts(below, own)
        ]

    def _remove(self, entries: tuple[str, ...]) -> None:
        """Remove dead units, if the layer then computes what it did."""
        units = self._units(entries)
        if units is None:
            return
        found = [self._alive(units, part) for part in units.parts]
        number = max(1, *(int(keep.sum()) for keep, _ in found))
        number = self._rounded(units, number)
        fewer = self._numbers(units, number)
        if number == units.count or fewer is None:
            return
        others = self.values
        for part, (keep, _) in zip(units.parts, found, strict=True):
            # Parts have the same number of units.
            missing = number - int(keep.sum())
            keep[np.flatnonzero(~keep)[:missing]] = True
            others = self._filled(units, part, keep, others)
        config, values = {**self.config, **fewer}, self._cut(units, found)
        try:
            made = self.trials.made(config)
            expected = self.trials.outputs(self.twin, others)
        except Exception:
            return
        # Large weights show what small ones may not: units in a wrong place.
        large = self._cut(units, found, others)
        if self.trials.differs(made, large, expected=expected):
            return
        if not self.trials.differs(made, values):
            self.config, self.values, self.twin = config, values, made
            self.changed |= fewer

    def _numbers(self, units: _Units, number: int) -> Config | None:
        """Return the numbers for so many units; None if there are none."""
        sizes = {x: self.config[x] * number for x in units.entries}
        if any(x % units.count for x in sizes.values()):
            return None
        return {x: size // units.count for x, size in sizes.items()}

    def _cut(
        self,
        units: _Units,
        found: list[tuple[np.ndarray, list[_Fold]]],
        weights: Arrays | None = None,
    ) -> Arrays:
        """Return weights of the units that stay.

        Args:
            units: The units.
            found: Which of them stay in each part, and what else they need.
            weights: Weights to take them from; those of the layer by default.
        """
        values = list(self.values if weights is None else weights)
        for part, (keep, folds) in zip(units.parts, found, strict=True):
            for fold in folds:
                gone = fold.constants * ~keep
                share = gone @ self.values[fold.kernel]
                values[fold.bias] = values[fold.bias] + share
            for index, axis in part:
                block = units.block(self.values, index, axis)
                kept = np.repeat(keep, block)
                values[index] = np.compress(kept, values[index], axis)
        return values

    def _rounded(self, units: _Units, number: int) -> int:
        """Round a number of units up; only a last axis is one of outputs."""
        blocks = [
            units.block(self.values, index, axis)
            for part in units.parts
            for index, axis in part
            if axis == self.values[index].ndim - 1
        ]
        while any(number * x % self.round_to for x in blocks):
            number += 1
        return min(number, units.count)

    def _alive(
        self, units: _Units, part: Axes
    ) -> tuple[np.ndarray, list[_Fold]]:
        """Return which units of a part must stay, `(units,)`.

        The others are dead, or constant: these need what is returned as well.
        """
        views = [units.of(self.values, *at) for at in part]
        # (units, axes)
        is_zero = np.stack(
            [~x.reshape(units.count, -1).any(axis=1) for x in views], axis=1
        )
        is_kernel = [self.values[index].ndim > 1 for index, _ in part]
        alive = np.ones(units.count, bool)
        folds: list[_Fold] = []
        for pattern in np.unique(is_zero, axis=0):
            which = (is_zero == pattern).all(axis=1)
            if not pattern[is_kernel].any():
                continue
            if self._are_dead(units, part, which, pattern):
                alive &= ~which
            elif found := self._folds(units, part, which, pattern):
                alive &= ~which
                folds += found
        return alive, folds

    def _are_dead(
        self, units: _Units, part: Axes, which: np.ndarray, pattern: np.ndarray
    ) -> bool:
        """Tell whether units with the same zeros change nothing.

        They do not if their other weights may be anything. That says something
        only if the inputs that were drawn show what a unit changes that has no
        zeros.

        Args:
            units: All of the units.
            part: The axes.
            which: `(units,)`: which of them.
            pattern: `(axes,)`: along which axes their weights are zero.
        """
        others = self._filled(units, part, which)
        for at in itertools.compress(part, pattern):
            units.of(others, *at)[which] = 0.0
        if self.trials.differs(self.twin, others, NOTHING):
            return False
        return self.trials.differs(self.twin, self._filled(units, part, which))

    def _folds(
        self, units: _Units, part: Axes, which: np.ndarray, pattern: np.ndarray
    ) -> list[_Fold]:
        """Return how units go that have the same zeros and are constant.

        They are if they stay the same to the dense layers that read them,
        however large their other kernels may be. Empty if they are not.
        """
        positions = {id(x): i for i, x in enumerate(self.twin.weights)}
        others = self._filled(units, part, which)
        for at, is_zero in zip(part, pattern, strict=True):
            view, own = (units.of(x, *at) for x in (others, self.values))
            is_kernel = self.values[at[0]].ndim > 1
            view[which] = (
                own[which]
                if is_zero or not is_kernel
                # No bias hides what is as large as this.
                else _LARGE * view[which]
            )
        folds = []
        for layer in flatten_layers(self.twin):
            is_dense = computing_class(type(layer)) is keras.layers.Dense
            if not (is_dense and layer.built and layer.bias is not None):
                continue
            at = positions.get(id(layer.kernel), -1), 0
            if at not in part:
                continue
            if units.block(self.values, *at) > 1:
                return []
            read = self.trials.read_by(layer, self.twin, (self.values, others))[
                :, which
            ]
            first = read[0]
            if not np.abs(read - first).max() <= NOTHING * np.abs(first).max():
                return []
            constants = np.zeros(units.count, read.dtype)
            constants[which] = first
            folds.append(_Fold(at[0], positions[id(layer.bias)], constants))
        return folds

    def _filled(
        self,
        units: _Units,
        part: Axes,
        which: np.ndarray,
        weights: Arrays | None = None,
    ) -> Arrays:
        """Return the weights, some units of a part with random numbers.

        Where no weight is negative they are positive, as variances must be.
        """
        values = [x.copy() for x in weights or self.values]
        generator = self.trials.generator
        for index, axis in part:
            view = units.of(values, index, axis)
            drawn = generator.uniform(0.5, 1.5, view[which].shape)
            if (self.values[index] < 0.0).any():
                drawn *= generator.choice([-1.0, 1.0], drawn.shape)
            view[which] = drawn
        return values
