"""Variational models of many kinds, for tests of conversion in both ways."""

import keras
import numpy as np

from keras_vd import layers
from tests.helpers.arrays import random_inputs, to_float64
from tests.helpers.models import Wrapping, mlp, nested


class Scale(keras.layers.Layer):
    """A user's layer that was never registered with Keras."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, input_shape):
        self.offset = self.add_weight(shape=input_shape[-1:], name="offset")

    def call(self, inputs):
        return inputs * self.factor + self.offset

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


class Tagged(layers.VDDense):
    """A user's own variational layer, with an argument of its own."""

    def __init__(self, units, tag, name=None, **kwargs):
        super().__init__(units, name=name, **kwargs)
        self.tag = tag

    def get_config(self):
        return {**super().get_config(), "tag": self.tag}


class Fixed(keras.Model):
    """A subclassed model that makes its layers by itself."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.VDDense(3, name="dense")

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, inputs, training=None):
        return self.dense(inputs, training=training)

    def get_config(self):
        return {}


def stack(*middle):
    return keras.Sequential(
        [keras.Input((6,)), layers.VDDense(4), *middle, layers.VDDense(3)]
    )


def sequential_without_input():
    model = keras.Sequential([layers.VDDense(5, "relu"), layers.VDDense(3)])
    model(np.zeros((1, 6), "float32"))
    return model


def two_inputs_and_outputs():
    first, second = keras.Input((6,), name="a"), keras.Input((4,), name="b")
    hidden = layers.VDDense(5)(first)
    joined = keras.layers.Concatenate()([hidden, layers.VDDense(2)(second)])
    return keras.Model(
        {"a": first, "b": second},
        [layers.VDDense(3, name="c")(joined), hidden],
    )


def shared_layer():
    shared = layers.VDDense(6)
    inputs = keras.Input((6,))
    return keras.Model(inputs, shared(keras.layers.ReLU()(shared(inputs))))


def shared_submodel():
    inner = stack(keras.layers.LayerNormalization())
    inputs = keras.Input((6,))
    other = keras.layers.ReLU()(inputs)
    return keras.Model(
        inputs, keras.layers.Subtract()([inner(inputs), inner(other)])
    )


def convolutions():
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.VDConv2D(4, 3, groups=2, padding="same", use_bias=False),
            layers.VDConv2DTranspose(3, 2, strides=2),
            layers.VDDepthwiseConv2D(2, depth_multiplier=2),
            layers.VDSeparableConv2D(4, 2, strides=2),
            keras.layers.Reshape((25, 4)),
            layers.VDConv1D(3, 2, padding="causal", dilation_rate=2),
            layers.VDEinsumDense("abc,cd->abd", (None, 2), bias_axes="d"),
        ]
    )


def not_trainable():
    model = stack(layers.VDDense(4, trainable=False))
    model.layers[2].trainable = False
    return model


def mixed_precision():
    bfloat16 = {"dtype": "mixed_bfloat16"}
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.VDDense(5, "relu", **bfloat16),
            layers.VDDense(3, **bfloat16),
        ]
    )


def compiled():
    model = mlp()

    def loss(targets, outputs):
        return keras.ops.mean(outputs)

    model.compile("adam", loss, metrics=["accuracy"])
    return model


# Builder of a model, and shapes of one example where not (6,).
MODELS = {
    "sequential": (mlp, None),
    "sequential without input": (sequential_without_input, None),
    "nested, TimeDistributed": (nested, None),
    "two inputs, two outputs": (
        two_inputs_and_outputs,
        {"a": (6,), "b": (4,)},
    ),
    "shared layer": (shared_layer, None),
    "shared submodel": (shared_submodel, None),
    "convolutions": (convolutions, (6, 6, 2)),
    "batch normalization": (
        lambda: stack(keras.layers.BatchNormalization()),
        None,
    ),
    "dropout": (lambda: stack(keras.layers.Dropout(0.5)), None),
    "user's layer": (lambda: stack(Scale(3.0)), None),
    "user's variational layer": (
        lambda: stack(Tagged(4, "mine", name="tagged")),
        None,
    ),
    "lambda": (lambda: stack(keras.layers.Lambda(lambda x: x + 1)), None),
    "mixed precision": (mixed_precision, None),
    "not trainable": (not_trainable, None),
    "compiled": (compiled, None),
    "other posteriors": (
        lambda: stack(layers.VDDense(4, posterior="gaussian", kl_weight=0.1)),
        None,
    ),
}


def wrapping():
    model = Wrapping(mlp())
    model.build((None, 6))
    return model


MODELS["subclassed"] = (wrapping, None)
CORE = (
    "sequential without input",
    "nested, TimeDistributed",
    "two inputs, two outputs",
    "shared submodel",
    "batch normalization",
    "mixed precision",
    "subclassed",
)


def inputs_of(shapes):
    if isinstance(shapes, dict):
        return {name: random_inputs(5, *s) for name, s in shapes.items()}
    return random_inputs(5, *(shapes or (6,)))


def predict(model, inputs):
    outputs = model(inputs, training=False)
    return [to_float64(output) for output in keras.tree.flatten(outputs)]


def everything(model):
    return [to_float64(variable) for variable in model.variables]
