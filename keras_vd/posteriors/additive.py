"""Additive noise: w = theta + sigma * noise, with sigma learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import keras
import numpy as np
from keras import ops

from keras_vd import priors
from keras_vd._backend.fusing import EAGER_MOMENTS, FAST_MOMENTS
from keras_vd._backend.types import Tensor
from keras_vd._backend.validation import check_choice, check_number
from keras_vd.posteriors.eager_moments import EagerMoments
from keras_vd.posteriors.moments import (
    MAX_ABS_LOG_ALPHA,
    THETA2_FLOOR,
    Moments,
    Reduction,
    Threshold,
    bounded_log_variance,
)
from keras_vd.posteriors.sharing import SHARES, shared_shape
from keras_vd.posteriors.signal_to_noise import SignalToNoiseMoments
from keras_vd.posteriors.weight import WeightPosterior

NEW_LOG_SIGMA2 = -10.0
# When a trained weight gets its noise: log_alpha of an entry of root mean
# square size, and how far every log_alpha stays below the threshold at least.
START_LOG_ALPHA = -3.0
START_DISTANCE = 3.0
# With Bayesian model reduction; sigma2 must not underflow.
SMALLEST_THETA2 = 1e-30


class AdditiveGaussian(WeightPosterior):
    """Posterior N(theta, sigma2) with its log variance as the variable.

    Learning sigma2 rather than alpha = sigma2 / theta^2 is the additive
    noise reparameterization of Molchanov et al. 2017 (arXiv:1701.05369,
    section 4.2): the gradient of theta no longer carries the noise times
    theta, so alpha may grow without bound.

    Args:
        log_sigma2_init: Float or None: initial log variance of every weight.
            None: -10 in a new layer; for a weight that is trained already see
            `start_from_weight`. A bias that may count as zero gets no more
            than leaves it kept where it is 0, as most are at first.
        share: As of `WeightPosterior`, or `"rank1"`: the variance of a weight
            is a factor for its input times a factor for its output unit
            (Swiatkowski et al. 2020, arXiv:2002.02655, k = 1). Where weights
            share variances, layers need no second product in training, until
            weights are pruned for good.
        **options: See `WeightPosterior`.

    Attributes:
        log_sigma2: Variable; the weight's shape, or smaller where shared.
        log_sigma2_input: With `share="rank1"`, variable: what to add to it
            for each input unit; 0 at first.

    Raises:
        TypeError: if a number is expected and something else came.
        ValueError: if a value is not allowed.

    Example:
    >>> posterior = keras_vd.posteriors.AdditiveGaussian(
    ...     log_sigma2_init=-8.0, prior="ard", threshold=3.0
    ... )
    >>> layer = keras_vd.layers.VDDense(10, posterior=posterior)
    """

    _shares = SHARES

    def __init__(
        self, log_sigma2_init: float | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        if log_sigma2_init is not None:
            log_sigma2_init = check_number("log_sigma2_init", log_sigma2_init)
        self.log_sigma2_init = log_sigma2_init

    def build(self, input_shape: tuple[int, ...]) -> None:
        super().build(input_shape)
        self.log_sigma2 = self.add_weight(
            name="log_sigma2",
            shape=shared_shape(self.share, input_shape, self.axes),
            initializer=keras.initializers.Constant(self._new_log_sigma2()),
            dtype="float32",
            autocast=False,
        )
        if self.share == "rank1":
            self.log_sigma2_input = self.add_weight(
                name="log_sigma2_input",
                shape=shared_shape("input", input_shape, self.axes),
                initializer="zeros",
                dtype="float32",
                autocast=False,
            )

    def _new_log_sigma2(self) -> float:
        start = self.log_sigma2_init
        start = NEW_LOG_SIGMA2 if start is None else start
        if not self.is_bias or self.threshold is None:
            return start
        # Biases start at 0, where no gradient would bring them back.
        safe = math.log(THETA2_FLOOR) + self.threshold - START_DISTANCE
        return min(start, safe)

    def start_from_weight(self) -> None:
        """Reset the variances, by the size that the weight has now.

        Every log variance becomes `log_sigma2_init` or, if that is None,
        log(mean(theta^2)) - 3: noise of 22% of the root mean square; that of a
        bias at least -10, as many biases are 0 in trained networks too. Small
        weights get less, so that log_alpha is at least 3 below the threshold
        and no weight counts as zero. A prior that is about the initial weight
        is about this one from now on.
        """
        super().start_from_weight()
        start = self.log_sigma2_init
        if start is None:
            theta = ops.convert_to_numpy(self.theta).astype("float64")
            mean = np.mean(np.square(theta))
            start = np.log(mean + THETA2_FLOOR) + START_LOG_ALPHA
            if self.is_bias:
                start = max(start, NEW_LOG_SIGMA2)
        most = self._safe_log_sigma2()
        self.log_sigma2.assign(np.minimum(start, self._least_shared(most)))
        if self.share == "rank1":
            self.log_sigma2_input.assign(np.zeros(self.log_sigma2_input.shape))

    def _safe_log_sigma2(self) -> np.ndarray:
        """Return the largest log variances that leave weights well kept."""
        theta = ops.convert_to_numpy(self.theta).astype("float64")
        if self.threshold is None:
            return np.full_like(theta, np.inf)
        log_theta2 = np.log(np.square(theta) + THETA2_FLOOR)
        return log_theta2 + self.threshold - START_DISTANCE

    def _least_shared(self, values: np.ndarray) -> np.ndarray:
        """Return the least value among weights that share a log variance.

        Args:
            values: Array of the weight's shape.

        Returns:
            Array of the shape of `log_sigma2`.
        """
        sizes = zip(self.log_sigma2.shape, values.shape, strict=True)
        shared = tuple(i for i, (own, size) in enumerate(sizes) if own < size)
        return np.min(values, axis=shared, keepdims=True)

    def revive(self, is_wanted: np.ndarray) -> None:
        most = np.where(is_wanted, self._safe_log_sigma2(), np.inf)
        if self.share == "rank1":
            most = most - ops.convert_to_numpy(self.log_sigma2_input)
        current = ops.convert_to_numpy(self.log_sigma2)
        self.log_sigma2.assign(np.minimum(current, self._least_shared(most)))

    def _noise_parameters(self) -> tuple[keras.Variable, ...]:
        if self.share == "rank1":
            return self.log_sigma2, self.log_sigma2_input
        return (self.log_sigma2,)

    def _moments(
        self, variables: Sequence[Any], keep_mask: Tensor, form: type[Moments]
    ) -> Moments:
        theta, *parameters = variables
        if self.share != "weight":
            parameters = [bounded_log_variance(p, theta) for p in parameters]
        return super()._moments((theta, *parameters), keep_mask, form)

    def _log_factors(self, *parameters: Any) -> tuple[Any, ...]:
        return () if self.share == "weight" else parameters

    def _log_variances(
        self, theta: Tensor, *parameters: Any
    ) -> tuple[Any, Any]:
        return sum(parameters[1:], start=parameters[0]), None

    def get_config(self) -> dict[str, Any]:
        return {
            "log_sigma2_init": self.log_sigma2_init,
            **super().get_config(),
        }


FAST_MOMENTS[AdditiveGaussian._log_variances] = SignalToNoiseMoments
EAGER_MOMENTS[AdditiveGaussian._log_variances] = EagerMoments


@keras.saving.register_keras_serializable(package="keras_vd.posteriors")
class SparseVD(AdditiveGaussian):
    """Sparse variational dropout (Molchanov et al. 2017, arXiv:1701.05369).

    Log-uniform prior, unbounded alpha: most weights end as pure noise around
    zero and are dropped where `log_alpha >= threshold`. `train_clip` is on, as
    in the authors' released code: a weight above the threshold is left out of
    the training pass's means as well, which prunes far more at the same error.

    Args:
        **options: See `AdditiveGaussian` and `WeightPosterior`.

    Example:
    >>> posterior = keras_vd.posteriors.SparseVD(threshold=2.0)
    >>> layer = keras_vd.layers.VDDense(10, posterior=posterior)
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(
            **{"prior": "log_uniform", "train_clip": True, **options}
        )


@keras.saving.register_keras_serializable(package="keras_vd.posteriors")
class ARD(AdditiveGaussian):
    """Variational ARD (Kharitonov et al. 2018, arXiv:1811.00596).

    As `SparseVD`, with the proper `keras_vd.priors.ARD` in place of the
    log-uniform prior.

    Args:
        **options: See `AdditiveGaussian` and `WeightPosterior`.

    Example:
    >>> layer = keras_vd.layers.VDDense(10, posterior="ard")
    >>> options = keras_vd.posteriors.ARD(threshold=2.0, share="unit")
    >>> layer = keras_vd.layers.VDDense(10, posterior=options)
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"prior": "ard", "train_clip": True, **options})


@keras.saving.register_keras_serializable(package="keras_vd.posteriors")
class Gaussian(AdditiveGaussian):
    """Bayesian layer with a Gaussian prior, trained by SGVB.

    Prior N(0, s^2) with the closed-form divergence (Kingma and Welling 2014,
    arXiv:1312.6114, appendix B; Blundell et al. 2015, arXiv:1505.05424). It
    gives uncertainty, not sparsity: with `threshold=None`, the default, it
    never prunes by itself. Pass `prior=keras_vd.priors.Gaussian(stddev)` for
    another width than 1.

    With `criterion="bmr"` it prunes, without a threshold: Bayesian model
    reduction drops a weight where log(s^2 / sigma2) >= theta^2 / sigma2, as the
    evidence of the model without it is no lower. `docs/reduction.md` derives
    it.

    Args:
        criterion: What decides whether a weight counts as zero. `"snr"`: its
            noise, by the threshold, if there is one. `"bmr"`: Bayesian model
            reduction; the prior must be a `keras_vd.priors.Gaussian` of mean
            zero.
        **options: See `AdditiveGaussian` and `WeightPosterior`.

    Raises:
        TypeError: if a number is expected and something else came.
        ValueError: if a value is not allowed, or `criterion="bmr"` meets a
            threshold or another prior.

    Example:
    >>> posterior = keras_vd.posteriors.Gaussian(
    ...     prior=keras_vd.priors.Gaussian(0.1), criterion="bmr"
    ... )
    >>> layer = keras_vd.layers.VDDense(10, posterior=posterior)
    """

    def __init__(self, criterion: str = "snr", **options: Any) -> None:
        super().__init__(**{"prior": "gaussian", "threshold": None, **options})
        self.criterion = check_choice("criterion", criterion, ("snr", "bmr"))
        if criterion == "bmr":
            self._check_no_threshold(self.threshold)
            self._reduction()  # checks the prior

    def _reduction(self) -> Reduction:
        if not isinstance(self.prior, priors.Gaussian):
            raise ValueError(
                "Argument `prior` must be a `keras_vd.priors.Gaussian` with "
                f"criterion='bmr'. Received: {type(self.prior).__name__}."
            )
        if self.prior.mean != "zero":
            raise ValueError(
                "Argument `prior` must have mean='zero' with criterion='bmr', "
                "which asks whether a weight may be zero. Received: "
                f"mean={self.prior.mean!r}."
            )
        # Known from the build on; before that, only the kind is checked.
        prior = self.own_prior if hasattr(self, "binding") else self.prior
        return Reduction(cast(priors.Gaussian, prior).stddev)

    def _check_no_threshold(self, threshold: Any) -> None:
        if threshold is not None:
            raise ValueError(
                "Argument `threshold` must be None with criterion='bmr': "
                "Bayesian model reduction has no threshold. Received: "
                f"threshold={threshold!r}."
            )

    def limit(self, threshold: float | None = None) -> Threshold:
        if self.criterion == "snr":
            return super().limit(threshold)
        self._check_no_threshold(threshold)
        return self._reduction()

    def _safe_log_sigma2(self) -> np.ndarray:
        if self.criterion == "snr":
            return super()._safe_log_sigma2()
        theta = ops.convert_to_numpy(self.theta).astype("float64")
        theta2 = np.maximum(np.square(theta), SMALLEST_THETA2)
        # Above the root of x = c + log(x), by no more than 10%
        # (Chatzigeorgiou 2013, arXiv:1601.04895, theorem 1): a ratio
        # theta^2 / sigma2 above it is enough, whatever sigma2.
        stddev = self._reduction().prior_stddev
        excess = np.maximum(np.log(stddev**2 / theta2) - 1.0, 0.0)
        enough = 1.0 + np.sqrt(2.0 * excess) + excess
        return np.log(theta2 / enough) - START_DISTANCE

    def margin(self) -> Tensor:
        if self.criterion == "snr":
            return super().margin()
        moments = self._current_moments()
        evidence = self._reduction().log_evidence(
            moments.theta, moments.log_sigma2
        )
        return ops.minimum(-2.0 * evidence, math.exp(MAX_ABS_LOG_ALPHA))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "criterion": self.criterion}
