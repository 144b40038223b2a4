"""Conversion between variational models and plain Keras models."""

from keras_vd.conversion.deterministic import to_deterministic
from keras_vd.conversion.fine_tuning import freeze_zeros
from keras_vd.conversion.report import ConversionReport, ConversionRow
from keras_vd.conversion.variational import to_variational

__all__ = [
    "ConversionReport",
    "ConversionRow",
    "freeze_zeros",
    "to_deterministic",
    "to_variational",
]
