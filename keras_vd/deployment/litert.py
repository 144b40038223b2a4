"""LiteRT files with sparse kernels or 8-bit weights."""

from __future__ import annotations

import os
import re
from typing import Any

import keras

from keras_vd._backend.keras_internals import flatten_layers
from keras_vd._backend.validation import check_integer
from keras_vd.deployment.drawing import EXAMPLES, flat_inputs, input_dtype
from keras_vd.deployment.interface import (
    TOLERANCE,
    TOLERANCES,
    precision_advice,
)
from keras_vd.deployment.logs import collected_logs
from keras_vd.deployment.readers import Arrays
from keras_vd.deployment.saved_models import TENSORFLOW, lookup_tables, traced
from keras_vd.deployment.writer import Writer

ADVICE = (
    "LiteRT computes sparse dense layers wrongly if their number of inputs is "
    "no multiple of 4, and cannot run some in loops over time: use "
    "weights='int8' or 'float32', or the model from before `shrink`."
)
# No option has both optimizations: such a file can be made, but LiteRT refuses
# to run it.
OPTIMIZATIONS = {
    "sparse": ["EXPERIMENTAL_SPARSITY"],
    "int8": ["DEFAULT"],
    "float32": [],
}


def export_litert(
    model: keras.Model,
    path: str | os.PathLike[str],
    weights: str = "sparse",
    batch_size: int | None = 1,
    x: Any = None,
) -> None:
    """Write a plain model as a LiteRT file (`.tflite`).

    Args:
        model: A built model of plain Keras layers; not changed. Subclassed
            models and layers made of layers are written out, see
            `keras_vd.to_functional`.
        path: File to write, with the ending `.tflite`; replaced once the new
            one has been read back and its outputs are those of `model`.
        weights: "sparse" stores sparse weights in a sparse form. Dense layers
            with more than 96.6% zeros are also computed in that form, several
            times faster. Other weights, and those of convolutions, are made
            dense before they are used; a recurrent layer does so in each of
            its steps, which is slow. Embeddings stay as they are. LiteRT 2.3
            computes sparse layers wrongly if their number of inputs is no
            multiple of 4; then nothing is written. "int8" holds weights in 8
            bits and computes with them; outputs may then differ by 5% of the
            largest one before it is an error. "float32" is dense. LiteRT
            cannot run sparse weights of 8 bits.
        batch_size: Number of examples of each call. None for any number, which
            LiteRT does not offer for recurrent layers. Other open axes, such
            as time steps, stay open: `resize_tensor_input` sets them.
        x: Inputs for the check, as the model takes them, of at least
            `batch_size` examples; some drawn at random by default.

    Raises:
        TypeError: if `model` is no Keras model or `batch_size` no integer.
        ValueError: if `model` is not built, has layers of `keras_vd`, stateful
            ones, some that do not compute with 32 bits, weights that are not
            finite, strings or look-ups, if `weights` is none of these,
            `batch_size` is not positive or not that of the inputs, `path` has
            another ending, `x` another shape, or `model` does not take the
            inputs drawn.
        ImportError: if TensorFlow or ai-edge-litert is not installed.
        RuntimeError: if the backend is not TensorFlow, if TensorFlow cannot
            convert the model, LiteRT cannot run it, or its outputs differ.
        OSError: if the file cannot be written.

    Example:
        >>> import os, tempfile
        >>> from keras_vd import deployment
        >>> path = os.path.join(tempfile.mkdtemp(), "small.tflite")
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> deployment.export_litert(model, path)  # doctest: +SKIP
    """
    with WRITER.opened(model, path, weights) as opened:
        if batch_size is not None:
            check_integer("batch_size", batch_size, 1)
        _check_types(opened)
        WRITER.write(
            opened,
            path,
            _examples(opened, x, batch_size),
            ADVICE if weights == "sparse" else "",
            weights=weights,
            batch_size=batch_size,
        )


def _check_types(model: keras.Model) -> None:
    text = [
        tensor.name
        for tensor in (*model.inputs, *model.outputs)
        if input_dtype(tensor) == "string"
    ]
    if text:
        raise ValueError(
            f"LiteRT files hold no layers for text, but {text} of "
            f"'{model.name}' are strings. Write the part between them, such as "
            "`keras.Model(ids, model.output)` from the token ids on, and turn "
            "text into ids where it is read; or write all of it with "
            "`export_saved_model`."
        )
    if lookup_tables(model):
        kinds = (keras.layers.StringLookup, keras.layers.IntegerLookup)
        names = [x.name for x in flatten_layers(model) if isinstance(x, kinds)]
        raise ValueError(
            f"LiteRT files hold no tables, as layers {names} of "
            f"'{model.name}' have. Write the part behind them and look up "
            "where data are read, or write all of it with "
            "`export_saved_model` or `export_onnx`."
        )


def _examples(model: keras.Model, x: Any, batch_size: int | None) -> Arrays:
    """Return the inputs of one call, cut to the batch size."""
    fixed = {tensor.shape[0] for tensor in model.inputs} - {None, batch_size}
    if fixed:
        raise ValueError(
            f"Argument `batch_size` must be {fixed.pop()}, as the inputs of "
            f"'{model.name}' say. Received: batch_size={batch_size}."
        )
    arrays = flat_inputs(model, x, batch_size or EXAMPLES)
    if batch_size is not None and len(arrays[0]) < batch_size:
        raise ValueError(
            "Argument `x` must hold at least `batch_size` examples. Received: "
            f"{len(arrays[0])} examples, batch_size={batch_size}."
        )
    return [array[:batch_size] for array in arrays]


def _make(
    model: keras.Model, arrays: Arrays, weights: str, batch_size: int | None
) -> bytes:
    concrete = traced(model, batch_size)
    with collected_logs("tensorflow", "absl"):
        try:
            return _converted(concrete, weights)
        # TensorFlow's converter raises errors of many types.
        except Exception as error:
            advice = (
                " Recurrent layers need a fixed `batch_size`."
                if batch_size is None
                else ""
            )
            unknown = re.findall(r"^\s*(tf\.\w+\(.*\)) :", str(error), re.M)
            if unknown:
                advice += (
                    f" LiteRT has no operation {'; '.join(unknown)}. Replace "
                    "what computes it, or use `export_saved_model`."
                )
            advice += precision_advice(model)
            raise RuntimeError(
                f"TensorFlow cannot convert '{model.name}' for LiteRT.{advice} "
                f"{error}"
            ) from error


def _converted(concrete: Any, weights: str) -> bytes:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    # LiteRT's package lacks the operations of TensorFlow that a recurrent
    # layer would otherwise need.
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    converter._experimental_lower_tensor_list_ops = True
    converter.optimizations = [
        getattr(tf.lite.Optimize, name) for name in OPTIMIZATIONS[weights]
    ]
    return bytes(converter.convert())


WRITER = Writer(
    "export_litert",
    "LiteRT",
    _make,
    ending=".tflite",
    backends=("tensorflow",),
    packages=(TENSORFLOW, ("ai_edge_litert.interpreter", "runtimes")),
    tolerances={"sparse": TOLERANCE, **TOLERANCES},
    unknown_types=("float16", "bfloat16", "float64"),
)
