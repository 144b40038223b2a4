"""Shrink layers that have no rule by the numbers in their configs.

A block of a Transformer, say, may read the length of its inputs, so that it
cannot be written out. It can still be rebuilt with fewer hidden units or heads.
Which number of its config counts what is found by trying, and so is what is
dead: the zeros in its weights say what may be, and what random numbers change
in the place of weights says what is.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import flatten_layers
from keras_vd._backend.names import Names
from keras_vd.conversion.cloning import Cloner, copy_trainable
from keras_vd.rules.graph import GraphTensor, Node
from keras_vd.rules.rule import Rule, why_unknown
from keras_vd.shrinking.analysis import Plan

# Sizes of open axes with which a layer is tried, in this order.
_SIZES = (7, 16, 3, 64, 1)
# Differences of this share of the largest output are rounding, ...
_TOLERANCE = 1e-5
# ... but these where only terms change that are multiplied by zero.
_NOTHING = 1e-7

Arrays = list[np.ndarray]


def resize_unknown(plan: Plan) -> None:
    """Replace rules of unknown layers that can be rebuilt with fewer units.

    The others get a reason that says why they stay as they are.
    """
    for key, rule in plan.rules.items():
        is_gone = all(node.is_gone for node in rule.uses)
        weights = getattr(rule.layer, "weights", None)
        if is_gone or not weights or rule.reason != why_unknown(rule.layer):
            continue
        values = [np.array(ops.convert_to_numpy(x)) for x in weights]
        if not any(map(_has_zeros, values)):
            continue
        try:
            with warnings.catch_warnings():
                # Keras gave them when the original was built.
                warnings.simplefilter("ignore")
                plan.rules[key] = _resized(rule, values, plan.round_to)
        except _StaysWholeError as error:
            rule.reason = f"{rule.reason}, and {error}"


class ResizedRule(Rule):
    """A layer without a rule that is rebuilt with smaller numbers.

    Attributes:
        smaller: The new config, and the new weights.
    """

    is_reduced = True

    def __init__(
        self, layer: Any, uses: list[Node], smaller: tuple[Any, Arrays]
    ) -> None:
        super().__init__(layer, uses)
        self.smaller = smaller

    def shrunk(self) -> tuple[dict[str, Any], Arrays]:
        return self.smaller

    def call(
        self, layer: Any, args: tuple[Any, ...], kwargs: Any, names: Names
    ) -> Any:
        made = super().call(layer, args, kwargs, names)
        pairs = map(flatten_layers, (self.layer, layer))
        copy_trainable(list(zip(*pairs, strict=True)))
        return made


class _StaysWholeError(Exception):
    """A layer cannot be rebuilt smaller; the message says why."""


@dataclasses.dataclass(frozen=True)
class _Units:
    """What numbers of a config count: hidden units, say, or heads.

    Attributes:
        entries: Names of the numbers in the config.
        count: Number of units.
        axes: Where they lie: positions of weights in the layer, each with an
            axis on which the entries of a unit are next to each other.
    """

    entries: tuple[str, ...]
    count: int
    axes: tuple[tuple[int, int], ...]

    def of(self, values: Arrays, index: int, axis: int) -> np.ndarray:
        """Return a view of a weight, `(units, entries of one, ...)`."""
        moved = np.moveaxis(values[index], axis, 0)
        return moved.reshape(self.count, -1, *moved.shape[1:])


def _resized(rule: Rule, values: Arrays, round_to: int) -> ResizedRule:
    search = _Search(rule, values, round_to)
    config = dict(search.config)
    search.run()
    if search.config == config:
        raise _StaysWholeError(
            "no number in its config leaves out just what is zero in it"
        )
    changed = {k: v for k, v in search.config.items() if v != config[k]}
    return ResizedRule(
        rule.layer, rule.uses, ({**rule.config, **changed}, search.values)
    )


def _has_zeros(value: np.ndarray) -> bool:
    """Tell whether a kernel is all zero for some index of an axis."""
    axes = range(value.ndim)
    return value.ndim > 1 and any(
        not value.any(axis=tuple(x for x in axes if x != axis)).all()
        for axis in axes
    )


class _Search:
    """Search for the numbers of a config that can be smaller.

    Attributes:
        config: The config that has been found, but for `dtype`.
        values: The values of the weights that go with it.
    """

    def __init__(self, rule: Rule, values: Arrays, round_to: int) -> None:
        self.layer = rule.layer
        self.values = values
        self.round_to = round_to
        self.generator = np.random.default_rng(0)
        try:
            self.config = rule.config
            is_half = self.layer.compute_dtype in ("float16", "bfloat16")
            if is_half:
                # The precision that tells rounding from a difference.
                self.config["dtype"] = "float32"
            self.calls, found = self._called(rule)
            self.twin = self._made(self.config)
            self.expected = self._outputs(self.twin, values)
        # A user's code may raise anything.
        except Exception as error:
            raise _StaysWholeError(
                "it cannot be rebuilt from its config and called on random "
                f"inputs ({type(error).__name__}: {error})"
            ) from error
        if not _alike(found, self.expected, 0.05 if is_half else _TOLERANCE):
            raise _StaysWholeError(
                "it computes something else when it is rebuilt from its config"
            )

    def _called(self, rule: Rule) -> tuple[list[Any], Arrays]:
        """Return arguments for all uses of the layer, and what it returns."""
        for size in _SIZES:
            calls = [
                keras.tree.map_structure(
                    lambda x, n=size: self._drawn(x, n), (use.args, use.kwargs)
                )
                for use in rule.uses
            ]
            try:
                with keras.StatelessScope():
                    return calls, _call(self.layer, calls)
            except Exception:
                if size == _SIZES[-1]:
                    raise
        raise AssertionError

    def _drawn(self, value: Any, size: int) -> Any:
        """Draw an array in place of a tensor of the graph."""
        if not isinstance(value, GraphTensor):
            return value
        sizes = [
            n or (size if axis else 2) for axis, n in enumerate(value.shape)
        ]
        is_real = keras.backend.is_float_dtype(value.dtype)
        drawn = (
            self.generator.standard_normal(sizes)
            if is_real
            else self.generator.integers(0, 2, sizes)
        )
        return ops.convert_to_tensor(drawn, dtype=value.dtype)

    def _made(self, config: dict[str, Any]) -> Any:
        """Return a new layer with other numbers, built by a call."""
        cls, name = type(self.layer), self.layer.name
        made = Cloner(self.layer).make(cls, dict(config), self.layer, name)
        _call(made, self.calls)
        return made

    def _outputs(self, layer: Any, values: Arrays) -> Arrays:
        layer.set_weights(values)
        return _call(layer, self.calls)

    def _changes(
        self, layer: Any, values: Arrays, tolerance: float = _TOLERANCE
    ) -> bool:
        found = self._outputs(layer, values)
        return not _alike(found, self.expected, tolerance)

    def run(self) -> None:
        for entries in self._candidates():
            units = self._units(entries)
            if units is not None:
                self._remove(units)

    def _candidates(self) -> Iterator[tuple[str, ...]]:
        """List numbers that may count units, alone or together.

        Together first: heads of queries and of keys, in groups.
        """
        numbers = {
            key: value
            for key, value in self.config.items()
            if type(value) is int and value > 1
        }
        for pair in itertools.combinations(numbers, 2):
            few, many = sorted(numbers[x] for x in pair)
            if many % few == 0:
                yield pair
        for name in numbers:
            yield (name,)

    def _units(self, entries: tuple[str, ...]) -> _Units | None:
        """Return what some numbers count; None if there is no such thing."""
        count = math.gcd(*(self.config[x] for x in entries))
        fewer = {x: self.config[x] // count * (count - 1) for x in entries}
        try:
            made = self._made({**self.config, **fewer})
        except Exception:
            return None
        shapes = [tuple(x.shape) for x in made.weights]
        if [len(x) for x in shapes] != [x.ndim for x in self.values]:
            return None
        lost = {
            (index, axis): (size, size - new)
            for index, (value, shape) in enumerate(
                zip(self.values, shapes, strict=True)
            )
            for axis, (size, new) in enumerate(
                zip(value.shape, shape, strict=True)
            )
            if size != new
        }
        counts = {s / gone for s, gone in lost.values()}
        kernels = {i for i, _ in lost if self.values[i].ndim > 1}
        # One kernel makes what a unit is, and another one reads it.
        if len(counts) != 1 or len(kernels) < 2:
            return None
        (number,) = counts
        if number < 2 or number != int(number):
            return None
        return _Units(entries, int(number), tuple(lost))

    def _remove(self, units: _Units) -> None:
        """Remove dead units, if the layer then computes what it did."""
        keep = self._kept(units)
        if keep.all():
            return
        number = int(keep.sum())
        sizes = [self.config[x] * number for x in units.entries]
        if any(x % units.count for x in sizes):
            return
        fewer = {
            x: size // units.count
            for x, size in zip(units.entries, sizes, strict=True)
        }
        config, values = {**self.config, **fewer}, list(self.values)
        for index, axis in units.axes:
            block = values[index].shape[axis] // units.count
            values[index] = np.compress(
                np.repeat(keep, block), values[index], axis
            )
        try:
            made = self._made(config)
            is_other = self._changes(made, values)
        except Exception:
            return
        if not is_other:
            self.config, self.values, self.twin = config, values, made

    def _kept(self, units: _Units) -> np.ndarray:
        """Return which units stay, `(units,)`; one of them at least."""
        is_zero = np.stack(
            [
                ~units.of(self.values, *at).any(axis=tuple(range(1, n + 1)))
                for at in units.axes
                for n in [self.values[at[0]].ndim]
            ],
            axis=1,
        )
        is_kernel = [self.values[index].ndim > 1 for index, _ in units.axes]
        keep = np.ones(units.count, bool)
        for pattern in np.unique(is_zero, axis=0):
            which = (is_zero == pattern).all(axis=1)
            if pattern[is_kernel].any() and self._are_dead(
                units, which, pattern
            ):
                keep &= ~which
        missing = self._least(units, int(keep.sum())) - int(keep.sum())
        keep[np.flatnonzero(~keep)[:missing]] = True
        return keep

    def _least(self, units: _Units, number: int) -> int:
        """Return the number of units that stay, rounded up where it must be.

        Only a last axis is one of outputs.
        """
        blocks = [
            self.values[index].shape[axis] // units.count
            for index, axis in units.axes
            if axis == self.values[index].ndim - 1
        ]
        number = max(1, number)
        while any(number * x % self.round_to for x in blocks):
            number += 1
        return min(number, units.count)

    def _are_dead(
        self, units: _Units, which: np.ndarray, pattern: np.ndarray
    ) -> bool:
        """Tell whether units with the same zeros change nothing.

        They do not if their other weights may be anything. That says something
        only if the inputs that were drawn show what a unit changes that has no
        zeros.

        Args:
            units: All of the units.
            which: `(units,)`: which of them.
            pattern: `(axes,)`: along which axes their weights are zero.
        """
        others = self._filled(units, which, ~pattern)
        for (index, axis), is_zero in zip(units.axes, pattern, strict=True):
            if is_zero:
                units.of(others, index, axis)[which] = 0.0
        if self._changes(self.twin, others, _NOTHING):
            return False
        filled = self._filled(units, which, np.ones_like(pattern))
        return self._changes(self.twin, filled)

    def _filled(
        self, units: _Units, which: np.ndarray, axes: np.ndarray
    ) -> Arrays:
        """Return the weights, some units with random numbers along some axes.

        Where no weight is negative they are positive, as variances must be.
        """
        values = [x.copy() for x in self.values]
        for index, axis in itertools.compress(units.axes, axes):
            view = units.of(values, index, axis)
            drawn = self.generator.uniform(0.5, 1.5, view[which].shape)
            if (self.values[index] < 0.0).any():
                drawn *= self.generator.choice([-1.0, 1.0], drawn.shape)
            view[which] = drawn
        return values


def _call(layer: Any, calls: list[Any]) -> Arrays:
    """Return all outputs of all calls, flattened."""
    made = [layer(*args, **kwargs) for args, kwargs in calls]
    return [
        ops.convert_to_numpy(ops.cast(x, "float32"))
        for x in keras.tree.flatten(made)
    ]


def _alike(found: Arrays, expected: Arrays, tolerance: float) -> bool:
    return all(
        one.shape == other.shape
        and np.abs(one - other).max(initial=0.0)
        <= tolerance * np.abs(other).max(initial=0.0)
        for one, other in zip(found, expected, strict=True)
    )
