"""Layers that read one tensor, by the ranks of what they read.

Each function returns a new layer for a tensor, or None where there is none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from tools.random_networks.net import Net, is_fixed

Make = Callable[[Net, keras.KerasTensor], keras.layers.Layer | None]
LAYERS: dict[str, Single] = {}
ANY = (2, 3, 4, 5)


@dataclasses.dataclass
class Single:
    """A kind of layer.

    Attributes:
        name: Name of the class, and of the way it is used.
        ranks: Of the tensors that it reads.
        make: Makes one for a tensor.
    """

    name: str
    ranks: tuple[int, ...]
    make: Make


def single(name: str, *ranks: int) -> Callable[[Make], Make]:
    """Decorator: the function makes layers of this kind."""

    def register(make: Make) -> Make:
        LAYERS[name] = Single(name, ranks or ANY, make)
        return make

    return register


@single("Dense")
def dense(net, x):
    return layers.Dense(net.width(), net.activation(), **net.weighted())


@single("EinsumDense")
def einsum_dense(net, x):
    axes = "abcdefg"[: len(x.shape)]
    inner, last = axes[:-1], axes[-1]
    ellipsis = net.chance(3)
    left = "..." if ellipsis else inner
    shape = (*((None,) if ellipsis else x.shape[1:-1]), net.width())
    return layers.EinsumDense(
        f"{left}{last},{last}z->{left}z",
        shape[-1] if ellipsis else shape,
        activation=net.activation(mixes=net.chance()),
        bias_axes=None if net.chance(3) else "z",
        **net.common(),
    )


@single("EinsumDense, heads", 2, 3)
def einsum_heads(net, x):
    axes = "abc"[: len(x.shape)]
    return layers.EinsumDense(
        f"{axes},{axes[-1]}yz->{axes[:-1]}yz",
        (*x.shape[1:-1], 2, net.number(1, 3)),
        bias_axes=net.pick(None, "z", "yz"),
        **net.common(),
    )


@single("Activation")
def activation(net, x):
    return layers.Activation(net.activation() or "tanh", **net.common())


@single("ReLU")
def relu(net, x):
    return layers.ReLU(
        net.pick(None, 6.0, 1.0),
        net.pick(0.0, 0.0, 0.1),
        net.pick(0.0, 0.0, 0.3),
        **net.common(),
    )


@single("LeakyReLU")
def leaky_relu(net, x):
    return layers.LeakyReLU(net.pick(0.3, 0.0), **net.common())


@single("ELU")
def elu(net, x):
    return layers.ELU(net.pick(1.0, 0.5), **net.common())


@single("PReLU")
def prelu(net, x):
    inner = range(1, len(x.shape) - 1)
    shared = net.pick(list(inner), None, [*inner, len(x.shape) - 1])
    if not is_fixed(x):
        shared = list(inner)
    return layers.PReLU(shared_axes=shared or None, **net.common())


@single("Softmax")
def softmax(net, x):
    # Along another axis Keras wants a mask of another shape than it is given.
    axis = 1 if net.chance(3) and len(x.shape) == 4 else -1
    return layers.Softmax(axis, **net.common())


def _numbered() -> None:
    for name, number in {
        "Dropout": 0.5,
        "AlphaDropout": 0.5,
        "GaussianDropout": 0.5,
        "GaussianNoise": 0.5,
        "ActivityRegularization": 0.1,
    }.items():
        kind = getattr(layers, name)
        single(name)(
            lambda net, x, kind=kind, number=number: kind(
                number, **net.common()
            )
        )


_numbered()


@single("Identity")
def identity(net, x):
    return layers.Identity(**net.common())


@single("Rescaling")
def rescaling(net, x):
    width = x.shape[-1]

    def numbers() -> Any:
        several = [float(net.number(-2, 2)) / 2 for _ in range(width)]
        return net.pick(several, 0.5, 0.0, 2)

    return layers.Rescaling(numbers(), numbers(), **net.common())


@single("Rescaling, other axes", 3, 4)
def rescaling_elsewhere(net, x):
    if not is_fixed(x):
        return None
    rows = net.generator.integers(-1, 2, (x.shape[-2], 1)).astype(float)
    if net.chance():
        rows = np.tile(rows, x.shape[-1])
        rows[:, 0] = net.pick(0.0, 0.5, rows[0, 0])
    return layers.Rescaling(rows.tolist(), 0.5)


@single("BatchNormalization")
def batch_normalization(net, x):
    axis = net.pick(-1, -1, -1, len(x.shape) - 1)
    if net.chance(8) and is_fixed(x):
        axis = 1
    return layers.BatchNormalization(
        axis=axis,
        epsilon=0.01,
        center=not net.chance(4),
        scale=not net.chance(4),
        **net.common(),
    )


@single("LayerNormalization")
def layer_normalization(net, x):
    return layers.LayerNormalization(
        epsilon=0.1,
        center=net.chance(),
        scale=net.chance(),
        **net.common(),
    )


@single("other normalizations", 2, 3, 4)
def other_normalization(net, x):
    return net.pick(
        lambda: layers.UnitNormalization(),
        lambda: layers.SpectralNormalization(layers.Dense(x.shape[-1])),
    )()


@single("GroupNormalization", 2, 3, 4)
def group_normalization(net, x):
    width = x.shape[-1]
    sizes = [n for n in range(1, width + 1) if width % n == 0]
    return layers.GroupNormalization(
        net.pick(*sizes, -1),
        epsilon=0.1,
        center=not net.chance(4),
        scale=not net.chance(4),
        **net.common(),
    )


@single("RMSNormalization")
def rms_normalization(net, x):
    return layers.RMSNormalization(epsilon=0.1, **net.common())


@single("Normalization")
def normalization(net, x):
    width, rank = x.shape[-1], len(x.shape)
    options = {"invert": net.chance(3), **net.common()}
    numbers = {
        "mean": net.generator.normal(size=width).tolist(),
        "variance": net.generator.uniform(0.5, 2.0, width).tolist(),
    }
    return net.pick(
        lambda: layers.Normalization(**numbers, **options),
        lambda: layers.Normalization(**options),
        lambda: layers.Normalization(mean=0.5, variance=2.0, **options),
        lambda: layers.Normalization(axis=None, **options),
        lambda: (
            layers.Normalization(
                axis=net.pick(1, *([*range(i, rank)] for i in range(1, rank))),
                **options,
            )
            if is_fixed(x)
            else None
        ),
    )()


@keras.saving.register_keras_serializable(package="random_networks")
class Shift(layers.Layer):
    """A layer of a user, with a weight per channel."""

    def build(self, input_shape):
        self.offset = self.add_weight(shape=input_shape[-1:], name="offset")

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, inputs):
        return inputs + self.offset


@keras.saving.register_keras_serializable(package="random_networks")
class OwnDense(layers.Dense):
    """A subclass that computes something else."""

    def call(self, inputs):
        return super().call(inputs) + 0.5


@single("layers of a user")
def own(net, x):
    return net.pick(Shift(), OwnDense(net.width(), "relu"))


@single("Flatten")
def flatten(net, x):
    first = net.chance(10)
    if not is_fixed(x):
        return None
    return layers.Flatten("channels_first" if first else None, **net.common())


@single("Reshape")
def reshape(net, x):
    if not is_fixed(x):
        return None
    entries, width = int(np.prod(x.shape[1:])), x.shape[-1]
    kind = net.number(0, 3)
    if kind == 0:
        return layers.Reshape((entries,), **net.common())
    if kind == 1:
        return layers.Reshape((-1, width), **net.common())
    if kind == 2:
        parts = [n for n in (2, 3, width) if width % n == 0]
        return layers.Reshape((-1, width // net.pick(*parts)), **net.common())
    parts = [n for n in range(1, entries + 1) if entries % n == 0]
    return layers.Reshape((net.pick(*parts[:3]), -1), **net.common())


@single("Permute", 3, 4)
def permute(net, x):
    axes = [*range(1, len(x.shape))]
    if net.chance(4) and is_fixed(x):
        axes = axes[::-1]
    elif is_fixed(x):
        axes = [*axes[:-1][::-1], axes[-1]]
    return layers.Permute(axes, **net.common())


@single("RepeatVector", 2)
def repeat_vector(net, x):
    return layers.RepeatVector(net.number(1, 3), **net.common())


@single("Masking", 3)
def masking(net, x):
    return layers.Masking(net.pick(0.0, 0.5), **net.common())


@single("TimeDistributed", 3, 4, 5)
def time_distributed(net, x):
    inner = keras.KerasTensor((None, *x.shape[2:]), x.dtype)
    names = [
        name
        for name, one in LAYERS.items()
        if len(inner.shape) in one.ranks and name != "TimeDistributed"
    ]
    made = None
    while made is None:
        made = LAYERS[net.pick(*names)].make(net, inner)
    return layers.TimeDistributed(made)
