"""Temperature scaling: make the confidence of a trained network honest."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import rich.table

from keras_vd._backend.tables import Headline, Report
from keras_vd._backend.validation import check_array
from keras_vd.calibration import (
    CalibrationReport,
    both_classes,
    calibration_report,
    check_labels,
    check_probabilities,
    softmax,
)

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3

# Smaller probabilities, such as zeros of a softmax in float32, have logarithms
# that say nothing; this is the smallest normal number of float32.
_MIN_PROBABILITY = float(np.finfo("float32").tiny)
_PRECISION = 1e-10  # of the temperature, relative
_MAX_STEPS = 200  # halving the bracket alone takes fewer


@dataclasses.dataclass(frozen=True)
class TemperatureReport(Report):
    """A temperature, and what it changes on the data that it was fitted to.

    Attributes:
        temperature: What logits are to be divided by; above 1 the network was
            too sure.
        is_bounded: Whether `temperature` is a bound, `MIN_TEMPERATURE` or
            `MAX_TEMPERATURE` of `keras_vd.temperature`, since the likelihood
            has no maximum between them.
        nll_before: Nats per prediction: mean negative log likelihood of the
            labels at temperature 1.
        nll_after: That at `temperature`.
        calibration_before: Confidence and accuracy at temperature 1.
        calibration_after: Those at `temperature`.
        from_logits: Whether `apply` takes logits; else probabilities.
    """

    temperature: float
    is_bounded: bool
    nll_before: float
    nll_after: float
    calibration_before: CalibrationReport
    calibration_after: CalibrationReport
    from_logits: bool

    def apply(self, logits: Any) -> np.ndarray:
        """Return probabilities at the temperature.

        Args:
            logits: Array of shape `(examples, ..., classes)`, or with one
                column, as they were fitted: probabilities if `from_logits` is
                False.

        Returns:
            Array of that shape; one column is the probability of class 1.

        Raises:
            ValueError: if they are not what was fitted.
        """
        scaled = softmax(_logits(logits, self.from_logits) / self.temperature)
        has_one_column = np.shape(logits)[-1] == 1
        return scaled[..., 1:] if has_one_column else scaled

    def to_dict(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self),
            "calibration_before": self.calibration_before.to_dict(),
            "calibration_after": self.calibration_after.to_dict(),
        }

    def headlines(self) -> tuple[Headline, ...]:
        before, after = (
            f"{report.expected_error:.4f}"
            for report in (self.calibration_before, self.calibration_after)
        )
        return (
            Headline("temperature", f"{self.temperature:.4g}"),
            Headline(
                "NLL, nats", f"{self.nll_after:.4f}", f"{self.nll_before:.4f}"
            ),
            Headline("calibration error", after, before),
        )

    def to_table(self) -> rich.table.Table:
        bound = " (a bound)" if self.is_bounded else ""
        table = rich.table.Table(title="Temperature scaling")
        for header in ("temperature", "NLL, nats", "calibration error"):
            table.add_column(header, justify="right")
        table.add_row(
            "1",
            f"{self.nll_before:.4f}",
            f"{self.calibration_before.expected_error:.4f}",
        )
        table.add_row(
            f"{self.temperature:.4g}{bound}",
            f"{self.nll_after:.4f}",
            f"{self.calibration_after.expected_error:.4f}",
        )
        return table


def temperature_scaling(
    logits: Any, labels: Any, from_logits: bool = True
) -> TemperatureReport:
    """Fit the temperature that makes probabilities fit held-out labels.

    Guo et al. 2017 (arXiv:1706.04599): logits are divided by one number, which
    minimizes the negative log likelihood. No prediction changes, only how sure
    it is. Take examples that the network was not trained on.

    Args:
        logits: Array of shape `(examples, ..., classes)`. With one column, its
            values are the logits of class 1 of two.
        labels: Integers of shape `(examples, ...)`: the true classes.
        from_logits: Whether `logits` are logits. False: they are probabilities,
            whose logarithms are taken; those below 1.2e-38 count as that.

    Returns:
        A report; `.temperature` is the number, `.apply(logits)` returns the
        probabilities of other examples, `str()` makes a table.

    Raises:
        TypeError: if `from_logits` is not a bool.
        ValueError: if `logits` are not finite or no probabilities, or `labels`
            are not of the right shape or range.

    Warns:
        UserWarning: if the likelihood has no maximum between 0.001 and 1000,
            which then bound the temperature. If all labels are what the logits
            say, the likelihood grows as the temperature falls to 0; if logits
            say less than nothing, as it rises.

    Example:
    >>> logits = [[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]]
    >>> report = keras_vd.temperature_scaling(logits, [0, 0, 0, 1])
    >>> round(report.temperature, 2), report.apply(logits)[0].round(2)
    (3.64, array([0.75, 0.25]))
    """
    if not isinstance(from_logits, bool):
        raise TypeError(
            "Argument `from_logits` must be True or False. Received: "
            f"from_logits={from_logits!r}."
        )
    values = _logits(logits, from_logits)
    classes = check_labels(labels, values)[..., None]
    # Differences from the largest, which leave the softmax as it is.
    values = (values - values.max(axis=-1, keepdims=True)).reshape(
        -1, values.shape[-1]
    )
    classes = classes.reshape(-1, 1)
    temperature, is_bounded = _fit(values, classes)
    if is_bounded:
        warnings.warn(
            "The likelihood of `labels` has no maximum for temperatures from "
            f"{MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}; the result is "
            f"{temperature:g}. "
            + (
                "The logits are right about every label, so take more "
                "examples, with some that they are wrong about; or they are "
                "tiny."
                if temperature < 1.0
                else "The logits say nothing true about the labels, so see "
                "that both have the same order and classes; or they are huge."
            ),
            stacklevel=2,
        )
    return TemperatureReport(
        temperature=temperature,
        is_bounded=is_bounded,
        nll_before=_nll(values, classes),
        nll_after=_nll(values / temperature, classes),
        calibration_before=calibration_report(softmax(values), classes),
        calibration_after=calibration_report(
            softmax(values / temperature), classes
        ),
        from_logits=from_logits,
    )


def _logits(values: Any, are_logits: bool) -> np.ndarray:
    """Return logits of all classes, of shape `(..., classes)`.

    Raises:
        ValueError: if `values` are not finite or no probabilities.
    """
    if not are_logits:
        probabilities = both_classes(check_probabilities(values))
        return np.log(np.maximum(probabilities, _MIN_PROBABILITY))
    logits = check_array("logits", values)
    if logits.ndim < 2:
        raise ValueError(
            "Argument `logits` must be of shape (examples, ..., classes). "
            f"Received: shape {logits.shape}."
        )
    if logits.shape[-1] > 1:
        return logits
    return np.concatenate([np.zeros_like(logits), logits], axis=-1)


def _nll(logits: np.ndarray, classes: np.ndarray) -> float:
    """Return the mean negative log likelihood, in nats.

    Args:
        logits: Array of shape `(examples, classes)`, at most 0 and with a 0 in
            each row.
        classes: Integers of shape `(examples, 1)`.
    """
    log_sums = np.log(np.exp(logits).sum(axis=-1))
    right = np.take_along_axis(logits, classes, axis=-1)[:, 0]
    return float(np.mean(log_sums - right))


def _fit(logits: np.ndarray, classes: np.ndarray) -> tuple[float, bool]:
    """Return the temperature, and whether it is a bound.

    The negative log likelihood is convex in the inverse temperature. A root of
    its derivative is searched by Newton's method within a bracket, which is
    halved, on a logarithmic scale, where Newton's steps leave it or do not
    shrink.

    Args:
        logits: As in `_nll`.
        classes: As in `_nll`.
    """
    right = np.take_along_axis(logits, classes, axis=-1)[:, 0]
    if not logits.any():  # every temperature is as good
        return 1.0, False
    # If no class is preferred to the right one the derivative has no root, but
    # might be rounded to 0.
    is_separable = not right.any()
    low, high = 1.0 / MAX_TEMPERATURE, 1.0 / MIN_TEMPERATURE
    if is_separable or _derivatives(logits, right, high)[0] < 0.0:
        return MIN_TEMPERATURE, True
    if _derivatives(logits, right, low)[0] > 0.0:
        return MAX_TEMPERATURE, True
    inverse, step = 1.0, np.inf
    for _ in range(_MAX_STEPS):
        slope, curvature = _derivatives(logits, right, inverse)
        low, high = (low, inverse) if slope > 0.0 else (inverse, high)
        newton = -slope / curvature if curvature > 0.0 else np.inf
        is_inside = low < inverse + newton < high
        if not is_inside or abs(newton) > 0.5 * abs(step):
            newton = np.sqrt(low * high) - inverse
        step = newton
        inverse += step
        if abs(step) <= _PRECISION * inverse:
            break
    return float(1.0 / inverse), False


def _derivatives(
    logits: np.ndarray, right: np.ndarray, inverse: float
) -> tuple[float, float]:
    """Return both derivatives of the NLL in the inverse temperature.

    Args:
        logits: As in `_nll`.
        right: Array of shape `(examples,)`: those of the true classes.
        inverse: Inverse temperature.
    """
    probabilities = softmax(inverse * logits)
    means = (probabilities * logits).sum(axis=-1)
    squares = (logits - means[:, None]) ** 2
    variance = (probabilities * squares).sum(axis=-1)
    return float(np.mean(means - right)), float(np.mean(variance))
