"""Losses whose outputs say how far targets are from them: Gaussian noise.

Outputs without a fixed noise hold two halves along their last axis, first the
means of all columns and then the log variances of all columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_vd._backend.types import Tensor
from keras_vd._backend.validation import check_stddev

LOG_2_PI = math.log(2.0 * math.pi)


@keras.saving.register_keras_serializable(package="keras_vd")
class GaussianNLL(keras.losses.Loss):
    """Compute the negative log likelihood of targets with Gaussian noise.

    0.5 (log(2 pi) + log s^2 + (y - m)^2 / s^2) in nats, summed over the columns
    (the last axis) and averaged over the rest, as `reduction` says. With
    `kl_weight` 1 / N the loss of a variational model is then minus its evidence
    lower bound, per example.

    Args:
        stddev: Standard deviation s of the noise, where outputs are the means
            m alone: a float > 0, or a sequence of one for each column. None:
            the model learns it for each input, and outputs of shape
            `(examples, ..., 2 k)` are k means and then k log variances.
        reduction: As in Keras' losses.
        name: Name of the loss.
        dtype: As in Keras' losses.

    Targets have the shape of the means, `(examples, ..., k)`; others are an
    error, also those of shape `(examples,)` for one column.

    Raises:
        TypeError: if `stddev` is no number and no sequence of numbers.
        ValueError: if `stddev` is not positive; when it is called, if targets
            are not of the shape of the means, or the number of outputs does
            not fit.

    Example:
    >>> loss = keras_vd.losses.GaussianNLL()
    >>> target, output = [[1.0]], [[1.0, 0.0]]  # mean 1, log variance 0
    >>> round(float(loss(np.array(target), np.array(output))), 4)
    0.9189
    """

    def __init__(
        self,
        stddev: float | Sequence[float] | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "gaussian_nll",
        dtype: Any = None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.stddev = None if stddev is None else check_stddev("stddev", stddev)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if self.stddev is None:
            columns = count_columns(tuple(y_pred.shape))
            mean, log_variance = y_pred[..., :columns], y_pred[..., columns:]
        else:
            logs = [2.0 * math.log(x) for x in _listed(self.stddev)]
            mean = y_pred
            if len(logs) not in (1, *y_pred.shape[-1:]):
                raise ValueError(
                    "Argument `stddev` must have one entry for each column of "
                    f"the outputs. Received: stddev={self.stddev!r} with "
                    f"outputs of shape {tuple(y_pred.shape)}."
                )
            log_variance = ops.convert_to_tensor(logs, dtype=y_pred.dtype)
        _check_targets(tuple(y_true.shape), tuple(mean.shape))
        # One factor per deviation and not its square: the latter overflows
        # where the log variance is below -88.
        z = (y_true - mean) * ops.exp(-0.5 * log_variance)
        nll = 0.5 * (LOG_2_PI + log_variance + ops.square(z))
        return ops.sum(nll, axis=-1) if len(nll.shape) > 1 else nll

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "stddev": self.stddev}


def count_columns(shape: tuple[int, ...]) -> int:
    """Return k for outputs of k means and then k log variances.

    Args:
        shape: Shape of the outputs, `(examples, ..., 2 k)`.

    Raises:
        ValueError: if it is none.

    Example:
    >>> keras_vd.losses.count_columns((32, 6))
    3
    """
    columns = shape[-1] if len(shape) > 1 else 1
    if columns % 2:
        raise ValueError(
            "Heteroscedastic outputs must have shape (examples, ..., 2 k), of "
            f"k means and then k log variances. Received: shape {shape}."
        )
    return columns // 2


def _listed(stddev: float | list[float]) -> list[float]:
    return stddev if isinstance(stddev, list) else [stddev]


def _check_targets(
    targets: tuple[int | None, ...], means: tuple[int | None, ...]
) -> None:
    """Raise a ValueError if shapes differ, as far as they are known."""
    is_same = len(targets) == len(means) and all(
        None in pair or pair[0] == pair[1]
        for pair in zip(targets, means, strict=True)
    )
    if not is_same:
        raise ValueError(
            "Targets must have the shape of the means that the model returns, "
            f"{means}; `y[:, None]` makes a column of numbers. Received: "
            f"shape {targets}."
        )
