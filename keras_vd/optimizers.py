"""Optimizers whose state is a posterior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_vd import posteriors, priors
from keras_vd._backend.keras_internals import uses_several_replicas
from keras_vd._backend.types import Tensor
from keras_vd._backend.validation import check_integer, check_number
from keras_vd.conversion import to_variational
from keras_vd.layers.base import has_bias
from keras_vd.posteriors.finding import (
    find_posteriors,
    variational_weights,
)

# Arguments of Keras' optimizers that would change what the posterior is of.
_REFUSED = {
    "weight_decay": "`prior_stddev` says how strongly weights are held at 0",
    "use_ema": "the mean of the posterior is an average already",
    "gradient_accumulation_steps": "each step draws weights of its own",
}


@keras.saving.register_keras_serializable(package="keras_vd")
class IVON(keras.optimizers.Optimizer):
    """Learn a Gaussian posterior over all weights of any Keras model.

    Improved variational online Newton (Shen et al. 2024, arXiv:2402.17641,
    algorithm 1): an estimate h of the Hessian's diagonal, from gradients at
    weights that are drawn, takes the place of Adam's second moment. With N
    examples and the prior N(0, s^2), d = 1 / (N s^2), the posterior of a weight
    is N(m, sigma^2) with sigma^2 = 1 / (N (h + d)). A step with the gradient g
    at the weights w that were drawn:

        h <- h + (1 - beta_2) c + 0.5 (1 - beta_2)^2 c^2 / (h + d),
             where c = g (w - m) / sigma^2 - h
        v <- beta_1 v + (1 - beta_1) g
        m <- m - learning_rate (h_0 + d) (v / (1 - beta_1^t) + d m) / (h + d)

    While it trains, the model's variables hold what was drawn for the next
    step, so that is what is evaluated between epochs. `fit` leaves the means
    there; after a loop of your own, call `finalize_variable_values`. The loss
    has to be the mean negative log likelihood in nats, without a KL: the prior
    is in the step.

    Args:
        num_examples: Number of training examples N, an int of at least 1.
        learning_rate: Float, schedule or callable; 0.1 is a step as large as
            that of gradient descent at 0.1 while h is still h_0.
        prior_stddev: Standard deviation s of the prior, a float > 0.
        hessian_init: h_0 > 0, where h starts. Noise starts at
            1 / sqrt(N (h_0 + d)): with too small an h_0 nothing but noise is
            seen at first, and steps may diverge.
        beta_1: Decay of the average of gradients, in [0, 1).
        beta_2: Decay of the average h, in [0, 1); the closer to 1, the less
            noise there is in h, and the more steps it takes: after t steps h_0
            still has the weight beta_2^t. Take 1 - 5 / steps if there are few.
        seed: Int or None: of what is drawn.
        name: Of the optimizer.
        **options: Of Keras' optimizers, such as `clipnorm`.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if it is out of range; for `weight_decay`, `use_ema` and
            `gradient_accumulation_steps`; when it is built for several
            replicas, which would draw weights of their own.

    Example:
    >>> x = np.random.default_rng(0).normal(size=(64, 3))
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> optimizer = keras_vd.optimizers.IVON(num_examples=64, seed=0)
    >>> model.compile(optimizer, keras_vd.losses.GaussianNLL(stddev=1.0))
    >>> history = model.fit(x, x[:, :1], epochs=2, verbose=0)
    >>> bayesian = optimizer.to_variational(model)
    >>> prediction = keras_vd.predict_mc(
    ...     bayesian, x, task="regression", noise=1.0, verbose=0
    ... )
    >>> prediction.mean.shape
    (64, 1)
    """

    def __init__(
        self,
        num_examples: int,
        learning_rate: Any = 0.1,
        prior_stddev: float = 1.0,
        hessian_init: float = 1.0,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        seed: int | None = None,
        name: str = "ivon",
        **options: Any,
    ) -> None:
        for option, reason in _REFUSED.items():
            if options.get(option):
                raise ValueError(
                    f"Argument `{option}` must not be given: {reason}. "
                    f"Received: {option}={options[option]!r}."
                )
        super().__init__(learning_rate=learning_rate, name=name, **options)
        self.num_examples = check_integer("num_examples", num_examples, 1)
        self.prior_stddev = check_number(
            "prior_stddev", prior_stddev, 0.0, exclusive=True
        )
        self.hessian_init = check_number(
            "hessian_init", hessian_init, 0.0, exclusive=True
        )
        self.beta_1 = _check_decay("beta_1", beta_1)
        self.beta_2 = _check_decay("beta_2", beta_2)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        # JAX gets the state of an optimizer as a list of these.
        self._track_variable(self.seed_generator.state)

    @property
    def _prior_precision(self) -> float:
        """Precision of the prior over the number of examples, d above."""
        return 1.0 / (self.num_examples * self.prior_stddev**2)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if self.built:
            return
        if uses_several_replicas():
            raise ValueError(
                "`IVON` draws weights in each step, and replicas would draw "
                "others. Train on one device."
            )
        super().build(variables)
        # TensorFlow may build while it traces, where assignments are lost.
        start = keras.initializers.Constant(self.hessian_init)
        self._means, self._momentums, self._hessians = (
            [
                self.add_variable_from_reference(variable, name, initializer)
                for variable in variables
            ]
            for name, initializer in (
                ("mean", "zeros"),
                ("momentum", "zeros"),
                ("hessian", start),
            )
        )

    def update_step(
        self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor
    ) -> None:
        index = self._get_variable_index(variable)
        mean, momentum, hessian = (
            self._means[index],
            self._momentums[index],
            self._hessians[index],
        )
        dtype, prior = variable.dtype, self._prior_precision
        gradient = ops.cast(gradient, dtype)
        step = ops.cast(self.iterations + 1, dtype)

        # The weights of the first step are the means: they say nothing of h.
        is_first = ops.equal(self.iterations, 0)
        center = ops.where(
            is_first, *map(ops.convert_to_tensor, (variable, mean))
        )
        share = ops.where(is_first, 0.0, 1.0 - self.beta_2)
        precision = self.num_examples * (hessian + prior)
        change = share * (gradient * (variable - center) * precision - hessian)
        curvature = (
            hessian + change + 0.5 * ops.square(change) / (hessian + prior)
        )
        average = self.beta_1 * momentum + (1.0 - self.beta_1) * gradient
        unbiased = average / (1.0 - ops.power(self.beta_1, step))
        rate = ops.cast(learning_rate, dtype) * (self.hessian_init + prior)
        newton = (unbiased + prior * center) / (curvature + prior)

        self.assign(hessian, curvature)
        self.assign(momentum, average)
        self.assign(mean, center - rate * newton)
        noise = keras.random.normal(
            variable.shape, dtype=dtype, seed=self.seed_generator
        )
        self.assign(variable, mean + noise * self._stddev(hessian))

    def _stddev(self, hessian: keras.Variable) -> Tensor:
        total = hessian + self._prior_precision
        return ops.rsqrt(self.num_examples * total)

    def finalize_variable_values(
        self, var_list: Sequence[keras.Variable]
    ) -> None:
        """Write the posterior's means into the variables."""
        if int(self.iterations) == 0:
            return  # the variables are the means still
        for variable in var_list:
            mean = self._means[self._get_variable_index(variable)]
            # A copy: JAX would be given one buffer twice.
            variable.assign(ops.copy(mean))

    def sigma(self, variable: keras.Variable) -> Tensor:
        """Return the posterior's standard deviations, as the variable's shape.

        Args:
            variable: One that it has trained.

        Raises:
            ValueError: if it has not.
        """
        if not self.built or self._var_key(variable) not in (
            self._trainable_variables_indices
        ):
            raise ValueError(
                "Argument `variable` must be one that this optimizer has "
                f"trained. Received: {variable.path}."
            )
        return self._stddev(self._hessians[self._get_variable_index(variable)])

    def to_variational(self, model: keras.Model, **options: Any) -> keras.Model:
        """Return the model as a variational one, with the learned posterior.

        Kernels, embeddings and biases of layers that have a variational form
        get Gaussian posteriors with the learned means and variances; what has
        none stays at its mean. `predict_mc`, `prune` and all else take it. Give
        `criterion="bmr"` to have Bayesian model reduction prune, or a
        `threshold` on log alpha = log(sigma^2 / mean^2), a signal-to-noise
        ratio.

        Args:
            model: The model that it has trained. It stays as it is.
            **options: Of `keras_vd.posteriors.Gaussian`, but for `share`: each
                weight has a variance of its own.

        Raises:
            ValueError: if it has not trained this model, the model has
                variational layers, or `share` is given.
        """
        if find_posteriors(model):
            raise ValueError(
                "Argument `model` must have no variational layers, as these "
                f"have posteriors of their own. Received: '{model.name}'."
            )
        variables = model.trainable_variables
        log_variances = [2.0 * ops.log(self.sigma(x)) for x in variables]
        values = [ops.copy(x) for x in variables]
        prior = priors.Gaussian(self.prior_stddev)
        posterior = posteriors.Gaussian(**{"prior": prior, **options})
        if posterior.share != "weight":
            raise ValueError(
                "Argument `share` must be 'weight', as the optimizer has a "
                f"variance for each weight. Received: {posterior.share!r}."
            )
        arguments: dict[str, Any] = {
            "posterior": posterior,
            "bias_posterior": lambda x: posterior if has_bias(x) else None,
            "kl_weight": 1.0 / self.num_examples,
            "verbose": 0,
        }
        try:
            self.finalize_variable_values(variables)
            variational = to_variational(model, **arguments)
            # Where a weight went, its variance goes.
            for variable, value in zip(variables, log_variances, strict=True):
                variable.assign(value)
            carrier = to_variational(model, **arguments)
        finally:
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        for weight, other in zip(
            variational_weights(variational),
            variational_weights(carrier),
            strict=True,
        ):
            weight.log_sigma2.assign(other.theta)
        return variational

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        names = (
            "num_examples",
            "prior_stddev",
            "hessian_init",
            "beta_1",
            "beta_2",
            "seed",
        )
        return {**config, **{name: getattr(self, name) for name in names}}


def _check_decay(argument: str, value: float) -> float:
    number = check_number(argument, value, 0.0, 1.0)
    if number == 1.0:
        raise ValueError(
            f"Argument `{argument}` must be below 1, or nothing is learned. "
            f"Received: {argument}={value!r}."
        )
    return number
