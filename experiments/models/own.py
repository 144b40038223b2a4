"""Networks such as people write, made of layers of their own."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable("experiments")
class TokenAndPositionEmbedding(layers.Layer):
    """Sum of the vectors of words and of places."""

    def __init__(
        self, length: int, words: int, width: int, **options: Any
    ) -> None:
        super().__init__(**options)
        self.words = layers.Embedding(words, width, name="words")
        self.places = layers.Embedding(length, width, name="places")

    def build(self, shape: Any) -> None:
        self.words.build()
        self.places.build()

    def call(self, ids: Any) -> Any:
        places = ops.arange(0, ops.shape(ids)[-1], 1)
        return self.words(ids) + self.places(places)


@keras.saving.register_keras_serializable("experiments")
class TransformerBlock(layers.Layer):
    """Attention and two dense layers, normalized after each."""

    def __init__(
        self, width: int, heads: int, units: int, **options: Any
    ) -> None:
        super().__init__(**options)
        self.attention = layers.MultiHeadAttention(
            heads, width, name="attention"
        )
        self.dense = keras.Sequential(
            [
                layers.Dense(units, activation="relu", name="inner"),
                layers.Dense(width, name="outer"),
            ]
        )
        self.norms = [layers.LayerNormalization(epsilon=1e-6) for _ in "ab"]
        self.drops = [layers.Dropout(0.1) for _ in "ab"]

    def build(self, shape: Any) -> None:
        self.attention.build(shape, shape)
        for layer in (self.dense, *self.norms):
            layer.build(shape)

    def call(self, inputs: Any) -> Any:
        read = self.drops[0](self.attention(inputs, inputs))
        hidden = self.norms[0](inputs + read)
        return self.norms[1](hidden + self.drops[1](self.dense(hidden)))


def guide_transformer(
    units: int = 32,
    words: int = 50,
    length: int = 12,
    width: int = 16,
    heads: int = 2,
) -> keras.Model:
    """The classifier of the Keras guide on Transformers, with one logit.

    Args:
        units: Hidden units of the block.
        words: Number of token ids.
        length: Number of tokens of a text.
        width: Features of a token, and of each head.
        heads: Attention heads.
    """
    ids = keras.Input((length,), dtype="int32", name="ids")
    embedding = TokenAndPositionEmbedding(length, words, width, name="embed")
    block = TransformerBlock(width, heads, units, name="block")
    hidden = layers.GlobalAveragePooling1D()(block(embedding(ids)))
    hidden = layers.Dropout(0.1)(hidden)
    hidden = layers.Dense(20, activation="relu", name="hidden")(hidden)
    hidden = layers.Dropout(0.1)(hidden)
    return keras.Model(ids, layers.Dense(1, name="opinion")(hidden))


class HandWrittenTransformer(keras.Model):
    """A subclassed model whose attention is written with operations."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.words = layers.Embedding(50, 16)
        self.projections = [layers.Dense(16) for _ in "qkv"]
        self.norms = [layers.LayerNormalization() for _ in "ab"]
        self.dense = [layers.Dense(units, "gelu"), layers.Dense(16)]
        self.head = layers.Dense(2)

    def call(self, ids: Any) -> Any:
        hidden = self.words(ids)
        query, key, value = (x(self.norms[0](hidden)) for x in self.projections)
        scores = ops.matmul(query, ops.transpose(key, (0, 2, 1))) / 4.0
        hidden = hidden + ops.matmul(ops.softmax(scores), value)
        inner = self.dense[0](self.norms[1](hidden))
        hidden = hidden + self.dense[1](inner)
        return self.head(ops.mean(hidden, axis=1))


class ResidualBlock(layers.Layer):
    """Two convolutions of `units` channels beside a path of 8."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.inner = layers.Conv2D(units, 3, padding="same", use_bias=False)
        self.norm = layers.BatchNormalization()
        self.outer = layers.Conv2D(8, 3, padding="same")

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        hidden = ops.relu(self.norm(self.inner(inputs), training=training))
        return ops.relu(inputs + self.outer(hidden))


class ResidualCNN(keras.Model):
    """A subclassed model with its blocks in a list."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.stem = layers.Conv2D(8, 3, padding="same")
        self.blocks = [ResidualBlock(units) for _ in range(3)]
        self.head = keras.Sequential(
            [layers.GlobalAveragePooling2D(), layers.Dense(10)]
        )

    def call(self, images: Any, training: bool | None = None) -> Any:
        hidden = self.stem(images)
        for block in self.blocks:
            hidden = block(hidden, training=training)
        return self.head(hidden)


class TwoTowers(keras.Model):
    """A subclassed model with a dictionary of inputs and of outputs."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.words = layers.Embedding(50, 8)
        self.lstm = layers.LSTM(8)
        self.tower = layers.Dense(units, "relu")
        self.heads = {"price": layers.Dense(1), "kind": layers.Dense(3)}

    def call(self, inputs: dict[str, Any]) -> dict[str, Any]:
        text = self.lstm(self.words(inputs["title"]))
        joined = ops.concatenate([text, inputs["numbers"]], axis=-1)
        hidden = self.tower(joined)
        return {name: head(hidden) for name, head in self.heads.items()}
