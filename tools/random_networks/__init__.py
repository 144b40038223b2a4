"""Random networks of every layer that `shrink` knows, and some others.

A network is a function of its seed, of Keras and of its backend.
"""

from __future__ import annotations

import dataclasses
import random
import warnings
from typing import Any

import keras
import numpy as np
from keras import layers

from tools.random_networks import first, recurrent, spatial  # noqa: F401
from tools.random_networks.graphs import GRAPHS, chain, grow, is_usable, step
from tools.random_networks.net import (
    BATCH_SIZES,
    LENGTHS,
    Certain,
    Net,
    Source,
)
from tools.random_networks.single import LAYERS
from tools.random_networks.weights import set_weights

__all__ = ["FEATURES", "Certain", "Network", "make_network"]

# One of them is in a network for sure, by the network's seed.
FEATURES = (*LAYERS, *GRAPHS)
_DTYPES = (*("float32",) * 16, "mixed_bfloat16", "mixed_float16", "float64")


@dataclasses.dataclass
class Network:
    """A model and what is known about it.

    Attributes:
        model: The model.
        dtype: Name of its dtype policy.
        sources: Its inputs, in the order of its flat `inputs`.
        certain: What `shrink` has to remove, at least.
        seed: What it was made from.
    """

    model: keras.Model
    dtype: str
    sources: list[Source]
    certain: list[Certain]
    seed: int

    def batches(self) -> list[Any]:
        """Inputs in batches of several sizes, and lengths where they vary."""
        generator = np.random.default_rng(self.seed)
        varies = any(None in x.tensor.shape[1:] for x in self.sources)
        found = []
        for batch in BATCH_SIZES:
            for length in LENGTHS if varies else LENGTHS[:1]:
                arrays = {
                    x.tensor.name: x.draw(generator, batch, length)
                    for x in self.sources
                }
                found.append(
                    keras.tree.map_structure(
                        lambda x, arrays=arrays: arrays[x.name],
                        self.model._functional.input
                        if isinstance(self.model, keras.Sequential)
                        else self.model.input,
                    )
                )
        return found

    @property
    def computes_16_bits(self) -> bool:
        """Whether any layer does."""
        return any(
            "16" in str(getattr(x, "compute_dtype", ""))
            for x in self.model._flatten_layers()
        )


def make_network(seed: int, dtype: str | None = None) -> Network:
    """The network of a seed.

    Args:
        seed: Its seed.
        dtype: A dtype policy in place of the one that belongs to the seed.
    """
    keras.utils.clear_session(free_memory=False)
    random.seed(seed)
    net = Net(seed, "float32")
    drawn = net.pick(*_DTYPES)
    if drawn == "float64" and keras.backend.backend() == "jax":
        drawn = "float32"
    net.dtype = dtype or drawn
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64" if net.dtype == "float64" else "float32")
    keras.config.set_dtype_policy(net.dtype)
    try:
        with warnings.catch_warnings():
            # Not every layer hands masks on; Keras says so each time.
            warnings.simplefilter("ignore")
            model = _model(net, FEATURES[seed % len(FEATURES)])
        set_weights(model, net)
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)
    return Network(model, net.dtype, net.sources, net.certain, seed)


def _model(net: Net, feature: str) -> keras.Model:
    table = LAYERS if feature in LAYERS else GRAPHS
    if net.chance(6) and feature in LAYERS:
        return _sequential(net, feature)
    pool = [_start(net, net.pick(*table[feature].ranks))]
    if not net.chance(4):
        pool = grow(net, pool, 1)
    made = None
    for _ in range(20):
        x = of_rank(net, pool[-1], net.pick(*table[feature].ranks))
        made = step(net, x, [*pool, x], feature)
        if made is not None:
            break
    else:
        made = pool[-1]
    pool = grow(net, [*pool, made], net.number(1, 4))
    read = keras.Model(net.inputs_of(pool[-1]), pool[-1]).operations
    if made._keras_history.operation not in read:
        both = [of_rank(net, x, 2) for x in (pool[-1], made)]
        pool.append(layers.Concatenate()(both))
    return _finished(net, pool)


def _sequential(net: Net, feature: str) -> keras.Model:
    x = _start(net, net.pick(*LAYERS[feature].ranks), real=True)
    model = keras.Sequential([keras.Input(x.shape[1:], dtype=x.dtype)])
    layer = LAYERS[feature].make(net, x)
    if layer is not None:
        model.add(layer)
    y = model.outputs[0] if model.layers else x
    if is_usable(y):
        model.add(chain(net, y))
    model.add(layers.Dense(2, name="last"))
    net.sources = [dataclasses.replace(net.sources[0], tensor=model.inputs[0])]
    return model


def _start(net: Net, rank: int, real: bool = False) -> keras.KerasTensor:
    """An input of this rank, or a word for each of its steps."""
    if rank == 3 and not real and net.chance():
        return recurrent.embedded_input(net, net.pick(3, 4, None))
    shapes = {
        2: (),
        3: (net.pick(3, 4, None),),
        4: (net.number(3, 5), net.number(3, 5)),
        5: (3, 2, 3),
    }
    return net.real_input(*shapes[rank], net.width())


def of_rank(net: Net, x: Any, rank: int) -> Any:
    """A tensor of this rank, made from another."""
    if len(x.shape) == rank:
        return x
    if len(x.shape) > 2:
        axes = tuple(range(1, len(x.shape) - 1))
        pooled = f"Global{net.pick('Max', 'Average')}Pooling{len(axes)}D"
        x = getattr(layers, pooled)()(x)
    shape = {2: (), 3: (3,), 4: (3, 4), 5: (2, 3, 2)}[rank]
    if not shape:
        return x
    width = net.number(1, 3)
    x = layers.Dense(width * int(np.prod(shape)))(x)
    return layers.Reshape((*shape, width))(x)


def _finished(net: Net, pool: list) -> keras.Model:
    """A model with one or several outputs, in a structure or another."""
    last = pool[-1]
    kind = net.number(0, 3)
    if kind == 0 and len(last.shape) > 2:
        last = of_rank(net, last, 2)
    # Most of what is wrong before it reaches the output.
    net.lively.append(layers.Dense(2, name="last"))
    outputs: Any = [net.lively[-1](last)]
    if net.chance(3):
        outputs.append(net.pick(*pool))
        if any(outputs[1] is x.tensor for x in net.sources):
            outputs.pop()
    inputs = net.inputs_of(*outputs)
    if len(outputs) == 1:
        outputs = net.pick(outputs, outputs[0])
    elif net.chance(3):
        outputs = {"one": outputs[0], "other": outputs[1]}
    structure = net.pick(inputs, inputs, {x.name: x for x in inputs})
    if len(inputs) == 1 and net.chance():
        structure = inputs[0]
    return keras.Model(structure, outputs)
