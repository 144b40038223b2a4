"""Does a run that is killed lose or break anything?

    KERAS_BACKEND=tensorflow python -m tools.killed_runs --times 100

A process is killed with SIGKILL at a random moment while it trains, saves or
exports, and started again. A fit must end at the weights of one that was never
killed, to the last bit. A file must be the old one, the new one or, if there
was none, absent; and nothing else may be left once it was written again.

Processes are forked from one that has imported everything and computed
nothing, so that they start at once. Files that Keras writes by itself, without
this package, are counted apart.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
import select
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_vd import callbacks, deployment, layers
from keras_vd.deployment.interface import input_names
from keras_vd.deployment.readers import READERS
from tools.checking import Case, finish, run_cases
from tools.processes import Child, in_child

try:
    # Keras loads it in every process otherwise.
    import tensorflow  # noqa: F401
except ImportError:
    pass

FEATURES = 32
CLASSES = 4
EPOCHS = 6


def _seeded(seed: int) -> np.random.Generator:
    keras.utils.set_random_seed(seed)
    return np.random.default_rng(seed)


def variational_model(seed: int) -> keras.Model:
    """Dense layers with posteriors and a gate."""
    _seeded(seed)
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.VDDense(48, activation="relu"),
            layers.LogNormalDropout(),
            layers.VDDense(CLASSES, posterior="gaussian"),
        ]
    )


def plain_model(seed: int) -> keras.Model:
    """Dense layers, nine tenths of whose weights are 0."""
    generator = _seeded(seed)
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(96, activation="relu"),
            keras.layers.Dense(CLASSES),
        ]
    )
    model.set_weights(
        [
            np.where(generator.uniform(size=x.shape) < 0.1, x + 0.1, 0.0)
            for x in model.get_weights()
        ]
    )
    return model


# Whose `BackupAndRestore` a fit has; those of Keras are counted apart.
BACKUPS: dict[str, Callable[[str], keras.callbacks.Callback]] = {
    "keras_vd": callbacks.BackupAndRestore,
    "Keras": keras.callbacks.BackupAndRestore,
    "Keras, double_checkpoint": partial(
        keras.callbacks.BackupAndRestore, double_checkpoint=True
    ),
}


def train(folder: Path, backup: str, sign: Callable[[], None]) -> list[Any]:
    """Fit with a backup after every epoch; all variables at the end."""
    model = variational_model(3)
    generator = np.random.default_rng(5)
    x = generator.normal(size=(64, FEATURES)).astype("float32")
    y = generator.integers(0, CLASSES, 64)
    model.compile(
        "adam",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(
        x,
        y,
        batch_size=16,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[
            callbacks.KLAnnealing(64, 1, 4, verbose=0),
            BACKUPS[backup](str(folder / "backup")),
            keras.callbacks.LambdaCallback(on_train_begin=lambda _: sign()),
        ],
    )
    variables = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


@dataclasses.dataclass(frozen=True)
class Writer:
    """A way to write a model.

    Attributes:
        name: Of the file or folder.
        write: Writes a model to a path.
        runtime: Which reader opens it.
        make: The model of a seed.
        is_kerases: Whether Keras alone writes it.
    """

    name: str
    write: Callable[[keras.Model, Path], None]
    runtime: str
    make: Callable[[int], keras.Model] = plain_model
    is_kerases: bool = False

    def run(self, path: Path, seed: int, sign: Callable[[], object]) -> None:
        """Make a model and write it."""
        model = self.make(seed)
        sign()
        self.write(model, path)

    def read(self, path: Path) -> np.ndarray:
        """Predictions of what is in a file."""
        names = input_names(self.make(0))
        x = np.random.default_rng(9).normal(size=(1, FEATURES))
        call = READERS[self.runtime](str(path), names)([x.astype("float32")])
        return np.asarray(call()[0])


def _save(model: keras.Model, path: Path) -> None:
    model.save(path)


WRITERS: dict[str, Writer] = {
    "model.save": Writer("m.keras", _save, "Keras", variational_model, True),
    "model.save, plain": Writer("m.keras", _save, "Keras", is_kerases=True),
    "save_compressed": Writer("m.keras", deployment.save_compressed, "Keras"),
    "export_saved_model": Writer(
        "served", deployment.export_saved_model, "TensorFlow"
    ),
    "export_packed": Writer("packed", deployment.export_packed, "TensorFlow"),
    "export_litert": Writer("m.tflite", deployment.export_litert, "LiteRT"),
    "export_onnx": Writer("m.onnx", deployment.export_onnx, "ONNX Runtime"),
}
AVAILABLE: dict[str, tuple[str, ...]] = {
    "tensorflow": tuple(WRITERS),
    "jax": tuple(list(WRITERS)[:5]),
    "torch": tuple(list(WRITERS)[:3]),
}


def _snapshot(folder: Path) -> list[tuple[str, int, int]]:
    """What is in a folder, to see when anything changes."""
    return sorted(
        (entry.name, entry.stat().st_mtime_ns, entry.stat().st_size)
        for entry in os.scandir(folder)
    )


def _wait_for_change(child: Child, folder: Path) -> None:
    before = _snapshot(folder)
    while not select.select([child.reader], [], [], 0)[0]:
        try:
            if _snapshot(folder) != before:
                return
        except FileNotFoundError:
            return
        time.sleep(0.0005)


def _ignore() -> None:
    pass


class Check:
    """The cases, what unbroken runs give, and a count of how cases end."""

    def __init__(self) -> None:
        self.outcomes: collections.Counter[str] = collections.Counter()
        self._unbroken: dict[str, Any] = {}

    def fit(self, backup: str, moment: float) -> None:
        """Kill a fit after a share of its time; then run it to its end."""
        with tempfile.TemporaryDirectory() as folder:
            expected, seconds = self._fit_unbroken(backup)
            child = Child(partial(train, Path(folder), backup))
            child.wait_for_sign()
            time.sleep(moment * seconds)
            child.kill()
            state = "the same weights"
            try:
                values = in_child(train, Path(folder), backup, _ignore)
            except RuntimeError as error:
                state = f"an error: {str(error).splitlines()[-1]}"
            else:
                if any(
                    not np.array_equal(value, other)
                    for value, other in zip(values, expected, strict=True)
                ):
                    state = "other weights, without a word"
        self.outcomes[f"fit, backup of {backup}: {state[:70]}"] += 1
        if state != "the same weights":
            message = f"fit, backup of {backup}: {state}"
            if backup == "keras_vd":
                raise AssertionError(message)
            print(f"NOTED {message}", flush=True)

    def _fit_unbroken(self, backup: str) -> tuple[Any, float]:
        if backup not in self._unbroken:
            with tempfile.TemporaryDirectory() as folder:
                child = Child(partial(train, Path(folder), backup))
                child.wait_for_sign()
                start = time.monotonic()
                values = child.result()
                self._unbroken[backup] = values, time.monotonic() - start
        found: tuple[Any, float] = self._unbroken[backup]
        return found

    def write(
        self, name: str, has_old: bool, in_writing: bool, moment: float
    ) -> None:
        """Kill a writer after a share of its time; then write again."""
        writer = WRITERS[name]
        old, new, whole, writing = self._written_unbroken(name)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            path = folder / writer.name
            if has_old:
                in_child(writer.run, path, 1, _ignore)
            child = Child(lambda sign: writer.run(path, 2, sign))
            child.wait_for_sign()
            if in_writing:
                _wait_for_change(child, folder)
            time.sleep(moment * (writing if in_writing else whole))
            child.kill()
            self._judge(name, path, old if has_old else None, new)
            in_child(writer.run, path, 2, _ignore)
            if not np.allclose(in_child(writer.read, path), new, atol=1e-5):
                raise AssertionError(f"{name}: the second run wrote another")
            left = [x for x in os.listdir(folder) if x != writer.name]
            if left:
                self.outcomes[f"{name}: rubbish"] += 1
                raise AssertionError(f"{name}: rubbish is left: {left}")

    def _judge(
        self, name: str, path: Path, old: np.ndarray | None, new: np.ndarray
    ) -> None:
        state = "broken"
        if not path.exists():
            state = "none yet" if old is None else "lost"
        else:
            try:
                found = in_child(WRITERS[name].read, path)
            except RuntimeError as error:
                print(str(error).splitlines()[-1], flush=True)
            else:
                if np.allclose(found, new, atol=1e-5):
                    state = "new"
                elif old is not None and np.allclose(found, old, atol=1e-5):
                    state = "old"
        self.outcomes[f"{name}: {state}"] += 1
        if state in ("broken", "lost") and not WRITERS[name].is_kerases:
            raise AssertionError(f"{name}: the file is {state}")

    def _written_unbroken(self, name: str) -> tuple[Any, Any, float, float]:
        """Predictions of two files, seconds in all and of the writing."""
        if name not in self._unbroken:
            writer = WRITERS[name]
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / writer.name
                predictions = []
                for seed in (1, 2):
                    child = Child(partial(writer.run, path, seed))
                    child.wait_for_sign()
                    start = time.monotonic()
                    _wait_for_change(child, Path(folder))
                    change = time.monotonic()
                    child.result()
                    end = time.monotonic()
                    predictions.append(in_child(writer.read, path))
                self._unbroken[name] = (*predictions, end - start, end - change)
        found: tuple[Any, Any, float, float] = self._unbroken[name]
        return found


def cases(
    check: Check, times: int, seed: int, only: int | None
) -> Iterator[Case]:
    """Every third case is a fit; the writers take turns."""
    writers = AVAILABLE[keras.backend.backend()]
    for i in range(times):
        generator = np.random.default_rng([seed, i])
        moment = float(generator.uniform(0.0, 1.05))
        if only is not None and i != only:
            continue
        label = f"--seed {seed} --only {i}"
        if i % 3 == 0:
            turns = (
                "keras_vd",
                "Keras",
                "keras_vd",
                "Keras, double_checkpoint",
            )
            backup = turns[i // 3 % len(turns)]
            yield (
                f"{label} (fit, backup of {backup}, at {moment:.3f})",
                partial(check.fit, backup, moment),
            )
            continue
        name = writers[(i - i // 3 - 1) % len(writers)]
        has_old = bool(generator.integers(4))
        in_writing = bool(generator.integers(4))
        place = "the writing" if in_writing else "the call"
        yield (
            f"{label} ({name}, old: {has_old}, at {moment:.3f} of {place})",
            partial(check.write, name, has_old, in_writing, moment),
        )


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, run the cases, print the row of the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--minutes", type=float)
    options = parser.parse_args(arguments)
    check = Check()
    tally = run_cases(
        f"killed runs ({keras.backend.backend()})",
        cases(check, options.times, options.seed, options.only),
        options.minutes,
    )
    for outcome, number in sorted(check.outcomes.items()):
        print(f"{number:6,} {outcome}")
    sys.stdout.flush()
    finish(tally)


if __name__ == "__main__":
    main()
