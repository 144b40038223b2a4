"""Calibration of a regression: does the spread say how far off the mean is?"""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any

import numpy as np
import rich.table

from keras_vd._backend.tables import Headline, Report
from keras_vd._backend.validation import check_array

LEVELS = np.arange(1, 20) / 20  # of central intervals: 0.05, 0.1, ..., 0.95

_PRECISION = 1e-9  # of a quantile, relative to the bracket
_MAX_STEPS = 200  # halving the bracket alone takes fewer
_BLOCK = 8192  # numbers that a processor's cache holds several arrays of

# Values and differentials of the error function at multiples of a step. NumPy
# has no error function, and Python's takes one number at a time.
_STEP, _END = 1 / 1024, 6.0
_ERF = np.array([math.erf(i * _STEP) for i in range(int(_END / _STEP) + 2)])
_SLOPES = np.exp(-((_STEP * np.arange(len(_ERF))) ** 2))
_SLOPES *= 2.0 / math.sqrt(math.pi) * _STEP


@dataclasses.dataclass(frozen=True, eq=False)
class RegressionCalibrationReport(Report):
    """Predictive distributions compared with what came.

    Attributes:
        levels: Probabilities of central intervals, 0.05, 0.1, ..., 0.95.
        coverage: Share of the targets within the interval of each level; of a
            calibrated model, the level itself.
        pit: Probability integral transform of each target, of the shape of the
            targets: the probability that was predicted for less. Uniform on
            [0, 1] for a calibrated model; a hill in the middle tells of
            intervals that are too wide, heaps at the ends of too narrow ones.
        crps: Mean continuous ranked probability score, in units of the targets;
            smaller is better. Of a certain prediction it is the absolute error.
        sharpness: Mean width of the 95% interval, in units of the targets.
    """

    levels: np.ndarray
    coverage: np.ndarray
    pit: np.ndarray
    crps: float
    sharpness: float

    @property
    def examples(self) -> int:
        """Number of targets."""
        return self.pit.size

    @property
    def coverage_95(self) -> float:
        """Share of the targets within the central 95% interval."""
        return float(self.coverage[-1])

    @property
    def calibration_error(self) -> float:
        """Mean of |coverage - level|."""
        return float(np.mean(np.abs(self.coverage - self.levels)))

    def to_dict(self) -> dict[str, Any]:
        arrays = ("levels", "coverage", "pit")
        numbers = (
            "crps",
            "sharpness",
            "examples",
            "coverage_95",
            "calibration_error",
        )
        return {
            **{name: getattr(self, name).tolist() for name in arrays},
            **{name: getattr(self, name) for name in numbers},
        }

    def headlines(self) -> tuple[Headline, ...]:
        return (
            Headline("within 95% intervals", f"{self.coverage_95:.2%}"),
            Headline("calibration error", f"{self.calibration_error:.4f}"),
            Headline("CRPS", f"{self.crps:.4g}"),
            Headline("mean width of 95%", f"{self.sharpness:.4g}"),
        )

    def to_table(self) -> rich.table.Table:
        table = rich.table.Table(title="Calibration of a regression")
        for header in ("central interval", "coverage", "gap"):
            table.add_column(header, justify="right")
        for level, share in zip(self.levels, self.coverage, strict=True):
            gap = abs(share - level)
            table.add_row(f"{level:.0%}", f"{share:.4f}", f"{gap:.4f}")
        table.add_section()
        table.add_row("calibration error", "", f"{self.calibration_error:.4f}")
        table.add_row("CRPS", f"{self.crps:.4g}", "")
        table.add_row("mean width of 95%", f"{self.sharpness:.4g}", "")
        table.add_row("targets", f"{self.examples:,}", "")
        return table


def regression_calibration(
    y: Any, *, samples: Any = None, mean: Any = None, stddev: Any = None
) -> RegressionCalibrationReport:
    """Compare predictive distributions of numbers with what came.

    Pass either `samples`, or `mean` and `stddev`. Draws of a variational
    network's output are means without the noise of the data: pass them as
    `mean`, and the standard deviation of that noise as `stddev`.

    Coverage by level is that of Kuleshov et al. 2018 (arXiv:1807.00263), for
    central intervals; the transform and sharpness are those of Gneiting et al.
    2007 (Journal of the Royal Statistical Society B 69), the score that of
    Gneiting and Raftery 2007 (Journal of the American Statistical Association
    102), for mixtures that of Grimit et al. 2006 (Quarterly Journal of the
    Royal Meteorological Society 132).

    Args:
        y: Array of any shape: the targets.
        samples: Array of shape `(num_samples, *y.shape)`: draws of the targets
            from the predictive distributions, at least 2. The outermost
            intervals are between the smallest and the largest draw, so that
            fewer than 39 cannot cover 95%; the score of `num_samples` draws is
            larger than that of many, by about 1 part in `num_samples`.
        mean: Array of the shape of `y`: means of Gaussians; or of shape
            `(num_samples, *y.shape)`: means of the equally likely parts of a
            mixture of Gaussians.
        stddev: Standard deviations > 0: a number, or an array that can be
            broadcast to the shape of `mean`.

    Returns:
        A report; `.coverage_95`, `.calibration_error`, `.crps` and `.sharpness`
        are numbers, `str()` makes a table.

    Raises:
        ValueError: if arrays are not finite or of the wrong shape, `stddev` is
            not positive, or not exactly one form is passed.

    Example:
    >>> report = keras_vd.regression_calibration(
    ...     [0.0, 1.0, -3.0], mean=[0.0, 0.0, 0.0], stddev=1.0
    ... )
    >>> round(report.coverage_95, 3), round(report.sharpness, 3)
    (0.667, 3.92)
    """
    targets = check_array("y", y)
    is_gaussian = mean is not None and stddev is not None and samples is None
    is_sampled = samples is not None and mean is None and stddev is None
    if not is_gaussian and not is_sampled:
        given = {"samples": samples, "mean": mean, "stddev": stddev}
        names = [name for name, value in given.items() if value is not None]
        raise ValueError(
            "Pass either `samples`, or `mean` and `stddev`. Received: "
            f"{names or 'none of them'}."
        )
    if is_sampled:
        return _from_samples(targets, check_array("samples", samples))
    means, spreads = _check_gaussians(targets, mean, stddev)
    return _from_mixture(targets, means, spreads)


def _from_samples(
    targets: np.ndarray, samples: np.ndarray
) -> RegressionCalibrationReport:
    if samples.ndim == 0 or samples.shape[1:] != targets.shape:
        raise ValueError(
            "Argument `samples` must be of shape (num_samples, *y.shape) = "
            f"(num_samples, {', '.join(map(str, targets.shape))}). Received: "
            f"shape {samples.shape}."
        )
    count = len(samples)
    if count < 2:
        raise ValueError(
            "Argument `samples` must have at least 2 samples of each target. "
            f"Received: shape {samples.shape}."
        )
    # The target is as likely to have any rank among the samples. So these
    # quantiles, at i / (count + 1), cover what they say.
    tails = (1.0 - LEVELS) / 2.0
    low = np.quantile(samples, tails, axis=0, method="weibull")
    high = np.quantile(samples, 1.0 - tails, axis=0, method="weibull")
    is_covered = (low <= targets) & (targets <= high)
    ranks = (samples < targets).sum(axis=0) + (samples <= targets).sum(axis=0)
    weights = 2.0 * np.arange(count) - count + 1.0
    pairs = np.tensordot(weights, np.sort(samples, axis=0), axes=1) / count**2
    distances = np.abs(samples - targets).mean(axis=0)
    return RegressionCalibrationReport(
        levels=LEVELS,
        coverage=is_covered.reshape(len(LEVELS), -1).mean(axis=1),
        pit=np.asarray((ranks + 1) / (2.0 * (count + 1))),
        crps=float(np.mean(distances - pairs)),
        sharpness=float(np.mean(high[-1] - low[-1])),
    )


def _check_gaussians(
    targets: np.ndarray, mean: Any, stddev: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return means and standard deviations of shape `(parts, *y.shape)`.

    Raises:
        ValueError: if they are not finite, positive or of the right shape.
    """
    means, spreads = check_array("mean", mean), check_array("stddev", stddev)
    is_mixture = means.ndim > 0 and means.shape[1:] == targets.shape
    if not is_mixture and means.shape != targets.shape:
        raise ValueError(
            f"Argument `mean` must be of the shape of `y`, {targets.shape}, or "
            "of that shape with an axis of the parts of a mixture before it. "
            f"Received: shape {means.shape}."
        )
    if np.any(spreads <= 0.0):
        raise ValueError(
            "Argument `stddev` must be positive. Received values from "
            f"{spreads.min():g}."
        )
    try:
        spreads = np.broadcast_to(spreads, means.shape)
    except ValueError as error:
        raise ValueError(
            "Argument `stddev` must be a number, or an array that can be "
            f"broadcast to the shape of `mean`, {means.shape}. Received: shape "
            f"{spreads.shape}."
        ) from error
    return (means, spreads) if is_mixture else (means[None], spreads[None])


def _from_mixture(
    targets: np.ndarray, means: np.ndarray, spreads: np.ndarray
) -> RegressionCalibrationReport:
    pit = _cdf((targets - means) / spreads).mean(axis=0)
    # In a central interval is what is as far from the median in probability.
    distance = np.abs(2.0 * pit - 1.0).reshape(1, -1)
    tail = (1.0 - LEVELS[-1]) / 2.0
    width = mixture_quantile(means, spreads, 1.0 - tail) - mixture_quantile(
        means, spreads, tail
    )
    return RegressionCalibrationReport(
        levels=LEVELS,
        coverage=(distance <= LEVELS[:, None]).mean(axis=1),
        pit=np.asarray(pit),
        crps=_mixture_crps(targets, means, spreads),
        sharpness=float(np.mean(width)),
    )


def _erf(values: np.ndarray) -> np.ndarray:
    """Return the error function, by cubic interpolation, to about 1e-14."""
    steps = np.minimum(np.abs(values), _END) / _STEP
    index = steps.astype("int64")
    part = steps - index
    start, first, last = _ERF[index], _SLOPES[index], _SLOPES[index + 1]
    rise = _ERF[index + 1] - start
    square, cube = 3.0 * rise - 2.0 * first - last, first + last - 2.0 * rise
    found = start + part * (first + part * (square + part * cube))
    return np.copysign(found, values)


def _cdf(values: np.ndarray) -> np.ndarray:
    """Return the distribution function of a standard Gaussian."""
    return 0.5 + 0.5 * _erf(values / math.sqrt(2.0))


def _mean_distance(shift: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Return the mean of |x| for a Gaussian x of this mean and deviation."""
    z = shift / spread
    peak = math.sqrt(2.0 / math.pi) * spread * np.exp(-0.5 * z**2)
    return peak + shift * _erf(z / math.sqrt(2.0))


def _mixture_crps(
    targets: np.ndarray, means: np.ndarray, spreads: np.ndarray
) -> float:
    """Return the mean of E|x - y| - E|x - x'| / 2, x and x' of the mixture."""
    parts = len(means)
    total = 0.0
    flat = [x.reshape(-1, targets.size) for x in (targets, means, spreads)]
    size = max(1, _BLOCK // parts)  # twice as fast as all at once
    for start in range(0, targets.size, size):
        y, m, s = (x[:, start : start + size] for x in flat)
        total += _mean_distance(m - y, s).sum() / parts
        pairs = _mean_distance(np.zeros_like(m), math.sqrt(2.0) * s).sum()
        for i in range(1, parts):
            distances = _mean_distance(m[:i] - m[i], np.hypot(s[:i], s[i]))
            pairs += 2.0 * distances.sum()
        total -= 0.5 * pairs / parts**2
    return float(total / targets.size)


def mixture_quantile(
    means: np.ndarray, spreads: np.ndarray, probability: float
) -> np.ndarray:
    """Return what a mixture of Gaussians is below with a probability.

    By Newton's method within a bracket, which is halved where Newton's steps
    leave it or do not shrink.

    Args:
        means: float64 array of shape `(parts, ...)`; all parts are as likely.
        spreads: Standard deviations, of that shape.
        probability: Within (0, 1).

    Returns:
        Array of the shape of a part.
    """
    ends = means + statistics.NormalDist().inv_cdf(probability) * spreads
    low, high = ends.min(axis=0), ends.max(axis=0)
    enough = _PRECISION * (high - low)
    value, size = 0.5 * (low + high), high - low
    for _ in range(_MAX_STEPS):
        z = (value - means) / spreads
        excess = _cdf(z).mean(axis=0) - probability
        density = np.exp(-0.5 * z**2) / (math.sqrt(2.0 * math.pi) * spreads)
        low = np.where(excess < 0.0, value, low)
        high = np.where(excess > 0.0, value, high)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            newton = value - excess / density.mean(axis=0)
        is_good = (low <= newton) & (newton <= high)
        is_good &= np.abs(newton - value) <= 0.5 * size
        moved = np.where(is_good, newton, 0.5 * (low + high))
        value, size = moved, np.abs(moved - value)
        if np.all(size <= enough):
            break
    return value
