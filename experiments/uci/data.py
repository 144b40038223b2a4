"""The nine data sets, and their splits stacked side by side.

All splits of a data set are trained at once, each with rows of its own, so
arrays have the shape `(rows, splits, columns)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments import common

# Names of files by the names that tables use.
FILES = {
    "boston": "bostonHousing",
    "concrete": "concrete",
    "energy": "energy",
    "kin8nm": "kin8nm",
    "naval": "naval-propulsion-plant",
    "power": "power-plant",
    "protein": "protein-tertiary-structure",
    "wine": "wine-quality-red",
    "yacht": "yacht",
}
HELD_OUT = 0.2  # share of a training split that hyper-parameters are chosen on


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set and its official splits.

    Attributes:
        name: As in tables.
        x: Inputs, `(rows, columns)`.
        y: Targets, `(rows,)`, in their own units.
        tests: Numbers of the test rows, `(splits, rows)`.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    tests: np.ndarray

    @property
    def trainings(self) -> np.ndarray:
        """Numbers of the training rows, `(splits, rows)`."""
        everything = np.arange(len(self.y))
        return np.stack([np.setdiff1d(everything, x) for x in self.tests])


def load(folder: Path, name: str, splits: int | None = None) -> DataSet:
    """Read a data set, and the first so many of its splits or all."""
    file = folder / f"{FILES[name]}.npz"
    try:
        with np.load(file) as arrays:
            count = int(arrays["n_splits"])
            count = count if splits is None else min(splits, count)
            tests = [arrays[f"test_{i}"] for i in range(count)]
            x, y = arrays["x"].astype("float64"), arrays["y"].astype("float64")
    except (OSError, ValueError, KeyError) as error:
        common.fail(f"cannot read {file} (see --data): {error}")
    if len({len(test) for test in tests}) != 1:
        common.fail(f"{file} must have test splits of one size")
    return DataSet(name, x, y, np.stack(tests))


def hold_out(trainings: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide every training split at random.

    Args:
        trainings: Numbers of rows, `(splits, rows)`.
        seed: Of the division.

    Returns:
        The rows to train on, and those to choose hyper-parameters on.
    """
    mixed = np.random.default_rng(seed).permuted(trainings, axis=1)
    count = max(1, round(HELD_OUT * trainings.shape[1]))
    return mixed[:, count:], mixed[:, :count]


@dataclasses.dataclass(frozen=True)
class Stack:
    """Rows of several splits side by side, standardized each by its own.

    Attributes:
        x: Inputs to train on, float32, `(rows, splits, columns)`.
        y: Targets to train on, float32, `(rows, splits, 1)`.
        x_new: Inputs to predict for, `(new rows, splits, columns)`.
        y_new: Their targets, float64, standardized.
        scale: Units of the targets in one standardized unit, `(splits,)`.
    """

    x: np.ndarray
    y: np.ndarray
    x_new: np.ndarray
    y_new: np.ndarray
    scale: np.ndarray

    def repeated(self, copies: int) -> Stack:
        """Give every split so many columns, one copy after another."""
        return Stack(
            *(np.tile(a, (1, copies, 1)) for a in self._arrays()),
            np.tile(self.scale, copies),
        )

    def selected(self, splits: Sequence[int]) -> Stack:
        """Keep some of the splits."""
        chosen = list(splits)
        return Stack(
            *(a[:, chosen] for a in self._arrays()), self.scale[chosen]
        )

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.x, self.y, self.x_new, self.y_new


def stack(data: DataSet, rows: np.ndarray, new: np.ndarray) -> Stack:
    """Standardize inputs and targets of each split by its rows in `rows`.

    Args:
        data: The data set.
        rows: Numbers of the rows to train on, `(splits, rows)`.
        new: Those to predict for, `(splits, new rows)`.
    """
    x, y = data.x[rows], data.y[rows][..., None]
    moments = []
    for values in (x, y):
        stddev = values.std(axis=1, keepdims=True)
        # Columns that are constant become 0.
        stddev[stddev == 0.0] = 1.0
        moments.append((values.mean(axis=1, keepdims=True), stddev))
    x_moments, y_moments = moments

    def standardize(
        values: np.ndarray, found: tuple[np.ndarray, np.ndarray]
    ) -> np.ndarray:
        return np.swapaxes((values - found[0]) / found[1], 0, 1)

    return Stack(
        standardize(x, x_moments).astype("float32"),
        standardize(y, y_moments).astype("float32"),
        standardize(data.x[new], x_moments).astype("float32"),
        standardize(data.y[new][..., None], y_moments),
        y_moments[1][:, 0, 0],
    )
