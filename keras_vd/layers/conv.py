"""Variational convolutions.

In training all of them treat the noise of neighbouring output positions as
independent, although a kernel is one and the same at every position. That is
the usual local reparameterization of convolutions (Molchanov et al. 2017,
arXiv:1701.05369); `estimator="weight"` draws one kernel per call instead.

Input and output shapes, arguments, errors and the meaning of strides, padding,
dilation and data format are those of the Keras layer of the same name;
`posterior` and `kl_weight` are explained in `VDDense`. `groups` is Keras'
number of groups of a grouped convolution where it is an integer, and the names
of `VDDense` where it is a tuple, over channels and filters.
"""

from __future__ import annotations

import math

import keras
from keras import ops

from keras_vd._backend.types import Tensor
from keras_vd.layers.base import Expansion, LinearLayer
from keras_vd.posteriors.binding import Axes

_register = keras.saving.register_keras_serializable(package="keras_vd")


class _Convolution(LinearLayer):
    """Kernel of shape `(*kernel_size, channels / groups, filters)`."""

    def _kernel_axes(self, weight: str) -> Axes:
        return Axes(
            inputs=(-2,),
            outputs=(-1,),
            conv_groups=self.groups,
            channel=self._channel_axis(),
        )

    def _channel_axis(self) -> int:
        return -1 if self.data_format == "channels_last" else 1

    def _linear_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        return self.convolution_op(inputs, kernel)

    def _shared_op(
        self, squares: Tensor, input_factors: Tensor, unit_factors: Tensor
    ) -> Tensor:
        # The sum over the channels of a group, then that over the window.
        axes = self._kernel_axes("kernel")
        totals = _channel_sums(
            squares, input_factors, axes.channel, axes.conv_groups
        )
        ones = ops.ones((*self.kernel_size, 1, axes.conv_groups), squares.dtype)
        return _times_units(
            self._linear_op(totals, ones), unit_factors, axes.channel
        )


class _TransposedConvolution(_Convolution):
    """Kernel of shape `(*kernel_size, filters, channels)`."""

    def _kernel_axes(self, weight: str) -> Axes:
        return Axes(inputs=(-1,), outputs=(-2,), channel=self._channel_axis())

    def _linear_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        return ops.conv_transpose(
            inputs,
            kernel,
            strides=list(self.strides),
            padding=self.padding,
            output_padding=self.output_padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )


class _DepthwiseConvolution(_Convolution):
    """Kernel of shape `(*kernel_size, channels, depth_multiplier)`."""

    def _kernel_axes(self, weight: str) -> Axes:
        return Axes(
            inputs=(-2,), outputs=(-2, -1), channel=self._channel_axis()
        )

    def _linear_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        return ops.depthwise_conv(
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )

    def _shared_op(
        self, squares: Tensor, input_factors: Tensor, unit_factors: Tensor
    ) -> Tensor:
        channels = squares.shape[self._channel_axis()]
        factors = ops.broadcast_to(
            input_factors, (*self.kernel_size, channels, 1)
        )
        return _times_units(
            self._linear_op(squares, factors),
            unit_factors,
            self._channel_axis(),
        )


class _SeparableConvolution(_DepthwiseConvolution):
    """A depthwise kernel, then a pointwise one; each with its own noise."""

    _variational_weights = ("depthwise_kernel", "pointwise_kernel")

    def _kernel_axes(self, weight: str) -> Axes:
        if weight == "depthwise_kernel":
            return super()._kernel_axes(weight)
        return Axes(inputs=(-2,), outputs=(-1,), channel=self._channel_axis())

    def _expansions(self, weight: str) -> dict[str, Expansion]:
        group = "input" if weight == "depthwise_kernel" else "output"
        found = super()._expansions(weight)
        return {name: found[name] for name in found if name == group}

    def _pointwise_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        # On some CPUs TensorFlow has only convolutions with channels last.
        is_first = self.data_format == "channels_first"
        if is_first:
            inputs = ops.moveaxis(inputs, 1, -1)
        outputs = ops.conv(inputs, kernel, data_format="channels_last")
        return ops.moveaxis(outputs, -1, 1) if is_first else outputs

    def _pointwise_shared_op(
        self, squares: Tensor, input_factors: Tensor, unit_factors: Tensor
    ) -> Tensor:
        channel = self._channel_axis()
        totals = _channel_sums(squares, input_factors, channel)
        return _times_units(totals, unit_factors, channel)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        outputs = self.depthwise_kernel_posterior.project(
            self._linear_op, inputs, training, self._shared_op
        )
        outputs = self.pointwise_kernel_posterior.project(
            self._pointwise_op, outputs, training, self._pointwise_shared_op
        )
        return self._add_bias_and_activate(outputs)


def _channel_sums(
    squares: Tensor, factors: Tensor, channel: int, groups: int = 1
) -> Tensor:
    """Sum the channels of every group, each times its factor.

    Args:
        squares: Inputs of a convolution.
        factors: One for each channel of a group, or one for all.
        channel: Axis of the inputs that runs over channels.
        groups: Number of groups of channels, which is that of the sums.
    """
    channel %= len(squares.shape)
    sizes = list(ops.shape(squares))
    sizes[channel : channel + 1] = [groups, sizes[channel] // groups]
    shape = [1] * len(sizes)
    shape[channel + 1] = math.prod(factors.shape)
    grouped = ops.reshape(squares, sizes) * ops.reshape(factors, shape)
    return ops.sum(grouped, axis=channel + 1)


def _times_units(outputs: Tensor, units: Tensor, channel: int) -> Tensor:
    """Multiply what groups of output units have in common with their factors.

    Args:
        outputs: One channel for each group.
        units: Factors of all units.
        channel: Axis of the outputs that runs over channels.
    """
    channel %= len(outputs.shape)
    shape = [1] * len(outputs.shape)
    shape[channel] = math.prod(units.shape)
    if outputs.shape[channel] > 1:
        repeats = shape[channel] // outputs.shape[channel]
        outputs = ops.repeat(outputs, repeats, axis=channel)
    return outputs * ops.reshape(units, shape)


@_register
class VDConv1D(_Convolution, keras.layers.Conv1D):
    """`keras.layers.Conv1D` with a posterior over its kernel.

    Example:
    >>> layer = keras_vd.layers.VDConv1D(4, 3, padding="causal")
    >>> tuple(layer(np.zeros((2, 10, 5))).shape)
    (2, 10, 4)
    """

    def _linear_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        padding = self.padding
        if padding == "causal":
            inputs = ops.pad(inputs, self._compute_causal_padding())
            padding = "valid"
        return ops.conv(
            inputs,
            kernel,
            strides=list(self.strides),
            padding=padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )


@_register
class VDConv2D(_Convolution, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with a posterior over its kernel.

    Example:
    >>> layer = keras_vd.layers.VDConv2D(20, 5, posterior="ard")
    >>> tuple(layer(np.zeros((2, 28, 28, 1))).shape)
    (2, 24, 24, 20)
    """


@_register
class VDConv3D(_Convolution, keras.layers.Conv3D):
    """`keras.layers.Conv3D` with a posterior over its kernel."""


@_register
class VDConv1DTranspose(_TransposedConvolution, keras.layers.Conv1DTranspose):
    """`keras.layers.Conv1DTranspose` with a posterior over its kernel."""


@_register
class VDConv2DTranspose(_TransposedConvolution, keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` with a posterior over its kernel."""


@_register
class VDConv3DTranspose(_TransposedConvolution, keras.layers.Conv3DTranspose):
    """`keras.layers.Conv3DTranspose` with a posterior over its kernel."""


@_register
class VDDepthwiseConv1D(_DepthwiseConvolution, keras.layers.DepthwiseConv1D):
    """`keras.layers.DepthwiseConv1D` with a posterior over its kernel."""


@_register
class VDDepthwiseConv2D(_DepthwiseConvolution, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with a posterior over its kernel."""


@_register
class VDSeparableConv1D(_SeparableConvolution, keras.layers.SeparableConv1D):
    """`keras.layers.SeparableConv1D` with posteriors over both kernels.

    Attributes:
        depthwise_kernel_posterior: `WeightPosterior`.
        pointwise_kernel_posterior: `WeightPosterior`.
    """


@_register
class VDSeparableConv2D(_SeparableConvolution, keras.layers.SeparableConv2D):
    """`keras.layers.SeparableConv2D` with posteriors over both kernels.

    Attributes:
        depthwise_kernel_posterior: `WeightPosterior`.
        pointwise_kernel_posterior: `WeightPosterior`.
    """
