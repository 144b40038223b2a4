"""Statistics of draws that come one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_vd.calibration import (
    CalibrationReport,
    are_probabilities,
    both_classes,
    calibration_report,
    check_labels,
    softmax,
)
from keras_vd.losses import count_columns
from keras_vd.uncertainty.heads import Head
from keras_vd.uncertainty.noise import HETEROSCEDASTIC
from keras_vd.uncertainty.tasks import Meaning


class Summary:
    """Statistics of one output for one batch, updated draw by draw.

    Mean and variance are computed by Welford's algorithm (1962).

    Args:
        meaning: What the output is.
        is_keeping: Whether to keep all draws, too.
    """

    def __init__(self, meaning: Meaning, is_keeping: bool) -> None:
        self.meaning = meaning
        self.is_keeping = is_keeping
        self.samples: list[np.ndarray] = []
        self.outputs: list[np.ndarray] = []
        self.stddevs: list[np.ndarray] = []
        self.variances: Any = 0.0
        noise = meaning.noise
        self.head = Head(noise) if callable(noise) else None
        self.is_regression = meaning.task == "regression"
        self.num_samples = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0
        self.entropy: Any = 0.0

    def add(self, outputs: np.ndarray) -> None:
        """Take in one more draw, of shape `(batch, ...)`."""
        values = self._read(np.asarray(outputs, "float64"))
        self.num_samples += 1
        if self.meaning.noise == HETEROSCEDASTIC:
            columns = count_columns(values.shape)
            log_variances = values[..., columns:]
            values = values[..., :columns]
            self.variances = self.variances + np.exp(log_variances)
            if self.is_keeping:
                self.stddevs.append(np.exp(0.5 * log_variances))
        if self.head is not None:
            # As the model returned them, in the type that the user trains.
            if self.is_keeping:
                self.outputs.append(np.asarray(outputs))
            values, variances = self.head.moments(np.asarray(outputs))
            self.variances = self.variances + variances
        if self.is_keeping:
            self.samples.append(values.astype("float32"))
        deviation = values - self.mean
        self.mean = self.mean + deviation / self.num_samples
        self.squares = self.squares + deviation * (values - self.mean)
        if not self.is_regression:
            self.entropy = self.entropy + _entropy(self._classes(values))

    def _read(self, values: np.ndarray) -> np.ndarray:
        if not np.all(np.isfinite(values)):
            raise ValueError(
                f"The model returns {np.sum(~np.isfinite(values)):,} values "
                f"that are not finite, of {values.size:,} in a batch: look at "
                "its weights and at argument `x`."
            )
        task = self.meaning.task
        if self.meaning.from_logits:
            return (
                softmax(values)
                if task == "classification"
                else _sigmoid(values)
            )
        if self.is_regression or are_probabilities(self._classes(values)):
            return values
        sums = " and sum to 1" if task == "classification" else ""
        raise ValueError(
            f"Task {task!r} needs probabilities, which are within [0, 1]{sums}."
            " If these outputs are logits, pass `from_logits=True`; if they "
            "are no probabilities at all, another `task`. Received outputs of "
            f"shape {values.shape} from {values.min():g} to {values.max():g}."
        )

    def _classes(self, probabilities: np.ndarray) -> np.ndarray:
        return with_classes(probabilities, self.meaning.task)

    def check_labels(self, labels: np.ndarray) -> None:
        """Raise a ValueError unless labels fit the first draw.

        Args:
            labels: Labels of this batch, or fewer.
        """
        values = both_classes(self._classes(self.mean))
        check_labels(labels, values[: len(labels)])

    def calibration(self, mean: np.ndarray, labels: Any) -> CalibrationReport:
        return calibration_report(self._classes(mean), labels)

    @property
    def standard_deviation(self) -> np.ndarray:
        return np.sqrt(self.squares / self.num_samples)

    @property
    def aleatoric_variance(self) -> np.ndarray:
        """The mean variance of the noise, which must be known."""
        if self.meaning.noise == HETEROSCEDASTIC or self.head is not None:
            return self.variances / self.num_samples
        variance = np.square(np.asarray(self.meaning.noise, "float64"))
        return np.broadcast_to(variance, self.mean.shape)

    @property
    def predictive_entropy(self) -> np.ndarray:
        return _entropy(self._classes(self.mean))

    @property
    def mutual_information(self) -> np.ndarray:
        # Only rounding makes it negative.
        difference = self.predictive_entropy - self.entropy / self.num_samples
        return np.maximum(difference, 0.0)


def with_classes(probabilities: np.ndarray, task: str) -> np.ndarray:
    """Return probabilities whose last axis is that of the classes.

    It may be of size 1, with the probability of class 1 of two.
    """
    is_column = task == "binary" and probabilities.ndim > 1
    if is_column or task == "classification":
        return probabilities
    return probabilities[..., None]


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    """Compute the entropy in nats along the last axis, with 0 log 0 = 0."""
    values = np.clip(both_classes(probabilities), 0.0, 1.0)
    logs = np.log(np.where(values > 0.0, values, 1.0))
    return -np.sum(values * logs, axis=-1)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * logits)
