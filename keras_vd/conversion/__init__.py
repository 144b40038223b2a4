"""Conversion between variational models and plain Keras models."""

from keras_vd.conversion.deterministic import to_deterministic
from keras_vd.conversion.fine_tuning import freeze_zeros

__all__ = ["freeze_zeros", "to_deterministic"]
