"""Layers that work along axes of space: convolutions, pooling, padding."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from tools.random_networks.net import Net
from tools.random_networks.single import single

# Of sizes below this, nothing is cut off.
_LEAST = 2
_MOST_ENTRIES = 400


def _sizes(x: keras.KerasTensor, first: bool) -> tuple[int | None, ...]:
    return tuple(x.shape[2:] if first else x.shape[1:-1])


def _comes_first(net: Net, x: keras.KerasTensor) -> bool:
    """Whether channels come first; TensorFlow has no such kernels on CPU."""
    chance = net.chance(10)
    known = None not in x.shape[1:]
    return chance and known and keras.backend.backend() != "tensorflow"


def _format(first: bool) -> str:
    return "channels_first" if first else "channels_last"


def _window(net: Net, sizes: tuple[int | None, ...], most: int = 3) -> Any:
    return tuple(
        net.number(1, most if size is None else min(most, size))
        for size in sizes
    )


def _is_large(x: keras.KerasTensor) -> bool:
    product = 1
    for size in x.shape[1:]:
        product *= size or 8
    return product > _MOST_ENTRIES


def _geometry(net: Net, x: Any, first: bool, dims: int) -> dict[str, Any]:
    """Arguments of a convolution that fit a tensor."""
    sizes = _sizes(x, first)
    options: dict[str, Any] = {
        "kernel_size": _window(net, sizes),
        "padding": net.pick("valid", "same"),
        "data_format": _format(first),
    }
    if None in sizes:
        options["padding"] = "same"
    kind = net.number(0, 5)
    if kind == 0 and None not in sizes:
        options["strides"] = 2
    elif kind == 1:
        options["dilation_rate"] = 2
        options["padding"] = "same"
    return options


def _conv(net: Net, x: Any, dims: int) -> Any:
    first = _comes_first(net, x)
    options = _geometry(net, x, first, dims)
    if dims == 1 and not first and net.chance(3):
        options["padding"] = "causal"
    width = x.shape[1] if first else x.shape[-1]
    filters = net.width()
    if width > 1 and net.chance(6):
        sizes = [n for n in range(2, width + 1) if width % n == 0]
        options["groups"] = net.pick(*sizes)
        filters = options["groups"] * net.number(1, 2)
    return getattr(layers, f"Conv{dims}D")(
        filters, activation=net.activation(), **options, **net.weighted()
    )


def _transpose(net: Net, x: Any, dims: int) -> Any:
    if _is_large(x):
        return None
    first = _comes_first(net, x)
    options = _geometry(net, x, first, dims)
    options.pop("dilation_rate", None)
    return getattr(layers, f"Conv{dims}DTranspose")(
        net.width(), activation=net.activation(), **options, **net.weighted()
    )


def _depthwise(net: Net, x: Any, dims: int) -> Any:
    first = _comes_first(net, x)
    options = _geometry(net, x, first, dims)
    weighted = net.weighted()
    weighted.pop("kernel_regularizer", None)
    return getattr(layers, f"DepthwiseConv{dims}D")(
        depth_multiplier=net.number(1, 2),
        activation=net.activation(),
        **_square(options),
        **weighted,
    )


def _square(options: dict[str, Any]) -> dict[str, Any]:
    """The same with a window of equal sides."""
    return {**options, "kernel_size": min(options["kernel_size"])}


def _separable(net: Net, x: Any, dims: int) -> Any:
    first = _comes_first(net, x)
    options = _geometry(net, x, first, dims)
    weighted = net.weighted()
    weighted.pop("kernel_regularizer", None)
    return getattr(layers, f"SeparableConv{dims}D")(
        net.width(),
        depth_multiplier=net.number(1, 2),
        activation=net.activation(),
        **_square(options),
        **weighted,
    )


def _pooling(net: Net, x: Any, dims: int, kind: str) -> Any:
    first = _comes_first(net, x)
    sizes = _sizes(x, first)
    padding, strides = net.pick("valid", "same"), net.pick(1, 1, 2)
    if None in sizes:
        padding, strides = "same", 1
    window = min(_window(net, sizes))
    return getattr(layers, f"{kind}Pooling{dims}D")(
        window, strides, padding, data_format=_format(first), **net.common()
    )


def _global(net: Net, x: Any, dims: int, kind: str) -> Any:
    first = _comes_first(net, x)
    return getattr(layers, f"Global{kind}Pooling{dims}D")(
        data_format=_format(first), keepdims=net.chance(4), **net.common()
    )


def _padding(net: Net, x: Any, dims: int) -> Any:
    if _is_large(x):
        return None
    return getattr(layers, f"ZeroPadding{dims}D")(net.number(1, 2))


def _cropping(net: Net, x: Any, dims: int) -> Any:
    sizes = _sizes(x, False)
    if None in sizes or min(sizes) < _LEAST:
        return None
    sides = [(1, 0)] * dims
    return getattr(layers, f"Cropping{dims}D")(sides[0] if dims == 1 else sides)


def _up_sampling(net: Net, x: Any, dims: int) -> Any:
    if _is_large(x):
        return None
    options = {}
    if dims == 2:
        known = ["nearest", "bilinear", "bicubic", "lanczos3"]
        if keras.backend.backend() == "torch":
            known.pop()
        options["interpolation"] = net.pick(*known)
    return getattr(layers, f"UpSampling{dims}D")(2, **options)


def _spatial_dropout(net: Net, x: Any, dims: int) -> Any:
    return getattr(layers, f"SpatialDropout{dims}D")(0.5)


_FAMILIES = {
    "Conv{}D": (_conv, {}),
    "Conv{}DTranspose": (_transpose, {}),
    "DepthwiseConv{}D": (_depthwise, {}),
    "SeparableConv{}D": (_separable, {}),
    "MaxPooling{}D": (_pooling, {"kind": "Max"}),
    "AveragePooling{}D": (_pooling, {"kind": "Average"}),
    "GlobalMaxPooling{}D": (_global, {"kind": "Max"}),
    "GlobalAveragePooling{}D": (_global, {"kind": "Average"}),
    "ZeroPadding{}D": (_padding, {}),
    "Cropping{}D": (_cropping, {}),
    "UpSampling{}D": (_up_sampling, {}),
    "SpatialDropout{}D": (_spatial_dropout, {}),
}


def _register() -> None:
    for pattern, (function, options) in _FAMILIES.items():
        for dims in (1, 2, 3):
            name = pattern.format(dims)
            if hasattr(layers, name):
                single(name, dims + 2)(
                    lambda net, x, f=function, d=dims, o=options: f(
                        net, x, d, **o
                    )
                )


_register()
