"""Latency of plain models against a reference, in three runtimes.

    python -m benchmarks.latency reference.keras smaller.keras

Writes each model for each runtime, with weights as dense as they are, checks
what the runtime returns against Keras, and times it on one CPU thread, in a
process of its own per runtime. Blocks of calls of the models alternate.
`keras_vd.deployment.deployment_report` compares all formats of one model.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_vd
from keras_vd.deployment import comparison, onnx_files
from keras_vd.deployment.drawing import (
    draw_inputs,
    flat_inputs,
    input_shapes,
)
from keras_vd.deployment.interface import (
    TOLERANCE,
    difference,
    input_names,
    predict,
)
from keras_vd.deployment.measuring import File, Measurement, measure

PACKAGES = ("tensorflow", "keras", "ai-edge-litert", "onnxruntime", "tf2onnx")
SPEEDUP = ("speedup", "speedup_low", "speedup_high")
# Columns and how their numbers are printed.
FORMATS = {"runtime": "", "batch": "", "model": "", "ms": ".4f"}
FORMATS |= dict.fromkeys(SPEEDUP, ".2f")
FORMATS |= {"bytes": ",", "difference": ".0e", "error": ""}
Row = dict[str, Any]


def fail(message: str) -> NoReturn:
    """End the program with one line on stderr and exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def load(path: str) -> keras.Model:
    try:
        model = keras.saving.load_model(path, compile=False)
        model.inputs[0]
        return model
    # Keras raises errors of many types for what it cannot read.
    except Exception as error:
        message = f"{path} holds no Sequential or Functional plain Keras model"
        fail(f"{message}: {error}".partition("\n")[0])


def interface(model: keras.Model, steps: int) -> tuple[list[Any], int]:
    """Shapes, without the batch axis, and types of inputs; outputs."""
    types = [x.dtype for x in model.inputs]
    shapes = [shape[1:] for shape in input_shapes(model, 1, steps)]
    return list(zip(shapes, types, strict=True)), len(model.outputs)


def write_onnx(model: keras.Model, path: Path, batch_size: int) -> None:
    path.write_bytes(onnx_files.convert(model, flat_inputs(model, None), None))


# What writes a model to a path for a batch size, and the runtime that reads it.
RUNTIMES = {
    "tensorflow": (
        "TensorFlow",
        "",
        lambda m, p, n: keras_vd.deployment.export_saved_model(m, p),
    ),
    "litert": (
        "LiteRT",
        ".tflite",
        lambda m, p, n: keras_vd.deployment.export_litert(m, p, "float32", n),
    ),
    "onnx": ("ONNX Runtime", ".onnx", write_onnx),
}


def write(
    row: Row, model: keras.Model, batch_size: int, path: Path
) -> File | None:
    """The model's file; without one, the row says why."""
    try:
        RUNTIMES[row["runtime"]][2](model, path, batch_size)
    # Converters raise errors of many types.
    except Exception as error:
        missing = isinstance(error, ImportError)
        kind = "not installed" if missing else type(error).__name__
        row["error"] = f"{kind}: {error}".partition("\n")[0]
        return None
    row["bytes"], _ = comparison.sizes_of(path)
    return File(path, input_names(model), batch_size)


def fill(row: Row, found: Measurement, expected: list[np.ndarray]) -> bool:
    """Enter a measurement into a row, unless its outputs are wrong."""
    if found.error:
        row["error"] = found.error.partition("\n")[0]
        return False
    distance = difference(found.outputs, expected)
    if not distance <= TOLERANCE:  # also NaN
        row["error"] = f"wrong outputs: relative difference {distance:.1e}"
        return False
    row["difference"] = distance
    row["ms"] = float(np.median(found.ms))
    return True


def compare(
    paths: Sequence[str],
    runtimes: Sequence[str],
    batch_sizes: Sequence[int],
    blocks: int,
    seconds: float,
    steps: int,
) -> list[Row]:
    """Time models, the first of them the reference; see `--help`.

    Ends the program if they differ in their inputs or number of outputs.

    Returns:
        A row for each runtime, batch size and model: `ms` is the median over
        blocks, `speedup` that over neighbouring blocks, `error` why it lacks.
    """
    models = [load(path) for path in paths]
    expected = interface(models[0], steps)
    for path, model in zip(paths, models, strict=True):
        if (found := interface(model, steps)) != expected:
            fail(f"{path} has inputs and outputs {found}, not {expected}")
    inputs = draw_inputs(models, max(batch_sizes), steps)
    table = []
    for runtime, n in itertools.product(runtimes, batch_sizes):
        first = dict.fromkeys(FORMATS) | {"runtime": runtime, "batch": n}
        rows = [first | {"model": str(path)} for path in paths]
        table += rows
        reader, ending, _ = RUNTIMES[runtime]
        arrays = [array[:n] for array in inputs]
        with tempfile.TemporaryDirectory() as folder:
            files = {}
            for i, model in enumerate(models):
                path = Path(folder, f"{i}{ending}")
                if file := write(rows[i], model, n, path):
                    files[i] = file
            timed = measure(reader, [*files.values()], arrays, blocks, seconds)
        measured = {
            i: measurement
            for i, measurement in zip(files, timed, strict=True)
            if fill(rows[i], measurement, predict(models[i], arrays))
        }
        for i, measurement in measured.items():
            if 0 in measured:
                ratios = measurement.speedups(measured[0])
                rows[i] |= dict(zip(SPEEDUP, ratios, strict=True))
    return table


def describe_machine() -> str:
    found = {d.name: d.version for d in importlib.metadata.distributions()}
    versions = [f"{p} {found[p]}" for p in PACKAGES if p in found]
    file = Path("/proc/cpuinfo")
    text = file.read_text() if file.is_file() else ""
    cpus = re.findall(r"model name\s*: (.*)", text) or ["a processor"]
    return f"{', '.join(versions)}; one thread of {cpus[0]}"


def markdown(rows: Sequence[Row]) -> str:
    lines = [list(FORMATS), ["---"] * len(FORMATS)]
    for row in rows:
        text = {k: f"{row[k]:{FORMATS[k]}}" for k in row if row[k] is not None}
        lines.append([text.get(k, "") for k in FORMATS])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("models", nargs="+", help=".keras files, the reference first")
    add("--runtimes", nargs="+", choices=RUNTIMES, default=[*RUNTIMES])
    add("--batch-sizes", nargs="+", type=int, default=[1, 64])
    add("--blocks", type=int, default=15, help="blocks of each model")
    add("--seconds", type=float, default=0.1, help="what a block takes")
    add("--steps", type=int, default=100, help="length of open axes")
    add("--json", type=Path, help="file for the table's numbers")
    options = vars(parser.parse_args(arguments))
    paths, file = options.pop("models"), options.pop("json")
    if keras.backend.backend() != "tensorflow":
        fail("only the TensorFlow backend exports for all runtimes")
    rows = compare(paths, **options)
    print(f"{describe_machine()}\n\n{markdown(rows)}")
    if file:
        file.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
