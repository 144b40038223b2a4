"""Random networks with dead parts: `shrink` keeps what they predict.

`python -m tools.shrink_networks --networks 10000 --seed 0`

The oracle is the model itself. Where a prediction is off by more than 1e-5 in
32 bits, the same network in 64 bits decides whether that is rounding: there
it must agree to 1e-9. Where Keras rounds to 32 bits all the same (PyTorch's
averages), it must be off by no more than ten times what the model's own
predictions move when its weights are rounded in another way.
"""

from __future__ import annotations

import argparse
import collections
import gc
import pathlib
import tempfile
import warnings
from typing import Any

import keras
import numpy as np

import keras_vd
from tools.checking import finish, run_cases
from tools.random_networks import Certain, Network, make_network

RTOL = 1e-5
# What rounding to 16 bits at every layer adds up to.
RTOL_16_BITS = 0.1
RTOL_64_BITS = 1e-9
ONE_IN = 10
ROUNDED_TO = 4


def predict(model: keras.Model, inputs: Any) -> list[np.ndarray]:
    """All outputs at inference, float64."""
    outputs = model(inputs, training=False)
    return [
        np.array(keras.ops.convert_to_numpy(x), np.float64)
        for x in keras.tree.flatten(outputs)
    ]


def largest_difference(
    found: list[np.ndarray], expected: list[np.ndarray]
) -> float:
    """The largest, relative to the scale of an output.

    Where the model itself is not finite, anything goes.
    """
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape, f"{one.shape} for {other.shape}"
        known = np.isfinite(other)
        if known.any():
            scale = max(1e-30, np.abs(other[known]).max())
            off = np.abs(one[known] - other[known])
            # A NaN is an error of any size.
            worst = max(worst, np.nan_to_num(off, nan=np.inf).max() / scale)
    return float(worst)


class ShrinkCheck:
    """Checks networks one by one, and counts what they were.

    Attributes:
        notes: Counts of what is no failure, by what it is.
    """

    def __init__(self) -> None:
        self.notes: collections.Counter[str] = collections.Counter()

    def check(self, seed: int) -> None:
        network = make_network(seed)
        batches = network.batches()
        try:
            expected = [predict(network.model, x) for x in batches]
        except Exception as error:
            reason = str(error).replace("\n", " ")[:120]
            self.notes[f"Keras itself cannot: {reason}"] += 1
            return
        if not all(np.isfinite(x).any() for one in expected for x in one):
            self.notes["outputs that are not finite"] += 1
        if all((x == x[:1]).all() for x in expected[-1]):
            self.notes["the same outputs for every input"] += 1
        rtol = RTOL_16_BITS if network.computes_16_bits else RTOL
        smaller = self._shrunk(network)
        worst = _worst(smaller, batches, expected)
        if worst > rtol and network.computes_16_bits:
            self._check_rounding(seed, worst, "float32", RTOL)
        elif worst > rtol:
            self._check_rounding(seed, worst, "float64", RTOL_64_BITS)
        if seed % ONE_IN == 0:
            self._check_saved(smaller, batches)
        if seed % ONE_IN == 1:
            _check_settled(smaller)

    def _shrunk(self, network: Network) -> keras.Model:
        model = network.model
        config = model.to_json()
        before = [np.array(x) for x in model.get_weights()]
        smaller, report = keras_vd.shrink(
            model,
            gather_inputs=(None, None, True, False)[network.seed % 4],
            return_report=True,
            verbose=0,
            round_to=ROUNDED_TO if network.seed % ONE_IN == 2 else 1,
        )
        assert model.to_json() == config, "the model's config has changed"
        for old, new in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(new, old, "the model has changed")
        assert smaller.count_params() == report.kept_parameters
        assert report.kept_parameters <= report.parameters, "it has grown"
        for certain in network.certain:
            _check_gone(certain, report, smaller)
        if not report.is_unchanged:
            self.notes["networks that got smaller"] += 1
        return smaller

    def _check_rounding(
        self, seed: int, worst: float, dtype: str, rtol: float
    ) -> None:
        network = make_network(seed, dtype)
        batches = network.batches()
        expected = [predict(network.model, x) for x in batches]
        found = _worst(self._shrunk(network), batches, expected)
        if found > rtol:
            rtol = 10.0 * _sensitivity(network.model, batches, expected)
        assert found <= rtol, f"off by {worst:.1e}, in {dtype} by {found:.1e}"
        self.notes[f"rounding: {worst:.0e}, in {dtype} {found:.0e}"] += 1

    def _check_saved(self, smaller: keras.Model, batches: list[Any]) -> None:
        if any(isinstance(x, keras.layers.Lambda) for x in smaller.layers):
            return
        expected = [predict(smaller, x) for x in batches]
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.keras"
            smaller.save(path)
            loaded = keras.saving.load_model(path)
        worst = _worst(loaded, batches, expected)
        assert worst <= RTOL, f"off by {worst:.1e} after it was loaded"
        self.notes["networks saved and loaded"] += 1


def _worst(
    model: keras.Model, batches: list[Any], expected: list[list[np.ndarray]]
) -> float:
    return max(
        largest_difference(predict(model, x), y)
        for x, y in zip(batches, expected, strict=True)
    )


def _sensitivity(
    model: keras.Model, batches: list[Any], expected: list[list[np.ndarray]]
) -> float:
    """How far predictions move with the last of 32 bits of each weight."""
    generator, values = np.random.default_rng(0), model.get_weights()
    epsilon = np.finfo("float32").eps
    found = 0.0
    for _ in range(5):
        noise = [epsilon * generator.choice([-1, 1], x.shape) for x in values]
        model.set_weights(
            [
                x * (1.0 + e) if np.issubdtype(x.dtype, np.floating) else x
                for x, e in zip(values, noise, strict=True)
            ]
        )
        found = max(found, _worst(model, batches, expected))
    model.set_weights(values)
    return found


def _check_settled(smaller: keras.Model) -> None:
    """What has been shrunk with default options has nothing more to lose."""
    again = keras_vd.shrink(smaller, verbose=0)
    once = keras_vd.shrink(again, verbose=0)
    assert once.count_params() == again.count_params(), "it shrinks again"


def _check_gone(certain: Certain, report: Any, smaller: keras.Model) -> None:
    """What was certain to go is gone."""
    readers = [x for x in smaller.layers if x.name == certain.second.name]
    for reader in (certain.second, *readers):
        if not np.any(reader.get_weights()[0]):
            return  # It reads nothing: which unit stays to be read is open.
    most = max(1, certain.width - int(np.count_nonzero(certain.dead)))
    most = min(certain.width, most + -most % report.round_to)
    for row in report.rows:
        if row.name == certain.first.name and row.kept_parameters:
            assert row.kept_outputs <= most, (
                f"'{row.name}' keeps {row.kept_outputs} units, {most} are "
                f"enough: {report.kept_whole}"
            )


def cases(check: ShrinkCheck, seeds: range) -> Any:
    """Cases of these seeds."""
    for seed in seeds:

        def case(seed: int = seed) -> None:
            check.check(seed)

        yield f"seed {seed}", case
        if seed % 50 == 0:
            gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--only", type=int, help="this seed alone")
    arguments = parser.parse_args()
    first, count = arguments.seed, arguments.networks
    if arguments.only is not None:
        first, count = arguments.only, 1
    warnings.simplefilter("ignore")
    # What is imported by now stays: it need not be looked at again.
    gc.freeze()
    check = ShrinkCheck()
    tally = run_cases(
        f"`shrink` on random networks, {keras.backend.backend()}",
        cases(check, range(first, first + count)),
    )
    for note, number in sorted(check.notes.items()):
        print(f"{number:6} {note}")
    finish(tally)


if __name__ == "__main__":
    main()
