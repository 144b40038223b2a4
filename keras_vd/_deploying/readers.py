"""How each runtime opens a file; nothing of Keras or of this package."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Arrays = list[np.ndarray]
Call = Callable[[], Arrays]
# From a path and the names of the inputs to a function that takes inputs and
# returns a call without arguments, which can be timed.
Reader = Callable[[str, Sequence[str]], Callable[[Arrays], Call]]


def read_saved_model(
    path: str, names: Sequence[str]
) -> Callable[[Arrays], Call]:
    """A SavedModel's signature `serving_default`, in TensorFlow."""
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    function = loaded.signatures["serving_default"]

    def prepare(arrays: Arrays) -> Call:
        tensors = dict(zip(names, map(tf.constant, arrays), strict=True))

        def call(owner: Any = loaded) -> Arrays:
            # What the loaded object owns lives only as long as it does.
            outputs = function(**tensors)
            return [outputs[k].numpy() for k in sorted(outputs, key=_natural)]

        return call

    return prepare


def _natural(name: str) -> list[Any]:
    """`output_10` comes after `output_9`."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if part.isdigit() else part for part in parts]


def read_litert(path: str, names: Sequence[str]) -> Callable[[Arrays], Call]:
    """A LiteRT file, on one thread."""
    from ai_edge_litert.interpreter import Interpreter

    reader = Interpreter(path, num_threads=1)

    def prepare(arrays: Arrays) -> Call:
        # Inputs are numbered by the writer; their order is not kept.
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


def read_onnx(path: str, names: Sequence[str]) -> Callable[[Arrays], Call]:
    """An ONNX file in ONNX Runtime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    own_names = [tensor.name for tensor in session.get_inputs()]

    def prepare(arrays: Arrays) -> Call:
        inputs = dict(zip(own_names, arrays, strict=True))
        return lambda: [np.asarray(x) for x in session.run(None, inputs)]

    return prepare


def read_keras(path: str, names: Sequence[str]) -> Callable[[Arrays], Call]:
    """A Keras file, in Keras."""
    import keras

    model = keras.models.load_model(path)

    def prepare(arrays: Arrays) -> Call:
        structure = getattr(model, "input", model.inputs[0])
        inputs = keras.tree.pack_sequence_as(structure, list(arrays))
        return lambda: keras.tree.flatten(model.predict_on_batch(inputs))

    return prepare


READERS: dict[str, Reader] = {
    "Keras": read_keras,
    "TensorFlow": read_saved_model,
    "LiteRT": read_litert,
    "ONNX Runtime": read_onnx,
}
