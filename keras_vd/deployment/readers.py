"""Open files in each runtime and time them; also run as a program.

    python -P readers.py request.json

This module imports nothing of this package but for archives, so that files can
be measured in a process that loads neither it nor Keras. `measuring.py` writes
the request.
"""

from __future__ import annotations

import json
import re
import sys
import time
import timeit
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Arrays = list[np.ndarray]
Call = Callable[[], Arrays]
# Takes a path and the names of the inputs; returns a function that takes inputs
# and returns a call without arguments, which can be timed.
Reader = Callable[[str, Sequence[str]], Callable[[Arrays], Call]]


def read_saved_model(
    path: str, names: Sequence[str]
) -> Callable[[Arrays], Call]:
    """Open the signature `serving_default` of a SavedModel in TensorFlow."""
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    function = loaded.signatures["serving_default"]

    def prepare(arrays: Arrays) -> Call:
        tensors = dict(zip(names, map(tf.constant, arrays), strict=True))

        def call(owner: Any = loaded) -> Arrays:
            # `owner` keeps the loaded object alive, and with it all it owns.
            outputs = function(**tensors)
            return [outputs[k].numpy() for k in _in_order(outputs)]

        return call

    return prepare


def _in_order(names: Iterable[str]) -> list[str]:
    """Sort the names of outputs, `output_10` after `output_9`.

    Other names are keys of a dictionary, which `keras.tree` sorts as text.
    """
    numbers = [re.fullmatch(r"output_(\d+)", name) for name in names]
    if all(numbers):
        return sorted(names, key=lambda name: int(name.removeprefix("output_")))
    return sorted(names)


def read_litert(path: str, names: Sequence[str]) -> Callable[[Arrays], Call]:
    """Open a LiteRT file in LiteRT, on one thread."""
    from ai_edge_litert.interpreter import Interpreter

    reader = Interpreter(path, num_threads=1)

    def prepare(arrays: Arrays) -> Call:
        # The file does not keep the order of inputs; their names, which the
        # writer numbers, tell it.
        details = sorted(reader.get_input_details(), key=lambda d: d["name"])
        pairs = [
            (detail["index"], array)
            for detail, array in zip(details, arrays, strict=True)
        ]
        for detail, (index, array) in zip(details, pairs, strict=True):
            if tuple(detail["shape"]) != array.shape:
                reader.resize_tensor_input(index, array.shape)
        reader.allocate_tensors()
        outputs = [detail["index"] for detail in reader.get_output_details()]

        def call() -> Arrays:
            for index, array in pairs:
                reader.set_tensor(index, array)
            reader.invoke()
            return [reader.get_tensor(index) for index in outputs]

        return call

    return prepare


def open_onnx(source: str | bytes) -> Any:
    """Open a session of ONNX Runtime, on one thread.

    Args:
        source: Path of a file, or its content.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        source, options, providers=["CPUExecutionProvider"]
    )


def read_onnx(path: str, names: Sequence[str]) -> Callable[[Arrays], Call]:
    """Open an ONNX file in ONNX Runtime, on one thread."""
    session = open_onnx(path)
    own_names = [tensor.name for tensor in session.get_inputs()]

    def prepare(arrays: Arrays) -> Call:
        inputs = dict(zip(own_names, arrays, strict=True))
        return lambda: [np.asarray(x) for x in session.run(None, inputs)]

    return prepare


def read_keras(path: str, names: Sequence[str]) -> Callable[[Arrays], Call]:
    """Open a `.keras` file or an archive in Keras."""
    import keras

    if path.endswith(".kvd"):
        # The one format that only this package reads.
        from keras_vd.deployment import load_archive

        model = load_archive(path)
    else:
        model = keras.models.load_model(path)

    def prepare(arrays: Arrays) -> Call:
        structure = getattr(model, "input", model.inputs[0])
        inputs = keras.tree.pack_sequence_as(structure, list(arrays))

        def call() -> Arrays:
            outputs = keras.tree.flatten(model.predict_on_batch(inputs))
            return [np.asarray(output) for output in outputs]

        return call

    return prepare


READERS: dict[str, Reader] = {
    "Keras": read_keras,
    "TensorFlow": read_saved_model,
    "LiteRT": read_litert,
    "ONNX Runtime": read_onnx,
}


def interleaved(
    calls: Mapping[Any, Callable[[], object]], blocks: int, steps: int
) -> dict[Any, np.ndarray]:
    """Measure the milliseconds per call of each function, block by block.

    Blocks of one function alternate with those of the others, so that a slow
    moment of the machine hits all of them. The first block, which compiles,
    is left out.

    Args:
        calls: Functions by name; each must wait for its own result.
        blocks: Number of blocks of each function.
        steps: Calls per block.

    Returns:
        Arrays of shape `(blocks,)`.
    """
    times: dict[Hashable, list[float]] = {name: [] for name in calls}
    for block in range(blocks + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(steps):
                call()
            if block:
                elapsed = time.perf_counter() - start
                times[name].append(1000 * elapsed / steps)
    return {name: np.array(values) for name, values in times.items()}


def as_text(array: np.ndarray) -> np.ndarray:
    """Convert bytes and objects, as runtimes return text, to strings."""
    flat = [x.decode() if isinstance(x, bytes) else str(x) for x in array.flat]
    return np.array(flat, str).reshape(array.shape)


def stored_arrays(stored: Any) -> Arrays:
    """Return the arrays in a file of `np.savez`, in their order."""
    return [stored[f"arr_{i}"] for i in range(len(stored.files))]


def measure_request(request: dict[str, Any], folder: Path) -> list[Any]:
    """Open and time files in one runtime; write their outputs to `folder`.

    Args:
        request: See `measuring.measure`.
        folder: Holds `inputs.npz`; gets `outputs_<i>.npz`.

    Returns:
        For each file `load_ms` and `ms`, a number per block, or an `error`.
    """
    reader = READERS[request["runtime"]]
    with np.load(folder / "inputs.npz") as stored:
        inputs = stored_arrays(stored)
    found: list[dict[str, Any]] = []
    calls: dict[int, Call] = {}
    batch_sizes = []
    for i, file in enumerate(request["files"]):
        batch_sizes.append(file["batch_size"])
        arrays = [array[: batch_sizes[i]] for array in inputs]
        try:
            if not calls:  # so that the start of the runtime is not timed
                reader(file["path"], file["names"])(arrays)()
            start = time.perf_counter()
            calls[i] = reader(file["path"], file["names"])(arrays)
            outputs = calls[i]()
        # Runtimes raise errors of many types.
        except Exception as error:
            calls.pop(i, None)
            found.append({"error": f"{type(error).__name__}: {error}"})
            continue
        found.append({"load_ms": 1000 * (time.perf_counter() - start)})
        # Objects would be pickled, and `np.load` refuses to read pickles.
        plain = [as_text(x) if x.dtype == object else x for x in outputs]
        np.savez(folder / f"outputs_{i}.npz", *plain)
    for batch_size in dict.fromkeys(batch_sizes):
        timed, number = {}, {}
        for i, call in calls.items():
            if batch_sizes[i] == batch_size:
                shortest = min(timeit.repeat(call, number=1, repeat=3))
                number[i] = max(1, round(request["seconds"] / shortest))
                timed[i] = partial(timeit.timeit, call, number=number[i])
        times = interleaved(timed, request["blocks"], 1)
        for i, elapsed in times.items():
            found[i]["ms"] = (elapsed / number[i]).tolist()
    return found


def main() -> None:
    """Read the request named on the command line, write `found.json`."""
    file = Path(sys.argv[1])
    request = json.loads(file.read_text())
    if request["runtime"] != "Keras":
        sys.modules["keras"] = None  # type: ignore[assignment]
    found = measure_request(request, file.parent)
    (file.parent / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
