"""Structured Bayesian pruning: gates with truncated log-normal noise."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_vd._backend.types import Tensor
from keras_vd._backend.validation import check_choice, check_number
from keras_vd.divergences import log_normal
from keras_vd.layers.structured import MIN_UNIFORM, StructuredGate
from keras_vd.posteriors.clipping import Clipped

# How far mu may go above `max_log`: far enough for a gate that stays open.
_MU_MARGIN = 5.0
_LOG_SIGMA_RANGE = (-20.0, 5.0)


@keras.saving.register_keras_serializable(package="keras_vd")
class LogNormalDropout(StructuredGate):
    """Structured Bayesian pruning (Neklyudov et al. 2017, arXiv:1705.07283).

    Each unit is multiplied by theta, log(theta) ~ N(mu, sigma^2) cut off at
    [min_log, max_log]; the prior is log-uniform on the same interval, and
    proper. One theta per unit and call is drawn, as in the paper. At inference
    theta is its mean, or 0 where it is more noise than signal.

    Args:
        min_log: Float: smallest log(theta).
        max_log: Float: largest log(theta).
        mu_init: Float: initial mu.
        log_sigma_init: Float: initial log(sigma).
        criterion: What decides whether a unit is kept. `"snr"`: a
            signal-to-noise ratio E[theta] / sqrt(Var[theta]) above the
            threshold. `"bmr"`: Bayesian model reduction, without a
            threshold (`keras_vd.divergences.log_normal.log_evidence_of_zero`).
        threshold: Float: smallest signal-to-noise ratio that is kept.
        **options: `axis`, `kl_scale` and `kl_weight` of `StructuredGate`,
            and `name` and `dtype`.

    Attributes:
        mu: Variable of shape `(units,)`, kept within [min_log, max_log + 5].
        log_sigma: Variable of shape `(units,)`, kept within [-20, 5].

    Raises:
        TypeError: if a number is expected and something else came.
        ValueError: if a value is not allowed, or `threshold` is given though
            the criterion has none.

    Example:
    >>> model = keras.Sequential([
    ...     keras.layers.Dense(300, activation="relu"),
    ...     keras_vd.layers.LogNormalDropout(kl_weight=1 / 60000),
    ...     keras.layers.Dense(10),
    ... ])
    """

    def __init__(
        self,
        min_log: float = -20.0,
        max_log: float = 0.0,
        mu_init: float = 0.0,
        log_sigma_init: float = -5.0,
        criterion: str = "snr",
        threshold: float | None = None,
        **options: Any,
    ) -> None:
        self.criterion = check_choice("criterion", criterion, ("snr", "bmr"))
        if threshold is None and criterion == "snr":
            threshold = 1.0
        super().__init__(threshold=threshold, **options)
        if threshold is not None:
            self._check_threshold()
        self.max_log = check_number("max_log", max_log)
        self.min_log = check_number("min_log", min_log)
        if self.min_log >= self.max_log:
            raise ValueError(
                "Argument `min_log` must be less than `max_log`. Received: "
                f"min_log={min_log}, max_log={max_log}."
            )
        self.mu_init = check_number(
            "mu_init", mu_init, self.min_log, self.max_log + _MU_MARGIN
        )
        self.log_sigma_init = check_number(
            "log_sigma_init", log_sigma_init, *_LOG_SIGMA_RANGE
        )

    def _check_threshold(self) -> None:
        if self.criterion == "bmr":
            raise ValueError(
                "Argument `threshold` goes with criterion='snr': Bayesian "
                "model reduction has none. Received: criterion='bmr'."
            )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        # Constraints instead of clipping where the variables are read, so that
        # a gradient can lead a variable back from its bound.
        self.mu = self._add_parameter(
            "mu",
            self.mu_init,
            constraint=Clipped(self.min_log, self.max_log + _MU_MARGIN),
        )
        self.log_sigma = self._add_parameter(
            "log_sigma",
            self.log_sigma_init,
            constraint=Clipped(*_LOG_SIGMA_RANGE),
        )

    def _read_parameters(self) -> tuple[Any, Any, float, float]:
        return (
            ops.convert_to_tensor(self.mu),
            ops.convert_to_tensor(self.log_sigma),
            self.min_log,
            self.max_log,
        )

    def gate_mean(self) -> Tensor:
        return self._masked(log_normal.mean(*self._read_parameters()))

    def snr(self) -> Tensor:
        """Compute every gate's signal-to-noise ratio: float32, `(units,)`.

        Units that `prune` has removed have 0.
        """
        return self._masked(log_normal.snr(*self._read_parameters()))

    def margin(self) -> Tensor:
        if self.threshold is None:
            evidence = log_normal.log_evidence_of_zero(*self._read_parameters())
            return -2.0 * evidence
        least = max(self.threshold, MIN_UNIFORM)
        return 2.0 * ops.log(ops.maximum(self.snr(), MIN_UNIFORM) / least)

    def prune(self, threshold: float | None = None) -> None:
        if threshold is not None:
            self._check_threshold()
        super().prune(threshold)

    def _is_above(self, threshold: float | None) -> Tensor:
        if threshold is None:
            evidence = log_normal.log_evidence_of_zero(*self._read_parameters())
            return evidence < 0.0
        return log_normal.snr(*self._read_parameters()) > threshold

    def _kl_terms(self) -> Tensor:
        return log_normal.kl_divergence(*self._read_parameters())

    def _draw(self, inputs: Tensor, training: bool) -> Tensor:
        uniforms = self._uniforms((self.units,))
        return log_normal.sample(*self._read_parameters(), uniforms)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "min_log": self.min_log,
            "max_log": self.max_log,
            "mu_init": self.mu_init,
            "log_sigma_init": self.log_sigma_init,
            "criterion": self.criterion,
        }
