"""Layers made of layers that cannot be written out.

They read the number of examples, which is None when a model is written out.
"""

import keras
from keras import layers, ops


def registered(cls):
    return keras.saving.register_keras_serializable("tests_whole")(cls)


class Whole(layers.Layer):
    """Keeps its arguments for its config."""

    def __init__(self, **arguments):
        names = {"name", "trainable", "dtype"}
        own = {k: v for k, v in arguments.items() if k not in names}
        super().__init__(**{k: arguments[k] for k in names & set(arguments)})
        self.arguments = own

    def get_config(self):
        return {**super().get_config(), **self.arguments}

    def ones(self, x):
        """Ones for each example, which ties the layer to known shapes."""
        return ops.ones((ops.shape(x)[0], 1, 1), x.dtype)


@registered
class Feedforward(Whole):
    """`x + out(inner(x))`; with a gate, `inner(x) * gate(x)` in the middle.

    Args:
        units: Number of hidden units.
        activation: That of `inner`.
        gate: Activation of the gate; None for no gate.
        use_bias: Whether `inner` and `gate` have biases.
        ends_with_bias: Whether `out` has one.
    """

    def __init__(
        self,
        units,
        activation="relu",
        gate=None,
        use_bias=True,
        ends_with_bias=True,
        **kwargs,
    ):
        super().__init__(
            units=units,
            activation=activation,
            gate=gate,
            use_bias=use_bias,
            ends_with_bias=ends_with_bias,
            **kwargs,
        )
        options = {"use_bias": use_bias, "dtype": self.dtype_policy}
        self.inner = layers.Dense(units, activation, name="inner", **options)
        if gate:
            self.gate = layers.Dense(units, gate, name="gate", **options)

    def build(self, shape):
        self.out = layers.Dense(
            shape[-1],
            use_bias=self.arguments["ends_with_bias"],
            name="out",
            dtype=self.dtype_policy,
        )
        self.inner.build(shape)
        if self.arguments["gate"]:
            self.gate.build(shape)
        self.out.build((*shape[:-1], self.arguments["units"]))

    def call(self, x):
        hidden = self.inner(x)
        if self.arguments["gate"]:
            hidden = hidden * self.gate(x)
        return self.ones(x) * x + self.out(hidden)


@registered
class Attention(Whole):
    """Causal attention, written with operations; query heads are in groups.

    Args:
        heads: Number of heads of the queries.
        groups: Number of heads of keys and values.
        dims: Size of a head; None for the width divided by the heads.
    """

    def __init__(self, heads, groups, dims=None, **kwargs):
        super().__init__(heads=heads, groups=groups, dims=dims, **kwargs)
        self.heads, self.groups = heads, groups

    def build(self, shape):
        width = shape[-1]
        self.dims = self.arguments["dims"] or width // self.heads
        sizes = {"query": self.heads, "key": self.groups, "value": self.groups}
        self.projections = {
            name: layers.Dense(n * self.dims, name=name)
            for name, n in sizes.items()
        }
        for layer in self.projections.values():
            layer.build(shape)
        self.out = layers.Dense(width, name="out")
        self.out.build((*shape[:-1], self.heads * self.dims))

    def call(self, x):
        batch, length = ops.shape(x)[:2]
        per_group = self.heads // self.groups
        query, key, value = (
            ops.reshape(layer(x), (batch, length, -1, self.dims))
            for layer in self.projections.values()
        )
        key, value = (ops.repeat(x, per_group, axis=2) for x in (key, value))
        scores = ops.einsum("bqhd,bkhd->bhqk", query, key) / self.dims**0.5
        causal = ops.tril(ops.ones((batch, 1, length, length)))
        weights = ops.softmax(ops.where(causal > 0, scores, -1e9))
        mixed = ops.einsum("bhqk,bkhd->bqhd", weights, value)
        mixed = ops.reshape(mixed, (batch, length, self.heads * self.dims))
        return x + self.out(mixed)


@registered
class Positions(Whole):
    """Adds a vector for each place, out of tables of `length` rows."""

    def __init__(self, length, **kwargs):
        super().__init__(length=length, **kwargs)

    def build(self, shape):
        self.tables = [
            layers.Embedding(self.arguments["length"], shape[-1], name=name)
            for name in ("one", "two")
        ]
        for table in self.tables:
            table.build()

    def call(self, x):
        places = ops.arange(ops.shape(x)[1])
        one, two = (table(places) for table in self.tables)
        return self.ones(x) * x + one * two


@registered
class Broadcasting(Whole):
    """Adds to `x` what may have one channel for any width of `x`."""

    def __init__(self, width, **kwargs):
        super().__init__(width=width, **kwargs)
        self.first = layers.Dense(3, name="first")
        self.last = layers.Dense(width, name="last")

    def build(self, shape):
        self.first.build(shape)
        self.last.build((*shape[:-1], 3))

    def call(self, x):
        return self.ones(x) * x + self.last(self.first(x))


@registered
class Unportable(Feedforward):
    """Its config asks for an attribute that it does not have."""

    def get_config(self):
        return {**super().get_config(), "depth": self.depth}


@registered
class Stack(keras.Model):
    """Makes its graph by itself, and has a method that Keras does not know."""

    def __init__(self, units, width=6, depth=2, **kwargs):
        inputs = keras.Input((None, width))
        outputs = inputs
        for i in range(depth):
            outputs = Unportable(units, name=f"block_{i}")(outputs)
        super().__init__(inputs, outputs, **kwargs)
        self.arguments = {"units": units, "width": width, "depth": depth}

    def get_config(self):
        return {**self.arguments, "name": self.name}

    def first(self, x):
        return self.get_layer("block_0")(x)


def model_of(*stack, width=6):
    """A Functional model of layers that read `(batch, length, width)`."""
    inputs = keras.Input((None, width))
    outputs = inputs
    for layer in stack:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)
