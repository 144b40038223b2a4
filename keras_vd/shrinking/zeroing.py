"""Count small weights as zero."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import (
    flatten_layers,
    own_trainable_variables,
)
from keras_vd.shrinking.report import ZeroedRow


def set_to_zero(model: keras.Model, tolerance: float) -> tuple[ZeroedRow, ...]:
    """Set small weights to zero, in place.

    Statistics that a layer gathers, such as a moving variance, stay.

    Args:
        model: The model.
        tolerance: The largest absolute value that counts as zero.

    Returns:
        A row per weight of which an entry has become zero.
    """
    rows = []
    for layer in flatten_layers(model):
        for variable in own_trainable_variables(layer):
            value = np.array(ops.convert_to_numpy(variable))
            sizes = np.abs(value.astype("float64"))
            is_small = (sizes <= tolerance) & (sizes > 0.0)
            if is_small.any():
                value[is_small] = 0.0
                variable.assign(value)
                rows.append(
                    ZeroedRow(
                        variable.path,
                        entries=value.size,
                        zeroed=int(is_small.sum()),
                        largest=float(sizes[is_small].max()),
                    )
                )
    return tuple(rows)
