"""Plain architectures whose channels can have gates, at any width.

Each takes the number of channels of its thinnest layer, so that a model in
which half of all channels are closed can be compared with one that was built
with half of them.
"""

import keras

K = keras.layers
CLASSES = 5


def normalized(x, filters, size=3, strides=1, activation="relu", name=None):
    """A convolution, its normalization and its activation."""
    x = K.Conv2D(
        filters, size, strides, padding="same", use_bias=False, name=name
    )(x)
    x = K.BatchNormalization()(x)
    return x if activation is None else K.Activation(activation)(x)


def classified(inputs, x, dropout=0.0):
    x = K.GlobalAveragePooling2D()(x)
    if dropout:
        x = K.Dropout(dropout)(x)
    return keras.Model(inputs, K.Dense(CLASSES, name="classes")(x))


def mlp(width):
    return keras.Sequential(
        [
            keras.Input((6,)),
            K.Dense(2 * width, "relu", name="one"),
            K.Dropout(0.2),
            K.Dense(width, name="two"),
            K.BatchNormalization(),
            K.ReLU(),
            K.Dense(CLASSES, "softmax", name="classes"),
        ]
    )


def vgg(width):
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            K.Conv2D(width, 3, activation="relu", name="one"),
            K.Conv2D(width, 3, padding="same", name="two"),
            K.BatchNormalization(),
            K.ReLU(),
            K.MaxPooling2D(),
            K.Conv2D(2 * width, 3, activation="relu", name="three"),
            K.Flatten(),
            K.Dense(4 * width, "gelu", name="hidden"),
            K.Dense(CLASSES, name="classes"),
        ]
    )


def resnet(width):
    """A stem, and blocks with identity and projection shortcuts."""

    def block(x, filters, name, strides=1):
        y = normalized(x, filters, 3, strides, name=f"{name}_inner")
        y = normalized(y, filters, activation=None, name=f"{name}_outer")
        if strides > 1:
            x = normalized(
                x, filters, 1, strides, None, name=f"{name}_shortcut"
            )
        return K.ReLU()(K.Add()([x, y]))

    inputs = keras.Input((8, 8, 3))
    x = normalized(inputs, width, name="stem")
    x = block(x, width, "a")
    x = block(x, 2 * width, "b", strides=2)
    x = block(x, 2 * width, "c")
    return classified(inputs, x, dropout=0.1)


def preactivated(width):
    """Residual blocks whose normalization and activation come first."""
    inputs = keras.Input((8, 8, 3))
    x = K.Conv2D(width, 3, padding="same", name="stem")(inputs)
    for name in ("a", "b"):
        y = K.ReLU()(K.BatchNormalization()(x))
        y = normalized(y, 2 * width, name=f"{name}_inner")
        y = K.Conv2D(width, 3, padding="same", name=f"{name}_outer")(y)
        x = x + y
    return classified(inputs, K.ReLU()(K.BatchNormalization()(x)))


def mobile(width):
    """An inverted residual with squeeze and excitation."""
    inputs = keras.Input((8, 8, 3))
    x = normalized(inputs, width, name="stem")
    y = normalized(x, 4 * width, 1, activation="relu6", name="expand")
    y = K.DepthwiseConv2D(3, padding="same", use_bias=False, name="depth")(y)
    y = K.Activation("silu")(K.BatchNormalization()(y))
    z = K.GlobalAveragePooling2D(keepdims=True)(y)
    z = K.Conv2D(width, 1, activation="relu", name="squeeze")(z)
    z = K.Conv2D(4 * width, 1, activation="sigmoid", name="excite")(z)
    y = K.Multiply()([y, z])
    y = normalized(y, width, 1, activation=None, name="project")
    return classified(inputs, K.Add()([x, y]))


def branches(width):
    """Convolutions side by side, twice."""
    inputs = keras.Input((8, 8, 3))
    x = inputs
    for name in ("a", "b"):
        x = K.Concatenate()(
            [
                normalized(x, width, 1, name=f"{name}_one"),
                normalized(x, 2 * width, 3, name=f"{name}_three"),
            ]
        )
    return classified(inputs, x)


def feed_forward(width):
    """A Transformer block of 8 features; its hidden units can go."""
    inputs = keras.Input((4, 8))
    attention = K.MultiHeadAttention(2, 4, name="attention")
    x = K.LayerNormalization()(inputs + attention(inputs, inputs))
    y = K.Dense(4 * width, "gelu", name="wide")(x)
    y = K.Dense(8, name="narrow")(K.Dropout(0.1)(y))
    x = K.LayerNormalization()(x + y)
    x = K.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, K.Dense(CLASSES, name="classes")(x))


def transferred(width):
    """A backbone, which is a model of its own, and a new head."""
    inputs = keras.Input((8, 8, 3))
    x = normalized(inputs, width, name="stem")
    y = normalized(x, width, name="inner")
    y = normalized(y, width, activation=None, name="outer")
    backbone = keras.Model(inputs, K.ReLU()(x + y), name="backbone")
    images = keras.Input((8, 8, 3))
    return classified(images, backbone(images))


def siamese(width):
    """Two inputs of the same layers."""
    one, other = keras.Input((6,), name="one"), keras.Input((6,), name="two")
    hidden = K.Dense(2 * width, "relu", name="hidden")
    last = K.Dense(width, name="last")
    found = K.Subtract()([last(hidden(x)) for x in (one, other)])
    return keras.Model([one, other], K.Dense(CLASSES, name="classes")(found))


def recurrent(width):
    inputs = keras.Input((4, 6))
    x = K.Dense(width, "tanh", name="embed")(inputs)
    return keras.Model(inputs, K.LSTM(4, name="lstm")(x))


# Gates by their names, with the layers whose channels they are for.
GATED = {
    mlp: {"one_gate": ("one",), "two_gate": ("two",)},
    vgg: {
        "one_gate": ("one",),
        "two_gate": ("two",),
        "three_gate": ("three",),
        "hidden_gate": ("hidden",),
    },
    resnet: {
        "stem_gate": ("stem", "a_outer"),
        "a_inner_gate": ("a_inner",),
        "b_inner_gate": ("b_inner",),
        "b_outer_gate": ("b_outer", "b_shortcut", "c_outer"),
        "c_inner_gate": ("c_inner",),
    },
    preactivated: {
        "stem_gate": ("stem", "a_outer", "b_outer"),
        "a_inner_gate": ("a_inner",),
        "b_inner_gate": ("b_inner",),
    },
    mobile: {
        "stem_gate": ("stem", "project"),
        "expand_gate": ("expand", "depth", "excite"),
        "squeeze_gate": ("squeeze",),
    },
    branches: {
        "a_one_gate": ("a_one",),
        "a_three_gate": ("a_three",),
        "b_one_gate": ("b_one",),
        "b_three_gate": ("b_three",),
    },
    feed_forward: {"wide_gate": ("wide",)},
    transferred: {
        "stem_gate": ("stem", "outer"),
        "inner_gate": ("inner",),
    },
    siamese: {"hidden_gate": ("hidden",), "last_gate": ("last",)},
    recurrent: {"embed_gate": ("embed",)},
}
