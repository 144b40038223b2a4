"""Multiplications and additions that a plain model does for one example."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import keras

from keras_vd._backend.keras_internals import (
    attention_projections,
    functional_part,
)
from keras_vd.shrinking.graph import ATTENTION, Node, Tensor, read_graph

_CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
_RECURRENT = (keras.layers.SimpleRNN, keras.layers.LSTM, keras.layers.GRU)


def count_macs(model: keras.Model) -> int | None:
    """Multiply-accumulate operations of one example.

    Those of dense, einsum, convolution, recurrent and attention layers; all
    others count as nothing.

    Args:
        model: A built Sequential or Functional model of plain Keras layers.

    Returns:
        Their number; None where a spatial size or the number of time steps is
        not known.
    """
    functional = functional_part(model)
    if functional is None:
        return None
    return total_macs(read_graph(functional).nodes)


def total_macs(nodes: Iterable[Node]) -> int | None:
    """The sum over some uses of layers, None if one of them is not known."""
    counts = [node_macs(node, node.operation) for node in nodes]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def node_macs(node: Node, layer: Any) -> int | None:
    """Of one use of a layer, or of a layer that another one wraps."""
    if isinstance(layer, keras.layers.TimeDistributed):
        return node_macs(node, layer.layer)
    if isinstance(layer, keras.layers.Bidirectional):
        parts = [
            node_macs(node, one)
            for one in (layer.forward_layer, layer.backward_layer)
        ]
        return None if None in parts else sum(x for x in parts if x is not None)
    if isinstance(layer, _RECURRENT):
        cell = layer.cell
        weights = (cell.kernel, cell.recurrent_kernel)
        return _product((node.inputs[0].shape[1], sum(map(_size, weights))))
    if isinstance(layer, ATTENTION):
        return _attention_macs(layer, node.inputs)
    if isinstance(layer, keras.layers.EinsumDense):
        return _einsum_macs(layer, node)
    before = node.inputs[0].shape[1:-1] if node.inputs else ()
    after = node.outputs[0].shape[1:-1]
    if getattr(layer, "data_format", None) == "channels_first":
        before, after = node.inputs[0].shape[2:], node.outputs[0].shape[2:]
    if isinstance(layer, (keras.layers.Dense, *_TRANSPOSED)):
        return _product((*before, _size(layer.kernel)))
    if isinstance(layer, (*_CONVOLUTIONS, *_DEPTHWISE)):
        return _product((*after, _size(layer.kernel)))
    if isinstance(layer, _SEPARABLE):
        kernels = (layer.depthwise_kernel, layer.pointwise_kernel)
        return _product((*after, sum(map(_size, kernels))))
    return 0


def _attention_macs(layer: Any, inputs: list[Tensor]) -> int | None:
    """Of the projections, the scores and the sums weighted by them."""
    queries, keys = inputs[0].shape[1:-1], inputs[1].shape[1:-1]
    found = attention_projections(layer)
    kernels = {name: one.kernel.shape for name, one in found.items()}
    # (inputs, heads, dims) and (heads, dims, outputs)
    dims = kernels["query"][2] + kernels["output"][1]
    num_heads = kernels["output"][0]
    sizes = {name: math.prod(shape) for name, shape in kernels.items()}
    from_keys = sizes.pop("key") + sizes.pop("value")
    # Axes that are not attended along are common to both.
    axes = getattr(layer, "attention_axes", (1,))
    if not all(0 < axis <= len(keys) for axis in axes):
        return None
    attended = [keys[axis - 1] for axis in axes]
    parts = (
        _product((*queries, sum(sizes.values()))),
        _product((*keys, from_keys)),
        _product((*queries, *attended, num_heads * dims)),
    )
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _einsum_macs(layer: keras.layers.EinsumDense, node: Node) -> int | None:
    """The product of the sizes of all axes that the equation names."""
    shape = node.inputs[0].shape
    inputs, kernel = layer.equation.split("->")[0].split(",")
    # Axes behind "..." take part too, and stand first or last.
    named = len(inputs.replace("...", ""))
    if inputs.endswith("..."):
        sizes, rest = shape[:named], shape[named:]
    else:
        start = len(shape) - named
        sizes, rest = shape[start:], shape[:start]
    letters = dict(zip(inputs.replace("...", ""), sizes, strict=True))
    letters |= zip(kernel, layer.kernel.shape, strict=True)
    first = inputs[0] if inputs[0] != "." else None
    every = [size for letter, size in letters.items() if letter != first]
    return _product((*every, *(rest[1:] if first is None else rest)))


def _size(weight: keras.Variable) -> int:
    return math.prod(weight.shape)


def _product(sizes: Iterable[int | None]) -> int | None:
    sizes = list(sizes)
    known = [size for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else None
