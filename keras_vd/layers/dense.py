"""Variational dense layers."""

from __future__ import annotations

import keras
from keras import ops

from keras_vd._backend.types import Tensor
from keras_vd.layers.base import LinearLayer
from keras_vd.posteriors.binding import Axes


@keras.saving.register_keras_serializable(package="keras_vd")
class VDDense(LinearLayer, keras.layers.Dense):
    """`keras.layers.Dense` with a posterior over its kernel.

    Training: y ~ N(x @ theta, x^2 @ sigma2), independent for every example,
    then bias and activation. Inference: x @ theta with pruned weights at zero.

    Args:
        posterior: `"sparse_vd"`, `"vd"`, `"ard"`, `"gaussian"` or an object
            from `keras_vd.posteriors`.
        kl_weight: Float or None: multiplier of the KL in nats, normally
            1 / (number of training examples). None: set by `KLAnnealing`.
        groups: Tuple of `"input"`, `"output"`: whether all weights of an
            input or output unit share a multiplier with a posterior of its
            own, so that they can go together. A pruned output unit becomes
            its activated bias.
        bias_posterior: As `posterior`, for the bias; its noise is that of a
            weight whose input is 1, one draw for each example. None: the bias
            is no random variable.
        *args: Of `keras.layers.Dense`.
        **kwargs: Of `keras.layers.Dense`.

    Attributes:
        kernel_posterior: `WeightPosterior` of the kernel.
        bias_posterior: That of the bias, or None.
        input_group: `WeightPosterior` of the multipliers; `output_group`
            likewise.

    Input shape:
        `(batch, ..., input_dim)`

    Output shape:
        `(batch, ..., units)`

    Losses:
        One scalar in training, `kl_weight` times the KL divergence, for the
        kernel and for each kind of groups.

    Raises:
        ValueError: if an argument is not allowed; in training, if no KL
            weight was set.

    Example:
    >>> layer = keras_vd.layers.VDDense(10, kl_weight=1 / 60000)
    >>> tuple(layer(np.zeros((2, 784)), training=True).shape)
    (2, 10)
    """

    def _kernel_axes(self, weight: str) -> Axes:
        return Axes(inputs=(0,), outputs=(1,))

    def _linear_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        return ops.matmul(inputs, kernel)

    def _shared_op(
        self, squares: Tensor, input_factors: Tensor, unit_factors: Tensor
    ) -> Tensor:
        if input_factors.shape[0] == 1:
            total = ops.sum(squares, axis=-1, keepdims=True) * input_factors
        else:
            total = ops.matmul(squares, input_factors)
        return total * unit_factors[0]


@keras.saving.register_keras_serializable(package="keras_vd")
class VDEinsumDense(LinearLayer, keras.layers.EinsumDense):
    """`keras.layers.EinsumDense` with a posterior over its kernel.

    Arguments, losses and errors as for `VDDense`; axes of the kernel that the
    equation sums over are its inputs, the others its output units.

    Example:
    >>> layer = keras_vd.layers.VDEinsumDense("abc,cd->abd", (None, 4))
    >>> tuple(layer(np.zeros((2, 3, 5))).shape)
    (2, 3, 4)
    """

    def _axes(self) -> tuple[str, str, str, str]:
        """Return the letters of the axes in the equation.

        Returns:
            Those of the inputs, those of the inputs that the kernel or the
            outputs share, those of the kernel and those of the outputs.
        """
        operands, outputs = self.equation.replace(" ", "").split("->")
        inputs, kernel = operands.split(",")
        shared = [axis for axis in inputs if axis in kernel + outputs]
        return inputs, "".join(shared), kernel, outputs

    def _kernel_axes(self, weight: str) -> Axes:
        _, inputs, kernel, outputs = self._axes()
        summed = [axis for axis in kernel if axis not in outputs]
        last_summed = max((inputs.index(axis) for axis in summed), default=-1)
        written = [i for i, axis in enumerate(kernel) if axis in outputs]
        return Axes(
            inputs=tuple(kernel.index(axis) for axis in summed),
            outputs=tuple(written),
            channel=last_summed - len(inputs),
        )

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        # Along an axis that only the inputs have, every entry meets the same
        # weight with the same noise. So the entries must be summed before the
        # local reparameterization squares them.
        inputs_axes, shared, _, _ = self._axes()
        if inputs_axes != shared:
            # Sums of integers may overflow, and Keras sums no integers here.
            dtype = keras.backend.result_type(inputs.dtype, self.kernel.dtype)
            inputs = ops.cast(inputs, dtype)
            inputs = ops.einsum(f"{inputs_axes}->{shared}", inputs)
        return super().call(inputs, training=training)

    def _linear_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        _, shared, kernel_axes, outputs = self._axes()
        return ops.einsum(f"{shared},{kernel_axes}->{outputs}", inputs, kernel)

    def _shared_op(
        self, squares: Tensor, input_factors: Tensor, unit_factors: Tensor
    ) -> Tensor:
        _, shared, kernel_axes, outputs = self._axes()
        # One unit, but all along axes that belong to inputs and units.
        lengths = zip(kernel_axes, self.kernel.shape, strict=True)
        shape = [n if axis in shared else 1 for axis, n in lengths]
        total = self._linear_op(squares, ops.broadcast_to(input_factors, shape))
        # The unit axes in the order of the outputs; those in front have size 1.
        order = [axis for axis in outputs if axis in kernel_axes]
        summed = [axis for axis in kernel_axes if axis not in outputs]
        unit_factors = ops.transpose(
            unit_factors, [kernel_axes.index(axis) for axis in summed + order]
        )
        sizes = dict(zip(order, unit_factors.shape[len(summed) :], strict=True))
        rest = len(total.shape) - len(outputs.replace("...", ""))
        written = outputs.replace("...", "." * rest)
        return total * ops.reshape(
            unit_factors, [sizes.get(axis, 1) for axis in written]
        )
