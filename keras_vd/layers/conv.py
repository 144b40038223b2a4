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
        # TensorFlow has only convolutions with channels last on some CPUs.
        is_first = self.data_format == "channels_first"
        if is_first:
            inputs = ops.moveaxis(inputs, 1, -1)
        outputs = ops.conv(inputs, kernel, data_format="channels_last")
        return ops.moveaxis(outputs, -1, 1) if is_first else outputs

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        outputs = self.depthwise_kernel_posterior.project(
            self._linear_op, inputs, training
        )
        outputs = self.pointwise_kernel_posterior.project(
            self._pointwise_op, outputs, training
        )
        return self._add_bias_and_activate(outputs)


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
