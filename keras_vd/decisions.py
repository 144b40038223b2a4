"""Decisions by uncertainty: when not to answer, and what looks foreign."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import rich.table

from keras_vd._backend.tables import Headline, Report
from keras_vd._backend.validation import check_array, check_number
from keras_vd.calibration import both_classes, check_labels, check_probabilities

_ROWS = 10  # of a table: coverages 0.1, 0.2, ..., 1
# How far a coverage may be from a multiple of 1 / examples by rounding.
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class RiskCoverageReport(Report):
    """Accuracy of a model that may abstain, by the share that it answers.

    The arrays have one entry per different uncertainty, in increasing order:
    examples of the same uncertainty are answered together or not at all.

    Attributes:
        uncertainty: Threshold: what is at most as uncertain is answered.
        coverage: Share of the predictions that is answered; ends with 1.
        accuracy: Share of the answers that is right.
        examples: Number of predictions.
    """

    uncertainty: np.ndarray
    coverage: np.ndarray
    accuracy: np.ndarray
    examples: int

    @property
    def risk(self) -> np.ndarray:
        """Share of the answers that is wrong, of the shape of `coverage`."""
        return 1.0 - self.accuracy

    @property
    def aurc(self) -> float:
        """Area under the risk-coverage curve; smaller is better.

        The mean risk over thresholds that are the uncertainties of all
        examples, within [0, 1] (Geifman et al. 2019, arXiv:1805.08206).
        """
        return float(np.diff(self.coverage, prepend=0.0) @ self.risk)

    def accuracy_at(self, coverage: float) -> float:
        """Return the accuracy of the answers if enough are given.

        Args:
            coverage: Share to answer, greater than 0 and at most 1. The
                threshold is the smallest that answers as many.

        Raises:
            TypeError: if `coverage` is not a number.
            ValueError: if it is out of range.
        """
        coverage = check_number("coverage", coverage, 0.0, 1.0, exclusive=True)
        return float(self.accuracy[self._index(coverage)])

    def _index(self, coverage: float) -> int:
        return int(np.searchsorted(self.coverage, coverage - _ROUNDING))

    def to_dict(self) -> dict[str, Any]:
        arrays = ("uncertainty", "coverage", "accuracy", "risk")
        return {
            **{name: getattr(self, name).tolist() for name in arrays},
            "examples": self.examples,
            "aurc": self.aurc,
        }

    def headlines(self) -> tuple[Headline, ...]:
        return (
            Headline("accuracy of all", f"{self.accuracy[-1]:.2%}"),
            Headline(
                "accuracy of the surest 80%", f"{self.accuracy_at(0.8):.2%}"
            ),
            Headline("AURC", f"{self.aurc:.4f}"),
        )

    def to_table(self) -> rich.table.Table:
        table = rich.table.Table(title="Risk and coverage")
        headers = ("coverage", "uncertainty up to", "accuracy", "risk")
        for header in headers:
            table.add_column(header, justify="right")
        wanted = [self._index((i + 1) / _ROWS) for i in range(_ROWS)]
        for i in dict.fromkeys(wanted):  # fewer if there are ties
            table.add_row(
                f"{self.coverage[i]:.4f}",
                f"{self.uncertainty[i]:.4g}",
                f"{self.accuracy[i]:.4f}",
                f"{self.risk[i]:.4f}",
            )
        table.add_section()
        table.add_row("AURC", "", "", f"{self.aurc:.4f}")
        return table


def risk_coverage(
    probabilities: Any, labels: Any, uncertainty: Any = None
) -> RiskCoverageReport:
    """Tell how accurate a model is if it leaves out what it is least sure of.

    See Geifman and El-Yaniv 2017, arXiv:1705.08500. An uncertainty is good if
    it is larger where the model is wrong, in whatever units.

    Args:
        probabilities: Array of shape `(examples, ..., classes)`. With one
            column, its values are the probabilities of class 1 of two.
        labels: Integers of shape `(examples, ...)`: the true classes.
        uncertainty: Array of shape `(examples, ...)`, larger where the model is
            less sure, such as `predictive_entropy` or `mutual_information` of a
            `keras_vd.predict_mc`. None: 1 minus the largest probability.

    Returns:
        A report; `.aurc` is the area under the curve, `.accuracy_at(0.9)` the
        accuracy with the most uncertain tenth left out, `str()` makes a table.

    Raises:
        ValueError: if `probabilities` are no probabilities, or `labels` or
            `uncertainty` are not of the right shape or range.

    Example:
    >>> report = keras_vd.risk_coverage([[0.9, 0.1], [0.4, 0.6]], [0, 0])
    >>> report.accuracy_at(0.5), report.accuracy_at(1.0), report.aurc
    (1.0, 0.5, 0.25)
    """
    values = both_classes(check_probabilities(probabilities))
    is_right = values.argmax(axis=-1) == check_labels(labels, values)
    if uncertainty is None:
        scores = 1.0 - values.max(axis=-1)
    else:
        scores = check_array("uncertainty", uncertainty)
    if scores.shape != is_right.shape:
        raise ValueError(
            "Argument `uncertainty` must be of shape "
            f"{is_right.shape}, one for each prediction. Received: shape "
            f"{scores.shape}."
        )
    thresholds, index, counts = np.unique(
        scores.ravel(), return_inverse=True, return_counts=True
    )
    answered = np.cumsum(counts)
    right = np.cumsum(np.bincount(index.ravel(), weights=is_right.ravel()))
    return RiskCoverageReport(
        uncertainty=thresholds,
        coverage=answered / is_right.size,
        accuracy=right / answered,
        examples=is_right.size,
    )


@dataclasses.dataclass(frozen=True)
class OutOfDistributionReport(Report):
    """How well an uncertainty tells foreign examples from known ones.

    Attributes:
        auroc: Probability that a foreign example has the larger uncertainty
            than one of the data that the model knows; 1 is best, 0.5 is chance.
        median_in: Median uncertainty of the known examples, in its own units.
        median_out: That of the foreign ones.
        examples_in: Number of known examples.
        examples_out: Number of foreign ones.
    """

    auroc: float
    median_in: float
    median_out: float
    examples_in: int
    examples_out: int

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def headlines(self) -> tuple[Headline, ...]:
        return (Headline("AUROC", f"{self.auroc:.4f}"),)

    def to_table(self) -> rich.table.Table:
        table = rich.table.Table(title="Foreign examples")
        table.add_column("data")
        for header in ("examples", "median uncertainty", "AUROC"):
            table.add_column(header, justify="right")
        table.add_row("known", f"{self.examples_in:,}", f"{self.median_in:.4g}")
        table.add_row(
            "foreign",
            f"{self.examples_out:,}",
            f"{self.median_out:.4g}",
            f"{self.auroc:.4f}",
        )
        return table


def out_of_distribution_auroc(
    scores_in: Any, scores_out: Any
) -> OutOfDistributionReport:
    """Tell how well an uncertainty tells foreign examples from known ones.

    The area under the receiver operating characteristic is the probability that
    a foreign example has a larger uncertainty than a known one, where a tie
    counts half (Mann and Whitney 1947; as a measure of such a detector,
    Hendrycks and Gimpel 2017, arXiv:1610.02136).

    Args:
        scores_in: Array of any shape: uncertainties of data as in training.
        scores_out: Array of any shape: uncertainties of other data.

    Returns:
        A report; `.auroc` is the probability.

    Raises:
        ValueError: if an argument is empty or not of finite numbers.

    Example:
    >>> keras_vd.out_of_distribution_auroc([0.1, 0.2], [0.2, 0.9]).auroc
    0.875
    """
    known = np.sort(check_array("scores_in", scores_in), axis=None)
    foreign = check_array("scores_out", scores_out).ravel()
    below = np.searchsorted(known, foreign, side="left")
    not_above = np.searchsorted(known, foreign, side="right")
    return OutOfDistributionReport(
        auroc=float(np.mean(below + not_above) / (2 * known.size)),
        median_in=float(np.median(known)),
        median_out=float(np.median(foreign)),
        examples_in=known.size,
        examples_out=foreign.size,
    )
