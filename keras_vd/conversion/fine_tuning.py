"""Further training of plain models that have zeros to keep."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._validation import check_model


def freeze_zeros(model: keras.Model) -> None:
    """Keep the zeros of a plain model's weights at zero in later training.

    For fine-tuning after `to_deterministic`: every zero entry of a trainable
    weight of rank 2 or more gets a constraint that sets it back after each
    update. Constraints already there are applied first. They live in this
    object only and are not saved.

    Args:
        model: A built Keras model; changed in place.

    Raises:
        TypeError: if `model` is no Keras model.
    """
    check_model(model)
    for variable in model.trainable_variables:
        nonzero = ops.convert_to_numpy(variable) != 0.0
        if len(variable.shape) > 1 and not nonzero.all():
            variable.constraint = _Masked(nonzero, variable.constraint)


class _Masked:
    """Constraint that keeps masked entries at zero."""

    def __init__(self, nonzero: np.ndarray, constraint: Any) -> None:
        self.nonzero = nonzero
        self.constraint = constraint

    def __call__(self, value: Any) -> Any:
        if self.constraint is not None:
            value = self.constraint(value)
        # An optimizer passes the variable itself, which JAX cannot trace here.
        value = ops.convert_to_tensor(value)
        return ops.where(self.nonzero, value, 0.0)
