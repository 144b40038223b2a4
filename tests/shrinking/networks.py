"""Random networks with random zeros, for the tests of `shrink`."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers

ATTENTION = (layers.MultiHeadAttention, layers.GroupQueryAttention)
ACTIVATIONS = ("relu", "relu", "sigmoid", "tanh", "gelu", None, "softmax")


class Network:
    """A model that grows, layer by layer, by chance.

    `number(low, high)` draws an integer from low to high, both included.
    """

    def __init__(self, number):
        self.number = number
        self.shared = {}

    def pick(self, *options):
        return options[self.number(0, len(options) - 1)]

    def chance(self, one_in=2):
        return self.number(1, one_in) == 1

    def dense(self, x, units=None):
        units = units or self.number(1, 5)
        options = {
            "units": units,
            # Keras warns of a softmax over a single unit.
            "activation": self.pick(*ACTIVATIONS[: -1 if units == 1 else None]),
            "use_bias": not self.chance(3),
        }
        if self.chance(4):
            shape = (*x.shape[1:-1], options["units"])
            axes = "abcdefg"[: len(x.shape)]
            return layers.EinsumDense(
                f"{axes},{axes[-1]}z->{axes[:-1]}z",
                shape,
                activation=options["activation"],
                bias_axes="z" if options["use_bias"] else None,
            )(x)
        if self.chance(4):
            key = ("dense", x.shape[-1])
            self.shared.setdefault(key, layers.Dense(**options))
            return self.shared[key](x)
        return layers.Dense(**options)(x)

    def channelwise(self, x):
        width = x.shape[-1]
        numbers = [float(self.number(-1, 2)) for _ in range(width)]
        return self.pick(
            lambda: layers.BatchNormalization(scale=self.chance())(x),
            lambda: layers.Activation(self.pick(*ACTIVATIONS[:-1]))(x),
            lambda: layers.LeakyReLU()(x),
            lambda: layers.PReLU()(x),
            lambda: layers.Dropout(0.5)(x),
            lambda: layers.Rescaling(numbers, self.pick(0.5, 0.0))(x),
            lambda: layers.Rescaling(2.0)(x),
            lambda: self.repeated(x),
        )()

    def repeated(self, x):
        """A layer that is also used elsewhere."""
        key = ("norm", x.shape[-1], len(x.shape))
        self.shared.setdefault(key, layers.BatchNormalization())
        return self.shared[key](x)

    def barrier(self, x):
        return self.pick(
            lambda: layers.LayerNormalization(epsilon=0.1)(x),
            lambda: layers.Dense(self.number(2, 3), "softmax")(x),
            lambda: keras.ops.sin(x),
        )()

    def merge(self, tensors, project):
        """Tensors of one shape up to the channels, made into one."""
        if self.chance():
            return layers.Concatenate()(tensors)
        width = tensors[0].shape[-1]
        tensors = [
            x if x.shape[-1] == width else project(x, width) for x in tensors
        ]
        kinds = ["Add", "Multiply", "Average", "Maximum", "Minimum"]
        if len(tensors) == 2:
            kinds.append("Subtract")
            if self.chance(3):
                first, second = tensors
                return first * second if self.chance() else first + second
        return getattr(layers, self.pick(*kinds))()(tensors)

    def nested(self, x, function):
        """A model around what a function does, called once or twice."""
        inner_input = keras.Input(x.shape[1:])
        inner = keras.Model(inner_input, function(inner_input))
        if inner.input_shape == inner.output_shape and self.chance():
            return inner(inner(x))
        return inner(x)


def vectors(net, x, steps):
    """Dense layers and all that works on vectors."""
    pool = [x]
    for _ in range(steps):
        x = net.pick(*pool[-3:])
        kind = net.number(0, 10)
        if kind <= 4:
            made = net.dense(x)
        elif kind <= 6:
            made = net.channelwise(x)
        elif kind == 7:
            made = net.merge([x, net.pick(*pool)], net.dense)
        elif kind == 8:
            made = net.nested(x, lambda y: net.dense(net.channelwise(y)))
        elif kind == 9 and x.shape[-1] % 2 == 0:
            steps_first = layers.Reshape((-1, x.shape[-1] // 2))(x)
            made = layers.TimeDistributed(layers.Dense(net.number(1, 3)))(
                steps_first
            )
            made = layers.Flatten()(made)
        else:
            made = net.barrier(x)
        pool.append(made)
    return pool


def images(net, x, steps):
    """Convolutions and what goes with them, on (height, width, channels)."""
    pool = [x]
    for _ in range(steps):
        x = net.pick(*pool[-3:])
        kind = net.number(0, 10)
        if kind <= 3:
            made = convolution(net, x)
        elif kind <= 5:
            made = net.channelwise(x)
        elif kind == 6:
            made = pooling(net, x)
        elif kind == 7:
            others = [y for y in pool if y.shape[1:3] == x.shape[1:3]]

            def project(y, width):
                return layers.Conv2D(width, 1)(y)

            made = net.merge([x, net.pick(*others)], project)
        elif kind == 8:
            # Squeeze and excitation.
            gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
            gate = net.dense(gate, x.shape[-1])
            same = gate.shape[-1] == x.shape[-1]
            made = layers.Multiply()([x, gate]) if same else x
        elif kind == 9:
            made = net.nested(x, lambda y: convolution(net, y))
        else:
            made = net.barrier(x)
        pool.append(made)
    return pool


def convolution(net, x):
    options = {
        "padding": net.pick("valid", "same"),
        "activation": net.pick(*ACTIVATIONS[:-1]),
        "use_bias": not net.chance(3),
    }
    size = net.number(1, min(3, x.shape[1], x.shape[2]))
    return net.pick(
        lambda: layers.Conv2D(net.number(1, 4), size, **options),
        lambda: layers.Conv2D(net.number(1, 4), size, **options),
        lambda: layers.SeparableConv2D(
            net.number(1, 4), size, depth_multiplier=net.number(1, 2), **options
        ),
        lambda: layers.DepthwiseConv2D(
            size, depth_multiplier=net.number(1, 2), **options
        ),
        lambda: layers.Conv2DTranspose(net.number(1, 3), size, **options),
        lambda: layers.Conv2D(
            2 * x.shape[-1], size, groups=x.shape[-1], **options
        ),
    )()(x)


def pooling(net, x):
    size = min(2, x.shape[1], x.shape[2])
    padding = net.pick("valid", "same")
    return net.pick(
        lambda: layers.MaxPooling2D(size, 1, padding=padding)(x),
        lambda: layers.AveragePooling2D(size, 1, padding=padding)(x),
        lambda: layers.ZeroPadding2D(1)(x),
        lambda: layers.UpSampling2D(
            interpolation=net.pick("nearest", "bilinear")
        )(x),
        lambda: layers.SpatialDropout2D(0.5)(x),
    )()


def sequences(net, x, steps):
    """Recurrent layers and what goes with them, on (steps, features)."""
    pool = [x]
    for _ in range(steps):
        x = net.pick(*pool[-2:])
        kind = net.number(0, 9)
        if kind <= 3:
            made = recurrent(net, x)
        elif kind == 4:
            made = layers.TimeDistributed(
                net.pick(
                    layers.Dense(net.number(2, 4), net.pick(*ACTIVATIONS)),
                    layers.BatchNormalization(),
                    layers.ReLU(),
                )
            )(x)
        elif kind == 5:
            made = net.dense(x)
        elif kind == 6:
            made = net.merge([x, net.pick(*pool)], net.dense)
        elif kind == 7:
            made = layers.Conv1D(
                net.number(1, 4), 2, padding=net.pick("same", "causal")
            )(x)
        elif kind == 8:
            made = net.channelwise(layers.SpatialDropout1D(0.5)(x))
        else:
            made = net.barrier(x)
        pool.append(made)
    return pool


def recurrent(net, x):
    options = {
        "return_sequences": True,
        "return_state": net.chance(4),
        "use_bias": not net.chance(4),
        "activation": net.pick("tanh", "tanh", "relu", "sigmoid"),
    }
    is_bidirectional = net.chance()
    if not is_bidirectional:
        options["go_backwards"] = net.chance(4)
    kind = net.pick("SimpleRNN", "LSTM", "GRU")
    if kind == "GRU":
        options["reset_after"] = net.chance()
    layer = getattr(layers, kind)(net.number(1, 4), **options)
    if is_bidirectional:
        mode = net.pick("concat", "concat", "sum", "mul", "ave", None)
        layer = layers.Bidirectional(layer, merge_mode=mode)
    made = layer(x)
    if not isinstance(made, (list, tuple)):
        return made
    count = 2 if getattr(layer, "merge_mode", "concat") is None else 1
    tensors, states = list(made[:count]), list(made[count:])
    if states and net.chance():
        # As a decoder starts from the state of an encoder.
        size = made[0].shape[-1] if count == 2 else states[0].shape[-1]
        follower = getattr(layers, kind)(size, return_sequences=True)
        number = 2 if kind == "LSTM" else 1
        return follower(tensors[0], initial_state=states[:number])
    return layers.Concatenate()(tensors) if count == 2 else tensors[0]


def vector_models(number):
    net = Network(number)
    inputs = [keras.Input((net.number(1, 6),)) for _ in range(net.number(1, 2))]
    x = inputs[0]
    if len(inputs) == 2:
        x = net.merge(inputs, net.dense)
    pool = vectors(net, x, net.number(2, 7))
    return finish(net, inputs, pool, pool[-1])


def image_models(number):
    net = Network(number)
    inputs = keras.Input((4, 5, net.number(1, 3)))
    pool = images(net, inputs, net.number(2, 6))
    x = net.pick(
        layers.Flatten(),
        layers.GlobalAveragePooling2D(),
        layers.GlobalMaxPooling2D(),
        layers.Reshape((-1,)),
    )(pool[-1])
    return finish(net, [inputs], pool, net.dense(x))


def sequence_models(number):
    net = Network(number)
    if net.chance():
        x = inputs = keras.Input((3, net.number(1, 4)))
    else:
        inputs = keras.Input((3,), dtype="int32")
        words, columns = net.number(4, 30), net.number(1, 6)
        masks = net.chance()
        x = layers.Embedding(words, columns, mask_zero=masks)(inputs)
    pool = sequences(net, x, net.number(1, 4))
    kind = net.pick("LSTM", "GRU", "SimpleRNN", "pool", "flatten")
    if kind == "pool":
        x = layers.GlobalMaxPooling1D()(pool[-1])
    elif kind == "flatten":
        x = layers.Flatten()(pool[-1])
    else:
        x = getattr(layers, kind)(net.number(1, 4))(pool[-1])
    return finish(net, [inputs], pool, x)


def attention_models(number):
    """Transformer blocks and single attention layers, on (steps, features)."""
    net = Network(number)
    width = net.number(1, 4)
    if net.chance(3):
        inputs = [keras.Input((3,), dtype="int32")]
        x = layers.Embedding(5, width, mask_zero=net.chance())(inputs[0])
    else:
        inputs = [keras.Input((3, width))]
        x = inputs[0]
    pool = [x]
    if net.chance():
        inputs.append(keras.Input((2, net.number(1, 4))))
        pool.insert(0, inputs[-1])
    for _ in range(net.number(1, 3)):
        x = net.pick(*pool[-2:])
        kind = net.number(0, 7)
        if kind <= 2:
            made = attention(net, x, net.pick(*pool, x, x), inputs)
        elif kind == 3:
            made = transformer_block(net, x, inputs)
        elif kind == 4:
            made = net.dense(x)
        elif kind == 5:
            others = [y for y in pool if y.shape[1] == x.shape[1]]
            made = net.merge([x, net.pick(*others)], net.dense)
        elif kind == 6:
            made = layers.Concatenate()([x, 0.0 * x + 0.5])
        else:
            made = net.channelwise(x)
        pool.append(made)
    model = finish(net, inputs, pool, layers.Flatten()(pool[-1]))
    thin_out_attention(model, net.number(0, 2**16), net.pick(0.0, 0.4, 0.8))
    return model


def attention(net, x, source, inputs):
    """Attention of `x` to `source`, to itself if both are the same."""
    options = {
        "use_bias": not net.chance(3),
        "use_gate": net.chance(4),
        "dropout": net.pick(0.0, 0.0, 0.5),
        "sliding_window": net.pick(None, None, None, 1),
    }
    uses = {"use_causal_mask": net.chance(4)}
    if net.chance(4):
        mask = keras.Input((x.shape[1], source.shape[1]), dtype="int32")
        inputs.append(mask)
        uses["attention_mask"] = mask
    if net.chance(4):
        uses["key"] = net.dense(source)
    if x.shape[-1] == source.shape[-1] and net.chance(3):
        groups = net.number(1, 2)
        layer = layers.GroupQueryAttention(
            net.number(1, 3), groups * net.number(1, 3), groups, **options
        )
        return layer(x, source, **uses)
    if not options["use_gate"]:
        key = ("attention", x.shape[-1], source.shape[-1])
        layer = layers.MultiHeadAttention(
            *(net.number(1, 3), net.number(1, 3)),
            value_dim=net.number(1, 3),
            output_shape=net.pick(None, net.number(1, 4)),
            **options,
        )
        if net.chance(4) and "key" not in uses:
            layer = net.shared.setdefault(key, layer)
    else:
        layer = layers.MultiHeadAttention(2, 2, **options)
    return layer(x, source, **uses)


def transformer_block(net, x, inputs):
    """Attention and a feed-forward pair, each between norm and sum."""
    width = x.shape[-1]

    def add(y):
        y = y if y.shape[-1] == width else layers.Dense(width)(y)
        return layers.Add()([x, y])

    normed = layers.LayerNormalization(epsilon=0.1)(x)
    x = add(attention(net, normed, normed, inputs))
    y = layers.LayerNormalization(epsilon=0.1)(x)
    y = layers.Dense(net.number(1, 5), net.pick("relu", "gelu"))(y)
    return add(layers.Dense(width)(y))


def thin_out_attention(model, seed, rate):
    """Zeros at this rate of heads, and of dimensions of single heads."""
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        if not isinstance(layer, ATTENTION):
            continue
        for name in ("query", "key", "value"):
            projection = getattr(layer, f"_{name}_dense")
            _, heads, dims = projection.kernel.shape
            kept = generator.uniform(size=(heads, dims)) >= rate
            projection.kernel.assign(projection.kernel * kept)
            if projection.bias is not None:
                # Some of them stay constant, others zero.
                kept |= generator.uniform(size=kept.shape) < 0.3
                projection.bias.assign(projection.bias * kept)
        output = layer._output_dense.kernel
        kept = generator.uniform(size=output.shape[:2]) >= rate / 2
        kept &= generator.uniform(size=(output.shape[0], 1)) >= rate / 2
        output.assign(output * kept[..., None])


def finish(net, inputs, pool, x):
    """A model with one or two outputs, its weights set."""
    outputs = [layers.Dense(2, name="last")(x)]
    if net.chance(4):
        outputs.append(pool[net.number(1, len(pool)) - 1])
        if any(outputs[1] is tensor for tensor in inputs):
            outputs.pop()
    model = keras.Model(inputs, outputs)
    set_weights(model, net.number(0, 2**16), net.pick(0.0, 0.3, 0.6, 0.9))
    return model


def set_weights(model, seed, rate):
    """Random weights, at this rate of rows, columns and entries without any."""
    generator = np.random.default_rng(seed)
    for variable in model.variables:
        if keras.backend.is_float_dtype(variable.dtype):
            positive = variable.name in ("gamma", "moving_variance")
            values = generator.uniform(0.2, 1.0, variable.shape)
            if not positive:
                values *= generator.choice([-1.0, 1.0], variable.shape)
            variable.assign(values * zeros(generator, variable, rate))


def zeros(generator, variable, rate):
    """A mask of ones and zeros for a weight."""
    shape = tuple(variable.shape)
    if variable.name == "moving_variance":
        return 1.0
    if len(shape) < 2:
        # Gains, biases and the like: all of them, some or none.
        kind = generator.uniform()
        kept = generator.uniform(size=shape) >= rate
        return kept if kind < 0.5 else float(kind < 0.8)
    mask = np.ones(shape)
    if generator.uniform() < rate / 4:
        return 0.0 * mask
    for axis in (-1, -2):
        if generator.uniform() < 0.7:
            kept = generator.uniform(size=shape[axis]) >= rate
            mask *= kept.reshape(-1, *(1,) * (-axis - 1))
    if generator.uniform() < 0.4:
        mask *= generator.uniform(size=shape) >= rate / 2
    if "embeddings" in variable.name:
        # Words that share a row.
        rows = generator.uniform(size=(shape[0], 1)) >= rate
        mask = mask * rows
    return mask


def random_inputs(model, examples=4, seed=5):
    generator = np.random.default_rng(seed)
    return [
        generator.normal(size=(examples, *x.shape[1:])).astype("float32")
        if keras.backend.is_float_dtype(x.dtype)
        else generator.integers(0, 4, (examples, *x.shape[1:]))
        for x in model.inputs
    ]
