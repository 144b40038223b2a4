"""Compressed `.keras` files."""

from __future__ import annotations

import functools
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from keras_vd.conversion.fine_tuning import without_frozen_zeros
from keras_vd.deployment.drawing import flat_inputs
from keras_vd.deployment.readers import Arrays
from keras_vd.deployment.writer import Writer


def save_compressed(
    model: keras.Model, path: str | os.PathLike[str], x: Any = None
) -> None:
    """Save a plain model as a compressed `.keras` file.

    `keras.models.load_model` reads it on every backend, whichever wrote it.
    Keras itself stores without compression, so that zeros take as much space as
    other weights. The model comes back uncompiled: no state of an optimizer is
    saved.

    Args:
        model: A built model of plain Keras layers; not changed. Subclassed
            models and layers made of layers are written out, see
            `keras_vd.to_functional`.
        path: File to write, with the ending `.keras`. An existing file is
            replaced once the new one has been read back and its outputs are
            those of `model`.
        x: Inputs for this check, as the model takes them; a few drawn at
            random by default.

    Raises:
        TypeError: if `model` is no Keras model.
        ValueError: if `model` is not built, has layers of `keras_vd`, stateful
            ones or weights that are not finite, if `path` has another ending,
            `x` another shape, or `model` does not take the inputs drawn.
        OSError: if the file cannot be written.
        RuntimeError: if the outputs of what was written differ.

    Example:
        >>> import os, tempfile
        >>> from keras_vd import deployment
        >>> path = os.path.join(tempfile.mkdtemp(), "small.keras")
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> deployment.save_compressed(model, path)
        >>> keras.models.load_model(path).count_params()
        10
    """
    with WRITER.opened(model, path) as opened:
        WRITER.write(opened, path, flat_inputs(opened, x))


def save_uncompiled(model: keras.Model, path: Path) -> None:
    """Save a model as Keras does, without what only training needs."""
    with without_frozen_zeros(model):
        model.save(path)
    if model.compiled:
        keras.models.load_model(path, compile=False).save(path)


def _make(model: keras.Model, arrays: Arrays) -> Callable[[Path], None]:
    return functools.partial(_write, model)


def _write(model: keras.Model, new: Path) -> None:
    with tempfile.TemporaryDirectory(dir=new.parent) as folder:
        stored = Path(folder, "stored.keras")
        save_uncompiled(model, stored)
        with (
            zipfile.ZipFile(stored) as source,
            zipfile.ZipFile(
                new, "w", zipfile.ZIP_DEFLATED, compresslevel=9
            ) as target,
        ):
            for name in source.namelist():
                target.writestr(name, source.read(name))


WRITER = Writer("save_compressed", "Keras", _make, ending=".keras")
