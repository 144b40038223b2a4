"""What a prediction is worth: accuracy, likelihood, calibration, AUROC."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

import keras_vd
from keras_vd.uncertainty.predictive import class_log_likelihood
from keras_vd.uncertainty.summaries import Summary
from keras_vd.uncertainty.tasks import Meaning


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Class probabilities, and what is uncertain about them.

    Attributes:
        probabilities: Shape `(examples, classes)`: the mean of all draws.
        entropy: Nats, shape `(examples,)`: of `probabilities`.
        mutual_information: Nats, of that shape: the part of the entropy that
            draws disagree about; None where there is one draw.
    """

    probabilities: np.ndarray
    entropy: np.ndarray
    mutual_information: np.ndarray | None

    @classmethod
    def of_draws(cls, draws: Iterable[np.ndarray]) -> Prediction:
        """Sum up logits of shape `(examples, classes)`, one array a draw."""
        summary = Summary(Meaning("classification", from_logits=True), False)
        for logits in draws:
            summary.add(logits)
        has_draws = summary.num_samples > 1
        return cls(
            summary.mean,
            summary.predictive_entropy,
            summary.mutual_information if has_draws else None,
        )


def negative_log_likelihood(
    prediction: Prediction, labels: np.ndarray
) -> float:
    """Mean over the examples, in nats."""
    logs = class_log_likelihood(prediction.probabilities, labels)
    return -float(logs.mean())


def measure(
    known: Prediction, labels: np.ndarray, shifted: dict[str, Any]
) -> dict[str, float]:
    """Compute all figures of one network, as they are in the tables.

    Args:
        known: Its prediction of the test examples.
        labels: Their labels.
        shifted: By the name of a shift, the prediction and whether labels
            hold.
    """
    figures = _with_labels(known, labels, "")
    for name, (foreign, has_labels) in shifted.items():
        if has_labels:
            figures |= _with_labels(foreign, labels, f"{name} ")
        for score, short in (("entropy", "H"), ("mutual_information", "MI")):
            scores = getattr(known, score), getattr(foreign, score)
            if scores[0] is not None:
                report = keras_vd.out_of_distribution_auroc(*scores)
                figures[f"{name} AUROC {short}"] = report.auroc
    return figures


def _with_labels(
    prediction: Prediction, labels: np.ndarray, prefix: str
) -> dict[str, float]:
    report = keras_vd.calibration_report(prediction.probabilities, labels)
    return {
        f"{prefix}accuracy": report.accuracy,
        f"{prefix}NLL": negative_log_likelihood(prediction, labels),
        f"{prefix}ECE": report.expected_error,
    }
