"""What goes into a model, what comes out, and how far two outputs differ."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_vd._deploying.readers import Arrays, Reader
from keras_vd._deploying.writing import read_back
from keras_vd._keras_internals import flatten_layers
from keras_vd._validation import check_plain_model

TOLERANCE = 1e-4  # of outputs, relative to the largest
ROUNDED_TOLERANCE = 0.05  # the same with weights of 8 bits
EXAMPLES = 3  # of the inputs drawn for a check
STEPS = 16  # length of open axes of the inputs drawn for a check
MOST_IDS = 2**24  # float32 skips integers beyond


def check_deployable(model: Any) -> None:
    """Raise unless `model` is plain and says what its inputs are.

    Raises:
        TypeError: if it is no Keras model.
        ValueError: if it has layers of `keras_vd` or is not built.
    """
    check_plain_model(model)
    if not getattr(model, "inputs", None):
        raise ValueError(
            "Argument `model` must be a built Sequential or Functional model, "
            f"whose inputs are known. '{model.name}', of type "
            f"{type(model).__name__}, is not: call it on data, or write it "
            "with the functional API."
        )


def input_names(model: keras.Model) -> list[str]:
    """A name for each input that every format allows, all different."""
    found: list[str] = []
    for tensor in model.inputs:
        name = re.sub(r"\W", "_", tensor.name).lstrip("_") or "x"
        found.append(name if name not in found else f"{name}_{len(found)}")
    return found


def pack(model: keras.Model, tensors: Sequence[Any]) -> Any:
    """What the model is called with: one tensor, or a structure of them."""
    # A Sequential model that was loaded has `inputs` but no `input`.
    structure = getattr(model, "input", model.inputs[0])
    return keras.tree.pack_sequence_as(structure, list(tensors))


def predict(model: keras.Model, arrays: Arrays) -> Arrays:
    """Outputs of the model, flattened."""
    tensors = [keras.ops.convert_to_tensor(array) for array in arrays]
    outputs = model(pack(model, tensors), training=False)
    return [
        keras.ops.convert_to_numpy(output)
        for output in keras.tree.flatten(outputs)
    ]


def input_shapes(model: keras.Model, steps: int) -> list[tuple[int, ...]]:
    """Shapes of the inputs without the batch axis; `steps` for open axes."""
    return [tuple(n or steps for n in x.shape[1:]) for x in model.inputs]


def draw_inputs(
    models: Sequence[keras.Model], examples: int, steps: int
) -> Arrays:
    """Token ids that all models know, or standard normal numbers.

    An embedding refuses numbers beyond its table, wherever in the model it is.
    """
    rng = np.random.default_rng(0)
    drawn = []
    for i, shape in enumerate(input_shapes(models[0], steps)):
        dtype = keras.backend.standardize_dtype(models[0].inputs[i].dtype)
        ids = bisect.bisect(
            range(MOST_IDS), False, key=partial(_refuses, models, i)
        )
        if ids < MOST_IDS or np.issubdtype(dtype, np.integer):
            drawn.append(rng.integers(0, ids, (examples, *shape)).astype(dtype))
        else:
            normal = rng.standard_normal((examples, *shape))
            drawn.append(normal.astype(dtype))
    return drawn


def _refuses(models: Sequence[keras.Model], position: int, number: int) -> bool:
    """Whether a model with an embedding does not know a number."""
    for model in models:
        if not any(
            isinstance(layer, keras.layers.Embedding)
            for layer in flatten_layers(model)
        ):
            continue
        arrays = [
            np.zeros((1, *shape), keras.backend.standardize_dtype(x.dtype))
            for shape, x in zip(
                input_shapes(model, 2), model.inputs, strict=True
            )
        ]
        try:
            arrays[position][:] = number
            outputs = predict(model, arrays)
        # Each backend has its own error; JAX returns NaN.
        except Exception:
            return True
        if any(np.isnan(output).any() for output in outputs):
            return True
    return False


def flat_inputs(model: keras.Model, x: Any) -> Arrays:
    """The user's `x` as arrays, or inputs drawn for the model.

    Raises:
        ValueError: if `x` has not as many arrays as the model has inputs, or
            arrays of other shapes.
    """
    if x is None:
        return draw_inputs([model], EXAMPLES, STEPS)
    arrays = [np.asarray(array) for array in keras.tree.flatten(x)]
    shapes = [tensor.shape for tensor in model.inputs]
    fits = len(arrays) == len(shapes) and all(
        array.ndim == len(shape)
        and len(array)
        and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
        for array, shape in zip(arrays, shapes, strict=True)
    )
    if not fits:
        raise ValueError(
            f"Argument `x` must hold inputs of '{model.name}', of shapes "
            f"{shapes}. Received arrays of shapes {[a.shape for a in arrays]}."
        )
    return [
        array.astype(keras.backend.standardize_dtype(tensor.dtype))
        for array, tensor in zip(arrays, model.inputs, strict=True)
    ]


def difference(found: Arrays, expected: Arrays) -> float:
    """The largest one over all outputs, relative to the largest output."""
    if [a.shape for a in found] != [a.shape for a in expected]:
        return float("inf")
    pairs = zip(found, expected, strict=True)
    distances = [np.abs(a - b).max() for a, b in pairs]
    if np.isnan(distances).any():
        return float("nan")
    return float(max(distances) / (max(np.abs(a).max() for a in expected) or 1))


def outputs_check(
    model: keras.Model,
    reader: Reader,
    arrays: Arrays,
    tolerance: float = TOLERANCE,
    advice: str = "",
) -> Callable[[Path], None]:
    """A check that a written file computes what the model computes.

    Args:
        model: The model that was written.
        reader: How the file is opened.
        arrays: Inputs.
        tolerance: Largest difference allowed.
        advice: What to do if it is larger.

    Returns:
        A function of the file's path. It raises an OSError for a file that
        cannot be read, a RuntimeError for one with other outputs.
    """
    expected = predict(model, arrays)
    names = input_names(model)

    def check(path: Path) -> None:
        found = read_back(path, lambda p: reader(str(p), names)(arrays)())
        distance = difference(found, expected)
        if not distance <= tolerance:  # also NaN
            raise RuntimeError(
                f"'{path.name}' was not written: its outputs are not those of "
                f"'{model.name}'. Their largest difference is {distance:.1e} "
                f"of the largest output; {tolerance:g} is allowed. {advice}"
            )

    return check
