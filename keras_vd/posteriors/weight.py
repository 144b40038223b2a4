"""Posteriors: what is known about a weight, and how noise enters a layer.

This is the central idea of the library. The posterior mean `theta` *is* the
kernel of an ordinary Keras layer; a `WeightPosterior` is a small sub-layer
that refers to it and owns everything variational: the variance, the prior, the
KL weight, the noise seed and the mask of kept weights. A layer passes its
linear operation to `project`, which does the rest, or asks for one `draw` of
the weight. What is computed from the variables is in `moments.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd import priors
from keras_vd._backend.fusing import (
    fast_moments,
    key_of,
    recomputed,
    usual_size,
)
from keras_vd._backend.keras_internals import full_precision_value
from keras_vd._backend.noise import (
    rows_of_normals,
    standard_normal,
)
from keras_vd._backend.sharding import sharded_like
from keras_vd._backend.types import Tensor
from keras_vd._backend.validation import (
    check_choice,
    check_finite,
    check_number,
)
from keras_vd.posteriors.binding import Axes, Binding, Group
from keras_vd.posteriors.moments import (
    MAX_ABS_LOG_ALPHA,
    Moments,
    Threshold,
)
from keras_vd.posteriors.posterior import Posterior
from keras_vd.posteriors.reparameterization import local_reparameterization
from keras_vd.posteriors.sampling import is_sampling_at_inference
from keras_vd.posteriors.sharing import SharedOp, outer_product

USUAL_THRESHOLD = 3.0


class WeightPosterior(Posterior):
    """Base of all posteriors: a factorized Gaussian over one weight tensor.

    Users choose a posterior by name (`posterior="sparse_vd"`) or pass an
    object of a subclass; the object is a template, of which every weight of
    every layer gets its own copy.

    A subclass implements `build`, `_noise_parameters` and `_log_variances`.

    Args:
        prior: String or `keras_vd.priors.Prior`: what the KL divergence is
            measured to.
        share: `"weight"`, `"unit"`, `"input"` or `"layer"`: whether every
            weight, every output unit, every input unit or the whole layer has
            a noise parameter of its own.
        threshold: Float or None. A weight whose `log_alpha` reaches it counts
            as zero. None: this posterior does not prune by itself.
        train_clip: Bool. Whether such a weight's mean counts as zero in
            training too, where it keeps its noise.
        estimator: `"local"` (noise on the outputs, independent for each
            example) or `"weight"` (one weight sample per call), in training.
        variance_dtype: None or `"bfloat16"`: type of the product of squared
            inputs and variances, for hardware that gains from it; None is the
            layer's. Only noise of the `"local"` estimator is rounded by it.
        **options: See `Posterior`.

    Attributes:
        keep_mask: Bool variable of the weight's shape; False is pruned.
        prior_mean: Variable of the weight's shape, not trained: the weight
            that training began with; only where the prior is about it.
        binding: What the posterior knows of its weight; set by `bind`.
        is_group: Whether the weight is a group variable.

    Raises:
        TypeError: if a number is expected and something else came.
        ValueError: if a value is not allowed.

    Example:
    >>> template = keras_vd.posteriors.SparseVD(estimator="weight")
    >>> layers = [
    ...     keras_vd.layers.VDDense(n, posterior=template) for n in (5, 2)
    ... ]
    >>> model = keras.Sequential([keras.Input((3,)), *layers])
    >>> [tuple(x.kernel_posterior.log_alpha.shape) for x in layers]
    [(3, 5), (5, 2)]
    """

    binding: Binding
    _shares: tuple[str, ...] = ("weight", "unit", "input", "layer")

    def __init__(
        self,
        prior: Any = "log_uniform",
        share: str = "weight",
        threshold: float | None = USUAL_THRESHOLD,
        train_clip: bool = False,
        estimator: str = "local",
        variance_dtype: str | None = None,
        **options: Any,
    ) -> None:
        # The parameters stay in float32 whatever the layer computes in.
        super().__init__(dtype="float32", **options)
        self.prior = priors.get(prior)
        self.share = check_choice("share", share, self._shares)
        if threshold is not None:
            threshold = check_number(
                "threshold", threshold, -MAX_ABS_LOG_ALPHA, MAX_ABS_LOG_ALPHA
            )
        self.threshold = threshold
        self.train_clip = bool(train_clip)
        self.estimator = check_choice(
            "estimator", estimator, ("local", "weight")
        )
        allowed = (None, "bfloat16") if estimator == "local" else (None,)
        if variance_dtype not in allowed:
            raise ValueError(
                f"Argument `variance_dtype` must be one of {list(allowed)} "
                f"with estimator={estimator!r}. Received: "
                f"variance_dtype={variance_dtype!r}."
            )
        self.variance_dtype = variance_dtype
        self.is_group = False

    def bind(self, binding: Binding) -> None:
        """Make this the posterior of a weight, whose value is the mean."""
        weight = binding.weight
        axes = binding.axes.counted_from_start(len(weight.shape))
        self.binding = dataclasses.replace(binding, axes=axes)
        with sharded_like(weight):
            self.build(tuple(weight.shape))

    def multiply_by(self, name: str, group: Group) -> None:
        """Let group variables of another layer multiply the weight.

        Args:
            name: Name of the kind of groups.
            group: The group variables.
        """
        groups = {**self.binding.groups, name: group}
        self.binding = dataclasses.replace(self.binding, groups=groups)

    def bind_group(self, size: int, label: str) -> None:
        """Make this the posterior of `size` group variables, which start at 1.

        Args:
            size: Number of groups of weights, with one multiplier each.
            label: Name of the groups in reports and messages.
        """
        scales = self.add_weight(
            name="scales",
            shape=(size,),
            initializer="ones",
            dtype="float32",
            autocast=False,
        )
        self.is_group = True
        self.bind(Binding(scales, label, Axes((0,), (0,))))

    def build(self, input_shape: tuple[int, ...]) -> None:
        self._add_state(input_shape)
        if self.prior.is_about_initial:
            self.prior_mean = self.add_weight(
                name="prior_mean",
                shape=input_shape,
                initializer=self._copy_of_weight,
                dtype="float32",
                autocast=False,
                trainable=False,
            )

    def _copy_of_weight(self, shape: tuple[int, ...], dtype: Any) -> Tensor:
        # Two variables must not share memory: see `ops.cast` on PyTorch, and
        # steps of JAX that free what they were given.
        return ops.cast(full_precision_value(self.weight), dtype) * 1.0

    def start_from_weight(self) -> None:
        """Reset the noise, by the size that the weight has now.

        What does not depend on that size stays as it is. A prior that is about
        the initial weight is about this one from now on.
        """
        if self.prior.is_about_initial:
            variable = self.prior_mean
            variable.assign(self._copy_of_weight(variable.shape, "float32"))

    def _noise_parameters(self) -> tuple[keras.Variable, ...]:
        """List the variables that the variance depends on, besides `theta`."""
        return ()

    def _log_variances(
        self, theta: Tensor, *parameters: Any
    ) -> tuple[Any, Any]:
        """Compute log_sigma2 and log_alpha, each broadcastable to `theta`.

        log_alpha may be None: it is log_sigma2 - log(theta^2 + 1e-8) then.

        Args:
            theta: Float tensor of the weight's shape.
            *parameters: Values of `_noise_parameters()`. This method must read
                no variable itself.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must implement `_log_variances`."
        )

    def project(
        self,
        linear_op: Callable[[Tensor, Tensor], Tensor],
        inputs: Tensor,
        training: bool | None,
        shared_op: SharedOp | None = None,
    ) -> Tensor:
        """Apply `linear_op` with this posterior's weight.

        In training it adds noise, and adds the KL divergence to the losses. At
        inference it uses `mean()` and is deterministic, or uses one sample of
        the weight within `sampling_at_inference`.

        Args:
            linear_op: `(inputs, weight) -> outputs`, linear in both, without
                a bias: noise belongs to the weight alone.
            inputs: Tensor; floats in the layer's compute dtype.
            training: Bool or None, never a tensor.
            shared_op: What `linear_op` is for an outer product of factors:
                `(inputs, input_factors, unit_factors) -> outputs`, see
                `keras_vd.layers.base.LinearLayer`. Without it, variances that
                weights share take a second product as all others do.

        Returns:
            Tensor of the shape and dtype of `linear_op(inputs, weight)`, with
            the weight in the dtype in which the layer would read it.

        Raises:
            ValueError: if `training` and the KL weight was never set.
        """
        # Not the type of the inputs, which may be integers.
        dtype = self._call_dtype
        if not self.is_sampling(training):
            return linear_op(inputs, ops.cast(self.mean(), dtype))
        scales = self.draw_groups()
        # A draw at inference has one weight for all examples.
        is_weight = self.estimator == "weight" or is_sampling_at_inference()
        if is_weight or self.is_frozen:
            return linear_op(inputs, ops.cast(self.draw(scales), dtype))

        is_shared = shared_op is not None and self._is_shared

        # Where a group multiplies them later, types are converted after it.
        types = (
            (None, None) if scales else (dtype, self.variance_dtype or dtype)
        )
        mean, *variances = self._training_pass(
            functools.partial(
                _mean_and_factors if is_shared else _mean_and_variance,
                threshold=self._training_threshold,
                types=types,
            )
        )
        if is_shared:
            variance = self._outer_product(variances, scales, shared_op)
        else:
            variance = self._scaled(variances[0], scales, power=2)
        return local_reparameterization(
            linear_op,
            inputs,
            ops.cast(self._scaled(mean, scales), dtype),
            variance,
            functools.partial(standard_normal, seed=self.seed_generator),
            self.variance_dtype,
        )

    def _outer_product(
        self, factors: Sequence[Any], scales: Mapping[str, Any], shared_op: Any
    ) -> Any:
        """Make variances that weights share of their factors and the groups.

        Args:
            factors: Tensors that broadcast to the weight.
            scales: Values of this weight's group variables, by name.
            shared_op: See `project`.
        """
        squares = [
            ops.square(ops.cast(group.expand(scales[name]), factors[0].dtype))
            for name, group in self.binding.groups.items()
        ]
        keep_mask = ops.convert_to_tensor(self.keep_mask)
        return outer_product(
            [*factors, *squares], keep_mask, self.axes, shared_op
        )

    @property
    def _is_shared(self) -> bool:
        """Whether the moments have `log_factors`."""
        return bool(self._log_factors(*self._noise_parameters()))

    def _log_factors(self, *parameters: Any) -> tuple[Any, ...]:
        """Return what the log variances are sums of, if weights share them.

        Args:
            *parameters: Values of `_noise_parameters()`.

        Returns:
            Tensors that broadcast to the weight; none if every weight has a
            variance of its own.
        """
        return ()

    def draw(self, scales: Mapping[str, Any]) -> Tensor:
        """Draw the weight for a training pass, and add the KL to the losses.

        A frozen weight is what it is at inference, and adds no KL.

        Args:
            scales: Values of this weight's group variables, by name.

        Returns:
            Tensor of the weight's shape.

        Raises:
            ValueError: if the KL weight was never set.
        """
        if self.is_frozen:
            return self._scaled(self.own_mean(), scales)
        threshold = self._training_threshold
        (weight,) = self._training_pass(
            functools.partial(_sample, threshold=threshold), self._noise()
        )
        return self._scaled(weight, scales)

    def draw_parts(self, scales: Mapping[str, Any]) -> tuple[Any, Any]:
        """Do as `draw`, but return the mean and the deviation from it apart."""
        if self.is_frozen:
            mean = self.own_mean()
            return self._scaled(mean, scales), ops.zeros_like(mean)
        threshold = self._training_threshold
        mean, deviation = self._training_pass(
            functools.partial(_mean_and_deviation, threshold=threshold),
            self._noise(),
        )
        return self._scaled(mean, scales), self._scaled(deviation, scales)

    def draw_rows(self, rows: Tensor, scales: Mapping[str, Any]) -> Tensor:
        """Do as `draw`, but return some rows of the weight.

        Where weights share variances, training makes noise for these rows alone
        if they are fewer.

        Args:
            rows: Int32 or int64 tensor of any shape: indices along axis 0.
            scales: Values of this weight's group variables, by name.

        Returns:
            Tensor of shape `(*rows.shape, columns)`.

        Raises:
            ValueError: if the KL weight was never set.
        """
        num_rows, size = self.weight.shape
        # A draw at inference is the same for all batches, of whatever size.
        # Variances of all weights would have to be looked up, too.
        is_whole = self.is_frozen or is_sampling_at_inference()
        is_whole = is_whole or not self._is_shared
        if is_whole or not 0 < usual_size(rows) < num_rows:
            return ops.take(self.draw(scales), rows, axis=0)

        def at_rows(tensor: Tensor) -> Tensor:
            is_same = tensor.shape[0] == 1 < num_rows
            return tensor if is_same else ops.take(tensor, rows, axis=0)

        parts = self._training_pass(
            functools.partial(
                _mean_and_factors,
                threshold=self._training_threshold,
                power=0.5,
            )
        )
        noise = rows_of_normals(rows, size, parts[0].dtype, self.seed_generator)
        mask = at_rows(ops.convert_to_tensor(self.keep_mask))
        (drawn,) = recomputed(_add_noise, [*map(at_rows, parts)], (noise, mask))
        for name, group in self.binding.groups.items():
            scale = ops.cast(group.expand(scales[name]), drawn.dtype)
            drawn = drawn * at_rows(scale)
        return drawn

    def draw_groups(self) -> dict[str, Any]:
        """Draw the group variables of this weight, by name, as `draw` does."""
        return {
            name: group.posterior.draw({})
            for name, group in self.binding.groups.items()
        }

    def _training_pass(
        self, function: Callable[..., tuple[Any, ...]], *constants: Any
    ) -> tuple[Any, ...]:
        """Compute a function of the moments, and add the KL to the losses.

        Args:
            function: Of the moments and the constants; returns a tuple.
            *constants: Tensors that no gradient is wanted for.

        Raises:
            ValueError: if the KL weight was never set.
        """
        self._note_draw()
        if not self._is_kl_due():
            return self._compute(function, *constants)
        *outputs, divergence = self._compute(
            function, *constants, has_divergence=True
        )
        self._add_kl_loss(divergence)
        return tuple(outputs)

    def _compute(
        self,
        function: Callable[..., tuple[Any, ...]],
        *constants: Any,
        has_divergence: bool = False,
    ) -> tuple[Any, ...]:
        """Compute a function of the moments, in few passes over memory.

        Args:
            function: Of the moments and the constants; returns a tuple.
            *constants: Tensors that no gradient is wanted for.
            has_divergence: Whether to append the KL.
        """
        variables, keep_mask = self._read_variables()
        known = self._known_to_prior() if has_divergence else ()
        form = fast_moments(type(self)._log_variances, variables, Moments)

        def compute(
            variables: Sequence[Any], keep_mask: Tensor, *tensors: Any
        ) -> tuple[Any, ...]:
            moments = self._moments(variables, keep_mask, form)
            outputs = function(moments, *tensors[len(known) :])
            if has_divergence:
                divergence = moments.kl_divergence(
                    self.own_prior, *tensors[: len(known)]
                )
                return *outputs, divergence
            return outputs

        def find_key() -> Any:
            parts = self._recipe, key_of(function)
            return None if None in parts else (*parts, form, has_divergence)

        constants = (keep_mask, *known, *constants)
        return recomputed(compute, variables, constants, find_key)

    def _known_to_prior(self) -> tuple[Any, ...]:
        """Read what the prior's `kl_divergence` takes besides the posterior."""
        if self.prior.is_about_initial:
            theta = full_precision_value(self.weight)
            return (ops.cast(self.prior_mean, theta.dtype),)
        return (self._noise(),) if self.prior.is_sampled else ()

    @property
    def _recipe(self) -> Any:
        """What is equal for posteriors that compute the same.

        None for classes of others, whose configs may not tell all.
        """
        for part in (self, self.prior):
            if not type(part).__module__.startswith("keras_vd."):
                return None
        options = [self.get_config(), priors.serialize(self.own_prior)]
        return type(self), json.dumps(options, sort_keys=True)

    def _read_variables(self) -> tuple[tuple[Any, ...], Any]:
        """Read theta and the noise parameters in one type, and `keep_mask`."""
        theta = full_precision_value(self.weight)
        parameters = [
            ops.cast(full_precision_value(parameter), theta.dtype)
            for parameter in self._noise_parameters()
        ]
        return (theta, *parameters), ops.convert_to_tensor(self.keep_mask)

    def _moments(
        self, variables: Sequence[Any], keep_mask: Tensor, form: type[Moments]
    ) -> Moments:
        return form(
            variables[0],
            *self._log_variances(*variables),
            keep_mask,
            self._log_factors(*variables[1:]),
        )

    def _current_moments(self) -> Moments:
        return self._moments(*self._read_variables(), Moments)

    def _noise(self) -> Tensor:
        dtype = full_precision_value(self.weight).dtype
        with self._one_draw():
            return standard_normal(
                self.weight.shape, dtype, self.seed_generator
            )

    @property
    def _call_dtype(self) -> str:
        """Type in which the layer that is being called reads its weight."""
        return keras.backend.standardize_dtype(self.weight.dtype)

    @property
    def _training_threshold(self) -> Threshold:
        return self.limit() if self.train_clip else None

    def _scaled(
        self, tensor: Tensor, scales: Mapping[str, Any], power: int = 1
    ) -> Tensor:
        """Multiply a tensor of the weight's shape by the group variables.

        Args:
            tensor: Tensor of the weight's shape.
            scales: Values of the group variables, by name.
            power: Power of the group variables; 2 for variances.
        """
        for name, group in self.binding.groups.items():
            scale = ops.cast(group.expand(scales[name]), tensor.dtype)
            tensor = tensor * scale**power
        return tensor

    @property
    def own_prior(self) -> priors.Prior:
        """The prior of this weight: `prior`, at the fan-in of the weight."""
        return self.prior.at_fan_in(self.axes.fan_in(self.weight.shape))

    @property
    def is_bias(self) -> bool:
        """Whether the weight is a bias."""
        return self.binding.is_bias

    @property
    def weight(self) -> keras.Variable:
        """The variable of the layer, whose value is the posterior mean."""
        return self.binding.weight

    @property
    def label(self) -> str:
        """Name of the weight in reports and messages."""
        return self.binding.label

    @label.setter
    def label(self, label: str) -> None:
        self.binding = dataclasses.replace(self.binding, label=label)

    @property
    def axes(self) -> Axes:
        """What the axes of the weight mean."""
        return self.binding.axes

    @property
    def theta(self) -> Tensor:
        """Posterior means: tensor of the weight's shape.

        This tensor and those below are float32, or float64 if the weight is.
        """
        variables, _ = self._read_variables()
        return variables[0]

    @property
    def log_alpha(self) -> Tensor:
        """log(sigma2 / theta^2): tensor of the weight's shape.

        Pruned weights have the largest value there is, 20.
        """
        moments = self._current_moments()
        return ops.where(
            moments.keep_mask, moments.log_alpha, MAX_ABS_LOG_ALPHA
        )

    @property
    def learned_log_alpha(self) -> Tensor:
        """`log_alpha` without regard to what is pruned.

        It has the values from which `prune` chose, as these stay in the
        variables.
        """
        moments = self._current_moments()
        return ops.broadcast_to(moments.log_alpha, ops.shape(moments.theta))

    def mean(self) -> Tensor:
        """Return the weight at inference: theta, and 0 where it is pruned.

        Group variables are multiplied in, at their own inference values.

        Returns:
            Tensor of the weight's shape.
        """
        return self._scaled(
            self.own_mean(),
            {k: x.posterior.mean() for k, x in self.binding.groups.items()},
        )

    def own_mean(self) -> Tensor:
        # No compiled kernel: not every runtime of exported models has XLA.
        return self._current_moments().inference_mean(self.limit())

    def sample(self) -> Tensor:
        """Draw the weight once from the posterior used in training.

        Group variables are multiplied in, with a draw of their own.

        Returns:
            Tensor of the weight's shape.
        """
        moments, noise = self._current_moments(), self._noise()
        (weight,) = _sample(moments, noise, self._training_threshold)
        return self._scaled(
            weight,
            {k: x.posterior.sample() for k, x in self.binding.groups.items()},
        )

    def kl_divergence(self) -> Tensor:
        (divergence,) = self._compute(_nothing, has_divergence=True)
        return divergence

    def prune(self, threshold: float | None = None) -> None:
        """Fix which weights are zero from now on, in training too.

        Args:
            threshold: Float: weights with `log_alpha >= threshold` go. By
                default the posterior's own; one that has none keeps all.

        Raises:
            TypeError: if `threshold` is not a number.
            ValueError: if it is not within [-20, 20], or if a value of the
                weight or of its noise is not finite.
        """
        check_finite(f"Weight '{self.label}'", [self.weight, *self.weights])
        is_kept = self._current_moments().is_kept(self.limit(threshold))
        self.keep_mask.assign(ops.convert_to_numpy(is_kept))

    def limit(self, threshold: float | None = None) -> Threshold:
        """Return what tells which weights count as zero.

        Args:
            threshold: As of `prune`.

        Returns:
            A bound of `log_alpha`, Bayesian model reduction, or None: this
            posterior does not prune by itself.

        Raises:
            TypeError: if `threshold` is not a number.
            ValueError: if it is not within [-20, 20].
        """
        if threshold is None:
            return self.threshold
        return check_number(
            "threshold", threshold, -MAX_ABS_LOG_ALPHA, MAX_ABS_LOG_ALPHA
        )

    def margin(self) -> Tensor:
        threshold = (
            USUAL_THRESHOLD if self.threshold is None else self.threshold
        )
        return threshold - self.log_alpha

    def sparsity(self) -> float:
        """Compute the fraction of the weight that is zero at inference."""
        return float(np.mean(ops.convert_to_numpy(self.mean()) == 0.0))

    def get_config(self) -> dict[str, Any]:
        return {
            "prior": priors.serialize(self.prior),
            "share": self.share,
            "threshold": self.threshold,
            "train_clip": self.train_clip,
            "estimator": self.estimator,
            "variance_dtype": self.variance_dtype,
            "kl_scale": self.kl_scale,
        }

    def get_group_config(self) -> dict[str, Any]:
        """Return `get_config` for group variables, which share no noise."""
        return {**self.get_config(), "share": "weight"}


# What a training pass computes of the moments. Functions of their arguments
# alone, so that layers may share what a compiler makes of them.


def _mean_and_variance(
    moments: Moments, threshold: Threshold, types: tuple[Any, Any]
) -> tuple[Any, ...]:
    mean, sigma2 = moments.mean(threshold), moments.sigma2()
    return tuple(
        tensor if dtype is None else ops.cast(tensor, dtype)
        for tensor, dtype in zip((mean, sigma2), types, strict=True)
    )


def _mean_and_factors(
    moments: Moments,
    threshold: Threshold,
    types: tuple[Any, Any] = (None, None),
    power: float = 1.0,
) -> tuple[Any, ...]:
    mean = moments.mean(threshold)
    if types[0] is not None:
        mean = ops.cast(mean, types[0])
    return (mean, *(ops.exp(power * x) for x in moments.log_factors))


def _mean_and_deviation(
    moments: Moments, noise: Tensor, threshold: Threshold
) -> tuple[Any, ...]:
    return moments.mean(threshold), moments.stddev() * noise


def _sample(
    moments: Moments, noise: Tensor, threshold: Threshold
) -> tuple[Any, ...]:
    return (sum(_mean_and_deviation(moments, noise, threshold)),)


def _nothing(moments: Moments) -> tuple[Any, ...]:
    return ()


def _add_noise(
    tensors: Sequence[Any], noise: Tensor, mask: Tensor
) -> tuple[Any, ...]:
    mean, *factors = tensors
    return (mean + math.prod(factors) * ops.where(mask, noise, 0.0),)
