"""Archives: a plain model in as few bytes as its weights need."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_vd._backend.keras_internals import own_variables
from keras_vd._backend.validation import check_integer, check_model
from keras_vd.conversion.deterministic import to_deterministic
from keras_vd.conversion.fine_tuning import without_frozen_zeros
from keras_vd.deployment import configs
from keras_vd.deployment.archive_content import (
    Steps,
    decode,
    encode,
    integers_of,
    times,
)
from keras_vd.deployment.drawing import flat_inputs
from keras_vd.deployment.readers import Arrays
from keras_vd.deployment.requirements import require
from keras_vd.deployment.writer import Writer
from keras_vd.posteriors.finding import find_posteriors
from keras_vd.precision import (
    FEWEST_BITS,
    MOST_BITS,
    named_kernels,
    posterior_steps,
    step_of,
)
from keras_vd.shrinking import shrink

REQUIRED = ("constriction", "archive")


def save_archive(
    model: keras.Model,
    path: str | os.PathLike[str],
    bits: int | Mapping[str, int] | None = None,
    x: Any = None,
) -> None:
    """Save a model for inference in as few bytes as its weights need.

    Weights are rounded to whole steps, and those that are zero take next to
    nothing. `load_archive` reads the file, on every backend. Check what the
    rounding does to your metric: `load_archive(path)` predicts with rounded
    weights.

    Args:
        model: A built model; not changed. A variational one is converted by
            `to_deterministic` and `shrink` first. Subclassed models and layers
            made of layers are written out, see `keras_vd.to_functional`.
        path: File to write, with the ending `.kvd`. An existing file is
            replaced once the new one has been read back, and computes what
            `model` computes with rounded weights.
        bits: How precise the weights of a layer with kernels are, its biases
            included: the largest value of a kernel takes so many bits, from 2
            to 24. An integer for all layers, or a dictionary of them by the
            names of layers, or of weights, such as "lstm/kernel". By default
            what the posteriors of a variational model allow, see
            `keras_vd.bit_widths`; a plain model that was fine-tuned after it
            takes `bits=keras_vd.bit_widths(variational_model)`. Other weights
            stay as they are.
        x: Inputs for the check, as the model takes them; a few drawn at
            random by default.

    Raises:
        TypeError: if `model` is no Keras model, or `bits` no such number.
        ValueError: if `model` is plain and `bits` None, if `bits` names what
            is no layer with kernels or is out of range, if `model` is not
            built, has stateful layers, vocabularies, layers with code of their
            own or weights that are not finite, if `path` has another ending,
            `x` another shape, or `model` does not take the inputs drawn.
        ImportError: if the package `constriction` is missing.
        OSError: if the file cannot be written.
        RuntimeError: if the outputs of what was written differ.

    Example:
        >>> import os, tempfile
        >>> from keras_vd import deployment
        >>> path = os.path.join(tempfile.mkdtemp(), "small.kvd")
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> deployment.save_archive(model, path, bits=8)  # doctest: +SKIP
        >>> deployment.load_archive(path).count_params()  # doctest: +SKIP
        10
    """
    check_model(model)
    widths = _check_bits(bits)
    steps = None
    if find_posteriors(model):
        plain = to_deterministic(model)
        if widths is None:
            steps = posterior_steps(model, plain)
        model = shrink(plain, verbose=0)
    elif widths is None:
        raise ValueError(
            "Argument `bits` must be given for a plain model, as only a "
            "posterior says how precise weights have to be: a number of bits, "
            "such as 8, or `keras_vd.bit_widths(variational_model)` of the "
            f"model that became '{model.name}'. Received: bits=None."
        )
    with WRITER.opened(model, path) as opened, without_frozen_zeros(opened):
        configs.check_archivable(opened)
        found = _variable_steps(opened, widths, steps)
        arrays = flat_inputs(opened, x)
        with _rounded(opened, found):
            WRITER.write(opened, path, arrays, steps=found)


def load_archive(path: str | os.PathLike[str]) -> keras.Model:
    """Load what `save_archive` has written, as a plain Keras model.

    The file cannot bring code with it. Layers of your own need to be
    registered, as for `keras.models.load_model`.

    Args:
        path: The file.

    Returns:
        The model, not compiled.

    Raises:
        ValueError: if the file is no archive, is damaged, or holds layers that
            are not known here or that an archive must not hold.
        ImportError: if the package `constriction` is missing.
        OSError: if it cannot be read.

    Example:
        >>> import os, tempfile
        >>> from keras_vd import deployment
        >>> path = os.path.join(tempfile.mkdtemp(), "small.kvd")
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> deployment.save_archive(model, path)  # doctest: +SKIP
        >>> deployment.load_archive(path).count_params()  # doctest: +SKIP
        10
    """
    require(*REQUIRED)
    content = Path(path).read_bytes()
    try:
        return decode(content)
    except ValueError as error:
        raise ValueError(
            f"'{os.fspath(path)}' is no archive that can be read: {error}"
        ) from error


def _check_bits(bits: Any) -> int | dict[str, int] | None:
    if bits is None:
        return None
    if isinstance(bits, Mapping):
        return {
            str(name): _check_number(f"bits[{name!r}]", value)
            for name, value in bits.items()
        }
    return _check_number("bits", bits)


def _check_number(name: str, bits: Any) -> int:
    number = check_integer(name, bits, FEWEST_BITS)
    if number > MOST_BITS:
        raise ValueError(
            f"Argument `{name}` must be {MOST_BITS} at most. Received: "
            f"{name}={bits!r}."
        )
    return number


def _variable_steps(
    model: keras.Model,
    bits: int | dict[str, int] | None,
    steps: dict[str, float] | None,
) -> Steps:
    """Find the step of each of a model's weights; None: it is not rounded.

    Args:
        model: The plain model.
        bits: Bits of all kernels, or by name.
        steps: Steps by name, in place of bits.

    Raises:
        ValueError: if a name of `bits` means no kernel.
    """
    given: Mapping[str, Any] = steps or {}
    if isinstance(bits, dict):
        given = bits
    found: dict[int, float] = {}
    used: set[str] = set()
    for layer, variable, names in named_kernels(model):
        named = [name for name in names if name in given]
        used.update(named)
        value = given[named[0]] if named else bits
        if not isinstance(value, (int, float)):
            continue
        values = np.asarray(keras.ops.convert_to_numpy(variable), float)
        largest = float(np.abs(values).max(initial=0.0)) or 1.0
        step = value if steps else step_of(largest, value)
        # No more than 24 bits, which float32 holds.
        step = _bfloat16(max(step, step_of(largest, MOST_BITS)), not steps)
        found[id(variable)] = step
        for other in own_variables(layer):
            is_float = keras.backend.is_float_dtype(other.dtype)
            if is_float and len(other.shape) == 1:
                found[id(other)] = min(step, found.get(id(other), step))
    unknown = sorted(set(given) - used)
    if unknown and steps is None:
        raise ValueError(
            "Argument `bits` must name layers of the model that have kernels. "
            f"'{model.name}' has no such layers or weights: {unknown}."
        )
    return [found.get(id(variable)) for variable in model.weights]


def _bfloat16(value: float, is_upwards: bool) -> float:
    """Round to 8 significant bits, up or down."""
    word = np.float32(value).view(np.uint32)
    rounded = (word >> 16 << 16).view(np.float32)
    if is_upwards and rounded < value:
        rounded = ((word >> 16) + 1 << 16).view(np.float32)
    return float(rounded)


@contextlib.contextmanager
def _rounded(model: keras.Model, steps: Steps) -> Iterator[None]:
    """Round the weights of a model within a context."""
    before = [
        (variable, keras.ops.convert_to_numpy(variable).copy())
        for variable, step in zip(model.weights, steps, strict=True)
        if step is not None
    ]
    try:
        for variable, step in zip(model.weights, steps, strict=True):
            if step is not None:
                variable.assign(times(integers_of(variable, step), step))
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


def _make(model: keras.Model, arrays: Arrays, steps: Steps) -> bytes:
    return encode(model, steps)


WRITER = Writer(
    "save_archive", "Keras", _make, ending=".kvd", packages=(REQUIRED,)
)
