"""A network that grows by chance: its draws, inputs, and repeated layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_vd._backend.keras_internals import refuses_unread_inputs

ELEMENTWISE = tuple(
    "relu relu6 leaky_relu elu selu celu gelu silu mish softplus softsign tanh "
    "sigmoid hard_sigmoid hard_silu hard_tanh log_sigmoid sparse_plus "
    "sparse_sigmoid squareplus tanh_shrink soft_shrink hard_shrink "
    "linear exponential".split()
)
MIXING = ("softmax", "log_softmax", "sparsemax")
LENGTHS = (3, 5, 8)
BATCH_SIZES = (1, 4)


@keras.saving.register_keras_serializable(package="random_networks")
def bent(x: Any) -> Any:
    """An activation of a user, elementwise and not zero at zero."""
    return 0.5 * keras.ops.tanh(x + 1.0)


@keras.saving.register_keras_serializable(package="random_networks")
def centred(x: Any) -> Any:
    """An activation of a user that mixes channels."""
    return x - keras.ops.mean(x, axis=-1, keepdims=True)


@dataclasses.dataclass
class Certain:
    """Units of a layer that `shrink` has to find dead.

    Attributes:
        first: The layer that makes them.
        second: The only layer that reads them.
        dead: Their numbers, of `width`.
        width: Number of units.
        is_unread: Whether the second layer has zeros for them; otherwise the
            first makes constants of them.
    """

    first: keras.layers.Layer
    second: keras.layers.Layer
    dead: np.ndarray
    width: int
    is_unread: bool


@dataclasses.dataclass
class Source:
    """An input of the network.

    Attributes:
        tensor: The symbolic input.
        words: Number of ids, or None for an input of real numbers.
    """

    tensor: keras.KerasTensor
    words: int | None = None

    def draw(
        self, generator: np.random.Generator, batch: int, length: int
    ) -> np.ndarray:
        """Values for so many examples, of so many steps where they vary."""
        shape = [length if n is None else n for n in self.tensor.shape[1:]]
        dtype = self.tensor.dtype
        if self.words is not None:
            return generator.integers(0, self.words, (batch, *shape)).astype(
                dtype
            )
        return generator.normal(size=(batch, *shape)).astype(
            "float32" if dtype == "bfloat16" else dtype
        )


class Net:
    """Draws of one network, all from one generator.

    Attributes:
        dtype: Name of the dtype policy of the network.
        sources: Inputs so far.
        certain: What has to go, whatever else is dead.
        silent: Layers whose weights are all zero.
        lively: Layers of which no part is dead.
        is_inside: Whether a nested model is being made.
    """

    def __init__(self, seed: int, dtype: str) -> None:
        self.generator = np.random.default_rng(seed)
        self.dtype = dtype
        self.sources: list[Source] = []
        self.certain: list[Certain] = []
        self.silent: list[keras.layers.Layer] = []
        self.lively: list[keras.layers.Layer] = []
        self.is_inside = False
        self._earlier: dict[Any, list[keras.layers.Layer]] = {}

    def number(self, low: int, high: int) -> int:
        """From low to high, both included."""
        return int(self.generator.integers(low, high + 1))

    def pick(self, *options: Any) -> Any:
        return options[self.number(0, len(options) - 1)]

    def chance(self, one_in: int = 2) -> bool:
        return self.number(1, one_in) == 1

    def width(self) -> int:
        return 1 if self.chance(12) else self.number(2, 6)

    def activation(self, mixes: bool = True) -> Any:
        """An activation; none in a third of the cases."""
        kind = self.number(0, 11)
        if kind <= 3:
            return None
        if kind <= 5:
            return "relu"
        if kind == 6 and mixes:
            return self.pick(*MIXING, centred)
        if kind == 7:
            return self.pick(bent, layers.LeakyReLU(0.2))
        return self.pick(*ELEMENTWISE)

    def common(self) -> dict[str, Any]:
        """Arguments that any layer takes."""
        options: dict[str, Any] = {}
        if self.chance(20):
            options["trainable"] = False
        other = self.pick("mixed_bfloat16", "float64", "float32")
        jax = keras.backend.backend() == "jax"
        if self.chance(25) and not (jax and other == "float64"):
            options["dtype"] = other
        return options

    def weighted(self) -> dict[str, Any]:
        """Arguments that any layer with a kernel and a bias takes."""
        options = self.common()
        options["use_bias"] = not self.chance(3)
        if self.chance(15):
            options["kernel_regularizer"] = "l2"
        if self.chance(15):
            options["bias_constraint"] = "non_neg"
        return options

    def apply(
        self, layer: keras.layers.Layer, *args: Any, **kwargs: Any
    ) -> Any:
        """Call a layer, or one of its kind that was called on the like."""
        shapes = [tuple(x.shape) for x in keras.tree.flatten((args, kwargs))]
        key = (type(layer), str(shapes), tuple(kwargs))
        known = self._earlier.setdefault(key, [])
        if known and self.chance(5):
            return self.pick(*known)(*args, **kwargs)
        known.append(layer)
        return layer(*args, **kwargs)

    def inside(self, function: Callable[[], Any]) -> Any:
        """What a function returns that makes a nested model."""
        outer, self.is_inside = self.is_inside, True
        try:
            return function()
        finally:
            self.is_inside = outer

    def real_input(self, *shape: int | None) -> keras.KerasTensor:
        """A new input of real numbers."""
        self.sources.append(Source(keras.Input(shape)))
        return self.sources[-1].tensor

    def inputs_of(self, *outputs: keras.KerasTensor) -> list:
        """All inputs so far; only those that outputs read where Keras minds."""
        inputs = [x.tensor for x in self.sources]
        if not refuses_unread_inputs():
            return inputs
        read = {
            id(x) for y in outputs for x in keras.utils.get_source_inputs(y)
        }
        return [x for x in inputs if id(x) in read]

    def id_input(
        self, words: int, *shape: int | None, dtype: str = "int32"
    ) -> keras.KerasTensor:
        """A new input of ids below `words`."""
        self.sources.append(Source(keras.Input(shape, dtype=dtype), words))
        return self.sources[-1].tensor


def is_fixed(x: keras.KerasTensor) -> bool:
    """Whether all axes but the first have a known size."""
    return None not in x.shape[1:]
