"""Attention layers of all kinds, and Transformer blocks."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import numpy as np
from keras import layers

from tools.random_networks.net import Net, is_fixed

ATTENTION = (layers.MultiHeadAttention, layers.GroupQueryAttention)
_KNOWN = inspect.signature(layers.MultiHeadAttention).parameters


def attention(net: Net, x: Any, source: Any, grouped: bool = False) -> Any:
    """Attention of `x` to `source`, to itself if both are the same."""
    options = {
        "use_bias": not net.chance(3),
        "use_gate": net.chance(4),
        "dropout": net.pick(0.0, 0.0, 0.5),
        "sliding_window": net.pick(None, None, None, 1),
    }
    # Keras 3.10 has neither gates nor windows.
    options = {k: v for k, v in options.items() if k in _KNOWN}
    uses: dict[str, Any] = {}
    # Keras compares the lengths of both sides.
    if x is source or is_fixed(x) == is_fixed(source):
        uses["use_causal_mask"] = net.chance(4)
    if net.chance(5) and is_fixed(x) and is_fixed(source) and not net.is_inside:
        uses["attention_mask"] = net.id_input(2, x.shape[1], source.shape[1])
    if net.chance(5):
        uses["key"] = layers.Dense(source.shape[-1])(source)
    if grouped:
        groups = net.number(1, 2)
        dims, heads = net.number(1, 3), groups * net.number(1, 3)
        options["use_bias"] &= not _has_columns(heads, dims)
        layer = layers.GroupQueryAttention(dims, heads, groups, **options)
        return layer(x, source, **uses)
    heads, dims = net.number(1, 3), net.number(1, 3)
    value_dims = net.pick(None, net.number(1, 3))
    options["use_bias"] &= not _has_columns(heads, dims, value_dims)
    layer = layers.MultiHeadAttention(
        heads,
        dims,
        value_dim=value_dims,
        output_shape=net.pick(None, None, net.number(1, 4)),
        **options,
    )
    return layer(x, source, **uses)


def _has_columns(heads: int, *dims: int | None) -> bool:
    """Whether biases have the shape `(heads, 1)`.

    Keras on TensorFlow takes them for biases of the steps if there are as many.
    """
    return heads > 1 and 1 in dims


def dot_attention(net: Net, x: Any) -> Any:
    """Attention without weights, or with a scale."""
    return net.pick(
        layers.Attention(use_scale=net.chance()), layers.AdditiveAttention()
    )([x, x])


def transformer_block(net: Net, x: Any) -> Any:
    """Attention and a feed-forward pair, each between norm and sum."""
    width = x.shape[-1]

    def add(y: Any) -> Any:
        y = y if y.shape[-1] == width else layers.Dense(width)(y)
        return x + y if net.chance() else layers.Add()([x, y])

    normed = layers.LayerNormalization(epsilon=0.1)(x)
    x = add(attention(net, normed, normed))
    y = layers.LayerNormalization(epsilon=0.1)(x)
    y = layers.Dense(net.number(1, 5), net.pick("relu", "gelu"))(y)
    return add(layers.Dense(width)(y))


def thin_out_heads(
    layer: keras.layers.Layer, generator: np.random.Generator, rate: float
) -> None:
    """Zeros at this rate of heads, and of dimensions of single heads."""
    for name in ("query", "key", "value"):
        projection = getattr(layer, f"_{name}_dense")
        _, heads, dims = projection.kernel.shape
        kept = generator.uniform(size=(heads, dims)) >= rate
        projection.kernel.assign(projection.kernel * kept)
        if projection.bias is not None:
            # Some of them stay constant, others zero.
            kept |= generator.uniform(size=kept.shape) < 0.3
            projection.bias.assign(projection.bias * kept)
    output = layer._output_dense.kernel
    kept = generator.uniform(size=output.shape[:2]) >= rate / 2
    kept &= generator.uniform(size=(output.shape[0], 1)) >= rate / 2
    output.assign(output * kept[..., None])
