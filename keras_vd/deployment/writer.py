"""The skeleton of all writers: check, write beside the place, read back."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras

from keras_vd._backend.validation import check_choice
from keras_vd._backend.writing import write_checked
from keras_vd.deployment.interface import (
    TOLERANCE,
    check_precision,
    deployable,
    outputs_check,
)
from keras_vd.deployment.readers import READERS, Arrays
from keras_vd.deployment.requirements import check_backend, require


@dataclasses.dataclass(frozen=True)
class Writer:
    """A format of files: what it needs, and how a model becomes such a file.

    Attributes:
        function: Name of the function that users call.
        runtime: What reads the file back: a key of `READERS`.
        make: `(model, arrays, **options)`: makes the content of the file, or a
            function that writes to a path.
        ending: Ending of the file's name; None if a folder is written.
        backends: Backends that can write it; None: all.
        packages: Modules that it imports, each with the extra that installs it.
        tolerances: Largest difference of outputs, relative to the largest
            output, by the value of the option `weights`.
        unknown_types: Types that the runtime does not compute with.
    """

    function: str
    runtime: str
    make: Callable[..., bytes | Callable[[Path], object]]
    ending: str | None = None
    backends: tuple[str, ...] | None = None
    packages: tuple[tuple[str, str], ...] = ()
    tolerances: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"float32": TOLERANCE}
    )
    unknown_types: tuple[str, ...] = ()

    @contextlib.contextmanager
    def opened(
        self,
        model: Any,
        path: str | os.PathLike[str],
        weights: str = "float32",
    ) -> Iterator[keras.Model]:
        """Give what to write of a model, if it can become such a file here.

        See `deployable`.

        Raises:
            TypeError: if it is no Keras model.
            ValueError: if it is not plain or not built, cannot be written out,
                has stateful layers, weights that are not finite or types that
                the runtime does not know, or if `weights` or the ending of
                `path` is not allowed.
            RuntimeError: if the running backend cannot write the format.
            ImportError: if a package is missing.
        """
        with deployable(model) as written:
            self._check(written, path, weights)
            yield written

    def _check(
        self, model: Any, path: str | os.PathLike[str], weights: str
    ) -> None:
        check_choice("weights", weights, self.tolerances)
        if self.ending is not None and Path(path).suffix != self.ending:
            raise ValueError(
                f"Argument `path` must end in '{self.ending}'. Received: "
                f"path={os.fspath(path)!r}."
            )
        if self.backends is not None:
            check_backend(self.function, self.backends)
        for module, extra in self.packages:
            require(module, extra)
        check_precision(model, self.runtime, self.unknown_types)

    def write(
        self,
        model: keras.Model,
        path: str | os.PathLike[str],
        arrays: Arrays,
        advice: str = "",
        **options: Any,
    ) -> None:
        """Write the file, and move it to its place once its outputs are right.

        Args:
            model: What `opened` gives.
            path: The place.
            arrays: Inputs for which outputs are compared.
            advice: What to do if they differ.
            **options: Options of `make`.
        """
        tolerance = self.tolerances[options.get("weights", "float32")]
        read = READERS[self.runtime]
        check = outputs_check(model, read, arrays, tolerance, advice)
        made = self.make(model, arrays, **options)
        if isinstance(made, bytes):
            made = functools.partial(_write_bytes, made)
        write_checked(path, made, check, is_folder=self.ending is None)


def _write_bytes(content: bytes, path: Path) -> None:
    path.write_bytes(content)
