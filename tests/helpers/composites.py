"""Models as users make them: layers made of layers, subclassed models.

Each builder returns a built model and inputs for it.
"""

import keras
import numpy as np
from keras import ops

from tests.helpers.arrays import random_inputs

K = keras.layers


def words(*shape, size=20, seed=3):
    return np.random.default_rng(seed).integers(0, size, shape)


class TransformerBlock(K.Layer):
    """As in the guide of Keras on text classification with a Transformer."""

    def __init__(self, embed_dim, num_heads, ff_dim, rate=0.1):
        super().__init__()
        self.att = K.MultiHeadAttention(num_heads, embed_dim)
        self.ffn = keras.Sequential(
            [K.Dense(ff_dim, activation="relu"), K.Dense(embed_dim)]
        )
        self.layernorm1 = K.LayerNormalization(epsilon=1e-6)
        self.layernorm2 = K.LayerNormalization(epsilon=1e-6)
        self.dropout1 = K.Dropout(rate)
        self.dropout2 = K.Dropout(rate)

    def call(self, inputs):
        attn_output = self.att(inputs, inputs)
        attn_output = self.dropout1(attn_output)
        out1 = self.layernorm1(inputs + attn_output)
        ffn_output = self.ffn(out1)
        ffn_output = self.dropout2(ffn_output)
        return self.layernorm2(out1 + ffn_output)


class TokenAndPositionEmbedding(K.Layer):
    """As in the same guide."""

    def __init__(self, maxlen, vocab_size, embed_dim):
        super().__init__()
        self.token_emb = K.Embedding(vocab_size, embed_dim)
        self.pos_emb = K.Embedding(maxlen, embed_dim)

    def call(self, x):
        maxlen = ops.shape(x)[-1]
        positions = ops.arange(start=0, stop=maxlen, step=1)
        positions = self.pos_emb(positions)
        x = self.token_emb(x)
        return x + positions


def guide(steps=10, vocabulary=20, width=8, units=8, rate=0.1):
    """The model of the guide, smaller."""
    inputs = keras.Input((steps,))
    x = TokenAndPositionEmbedding(steps, vocabulary, width)(inputs)
    x = TransformerBlock(width, 2, units, rate)(x)
    x = K.GlobalAveragePooling1D()(x)
    x = K.Dropout(rate)(x)
    x = K.Dense(20, activation="relu")(x)
    x = K.Dropout(rate)(x)
    outputs = K.Dense(2, activation="softmax")(x)
    return keras.Model(inputs, outputs), words(3, steps, size=vocabulary)


class Residual(K.Layer):
    """Makes its layers in `build`."""

    def build(self, shape):
        self.norm = K.BatchNormalization(name="norm")
        self.hidden = K.Dense(5, "relu", name="hidden")
        self.out = K.Dense(shape[-1], name="out")
        super().build(shape)

    def call(self, inputs, training=None):
        x = self.norm(inputs, training=training)
        return inputs + self.out(self.hidden(x))


class Stack(K.Layer):
    """Composites in a list, dense layers in a dictionary."""

    def __init__(self, depth=2, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [Residual(name=f"block_{i}") for i in range(depth)]
        self.branches = {
            "wide": K.Dense(7, "relu", name="wide"),
            "narrow": K.Dense(3, name="narrow"),
        }

    def call(self, inputs):
        for block in self.blocks:
            inputs = block(inputs)
        parts = [self.branches[name](inputs) for name in ("wide", "narrow")]
        return ops.concatenate(parts, axis=-1)


class Classifier(keras.Model):
    """A subclassed model with all its layers made in the constructor."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.stack = Stack()
        self.drop = K.Dropout(0.5)
        self.head = K.Dense(3, "softmax", name="head")

    def call(self, inputs, training=None):
        x = self.drop(self.stack(inputs), training=training)
        return self.head(x)


def called(model, inputs):
    model(inputs)
    return model, inputs


def subclassed():
    return called(Classifier(), random_inputs(3, 6))


def built_lazily():
    """The parts of the blocks are made when data comes for the first time."""
    model = keras.Sequential([Stack(), K.Dense(2)])
    return called(model, random_inputs(3, 6))


def a_composite_twice():
    block = Residual(name="block")
    inputs = keras.Input((6,))
    return (
        keras.Model(inputs, K.Dense(2)(block(ops.relu(block(inputs))))),
        random_inputs(3, 6),
    )


def composites_of_one_class():
    inputs = keras.Input((6,))
    x = Residual(name="one")(inputs)
    x = Residual(name="two")(x)
    return keras.Model(inputs, K.Dense(6, name="out")(x)), random_inputs(3, 6)


class Pair(K.Layer):
    """Takes two tensors, returns a dictionary."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.left, self.right = K.Dense(4, name="l"), K.Dense(4, name="r")

    def call(self, left, right):
        left, right = self.left(left), self.right(right)
        return {"sum": left + right, "product": left * right}


class Dictionary(keras.Model):
    """From a dictionary to a dictionary."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.pair = Pair()
        self.heads = {name: K.Dense(2, name=name) for name in ("a", "b")}

    def call(self, inputs):
        x = self.pair(inputs["first"], inputs["second"])
        return {
            "a": self.heads["a"](x["sum"]),
            "b": [self.heads["b"](x["product"]), x["sum"]],
        }


def dictionaries():
    inputs = {"first": random_inputs(3, 6), "second": random_inputs(3, 4)}
    return called(Dictionary(), inputs)


class Encoder(K.Layer):
    """Hands on the mask of its embedding."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.embedding = K.Embedding(20, 6, mask_zero=True)
        self.lstm = K.LSTM(5, return_sequences=True)

    def compute_mask(self, inputs, mask=None):
        return self.embedding.compute_mask(inputs)

    def call(self, inputs):
        x = self.embedding(inputs)
        return ops.tanh(self.lstm(x) + 1.0)


def masks():
    inputs = keras.Input((7,), dtype="int32")
    x = Encoder()(inputs)
    x = K.MultiHeadAttention(2, 3)(x, x)
    outputs = K.Dense(2)(K.GRU(4)(x))
    return keras.Model(inputs, outputs), words(3, 7, size=3)


class Siamese(keras.Model):
    """Integers and real numbers, one encoder for two texts."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.encoder = Encoder()
        self.pool = K.GlobalAveragePooling1D()
        self.out = K.Dense(1)

    def call(self, inputs):
        one, two, features = inputs
        one, two = (self.pool(self.encoder(x)) for x in (one, two))
        return self.out(ops.concatenate([one, two, features], axis=-1))


def two_texts_and_numbers():
    inputs = [words(3, 7, size=3), words(3, 5, size=3), random_inputs(3, 2)]
    return called(Siamese(), inputs)


class ConvBlock(K.Layer):
    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.conv = K.Conv2D(filters, 3, padding="same", use_bias=False)
        self.norm = K.BatchNormalization()
        self.squeeze = keras.Sequential(
            [
                K.GlobalAveragePooling2D(keepdims=True),
                K.Dense(2, "relu"),
                K.Dense(filters, "sigmoid"),
            ]
        )

    def call(self, inputs, training=False):
        x = ops.relu(self.norm(self.conv(inputs), training=training))
        return x * self.squeeze(x)


class Vision(keras.Model):
    """Blocks in a nested list."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.stages = [[ConvBlock(3), ConvBlock(3)], [ConvBlock(4)]]
        self.head = K.Dense(2)

    def call(self, images, training=False):
        x = images / 2.0
        for stage in self.stages:
            for block in stage:
                x = block(x, training=training)
            x = ops.max(ops.reshape(x, (-1, 2, 3, 6, x.shape[-1])), axis=1)
            x = ops.pad(x, [[0, 0], [0, 3], [0, 0], [0, 0]])
        return self.head(ops.mean(x, axis=(1, 2)))


def vision():
    return called(Vision(), random_inputs(2, 6, 6, 2))


def in_a_nested_model():
    inner = keras.Sequential([keras.Input((6,)), Residual(), K.Dense(4)])
    inputs = keras.Input((6,))
    x = inner(inputs) + inner(ops.relu(inputs))
    return keras.Model(inputs, Stack()(x)), random_inputs(3, 6)


MODELS = {
    "guide": guide,
    "subclassed": subclassed,
    "built lazily": built_lazily,
    "a composite twice": a_composite_twice,
    "composites of one class": composites_of_one_class,
    "dictionaries": dictionaries,
    "masks": masks,
    "two texts and numbers": two_texts_and_numbers,
    "vision": vision,
    "in a nested model": in_a_nested_model,
}


class Chain(K.Layer):
    """Parts one after the other, made in the constructor or in `build`."""

    def __init__(self, make, is_lazy=False, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.make = make
        self.parts = [] if is_lazy else make()

    def build(self, shape):
        self.parts = self.parts or self.make()
        super().build(shape)

    def call(self, x):
        for part in self.parts:
            x = part(x)
        return x


class Branches(Chain):
    """The sum of parts that are in a dictionary."""

    def __init__(self, make, **kwargs):
        super().__init__(lambda: [], **kwargs)
        self.branches = {str(i): part for i, part in enumerate(make())}

    def call(self, x):
        return sum(part(x) for part in self.branches.values())


class Gated(Chain):
    def call(self, x, training=None):
        gate = x
        for part in self.parts:
            gate = part(gate, training=training)
        return x + x * ops.sigmoid(gate)


class Twice(Chain):
    def call(self, x):
        return super().call(ops.tanh(super().call(x)))


class SelfAttention(Chain):
    def __init__(self, **kwargs):
        super().__init__(lambda: [K.MultiHeadAttention(2, 3)], **kwargs)

    def call(self, x):
        return self.parts[0](x, x)


class Plain(keras.Model):
    """A subclassed model around one layer."""

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer

    def call(self, inputs, training=None):
        return self.layer(inputs, training=training)


def random_layer(generator, depth):
    """Draw a layer from (batch, 5, 6) to the same shape, in random depth."""

    def parts():
        number = generator.integers(1, 4)
        return [random_layer(generator, depth - 1) for _ in range(number)]

    leaves = (
        lambda: K.Dense(6, "relu"),
        lambda: K.LayerNormalization(),
        lambda: K.BatchNormalization(),
        lambda: K.Conv1D(6, 3, padding="same"),
        lambda: K.LSTM(6, return_sequences=True),
        lambda: K.Bidirectional(K.GRU(3, return_sequences=True)),
        lambda: K.Dropout(0.0),
        lambda: K.ReLU(),
        lambda: keras.Sequential([K.Dense(4, "relu"), K.Dense(6)]),
        lambda: SelfAttention(),
    )
    composites = (
        lambda: Chain(parts),
        lambda: Chain(parts, is_lazy=True),
        lambda: Branches(parts),
        lambda: Gated(parts),
        lambda: Twice(parts),
    )
    choices = composites if depth else leaves
    return choices[generator.integers(len(choices))]()


def random_model(seed):
    """Draw a Sequential, Functional or subclassed model of random layers."""
    generator = np.random.default_rng(seed)
    layers = [random_layer(generator, depth) for depth in (2, 1, 0, 1)]
    start, inputs = keras.Input((5, 6)), random_inputs(3, 5, 6)
    if generator.integers(2):
        has_mask = bool(generator.integers(2))
        layers.insert(0, K.Embedding(9, 6, mask_zero=has_mask))
        start, inputs = keras.Input((5,), dtype="int32"), words(3, 5, size=4)
    kind = generator.integers(3)
    if kind == 0:
        return called(Plain(Chain(lambda: layers)), inputs)
    if kind == 1:
        return keras.Sequential([start, *layers]), inputs
    x = start
    for layer in layers:
        x = layer(x)
    return keras.Model(start, [x, layers[-1](x)]), inputs
