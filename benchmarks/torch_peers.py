"""Layers of other libraries that do the same job, on PyTorch."""

from __future__ import annotations

import importlib
import itertools
import time
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.families import KL_WEIGHT
from benchmarks.networks import KINDS, Case
from benchmarks.steps import Run


class TorchFamily:
    """Layers by the names that a library has for them."""

    module = linear = conv = lstm = gru = embedding = ""
    kinds = KINDS

    def __init__(self) -> None:
        self._layers = importlib.import_module(self.module)

    def make(self, kind: str, *sizes: Any, **options: Any) -> nn.Module:
        """A layer; `kind` is the name of an attribute above."""
        layer = getattr(self._layers, getattr(self, kind))
        return layer(*sizes, **options)

    def start(self, case: Case) -> TorchTraining:
        """A network of these layers, ready for its first training step."""
        return TorchTraining(case, self)

    def divergence(self, network: Network) -> Any:
        """KL of the whole network after a forward pass."""
        return 0.0


class TorchPlain(TorchFamily):
    """`torch.nn`, with sequences in the order of the others."""

    module = "torch.nn"
    linear, conv, lstm = "Linear", "Conv2d", "LSTM"
    gru, embedding = "GRU", "Embedding"

    def make(self, kind: str, *sizes: Any, **options: Any) -> nn.Module:
        if kind in ("lstm", "gru"):
            options = {"batch_first": True, **options}
        return super().make(kind, *sizes, **options)


class BayesianTorch(TorchFamily):
    """bayesian-torch: one weight sample per call."""

    module = "bayesian_torch.layers"
    linear = "LinearReparameterization"
    conv = "Conv2dReparameterization"
    lstm = "LSTMReparameterization"
    kinds = ("dense", "conv", "lenet", "LSTM")

    def divergence(self, network: Network) -> Any:
        return network.returned_kl


class BayesianTorchFlipout(BayesianTorch):
    """bayesian-torch: pseudo-independent weights for every example."""

    linear, conv, lstm = "LinearFlipout", "Conv2dFlipout", "LSTMFlipout"


class Blitz(TorchFamily):
    """blitz: one weight sample per call, divergence by that sample."""

    module = "blitz.modules"
    linear, conv, lstm = "BayesianLinear", "BayesianConv2d", "BayesianLSTM"
    gru, embedding = "BayesianGRU", "BayesianEmbedding"

    def make(self, kind: str, *sizes: Any, **options: Any) -> nn.Module:
        if kind == "conv":
            channels, filters, size = sizes
            sizes = (channels, filters, (size, size))
        return super().make(kind, *sizes, **options)

    def divergence(self, network: Network) -> Any:
        losses = importlib.import_module("blitz.losses")
        return losses.kl_divergence_from_nn(network)


class Network(nn.Module):
    """One network of layers that may return a KL divergence as well."""

    def __init__(self, case: Case, family: TorchFamily) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_layers(case, family))
        self.returned_kl: Any = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.returned_kl = 0.0
        for layer in self.layers:
            x = layer(x)
            if isinstance(x, tuple):
                x, *others = x
                if torch.is_tensor(others[-1]):
                    self.returned_kl = self.returned_kl + others[-1]
        return x


class _LastStep(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, -1]


class _Mean(nn.Module):
    def __init__(self, *axes: int) -> None:
        super().__init__()
        self._axes = axes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(self._axes)


def _layers(case: Case, family: TorchFamily) -> list[nn.Module]:
    if case.kind == "dense":
        layers: list[nn.Module] = []
        for inputs, units in itertools.pairwise(case.sizes):
            layers += [family.make("linear", inputs, units), nn.ReLU()]
        return layers[:-1]
    if case.kind == "conv":
        return [family.make("conv", *case.sizes, 3, padding=1), _Mean(2, 3)]
    if case.kind == "lenet":
        first, second, hidden, last = case.sizes
        return [
            family.make("conv", 1, first, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            family.make("conv", first, second, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            family.make("linear", 4 * 4 * second, hidden),
            nn.ReLU(),
            family.make("linear", hidden, last),
        ]
    if case.kind == "embedding":
        _, words, features = case.sizes
        return [
            family.make("embedding", words, features),
            _Mean(1),
            nn.Linear(features, 1),
        ]
    _, features, units = case.sizes
    return [
        family.make(case.kind.lower(), features, units),
        _LastStep(),
        nn.Linear(units, 1),
    ]


class TorchTraining:
    """As `benchmarks.steps.KerasTraining`, for a network of PyTorch."""

    def __init__(self, case: Case, family: TorchFamily) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._network = Network(case, family).to(self._device)
        self._divergence = family.divergence
        x, y = case.arrays(case.batch_size)
        if case.kind in ("conv", "lenet"):
            x = np.ascontiguousarray(np.moveaxis(x, -1, 1))
        self._x, self._y = map(self._on_device, (x, y))
        optimizer = getattr(torch.optim, case.optimizer)
        self._optimizer = optimizer(self._network.parameters(), 1e-4)

    def _on_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(array, device=self._device)

    def first_step(self) -> float:
        start = time.perf_counter()
        self._run(1)
        return time.perf_counter() - start

    def make_run(self) -> Run:
        return self._run

    def _run(self, steps: int) -> None:
        for _ in range(steps):
            self._optimizer.zero_grad()
            outputs = self._network(self._x)
            error = nn.functional.mse_loss(outputs, self._y)
            loss = error + KL_WEIGHT * self._divergence(self._network)
            loss.backward()
            self._optimizer.step()
        loss.item()


TORCH_LIBRARIES: dict[str, dict[str, Any]] = {
    "bayesian-torch": {
        "torch.nn": TorchPlain,
        "bayesian-torch reparameterization": BayesianTorch,
        "bayesian-torch Flipout": BayesianTorchFlipout,
    },
    "blitz": {"torch.nn": TorchPlain, "blitz": Blitz},
}
