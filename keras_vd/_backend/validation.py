"""Checks of user arguments, whose errors say what is allowed and what came."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import (
    flatten_layers,
    may_be_rematerialized,
    sublayers,
)

T = TypeVar("T")


def check_number(
    argument: str,
    value: object,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    exclusive: bool = False,
) -> float:
    """Return `value` as a float if it is a finite number in the range.

    Args:
        argument: Name of the argument, for the message.
        value: What the user passed. Booleans and strings are no numbers.
        minimum: Smallest value allowed.
        maximum: Largest value allowed.
        exclusive: Whether `minimum` itself is refused.

    Raises:
        TypeError: if `value` is not a real number.
        ValueError: if it is NaN, infinite or outside the range.
    """
    bound = "greater than" if exclusive else "at least"
    allowed = "a finite number"
    if math.isfinite(minimum):
        allowed += f" {bound} {minimum:g}"
    if math.isfinite(maximum):
        allowed += f"{' and' if math.isfinite(minimum) else ''} at most "
        allowed += f"{maximum:g}"
    message = (
        f"Argument `{argument}` must be {allowed}. Received: "
        f"{argument}={value!r} (of type {type(value).__name__})."
    )
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(message)
    number = float(value)
    too_small = number <= minimum if exclusive else number < minimum
    if not math.isfinite(number) or too_small or number > maximum:
        raise ValueError(message)
    return number


def check_share(argument: str, value: object) -> float:
    """Return `value` as a float if it is a number between 0 and 1.

    Raises:
        TypeError: if it is not a real number.
        ValueError: if it is 0, 1 or outside of them.
    """
    number = check_number(argument, value, 0.0, 1.0, exclusive=True)
    if number == 1.0:
        raise ValueError(
            f"Argument `{argument}` must be less than 1. Received: "
            f"{argument}={value!r}."
        )
    return number


def check_stddev(argument: str, value: object) -> float | list[float]:
    """Return standard deviations as a float, or as a list of one per column.

    Args:
        argument: Name of the argument, for the message.
        value: What the user passed: a number > 0, or a sequence or an array of
            one axis of such numbers.

    Raises:
        TypeError: if it is neither.
        ValueError: if an entry is not positive and finite, or there is none.
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        return check_number(argument, value, 0.0, exclusive=True)
    if not value:
        raise ValueError(
            f"Argument `{argument}` must have one entry for each column. "
            f"Received: {argument}={value!r}."
        )
    return [check_number(argument, x, 0.0, exclusive=True) for x in value]


def check_integer(argument: str, value: object, minimum: int) -> int:
    """Return `value` as an int if it is a whole number of at least `minimum`.

    Raises:
        TypeError: if `value` is not an integer.
        ValueError: if it is smaller than `minimum`.
    """
    message = (
        f"Argument `{argument}` must be an integer of at least {minimum}. "
        f"Received: {argument}={value!r} (of type {type(value).__name__})."
    )
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(message)
    if value < minimum:
        raise ValueError(message)
    return int(value)


def check_choice(argument: str, value: object, allowed: Iterable[str]) -> str:
    """Return `value` if it is one of the strings in `allowed`.

    Raises:
        ValueError: otherwise.
    """
    choices = list(allowed)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"Argument `{argument}` must be one of {choices}. "
            f"Received: {argument}={value!r}."
        )
    return value


def check_choices(
    argument: str, value: object, allowed: Iterable[str]
) -> tuple[str, ...]:
    """Return `value` if it is a sequence of different strings in `allowed`.

    Raises:
        ValueError: otherwise.
    """
    choices = list(allowed)
    if (
        not isinstance(value, (list, tuple))
        or any(item not in choices for item in value)
        or len(set(value)) < len(value)
    ):
        raise ValueError(
            f"Argument `{argument}` must be a tuple of different names out of "
            f"{choices}. Received: {argument}={value!r}."
        )
    return tuple(value)


def resolve(
    argument: str,
    identifier: object,
    base: type[T],
    names: Mapping[str, type[T]],
    module: str | None = None,
) -> T:
    """Return the object that a string, a config or an object stands for.

    Args:
        argument: Name of the argument, for the message.
        identifier: A key of `names`, an instance of `base`, or its serialized
            form.
        base: Class that the object must have.
        names: Classes by their strings.
        module: Name of the module that has them; None: the plural of the
            argument's.

    Raises:
        ValueError: if `identifier` is none of these.
    """
    found = identifier
    if isinstance(identifier, dict):
        found = keras.saving.deserialize_keras_object(identifier)
    elif isinstance(identifier, str) and identifier in names:
        found = names[identifier]()
    if not isinstance(found, base):
        raise ValueError(
            f"Argument `{argument}` must be one of {list(names)}, an object "
            f"from `keras_vd.{module or argument + 's'}` or the config of one. "
            f"Received: {argument}={identifier!r}."
        )
    return found


def check_model(model: Any) -> None:
    """Raise a TypeError unless `model` is a Keras model."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            "Argument `model` must be a Keras model. Received: "
            f"model={model!r} (of type {type(model).__name__})."
        )


NOT_BUILT = (
    "Argument `model` must be built, so that its weights exist. '{name}' is "
    "not: call it on data or `model.build(shape)`."
)


def check_built(model: keras.layers.Layer) -> None:
    """Raise a ValueError unless the weights of `model` exist."""
    if not model.built:
        raise ValueError(NOT_BUILT.format(name=model.name))


def count_nonfinite(variable: keras.Variable) -> int:
    """Count the entries of a variable that are NaN or infinite."""
    if not keras.backend.is_float_dtype(variable.dtype):
        return 0
    # In float32, as NumPy has no functions for bfloat16.
    values = ops.convert_to_numpy(variable)
    if values.dtype != np.float64:
        values = values.astype(np.float32)
    return int(np.count_nonzero(~np.isfinite(values)))


def check_finite(owner: str, variables: Iterable[keras.Variable]) -> None:
    """Raise a ValueError if a variable has entries that are not finite.

    Args:
        owner: What the variables belong to, for the message.
        variables: The variables.
    """
    counts = {
        variable.path: f"{number:,} of {math.prod(variable.shape):,}"
        for variable in variables
        if (number := count_nonfinite(variable))
    }
    if counts:
        listed = ", ".join(f"'{path}' ({n})" for path, n in counts.items())
        raise ValueError(
            f"{owner} must have finite values only: one that is NaN or "
            "infinite counts neither as kept nor as zero. Not finite: "
            f"{listed}. Training has diverged; go back to a checkpoint, or "
            "train again with a smaller learning rate."
        )


def check_finite_model(model: keras.layers.Layer) -> None:
    """Raise a ValueError if a weight of a model is not finite."""
    check_finite(f"Model '{model.name}'", model.weights)


def check_plain_model(model: Any) -> None:
    """Raise unless `model` is a Keras model without layers of `keras_vd`.

    Raises:
        TypeError: if it is no Keras model.
        ValueError: if it has layers of `keras_vd`, or weights that are not
            finite.
    """
    check_model(model)
    ours = [x.name for x in flatten_layers(model) if _is_ours(x)]
    if ours:
        raise ValueError(
            "Argument `model` must be a plain Keras model; convert it first: "
            f"`keras_vd.to_deterministic(model)`. '{model.name}' has layers "
            f"of keras_vd: {ours}."
        )
    check_finite_model(model)


def _is_ours(layer: keras.layers.Layer) -> bool:
    modules = (base.__module__ for base in type(layer).__mro__)
    return any(name.startswith("keras_vd.") for name in modules)


def reason_to_keep_weights(layer: Any) -> str | None:
    """Return why the weights of a layer must not be changed, or None."""
    if not isinstance(layer, keras.layers.Layer):
        return None
    if getattr(layer, "quantization_mode", None) is not None:
        return "it is quantized"
    if getattr(layer, "lora_enabled", False):
        return "it has LoRA weights"
    reasons = (reason_to_keep_weights(x) for x in sublayers(layer))
    return next((reason for reason in reasons if reason), None)


def refuse_rematerialization(layer: keras.layers.Layer) -> None:
    """Raise if a layer is made in a `RematScope` that repeats its calls.

    Raises:
        ValueError: if so; it says what to do.
    """
    if may_be_rematerialized(layer):
        raise ValueError(
            f"Layer '{layer.name}' draws noise and adds its KL divergence in "
            "a call, which keras.RematScope would repeat for the gradient. "
            "Make it outside of the scope, or name the layers that are "
            "repeated: keras.RematScope(mode='list_of_layers', "
            "layer_names=[...]). mode='activations' works, too."
        )


def check_array(argument: str, value: Any) -> np.ndarray:
    """Return `value` as an array of float64 if it is finite and not empty.

    Raises:
        ValueError: otherwise, or if it is no array of real numbers.
    """
    message = (
        f"Argument `{argument}` must be an array of finite numbers, and not "
        "empty. Received: "
    )
    try:
        given = np.asarray(value)
        if given.dtype.kind in "cSUmM":  # complex, text, times
            raise TypeError(f"{given.dtype} is no type of real numbers")
        array = given.astype("float64")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{message}{value!r}.") from error
    nonfinite = np.count_nonzero(~np.isfinite(array))
    if nonfinite or not array.size:
        raise ValueError(
            f"{message}shape {array.shape}, {nonfinite:,} of {array.size:,} "
            "NaN or infinite."
        )
    return array
