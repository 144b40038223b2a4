"""Noise of targets that is the same everywhere, and learned."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.types import Tensor
from keras_vd._backend.validation import check_number


@keras.saving.register_keras_serializable(package="keras_vd")
class HomoscedasticNoise(keras.layers.Layer):
    """Append the log variance of the targets' noise, which is learned.

    As the last layer of a regression, before `keras_vd.losses.GaussianNLL()`: a
    model that returns k means returns k log variances, too, one for each column
    and the same for all inputs. It is learned with the weights, by type II
    maximum likelihood; `keras_vd.predict_mc` adds it to the intervals. In plain
    models it is a `keras.layers.Dense`.

    Args:
        stddev_init: Float > 0: standard deviation that training begins with, in
            units of the targets.
        **options: `name`, `dtype` and `trainable`, as in Keras.

    Attributes:
        log_variance: Variable of shape `(k,)`, float32.

    Input shape:
        `(examples, ..., k)`: the means.

    Output shape:
        `(examples, ..., 2 k)`: the means, then the log variances.

    Raises:
        TypeError: if `stddev_init` is not a number.
        ValueError: if it is not positive and finite.

    Example:
    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras_vd.layers.VDDense(1, posterior="gaussian"),
    ...     keras_vd.layers.HomoscedasticNoise(),
    ... ])
    >>> model.compile("adam", keras_vd.losses.GaussianNLL())
    """

    def __init__(self, stddev_init: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.stddev_init = check_number(
            "stddev_init", stddev_init, 0.0, exclusive=True
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        start = 2.0 * math.log(self.stddev_init)
        self.log_variance = self.add_weight(
            name="log_variance",
            shape=(input_shape[-1],),
            initializer=keras.initializers.Constant(start),
            dtype="float32",
            autocast=False,
        )

    def call(self, inputs: Tensor) -> Tensor:
        logs = ops.cast(self.log_variance, inputs.dtype)
        return ops.concatenate(
            [inputs, ops.broadcast_to(logs, ops.shape(inputs))], axis=-1
        )

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        *others, columns = input_shape
        return (*others, None if columns is None else 2 * columns)

    def plain_layer(
        self, input_shape: tuple[int | None, ...]
    ) -> keras.layers.Layer:
        """Make a dense layer that can append the same numbers.

        It has the values of this layer only after `copy_to`.
        """
        (columns,) = self.log_variance.shape
        return keras.layers.Dense(
            2 * columns, name=self.name, dtype=self.dtype_policy
        )

    def copy_to(self, plain: keras.layers.Dense) -> None:
        """Give a `plain_layer` the values of this layer."""
        logs = ops.convert_to_numpy(self.log_variance)
        identity = np.eye(len(logs), 2 * len(logs))
        plain.set_weights([identity, np.pad(logs, (len(logs), 0))])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "stddev_init": self.stddev_init}
