"""Sizes of a model that can be wished for, and how they are measured."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any

import keras

from keras_vd._backend.validation import check_number
from keras_vd.conversion.deterministic import to_deterministic
from keras_vd.shrinking.report import ShrinkReport
from keras_vd.shrinking.shrink_model import shrink
from keras_vd.sparsity import SparsityReport, sparsity_report

# What there is and what is left of it.
Sizes = tuple[int | None, int | None]


def _entries(model: keras.Model) -> Sizes:
    return sparsity_report(model).entries


def _units(model: keras.Model) -> Sizes:
    return units_of(sparsity_report(model))


def units_of(report: SparsityReport) -> tuple[int, int]:
    """Count input units and those of gates, and those of them that are left."""
    inputs = sum(row.inputs for row in report.rows)
    units = sum(gate.units for gate in report.gates)
    return inputs + units, sum(report.n_active)


def _parameters(model: keras.Model) -> Sizes:
    report = _shrunk(model)
    return report.parameters, report.kept_parameters


def _macs(model: keras.Model) -> Sizes:
    report = _shrunk(model)
    return report.macs, report.kept_macs


def _shrunk(model: keras.Model) -> ShrinkReport:
    plain = to_deterministic(model)
    return shrink(plain, return_report=True, verbose=0)[1]


_SIZES: dict[str, Callable[[keras.Model], Sizes]] = {
    "nonzero_ratio": _entries,
    "parameters": _parameters,
    "macs": _macs,
    "n_active": _units,
}
# All wishes that there are, as arguments are named.
NAMES = (*_SIZES, "budget")
# A size is met if it is off by this share at most.
TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True)
class Wish:
    """A size that a model shall have, as a ratio, a number or a share.

    Args:
        name: `"nonzero_ratio"`, `"n_active"`, `"parameters"` or `"macs"`.
        value: Float > 1 for the ratio; otherwise an int >= 1, or a float in
            (0, 1), a share of the whole.

    Raises:
        TypeError: if `value` is no number.
        ValueError: if it is out of range.
    """

    name: str
    value: float

    def __post_init__(self) -> None:
        if self.name == "nonzero_ratio":
            check_number(self.name, self.value, 1.0, exclusive=True)
            return
        value: Any = self.value
        is_number = isinstance(value, numbers.Real)
        is_whole = isinstance(value, numbers.Integral)
        message = (
            f"Argument `{self.name}` must be an integer of at least 1, or a "
            "float between 0 and 1, which is a share of the whole. Received: "
            f"{self.name}={value!r} (of type {type(value).__name__})."
        )
        if isinstance(value, bool) or not is_number:
            raise TypeError(message)
        if not (value >= 1 if is_whole else 0.0 < value < 1.0):
            raise ValueError(message)

    @property
    def is_by_unit(self) -> bool:
        """Whether only whole units count."""
        return self.name != "nonzero_ratio"

    def whole(self, model: keras.Model) -> int:
        """Count what there is to be reduced.

        Raises:
            ValueError: if that is not known.
        """
        whole, _ = _SIZES[self.name](model)
        if whole is None:
            raise ValueError(
                f"Argument `macs` needs a model whose operations can be "
                "counted: a spatial size, or the number of time steps, of "
                f"'{model.name}' is not known. Received: macs={self.value!r}."
            )
        return whole

    def size(self, model: keras.Model) -> int:
        """Count what is left; of the shrunk model, for parameters and MACs."""
        _, size = _SIZES[self.name](model)
        assert size is not None
        return size

    def most(self, whole: int) -> float:
        """Return the size that is wished for.

        Args:
            whole: What there is to be reduced.
        """
        if self.name == "nonzero_ratio":
            return whole / self.value
        is_whole = isinstance(self.value, numbers.Integral)
        return self.value if is_whole else self.value * whole

    def figure(self, whole: int, size: float) -> float:
        """Return a size in the units of the wish."""
        if self.name == "nonzero_ratio":
            return whole / size if size else math.inf
        return size

    def describe(self, whole: int, size: float) -> str:
        """Say a size in the words of the wish."""
        figure = self.figure(whole, size)
        form = ".4g" if self.name == "nonzero_ratio" else ",.0f"
        return f"{self.name}={figure:{form}}"
