"""Beta-Bernoulli dropout: gates that are on with a learned probability."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_vd._backend.noise import standard_normal
from keras_vd._backend.types import Tensor
from keras_vd._backend.validation import check_number
from keras_vd.divergences import beta_bernoulli
from keras_vd.layers.structured import MIN_UNIFORM, StructuredGate
from keras_vd.posteriors.clipping import Clipped
from keras_vd.posteriors.sampling import is_sampling_at_inference


@keras.saving.register_keras_serializable(package="keras_vd")
class BetaBernoulliDropout(StructuredGate):
    """Beta-Bernoulli dropout (Lee et al. 2018, arXiv:1805.10896).

    Each unit of each example is multiplied by z ~ Bernoulli(pi) with a
    probability pi of its own, pi ~ Kumaraswamy(a, b), prior Beta(alpha, 1):
    few units are expected to be on. In training z is relaxed to [0, 1]; pi is
    drawn once per call, z for every example. At inference z is E[pi], or 0
    where that is below the threshold.

    Args:
        prior_alpha: Float > 0: alpha of the prior.
        a_init: Float: initial `a_unconstrained`; -1 opens the gates to 0.24,
            2 to 0.68.
        b_init: Float: initial `b_unconstrained`; by default b = 1.
        temperature: Float > 0: that of the relaxed Bernoulli variable.
        threshold: Float: smallest E[pi] that is kept.
        **options: `axis`, `kl_scale` and `kl_weight` of `StructuredGate`,
            and `name` and `dtype`.

    Attributes:
        a_unconstrained: Variable of shape `(units,)`; a = softplus of it.
        b_unconstrained: Variable of shape `(units,)`; b = softplus of it.

    Raises:
        TypeError: if a number is expected and something else came.
        ValueError: if a value is not allowed.

    Example:
    >>> gate = keras_vd.layers.BetaBernoulliDropout(kl_weight=1 / 60000)
    >>> tuple(gate(np.ones((2, 300)), training=True).shape)
    (2, 300)
    >>> gate.n_active
    300
    """

    def __init__(
        self,
        prior_alpha: float = 1e-4,
        a_init: float = -1.0,
        b_init: float = math.log(math.e - 1.0),
        temperature: float = 0.1,
        threshold: float = 1e-3,
        **options: Any,
    ) -> None:
        super().__init__(
            threshold=check_number("threshold", threshold, 0.0), **options
        )
        self.prior_alpha = check_number(
            "prior_alpha", prior_alpha, 0.0, exclusive=True
        )
        self.a_init = check_number("a_init", a_init, -10.0)
        self.b_init = check_number("b_init", b_init, -10.0, 50.0)
        self.temperature = check_number(
            "temperature", temperature, 0.0, exclusive=True
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        # The bounds are those of the authors' code. They are constraints, so
        # that a gradient can lead a variable back from its bound.
        self.a_unconstrained = self._add_parameter(
            "a_unconstrained", self.a_init, constraint=Clipped(-10.0, math.inf)
        )
        self.b_unconstrained = self._add_parameter(
            "b_unconstrained", self.b_init, constraint=Clipped(-10.0, 50.0)
        )

    def _read_parameters(self) -> tuple[Any, Any]:
        """Return a and b of the posterior, each of shape `(units,)`."""
        a = ops.softplus(ops.convert_to_tensor(self.a_unconstrained))
        return a, ops.softplus(ops.convert_to_tensor(self.b_unconstrained))

    def gate_mean(self) -> Tensor:
        return self._masked(beta_bernoulli.mean(*self._read_parameters()))

    def _is_above(self, threshold: float | None) -> Tensor:
        return beta_bernoulli.mean(*self._read_parameters()) > threshold

    def _kl_terms(self) -> Tensor:
        return beta_bernoulli.kl_divergence(
            *self._read_parameters(), self.prior_alpha
        )

    def _draw(self, inputs: Tensor, training: bool) -> Tensor:
        log_pi = beta_bernoulli.sample_log_probability(
            *self._read_parameters(), self._uniforms((self.units,))
        )
        return self._relaxed_bernoulli(log_pi, ops.shape(inputs)[0])

    def _relaxed_bernoulli(
        self, log_probability: Tensor, batch_size: Any
    ) -> Any:
        if is_sampling_at_inference():
            batch_size = 1
        return beta_bernoulli.sample_relaxed_bernoulli(
            log_probability,
            self.temperature,
            self._uniforms((batch_size, self.units)),
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "prior_alpha": self.prior_alpha,
            "a_init": self.a_init,
            "b_init": self.b_init,
            "temperature": self.temperature,
        }


@keras.saving.register_keras_serializable(package="keras_vd")
class DependentBetaBernoulliDropout(BetaBernoulliDropout):
    """Dependent Beta-Bernoulli dropout (Lee et al. 2018, section 3.4).

    Beta-Bernoulli dropout whose probabilities depend on the input as well:
    z ~ Bernoulli(pi phi(x)), phi(x) = clip(BN(x) + sigma * noise, 0, 1), with
    BN a batch normalization of the unit, averaged over all axes but the batch
    and `axis`. Its offset beta has the prior N(0, prior_stddev^2) and the
    posterior N(beta, sigma^2). No gradient flows from phi to x.

    A unit that is pruned is off for every input; others are switched off for
    inputs with E[pi] phi(x) below the threshold. `gate_mean()`, `n_active` and
    pruning are about E[pi]: `active_per_example` counts what is left.

    Args:
        beta_init: Float: initial beta; 1 starts with most gates open.
        sigma_init: Float: initial `sigma_unconstrained`; by default sigma = 1.
        prior_stddev: Float > 0: standard deviation of the prior of beta.
        **options: See `BetaBernoulliDropout`.

    Attributes:
        sigma_unconstrained: Variable of shape `(units,)`; sigma = softplus.
        normalization: The `keras.layers.BatchNormalization`; its `beta` is
            the mean of the posterior.

    Raises:
        TypeError: if a number is expected and something else came.
        ValueError: if a value is not allowed.

    Example:
    >>> gate = keras_vd.layers.DependentBetaBernoulliDropout(kl_weight=1e-4)
    >>> tuple(gate(np.ones((2, 300)), training=True).shape)
    (2, 300)
    """

    def __init__(
        self,
        beta_init: float = 1.0,
        sigma_init: float = math.log(math.e - 1.0),
        prior_stddev: float = math.sqrt(5.0),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.beta_init = check_number("beta_init", beta_init)
        self.sigma_init = check_number("sigma_init", sigma_init)
        self.prior_stddev = check_number(
            "prior_stddev", prior_stddev, 0.0, exclusive=True
        )
        self.normalization = keras.layers.BatchNormalization(
            beta_initializer=keras.initializers.Constant(self.beta_init),
            dtype="float32",
            name="normalization",
        )
        # An average over time steps would count those that a mask leaves out.
        self.supports_masking = False

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        self.sigma_unconstrained = self._add_parameter(
            "sigma_unconstrained", self.sigma_init
        )
        self.normalization.build((None, self.units))

    def _kl_terms(self) -> Tensor:
        sigma = self._sigma() / self.prior_stddev
        beta = ops.convert_to_tensor(self.normalization.beta)
        beta = beta / self.prior_stddev
        gaussian = 0.5 * (ops.square(sigma) + ops.square(beta) - 1.0)
        return super()._kl_terms() + gaussian - ops.log(sigma)

    def _sigma(self) -> Any:
        return ops.softplus(ops.convert_to_tensor(self.sigma_unconstrained))

    def _normalized(self, inputs: Tensor, training: bool) -> Any:
        """Compute BN(x): float32, shape `(batch, units)`."""
        units = ops.cast(ops.stop_gradient(inputs), "float32")
        others = range(1, len(inputs.shape))
        axes = tuple(i for i in others if i != self._unit_axis)
        if axes:
            units = ops.mean(units, axis=axes)
        return self.normalization(units, training=training)

    def _draw(self, inputs: Tensor, training: bool) -> Tensor:
        noise = standard_normal((self.units,), "float32", self.seed_generator)
        phi = self._normalized(inputs, training) + self._sigma() * noise
        # The logit of a relaxed Bernoulli needs probabilities inside (0, 1).
        phi = ops.clip(phi, MIN_UNIFORM, 1.0 - MIN_UNIFORM)
        gates = self._relaxed_bernoulli(ops.log(phi), ops.shape(inputs)[0])
        return super()._draw(inputs, training) * gates

    def _inference_gates(self, inputs: Tensor) -> Tensor:
        phi = ops.clip(self._normalized(inputs, False), 0.0, 1.0)
        gates = self.mean() * phi
        # The difference is 0, but NaN for a gate that is NaN: see `mean`.
        is_on = gates > self.threshold
        return self._masked(ops.where(is_on, gates, gates - gates))

    def active_per_example(self, inputs: Tensor) -> float:
        """Compute the mean number of units that are on, over some inputs.

        Args:
            inputs: Tensor or array: inputs of this layer, with the batch.
        """
        gates = self._inference_gates(ops.convert_to_tensor(inputs, "float32"))
        # A gate that is NaN is not off.
        is_on = ops.convert_to_numpy(gates) != 0.0
        return float(is_on.sum(axis=-1).mean())

    def constant_factors(self) -> None:
        return None

    def plain_layer(
        self, input_shape: tuple[int | None, ...]
    ) -> keras.layers.Layer:
        self._check_rescaling(rank=2)
        inputs = keras.Input(input_shape[1:], dtype=self.compute_dtype)
        pooled = inputs
        if len(input_shape) > 2:
            axes = [
                i for i in range(1, len(input_shape)) if i != self._unit_axis
            ]
            pooled = ops.mean(inputs, axis=axes)
        phi = keras.layers.BatchNormalization(
            name="normalization", dtype="float32"
        )(pooled)
        phi = keras.layers.ReLU(max_value=1.0, dtype="float32")(phi)
        gates = keras.layers.Rescaling(1.0, name="gates", dtype="float32")(phi)
        gates = keras.layers.ReLU(
            threshold=self.threshold, name="threshold", dtype="float32"
        )(gates)
        if len(input_shape) > 2:
            shape = self._broadcast_shape[1:]
            gates = keras.layers.Reshape(shape, dtype="float32")(gates)
        multiply = keras.layers.Multiply(dtype=self.dtype_policy)
        outputs = multiply([inputs, gates])
        return keras.Model(inputs, outputs, name=self.name)

    def copy_to(self, plain: Any) -> None:
        rescaling = plain.get_layer("gates")
        rescaling.scale = ops.convert_to_numpy(self.mean()).tolist()
        for own, other in zip(
            self.normalization.weights,
            plain.get_layer("normalization").weights,
            strict=True,
        ):
            other.assign(ops.convert_to_numpy(own))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "beta_init": self.beta_init,
            "sigma_init": self.sigma_init,
            "prior_stddev": self.prior_stddev,
        }
