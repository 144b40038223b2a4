"""What do damaged and malicious files do to those who load them?

    KERAS_BACKEND=tensorflow python -m tools.damaged_files --mutations 500

A `.keras` file with variational layers, one of `save_compressed` and a packed
SavedModel are damaged by `tools/mutations.py` and loaded, by Keras in its safe
mode or by TensorFlow, in a process of their own. Allowed is a clear error, or
a model with the predictions of the undamaged one. A file may run no code,
write nothing beside itself, and take no more than twice the memory that it
says it needs. Each mutation is also made to a file of plain Keras layers: what
fails there too is counted apart, as Keras' own.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
import resource
import shutil
import tempfile
import traceback
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_vd
from keras_vd import layers
from keras_vd.deployment.readers import READERS
from tools.checking import Case, finish, run_cases
from tools.mutations import KINDS, Damage
from tools.processes import Died, in_child

try:
    # Keras loads it in every process otherwise.
    import tensorflow  # noqa: F401
except ImportError:
    pass

FEATURES = 24
MEBIBYTE = 2**20
# More than an undamaged file takes, by libraries' own buffers.
SLACK = 64 * MEBIBYTE
MOST = 6 * 1024 * MEBIBYTE
# Tries to see a fault of one file in another: damage is at random places.
CONTROLS = 40
# What Python raises where nobody looked.
UNCLEAR = (
    AttributeError,
    KeyError,
    IndexError,
    AssertionError,
    NameError,
    ArithmeticError,
    RecursionError,
)


def make_model(is_plain: bool, is_sparse: bool = False) -> keras.Model:
    """Dense layers of Keras, or with posteriors and a gate between them."""
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense if is_plain else layers.VDDense
    gate = [] if is_plain else [layers.LogNormalDropout(name="gate")]
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            dense(40, activation="relu", name="first"),
            *gate,
            dense(3, name="last"),
        ]
    )
    if is_sparse:
        generator = np.random.default_rng(1)
        model.set_weights(
            [
                np.where(generator.uniform(size=x.shape) < 0.1, x + 0.1, 0.0)
                for x in model.get_weights()
            ]
        )
    model.compile("adam", "mse")
    return model


def _save(model: keras.Model, path: Path) -> None:
    model.save(path)


def write(name: str, folder: Path) -> Path:
    """Write one of the files to damage."""
    if name == "packed":
        path = folder / "packed"
        keras_vd.deployment.export_packed(make_model(True, True), path)
    elif name == "saved_model":
        path = folder / "saved_model"
        keras_vd.deployment.export_saved_model(make_model(True, True), path)
    elif name == "archive":
        path = folder / "archive.keras"
        keras_vd.deployment.save_compressed(make_model(True, True), path)
    else:
        path = folder / f"{name}.keras"
        make_model(name == "plain").save(path)
    return path


# The file, and the one that says what Keras or TensorFlow do by themselves.
FILES = {"keras": "plain", "archive": "plain", "packed": "saved_model"}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How the loading of a file ended.

    Attributes:
        what: "equal", "other predictions", "error", "unclear error" and so on.
        detail: The error.
        is_ours: Whether the error came from this package.
        growth: Memory that it took, in bytes.
    """

    what: str
    detail: str = ""
    is_ours: bool = False
    growth: int = 0


def load(path: Path, expected: np.ndarray | None, converts: bool) -> Any:
    """Load a file and predict; an `Outcome`, or predictions for `None`.

    Args:
        path: The file.
        expected: Predictions of the undamaged file.
        converts: Whether to convert and shrink the model too: both make
            layers anew from their configurations.
    """
    tempfile.tempdir = str(path.parent / "temporary")
    os.chdir(path.parent)
    _limit("RLIMIT_AS", _memory("VmSize") + MOST)
    start = _memory("VmRSS")
    x = np.random.default_rng(2).normal(size=(4, FEATURES)).astype("float32")
    runtime = "Keras" if path.suffix == ".keras" else "TensorFlow"
    detail, is_ours = "", False
    try:
        found = READERS[runtime](str(path), ["keras_tensor"])([x])()[0]
        if expected is None:
            return found, _memory("VmHWM") - start
        is_same = found.shape == expected.shape and np.allclose(
            found, expected, rtol=1e-5, atol=1e-6
        )
        what = "equal" if is_same else "other predictions"
        if converts:
            model = keras.models.load_model(path)
            keras_vd.shrink(keras_vd.to_deterministic(model), verbose=0)
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
        is_ours = _is_ours(error)
        is_clear = str(error) and not isinstance(error, UNCLEAR)
        what = "error" if is_clear else "unclear error"
    return Outcome(what, detail, is_ours, _memory("VmHWM") - start)


def _limit(name: str, most: int) -> None:
    resource.setrlimit(getattr(resource, name), (most, most))


def _memory(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"The system does not tell {name}.")


def _is_ours(error: BaseException) -> bool:
    """Whether the last frame of Keras or of this package is ours."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if "/keras_vd/" in frame.filename:
            return True
        if "/keras/src/" in frame.filename:
            return False
    return False


def claim(path: Path) -> int:
    """Bytes that a file says it holds."""
    if path.is_dir():
        return sum(x.stat().st_size for x in path.rglob("*") if x.is_file())
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            return max(size, sum(x.file_size for x in archive.infolist()))
    except Exception:
        return size


def _listing(folder: Path) -> set[str]:
    return {str(x.relative_to(folder)) for x in folder.rglob("*")}


class Check:
    """The undamaged files, and a count of how cases end."""

    def __init__(self, folder: Path) -> None:
        self.outcomes: collections.Counter[str] = collections.Counter()
        self._folder = folder
        self._files: dict[str, tuple[Path, np.ndarray, int]] = {}

    def _undamaged(self, name: str) -> tuple[Path, np.ndarray, int]:
        """File, predictions, and the memory that loading takes."""
        if name not in self._files:
            folder = self._folder / "undamaged"
            (folder / "temporary").mkdir(parents=True, exist_ok=True)
            path = in_child(write, name, folder)
            self._files[name] = (path, *in_child(load, path, None, False))
        return self._files[name]

    def __call__(self, name: str, kind: str, seed: list[int]) -> None:
        fault = self._fault(name, kind, seed)
        if not fault:
            return
        control = FILES[name]
        for i in range(CONTROLS):
            if self._fault(control, kind, [*seed, *[i] * (i > 0)], False):
                self.outcomes[f"{name}: as {control} ({kind}: {fault})"] += 1
                print(f"NOTED {name} {kind} {seed}: {fault}", flush=True)
                return
        self.outcomes[f"{name}: FAULT"] += 1
        raise AssertionError(f"{name}, {kind}: {fault}")

    def _fault(
        self, name: str, kind: str, seed: list[int], is_counted: bool = True
    ) -> str:
        """Damage a file and load it; what is wrong with that, if anything."""
        source, expected, usual = self._undamaged(name)
        sandbox = Path(tempfile.mkdtemp(dir=self._folder))
        try:
            inner = sandbox / "a" / "b" / "c"
            (inner / "temporary").mkdir(parents=True)
            path = inner / source.name
            if source.is_dir():
                shutil.copytree(source, path)
            else:
                shutil.copy(source, path)
            canary = sandbox / "a" / "canary"
            damage = Damage(path, np.random.default_rng(seed), canary)
            KINDS[kind](damage)
            before, claimed = _listing(sandbox), claim(path)
            claimed = max(claimed, damage.claimed)
            try:
                converts = kind in ("run_code", "name_functions")
                found = in_child(load, path, expected, converts, seconds=120)
            except Died as error:
                found = Outcome("crash", str(error))
            new = _listing(sandbox) - before
        finally:
            shutil.rmtree(sandbox)
        if is_counted:
            ours = " of this package" if found.is_ours else ""
            self.outcomes[f"{name}: {found.what}{ours}"] += 1
        most = usual + 2 * claimed + SLACK
        if new:
            return f"wrote {sorted(new)}"
        if found.growth > most:
            return f"took {found.growth:,} bytes, at most {most:,} allowed"
        if found.what == "other predictions" and damage.is_other_model:
            return ""
        if found.what in ("equal", "error"):
            return ""
        is_alone = name == "archive" and not (converts or found.is_ours)
        if found.what == "unclear error" and is_alone:
            return ""  # Keras reads layers of Keras there.
        return f"{found.what} {found.detail[:600]}"


def cases(
    check: Check, mutations: int, seed: int, only: int | None
) -> Iterator[Case]:
    """The files take turns, and so do the kinds of damage."""
    names = [
        name
        for name in FILES
        if name != "packed" or keras.backend.backend() != "torch"
    ]
    for i in range(mutations):
        if only is not None and i != only:
            continue
        name = names[i % len(names)]
        kinds = [
            kind
            for kind, function in KINDS.items()
            if (name == "packed") == function.__name__.startswith("folder")
        ]
        kind = kinds[i // len(names) % len(kinds)]
        label = f"--seed {seed} --only {i} ({name}, {kind})"
        yield label, partial(check, name, kind, [seed, i])


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, run the cases, print the row of the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mutations", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--minutes", type=float)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        check = Check(Path(folder))
        tally = run_cases(
            f"damaged files ({keras.backend.backend()})",
            cases(check, options.mutations, options.seed, options.only),
            options.minutes,
        )
    for outcome, number in sorted(check.outcomes.items()):
        print(f"{number:6,} {outcome}")
    finish(tally)


if __name__ == "__main__":
    main()
