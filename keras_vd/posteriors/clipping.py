"""The constraint of variables that have to stay within an interval."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_vd")
class Clipped(keras.constraints.Constraint):
    """Constraint that keeps a variable within an interval.

    Args:
        low: Float: smallest value, or -infinity.
        high: Float: largest value, or infinity.
    """

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __call__(self, value: Any) -> Any:
        return ops.clip(value, self.low, self.high)

    def get_config(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high}
