"""What joins tensors or takes several layers: sums, operators, nested models.

Each function returns a new tensor from a tensor `x` and the pool of those
that there are, or None where there is nothing to make.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from keras_vd._backend.keras_internals import LayerScale
from tools.random_networks import attention as attentions
from tools.random_networks import recurrent
from tools.random_networks.net import Certain, Net, centred
from tools.random_networks.single import ANY, LAYERS

# What has units of its own, which may be dead: half of what is drawn.
WITH_UNITS = frozenset(
    "Dense EinsumDense Conv1D Conv2D Conv3D Conv1DTranspose Conv2DTranspose "
    "SeparableConv1D SeparableConv2D SimpleRNN LSTM GRU Bidirectional residual "
    "pair MultiHeadAttention".split()
)
Grow = Callable[[Net, keras.KerasTensor, list], Any]
GRAPHS: dict[str, Graph] = {}


@dataclasses.dataclass
class Graph:
    """A way to go on from a tensor.

    Attributes:
        ranks: Of the tensors that it starts from.
        grow: Returns the new tensor.
    """

    ranks: tuple[int, ...]
    grow: Grow


def graph(name: str, *ranks: int) -> Callable[[Grow], Grow]:
    def register(grow: Grow) -> Grow:
        GRAPHS[name] = Graph(ranks or ANY, grow)
        return grow

    return register


def fitting(net: Net, x: Any, pool: list) -> Any:
    """Another tensor of the shape of `x`, made if need be."""
    others = [y for y in pool if y.shape[:-1] == x.shape[:-1]]
    y = net.pick(*others)
    if y.shape[-1] != x.shape[-1]:
        y = layers.Dense(x.shape[-1], use_bias=net.chance())(y)
    return y


def _merging(name: str, count: int) -> None:
    @graph(name)
    def merge(net, x, pool):
        tensors = [fitting(net, x, pool) for _ in range(count - 1)]
        return net.apply(getattr(layers, name)(), [x, *tensors])


for _name in ("Add", "Average", "Maximum", "Minimum", "Multiply"):
    _merging(_name, 3 if _name == "Add" else 2)
_merging("Subtract", 2)


@graph("residual")
def residual(net, x, pool):
    y = layers.Dense(net.width(), net.activation())(x)
    y = layers.Dense(x.shape[-1])(y)
    return net.pick(
        lambda: layers.Add()([x, y]), lambda: x + y, lambda: y - x
    )()


@graph("Concatenate")
def concatenate(net, x, pool):
    others = [y for y in pool if y.shape[:-1] == x.shape[:-1]]
    tensors = [x, *(net.pick(*others) for _ in range(net.number(1, 2)))]
    if net.chance(5):
        return ops.concatenate(tensors, axis=-1)
    return layers.Concatenate(**net.common())(tensors)


@graph("masked branches", 3)
def masked_branches(net, x, pool):
    """Branches with masks or without, and what heeds their common one."""
    if net.is_inside:
        return None  # It has no inputs of its own.
    words, width = net.number(3, 6), net.number(1, 4)
    ids, more = (net.id_input(words, x.shape[1]) for _ in range(2))
    masked = layers.Embedding(words, net.width(), mask_zero=not net.chance(8))
    other = net.pick(x, masked(more), layers.Embedding(words, 2)(more))
    parts = [layers.Dense(width), layers.Dense(width)]
    a, b = (
        part(y) for part, y in zip(parts, (masked(ids), other), strict=True)
    )
    net.lively += [masked, *parts]
    if not net.chance(4):
        net.silent.append(net.pick(*parts))
    names = (*("Add", "Concatenate") * 3, "Average", "Maximum", "Multiply")
    y = getattr(layers, net.pick(*names))()([a, b] if net.chance() else [b, a])
    attention, lstm = layers.MultiHeadAttention(2, 2), layers.LSTM(2)
    net.lively += [attention, lstm]
    return net.pick(
        *(lambda: attention(y, y),) * 2,
        # Nothing after it takes the mask as an argument.
        lambda: ops.max(attention(y, y), axis=1),
        lambda: layers.GlobalAveragePooling1D()(y),
        lambda: lstm(y),
        lambda: y,
    )()


@graph("Concatenate, other axes", 3, 4)
def concatenate_elsewhere(net, x, pool):
    return layers.Concatenate(axis=1)([x, fitting(net, x, pool)])


@graph("broadcast", 3, 4)
def broadcast(net, x, pool):
    """A sum or product with a tensor that has fewer positions."""
    y = layers.Dense(x.shape[-1], "sigmoid")(ops.mean(x, axis=1, keepdims=True))
    return net.pick(
        lambda: layers.Multiply()([x, y]),
        lambda: layers.Add()([y, x]),
        lambda: x * y,
        lambda: x - y,
    )()


_BINARY = {
    "x + y": lambda x, y: x + y,
    "x - y": lambda x, y: x - y,
    "x * y": lambda x, y: x * y,
    "ops.maximum": ops.maximum,
    "ops.minimum": ops.minimum,
    # Of what is not near 0, or not negative.
    "x / y": lambda x, y: x / (1.0 + ops.abs(y)),
    "ops.divide": lambda x, y: ops.divide(x, 2.0 + ops.square(y)),
    "x ** y": lambda x, y: ops.abs(x) ** ops.sigmoid(y),
}
_UNARY = {
    f"ops.{name}": getattr(ops, name)
    for name in (
        *("relu", "sigmoid", "silu", "gelu", "elu", "leaky_relu", "tanh"),
        *("relu6", "hard_sigmoid", "hard_silu", "hard_tanh", "softplus"),
        *("softsign", "selu", "celu", "log_sigmoid", "negative", "absolute"),
        *("abs", "square", "sin", "cos", "sign", "stop_gradient", "copy"),
    )
} | {
    "ops.exp": lambda x: ops.exp(-ops.abs(x)),
    "ops.sqrt": lambda x: ops.sqrt(ops.abs(x)),
    "ops.log": lambda x: ops.log(1.0 + ops.abs(x)),
    "ops.log1p": lambda x: ops.log1p(ops.square(x)),
    "ops.reciprocal": lambda x: ops.reciprocal(1.0 + ops.exp(x)),
    "ops.clip": lambda x: ops.clip(x, -0.5, 0.75),
    "hard swish": lambda x: x * (ops.relu6(x + 3.0) * (1.0 / 6.0)),
}


def _operators() -> None:
    for name, function in _BINARY.items():

        @graph(name)
        def binary(net, x, pool, function=function):
            if net.chance(3):
                number = net.pick(0.0, 1.0, -0.5, 2)
                if net.chance(3):
                    return function(number, x)
                return function(x, number)
            return function(x, fitting(net, x, pool))

    for name, function in _UNARY.items():

        @graph(name)
        def unary(net, x, pool, function=function):
            return function(x)


_operators()


@graph("numbers per channel")
def columns(net, x, pool):
    """A number for each channel, or for each position and channel."""
    width = x.shape[-1]
    shape = net.pick((width,), (1, width), (1,))
    if None not in x.shape[1:] and net.chance(3):
        shape = net.pick(x.shape[1:], (*x.shape[1:-1], 1))
    numbers = net.generator.integers(-2, 3, shape) / 2.0
    numbers = numbers.astype("float32")
    return net.pick(
        *(lambda: x * numbers,) * 2,
        *(lambda: ops.subtract(numbers, x),) * 2,
        lambda: ops.maximum(x, numbers),
        lambda: x / (0.5 + numbers**2),
    )()


_REDUCE = {name: getattr(ops, name) for name in ("mean", "sum", "max", "min")}


def _reductions() -> None:
    for name, function in _REDUCE.items():

        @graph(f"ops.{name}")
        def reduce(net, x, pool, function=function):
            last = len(x.shape) - 1
            axis = net.pick(*range(1, last), -2) if last > 1 else last
            if net.chance(8):
                return function(x, axis=-1, keepdims=True)
            if axis == last:
                return None
            return function(x, axis=axis, keepdims=net.chance())


_reductions()


@graph("ops.stack")
def stack(net, x, pool):
    axis = net.pick(*range(1, len(x.shape)), *(-1,) * net.chance(5))
    return ops.stack([x, fitting(net, x, pool)], axis=axis)


@graph("ops.split")
def split(net, x, pool):
    axis = net.pick(-1, -1, len(x.shape) - 1, 1)
    size = x.shape[axis]
    if size is None or size < 2:
        return None
    if size % 2 == 0 and net.chance():
        parts = ops.split(x, 2, axis=axis)
    else:
        parts = ops.split(x, [net.number(1, size - 1)], axis=axis)
    if (axis == 1 and len(x.shape) > 2) or net.chance():
        return net.pick(*parts)
    return ops.concatenate([net.pick(*parts), parts[0]], axis=-1)


@graph("slices")
def slices(net, x, pool):
    width = x.shape[-1]
    start = net.number(0, width - 1)
    stop = net.number(start + 1, width)
    return net.pick(
        lambda: x[..., start:stop],
        lambda: x[..., start:],
        lambda: x[..., :stop],
        lambda: x[..., ::2],
        lambda: x[..., start : start - width or None],
        lambda: x[:, None],
        lambda: x[:, 0] if len(x.shape) > 2 else x[:, start:],
        lambda: x[:, -1:, ...] if len(x.shape) > 2 else x[:, :, None],
        lambda: x[:, 1:] if len(x.shape) > 2 else x[:, start],
    )()


@graph("ops.reshape")
def new_shape(net, x, pool):
    if None in x.shape[1:]:
        return None
    *inner, width = x.shape[1:]
    part = net.pick(*(n for n in (2, 3, width) if width % n == 0))
    return net.pick(
        lambda: ops.reshape(x, (-1, int(np.prod(inner)) * width)),
        lambda: ops.reshape(x, (-1, *inner, 1, width)),
        lambda: ops.reshape(x, (-1, *inner, part, width // part)),
        lambda: ops.reshape(x, (-1, int(np.prod(inner)), width)),
    )()


@graph("ops.transpose")
def transpose(net, x, pool):
    axes = [*range(1, len(x.shape))]
    if net.chance(5):
        return ops.transpose(x, (0, *axes[::-1]))
    return ops.transpose(x, (0, *axes[:-1][::-1], axes[-1]))


@graph("axes of size 1")
def axes(net, x, pool):
    y = ops.expand_dims(x, net.number(1, len(x.shape)))
    if net.chance():
        return y
    y = ops.tanh(ops.expand_dims(x, 1))
    return ops.squeeze(y, axis=net.pick(1, (1,)))


@graph("ops.pad")
def pad(net, x, pool):
    value = net.pick(None, 0.0, 1.0, 0.5)
    sides = [(0, 0)] * (len(x.shape) - 1)
    channels = net.pick((0, 0), (0, 1), (2, 1))
    if len(x.shape) > 2 and net.chance():
        sides[1] = (1, net.number(0, 1))
    return ops.pad(x, [*sides, channels], constant_values=value)


@graph("unknown operations")
def unknown(net, x, pool):
    width = x.shape[-1]
    return net.pick(
        lambda: ops.floor(x),
        lambda: ops.cumsum(x, axis=-1),
        lambda: ops.flip(x, axis=-1),
        lambda: ops.cast(ops.cast(x, "float16"), "float32"),
        lambda: ops.expand_dims(ops.sum(x, axis=-1), -1),
        lambda: ops.softmax(x),
        lambda: ops.matmul(x, np.eye(width, dtype="float32")),
    )()


@graph("LayerScale")
def layer_scale(net, x, pool):
    return net.apply(LayerScale(0.5, x.shape[-1], **net.common()), x)


@graph("Lambda")
def function(net, x, pool):
    return layers.Lambda(lambda y: y + 1.0)(x)


@graph("MultiHeadAttention", 3)
def multi_head(net, x, pool):
    return attentions.attention(net, x, _source(net, x, pool))


@graph("GroupQueryAttention", 3)
def grouped(net, x, pool):
    source = _source(net, x, pool)
    if source.shape[-1] != x.shape[-1]:
        source = layers.Dense(x.shape[-1])(source)
    return attentions.attention(net, x, source, grouped=True)


def _source(net: Net, x: Any, pool: list) -> Any:
    others = [y for y in pool if len(y.shape) == len(x.shape)]
    return net.pick(x, net.pick(*others))


@graph("Transformer block", 3)
def block(net, x, pool):
    return attentions.transformer_block(net, x)


@graph("attention without projections", 3)
def dot(net, x, pool):
    return attentions.dot_attention(net, x)


@graph("recurrent states", 3)
def states(net, x, pool):
    return recurrent.with_states(net, x)


@graph("Embedding", 2, 3)
def embedding(net, x, pool):
    """Words beside what there is already."""
    length = x.shape[1] if len(x.shape) == 3 else net.number(1, 3)
    if net.is_inside:
        return None
    words = recurrent.embedded_input(net, length)
    if len(x.shape) == 3:
        return layers.Concatenate()([x, words])
    words = layers.Flatten()(words)
    return layers.Concatenate()([x, words])


@graph("explicit mask", 3)
def explicit_mask(net, x, pool):
    if net.is_inside:
        return None
    mask = ops.cast(net.id_input(2, x.shape[1]), "bool")
    kind = net.pick(*recurrent.KINDS)
    layer = net.pick(
        recurrent.one_direction(net, x, kind, True),
        layers.GlobalAveragePooling1D(),
        layers.Bidirectional(getattr(layers, kind)(net.width())),
    )
    return layer(x, mask=mask)


@graph("pair")
def pair(net, x, pool):
    """Two layers, with units between them that certainly go."""
    width = net.number(2, 6)
    first = layers.Dense(width, net.activation(mixes=False))
    y = first(x)
    # Only what hands a channel on as it is.
    for _ in range(net.number(0, 2)):
        y = net.pick(
            layers.ReLU(),
            layers.Dropout(0.5),
            layers.BatchNormalization(),
            layers.Activation("tanh"),
            layers.Rescaling(0.5),
        )(y)
    second = layers.Dense(net.width(), net.activation())
    return _joined(net, first, y, second)


@graph("pair of convolutions", 3, 4)
def pair_of_convolutions(net, x, pool):
    dims = len(x.shape) - 2
    kind = getattr(layers, f"Conv{dims}D")
    first = kind(net.number(2, 5), 2, padding="same", activation="relu")
    y = first(x)
    if net.chance():
        y = getattr(layers, f"MaxPooling{dims}D")(2, 1, padding="same")(y)
    # No constant but zero is the same at a padded border.
    second = kind(net.width(), 1)
    return _joined(net, first, y, second)


@graph("pair with a recurrent layer", 3)
def pair_with_recurrent(net, x, pool):
    kind = net.pick(*recurrent.KINDS)
    first = getattr(layers, kind)(
        net.number(2, 5),
        return_sequences=net.chance(),
        **recurrent.recurrent_options(net, kind),
    )
    if first.activation is centred:
        return None
    return _joined(net, first, first(x), layers.Dense(net.width()))


def _joined(net: Net, first: Any, y: Any, second: Any) -> Any:
    width = y.shape[-1]
    dead = net.generator.uniform(size=width) < net.pick(0.3, 0.6, 1.0)
    is_unread = net.chance() or not isinstance(first, layers.Dense)
    if not net.is_inside:
        net.certain.append(Certain(first, second, dead, width, is_unread))
    return second(y)


@graph("nested model")
def nested(net, x, pool):
    """A model around some steps, Functional or Sequential."""

    def functional() -> keras.Model:
        inner = keras.Input(x.shape[1:], dtype=x.dtype)
        tensors = grow(net, [inner], net.number(1, 3))
        outputs = tensors[-1]
        if net.chance(4):
            outputs = [outputs, net.pick(*tensors[1:])]
        return keras.Model(inner, outputs)

    def make() -> keras.Model:
        return net.pick(functional, lambda: chain(net, x))()

    model = net.inside(make)
    others = [y for y in pool if y.shape == x.shape and y.dtype == x.dtype]
    made = model(x)
    if net.chance(4) and others:
        model(net.pick(*others))
        if not isinstance(made, list):
            again = model(net.pick(*others))
            return layers.Concatenate()([made, again])
    return net.pick(*made) if isinstance(made, list) else made


@graph("nested model of two inputs")
def nested_pair(net, x, pool):
    def make() -> keras.Model:
        inner = [keras.Input(y.shape[1:], dtype=y.dtype) for y in (x, other)]
        joined = layers.Add()(inner) if net.chance() else inner[0] * inner[1]
        return keras.Model(inner, grow(net, [*inner, joined], 2)[-1])

    other = fitting(net, x, pool)
    return net.inside(make)([x, other])


# May be used again on a tensor of another shape.
ANY_SHAPE = (
    *(layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU),
    layers.Dropout,
)


def chain(net: Net, x: Any) -> keras.Sequential:
    """A Sequential model for a tensor, with other models in it."""
    model = keras.Sequential([keras.Input(x.shape[1:], dtype=x.dtype)])
    used: list[tuple[keras.layers.Layer, Any]] = []
    for _ in range(net.number(1, 4)):
        y = model.outputs[0] if model.layers else x
        if net.chance(8) and len(y.shape) in ANY:
            inner = keras.Input(y.shape[1:], dtype=y.dtype)
            model.add(
                keras.Model(
                    inner, net.inside(lambda i=inner: grow(net, [i], 2)[-1])
                )
            )
            continue
        fitting = [
            layer
            for layer, shape in used
            if isinstance(layer, ANY_SHAPE) or shape == tuple(y.shape)
        ]
        if fitting and net.chance(6):
            model.add(net.pick(*fitting))
            continue
        layer = draw_layer(net, y)
        if layer is not None:
            model.add(layer)
            used.append((layer, tuple(y.shape)))
    if not model.layers:
        model.add(layers.Activation("tanh"))
    return model


def draw_layer(net: Net, x: Any) -> keras.layers.Layer | None:
    names = [n for n, one in LAYERS.items() if len(x.shape) in one.ranks]
    return LAYERS[net.pick(*names)].make(net, x)


def grow(net: Net, pool: list, steps: int) -> list:
    """Append so many tensors to a pool, each made from a recent one."""
    for _ in range(steps):
        made = None
        while made is None:
            made = step(net, net.pick(*pool[-3:]), pool)
        pool.append(made)
    return pool


def step(net: Net, x: Any, pool: list, name: str | None = None) -> Any:
    """A new tensor from `x`, by this kind of layer or graph, or by any."""
    if name is None:
        table = LAYERS if net.chance(2) else GRAPHS
        names = [n for n, one in table.items() if len(x.shape) in one.ranks]
        if net.chance():
            names = [n for n in names if n in WITH_UNITS] or names
        name = net.pick(*names)
    if name in GRAPHS:
        made = GRAPHS[name].grow(net, x, pool)
    else:
        layer = LAYERS[name].make(net, x)
        made = None if layer is None else net.apply(layer, x)
        if isinstance(made, (list, tuple)):
            made = made[0]  # The rest is an earlier recurrent layer's state.
    return made if is_usable(made) else None


def is_usable(x: Any) -> bool:
    """Whether more can be made from a tensor."""
    return (
        x is not None
        and len(x.shape) in ANY
        and x.shape[-1] is not None
        and all(n is None or 0 < n <= 40 for n in x.shape[1:])
        and int(np.prod([n or 8 for n in x.shape[1:]])) <= 1500
    )
