"""Latency of plain models against a reference, in three runtimes.

    python -m benchmarks.latency reference.keras smaller.keras

Exports each model, checks what the exported one returns against Keras, and
times it on one CPU thread: as a SavedModel in TensorFlow, in LiteRT and in ONNX
Runtime. Blocks of calls of the models alternate in one process.
"""

from __future__ import annotations

import os

from benchmarks.timing import interleaved, keep_memory

if __name__ == "__main__":
    # Before TensorFlow is imported; no GPU, as for the other runtimes.
    threads = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    os.environ |= dict.fromkeys((*threads, "OMP_NUM_THREADS"), "1")
    os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    keep_memory()

import argparse
import bisect
import importlib.metadata
import itertools
import json
import re
import sys
import tempfile
import timeit
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import keras
import numpy as np

PACKAGES = ("tensorflow", "keras", "ai-edge-litert", "onnxruntime", "tf2onnx")
TOLERANCE = 1e-4  # of an exported model's outputs, relative to the largest
MOST_IDS = 2**24  # float32 skips integers beyond
SPEEDUP = ("speedup", "speedup_low", "speedup_high")
# Columns and how their numbers are printed.
FORMATS = {"runtime": "", "batch": "", "model": "", "ms": ".4f"}
FORMATS |= dict.fromkeys(SPEEDUP, ".2f")
FORMATS |= {"bytes": ",", "difference": ".0e", "error": ""}
Arrays = list[np.ndarray]
Call = Callable[[], Arrays]
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


def pack(model: keras.Model, tensors: Sequence[Any]) -> Any:
    """What the model is called with: one tensor, or a structure of them."""
    # A Sequential model that was loaded has `inputs` but no `input`.
    structure = getattr(model, "input", model.inputs[0])
    return keras.tree.pack_sequence_as(structure, list(tensors))


def predict(model: keras.Model, arrays: Arrays) -> Arrays:
    outputs = keras.tree.flatten(model(pack(model, arrays), training=False))
    return [keras.ops.convert_to_numpy(output) for output in outputs]


def interface(model: keras.Model, steps: int) -> tuple[list[Any], int]:
    """Shapes, without the batch axis, and types of inputs; outputs."""
    shapes = [tuple(n or steps for n in x.shape[1:]) for x in model.inputs]
    types = [x.dtype for x in model.inputs]
    return list(zip(shapes, types, strict=True)), len(model.outputs)


def draw(models: Sequence[keras.Model], steps: int, examples: int) -> Arrays:
    """Token ids that all models know, or standard normal numbers.

    An embedding refuses numbers beyond its table, wherever in the model it is.
    """
    from tensorflow.errors import InvalidArgumentError

    inputs, _ = interface(models[0], steps)

    def refuses(position: int, number: int) -> bool:
        arrays = [np.zeros((1, *shape), dtype) for shape, dtype in inputs]
        try:
            arrays[position][:] = number
            for model in models:
                predict(model, arrays)
        except (InvalidArgumentError, OverflowError):
            return True
        return False

    rng = np.random.default_rng(0)
    drawn = []
    for i, (shape, dtype) in enumerate(inputs):
        ids = bisect.bisect(range(MOST_IDS), False, key=partial(refuses, i))
        if ids < MOST_IDS or np.issubdtype(dtype, np.integer):
            array = rng.integers(0, ids, (examples, *shape))
        else:
            array = rng.standard_normal((examples, *shape))
        drawn.append(array.astype(dtype))
    return drawn


def tensorflow(model: keras.Model, arrays: Arrays, path: Path) -> Call:
    import tensorflow as tf

    model.export(path, verbose=False)
    loaded = tf.saved_model.load(path)
    inputs = pack(model, [tf.constant(array) for array in arrays])
    return lambda: [
        output.numpy() for output in keras.tree.flatten(loaded.serve(inputs))
    ]


def litert(model: keras.Model, arrays: Arrays, path: Path) -> Call:
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter

    @tf.function
    def call(*tensors: Any) -> Any:
        return keras.tree.flatten(model(pack(model, tensors), training=False))

    # LiteRT's package lacks the operations of TensorFlow that a recurrent layer
    # would need for batches of any size, and its loop cannot read variables,
    # which stay variables on the way through a SavedModel.
    specs = [
        tf.TensorSpec(a.shape, a.dtype, f"x_{i:03}")
        for i, a in enumerate(arrays)
    ]
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [call.get_concrete_function(*specs)], model
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    converter.experimental_lower_to_saved_model = False
    converter._experimental_lower_tensor_list_ops = True
    path.write_bytes(converter.convert())
    reader = Interpreter(str(path), num_threads=1)
    reader.allocate_tensors()
    inputs = sorted((d["name"], d["index"]) for d in reader.get_input_details())
    outputs = [detail["index"] for detail in reader.get_output_details()]

    def run() -> Arrays:
        for (_, index), array in zip(inputs, arrays, strict=True):
            reader.set_tensor(index, array)
        reader.invoke()
        return [reader.get_tensor(index) for index in outputs]

    return run


def onnx(model: keras.Model, arrays: Arrays, path: Path) -> Call:
    import onnxruntime

    model.export(path, format="onnx", verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    names = [tensor.name for tensor in session.get_inputs()]
    inputs = dict(zip(names, arrays, strict=True))
    return lambda: session.run(None, inputs)


RUNTIMES = {"tensorflow": tensorflow, "litert": litert, "onnx": onnx}


def difference(found: Arrays, expected: Arrays) -> float:
    """The largest one over all outputs, relative to the largest output."""
    if [a.shape for a in found] != [a.shape for a in expected]:
        return float("inf")
    pairs = zip(found, expected, strict=True)
    distance = max(np.abs(a - b).max() for a, b in pairs)
    return float(distance / (max(np.abs(a).max() for a in expected) or 1))


def serve(
    row: Row, model: keras.Model, arrays: Arrays, path: Path
) -> Call | None:
    """A call of the exported model, unless its outputs are wrong.

    Fills in the row's size and difference, or its error.
    """
    try:
        call = RUNTIMES[row["runtime"]](model, arrays, path)
        distance = difference(call(), predict(model, arrays))
    # Converters and runtimes raise errors of many types.
    except Exception as error:
        missing = isinstance(error, ImportError)
        kind = "not installed" if missing else type(error).__name__
        row["error"] = f"{kind}: {error}".partition("\n")[0]
        return None
    if not distance <= TOLERANCE:  # also NaN
        row["error"] = f"wrong outputs: relative difference {distance:.1e}"
        return None
    files = [path] if path.is_file() else path.rglob("*")
    row["bytes"] = sum(f.stat().st_size for f in files if f.is_file())
    row["difference"] = distance
    return call


def measure(
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
    inputs = draw(models, steps, max(batch_sizes))
    table = []
    for runtime, n in itertools.product(runtimes, batch_sizes):
        first = dict.fromkeys(FORMATS) | {"runtime": runtime, "batch": n}
        rows = [first | {"model": str(path)} for path in paths]
        table += rows
        arrays = [array[:n] for array in inputs]
        calls, number = {}, {}
        with tempfile.TemporaryDirectory() as folder:
            for i, model in enumerate(models):
                if call := serve(rows[i], model, arrays, Path(folder, str(i))):
                    shortest = min(timeit.repeat(call, number=1, repeat=3))
                    number[i] = max(1, round(seconds / shortest))
                    calls[i] = partial(timeit.timeit, call, number=number[i])
            times = interleaved(calls, blocks, 1)
        times = {i: elapsed / number[i] for i, elapsed in times.items()}
        for i, elapsed in times.items():
            rows[i]["ms"] = float(np.median(elapsed))
            if 0 in times:
                ratio = np.percentile(times[0] / elapsed, (50, 25, 75)).tolist()
                rows[i] |= dict(zip(SPEEDUP, ratio, strict=True))
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
    rows = measure(paths, **options)
    print(f"{describe_machine()}\n\n{markdown(rows)}")
    if file:
        file.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
