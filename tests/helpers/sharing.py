"""Plain models in which layers are shared, or things have equal names."""

import keras
from keras import ops

K = keras.layers


def chain(*stack, shape=(6,)):
    return keras.Sequential([keras.Input(shape), *stack])


def graph(build, shape=(6,)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, build(inputs))


def twice(layer, shape=(6,)):
    """A Sequential model that uses a layer twice."""
    return chain(K.Dense(6), layer, K.Dense(6), layer, K.Dense(2), shape=shape)


def twice_in_a_nested_model():
    relu = K.ReLU()
    inner = chain(K.Dense(6), relu, K.Dense(6), relu)
    return chain(inner, K.Dense(2))


def twice_in_a_wrapped_model():
    relu = K.ReLU()
    inner = chain(K.Dense(6), relu, K.Dense(6), relu)
    return chain(K.TimeDistributed(inner), K.Dense(2), shape=(3, 6))


def twice_without_input():
    relu = K.ReLU()
    model = keras.Sequential([K.Dense(6), relu, K.Dense(5), relu])
    model.build((None, 6))
    return model


def pooling_twice():
    pool = K.MaxPooling2D(2)
    return chain(
        *(K.Conv2D(3, 1), pool, K.Conv2D(3, 1), pool, K.Flatten(), K.Dense(2)),
        shape=(8, 8, 2),
    )


def with_a_nested_model(layer):
    """A layer that stands in a nested model and behind it."""
    inner = chain(K.Dense(6), layer)
    return graph(lambda x: K.Dense(2)(layer(K.Dense(6)(inner(x)))))


def of_two_nested_models(layer):
    first, second = chain(layer), graph(lambda x: K.ReLU()(layer(x)))
    return graph(lambda x: K.Dense(2)(K.Concatenate()([first(x), second(x)])))


def of_three_levels():
    layer = K.Dense(6, "relu")
    outer = chain(chain(layer), layer)
    return graph(lambda x: K.Dense(2)(layer(outer(x))))


def of_two_wrapped_models():
    layer = K.Dense(6)
    models = chain(layer), chain(K.ReLU(), layer)
    return graph(
        lambda x: K.Dense(2)(
            K.Concatenate()([K.TimeDistributed(m)(x) for m in models])
        ),
        shape=(3, 6),
    )


def with_a_wrapper(layer, is_first):
    def build(x):
        both = [K.TimeDistributed(layer), layer]
        first, second = both if is_first else reversed(both)
        return K.Dense(2)(second(K.Dense(6)(first(K.Dense(6)(x)))))

    return graph(build, shape=(3, 6))


def of_two_wrappers():
    layer = K.Dense(6)
    return graph(
        lambda x: K.Dense(2)(
            K.TimeDistributed(layer)(K.TimeDistributed(layer)(x))
        ),
        shape=(3, 6),
    )


def of_two_recurrent_layers():
    cell = K.GRUCell(6)
    return graph(
        lambda x: K.Dense(2)(
            K.RNN(cell)(K.RNN(cell, return_sequences=True)(x))
        ),
        shape=(3, 6),
    )


def with_bidirectional():
    both = K.Bidirectional(K.LSTM(3, return_sequences=True))
    return graph(
        lambda x: K.Dense(2)(K.Concatenate()([both(x), both.forward_layer(x)])),
        shape=(3, 6),
    )


def of_attention():
    attention = K.MultiHeadAttention(2, 3)
    inner = graph(lambda x: attention(x, x), shape=(3, 6))
    return graph(lambda x: K.Dense(2)(attention(inner(x), x)), shape=(3, 6))


class Doubling(K.Layer):
    """A user's wrapper, never registered."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        if isinstance(inner, dict):
            inner = keras.saving.deserialize_keras_object(inner)
        self.inner = inner

    def build(self, shape):
        if not self.inner.built:
            self.inner.build(shape)

    def call(self, inputs):
        return 2 * self.inner(inputs)

    def get_config(self):
        inner = keras.saving.serialize_keras_object(self.inner)
        return {**super().get_config(), "inner": inner}


def with_a_wrapper_of_the_user():
    layer = K.Dense(6)
    return graph(lambda x: K.Dense(2)(layer(Doubling(layer)(x))))


# Layers are shared, with weights and without.
SHARED = {
    "ReLU twice": lambda: twice(K.ReLU()),
    "normalization twice": lambda: twice(K.BatchNormalization()),
    "Dense twice": lambda: twice(K.Dense(6, "relu")),
    "model twice": lambda: twice(chain(K.Dense(6), K.ReLU())),
    "wrapper twice": lambda: twice(K.TimeDistributed(K.Dense(6)), (3, 6)),
    "two directions twice": lambda: twice(
        K.Bidirectional(K.GRU(3, return_sequences=True)), (3, 6)
    ),
    "pooling twice": pooling_twice,
    "twice in a nested model": twice_in_a_nested_model,
    "twice in a wrapped model": twice_in_a_wrapped_model,
    "twice without input": twice_without_input,
    "nested, activation": lambda: with_a_nested_model(K.Activation("tanh")),
    "nested, Dense": lambda: with_a_nested_model(K.Dense(6)),
    "nested, normalization": lambda: with_a_nested_model(
        K.BatchNormalization()
    ),
    "two nested": lambda: of_two_nested_models(K.Dense(6)),
    "two nested, ReLU": lambda: of_two_nested_models(K.ReLU()),
    "three levels": of_three_levels,
    "two wrapped models": of_two_wrapped_models,
    "wrapper first": lambda: with_a_wrapper(K.Dense(6), True),
    "wrapper last": lambda: with_a_wrapper(K.Dense(6), False),
    "wrapper, ReLU": lambda: with_a_wrapper(K.ReLU(), True),
    "two wrappers": of_two_wrappers,
    "cell": of_two_recurrent_layers,
    "direction": with_bidirectional,
    "attention": of_attention,
    "user's wrapper": with_a_wrapper_of_the_user,
}

# A layer of Keras and the operation of the same name.
OPERATIONS = {
    "Add": lambda a, b: (K.Add()([a, b]), a + 3.0),
    "Subtract": lambda a, b: (K.Subtract()([a, b]), a - 3.0),
    "Multiply": lambda a, b: (K.Multiply()([a, b]), a * 3.0),
    "Maximum": lambda a, b: (K.Maximum()([a, b]), ops.maximum(a, 0.1)),
    "Minimum": lambda a, b: (K.Minimum()([a, b]), ops.minimum(a, 0.1)),
    "Average": lambda a, b: (K.Average()([a, b]), ops.average(a, axis=-1)),
    "Concatenate": lambda a, b: (
        K.Concatenate()([a, b]),
        ops.concatenate([a, b]),
    ),
    "Dot": lambda a, b: (K.Dot(axes=1)([a, b]), ops.dot(a, ops.ones((6, 2)))),
    "Reshape": lambda a, b: (
        K.Reshape((3, 2))(a),
        ops.reshape(b, (-1, 2, 3)),
    ),
    "Softmax": lambda a, b: (K.Softmax()(a), ops.softmax(b)),
}


def operations(name):
    return graph(lambda x: list(OPERATIONS[name](K.Dense(6)(x), K.Dense(6)(x))))


def class_named(name, base, factor):
    """A user's class of that name, whose outputs are multiplied."""

    def call(self, inputs, training=None):
        return factor * base.call(self, inputs)

    return type(name, (base,), {"call": call, "__module__": "tests.user"})


def user_classes():
    """Two of one name, which is also that of a class of Keras."""
    first = class_named("Dense", K.Dense, 2.0)
    second = class_named("Dense", K.Dense, -3.0)
    return chain(
        *(first(5), K.Dense(6), second(4), K.TimeDistributed(second(4))),
        *(K.TimeDistributed(K.Dense(4)), K.Dense(2)),
        shape=(3, 6),
    )


def registered_user_class():
    """Under its package, a name that a class of Keras has too."""
    cls = class_named("Dense", K.Dense, 2.0)
    cls = keras.saving.register_keras_serializable("sharing")(cls)
    return chain(cls(5), K.Dense(6), K.Dense(2))


def function_of_the_user():
    """An activation that is called like one of Keras."""

    def relu(x):
        return ops.tanh(x)

    return chain(
        *(K.Dense(5, relu), K.Activation(relu), K.Dense(4, "relu")),
        K.Bidirectional(K.LSTM(4, activation=relu)),
        shape=(3, 6),
    )


NAMES = {
    **{x: lambda x=x: operations(x) for x in OPERATIONS},
    "user's classes": user_classes,
    "registered class": registered_user_class,
    "user's function": function_of_the_user,
}
