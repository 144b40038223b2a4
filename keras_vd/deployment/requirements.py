"""Check for the packages and backends that a writer needs."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import keras


def require(module: str, extra: str | None = "runtimes") -> Any:
    """Import a package that is not needed otherwise.

    Args:
        module: Name of the module.
        extra: The extra of this package that installs it; None: no extra does.

    Raises:
        ImportError: if it is missing, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        name = package if extra is None else f'"keras-vd[{extra}]"'
        raise ImportError(
            f"This needs the package `{package}`: pip install {name}"
        ) from error


def check_backend(function: str, allowed: Sequence[str]) -> None:
    """Raise unless the running backend can write the format.

    Raises:
        RuntimeError: if it cannot, with a way around.
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
