"""Variational recurrent layers: one weight sample for all time steps.

Kernel and recurrent kernel are drawn once per call, before the time loop, and
take the places of the cell's own while Keras' layer runs. So the gates are
Keras' own, fused kernels included, and every time step meets the same weights
(Gal and Ghahramani 2016, arXiv:1512.05287; Lobacheva et al. 2017,
arXiv:1708.00077).
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import (
    full_precision_value,
    replaced_attributes,
)
from keras_vd._backend.types import Tensor
from keras_vd._backend.validation import check_choice
from keras_vd.layers._flipout import FlippedKernel, flipped_methods
from keras_vd.layers.base import (
    Expansion,
    VariationalLayer,
    along_axes,
    keras_class,
)
from keras_vd.posteriors.binding import Axes
from keras_vd.posteriors.sampling import is_sampling_at_inference

_register = keras.saving.register_keras_serializable(package="keras_vd")


class _Recurrent(VariationalLayer):
    """Mixin of recurrent layers, whose weights belong to a cell.

    Kernel of shape `(input_dim, gates * units)`, recurrent kernel of shape
    `(units, gates * units)`; the gates are blocks of columns.
    """

    _variational_weights = ("kernel", "recurrent_kernel")
    _available_groups: tuple[str, ...] = ("input", "units", "gates")
    _num_gates: int
    # Number of the block of columns whose activation is what a unit takes in.
    _candidate: int

    def __init__(
        self, *args: Any, weight_samples: str = "batch", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.weight_samples = check_choice(
            "weight_samples", weight_samples, ("batch", "sequence")
        )
        # If layers allow cuDNN, Keras' `Bidirectional` passes their weights to
        # a fused kernel itself, without `inner_loop` and its samples.
        self._use_cudnn = getattr(self, "use_cudnn", False)
        self.use_cudnn = False
        self._refuse_input_noise()
        if "units" in self.group_names:
            self._check_activation()

    def _check_activation(self) -> None:
        at_zero = ops.convert_to_numpy(self.activation(ops.zeros(1)))
        if np.any(at_zero != 0.0):
            raise ValueError(
                f"Argument `groups` of layer '{self.name}' may only contain "
                "'units' if `activation` is 0 at 0, so that a pruned unit is "
                f"0. Received: activation={self.activation!r}, which is "
                f"{float(at_zero[0]):g} there."
            )

    def build(
        self, sequences_shape: Any, initial_state_shape: Any = None
    ) -> None:
        # This skips the mixin's `build`, which takes a single input shape.
        super(VariationalLayer, self).build(
            sequences_shape, initial_state_shape
        )
        self._bind_posteriors(self.cell)

    def _kernel_axes(self, weight: str) -> Axes:
        return Axes(inputs=(0,), outputs=(1,))

    def _expansions(self, weight: str) -> dict[str, Expansion]:
        shape = getattr(self.cell, weight).shape
        found: dict[str, Expansion] = {
            "units": (
                self.units,
                functools.partial(self._expand_units, weight),
            ),
            "gates": along_axes(shape, (1,)),
        }
        if weight == "kernel":
            found["input"] = along_axes(shape, (0,))
        return {name: found[name] for name in self.group_names if name in found}

    def _expand_units(self, weight: str, values: Tensor) -> Tensor:
        """Spread the group variables of units over a kernel.

        A unit's variable multiplies what the unit takes in, the candidate's
        columns. If it is 0, the unit is 0. Then its other columns, and its row
        of the recurrent kernel, have no effect and become 0 as well.
        """
        alive = _is_alive(values)
        columns = self._at_candidate(values, alive)[None, :]
        return columns * alive[:, None] if weight != "kernel" else columns

    def inference_biases(self) -> list[tuple[keras.Variable, Any]]:
        found = self._bias(self._bias_mean(), self._group_means())
        return [(self.cell.bias, bias) for bias in found.values()]

    def inner_loop(
        self,
        sequences: Any,
        initial_state: Any,
        mask: Any,
        training: bool | None = False,
    ) -> Tensor:
        use_cudnn = self._use_cudnn
        if not self._template().is_sampling(training):
            attributes = self._cast(self._inference_weights())
        elif self.weight_samples == "batch" or is_sampling_at_inference():
            attributes = self._batch_sample()
        else:
            attributes = self._sequence_samples(ops.shape(sequences)[0])
            use_cudnn = False
        with (
            replaced_attributes(self, use_cudnn=use_cudnn),
            replaced_attributes(self.cell, **attributes),
        ):
            return super().inner_loop(
                sequences, initial_state, mask, training=training
            )

    def _cast(self, weights: dict[str, Any]) -> dict[str, Any]:
        dtype = self.cell.compute_dtype
        return {name: ops.cast(weights[name], dtype) for name in weights}

    def _inference_weights(self) -> dict[str, Any]:
        weights = {
            weight: getattr(self, f"{weight}_posterior").mean()
            for weight in self._kernels()
        }
        return weights | self._bias(self._bias_mean(), self._group_means())

    def _group_means(self) -> dict[str, Any]:
        return {
            name: getattr(self, f"{name}_group").mean()
            for name in self.group_names
        }

    def _draw_groups(self) -> dict[str, Any]:
        return {
            name: getattr(self, f"{name}_group").draw({})
            for name in self.group_names
        }

    def _batch_sample(self) -> dict[str, Any]:
        scales = self._draw_groups()
        weights = {
            weight: getattr(self, f"{weight}_posterior").draw(scales)
            for weight in self._kernels()
        }
        return self._cast(weights | self._bias(self._draw_bias(), scales))

    def _sequence_samples(self, batch_size: Any) -> dict[str, Any]:
        scales = self._draw_groups()
        kernels = {}
        for weight in self._kernels():
            posterior = getattr(self, f"{weight}_posterior")
            mean, deviation = posterior.draw_parts(scales)
            kernels[weight] = FlippedKernel.draw(
                ops.cast(mean, self.cell.compute_dtype),
                ops.cast(deviation, self.cell.compute_dtype),
                batch_size,
                posterior.seed_generator,
            )
        bias = self._cast(self._bias(self._draw_bias(), scales))
        return kernels | bias | flipped_methods(self.cell)

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "weight_samples": self.weight_samples}
        # Keras leaves the argument out, but `Bidirectional` copies layers by
        # their config.
        if "use_cudnn" in inspect.signature(keras_class(type(self))).parameters:
            config["use_cudnn"] = self._use_cudnn
        return config

    def _bias_mean(self) -> Tensor | None:
        """Return the cell's bias at inference; None if it has none."""
        if self.bias_posterior is not None:
            return self.bias_posterior.mean()
        return full_precision_value(self.cell.bias) if self.use_bias else None

    def _draw_bias(self) -> Tensor | None:
        """Return the cell's bias for a pass that draws, or None."""
        if self.bias_posterior is not None:
            return self.bias_posterior.draw({})
        return self._bias_mean()

    def _bias(
        self, bias: Tensor | None, scales: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the cell's bias, if it has one, without that of pruned groups.

        Args:
            bias: The bias, or None.
            scales: Values of the group variables, by name.

        Returns:
            The bias by its name; empty if the cell has none.
        """
        if bias is None:
            return {}
        scales = {k: ops.cast(x, bias.dtype) for k, x in scales.items()}
        if "units" in scales:
            bias = bias * self._at_candidate(_is_alive(scales["units"]))
        if "gates" in scales and len(bias.shape) == 2:
            # GRU with `reset_after`: the reset gate multiplies the second
            # bias. A pruned candidate has to be a constant, so it has none.
            gates = ops.split(_is_alive(scales["gates"]), self._num_gates)
            recurrent = self._at_candidate(gates[self._candidate])
            bias = bias * ops.stack([ops.ones_like(recurrent), recurrent])
        return {"bias": bias}

    def _at_candidate(self, values: Tensor, others: Any = None) -> Tensor:
        """Return one value per column, `values` in the candidate's block.

        Args:
            values: Tensor of shape `(units,)`.
            others: Tensor of shape `(units,)` for each other block; default 1.
        """
        blocks = [ops.ones_like(values) if others is None else others]
        blocks = blocks * self._num_gates
        blocks[self._candidate] = values
        return ops.concatenate(blocks)


def _is_alive(values: Tensor) -> Tensor:
    """Return 1 where a group variable is not 0, and 0 elsewhere."""
    return ops.cast(ops.not_equal(values, 0.0), values.dtype)


@_register
class VDSimpleRNN(_Recurrent, keras.layers.SimpleRNN):
    """`keras.layers.SimpleRNN` with posteriors over both kernels.

    Arguments, attributes and errors as for `VDLSTM`; there are no gates to
    group.

    Example:
    >>> layer = keras_vd.layers.VDSimpleRNN(4, return_sequences=True)
    >>> tuple(layer(np.zeros((2, 10, 3))).shape)
    (2, 10, 4)
    """

    _available_groups = ("input", "units")
    _num_gates, _candidate = 1, 0


@_register
class VDLSTM(_Recurrent, keras.layers.LSTM):
    """`keras.layers.LSTM` with posteriors over kernel and recurrent kernel.

    Training draws both once per call: all time steps meet the same weights,
    and each direction of a `Bidirectional` has its own. Inference uses the
    posterior means with pruned weights at zero. `estimator` of the posterior
    has no effect.

    Args:
        posterior: See `VDDense`.
        kl_weight: See `VDDense`.
        groups: Tuple of `"input"` (one multiplier for each entry of the
            inputs), `"units"` and `"gates"` (for each gate of each unit),
            with a posterior of their own, so that all weights of a group can
            be pruned together (Lobacheva et al. 2020, arXiv:1911.05585). A
            pruned gate is its activated bias at all times. A unit's multiplier
            acts on its candidate, the part that the gates let in; a pruned
            unit stays 0 if it starts at 0.
        weight_samples: `"batch"` (one sample for the whole batch, as in
            arXiv:1708.00077) or `"sequence"`: one for each sequence, all made
            from one draw by random signs for input and output units
            (Flipout, Wen et al. 2018, arXiv:1803.04386). These are exact
            samples that are uncorrelated, not independent, at the cost of a
            second product per step and without the fused kernels of GPUs.
            Group variables and biases are drawn once per call in both cases.
        bias_posterior: See `VDDense`; the bias is drawn once per call.
        *args: Of `keras.layers.LSTM`.
        **kwargs: Of `keras.layers.LSTM`. `use_cudnn` reads as False on the
            layer; what was passed holds inside its time loop.

    Attributes:
        kernel_posterior: `WeightPosterior` of the cell's kernel.
        recurrent_kernel_posterior: `WeightPosterior`.
        input_group: `WeightPosterior` of the multipliers; `units_group` and
            `gates_group` likewise.

    Input shape:
        `(batch, timesteps, features)`

    Output shape:
        As of `keras.layers.LSTM`.

    Losses:
        In training, for each kernel and each kind of groups: `kl_weight`
        times the KL divergence, whatever the number of time steps.

    Raises:
        ValueError: if an argument is not allowed; in training, if no KL
            weight was set.

    Example:
    >>> layer = keras_vd.layers.VDLSTM(4, groups=("gates",), kl_weight=1e-4)
    >>> tuple(layer(np.zeros((2, 10, 3)), training=True).shape)
    (2, 4)
    """

    _num_gates, _candidate = 4, 2


@_register
class VDGRU(_Recurrent, keras.layers.GRU):
    """`keras.layers.GRU` with posteriors over kernel and recurrent kernel.

    Arguments, attributes and errors as for `VDLSTM`.

    Example:
    >>> layer = keras_vd.layers.VDGRU(4, groups=("units",), kl_weight=1e-4)
    >>> tuple(layer(np.zeros((2, 10, 3)), training=True).shape)
    (2, 4)
    """

    _num_gates, _candidate = 3, 2
