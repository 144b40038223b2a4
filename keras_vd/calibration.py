"""Calibration: do predicted probabilities say how often they are right?"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import rich.table

from keras_vd._backend.tables import Headline, Report
from keras_vd._backend.validation import check_integer

# How far the sum of a softmax that is computed in 16 bits may be from 1.
_SUM_TOLERANCE = 1e-2


@dataclasses.dataclass(frozen=True)
class CalibrationBin:
    """Predictions whose confidence is in `(lower, upper]`.

    Attributes:
        lower: Lower edge of the confidence.
        upper: Upper edge.
        examples: Number of predictions.
        confidence: Their mean confidence.
        accuracy: Share of them that is right.
    """

    lower: float
    upper: float
    examples: int
    confidence: float
    accuracy: float

    @property
    def gap(self) -> float:
        """|accuracy - confidence|."""
        return abs(self.accuracy - self.confidence)


@dataclasses.dataclass(frozen=True)
class CalibrationReport(Report):
    """Confidence and accuracy of predictions, by confidence.

    Attributes:
        bins: One `CalibrationBin` per interval that has predictions.
    """

    bins: tuple[CalibrationBin, ...]

    @property
    def examples(self) -> int:
        """Number of predictions."""
        return sum(row.examples for row in self.bins)

    @property
    def accuracy(self) -> float:
        """Share of the predictions that is right."""
        return self._average("accuracy")

    @property
    def confidence(self) -> float:
        """Mean confidence."""
        return self._average("confidence")

    @property
    def expected_error(self) -> float:
        """Expected calibration error: the mean gap over the predictions."""
        return self._average("gap")

    def _average(self, name: str) -> float:
        return float(
            sum(row.examples * getattr(row, name) for row in self.bins)
            / self.examples
        )

    def to_dict(self) -> dict[str, Any]:
        totals = ("examples", "accuracy", "confidence", "expected_error")
        return {
            "bins": [dataclasses.asdict(row) for row in self.bins],
            **{name: getattr(self, name) for name in totals},
        }

    def headlines(self) -> tuple[Headline, ...]:
        return (
            Headline("accuracy", f"{self.accuracy:.2%}"),
            Headline("mean confidence", f"{self.confidence:.2%}"),
            Headline("calibration error", f"{self.expected_error:.4f}"),
        )

    def to_table(self) -> rich.table.Table:
        table = rich.table.Table(title="Calibration")
        for header in ("confidence", "examples", "mean", "accuracy", "gap"):
            table.add_column(header, justify="right")
        for row in self.bins:
            table.add_row(
                f"{row.lower:.3f} to {row.upper:.3f}",
                f"{row.examples:,}",
                f"{row.confidence:.4f}",
                f"{row.accuracy:.4f}",
                f"{row.gap:.4f}",
            )
        table.add_section()
        table.add_row(
            "all",
            f"{self.examples:,}",
            f"{self.confidence:.4f}",
            f"{self.accuracy:.4f}",
            f"{self.expected_error:.4f}",
        )
        return table


def calibration_report(
    probabilities: Any, labels: Any, bins: int = 15
) -> CalibrationReport:
    """Compare the confidence of predictions with how often they are right.

    The confidence is the largest class probability. The expected calibration
    error is that of Guo et al. 2017 (arXiv:1706.04599, eq. 3): the mean of
    |accuracy - confidence| over bins of equal width, by number of examples.

    Args:
        probabilities: Array of shape `(examples, ..., classes)`. With one
            column, its values are the probabilities of class 1 of two.
        labels: Integers of shape `(examples, ...)`: the true classes.
        bins: Int >= 1: number of bins of [0, 1].

    Returns:
        A report; `.expected_error` is the error, `str()` makes a table.

    Raises:
        TypeError: if `bins` is not an integer.
        ValueError: if `probabilities` are no probabilities, or `labels` are not
            of the right shape or range.

    Example:
    >>> report = keras_vd.calibration_report([[0.9, 0.1], [0.4, 0.6]], [0, 0])
    >>> round(report.expected_error, 3)
    0.35
    """
    bins = check_integer("bins", bins, 1)
    values = both_classes(check_probabilities(probabilities))
    classes = check_labels(labels, values).reshape(-1)
    values = values.reshape(-1, values.shape[-1])
    confidence = values.max(axis=-1)
    is_right = values.argmax(axis=-1) == classes
    edges = np.linspace(0.0, 1.0, bins + 1)
    # Interval i is (edges[i], edges[i + 1]]. The outer edges are left out, as
    # rounding to 16 bits may lead above 1.
    index = np.digitize(confidence, edges[1:-1], right=True)
    return CalibrationReport(
        tuple(
            CalibrationBin(
                lower=float(edges[i]),
                upper=float(edges[i + 1]),
                examples=int(np.sum(index == i)),
                confidence=float(confidence[index == i].mean()),
                accuracy=float(is_right[index == i].mean()),
            )
            for i in np.unique(index)
        )
    )


def are_probabilities(values: np.ndarray) -> bool:
    """Tell whether the last axis holds class probabilities.

    Args:
        values: Array of any shape. One column is enough if it is in [0, 1].
    """
    if values.ndim < 2 or not np.all((values >= 0.0) & (values <= 1.01)):
        return False
    sums = 1.0 if values.shape[-1] == 1 else values.sum(axis=-1)
    return bool(np.all(np.abs(sums - 1.0) <= _SUM_TOLERANCE))


def check_probabilities(probabilities: Any) -> np.ndarray:
    """Return class probabilities as an array of float64.

    Args:
        probabilities: What a user passed.

    Raises:
        ValueError: if they are no probabilities, or none are there.
    """
    values = np.asarray(probabilities, "float64")
    if not are_probabilities(values) or not values.size:
        raise ValueError(
            "Argument `probabilities` must be class probabilities of shape "
            "(examples, ..., classes), within [0, 1] and of sum 1. Received: "
            f"shape {values.shape}."
        )
    return values


def softmax(logits: np.ndarray) -> np.ndarray:
    """Compute probabilities along the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def both_classes(probabilities: np.ndarray) -> np.ndarray:
    """Return the probabilities of all classes, of shape `(..., classes)`.

    One column, of class 1, becomes the two columns of a binary problem.
    """
    if probabilities.shape[-1] > 1:
        return probabilities
    return np.concatenate([1.0 - probabilities, probabilities], axis=-1)


def check_labels(labels: Any, probabilities: np.ndarray) -> np.ndarray:
    """Return labels as integers if they fit probabilities of all classes.

    Args:
        labels: What a user passed.
        probabilities: Array of shape `(..., classes)`.

    Raises:
        ValueError: if the shape is another one, or a label is no class.
    """
    *shape, classes = probabilities.shape
    array = np.asarray(labels)
    if array.shape == (*shape, 1):  # as Keras' losses allow
        array = array[..., 0]
    if array.shape != tuple(shape) or array.dtype.kind not in "biuf":
        raise ValueError(
            f"Argument `labels` must be class numbers of shape {tuple(shape)}, "
            f"one for each prediction. Received: shape {array.shape} of type "
            f"{array.dtype}."
        )
    is_in_range = np.all((array >= 0) & (array < classes))
    # A cast of what is out of range, such as NaN, would warn.
    if not is_in_range or np.any(array.astype("int64") != array):
        raise ValueError(
            "Argument `labels` must be class numbers 0, 1, ..., "
            f"{classes - 1}. Received values from {array.min()} to "
            f"{array.max()}."
        )
    return array.astype("int64")
