"""Recurrent layers, with all of their flags, and embeddings."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from tools.random_networks.net import ELEMENTWISE, Net, bent, centred, is_fixed
from tools.random_networks.single import single

KINDS = ("SimpleRNN", "LSTM", "GRU")


def gates(net: Net) -> Any:
    """An activation of gates or candidates; most are zero at zero."""
    return net.pick(
        *("tanh", "tanh", "tanh", "relu", "sigmoid", None),
        *(net.pick(*ELEMENTWISE[:-1]), net.pick(bent, centred)),
    )


def recurrent_options(net: Net, kind: str) -> dict[str, Any]:
    """Arguments of a layer of one direction, but for what it returns."""
    options = {
        **net.weighted(),
        "activation": gates(net),
        "dropout": net.pick(0.0, 0.0, 0.3),
        "recurrent_dropout": net.pick(0.0, 0.0, 0.3),
    }
    if kind != "SimpleRNN":
        options["recurrent_activation"] = net.pick(
            "sigmoid", "sigmoid", "hard_sigmoid", "tanh"
        )
    if kind == "GRU":
        options["reset_after"] = net.chance()
    if kind == "LSTM":
        options["unit_forget_bias"] = net.chance()
    return options


def one_direction(net: Net, x: Any, kind: str, sequences: bool) -> Any:
    options = recurrent_options(net, kind)
    if net.chance(6) and is_fixed(x):
        options["unroll"] = True
    if sequences and net.chance(6):
        options["zero_output_for_mask"] = True
    return getattr(layers, kind)(
        net.width(),
        return_sequences=sequences,
        go_backwards=net.chance(4),
        **options,
    )


for _kind in KINDS:
    single(_kind, 3)(
        lambda net, x, kind=_kind: one_direction(
            net, x, kind, not net.chance(3)
        )
    )


@single("Bidirectional", 3)
def bidirectional(net, x):
    kind, units = net.pick(*KINDS), net.width()
    sequences = net.chance()

    def make(backwards: bool) -> Any:
        return getattr(layers, kind)(
            units,
            return_sequences=sequences,
            go_backwards=backwards,
            **recurrent_options(net, kind),
        )

    mode = net.pick("concat", "concat", "sum", "mul", "ave")
    other = make(True) if net.chance(4) else None
    return layers.Bidirectional(make(False), mode, backward_layer=other)


@single("RNN", 3)
def cells(net, x):
    cell = net.pick(
        lambda: layers.LSTMCell(net.width()),
        lambda: [layers.GRUCell(net.width()), layers.LSTMCell(net.width())],
    )()
    return layers.RNN(cell, return_sequences=net.chance())


def with_states(net: Net, x: Any) -> Any:
    """Layers that hand on their states; a decoder that starts from them."""
    kind = net.pick(*KINDS)
    number = 2 if kind == "LSTM" else 1
    options = {**recurrent_options(net, kind), "return_state": True}
    options["return_sequences"] = net.chance()
    layer = getattr(layers, kind)(net.width(), **options)
    count = 1
    if net.chance():
        mode = net.pick("concat", "sum", None)
        layer = layers.Bidirectional(layer, merge_mode=mode)
        count = 2 if mode is None else 1
    made = net.apply(layer, x)
    found, states = list(made[:count]), list(made[count:])
    if net.chance():
        return net.pick(*found, *states)
    size = states[0].shape[-1]
    follower = getattr(layers, kind)(
        size, return_sequences=net.chance(), **recurrent_options(net, kind)
    )
    return follower(x, initial_state=states[:number])


def embedded(net: Net, ids: Any, words: int) -> Any:
    """Ids as vectors; ids below `words`."""
    made = layers.Embedding(
        words, net.width(), mask_zero=net.chance(), **net.common()
    )
    return net.apply(made, ids)


def embedded_input(net: Net, length: int | None) -> keras.KerasTensor:
    """A new input of ids, embedded, in one table or another."""
    words = net.number(3, 30)
    dtype = net.pick("int32", "int32", "int64", "float32", "uint8")
    if dtype == "int64" and keras.backend.backend() == "jax":
        dtype = "int32"
    ids = net.id_input(words, length, dtype=dtype)
    return embedded(net, ids, words)
