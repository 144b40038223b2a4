"""Conversion between variational models and plain Keras models."""

from keras_vd.conversion.deterministic import to_deterministic
from keras_vd.conversion.fine_tuning import freeze_zeros
from keras_vd.conversion.functional import to_functional
from keras_vd.conversion.report import (
    CompositeRow,
    ConversionReport,
    ConversionRow,
    FunctionalReport,
    StreamRow,
)
from keras_vd.conversion.variational import to_variational

__all__ = [
    "CompositeRow",
    "ConversionReport",
    "ConversionRow",
    "FunctionalReport",
    "StreamRow",
    "freeze_zeros",
    "to_deterministic",
    "to_functional",
    "to_variational",
]
