"""What all gates share: random factors of whole units or channels."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.types import Tensor
from keras_vd._backend.validation import (
    check_finite,
    check_integer,
    check_number,
    refuse_rematerialization,
)
from keras_vd.posteriors import Posterior

# Uniform draws are kept this far from 0 and 1, where logs are infinite.
MIN_UNIFORM = 1e-6


class StructuredGate(Posterior):
    """Base of the gates, which multiply each unit by a random factor.

    A subclass implements `build` (its variables), `gate_mean`, `_draw`,
    `_kl_terms` and `_is_above`.

    Args:
        axis: Int: axis of the inputs that runs over units or channels.
        threshold: Float or None: what a gate has to exceed to be kept.
        kl_scale: Float >= 0: factor of this layer's KL on top of the KL
            weight.
        kl_weight: Float >= 0 or None: initial multiplier of the KL in nats,
            normally 1 / (number of training examples).

    Attributes:
        kl_weight: Scalar variable, float32.
        keep_mask: Bool variable of shape `(units,)`; False is pruned.

    Raises:
        TypeError: if a number is expected and something else came.
        ValueError: if a value is not allowed; when it is built, if the size
            of `axis` is not known; when it is called, if the inputs are no
            floats, or in training if the KL weight was never set.
    """

    def __init__(
        self,
        axis: int = -1,
        threshold: float | None = None,
        kl_scale: float = 1.0,
        kl_weight: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(kl_scale=kl_scale, kl_weight=kl_weight, **kwargs)
        refuse_rematerialization(self)
        self.axis = check_integer("axis", axis, -(2**31))
        if threshold is not None:
            threshold = check_number("threshold", threshold, 0.0)
        self.threshold = threshold
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        rank = len(input_shape)
        axis = self.axis + rank if self.axis < 0 else self.axis
        units = input_shape[axis] if 0 < axis < rank else None
        if units is None:
            raise ValueError(
                f"Argument `axis` of layer '{self.name}' must name an axis of "
                "known size that is not the batch. Received: "
                f"axis={self.axis} for inputs of shape {tuple(input_shape)}."
            )
        # Shape of gates that broadcasts to the inputs.
        self._broadcast_shape = [-1] + [1] * (rank - 1)
        self._unit_axis = axis
        self.set_units(units)
        self.label = self.name
        self._add_state((self.units,))

    def set_units(self, units: int) -> None:
        """Set the number of units; the variables are another matter."""
        self.units = units
        self._broadcast_shape[self._unit_axis] = units

    @property
    def is_along_channels(self) -> bool:
        """Whether there is a gate for each index along the last axis."""
        return self._unit_axis == len(self._broadcast_shape) - 1

    def _add_parameter(self, name: str, value: float, **options: Any) -> Any:
        """Add a variable of shape `(units,)`, in float32 under any policy."""
        return self.add_weight(
            name=name,
            shape=(self.units,),
            initializer=keras.initializers.Constant(value),
            dtype="float32",
            autocast=False,
            **options,
        )

    def gate_mean(self) -> Tensor:
        """Return the expected gate of every unit: float32, shape `(units,)`.

        Units that `prune` has removed have 0.
        """
        raise NotImplementedError

    def _draw(self, inputs: Tensor, training: bool) -> Tensor:
        """Draw random gates: float32, shape `(units,)` or `(batch, units)`.

        `training` is False for draws at inference, whose noise is the same for
        all examples.
        """
        raise NotImplementedError

    def _kl_terms(self) -> Tensor:
        """Compute the KL of every unit's gate in nats, shape `(units,)`."""
        raise NotImplementedError

    def _is_above(self, threshold: float | None) -> Tensor:
        """Tell which units' gates exceed the threshold, shape `(units,)`."""
        raise NotImplementedError

    def _masked(self, gates: Tensor) -> Tensor:
        return ops.where(ops.convert_to_tensor(self.keep_mask), gates, 0.0)

    def _is_kept(self, threshold: float | None) -> Tensor:
        keep_mask = ops.convert_to_tensor(self.keep_mask)
        return ops.logical_and(keep_mask, self._is_above(threshold))

    def mean(self) -> Tensor:
        """Return the gates at inference: `gate_mean()`, or 0 if not kept.

        Returns:
            Float32 tensor of shape `(units,)`.
        """
        gates = self.gate_mean()
        # The difference is 0, but NaN for a gate that is NaN or infinite: such
        # a gate must not look closed.
        return ops.where(self._is_kept(self.threshold), gates, gates - gates)

    def margin(self) -> Tensor:
        least = max(self.threshold or 0.0, MIN_UNIFORM)
        return ops.log(ops.maximum(self.gate_mean(), MIN_UNIFORM) / least)

    def own_mean(self) -> Tensor:
        return self.mean()

    @property
    def n_active(self) -> int:
        """Number of units that are not 0 at inference."""
        return int(np.count_nonzero(ops.convert_to_numpy(self.mean())))

    def kl_divergence(self) -> Tensor:
        return ops.sum(self._masked(self._kl_terms()))

    def prune(self, threshold: float | None = None) -> None:
        """Fix which units are zero from now on, in training too.

        Args:
            threshold: Float >= 0: what a gate has to exceed to be kept. By
                default the layer's own.

        Raises:
            TypeError: if `threshold` is not a number.
            ValueError: if it is negative, or if a variable is not finite.
        """
        check_finite(f"Gate '{self.label}'", self.weights)
        if threshold is None:
            threshold = self.threshold
        else:
            threshold = check_number("threshold", threshold, 0.0)
        self.keep_mask.assign(ops.convert_to_numpy(self._is_kept(threshold)))

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if "float" not in dtype:
            raise ValueError(
                f"Layer '{self.name}' multiplies its inputs by real numbers: "
                f"they must be floats. Received: inputs of type {dtype}."
            )
        if self.is_sampling(training) and not self.is_frozen:
            self._note_draw()
            if self._is_kl_due():
                self._add_kl_loss(self.kl_divergence())
            with self._one_draw():
                gates = self._masked(self._draw(inputs, bool(training)))
        else:
            gates = self._inference_gates(inputs)
        gates = ops.reshape(gates, self._broadcast_shape)
        return inputs * ops.cast(gates, inputs.dtype)

    def _inference_gates(self, inputs: Tensor) -> Tensor:
        return self.mean()

    def _uniforms(self, shape: tuple[Any, ...]) -> Tensor:
        draws = keras.random.uniform(
            shape, dtype="float32", seed=self.seed_generator
        )
        return ops.clip(draws, MIN_UNIFORM, 1.0 - MIN_UNIFORM)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def constant_factors(self) -> np.ndarray | None:
        """Return the gates at inference, broadcastable to one example.

        Return None if they depend on the inputs.
        """
        gates = ops.convert_to_numpy(self.mean())
        return gates.reshape(self._broadcast_shape[1:])

    def plain_layer(
        self, input_shape: tuple[int | None, ...]
    ) -> keras.layers.Layer:
        """Make a Keras layer that computes what this one does at inference.

        It has the values of this layer only after `copy_to`.

        Args:
            input_shape: Shape of the inputs, with the batch.

        Raises:
            ValueError: if `keras.layers.Rescaling` cannot take the inputs.
        """
        self._check_rescaling(len(input_shape))
        return keras.layers.Rescaling(
            1.0, name=self.name, dtype=self.dtype_policy
        )

    def _check_rescaling(self, rank: int) -> None:
        data_format = keras.config.image_data_format()
        if rank < 3 and data_format == "channels_first":
            raise ValueError(
                f"Gate '{self.name}' becomes a `keras.layers.Rescaling`, which "
                "takes inputs of 2 axes for images if Keras' global "
                "`image_data_format` is 'channels_first'. Set it to "
                "'channels_last'; layers may have a `data_format` of their own."
            )

    def copy_to(self, plain: Any) -> None:
        """Give a `plain_layer` the values of this layer."""
        shape = [1, *self._broadcast_shape[1:]]
        plain.scale = ops.convert_to_numpy(self.mean()).reshape(shape).tolist()

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "axis": self.axis,
            "threshold": self.threshold,
            "kl_scale": self.kl_scale,
            "kl_weight": self.initial_kl_weight,
        }
