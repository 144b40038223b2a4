"""Layers in a row that have their channels on axis 1."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tools.random_networks.graphs import graph
from tools.random_networks.net import Net, is_fixed

_FIRST = {"data_format": "channels_first"}


@graph("channels first", 3, 4)
def channels_first(net: Net, x: Any, pool: list) -> Any:
    """A stack from one change of axes to another, or as far as it goes."""
    if keras.backend.backend() == "tensorflow" or not is_fixed(x):
        return None  # It has no such convolutions on CPUs.
    last = len(x.shape) - 1
    if net.chance():
        axes = (last, *range(1, last))
        x = net.pick(
            lambda: layers.Permute(axes)(x),
            lambda: ops.transpose(x, (0, *axes)),
        )()
    x = _conv(net, x)
    for _ in range(net.number(1, 4)):
        x = _step(net, x)
    return _end(net, _conv(net, x) if net.chance() else x)


def _conv(net: Net, x: Any) -> Any:
    dims = len(x.shape) - 2
    kind = net.pick("Conv", "Conv", "SeparableConv", "Transpose", "Depthwise")
    options = {"activation": net.activation(), **_FIRST, **net.common()}
    options["padding"] = net.pick("valid", "same")
    size = net.number(1, min(2, *x.shape[2:]))
    if kind == "Depthwise":
        layer = getattr(layers, f"DepthwiseConv{dims}D")
        return layer(size, **options)(x)
    if kind == "Transpose":
        kind, options["padding"] = f"Conv{dims}DTranspose", "same"
    else:
        kind = f"{kind}{dims}D"
    filters = net.number(2, 5)
    if kind == f"Conv{dims}D" and x.shape[1] % 2 == 0 and net.chance(5):
        filters, options["groups"] = 4, 2
    options["use_bias"] = not net.chance(3)
    return net.apply(getattr(layers, kind)(filters, size, **options), x)


def _step(net: Net, x: Any) -> Any:
    dims, width = len(x.shape) - 2, x.shape[1]
    numbers = net.generator.integers(-2, 3, (width, *(1,) * dims)) / 2.0
    numbers = numbers.astype("float32")
    sizes = [n for n in range(1, width + 1) if width % n == 0]

    def layer(name: str, *arguments: Any) -> Any:
        return getattr(layers, f"{name}{dims}D")(*arguments, **_FIRST)(x)

    def again() -> Any:
        y = layers.Activation("sigmoid")(x)
        axis = net.pick(1, 1, -1)
        return net.pick(
            lambda: layers.Add()([x, y]),
            lambda: x * y,
            lambda: layers.Concatenate(axis=axis)([x, y]),
            lambda: ops.concatenate([y, x], axis=axis),
        )()

    return net.pick(
        *(lambda: _conv(net, x),) * 3,
        *(again,) * 2,
        lambda: layers.BatchNormalization(axis=1, epsilon=0.01)(x),
        lambda: layers.GroupNormalization(
            net.pick(*sizes), axis=1, epsilon=0.1
        )(x),
        lambda: layers.Activation(net.activation(mixes=False))(x),
        lambda: layers.PReLU(shared_axes=net.pick(None, [*range(2, dims + 2)]))(
            x
        ),
        lambda: layers.Rescaling(numbers.tolist(), 0.5)(x),
        lambda: layers.Normalization(axis=None)(x),
        lambda: x + numbers,
        lambda: ops.relu(x),
        lambda: layer("MaxPooling", 1),
        lambda: layer("AveragePooling", 2, 1, "same"),
        lambda: layer("ZeroPadding", 1) if dims == 2 else x,
        lambda: layer("UpSampling", 2) if dims == 2 else x,
        lambda: layer("SpatialDropout", 0.5) if dims == 2 else x,
        lambda: ops.mean(x, axis=-1, keepdims=True),
        lambda: ops.softmax(x, axis=1),
    )()


def _end(net: Net, x: Any) -> Any:
    dims = len(x.shape) - 2
    axes = (*range(2, dims + 2), 1)

    def pooled() -> Any:
        kind = net.pick("Average", "Max")
        return getattr(layers, f"Global{kind}Pooling{dims}D")(**_FIRST)(x)

    def flat() -> Any:
        if int(np.prod(x.shape[1:])) > 1000:
            return pooled()
        return layers.Flatten(net.pick("channels_first", "channels_last"))(x)

    return net.pick(
        *(flat,) * 2,
        *(pooled,) * 2,
        lambda: ops.mean(x, axis=axes[:-1]),
        lambda: layers.Permute(axes)(x),
        lambda: ops.transpose(x, (0, *axes)),
        lambda: x,
    )()
