"""The folder of a pipeline that can go on after it was interrupted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import flatten_layers, start_at_epoch
from keras_vd._backend.writing import write_checked

_CALL = "call.json"
_MAKER = "keras_vd.compress"

# Arrays and numbers by their names.
Memory = dict[str, Any]


class WorkFolder:
    """A folder that keeps the results of stages, for one call.

    Args:
        path: The folder; made if it does not exist. None: nothing is kept.
        call: What tells the call from others, as plain values.

    Raises:
        FileExistsError: if the folder is that of another call, or holds other
            things.
        OSError: if it cannot be read or written.
    """

    def __init__(self, path: Any, call: Mapping[str, Any]) -> None:
        self._path = None if path is None else Path(path)
        if self._path is None:
            return
        self._path.mkdir(parents=True, exist_ok=True)
        file = self._path / _CALL
        if file.exists():
            self._check(_read(file), call)
        elif names := sorted(
            x.name
            for x in self._path.iterdir()
            if not x.name.startswith(f".writing-{_CALL}-")
        ):
            raise FileExistsError(
                "Argument `work_dir` must be an empty folder, or that of the "
                f"same call. '{self._path}' holds other things: {names[:5]}."
            )
        else:
            _write(file, {"made_by": _MAKER, **call})

    def _check(self, found: Any, call: Mapping[str, Any]) -> None:
        if not isinstance(found, dict) or found.pop("made_by", "") != _MAKER:
            raise FileExistsError(
                "Argument `work_dir` must be an empty folder, or that of the "
                f"same call. '{self._path}' was not made by `{_MAKER}`."
            )
        other = [key for key in call if found.get(key) != call[key]]
        if other:
            told = {
                key: (found.get(key), call[key])
                for key in other
                if key not in ("model", "data")
            }
            raise FileExistsError(
                "Argument `work_dir` must be the folder of the same call. "
                f"'{self._path}' is that of one with another "
                f"{', '.join(other)}. Give this call a folder of its own, or "
                f"delete that one. Found and received: {told or 'see above'}."
            )

    def load(self, stage: str, model: keras.Model) -> bool:
        """Give a model the weights that a stage ended with, if it has.

        The model is made anew in the same way, so weights are known by their
        order.
        """
        file = self._file(stage)
        if file is None or not file.exists():
            return False
        content = _read_arrays(file)
        for index, variable in enumerate(model.weights):
            variable.assign(content[str(index)])
        return True

    def save(self, stage: str, model: keras.Model) -> None:
        """Keep the weights that a stage ends with."""
        file = self._file(stage)
        if file is None:
            return
        weights = map(_array, model.weights)
        _write_arrays(file, {str(i): x for i, x in enumerate(weights)})
        self._running(stage).unlink(missing_ok=True)

    def backup(
        self, stage: str, keepers: Mapping[str, Any]
    ) -> list[keras.callbacks.Callback]:
        """Return the callbacks that save each epoch of a stage, and go on.

        Args:
            stage: Name of the stage.
            keepers: Objects that remember something from epoch to epoch, with
                methods `memory` and `recall`.
        """
        if self._path is None:
            return []
        return [_Backup(self._running(stage), keepers)]

    def _file(self, stage: str) -> Path | None:
        return None if self._path is None else self._path / f"{stage}.npz"

    def _running(self, stage: str) -> Path:
        assert self._path is not None
        return self._path / f"{stage}_running.npz"


class _Backup(keras.callbacks.Callback):
    """Callback that saves all that a training goes on with, epoch by epoch.

    In contrast to `BackupAndRestore` it has the states of all random layers,
    and what other callbacks remember. The model is made anew in the same way
    before, so variables are known by their order.
    """

    def __init__(self, path: Path, keepers: Mapping[str, Any]) -> None:
        super().__init__()
        self._path, self._keepers = path, keepers
        self._memories: dict[str, Memory] = {}

    def on_train_begin(self, logs: Memory | None = None) -> None:
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)
        if not self._path.exists():
            return
        content = _read_arrays(self._path)
        for index, variable in enumerate(self._variables()):
            variable.assign(content.pop(f"variable/{index}"))
        start_at_epoch(self.model, int(content.pop("epochs")))
        for key, value in content.items():
            name, _, rest = key.partition("/")
            self._memories.setdefault(name, {})[rest] = value

    def on_epoch_begin(self, epoch: int, logs: Memory | None = None) -> None:
        # Not when training begins: some callbacks forget all in the first
        # epoch.
        for name, memory in self._memories.items():
            self._keepers[name].recall(memory)
        self._memories = {}

    def on_epoch_end(self, epoch: int, logs: Memory | None = None) -> None:
        content: Memory = {
            f"variable/{index}": _array(variable)
            for index, variable in enumerate(self._variables())
        }
        for name, keeper in self._keepers.items():
            memory = keeper.memory()
            content |= {f"{name}/{key}": memory[key] for key in memory}
        content["epochs"] = np.array(epoch + 1)
        _write_arrays(self._path, content)

    def _variables(self) -> list[keras.Variable]:
        variables: list[keras.Variable] = self.model.variables
        return [*variables, *self.model.optimizer.variables]


def _array(variable: keras.Variable) -> np.ndarray:
    return _storable(ops.convert_to_numpy(variable))


def _storable(array: np.ndarray) -> np.ndarray:
    # NumPy's files know no bfloat16, whose numbers float32 has, too.
    return array.astype("float32") if array.dtype.kind == "V" else array


def _read_arrays(file: Path) -> dict[str, Any]:
    with np.load(file) as stored:
        return dict(stored)


def _write_arrays(file: Path, content: Memory) -> None:
    stored: Memory = {key: _storable(array) for key, array in content.items()}

    def write(path: Path) -> None:
        with open(path, "wb") as opened:
            np.savez(opened, **stored)

    write_checked(file, write, _read_arrays)


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _write(file: Path, content: Any) -> None:
    text = json.dumps(content, indent=1)
    write_checked(
        file, partial(Path.write_text, data=text, encoding="utf-8"), _read
    )


def fingerprint(values: Any) -> str:
    """Return a short text that other arrays, numbers or texts would change."""
    digest = hashlib.sha256()
    for value in keras.tree.flatten(values):
        array = np.asarray(value)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(
            str(array.tolist()).encode()
            if array.dtype.kind in "OSUV"
            else np.ascontiguousarray(array).data
        )
    return digest.hexdigest()[:16]


def fingerprint_of_model(
    model: keras.Model, describe: Callable[[], Any]
) -> str:
    """Return a short text that other layers, weights or losses would change.

    Args:
        model: The model.
        describe: Returns what else tells it from others, as plain values.
    """
    layers = [type(layer).__name__ for layer in flatten_layers(model)]
    weights = [_array(variable) for variable in model.weights]
    return fingerprint([layers, json.dumps(describe(), default=str), weights])
