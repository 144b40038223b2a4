"""Architectures with gates: where these fold, and where they do not."""

import keras
import numpy as np

from keras_vd import layers
from tests.helpers.models import Wrapping

K = keras.layers
Gate = layers.LogNormalDropout
Bernoulli = layers.BetaBernoulliDropout
Dependent = layers.DependentBetaBernoulliDropout


def chain(shape, *stack, name=None):
    return keras.Sequential([keras.Input(shape), *stack], name=name)


def graph(shape, build):
    inputs = keras.Input(shape)
    return keras.Model(inputs, build(inputs))


def residual(x):
    gated = Gate()(K.Dense(6)(x))
    return K.Dense(2)(K.Add()([x, gated]))


def shared_consumer(x):
    dense = K.Dense(6)
    return dense(K.ReLU()(dense(Gate()(x))))


def shared_gate(x):
    gate = Gate()
    return K.Dense(2)(gate(K.ReLU()(gate(x))))


def gate_of_two_branches(x):
    gate = Gate()
    one = K.Dense(2)(gate(K.Dense(4)(x)))
    return K.Add()([one, K.Dense(2)(K.ReLU()(gate(K.Dense(4)(x))))])


def gate_of_two_branches_one_cannot(x):
    gate = Gate()
    one = K.Dense(2)(gate(K.Dense(4)(x)))
    return K.Add()(
        [one, K.Dense(2)(K.ReLU(max_value=0.3)(gate(K.Dense(4)(x))))]
    )


def gate_and_reader_of_two_branches(x):
    gate, dense = Gate(), K.Dense(2)
    return K.Add()([dense(gate(K.Dense(4)(x))) for _ in range(2)])


def reader_of_two_gates(x):
    dense = K.Dense(2)
    return K.Add()([dense(Gate()(K.Dense(4)(x))) for _ in range(2)])


def side_by_side(x, axis=-1):
    joined = K.Concatenate(axis)([Gate()(x), K.ReLU()(x), Gate()(x)])
    return K.Dense(2)(K.ReLU()(joined))


def two_readers(x):
    gated = Gate()(x)
    return K.Concatenate()([K.Dense(2)(gated), K.Dense(3)(K.ReLU()(gated))])


def one_reader_cannot(x):
    gated = Gate()(x)
    return K.Concatenate()([K.Dense(2)(gated), K.Activation("tanh")(gated)])


def product(x):
    gated = Gate()(x)
    return K.Dense(2)(K.Multiply()([gated, gated]))


def gated_output(x):
    gated = Gate()(x)
    return [K.Dense(2)(gated), gated]


def submodels(x):
    """Two submodels whose gates have one name."""
    blocks = [
        chain((6,), Gate(name="gate"), K.Dense(6), name=name)
        for name in ("a", "b")
    ]
    return blocks[1](K.ReLU()(blocks[0](x)))


def nested_functional(x):
    inner = graph((6,), lambda y: K.Dense(4)(Gate()(y)))
    return K.Dense(2)(Gate()(inner(K.Dense(6)(x))))


def gate_before_submodel(x):
    return chain((6,), K.Dense(2))(Gate()(x))


def shared_submodel(x):
    inner = chain((6,), Gate(), K.Dense(6, "relu"))
    return inner(inner(x))


def name_of_a_layer(x):
    inner = chain((6,), K.Dense(6, name="same"))
    return K.Dense(2)(Gate(name="same")(inner(x)))


def name_of_an_operation(x):
    inner = graph((6,), lambda y: keras.ops.multiply(y, 2.0))
    (name,) = [o.name for o in inner.operations if "multiply" in o.name]
    return K.Dense(2)(Gate(name=name)(inner(x)))


def initial_state(x):
    state = Gate()(K.Dense(4)(x))
    return K.GRU(4)(K.RepeatVector(3)(x), initial_state=state)


def attention(x):
    gated = Gate()(x)
    return K.MultiHeadAttention(2, 3)(gated, gated)


def keyword(x):
    return K.Dense(3)(inputs=Gate()(x))


def dict_model():
    first, second = keras.Input((6,), name="a"), keras.Input((4,), name="b")
    joined = K.Concatenate()([K.Dense(3)(Gate()(first)), second])
    outputs = {"one": K.Dense(2)(Gate()(joined)), "two": K.ReLU()(second)}
    return keras.Model({"a": first, "b": second}, outputs)


def doubling():
    model = Wrapping(chain((6,), Gate(), K.Dense(3)))
    model.build((None, 6))
    return model


def chain_without_input(*stack):
    model = keras.Sequential([*stack])
    model(np.zeros((1, 6), "float32"))
    return model


def normalized(**options):
    return lambda: chain(
        (6,), Gate(), K.BatchNormalization(**options), K.Dense(2)
    )


# Builder, shape of one example. Not a single multiply is left of these.
FOLDED = {
    "chain": (
        lambda: chain(
            *((6,), Gate(), K.Dense(5, "relu"), Gate(), K.Dense(4), Gate()),
            *(K.ReLU(), K.Dropout(0.5), K.Dense(2)),
        ),
        (6,),
    ),
    "Beta-Bernoulli": (
        lambda: chain((6,), Bernoulli(), K.Dense(5, "relu"), K.Dense(2)),
        (6,),
    ),
    "no input layer": (
        lambda: chain_without_input(Gate(), K.Dense(3)),
        (6,),
    ),
    "LeNet": (
        lambda: chain(
            *((8, 8, 2), Gate(), K.Conv2D(6, 3, activation="relu"), Gate()),
            *(K.MaxPooling2D(), K.Conv2D(4, 2), K.ReLU(), Gate()),
            *(
                K.AveragePooling2D(2, padding="same"),
                K.Flatten(),
                Gate(),
                K.Dense(3),
            ),
        ),
        (8, 8, 2),
    ),
    "padding": (
        lambda: chain(
            *((5, 5, 6), Gate(), K.ZeroPadding2D(1), K.Cropping2D(1)),
            *(K.UpSampling2D(2), K.Conv2D(3, 3, padding="same"), K.ReLU()),
        ),
        (5, 5, 6),
    ),
    "groups": (
        lambda: chain((5, 6), Gate(), K.Conv1D(9, 2, groups=3), K.ReLU()),
        (5, 6),
    ),
    "depthwise": (
        lambda: chain(
            (5, 5, 6), Gate(), K.DepthwiseConv2D(2, depth_multiplier=2)
        ),
        (5, 5, 6),
    ),
    "separable": (
        lambda: chain(
            (5, 6), Gate(), K.SeparableConv1D(3, 2, depth_multiplier=2)
        ),
        (5, 6),
    ),
    "transposed": (
        lambda: chain((5, 5, 6), Gate(), K.Conv2DTranspose(3, 2, strides=2)),
        (5, 5, 6),
    ),
    "1D and 3D": (
        lambda: chain(
            *((4, 4, 4, 6), Gate(), K.Conv3D(3, 2), Gate()),
            *(K.MaxPooling3D(2, padding="same"), K.Conv3DTranspose(2, 2)),
        ),
        (4, 4, 4, 6),
    ),
    "normalization": (normalized(), (6,)),
    "normalization of channels": (
        lambda: chain((3, 3, 6), Gate(), K.BatchNormalization(), K.Flatten()),
        (3, 3, 6),
    ),
    "global pooling": (
        lambda: chain(
            *((5, 5, 6), Gate(), K.GlobalMaxPooling2D(keepdims=True)),
            *(K.GlobalAveragePooling2D(), K.Dense(2)),
        ),
        (5, 5, 6),
    ),
    "LSTM": (lambda: chain((5, 6), Gate(), K.LSTM(3)), (5, 6)),
    "GRU": (lambda: chain((5, 6), Gate(), K.GRU(3)), (5, 6)),
    "SimpleRNN": (lambda: chain((5, 6), Gate(), K.SimpleRNN(3)), (5, 6)),
    "Bidirectional": (
        lambda: chain((5, 6), Gate(), K.Bidirectional(K.LSTM(3))),
        (5, 6),
    ),
    "EinsumDense": (
        lambda: chain(
            (5, 6), Gate(), K.EinsumDense("abc,cde->abde", (None, 2, 3))
        ),
        (5, 6),
    ),
    "EinsumDense with an ellipsis": (
        lambda: chain((5, 6), Gate(), K.EinsumDense("...c,dc->...d", (5, 3))),
        (5, 6),
    ),
    "EinsumDense of two axes": (
        lambda: chain((6, 3), Gate(axis=1), K.EinsumDense("abc,bcd->ad", (4,))),
        (6, 3),
    ),
    "leaky": (
        lambda: chain((6,), Gate(), K.LeakyReLU(0.2), K.PReLU(), K.Dense(2)),
        (6,),
    ),
    "activations": (
        lambda: chain(
            *((6,), Gate(), K.Activation("relu"), K.Activation("linear")),
            *(K.Activation("leaky_relu"), K.GaussianNoise(0.1), K.Dense(2)),
        ),
        (6,),
    ),
    "two in a row": (
        lambda: chain((6,), Gate(), Bernoulli(), K.Dense(2)),
        (6,),
    ),
    "axis 1, flattened": (
        lambda: chain((6, 3), Gate(axis=1), K.Flatten(), K.Dense(2)),
        (6, 3),
    ),
    "axis 1, reshaped": (
        lambda: chain(
            (6, 4), Gate(axis=1), K.Reshape((3, 8)), K.Flatten(), K.Dense(2)
        ),
        (6, 4),
    ),
    "two readers": (lambda: graph((6,), two_readers), (6,)),
    "nested": (lambda: graph((6,), nested_functional), (6,)),
    "shared submodel": (lambda: graph((6,), shared_submodel), (6,)),
    "subclassed": (doubling, (6,)),
    "two in a row, normalization": (
        lambda: chain((6,), Gate(), Bernoulli(), K.BatchNormalization()),
        (6,),
    ),
    # One factor for all groups of channels.
    "one unit": (
        lambda: chain((1, 6), Gate(axis=1), K.Conv1D(6, 1, groups=3)),
        (1, 6),
    ),
    "dicts": (dict_model, {"a": (6,), "b": (4,)}),
    "VDDense": (
        lambda: chain(
            (6,), Gate(), layers.VDDense(5, "relu"), Gate(), layers.VDDense(2)
        ),
        (6,),
    ),
    "VDConv2D": (
        lambda: chain(
            (4, 4, 6),
            Gate(),
            layers.VDConv2D(3, 2),
            Gate(),
            K.Flatten(),
            layers.VDDense(2),
        ),
        (4, 4, 6),
    ),
    "VDLSTM": (
        lambda: chain((5, 6), Gate(), layers.VDLSTM(3)),
        (5, 6),
    ),
    "VDLSTM, both directions": (
        lambda: chain((5, 6), Gate(), K.Bidirectional(layers.VDGRU(3))),
        (5, 6),
    ),
    "mixed precision": (
        lambda: chain(
            *((6,), Gate(dtype="mixed_bfloat16")),
            K.Dense(2, dtype="mixed_bfloat16"),
        ),
        (6,),
    ),
    "in TimeDistributed": (
        lambda: chain(
            (3, 6), K.TimeDistributed(chain((6,), Gate(), K.Dense(4)))
        ),
        (3, 6),
    ),
    "masked": (
        lambda: chain(
            *((3, 6), K.Masking(), Gate(), K.Dense(4), Gate()),
            K.Bidirectional(K.GRU(4, return_sequences=True)),
        ),
        (3, 6),
    ),
    "any length": (
        lambda: chain(
            *((None, 6), Gate(), K.Conv1D(3, 2), K.ReLU(), Gate()),
            *(K.GlobalMaxPooling1D(), K.Dense(2)),
        ),
        (5, 6),
    ),
    "normalization of axis 1": (
        lambda: chain((6, 4), Gate(axis=1), K.BatchNormalization(axis=1)),
        (6, 4),
    ),
    "other variational layers": (
        lambda: chain(
            *((5, 6), Gate(), layers.VDSeparableConv1D(3, 2), Gate()),
            *(layers.VDDepthwiseConv1D(2), Gate()),
            *(layers.VDConv1DTranspose(3, 2), Gate()),
            layers.VDEinsumDense("abc,cd->abd", (None, 3)),
        ),
        (5, 6),
    ),
    "not trainable": (
        lambda: chain((6,), Gate(), K.Dense(2, trainable=False)),
        (6,),
    ),
}
# Names play no part.
FOLDED |= {
    "equal names": (lambda: graph((6,), submodels), (6,)),
    "two uses": (lambda: graph((6,), gate_of_two_branches), (6,)),
    "two uses, one reader": (
        lambda: graph((6,), gate_and_reader_of_two_branches),
        (6,),
    ),
    "side by side": (lambda: graph((3, 6), side_by_side), (3, 6)),
    "name of a layer": (lambda: graph((6,), name_of_a_layer), (6,)),
    "name of an operation": (lambda: graph((6,), name_of_an_operation), (6,)),
}
# Builder, shape, how many gates stay; None: either way is exact.
LEFT = {
    "no scale": (normalized(scale=False), (6,), 1),
    "no center": (normalized(center=False), (6,), 1),
    "neither": (normalized(scale=False, center=False), (6,), 1),
    "ReLU6": (
        lambda: chain((6,), Gate(), K.ReLU(max_value=0.3), K.Dense(2)),
        (6,),
        1,
    ),
    "ReLU with a threshold": (
        lambda: chain((6,), Gate(), K.ReLU(threshold=0.2), K.Dense(2)),
        (6,),
        1,
    ),
    "tanh": (
        lambda: chain((6,), Gate(), K.Activation("tanh"), K.Dense(2)),
        (6,),
        1,
    ),
    "residual": (lambda: graph((6,), residual), (6,), 1),
    "two uses, one cannot": (
        lambda: graph((6,), gate_of_two_branches_one_cannot),
        (6,),
        1,
    ),
    "one reader of two gates": (
        lambda: graph((6,), reader_of_two_gates),
        (6,),
        2,
    ),
    "side by side in time": (
        lambda: graph((3, 6), lambda x: side_by_side(x, axis=1)),
        (3, 6),
        2,
    ),
    "shared reader": (lambda: graph((6,), shared_consumer), (6,), 1),
    "shared gate": (lambda: graph((6,), shared_gate), (6,), 1),
    "one of two readers": (lambda: graph((6,), one_reader_cannot), (6,), 1),
    "product": (lambda: graph((6,), product), (6,), 1),
    "output": (lambda: chain((6,), K.Dense(5), Gate()), (6,), 1),
    "output, relu": (lambda: chain((6,), Gate(), K.ReLU()), (6,), 1),
    "output as well": (lambda: graph((6,), gated_output), (6,), 1),
    "before a submodel": (lambda: graph((6,), gate_before_submodel), (6,), 1),
    "axis 1, Dense": (
        lambda: chain((6, 3), Gate(axis=1), K.Dense(2)),
        (6, 3),
        1,
    ),
    "axis 1, LSTM": (
        lambda: chain((6, 3), Gate(axis=1), K.LSTM(2)),
        (6, 3),
        1,
    ),
    "axis 1, normalization": (
        lambda: chain((6, 3), Gate(axis=1), K.BatchNormalization()),
        (6, 3),
        1,
    ),
    "axis 1, pooling": (
        lambda: chain((6, 3), Gate(axis=1), K.MaxPooling1D(), K.Flatten()),
        (6, 3),
        1,
    ),
    "LayerNormalization": (
        lambda: chain((6,), Gate(), K.LayerNormalization(), K.Dense(2)),
        (6,),
        1,
    ),
    "unknown layer": (
        lambda: chain((6,), Gate(), K.UnitNormalization(), K.Dense(2)),
        (6,),
        1,
    ),
    "dependent": (lambda: chain((6,), Dependent(), K.Dense(2)), (6,), 1),
    "dependent, with a threshold that matters": (
        lambda: chain((6,), Dependent(threshold=0.3), K.Dense(2)),
        (6,),
        1,
    ),
    "dependent, high threshold": (
        lambda: chain((6,), Dependent(threshold=0.3), K.Dense(2)),
        (6,),
        1,
    ),
    "dependent, channels": (
        lambda: chain((4, 4, 6), Dependent(), K.Conv2D(2, 2)),
        (4, 4, 6),
        1,
    ),
    "dependent, axis 1": (
        lambda: chain((6, 4), Dependent(axis=1), K.Flatten(), K.Dense(2)),
        (6, 4),
        1,
    ),
    "before a dependent one": (
        lambda: chain((6,), Gate(), Dependent(), K.Dense(2)),
        (6,),
        2,
    ),
    "after a dependent one": (
        lambda: chain((6,), Dependent(), Gate(), K.Dense(2)),
        (6,),
        1,
    ),
    "mixed precision, left": (
        lambda: chain((6,), Gate(dtype="mixed_float16"), K.Activation("tanh")),
        (6,),
        1,
    ),
    # Its kernel is no variable.
    "LoRA": (lambda: chain((6,), Gate(), K.Dense(3, lora_rank=2)), (6,), 1),
    "initial state": (lambda: graph((6,), initial_state), (6,), 1),
    "attention": (lambda: graph((4, 6), attention), (4, 6), 1),
    "keyword": (lambda: graph((6,), keyword), (6,), None),
    "cells": (
        lambda: chain((5, 6), Gate(), K.RNN([K.LSTMCell(3), K.GRUCell(2)])),
        (5, 6),
        1,
    ),
    "permuted": (
        lambda: chain((6, 4), Gate(axis=1), K.Permute((2, 1)), K.Dense(3)),
        (6, 4),
        1,
    ),
    "lambda": (
        lambda: chain((6,), Gate(), K.Lambda(lambda x: x * x), K.Dense(2)),
        (6,),
        1,
    ),
    "softmax": (lambda: chain((6,), Gate(), K.Softmax()), (6,), 1),
    "TimeDistributed": (
        lambda: chain((3, 6), K.TimeDistributed(Gate()), K.Dense(2)),
        (3, 6),
        1,
    ),
}
CASES = {
    **{name: (*case, 0) for name, case in FOLDED.items()},
    **LEFT,
}
CORE = ("LeNet", "LSTM", "dependent, channels")
