"""What a variational model has learned: its KL, and which weights can go."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._keras_internals import flatten_layers, own_variables
from keras_vd._validation import (
    NOT_BUILT,
    check_finite_model,
    count_nonfinite,
)
from keras_vd.layers.base import VariationalLayer
from keras_vd.layers.structured import StructuredGate
from keras_vd.posteriors import Posterior, WeightPosterior
from keras_vd.sparsity import GateRow, GroupRow, SparsityReport, WeightRow


def variational_weights(model: keras.layers.Layer) -> list[WeightPosterior]:
    """Every `WeightPosterior` of a model, those of nested layers included.

    Args:
        model: A Keras model or layer.

    Gates such as `keras_vd.layers.LogNormalDropout` are layers of their own
    and not among them.

    Returns:
        List in the order of the layers; empty for a plain model.

    Raises:
        TypeError: if `model` is no Keras layer or model.
        ValueError: if it is not built, so that its weights do not exist.
    """
    return [x for x in _posteriors(model) if isinstance(x, WeightPosterior)]


def _posteriors(model: keras.layers.Layer) -> list[Posterior]:
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(
            "Argument `model` must be a Keras model or layer. Received: "
            f"model={model!r} (of type {type(model).__name__})."
        )
    found = [x for x in flatten_layers(model) if isinstance(x, Posterior)]
    if not all(posterior.built for posterior in found):
        raise ValueError(NOT_BUILT.format(name=model.name))
    return found


def required_posteriors(model: keras.layers.Layer) -> list[Posterior]:
    """Posteriors of a model's weights and gates; having none is an error.

    Raises:
        TypeError: if `model` is no Keras layer or model.
        ValueError: if it is not built or has no variational layers.
    """
    found = _posteriors(model)
    if not found:
        raise ValueError(
            "Argument `model` must have at least one variational layer, such "
            "as `keras_vd.layers.VDDense`. Received the plain model "
            f"'{model.name}', of type {type(model).__name__}."
        )
    return found


def kl_divergence(model: keras.layers.Layer) -> float:
    """KL divergence of a model's posteriors to their priors.

    Each weight and gate counts once, without `kl_weight` and `kl_scale`.

    Args:
        model: A built Keras model or layer with variational layers.

    Returns:
        Nats, summed over all weights and gates.

    Raises:
        TypeError: if `model` is no Keras layer or model.
        ValueError: if it is not built, has no variational weights, or has
            weights that are not finite.
    """
    divergence = current_kl_divergence(model)
    if not math.isfinite(divergence):
        check_finite_model(model)
    return divergence


def current_kl_divergence(model: keras.layers.Layer) -> float:
    """As `kl_divergence`, but NaN or infinite for a model that has diverged."""
    return float(
        sum(
            float(ops.convert_to_numpy(posterior.kl_divergence()))
            for posterior in required_posteriors(model)
        )
    )


def prune(
    model: keras.layers.Layer, threshold: float | None = None
) -> SparsityReport:
    """Fix which weights and gates of a model are zero from now on.

    Training may go on afterwards; what is pruned stays zero.

    Args:
        model: A built Keras model or layer with variational layers.
        threshold: Float: weights with `log_alpha >= threshold` go. By default
            each posterior's own threshold, which gates use in any case: their
            thresholds are in other units.

    Returns:
        The report of the pruned model.

    Raises:
        TypeError: if `threshold` is not a number or `model` no Keras layer.
        ValueError: if `threshold` is not within [-20, 20] or given for a
            model whose only posteriors are gates, or if `model` is not built,
            has no variational layers or has weights that are not finite.
    """
    posteriors = required_posteriors(model)
    check_finite_model(model)
    gates = [x for x in posteriors if isinstance(x, StructuredGate)]
    if threshold is not None and len(gates) == len(posteriors):
        raise ValueError(
            "Argument `threshold` is about the `log_alpha` of weights, and "
            f"'{model.name}' has gates only: pass thresholds to these, or to "
            f"their `prune` methods. Received: threshold={threshold!r}."
        )
    for posterior in posteriors:
        posterior.prune(None if posterior in gates else threshold)
    return sparsity_report(model)


def sparsity_report(model: keras.layers.Layer) -> SparsityReport:
    """Count what is zero at inference, whether or not `prune` was called.

    Args:
        model: A built Keras model or layer with variational layers.

    Values that are NaN or infinite are no zeros; the report lists them.

    Returns:
        A report with one row per variational weight and per gate; `str()`
        makes a table, `.to_dict()` plain values.

    Raises:
        TypeError: if `model` is no Keras layer or model.
        ValueError: if it is not built or has no variational layers.
    """
    named = named_posteriors(model)
    biases, others = _other_values(model, named)
    return SparsityReport(
        rows=tuple(
            _row(name, posterior)
            for name, posterior in named
            if isinstance(posterior, WeightPosterior) and not posterior.is_group
        ),
        groups=tuple(
            _group_row(name, posterior)
            for name, posterior in named
            if isinstance(posterior, WeightPosterior) and posterior.is_group
        ),
        gates=tuple(
            GateRow(name, posterior.units, posterior.n_active)
            for name, posterior in named
            if isinstance(posterior, StructuredGate)
        ),
        biases=sum(array.size for array in biases),
        nonzero_biases=_nonzero(biases),
        others=sum(array.size for array in others),
        nonzero_others=_nonzero(others),
        nonfinite={
            variable.path: number
            for variable in model.weights
            if (number := count_nonfinite(variable))
        },
    )


def _other_values(
    model: keras.layers.Layer, named: list[tuple[str, Posterior]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What inference uses besides variational weights and gates.

    Of the variational layers, their biases, and of all others.
    """
    weights = {id(posterior.weight) for posterior in variational_weights(model)}
    # A gate may have layers of its own, which are as little the model's.
    inner = {id(x) for _, p in named for x in flatten_layers(p)}
    # Biases of what is pruned may be zero at inference.
    values = {
        id(variable): value
        for layer in flatten_layers(model)
        if isinstance(layer, VariationalLayer)
        for variable, value in layer.inference_biases()
    }
    biases: list[np.ndarray] = []
    others: list[np.ndarray] = []
    for layer in flatten_layers(model):
        if id(layer) in inner:
            continue
        variables = own_variables(layer)
        rest = [x for x in variables if id(x) not in weights]
        is_variational = len(rest) < len(variables)
        (biases if is_variational else others).extend(
            ops.convert_to_numpy(values.get(id(x), x)) for x in rest
        )
    return biases, others


def named_posteriors(model: keras.layers.Layer) -> list[tuple[str, Posterior]]:
    """As `required_posteriors`, with the names that reports give them.

    Labels; paths where labels are equal; numbered where paths are too.
    """
    posteriors = required_posteriors(model)
    labels = Counter(posterior.label for posterior in posteriors)
    uses: Counter[str] = Counter()
    names = []
    for posterior in posteriors:
        unique = labels[posterior.label] == 1
        name = posterior.label if unique else posterior.path
        uses[name] += 1
        names.append(name if uses[name] == 1 else f"{name}_{uses[name]}")
    return list(zip(names, posteriors, strict=True))


def _nonzero(arrays: list[np.ndarray]) -> int:
    return sum(int(np.count_nonzero(array)) for array in arrays)


def _row(name: str, posterior: WeightPosterior) -> WeightRow:
    nonzero = ops.convert_to_numpy(posterior.mean()) != 0.0
    reads = _any_along(nonzero, posterior.input_axes)
    if posterior.conv_groups > 1:
        # Each group of outputs reads channels of its own: split the last axis.
        split = (*nonzero.shape[:-1], posterior.conv_groups, -1)
        reads = _any_along(nonzero.reshape(split), (-3, -2))
    writes = _any_along(nonzero, posterior.output_axes)
    return WeightRow(
        name=name,
        shape=tuple(nonzero.shape),
        weights=nonzero.size,
        nonzero=int(np.count_nonzero(nonzero)),
        inputs=reads.size,
        active_inputs=int(np.count_nonzero(reads)),
        outputs=writes.size,
        active_outputs=int(np.count_nonzero(writes)),
    )


def _group_row(name: str, posterior: WeightPosterior) -> GroupRow:
    alive = ops.convert_to_numpy(posterior.mean()) != 0.0
    return GroupRow(name, alive.size, int(np.count_nonzero(alive)))


def _any_along(nonzero: np.ndarray, axes: tuple[int, ...]) -> Any:
    """Whether anything is True for each index along `axes`."""
    axes = tuple(axis % nonzero.ndim for axis in axes)
    others = tuple(i for i in range(nonzero.ndim) if i not in axes)
    return nonzero.any(axis=others)
