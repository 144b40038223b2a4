"""Make channels and hidden units dead, and count what is left without them."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
from keras import layers

_DENSE = (layers.Dense, layers.Conv2D)
_DEPTHWISE = layers.DepthwiseConv2D
_SEPARABLE = layers.SeparableConv2D


def channels(model: keras.Model) -> int:
    """Let a quarter of all channels that layers make be zero, but the outputs.

    A network that normalizes over its channels (ConvNeXt) keeps those: there it
    is a quarter of the hidden units.

    Returns:
        The number of parameters without these channels.
    """
    found = _flat(model)
    last = [x for x in found if isinstance(x, _DENSE)][-1]
    normalizes = any(isinstance(x, layers.LayerNormalization) for x in found)
    total = 0
    for layer in found:
        reads = not normalizes or layer.name.endswith("pointwise_conv_2")
        makes = layer is not last and (
            not normalizes or layer.name.endswith("pointwise_conv_1")
        )
        total += _count(layer, reads, makes)
        if makes:
            _kill(layer)
    return total


def _flat(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """List the layers that models in a model are made of."""
    if not isinstance(layer, keras.Model):
        return [layer]
    return [x for inner in layer.layers for x in _flat(inner)]


def _dead(size: int) -> int:
    # Images have 3 channels, all of which stay.
    return size // 4


def _count(layer: keras.layers.Layer, reads: bool, makes: bool) -> int:
    """Count the parameters without the channels that are dead.

    Args:
        layer: A layer.
        reads: Whether a quarter of what it reads is dead.
        makes: Whether a quarter of what it makes is dead.
    """

    def kept(size: int, is_dead: bool) -> int:
        return size - _dead(size) * is_dead

    shapes = [tuple(x.shape) for x in layer.weights]
    if not isinstance(
        layer, (*_DENSE, _DEPTHWISE, _SEPARABLE, layers.BatchNormalization)
    ):
        return sum(int(np.prod(shape)) for shape in shapes)
    total = 0
    for shape in shapes:
        if len(shape) == 1:
            total += kept(shape[0], makes)
            continue
        *window, inputs, outputs = shape
        size = int(np.prod(window))
        is_depthwise = isinstance(layer, _DEPTHWISE) or (
            isinstance(layer, _SEPARABLE) and size > 1
        )
        total += (
            size
            * kept(inputs, reads)
            * (outputs if is_depthwise else kept(outputs, makes))
        )
    return total


def _kill(layer: keras.layers.Layer) -> None:
    """Zero each fourth channel that a layer makes.

    So do those of whatever it is concatenated with, and added to after that.
    """
    if isinstance(layer, layers.BatchNormalization):
        changed = [layer.gamma, layer.beta, layer.moving_mean]
    elif isinstance(layer, _SEPARABLE):
        changed = [layer.pointwise_kernel, layer.bias]
    elif isinstance(layer, (*_DENSE, _DEPTHWISE)):
        changed = [layer.kernel, layer.bias]
    else:
        return
    for variable in changed:
        if variable is None:
            continue
        values = np.array(keras.ops.convert_to_numpy(variable))
        # The kernel of a depthwise convolution ends in (channels, 1).
        is_depthwise = isinstance(layer, _DEPTHWISE) and values.ndim > 1
        rows = values[..., 0] if is_depthwise else values
        rows[..., 3::4] = 0.0
        variable.assign(values)


def hidden_units(
    narrow: Callable[[], keras.Model],
) -> Callable[[keras.Model], int]:
    """Return what lets the hidden units die that a narrow network has not.

    The two networks have the same weights, of which some of one have twice the
    entries along an axis.

    Args:
        narrow: Makes the narrow network.
    """

    def kill(model: keras.Model) -> int:
        smaller = narrow()
        for one, two in zip(model.weights, smaller.weights, strict=True):
            values = np.array(keras.ops.convert_to_numpy(one))
            for axis, size in enumerate(two.shape):
                if values.shape[axis] != size:
                    # As many as the other has, from the end.
                    np.moveaxis(values, axis, 0)[
                        : values.shape[axis] - size
                    ] = 0
            one.assign(values)
        return int(smaller.count_params())

    return kill
