"""Multiplicative noise: w = theta * (1 + sqrt(alpha) * noise)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import full_precision_value
from keras_vd._backend.noise import standard_normal
from keras_vd._backend.types import Tensor
from keras_vd._backend.validation import check_choice, check_number
from keras_vd.posteriors.additive import START_DISTANCE
from keras_vd.posteriors.clipping import Clipped
from keras_vd.posteriors.moments import THETA2_FLOOR
from keras_vd.posteriors.sampling import is_sampling_at_inference
from keras_vd.posteriors.sharing import SharedOp, shared_shape
from keras_vd.posteriors.weight import WeightPosterior


@keras.saving.register_keras_serializable(package="keras_vd.posteriors")
class VD(WeightPosterior):
    """Variational dropout (Kingma et al. 2015, arXiv:1506.02557).

    q(w) = N(theta, alpha * theta^2): Gaussian dropout whose rate is learned,
    alpha = p / (1 - p) for a dropout rate p. With alpha <= 1, as in the paper,
    it regularizes and prunes nothing; with `max_alpha=None` weights whose
    alpha grows past the threshold are dropped. A fixed alpha
    (`learn_alpha=False`) is Gaussian dropout itself: its KL to a log-uniform or
    ARD prior is a constant, so it needs no KL weight.

    `noise="weight"` (the paper's section 3.2) draws independent noise for
    every weight. `noise="input"` (section 3.1) draws one factor per input unit
    and example, shared by the outgoing weights of that unit (for draws at
    inference, one per input unit and draw). Caveat: the posterior that this
    correlation implies is singular, its divergence to a prior with a density is
    infinite, and the KL used here, that of independent weights, makes a
    sensible penalty but no variational bound (Hron et al. 2018,
    arXiv:1807.01969).

    Args:
        alpha_init: Float > 0: initial variance of the multiplicative noise.
        learn_alpha: Bool: whether alpha is trained.
        max_alpha: Float > 0 or None: upper bound of alpha.
        noise: `"weight"` or `"input"`.
        share: `"layer"`, `"unit"` (with `noise="input"`: input unit) or, with
            `noise="weight"` only, `"weight"` or `"input"`.
        **options: See `WeightPosterior`.

    Attributes:
        shared_log_alpha: Variable; the weight's shape, or smaller where
            shared.

    Raises:
        TypeError: if a number is expected and something else came.
        ValueError: if a value, or a combination of values, is not allowed.

    Example:
    >>> rate = 0.2
    >>> posterior = keras_vd.posteriors.VD(
    ...     alpha_init=rate / (1 - rate), share="layer"
    ... )
    >>> layer = keras_vd.layers.VDDense(10, posterior=posterior)
    """

    def __init__(
        self,
        alpha_init: float = 0.25,
        learn_alpha: bool = True,
        max_alpha: float | None = 1.0,
        noise: str = "weight",
        share: str = "layer",
        **options: Any,
    ) -> None:
        super().__init__(share=share, **options)
        if max_alpha is not None:
            max_alpha = check_number(
                "max_alpha", max_alpha, 0.0, exclusive=True
            )
        self.max_alpha = max_alpha
        self.alpha_init = check_number(
            "alpha_init",
            alpha_init,
            0.0,
            maximum=max_alpha or math.inf,
            exclusive=True,
        )
        self.learn_alpha = bool(learn_alpha)
        self.noise = check_choice("noise", noise, ("weight", "input"))
        is_shared = share in ("layer", "unit")
        is_default = (self.estimator, self.variance_dtype) == ("local", None)
        if noise == "input" and not (is_shared and is_default):
            raise ValueError(
                "With `noise='input'` there is one factor per input unit and "
                "example: `share` must be 'layer' or 'unit', `estimator` "
                "'local' and `variance_dtype` None. Received: "
                f"share={share!r}, estimator={self.estimator!r}, "
                f"variance_dtype={self.variance_dtype!r}."
            )

    def build(self, input_shape: tuple[int, ...]) -> None:
        super().build(input_shape)
        by_input = self.noise == "input"
        if by_input and self.share == "unit" and len(self.axes.inputs) != 1:
            raise ValueError(
                "`noise='input'` with `share='unit'` needs a weight with one "
                f"input axis; '{self.label}' has {len(self.axes.inputs)} in "
                f"its shape {tuple(self.weight.shape)}. Use `share='layer'`."
            )
        # Its units are those that the noise belongs to.
        is_input = by_input and self.share == "unit"
        share = "input" if is_input else self.share
        self.shared_log_alpha = self.add_weight(
            name="log_alpha",
            shape=shared_shape(share, input_shape, self.axes),
            initializer=keras.initializers.Constant(math.log(self.alpha_init)),
            trainable=self.learn_alpha,
            dtype="float32",
            autocast=False,
            constraint=(
                None
                if self.max_alpha is None
                else Clipped(-math.inf, math.log(self.max_alpha))
            ),
        )

    def _noise_parameters(self) -> tuple[keras.Variable, ...]:
        return (self.shared_log_alpha,)

    def _log_variances(
        self, theta: Tensor, *parameters: Any
    ) -> tuple[Any, Any]:
        (log_alpha,) = parameters
        log_theta2 = ops.log(ops.square(theta) + THETA2_FLOOR)
        return log_alpha + log_theta2, log_alpha

    def revive(self, is_wanted: np.ndarray) -> None:
        if self.threshold is None or not self.learn_alpha:
            return
        current = ops.convert_to_numpy(self.shared_log_alpha)
        sizes = zip(current.shape, is_wanted.shape, strict=True)
        shared = tuple(i for i, (own, size) in enumerate(sizes) if own < size)
        is_any = is_wanted.any(axis=shared, keepdims=True)
        most = np.where(is_any, self.threshold - START_DISTANCE, np.inf)
        self.shared_log_alpha.assign(np.minimum(current, most))

    def _is_kl_due(self) -> bool:
        # The divergence of a fixed alpha is a constant then, without a weight.
        is_constant = self.prior.is_scale_free and not self.learn_alpha
        if is_constant and not self.kl_weight.is_set:
            return False
        return super()._is_kl_due()

    def project(
        self,
        linear_op: Callable[[Tensor, Tensor], Tensor],
        inputs: Tensor,
        training: bool | None,
        shared_op: SharedOp | None = None,
    ) -> Tensor:
        by_input = self.noise == "input" and not self.is_frozen
        if not (by_input and self.is_sampling(training)):
            return super().project(linear_op, inputs, training, shared_op)
        scales = self.draw_groups()
        dtype = self._call_dtype
        inputs = ops.cast(
            inputs, keras.backend.result_type(inputs.dtype, dtype)
        )
        threshold = self._training_threshold
        (mean,) = self._training_pass(
            lambda moments: (moments.mean(threshold),)
        )
        weight = self._scaled(mean, scales)
        if is_sampling_at_inference():
            weight = weight * ops.cast(self._unit_factors(), weight.dtype)
            return linear_op(inputs, ops.cast(weight, dtype))
        noise = standard_normal(
            ops.shape(inputs), inputs.dtype, self.seed_generator
        )
        stddev = ops.cast(self._input_stddev(inputs), inputs.dtype)
        noisy_inputs = inputs * (1.0 + stddev * noise)
        return linear_op(noisy_inputs, ops.cast(weight, dtype))

    def _unit_factors(self) -> Tensor:
        """Draw a factor for each input unit, broadcastable to the weight."""
        sizes = tuple(self.weight.shape)
        axes = self.axes
        shape = [n if i in axes.inputs else 1 for i, n in enumerate(sizes)]
        filters = axes.outputs[-1]
        repeats = 1
        if axes.conv_groups > 1:  # the filters of a group read their own units
            shape[filters] = axes.conv_groups
            repeats = sizes[filters] // axes.conv_groups
        log_alpha = full_precision_value(self.shared_log_alpha)
        with self._one_draw():
            noise = standard_normal(
                tuple(shape), log_alpha.dtype, self.seed_generator
            )
        factors = ops.repeat(noise, repeats, axis=filters)
        return 1.0 + ops.exp(0.5 * log_alpha) * factors

    def _input_stddev(self, inputs: Tensor) -> Tensor:
        """Return sqrt(alpha), broadcastable to `inputs`."""
        stddev = ops.exp(0.5 * ops.convert_to_tensor(self.shared_log_alpha))
        units = math.prod(self.shared_log_alpha.shape)
        shape = [1] * len(inputs.shape)
        if self.share == "unit":
            if inputs.shape[self.axes.channel] != units:
                raise ValueError(
                    f"Weight '{self.label}' has {units} input units per group "
                    f"for inputs of shape {tuple(inputs.shape)}: "
                    "`noise='input'` with `share='unit'` needs one per entry "
                    f"of axis {self.axes.channel}. Use `share='layer'`."
                )
            shape[self.axes.channel] = units
        return ops.reshape(stddev, shape)

    def get_config(self) -> dict[str, Any]:
        return {
            "alpha_init": self.alpha_init,
            "learn_alpha": self.learn_alpha,
            "max_alpha": self.max_alpha,
            "noise": self.noise,
            **super().get_config(),
        }

    def get_group_config(self) -> dict[str, Any]:
        return {**super().get_group_config(), "noise": "weight"}
