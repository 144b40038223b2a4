"""What is known of the noise of targets around the outputs of a regression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from keras_vd._backend.validation import check_stddev
from keras_vd.losses import GaussianNLL, count_columns

# Outputs that hold means and then log variances.
HETEROSCEDASTIC = "heteroscedastic"

# Standard deviations, `HETEROSCEDASTIC`, a function that makes distributions of
# outputs, or None if nothing is known.
Noise: TypeAlias = float | list[float] | str | Callable[[Any], Any] | None


def read_noise(noise: Any, loss: Any, shape: tuple[int, ...]) -> Noise:
    """Return the noise of one output of a regression.

    Args:
        noise: As the user passed it.
        loss: What was compiled for the output, which tells where `noise` is
            None.
        shape: Shape of the output.

    Raises:
        TypeError: if `noise` is of no type that is allowed.
        ValueError: if it is not allowed, or contradicts the loss or the shape.
    """
    if callable(noise):
        return noise
    is_gaussian = isinstance(loss, GaussianNLL)
    by_loss = (loss.stddev or HETEROSCEDASTIC) if is_gaussian else None
    found = by_loss if noise is None else noise
    # A fixed noise may be another one than in training, not another meaning of
    # the columns.
    is_learned = isinstance(found, str)
    if is_gaussian and is_learned != (by_loss == HETEROSCEDASTIC):
        raise ValueError(
            f"Argument `noise` is {noise!r}, which contradicts the compiled "
            f"loss, {loss.name!r}: outputs of a GaussianNLL without `stddev=` "
            "are means and log variances, of one with it means alone."
        )
    if is_learned:
        if found != HETEROSCEDASTIC:
            raise ValueError(
                f"Argument `noise` must be {HETEROSCEDASTIC!r}, a standard "
                f"deviation or one for each column. Received: noise={noise!r}."
            )
        count_columns(shape)
        return found
    return None if found is None else _fixed(found, shape)


def _fixed(noise: Any, shape: tuple[int, ...]) -> float | list[float]:
    stddev = check_stddev("noise", noise)
    columns = shape[-1] if len(shape) > 1 else 1
    if isinstance(stddev, list) and len(stddev) != columns:
        raise ValueError(
            "Argument `noise` must have one entry for each column of the "
            f"outputs, which have the shape {shape}. Received: noise={noise!r}."
        )
    return stddev
