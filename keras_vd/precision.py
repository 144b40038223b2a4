"""How precisely each layer's weights have to be stored.

A posterior says how far a weight may be from its mean. Louizos, Ullrich and
Welling 2017 ("Bayesian compression for deep learning", arXiv:1705.08665,
section 4.2) store each layer with as many bits as its variances ask for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import own_variables, sublayers
from keras_vd.conversion.deterministic import to_deterministic
from keras_vd.posteriors.finding import variational_weights
from keras_vd.posteriors.weight import WeightPosterior

# Mean squared rounding error over the variance of the noise. In the quadratic
# approximation of the loss, rounding then costs half of what the noise costs.
ERROR_RATIO = 0.5
FEWEST_BITS, MOST_BITS = 2, 24  # float32 holds all integers of 24 bits
TOLERANCE = 1e-3  # of steps, relative


def bit_widths(model: keras.Model) -> dict[str, int]:
    """Compute how many bits each variational weight has to be stored with.

    Weights are rounded to whole steps. The step is the largest one at which
    the squared rounding error, on average over the weights that are kept, is
    at most half the variance that the posterior gives them: 2.4 standard
    deviations where all have the same. The noise of groups and gates is left
    aside, their means are multiplied in.

    Args:
        model: A built variational model, as `to_deterministic` takes it.

    Returns:
        For each name of a weight in the reports (that of its layer, if it is
        the only one there; after `to_deterministic`, which may put names of
        composites before it) the number of bits of a signed integer that holds
        each of its weights in units of the step, from 2 to 24. This can be the
        argument `bits` of `keras_vd.deployment.save_archive`.

    Raises:
        TypeError: if `model` is no Keras model.
        ValueError: if it is not built or has no posterior of a weight, or for
            what `to_deterministic` refuses.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((4,)), keras_vd.layers.VDDense(2, name="dense")]
        ... )
        >>> widths = keras_vd.bit_widths(model)
        >>> list(widths)
        ['dense']
    """
    plain = to_deterministic(model)
    return {
        name: bits_of(max(map(_largest, variables)), step)
        for name, (step, variables) in _steps(model, plain).items()
    }


def posterior_steps(model: keras.Model, plain: keras.Model) -> dict[str, float]:
    """Compute the step of each variational weight; see `bit_widths`.

    Args:
        model: The variational model.
        plain: What `to_deterministic` has made of it.

    Returns:
        Steps by the names of the weights.
    """
    return {name: step for name, (step, _) in _steps(model, plain).items()}


def bits_of(largest: float, step: float) -> int:
    """Count the bits of a signed integer for numbers in units of `step`."""
    bits = 1 + round(largest / step).bit_length()
    return min(max(bits, FEWEST_BITS), MOST_BITS)


def step_of(largest: float, bits: float) -> float:
    """Return the step at which the largest number takes `bits` bits."""
    return float(largest / (2 ** (bits - 1) - 1))


def named_kernels(
    layer: keras.layers.Layer, outer: Sequence[str] = ()
) -> Iterator[tuple[keras.layers.Layer, keras.Variable, list[str]]]:
    """Iterate over the weights with several axes, and the names that mean them.

    These are `layer/part`, where the part is a weight or a layer in this one,
    and `layer`, for all layers that the weight is in, the innermost first.

    Args:
        layer: A model or layer.
        outer: Names of what it is in, the innermost first.

    Yields:
        The layer that owns a weight, the weight, and the names. What is shared
        comes several times.
    """
    layers = [layer.name, *outer]
    for variable in own_variables(layer):
        is_float = keras.backend.is_float_dtype(variable.dtype)
        if is_float and len(variable.shape) > 1:
            names = []
            for name in layers:
                names += [f"{name}/{variable.name}", f"{name}/{layer.name}"]
                names.append(name)
            yield layer, variable, names
    for part in sublayers(layer):
        yield from named_kernels(part, layers)


def _steps(
    model: keras.Model, plain: keras.Model
) -> dict[str, tuple[float, list[keras.Variable]]]:
    """Find the step and the plain variables of each variational weight.

    Weights of the same name have the smallest of their steps.

    Returns:
        Steps and variables by the names of these in `plain`.
    """
    posteriors = [
        x for x in variational_weights(model) if not (x.is_group or x.is_bias)
    ]
    if not posteriors:
        raise ValueError(
            "Argument `model` must have weights with a posterior, such as "
            f"those of `keras_vd.layers.VDDense`. Received '{model.name}', "
            "whose gates say nothing of the precision of single weights."
        )
    found: dict[str, tuple[float, list[keras.Variable]]] = {}
    kernels = list(named_kernels(plain))
    for posterior in posteriors:
        alpha = np.exp(ops.convert_to_numpy(posterior.log_alpha), dtype=float)
        for name, variable in _counterparts(posterior, kernels):
            step, variables = found.get(name, (math.inf, []))
            step = min(step, _largest_step(_values(variable), alpha))
            found[name] = step, [*variables, variable]
    return found


def _counterparts(
    posterior: WeightPosterior, kernels: Sequence[Any]
) -> list[tuple[str, keras.Variable]]:
    """Find what may be the weight of a posterior in a plain model, by name.

    Args:
        posterior: The posterior.
        kernels: What `named_kernels` yields of the plain model.

    Raises:
        ValueError: if there is nothing.
    """
    label, shape = posterior.label, tuple(posterior.weight.shape)
    # Where composites are written out, the names of what layers were in come
    # before their own.
    for is_it in (label.__eq__, lambda name: name.endswith(f"_{label}")):
        found = [
            (min(filter(is_it, names), key=len), variable)
            for _, variable, names in kernels
            if tuple(variable.shape) == shape and any(map(is_it, names))
        ]
        if found:
            return found
    raise ValueError(
        f"'{label}' has no counterpart of that name in the plain model. Give "
        "`bits` for it, see `keras_vd.deployment.save_archive`."
    )


def _largest_step(values: np.ndarray, alpha: np.ndarray) -> float:
    """Find the largest step at which the rounding error is small enough.

    The squared error of a weight is a twelfth of the squared step, or its own
    square if that is less, as it is then rounded to zero. `values` are those
    at inference, into which the means of groups and gates are multiplied;
    `alpha`, the variance relative to the square, is not changed by that.
    """
    is_kept = values != 0
    squares, alpha = np.square(values[is_kept]), alpha[is_kept]
    if not is_kept.any():
        return 1.0
    variances = alpha * squares

    def ratio(step: float) -> float:
        errors = np.minimum(step**2 / 12.0, squares)
        return float(np.mean(errors / variances))

    # The ratio grows with the step: bisection on a logarithmic scale.
    # Some weight is left: where little is known of any, they matter together.
    most = math.sqrt(squares.max())
    if ratio(most) <= ERROR_RATIO:
        return most
    least = step_of(most, MOST_BITS)
    while most / least > 1.0 + TOLERANCE:
        middle = math.sqrt(least * most)
        if ratio(middle) <= ERROR_RATIO:
            least = middle
        else:
            most = middle
    return least


def _values(variable: keras.Variable) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(variable), float)


def _largest(variable: keras.Variable) -> float:
    return float(np.abs(_values(variable)).max(initial=0.0))
