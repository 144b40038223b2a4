"""Networks of other libraries are those of Keras.

Oracle: the Keras model of the same case.
"""

import importlib.util
import math

import pytest

from benchmarks import networks, peers
from benchmarks.families import FAMILIES, Plain

torch = pytest.importorskip("torch")
from benchmarks import torch_peers

KINDS = [
    networks.Case("", "", "dense", 4, (6, 5, 3)),
    networks.Case("", "", "conv", 2, (3, 4)),
    networks.Case("", "", "lenet", 2, (4, 6, 8, 3)),
    networks.Case("", "", "LSTM", 2, (3, 4, 6)),
    networks.Case("", "", "GRU", 2, (3, 4, 6)),
    networks.Case("", "", "embedding", 2, (3, 7, 4)),
    networks.Case("", "", "embedding", 2, (3, 7, 4), "Adam"),
]
MODULES = {
    "torch_nn": ("torch", torch_peers.TorchPlain),
    "bayesian_torch": ("bayesian_torch", torch_peers.BayesianTorch),
    "bayesian_torch_flipout": (
        "bayesian_torch",
        torch_peers.BayesianTorchFlipout,
    ),
    "blitz": ("blitz", torch_peers.Blitz),
}


@pytest.mark.parametrize("case", KINDS, ids=lambda case: case.kind)
def test_plain_torch_network(case):
    network = torch_peers.Network(case, torch_peers.TorchPlain())
    expected = case.build(Plain())
    # Biases are left out: a torch LSTM has twice as many.
    assert sum(p.numel() for p in network.parameters() if p.ndim > 1) == sum(
        math.prod(w.shape)
        for layer in expected.layers
        for w in layer.trainable_weights
        if len(w.shape) > 1 and "bias" not in w.name
    )


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(
    "case", KINDS, ids=lambda case: f"{case.kind}-{case.optimizer}"
)
def test_a_step_trains_every_kind_of_network(case, name):
    module, family = MODULES[name]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed.")
    if case.kind not in family.kinds:
        pytest.skip("The library has no such layer.")
    training = family().start(case)
    parameters = list(training._network.parameters())
    before = [p.detach().clone() for p in parameters]
    training.first_step()
    x, y = training._x, training._y
    assert training._network(x).shape == y.shape
    changed = [
        bool((p != old).any())
        for p, old in zip(parameters, before, strict=True)
    ]
    assert any(changed)
    assert type(training._optimizer).__name__ == case.optimizer


def test_networks_without_a_layer_of_the_library_are_left_out():
    made = {
        name: FAMILIES[name]() for name in ("plain", "keras_vd, share unit")
    }
    lstm, gru = networks.CASES["lstm"], networks.CASES["gru"]
    assert not peers.has_peer(lstm, made)
    made["a peer"] = torch_peers.BayesianTorch
    assert peers.has_peer(lstm, made)
    assert not peers.has_peer(gru, made)
