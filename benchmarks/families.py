"""Families of Keras layers that networks are made of: plain and variational."""

from __future__ import annotations

import functools
from typing import Any

import keras
from keras import ops

import keras_vd
from benchmarks.networks import KINDS, Case
from benchmarks.steps import KerasTraining

KL_WEIGHT = 1 / 60000


class Plain:
    """Layers of Keras.

    Attributes:
        keras: The Keras module that models are built with.
        kinds: Of networks that can be made of these layers.

    Args:
        dtype: Policy of every variational layer or its plain counterpart.
        **options: Of every such layer.
    """

    keras: Any = keras
    kinds = KINDS

    def __init__(self, dtype: str = "float32", **options: Any) -> None:
        self.options = {"dtype": dtype, **options}

    def start(self, case: Case, **compile_options: Any) -> KerasTraining:
        """A network of these layers, ready for its first training step."""
        model = case.build(self, **compile_options)
        return KerasTraining(model, *case.arrays(case.batch_size))

    def dense(self, units: int, activation: str | None = None) -> Any:
        return self.make("Dense", units, activation=activation)

    def conv(
        self, filters: int, size: int, activation: str | None, padding: str
    ) -> Any:
        return self.make(
            "Conv2D", filters, size, activation=activation, padding=padding
        )

    def recurrent(self, kind: str, units: int) -> Any:
        return self.make(kind, units)

    def embedding(self, words: int, features: int) -> Any:
        return self.make("Embedding", words, features)

    def make(self, name: str, *sizes: int, **options: Any) -> Any:
        """The layer that takes the place of the Keras layer of that name."""
        layer = getattr(self.keras.layers, name)
        return layer(*sizes, **options, **self.options)


class TwoProducts(Plain):
    """What local reparameterization cannot do without: a second product.

    It has a weight of its own, is trained too, and multiplies the squared
    inputs. There is no noise and no KL divergence.
    """

    def make(self, name: str, *sizes: int, **options: Any) -> Any:
        layers = {"Dense": TwoProductsDense, "Conv2D": TwoProductsConv2D}
        return layers[name](*sizes, **options, **self.options)


class TwoProductsDense(keras.layers.Dense):
    def build(self, input_shape):
        super().build(input_shape)
        self.second = self.add_weight(
            shape=self.kernel.shape, initializer=self.kernel_initializer
        )

    def call(self, inputs):
        outputs = ops.matmul(inputs, self.kernel)
        outputs = outputs + ops.matmul(ops.square(inputs), self.second)
        return self.activation(outputs + self.bias)


class TwoProductsConv2D(keras.layers.Conv2D):
    def build(self, input_shape):
        super().build(input_shape)
        self.second = self.add_weight(
            shape=self.kernel.shape, initializer=self.kernel_initializer
        )

    def call(self, inputs):
        outputs = self.convolution_op(inputs, self.kernel)
        outputs = outputs + self.convolution_op(ops.square(inputs), self.second)
        return self.activation(outputs + self.bias)


class Variational(Plain):
    """Layers of keras_vd."""

    def __init__(self, dtype: str = "float32", **options: Any) -> None:
        super().__init__(dtype, kl_weight=KL_WEIGHT, **options)

    def make(self, name: str, *sizes: int, **options: Any) -> Any:
        layer = getattr(keras_vd.layers, f"VD{name}")
        return layer(*sizes, **options, **self.options)


def _sparse_vd(**options: Any) -> functools.partial[Variational]:
    posterior = keras_vd.posteriors.SparseVD(**options)
    return functools.partial(Variational, posterior=posterior)


FAMILIES = {
    "plain": Plain,
    "two products": TwoProducts,
    "keras_vd": Variational,
    "keras_vd, Gaussian": functools.partial(Variational, posterior="gaussian"),
    "keras_vd, exact KL": _sparse_vd(prior=keras_vd.priors.LogUniform("exact")),
    "keras_vd, share unit": _sparse_vd(share="unit"),
    "keras_vd, share layer": _sparse_vd(share="layer"),
    "keras_vd, bfloat16 variance": _sparse_vd(variance_dtype="bfloat16"),
    "keras_vd, per sequence": functools.partial(
        Variational, weight_samples="sequence"
    ),
    "plain, bfloat16": functools.partial(Plain, "mixed_bfloat16"),
    "keras_vd, bfloat16": functools.partial(Variational, "mixed_bfloat16"),
}
# By kind, what every network is trained with.
_MAIN: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("dense", "conv", "lenet"),
        ("two products", "keras_vd", "keras_vd, share unit"),
    ),
    **dict.fromkeys(
        ("LSTM", "GRU", "embedding"), ("keras_vd", "keras_vd, share unit")
    ),
}
# By network, what is measured where it says the most.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "mlp": (
        "keras_vd, Gaussian",
        "keras_vd, exact KL",
        "keras_vd, share layer",
        "keras_vd, bfloat16 variance",
    ),
    "4096": ("keras_vd, bfloat16 variance",),
    "lstm": ("keras_vd, per sequence",),
    "gru": ("keras_vd, per sequence",),
}


def family_names(case: Case, is_accelerated: bool) -> list[str]:
    """Names of the families to train with.

    Args:
        case: The network.
        is_accelerated: Whether to have half precision too.
    """
    half = ("plain, bfloat16", "keras_vd, bfloat16") if is_accelerated else ()
    options = _OPTIONS.get(case.name, ())
    return ["plain", *_MAIN[case.kind], *options, *half]
