"""Random weights, with dead parts of all kinds."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from keras_vd._backend.keras_internals import flatten_layers, own_variables
from tools.random_networks.attention import ATTENTION, thin_out_heads
from tools.random_networks.net import Net

_NORMALIZING = (
    layers.BatchNormalization,
    layers.LayerNormalization,
    layers.GroupNormalization,
)
_GATES = {layers.SimpleRNNCell: 1, layers.LSTMCell: 4, layers.GRUCell: 3}


def set_weights(model: keras.Model, net: Net) -> None:
    """Give a model weights, and parts that are dead by chance or for sure."""
    generator = net.generator
    rate = net.pick(0.2, 0.4, 0.4, 0.6, 0.8, 0.0)
    lively = {id(part) for x in net.lively for part in flatten_layers(x)}
    for layer in flatten_layers(model):
        own_rate = net.pick(rate, rate, rate, 0.5 * rate, 0.0)
        if id(layer) in lively:
            own_rate = 0.0
        for variable in own_variables(layer):
            if keras.backend.is_float_dtype(variable.dtype):
                variable.assign(_values(generator, variable, own_rate))
        _kill_parts(net, layer, own_rate)
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()
    for certain in net.certain:
        _kill_for_sure(net, certain)
    for layer in net.silent:
        for variable in own_variables(layer):
            variable.assign(np.zeros(variable.shape))


def _values(
    generator: np.random.Generator, variable: Any, rate: float
) -> np.ndarray:
    shape = tuple(variable.shape)
    values = generator.uniform(0.2, 1.0, shape)
    if variable.name in ("moving_variance", "variance"):
        return values
    values *= generator.choice([-1.0, 1.0], shape)
    if variable.name == "gamma":
        values = np.abs(values)
    if len(shape) < 2:
        return _vector(generator, values, rate)
    # Sums of about the size of what is summed.
    values *= 1.5 / np.sqrt(max(1.0, np.prod(shape[:-1])))
    return values * _mask(generator, shape, rate)


def _vector(
    generator: np.random.Generator, values: np.ndarray, rate: float
) -> np.ndarray:
    """Gains, biases and the like: some are zero, or all, or all the same."""
    kind = generator.uniform()
    if kind < 0.5:
        return values * (generator.uniform(size=values.shape) >= rate)
    if kind < 0.6 and values.size:
        return np.full_like(values, values.flat[0])
    return values * (kind < 0.85)


def _mask(
    generator: np.random.Generator, shape: tuple[int, ...], rate: float
) -> np.ndarray:
    """Ones, and zeros at this rate of rows, columns and entries."""
    mask = np.ones(shape)
    if generator.uniform() < rate / 15:
        return 0.0 * mask
    for axis in (-1, -2):
        if generator.uniform() < 0.7:
            kept = generator.uniform(size=shape[axis]) >= rate
            mask *= kept.reshape(-1, *(1,) * (-axis - 1))
    if generator.uniform() < 0.4:
        mask *= generator.uniform(size=shape) >= rate / 2
    return mask


def _kill_parts(net: Net, layer: keras.layers.Layer, rate: float) -> None:
    """Dead parts that are more than zeros at random."""
    generator = net.generator
    if isinstance(layer, ATTENTION) and layer.built:
        thin_out_heads(layer, generator, rate)
    elif type(layer) in _GATES and layer.built:
        _kill_units(net, layer, rate)
    elif isinstance(layer, layers.Embedding):
        _repeat_words(net, layer, rate)
    elif isinstance(layer, _NORMALIZING) and layer.built and net.chance(3):
        parts = [x for x in (layer.gamma, layer.beta) if x is not None]
        dead = generator.uniform(size=parts[0].shape if parts else ()) < rate
        for variable in parts:
            variable.assign(np.where(dead, 0.0, numbers(variable)))
    elif net.chance(6):
        # A layer that is dead as a whole.
        for variable in own_variables(layer):
            if variable.name in ("kernel", "bias") and generator.uniform() < (
                rate / 2
            ):
                variable.assign(np.zeros(variable.shape))


def numbers(variable: Any) -> np.ndarray:
    """A weight as float64."""
    return np.array(keras.ops.convert_to_numpy(variable), np.float64)


def _kill_units(net: Net, cell: keras.layers.Layer, rate: float) -> None:
    """Hidden units whose candidate is zero, or that no other unit reads."""
    generator, gates = net.generator, _GATES[type(cell)]
    dead = generator.uniform(size=cell.units) < rate
    if net.chance(3):
        cell.recurrent_kernel.assign(
            numbers(cell.recurrent_kernel) * ~dead[:, None]
        )
    if not net.chance():
        return
    candidate = 0 if gates == 1 else 2
    every = net.chance(3)
    for variable in cell.variables:
        if not keras.backend.is_float_dtype(variable.dtype):
            continue
        values = numbers(variable)
        parts = values.reshape(*values.shape[:-1], gates, cell.units)
        gate = slice(None) if every else slice(candidate, candidate + 1)
        parts[..., gate, :] *= ~dead
        variable.assign(parts.reshape(values.shape))


def _repeat_words(net: Net, layer: layers.Embedding, rate: float) -> None:
    """Words with rows of zeros, or with the row of another word."""
    generator = net.generator
    table = numbers(layer.embeddings)
    count = len(table)
    others = table[generator.integers(0, count, count)]
    is_same = generator.uniform(size=(count, 1)) < net.pick(0.0, rate)
    table = np.where(is_same, others, table)
    is_zero = generator.uniform(size=(count, 1)) < net.pick(0.0, rate)
    layer.embeddings.assign(np.where(is_zero, 0.0, table))


def _kill_for_sure(net: Net, certain: Any) -> None:
    first, second, dead = certain.first, certain.second, certain.dead
    if not certain.is_unread:
        first.kernel.assign(numbers(first.kernel) * ~dead)
        if first.bias is not None and net.chance():
            first.bias.assign(numbers(first.bias) * ~dead)
        return
    kernel = numbers(second.kernel)
    kernel[..., dead, :] = 0.0
    second.kernel.assign(kernel)
    if not isinstance(first, layers.Dense) and hasattr(first, "cell"):
        recurrent = numbers(first.cell.recurrent_kernel)
        recurrent[dead] = 0.0
        first.cell.recurrent_kernel.assign(recurrent)
