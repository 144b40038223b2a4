"""Inputs and outputs of a model, and the difference between two outputs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_vd._backend.keras_internals import flatten_layers
from keras_vd._backend.validation import check_plain_model
from keras_vd._backend.writing import read_back
from keras_vd.conversion.functional import written_out
from keras_vd.deployment.readers import Arrays, Reader, as_text

TOLERANCE = 1e-4  # of outputs, relative to the largest
# The same for formats that may round weights, by the option `weights`.
TOLERANCES = {"float32": TOLERANCE, "int8": 0.05}
# The same for models that compute with 16 bits: a few rounding steps.
HALF_TOLERANCES = {"float16": 0.005, "bfloat16": 0.04}


@contextlib.contextmanager
def deployable(model: Any) -> Iterator[keras.Model]:
    """Give, within a context, what is to be written of a model.

    This is the model itself or, where it is made of layers with parts, the
    Functional model of these.

    Raises:
        TypeError: if it is no Keras model.
        ValueError: if it has layers of `keras_vd`, weights that are not finite
            or stateful recurrent layers, is not built, or cannot be written
            out.
    """
    check_plain_model(model)
    with written_out(model) as written:
        if not getattr(written.model, "inputs", None):
            reason = written.reasons.get(id(model))
            why = f"cannot be written out: {reason}" if reason else "is not"
            raise ValueError(
                "Argument `model` must be a built Sequential or Functional "
                f"model, whose inputs are known. '{model.name}', of type "
                f"{type(model).__name__}, {why}. Call it on data, or write it "
                "with the functional API."
            )
        stateful = [x.name for x in flatten_layers(model) if _keeps_state(x)]
        if stateful:
            raise ValueError(
                f"Layers {stateful} of '{model.name}' keep a state from call "
                "to call, which files for inference do not hold: build them "
                "with `stateful=False`, or use `model.save`."
            )
        yield written.model


def _keeps_state(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.RNN) and layer.stateful


def check_precision(
    model: keras.Model, runtime: str, unknown: Collection[str]
) -> None:
    """Raise if layers compute with numbers that a runtime does not know.

    Args:
        model: A Keras model.
        runtime: Name of the runtime, for the message.
        unknown: Names of the types that it does not know.

    Raises:
        ValueError: if so, with the layers.
    """
    found = {
        layer.name: layer.compute_dtype
        for layer in flatten_layers(model)
        if layer.compute_dtype in unknown
        and not isinstance(layer, (keras.Model, keras.layers.InputLayer))
    }
    if found:
        raise ValueError(
            f"{runtime} does not compute with "
            f"{' or '.join(sorted(set(found.values())))}, as layers "
            f"{list(found)[:5]} of '{model.name}' do ({len(found)} in all). "
            "Build the model with `dtype='float32'` and set its weights."
        )


def precision_advice(model: keras.Model) -> str:
    """Return what to do where a runtime lacks operations for some types.

    "" if all layers compute in types that the runtimes support.
    """
    found = {layer.compute_dtype for layer in flatten_layers(model)}
    others = sorted(found & {"float16", "bfloat16", "float64"})
    if not others:
        return ""
    return (
        f" Some layers compute with {' and '.join(others)}, for which runtimes "
        "lack operations: build the model with `dtype='float32'` and set its "
        "weights."
    )


def input_names(model: keras.Model) -> list[str]:
    """Return different names for the inputs, which every format allows."""
    found: list[str] = []
    for tensor in model.inputs:
        name = re.sub(r"\W", "_", tensor.name).lstrip("_") or "x"
        while name in found:
            name = f"x{len(found)}_{name}"
        found.append(name)
    return found


def output_names(model: keras.Model) -> list[str]:
    """Return the outputs' names: keys of a dictionary, or `output_<i>`."""
    structure = getattr(model, "output", None)
    if isinstance(structure, dict) and not has_nested_outputs(model):
        return sorted(structure)  # in this order `keras.tree` flattens them
    return [f"output_{i}" for i in range(len(model.outputs))]


def has_nested_outputs(model: keras.Model) -> bool:
    """Tell whether an output is in a structure within another one."""
    structure: Any = getattr(model, "output", None)
    if not isinstance(structure, (dict, list, tuple)):
        return False
    values = structure.values() if isinstance(structure, dict) else structure
    return any(keras.tree.is_nested(value) for value in values)


def pack(model: keras.Model, tensors: Sequence[Any]) -> Any:
    """Pack tensors as the model takes them: one tensor, or a structure."""
    # A Sequential model that was loaded has `inputs` but no `input`.
    structure = getattr(model, "input", model.inputs[0])
    return keras.tree.pack_sequence_as(structure, list(tensors))


def predict(model: keras.Model, arrays: Arrays) -> Arrays:
    """Compute the outputs of the model, flattened."""
    tensors = [keras.ops.convert_to_tensor(array) for array in arrays]
    outputs = model(pack(model, tensors), training=False)
    return [
        keras.ops.convert_to_numpy(output)
        for output in keras.tree.flatten(outputs)
    ]


def difference(found: Arrays, expected: Arrays) -> float:
    """Compute the largest difference, relative to the largest output.

    It is infinite if shapes or text differ, and NaN if anything is NaN.
    """
    if [a.shape for a in found] != [a.shape for a in expected]:
        return float("inf")
    largest, scale = 0.0, 0.0
    for a, b in zip(found, expected, strict=True):
        if b.dtype.kind in "OSU":
            is_equal = np.array_equal(as_text(a), as_text(b))
            largest = max(largest, 0.0 if is_equal else float("inf"))
            continue
        # Differences of unsigned integers or of 16 bits may overflow.
        a, b = a.astype(float), b.astype(float)
        with np.errstate(invalid="ignore"):
            distances = np.where(a == b, 0.0, np.abs(a - b))
        largest = np.maximum(largest, distances.max(initial=0.0))
        scale = max(scale, np.abs(b[np.isfinite(b)]).max(initial=0.0))
    return float(largest / (scale or 1))


def outputs_check(
    model: keras.Model,
    reader: Reader,
    arrays: Arrays,
    tolerance: float = TOLERANCE,
    advice: str = "",
) -> Callable[[Path], None]:
    """Return a check that a written file computes what the model computes.

    Args:
        model: The model that was written.
        reader: Opens the file in its runtime.
        arrays: Inputs to compare outputs for.
        tolerance: Largest difference allowed.
        advice: What to do if it is larger, or if the file cannot be run.

    Returns:
        A function of the file's path. It raises an OSError for a file that
        cannot be read, a RuntimeError for one that cannot be run or that has
        other outputs.

    Raises:
        ValueError: if the model cannot compute outputs.
    """
    try:
        expected = predict(model, arrays)
    # Each backend has errors of its own.
    except Exception as error:
        raise ValueError(_unfit(model, arrays, str(error))) from error
    if np.isnan(difference(expected, expected)):
        raise ValueError(_unfit(model, arrays, "Its outputs are NaN."))
    names = input_names(model)
    allowed = max(
        HALF_TOLERANCES.get(layer.compute_dtype, tolerance)
        for layer in flatten_layers(model)
    )
    allowed = max(allowed, tolerance)

    def check(path: Path) -> None:
        opened = read_back(path, lambda p: reader(str(p), names))
        try:
            found = opened(arrays)()
        # Each runtime has errors of its own.
        except Exception as error:
            raise RuntimeError(
                f"'{path.name}' was not written: its runtime cannot compute "
                f"'{model.name}'. {advice}{' ' if advice else ''}{error}"
            ) from error
        distance = difference(found, expected)
        if not distance <= allowed:  # also NaN
            raise RuntimeError(
                f"'{path.name}' was not written: its outputs are not those of "
                f"'{model.name}'. Their largest difference is {distance:.1e} "
                f"of the largest output; {allowed:g} is allowed. {advice}"
            )

    return check


def _unfit(model: keras.Model, arrays: Arrays, reason: str) -> str:
    shapes = [array.shape for array in arrays]
    return (
        f"'{model.name}' does not take the inputs of the check, of shapes "
        f"{shapes}. Give a few that it takes as `x=`. {reason}"
    )
