"""L0 regularization: gates that are exactly 0 or 1 with some probability."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_vd._backend.types import Tensor
from keras_vd._backend.validation import check_number
from keras_vd.divergences import hard_concrete
from keras_vd.layers.structured import StructuredGate
from keras_vd.posteriors.clipping import Clipped

# The bounds of the authors' code: a gate outside has hardly a gradient.
_MAX_LOG_ALPHA = math.log(100.0)


@keras.saving.register_keras_serializable(package="keras_vd")
class HardConcreteDropout(StructuredGate):
    """L0 regularization (Louizos et al. 2018, arXiv:1712.01312).

    Each unit is multiplied by a hard-concrete gate: a random number within
    [0, 1] that is exactly 0, or exactly 1, with a positive probability. One
    gate per unit and call is drawn. At inference the gates are those of the
    paper's eq. 13, and 0 where that is not above the threshold.

    There is no prior. In place of a KL the losses get the expected number of
    open gates, P(z != 0) summed over the units: each costs 1 nat, times
    `kl_scale`, times the KL weight. `kl_scale` is the paper's lambda.

    Args:
        log_alpha_init: Float within [-log(100), log(100)]: initial
            `log_alpha`. 0 opens a gate to a half; 2 to 0.96, for networks that
            are trained already.
        threshold: Float >= 0: what a gate has to exceed to be kept.
        **options: `axis`, `kl_scale` and `kl_weight` of `StructuredGate`,
            and `name` and `dtype`.

    Attributes:
        log_alpha: Variable of shape `(units,)`: locations of the gates' binary
            concrete distributions, kept within [-log(100), log(100)].

    Raises:
        TypeError: if a number is expected and something else came.
        ValueError: if a value is not allowed.

    Example:
    >>> model = keras.Sequential([
    ...     keras.layers.Dense(300, activation="relu"),
    ...     keras_vd.layers.HardConcreteDropout(kl_weight=1 / 60000),
    ...     keras.layers.Dense(10),
    ... ])
    """

    def __init__(
        self,
        log_alpha_init: float = 0.0,
        threshold: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(
            threshold=check_number("threshold", threshold, 0.0), **options
        )
        self.log_alpha_init = check_number(
            "log_alpha_init", log_alpha_init, -_MAX_LOG_ALPHA, _MAX_LOG_ALPHA
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        self.log_alpha = self._add_parameter(
            "log_alpha",
            self.log_alpha_init,
            constraint=Clipped(-_MAX_LOG_ALPHA, _MAX_LOG_ALPHA),
        )

    def gate_mean(self) -> Tensor:
        """Return the gate of every unit at inference: float32, `(units,)`.

        Units that `prune` has removed have 0.
        """
        return self._masked(hard_concrete.mean(self._read_log_alpha()))

    def _read_log_alpha(self) -> Tensor:
        return ops.convert_to_tensor(self.log_alpha)

    def _is_above(self, threshold: float | None) -> Tensor:
        return hard_concrete.mean(self._read_log_alpha()) > threshold

    def _kl_terms(self) -> Tensor:
        return hard_concrete.open_probability(self._read_log_alpha())

    def _draw(self, inputs: Tensor, training: bool) -> Tensor:
        uniforms = self._uniforms((self.units,))
        return hard_concrete.sample(self._read_log_alpha(), uniforms)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "log_alpha_init": self.log_alpha_init}
