"""Write a model in every format, and measure the files."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import rich.progress

from keras_vd._backend.validation import check_integer
from keras_vd.deployment.archive import save_archive
from keras_vd.deployment.drawing import flat_inputs
from keras_vd.deployment.interface import (
    deployable,
    difference,
    input_names,
    predict,
)
from keras_vd.deployment.keras_files import save_compressed, save_uncompiled
from keras_vd.deployment.litert import export_litert
from keras_vd.deployment.measuring import File, Measurement, measure
from keras_vd.deployment.onnx_files import convert, export_onnx
from keras_vd.deployment.packed import export_packed
from keras_vd.deployment.readers import Arrays
from keras_vd.deployment.report import ArtifactRow, DeploymentReport
from keras_vd.deployment.saved_models import export_saved_model


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A way to write a model.

    Attributes:
        name: Its name in the report.
        runtime: What reads it: a key of `readers.READERS`.
        file: Name of the file or folder.
        write: Writes a model to a path, for inputs of a batch size.
        is_reference: Whether the dense original is written.
        needs_batch_size: Whether each batch size needs a file of its own.
    """

    name: str
    runtime: str
    file: str
    write: Callable[[keras.Model, Path, Arrays], object]
    is_reference: bool = False
    needs_batch_size: bool = False

    def path(self, folder: Path, batch_size: int) -> Path:
        """Return where its file for a batch size is."""
        if not self.needs_batch_size:
            return folder / self.file
        return folder / f"batch_{batch_size}_{self.file}"


def _keras_artifacts() -> Iterator[Artifact]:
    runtime = "Keras"
    yield Artifact(
        "dense",
        runtime,
        "dense.keras",
        lambda m, p, x: save_uncompiled(m, p),
        True,
    )
    yield Artifact(
        "compressed",
        runtime,
        "compressed.keras",
        lambda m, p, x: save_compressed(m, p, x),
    )
    yield Artifact(
        "archive, 8 bits",
        runtime,
        "archive.kvd",
        lambda m, p, x: save_archive(m, p, 8, x),
    )


def _tensorflow_artifacts() -> Iterator[Artifact]:
    runtime = "TensorFlow"

    def plain(model: keras.Model, path: Path, x: Arrays) -> None:
        export_saved_model(model, path, x=x)

    yield Artifact("dense", runtime, "dense_saved_model", plain, True)
    yield Artifact("SavedModel", runtime, "saved_model", plain)
    yield Artifact(
        "compiled by XLA",
        runtime,
        "compiled_saved_model",
        lambda m, p, x: export_saved_model(m, p, jit_compile=True, x=x),
    )
    yield Artifact(
        "packed",
        runtime,
        "packed_saved_model",
        lambda m, p, x: export_packed(m, p, x=x),
    )
    yield Artifact(
        "packed, int8",
        runtime,
        "packed_int8_saved_model",
        lambda m, p, x: export_packed(m, p, "int8", x),
    )


def _litert_artifacts() -> Iterator[Artifact]:
    runtime = "LiteRT"

    def writer(weights: str) -> Callable[[keras.Model, Path, Arrays], None]:
        return lambda m, p, x: export_litert(m, p, weights, len(x[0]), x)

    dense = writer("float32")
    yield Artifact("dense", runtime, "dense.tflite", dense, True, True)
    for weights in ("float32", "sparse", "int8"):
        yield Artifact(
            weights,
            runtime,
            f"{weights}.tflite",
            writer(weights),
            needs_batch_size=True,
        )


def _onnx_artifacts() -> Iterator[Artifact]:
    runtime = "ONNX Runtime"
    yield Artifact(
        "dense",
        runtime,
        "dense.onnx",
        lambda m, p, x: p.write_bytes(convert(m, x, None)),
        True,
    )
    yield Artifact(
        "packed", runtime, "packed.onnx", lambda m, p, x: export_onnx(m, p, x=x)
    )
    yield Artifact(
        "packed, int8",
        runtime,
        "packed_int8.onnx",
        lambda m, p, x: export_onnx(m, p, "int8", x),
    )


ARTIFACTS = tuple(
    tuple(artifacts())
    for artifacts in (
        _keras_artifacts,
        _tensorflow_artifacts,
        _litert_artifacts,
        _onnx_artifacts,
    )
)


def deployment_report(
    model: keras.Model,
    x: Any,
    reference: keras.Model | None = None,
    folder: str | os.PathLike[str] | None = None,
    batch_sizes: Sequence[int] = (1, 64),
    verbose: int = 1,
) -> DeploymentReport:
    """Write a plain model in every format, and measure the files.

    Each runtime opens its files in a fresh process on one thread, without
    Keras but for `.keras` files. Blocks of calls of the files alternate, and
    ratios are those of neighbouring blocks, so that other load on the machine
    hardly affects them; it does affect absolute times. This takes about a
    minute for a small model.

    Args:
        model: A built model of plain Keras layers, as `to_deterministic` and
            `shrink` return it; not changed. Subclassed models and layers made
            of layers are written out, see `keras_vd.to_functional`.
        x: Inputs, as the model takes them; repeated if they are fewer than
            the largest batch size.
        reference: The dense original, with the same inputs, to which ratios
            refer; by default `model` itself, written densely.
        folder: An existing folder in which the files stay; by default they
            are deleted.
        batch_sizes: Numbers of examples per call.
        verbose: 1 to show progress and print the report, 0 not to.

    Returns:
        The report; a format that cannot be written is a row with the reason.

    Raises:
        TypeError: if `model` or `reference` is no Keras model.
        ValueError: if one is not built, has layers of `keras_vd`, stateful
            ones or weights that are not finite, if their inputs differ, `x`
            has another shape, or `batch_sizes` is empty.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> report = keras_vd.deployment.deployment_report(  # doctest: +SKIP
        ...     model, np.ones((64, 4)), batch_sizes=[1]
        ... )
    """
    sizes = tuple(check_integer("batch_sizes", n, 1) for n in batch_sizes)
    if not sizes:
        raise ValueError(
            "Argument `batch_sizes` must hold at least one number of examples. "
            f"Received: batch_sizes={batch_sizes!r}."
        )
    with contextlib.ExitStack() as stack:
        written = stack.enter_context(deployable(model))
        original = written
        if reference is not None:
            original = stack.enter_context(deployable(reference))
        rows = _measured((written, original), x, sizes, folder, not verbose)
    report = DeploymentReport(tuple(rows), sizes)
    if verbose:
        print(str(report))
    return report


def keras_files(
    model: keras.Model,
    reference: keras.Model,
    x: Any,
    batch_sizes: Sequence[int] = (1, 64),
) -> list[ArtifactRow]:
    """Write a plain model and its dense original for Keras; measure the files.

    Args:
        model: As of `deployment_report`, and so are the others.
        reference: The dense original.
        x: Inputs.
        batch_sizes: Numbers of examples per call.

    Returns:
        The row of the original, and that of the model, compressed.
    """
    with deployable(model) as written, deployable(reference) as original:
        models = written, original
        groups = [ARTIFACTS[0][:2]]
        return _measured(models, x, batch_sizes, None, True, groups)


def _measured(
    models: tuple[keras.Model, keras.Model],
    x: Any,
    sizes: Sequence[int],
    folder: str | os.PathLike[str] | None,
    is_quiet: bool,
    groups: Sequence[Sequence[Artifact]] = ARTIFACTS,
) -> list[ArtifactRow]:
    """Write and measure files of a model; see `deployment_report`.

    Args:
        models: The model and the dense original.
        x: Inputs.
        sizes: Batch sizes.
        folder: Where the files stay, or None.
        is_quiet: Whether to show no progress.
        groups: The ways to write, one group for each runtime.
    """
    if len({tuple((x.shape, x.dtype) for x in m.inputs) for m in models}) > 1:
        raise ValueError(
            "Argument `reference` must have the inputs of `model`. Received: "
            f"{[x.shape for x in models[1].inputs]} instead of "
            f"{[x.shape for x in models[0].inputs]}."
        )
    arrays = [
        np.resize(array, (max(sizes), *array.shape[1:]))
        for array in flat_inputs(models[0], x)
    ]
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary if folder is None else folder)
        rows: list[ArtifactRow] = []
        for artifacts in rich.progress.track(
            groups,
            "Writing and measuring",
            transient=True,
            disable=is_quiet,
        ):
            rows += _compare(artifacts, models, arrays, sizes, place)
    return rows


def _compare(
    artifacts: Sequence[Artifact],
    models: tuple[keras.Model, keras.Model],
    arrays: Arrays,
    sizes: Sequence[int],
    folder: Path,
) -> list[ArtifactRow]:
    """Write and measure the files of one runtime; return their rows.

    Args:
        artifacts: The ways to write for this runtime, the dense one first.
        models: The model and the dense original.
        arrays: Inputs, of the largest batch size.
        sizes: Batch sizes.
        folder: Where the files are written.
    """
    if models[0] is models[1]:
        # Without an original, these files would be the dense one once more.
        same = ("SavedModel", "float32")
        artifacts = [x for x in artifacts if x.name not in same]
    errors: dict[str, str] = {}
    files: dict[tuple[str, int], File] = {}
    for artifact in artifacts:
        model = models[artifact.is_reference]
        names = input_names(model)
        try:
            for n in sizes:
                path = artifact.path(folder, n)
                if n == sizes[0] or artifact.needs_batch_size:
                    artifact.write(model, path, [array[:n] for array in arrays])
                files[artifact.name, n] = File(path, names, n)
        # A format that cannot be written becomes a row with the error.
        except Exception as error:
            errors[artifact.name] = _first_line(error)
    written = {k: f for k, f in files.items() if k[0] not in errors}
    measured: dict[tuple[str, int], Measurement] = {}
    if written:
        runtime = artifacts[0].runtime
        found = measure(runtime, list(written.values()), arrays)
        measured = dict(zip(written, found, strict=True))
    expected = [predict(model, arrays) for model in models]
    rows: list[ArtifactRow] = []
    for artifact in artifacts:
        if artifact.name in errors:
            row = ArtifactRow(
                artifact.name, artifact.runtime, errors[artifact.name]
            )
        else:
            path = artifact.path(folder, sizes[0])
            own = {n: measured[artifact.name, n] for n in sizes}
            outputs = expected[artifact.is_reference]
            row = _row(artifact, path, own, outputs)
            if "dense" not in errors:
                dense = {n: measured["dense", n] for n in sizes}
                row = _with_ratios(row, rows[0] if rows else row, own, dense)
        rows.append(row)
    return rows


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _row(
    artifact: Artifact,
    path: Path,
    measured: dict[int, Measurement],
    expected: Arrays,
) -> ArtifactRow:
    size, zipped = sizes_of(path)
    files = {n: artifact.path(path.parent, n).name for n in measured}
    row = ArtifactRow(
        artifact.name,
        artifact.runtime,
        files=files,
        bytes=size,
        gzip_bytes=zipped,
    )
    for found in measured.values():
        if found.error:
            error = found.error.partition("\n")[0]
            return dataclasses.replace(row, error=error)
    return dataclasses.replace(
        row,
        load_ms=next(iter(measured.values())).load_ms,
        ms={n: float(np.median(found.ms)) for n, found in measured.items()},
        difference=max(
            difference(found.outputs, [array[:n] for array in expected])
            for n, found in measured.items()
        ),
    )


def _with_ratios(
    row: ArtifactRow,
    dense_row: ArtifactRow,
    measured: dict[int, Measurement],
    dense: dict[int, Measurement],
) -> ArtifactRow:
    assert row.bytes
    assert dense_row.bytes
    row = dataclasses.replace(row, disk_ratio=dense_row.bytes / row.bytes)
    if row.error or dense_row.error:
        return row
    ratios = {n: found.speedups(dense[n]) for n, found in measured.items()}
    return dataclasses.replace(
        row,
        latency_ratio={n: median for n, (median, _, _) in ratios.items()},
        latency_ratio_range={
            n: (low, up) for n, (_, low, up) in ratios.items()
        },
    )


def sizes_of(path: Path) -> tuple[int, int]:
    """Return the size in bytes of a file or folder, plain and gzipped."""
    if path.is_file():
        content = path.read_bytes()
        return len(content), len(gzip.compress(content, mtime=0))
    files = [file for file in path.rglob("*") if file.is_file()]
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as opened:
        opened.add(path, path.name)
    return sum(f.stat().st_size for f in files), len(archive.getvalue())
