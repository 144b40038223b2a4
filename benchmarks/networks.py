"""The networks to measure, whatever the layers they are made of."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np

# By name, what tables call the networks of `benchmarks/deep.py`.
DEEP = {
    "dense-31": "31 dense layers of 256 units, batch 32",
    "resnet50": "ResNet50, batch of 8 images of 64x64",
}
KINDS = ("dense", "conv", "lenet", "LSTM", "GRU", "embedding")


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, its data and its optimizer, on a mean squared error.

    Attributes:
        name: What `--only` takes.
        title: What tables say.
        kind: One of `KINDS`.
        batch_size: Examples of one training step.
        sizes: Of dense layers, inputs and units; of a convolution, channels
            and filters; of LeNet, filters and units; of a recurrent network,
            time steps, features and units; of an embedding, words of a text,
            words of the vocabulary and features.
        optimizer: Name of a class of Keras.
    """

    name: str
    title: str
    kind: str
    batch_size: int
    sizes: tuple[int, ...]
    optimizer: str = "SGD"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return {
            "dense": self.sizes[:1],
            "conv": (32, 32, *self.sizes[:1]),
            "lenet": (28, 28, 1),
            "embedding": self.sizes[:1],
        }.get(self.kind, self.sizes[:2])

    def arrays(self, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Random inputs and targets."""
        rng = np.random.default_rng(0)
        shape = (batch_size, *self.input_shape)
        if self.kind == "embedding":
            x = rng.integers(0, self.sizes[1], shape, "int32")
        else:
            x = rng.standard_normal(shape, "float32")
        has_targets_of_one = self.kind in ("LSTM", "GRU", "embedding")
        outputs = 1 if has_targets_of_one else self.sizes[-1]
        return x, rng.standard_normal((batch_size, outputs), "float32")

    def build(self, family: Any, **compile_options: Any) -> Any:
        """A compiled Keras model of one family of layers.

        Args:
            family: See `benchmarks.families`.
            **compile_options: Of `compile`.
        """
        keras = family.keras
        dtype = "int32" if self.kind == "embedding" else "float32"
        inputs = keras.Input(self.input_shape, dtype=dtype)
        outputs = inputs
        for layer in self._layers(family):
            outputs = layer(outputs)
        model = keras.Model(inputs, outputs)
        optimizer = getattr(keras.optimizers, self.optimizer)(1e-4)
        model.compile(optimizer, "mse", **compile_options)
        return model

    def _layers(self, family: Any) -> list[Any]:
        plain = family.keras.layers
        if self.kind == "dense":
            *hidden, last = self.sizes[1:]
            return [family.dense(n, "relu") for n in hidden] + [
                family.dense(last)
            ]
        if self.kind == "conv":
            conv = family.conv(self.sizes[-1], 3, None, "same")
            return [conv, plain.GlobalAveragePooling2D()]
        if self.kind == "lenet":
            first, second, hidden, last = self.sizes
            return [
                family.conv(first, 5, "relu", "valid"),
                plain.MaxPooling2D(),
                family.conv(second, 5, "relu", "valid"),
                plain.MaxPooling2D(),
                plain.Flatten(),
                family.dense(hidden, "relu"),
                family.dense(last),
            ]
        if self.kind == "embedding":
            _, words, features = self.sizes
            return [
                family.embedding(words, features),
                plain.GlobalAveragePooling1D(),
                plain.Dense(1),
            ]
        return [family.recurrent(self.kind, self.sizes[-1]), plain.Dense(1)]

    def num_draws(self) -> int:
        """Noisy outputs of a step of dense layers."""
        return self.batch_size * sum(self.sizes[1:])

    def num_weights(self) -> int:
        """Entries of the kernels of dense layers."""
        return sum(map(math.prod, itertools.pairwise(self.sizes)))


CASES = {
    case.name: case
    for case in (
        Case(
            "mlp",
            "784-300-100-10, batch 128",
            "dense",
            128,
            (784, 300, 100, 10),
        ),
        Case("1024-64", "1024x1024, batch 64", "dense", 64, (1024, 1024)),
        Case("1024-256", "1024x1024, batch 256", "dense", 256, (1024, 1024)),
        Case("4096", "4096x4096, batch 256", "dense", 256, (4096, 4096)),
        Case(
            "lenet-5",
            "LeNet-5 (20-50-500), batch 128",
            "lenet",
            128,
            (20, 50, 500, 10),
        ),
        Case(
            "conv", "3x3 conv 64->64 on 32x32, batch 32", "conv", 32, (64, 64)
        ),
        *(
            Case(
                f"{kind.lower()}",
                f"{kind}, 32 x 100 steps x 64, 128 units",
                kind,
                32,
                (100, 64, 128),
            )
            for kind in ("LSTM", "GRU")
        ),
        *(
            Case(
                name,
                f"embedding 20,000x300, 64 texts x 200 words{suffix}",
                "embedding",
                64,
                (200, 20000, 300),
                optimizer,
            )
            for name, suffix, optimizer in (
                ("embedding", "", "SGD"),
                ("embedding-adam", ", Adam", "Adam"),
            )
        ),
    )
}
