"""What a writer needs: packages and backends, or an error that helps."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import keras


def require(module: str, extra: str = "runtimes") -> Any:
    """Import a package that is not needed otherwise.

    Raises:
        ImportError: if it is missing, with the extra that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"This needs the package `{module.partition('.')[0]}`: "
            f'pip install "keras-vd[{extra}]"'
        ) from error


def check_backend(function: str, allowed: Sequence[str]) -> None:
    """Raise unless the running backend can write the format.

    Raises:
        RuntimeError: otherwise, with the way around.
    """
    backend = keras.backend.backend()
    if backend not in allowed:
        raise RuntimeError(
            f"`{function}` cannot write from the {backend} backend, only from "
            f"{' and '.join(allowed)}. Save the model with "
            "`keras_vd.deployment.save_compressed(model, 'model.keras')`, then "
            "load that file in a process that runs with "
            f"KERAS_BACKEND={allowed[0]} and call `{function}` there."
        )
