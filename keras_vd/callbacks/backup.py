"""The callback that saves what a killed run needs to continue."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import keras

from keras_vd._backend.keras_internals import start_at_epoch
from keras_vd._backend.writing import write_checked

_EPOCH = "epochs_done"


class BackupAndRestore(keras.callbacks.Callback):
    """Callback that saves the state of training after each epoch, in one step.

    A run that is killed, at any moment, and started again by the same script
    goes on with the epoch that it was in. It ends at the same weights as a run
    that was never killed, to the last bit on the same machine: weights,
    optimizer, KL weights, masks and the seeds of the noise are in the file.
    Data must come in the same order in each epoch, and layers of Keras that
    draw at random, such as Dropout, start their draws over.

    `keras.callbacks.BackupAndRestore` writes the weights and the number of the
    epoch to two files, over the old ones. A run that is killed meanwhile cannot
    go on, or trains an epoch twice without a warning.

    Args:
        backup_dir: Folder of the file, which no other run may use.
        delete_checkpoint: Whether the file is deleted when `fit` ends.

    Raises:
        ValueError: when training starts, if the model is not built or the file
            is of another model.
        OSError: if the file cannot be read or written.

    Example:
    >>> import tempfile
    >>> backup = keras_vd.callbacks.BackupAndRestore(tempfile.mkdtemp())
    """

    def __init__(
        self,
        backup_dir: str | os.PathLike[str],
        delete_checkpoint: bool = True,
    ) -> None:
        super().__init__()
        self.path = Path(backup_dir) / "latest.weights.h5"
        self.delete_checkpoint = delete_checkpoint

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if not self.model.built:
            raise ValueError(
                "`BackupAndRestore` needs a model that is built before `fit`: "
                f"call '{self.model.name}' on data or `model.build(shape)`."
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return
        optimizer = self.model.optimizer
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        self.model.load_weights(self.path)
        start_at_epoch(self.model, _epochs_done(self.path))

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        write_checked(self.path, partial(self._write, epoch + 1), _epochs_done)

    def _write(self, epochs_done: int, path: Path) -> None:
        self.model.save_weights(path)
        with h5py.File(path, "r+") as file:
            file.attrs[_EPOCH] = epochs_done

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self.delete_checkpoint:
            self.path.unlink(missing_ok=True)


def _epochs_done(path: Path) -> int:
    with h5py.File(path) as file:
        if _EPOCH not in file.attrs:
            raise ValueError(
                f"'{path}' was not written by `keras_vd.callbacks."
                "BackupAndRestore`: it does not say how many epochs were done. "
                "Give this run a `backup_dir` of its own."
            )
        return int(file.attrs[_EPOCH])
