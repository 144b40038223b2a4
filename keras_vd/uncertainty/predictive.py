"""Predictive distributions: mixtures of what the draws predict."""

from __future__ import annotations

import numpy as np

from keras_vd.calibration import both_classes, check_labels
from keras_vd.losses import LOG_2_PI


def class_log_likelihood(
    probabilities: np.ndarray, labels: object
) -> np.ndarray:
    """Compute the log probabilities of labels, in nats.

    Args:
        probabilities: Shape `(..., classes)`, or one column of class 1 of two.
        labels: Class numbers of shape `(...)`.

    Returns:
        float64 of shape `(...)`; -inf where a probability is 0.

    Raises:
        ValueError: if labels are not of that shape, or no class numbers.
    """
    values = np.clip(both_classes(probabilities), 0.0, 1.0)
    classes = check_labels(labels, values)[..., None]
    with np.errstate(divide="ignore"):
        return np.log(np.take_along_axis(values, classes, axis=-1)[..., 0])


def gaussian_log_likelihood(
    samples: np.ndarray, noise: np.ndarray, targets: object
) -> np.ndarray:
    """Compute the log density of targets under a mixture of normals, in nats.

    Columns belong together: the density of a draw is that of all of them.

    Args:
        samples: Means of the draws, shape `(draws, examples, ..., columns)`, or
            `(draws, examples)`.
        noise: Standard deviations, which broadcast against `samples`.
        targets: Of the shape of one draw.

    Returns:
        float64, of the shape of one draw without the columns.

    Raises:
        ValueError: if targets are not of that shape, or not finite numbers.
    """
    shape = samples.shape[1:]
    y = check_targets(targets, shape)
    total = np.full(shape[: max(1, len(shape) - 1)], -np.inf)
    # Draw by draw, so that it takes no memory of the size of all.
    for mean, stddev in zip(
        samples, np.broadcast_to(noise, samples.shape), strict=True
    ):
        z = (y - mean) / stddev
        logs = -0.5 * (LOG_2_PI + np.square(z)) - np.log(stddev)
        logs = logs.sum(axis=-1) if logs.ndim > 1 else logs
        total = np.logaddexp(total, logs)
    return total - np.log(len(samples))


def check_targets(targets: object, shape: tuple[int, ...]) -> np.ndarray:
    """Return targets as float64.

    Args:
        targets: What the user passed.
        shape: What they must have.

    Raises:
        ValueError: if they are not of that shape, or not finite numbers.
    """
    y = np.asarray(targets)
    if y.shape != shape or y.dtype.kind not in "biuf":
        raise ValueError(
            "Argument `labels` must be the targets, numbers of the shape of "
            f"the mean prediction, {shape}; `y[:, None]` makes a column of "
            f"numbers. Received: shape {y.shape} of type {y.dtype}."
        )
    if not np.all(np.isfinite(y)):
        raise ValueError(
            f"Argument `labels` must be finite. Received {np.sum(y != y):,} "
            f"NaN and {np.sum(np.isinf(y)):,} infinite of {y.size:,} targets."
        )
    return y.astype("float64")
