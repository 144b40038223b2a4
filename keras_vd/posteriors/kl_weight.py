"""The multiplier of a KL divergence in the loss."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

NO_KL_WEIGHT = (
    "Layer '{name}' has a variational posterior but no KL weight, so its loss "
    "has no scale. Pass `kl_weight=1 / N` to the layer, N being the number of "
    "training examples, or train with "
    "`callbacks=[keras_vd.callbacks.KLAnnealing(num_examples=N)]`."
)


class KLWeight(keras.Variable):
    """Scalar multiplier of the KL divergence that knows whether it was set.

    The value of a variable cannot be read while a training step is being
    traced, yet a forgotten KL weight has to be an error there. So the Python
    attribute `is_set` tells whether a value was assigned. Until then the
    variable holds -1, in saved files too.
    """

    UNSET = -1.0

    def __init__(self, value: float | None) -> None:
        self.is_set = value is not None
        # An initializer, not a value, as Keras may delay the creation.
        super().__init__(
            initializer=keras.initializers.Constant(
                self.UNSET if value is None else value
            ),
            shape=(),
            dtype="float32",
            trainable=False,
            autocast=False,
            name="kl_weight",
        )

    def assign(self, value: Any) -> Any:
        assigned = super().assign(value)
        self.is_set = bool(ops.convert_to_numpy(assigned) >= 0.0)
        return assigned
