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
import numpy as np
from keras import ops

from keras_vd._backend.types import Tensor
from keras_vd.layers.base import Expansion, LinearLayer
from keras_vd.posteriors.binding import Axes

# Along longer axes, products with all inputs cost more than they save.
_MAX_WINDOWED_SIZE = 512

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
        sums = self._window_sums(totals, axes.conv_groups)
        return _times_units(sums, unit_factors, axes.channel)

    def _window_sums(self, totals: Tensor, groups: int) -> Tensor:
        """Apply the convolution with a kernel of ones to each group's total.

        Args:
            totals: Inputs of the convolution with one channel for each group.
            groups: Number of groups.
        """
        is_last = self.data_format == "channels_last"
        first = 1 if is_last else 2
        sizes = totals.shape[first : first + self.rank]
        if any(size is None or size > _MAX_WINDOWED_SIZE for size in sizes):
            ones = ops.ones((*self.kernel_size, 1, groups), totals.dtype)
            return self._linear_op(totals, ones)
        # A product with a matrix of zeros and ones along each axis. Libraries
        # are not made for convolutions of a single channel.
        options = zip(
            sizes,
            self.kernel_size,
            self.strides,
            self.dilation_rate,
            strict=True,
        )
        for i, option in enumerate(options):
            windows = _windows(*option, padding=self.padding)
            totals = _multiply_along(first + i, totals, windows)
        return totals


class _TransposedConvolution(_Convolution):
    """Kernel of shape `(*kernel_size, filters, channels)`."""

    def _window_sums(self, totals: Tensor, groups: int) -> Tensor:
        ones = ops.ones((*self.kernel_size, 1, 1), totals.dtype)
        return self._linear_op(totals, ones)

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
        return self._add_bias_and_activate(outputs, training)


def _windows(
    size: int, kernel_size: int, stride: int, dilation: int, padding: str
) -> np.ndarray:
    """Tell which inputs each output of a convolution reads, along one axis.

    Args:
        size: Number of inputs.
        kernel_size: Number of inputs that an output reads.
        stride: Step from one output to the next.
        dilation: Step from one of its inputs to the next.
        padding: `"valid"`, `"same"` or `"causal"`.

    Returns:
        Float32 array of shape `(size, number of outputs)` of zeros and ones.
    """
    reach = dilation * (kernel_size - 1)
    if padding == "same":
        outputs = -(-size // stride)
        before = max(0, (outputs - 1) * stride + reach + 1 - size) // 2
    else:
        before = reach if padding == "causal" else 0
        outputs = (size + before - reach - 1) // stride + 1
    starts = stride * np.arange(outputs) - before
    distances = np.arange(size)[:, None] - starts
    is_read = (distances >= 0) & (distances <= reach)
    return (is_read & (distances % dilation == 0)).astype("float32")


def _multiply_along(axis: int, tensor: Tensor, matrix: np.ndarray) -> Tensor:
    """Multiply a tensor with a matrix, along one axis of the tensor.

    Args:
        axis: The axis; not the first.
        tensor: Tensor of sizes that are known, but for the first.
        matrix: Array of shape `(size along the axis, new size)`.
    """
    before, after = tensor.shape[1:axis], tensor.shape[axis + 1 :]
    size, new_size = matrix.shape
    rest = math.prod(after)
    factor = ops.cast(ops.convert_to_tensor(matrix), tensor.dtype)
    if rest == 1:
        rows = ops.reshape(tensor, (-1, size))
        product = ops.matmul(rows, factor)
    else:
        slices = ops.reshape(tensor, (-1, size, rest))
        product = ops.matmul(ops.transpose(factor), slices)
    return ops.reshape(product, (-1, *before, new_size, *after))


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
    """`keras.layers.Conv3D` with a posterior over its kernel.

    Example:
    >>> layer = keras_vd.layers.VDConv3D(20, 3)
    >>> tuple(layer(np.zeros((2, 8, 8, 8, 1))).shape)
    (2, 6, 6, 6, 20)
    """


@_register
class VDConv1DTranspose(_TransposedConvolution, keras.layers.Conv1DTranspose):
    """`keras.layers.Conv1DTranspose` with a posterior over its kernel.

    Example:
    >>> layer = keras_vd.layers.VDConv1DTranspose(20, 4, strides=2)
    >>> tuple(layer(np.zeros((2, 8, 3))).shape)
    (2, 18, 20)
    """


@_register
class VDConv2DTranspose(_TransposedConvolution, keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` with a posterior over its kernel.

    Example:
    >>> layer = keras_vd.layers.VDConv2DTranspose(20, 4, strides=2)
    >>> tuple(layer(np.zeros((2, 8, 8, 3))).shape)
    (2, 18, 18, 20)
    """


@_register
class VDConv3DTranspose(_TransposedConvolution, keras.layers.Conv3DTranspose):
    """`keras.layers.Conv3DTranspose` with a posterior over its kernel.

    Example:
    >>> layer = keras_vd.layers.VDConv3DTranspose(5, 2, strides=2)
    >>> tuple(layer(np.zeros((2, 4, 4, 4, 3))).shape)
    (2, 8, 8, 8, 5)
    """


@_register
class VDDepthwiseConv1D(_DepthwiseConvolution, keras.layers.DepthwiseConv1D):
    """`keras.layers.DepthwiseConv1D` with a posterior over its kernel.

    Example:
    >>> layer = keras_vd.layers.VDDepthwiseConv1D(5)
    >>> tuple(layer(np.zeros((2, 28, 3))).shape)
    (2, 24, 3)
    """


@_register
class VDDepthwiseConv2D(_DepthwiseConvolution, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with a posterior over its kernel.

    Example:
    >>> layer = keras_vd.layers.VDDepthwiseConv2D(5)
    >>> tuple(layer(np.zeros((2, 28, 28, 3))).shape)
    (2, 24, 24, 3)
    """


@_register
class VDSeparableConv1D(_SeparableConvolution, keras.layers.SeparableConv1D):
    """`keras.layers.SeparableConv1D` with posteriors over both kernels.

    Attributes:
        depthwise_kernel_posterior: `WeightPosterior`.
        pointwise_kernel_posterior: `WeightPosterior`.

    Example:
    >>> layer = keras_vd.layers.VDSeparableConv1D(20, 5)
    >>> tuple(layer(np.zeros((2, 28, 3))).shape)
    (2, 24, 20)
    """


@_register
class VDSeparableConv2D(_SeparableConvolution, keras.layers.SeparableConv2D):
    """`keras.layers.SeparableConv2D` with posteriors over both kernels.

    Attributes:
        depthwise_kernel_posterior: `WeightPosterior`.
        pointwise_kernel_posterior: `WeightPosterior`.

    Example:
    >>> layer = keras_vd.layers.VDSeparableConv2D(20, 5)
    >>> tuple(layer(np.zeros((2, 28, 28, 3))).shape)
    (2, 24, 24, 20)
    """
