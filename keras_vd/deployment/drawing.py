"""Inputs that a model takes: the user's, or drawn at random."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from functools import partial
from typing import Any

import keras
import numpy as np

from keras_vd._backend.keras_internals import flatten_layers
from keras_vd.deployment.interface import predict
from keras_vd.deployment.readers import Arrays, as_text

EXAMPLES = 3  # number of examples drawn for a check
# Lengths of open axes, such as time steps, in the order in which they are
# tried. A model refuses more steps than it has positions, and fewer than its
# convolutions need.
LENGTHS = (16, 8, 4, 2, 1, 32, 64, 128, 256)
# The first integer that a type cannot tell from the next one.
MOST_IDS = {"float32": 2**24, "float16": 2**11, "bfloat16": 2**8}
FEW_IDS = 100  # number of ids to draw from where a model takes any
LOOKS_UP = (keras.layers.Embedding, keras.layers.CategoryEncoding)


def input_shapes(
    model: keras.Model, examples: int, steps: int
) -> list[tuple[int, ...]]:
    """Return the shapes of inputs, with `examples` and `steps` in open axes."""
    return [
        tuple(
            n or (steps if axis else examples)
            for axis, n in enumerate(tensor.shape)
        )
        for tensor in model.inputs
    ]


def input_dtype(tensor: keras.KerasTensor) -> str:
    """Return the name of an input's type; that of text is "string"."""
    return str(keras.backend.standardize_dtype(tensor.dtype))


def flat_inputs(model: keras.Model, x: Any, examples: int = EXAMPLES) -> Arrays:
    """Return the user's `x` as arrays, or inputs drawn for the model.

    Args:
        model: A model whose inputs are known.
        x: Inputs, as the model takes them, or None.
        examples: Number of examples to draw, unless the model takes a fixed
            number.

    Raises:
        ValueError: if `x` has not as many arrays as the model has inputs, or
            arrays of other shapes or of text in place of numbers.
    """
    if x is None:
        return draw_inputs([model], examples, _length(model))
    arrays = [np.asarray(array) for array in keras.tree.flatten(x)]
    shapes = [tensor.shape for tensor in model.inputs]
    dtypes = [input_dtype(tensor) for tensor in model.inputs]
    fits = len(arrays) == len(shapes) and all(
        array.ndim == len(shape)
        and len(array)
        and (array.dtype.kind in "OSU") == (dtype == "string")
        and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
        for array, shape, dtype in zip(arrays, shapes, dtypes, strict=True)
    )
    if not fits:
        raise ValueError(
            f"Argument `x` must hold inputs of '{model.name}', of shapes "
            f"{shapes} and types {dtypes}. Received arrays of shapes "
            f"{[a.shape for a in arrays]} and types "
            f"{[str(a.dtype) for a in arrays]}."
        )
    return [
        as_text(array) if dtype == "string" else array.astype(dtype)
        for array, dtype in zip(arrays, dtypes, strict=True)
    ]


def draw_inputs(
    models: Sequence[keras.Model], examples: int, steps: int
) -> Arrays:
    """Draw words and ids that all models know, or standard normal numbers.

    Numbers may have to be ids in a float input too: an embedding anywhere in a
    model refuses numbers beyond its table.
    """
    rng = np.random.default_rng(0)
    drawn = []
    for i, shape in enumerate(input_shapes(models[0], examples, steps)):
        dtype = input_dtype(models[0].inputs[i])
        pool: Any = None
        if dtype == "string":
            pool = _words(models)
        elif dtype == "bool":
            pool = 2
        elif np.issubdtype(dtype, np.integer) or _looks_up(models):
            pool = _ids(models, i, dtype, steps)
        values = (
            rng.standard_normal(shape)
            if pool is None
            else rng.choice(pool, shape)
        )
        drawn.append(values if dtype == "string" else values.astype(dtype))
    return drawn


def _looks_up(models: Sequence[keras.Model]) -> bool:
    return any(
        isinstance(layer, LOOKS_UP)
        for model in models
        for layer in flatten_layers(model)
    )


def _words(models: Sequence[keras.Model]) -> list[str]:
    """Return words that the layers for text know."""
    words: list[str] = []
    for layer in (x for model in models for x in flatten_layers(model)):
        is_lookup = isinstance(layer, keras.layers.StringLookup)
        if isinstance(layer, keras.layers.TextVectorization) or (
            is_lookup and not layer.invert
        ):
            words += layer.get_vocabulary(include_special_tokens=False)
    return words or ["some", "words"]


def _ids(
    models: Sequence[keras.Model], position: int, dtype: str, steps: int
) -> Any:
    """Return what to draw the ids of an input from; None for real numbers.

    This is a list of ids, or the number n of ids 0 to n - 1.
    """
    is_integer = np.issubdtype(dtype, np.integer)
    most = (
        min(MOST_IDS["float32"], int(np.iinfo(dtype).max) + 1)
        if is_integer
        else MOST_IDS.get(dtype, MOST_IDS["float32"])
    )
    short = min(2, steps)
    if any(_outcome(model, short) for model in models):
        short = steps
    refuses = partial(_refuses, models, position, short)
    if not refuses(most - 1):
        return FEW_IDS if is_integer else None
    if not refuses(0):
        return bisect.bisect(range(most), False, key=refuses)
    keys = [
        key
        for model in models
        for layer in flatten_layers(model)
        if isinstance(layer, keras.layers.IntegerLookup)
        for key in layer.get_vocabulary(include_special_tokens=False)
    ]
    return (keys or FEW_IDS) if is_integer else None


def _refuses(
    models: Sequence[keras.Model], position: int, steps: int, number: int
) -> bool:
    """Tell whether a model refuses a number in its input at `position`."""
    return any(_outcome(model, steps, position, number) for model in models)


def _length(model: keras.Model) -> int:
    """Return the first of `LENGTHS` that the model takes for its open axes.

    If it takes none, this is one that leads to NaN rather than to an error.
    """
    if all(None not in tensor.shape[1:] for tensor in model.inputs):
        return LENGTHS[0]
    outcomes = {}
    for steps in LENGTHS:
        outcomes[steps] = _outcome(model, steps)
        if not outcomes[steps]:
            return steps
    return min(LENGTHS, key=lambda n: (outcomes[n] != "NaN", LENGTHS.index(n)))


def _outcome(
    model: keras.Model, steps: int, position: int = 0, number: int = 0
) -> str:
    """Return what is wrong with outputs for inputs of a length; "" if nothing.

    All numbers in the inputs are 0, but `number` in the input at `position`.
    """
    arrays: Arrays = []
    for i, shape in enumerate(input_shapes(model, 1, steps)):
        dtype = input_dtype(model.inputs[i])
        if dtype == "string":
            arrays.append(np.full(shape, _words([model])[0]))
        else:
            value = number if i == position else 0
            arrays.append(np.full(shape, value, dtype))
    try:
        outputs = predict(model, arrays)
    # Each backend raises its own type of error; JAX returns NaN instead.
    except Exception as error:
        return str(error) or type(error).__name__
    is_nan = any(
        output.dtype.kind not in "OSU" and np.isnan(output).any()
        for output in outputs
    )
    return "NaN" if is_nan else ""
