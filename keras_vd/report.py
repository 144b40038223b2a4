"""What a variational model has learned: its KL, and which weights can go."""

from __future__ import annotations

import dataclasses
import io
import math
from collections import Counter
from typing import Any

import keras
import numpy as np
import rich.console
import rich.table
from keras import ops

from keras_vd._keras_internals import flatten_layers, own_variables
from keras_vd.posteriors import WeightPosterior


def variational_weights(model: keras.layers.Layer) -> list[WeightPosterior]:
    """Every `WeightPosterior` of a model, those of nested layers included.

    Args:
        model: A Keras model or layer.

    Returns:
        List in the order of the layers; empty for a plain model.

    Raises:
        TypeError: if `model` is no Keras layer or model.
        ValueError: if it is not built, so that its weights do not exist.
    """
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(
            "Argument `model` must be a Keras model or layer. Received: "
            f"model={model!r} (of type {type(model).__name__})."
        )
    found = [x for x in flatten_layers(model) if isinstance(x, WeightPosterior)]
    if not all(posterior.built for posterior in found):
        raise ValueError(
            f"Argument `model` must be built, so that its weights exist. "
            f"'{model.name}' is not: call it on data or `model.build(shape)`."
        )
    return found


def required_variational_weights(
    model: keras.layers.Layer,
) -> list[WeightPosterior]:
    """As `variational_weights`, but having none is an error.

    Raises:
        TypeError: if `model` is no Keras layer or model.
        ValueError: if it is not built or has no variational weights.
    """
    found = variational_weights(model)
    if not found:
        raise ValueError(
            "Argument `model` must have at least one variational layer, such "
            "as `keras_vd.layers.VDDense`. Received the plain model "
            f"'{model.name}', of type {type(model).__name__}."
        )
    return found


def kl_divergence(model: keras.layers.Layer) -> float:
    """KL divergence of a model's posteriors to their priors.

    Each weight counts once, without `kl_weight` and `kl_scale`.

    Args:
        model: A built Keras model or layer with variational layers.

    Returns:
        Nats, summed over all weights.

    Raises:
        TypeError: if `model` is no Keras layer or model.
        ValueError: if it is not built or has no variational weights.
    """
    return float(
        sum(
            float(ops.convert_to_numpy(posterior.kl_divergence()))
            for posterior in required_variational_weights(model)
        )
    )


def prune(
    model: keras.layers.Layer, threshold: float | None = None
) -> SparsityReport:
    """Fix which weights of a model are zero from now on.

    Training may go on afterwards; pruned weights stay zero.

    Args:
        model: A built Keras model or layer with variational layers.
        threshold: Float: weights with `log_alpha >= threshold` go. By default
            each posterior's own threshold.

    Returns:
        The report of the pruned model.

    Raises:
        TypeError: if `threshold` is not a number or `model` no Keras layer.
        ValueError: if `threshold` is not within [-20, 20], or `model` is not
            built or has no variational weights.
    """
    for posterior in required_variational_weights(model):
        posterior.prune(threshold)
    return sparsity_report(model)


@dataclasses.dataclass(frozen=True)
class WeightRow:
    """Sparsity of one weight at inference.

    Attributes:
        name: Name of its layer, and of the weight where that has several.
        shape: Shape of the weight.
        weights: Number of its entries.
        nonzero: Number of entries that are not zero.
        inputs: Number of input units or channels it could read.
        active_inputs: Number of those that it does read.
        outputs: Number of output units or channels it could write.
        active_outputs: Number of those that it does write.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    nonzero: int
    inputs: int
    active_inputs: int
    outputs: int
    active_outputs: int

    @property
    def memory_percent(self) -> float:
        """Share of the layer's inputs still to be kept in memory, in %."""
        return 100.0 * self.active_inputs / self.inputs


@dataclasses.dataclass(frozen=True)
class GroupRow:
    """Group variables of one kind, of one layer, at inference.

    Attributes:
        name: Name of the layer, and of the kind of groups.
        groups: Number of groups.
        active: Number of groups that are not pruned.
    """

    name: str
    groups: int
    active: int


@dataclasses.dataclass(frozen=True)
class SparsityReport:
    """Sparsity of a model at inference, weight by weight and in total.

    A weight counts as zero if it, or a group that it belongs to, is pruned.
    Group variables are no weights: they end up inside the kernels.

    Attributes:
        rows: One `WeightRow` per variational weight.
        groups: One `GroupRow` per layer and kind of groups.
        biases: Number of other parameters of the variational layers.
        nonzero_biases: Number of those that are not zero.
        others: Number of parameters of all other layers.
        nonzero_others: Number of those that are not zero.
    """

    rows: tuple[WeightRow, ...]
    groups: tuple[GroupRow, ...]
    biases: int
    nonzero_biases: int
    others: int
    nonzero_others: int

    @property
    def n_active(self) -> list[int]:
        """Active inputs of each weight, e.g. [374, 198, 159]."""
        return [row.active_inputs for row in self.rows]

    @property
    def weights(self) -> int:
        """Number of variational weights, biases not counted."""
        return sum(row.weights for row in self.rows)

    @property
    def nonzero(self) -> int:
        """Number of variational weights that are not zero."""
        return sum(row.nonzero for row in self.rows)

    @property
    def sparsity(self) -> float:
        """Fraction of the variational weights that is zero."""
        return 1.0 - self.nonzero / self.weights

    @property
    def nonzero_ratio(self) -> float:
        """Variational weights per non-zero one: |W| / |W != 0|."""
        return _ratio(self.weights, self.nonzero)

    @property
    def nonzero_ratio_with_biases(self) -> float:
        """As `nonzero_ratio`, with the biases of the same layers."""
        return _ratio(
            self.weights + self.biases, self.nonzero + self.nonzero_biases
        )

    @property
    def nonzero_ratio_of_model(self) -> float:
        """As `nonzero_ratio`, with all parameters of all layers."""
        return _ratio(
            self.weights + self.biases + self.others,
            self.nonzero + self.nonzero_biases + self.nonzero_others,
        )

    def to_dict(self) -> dict[str, Any]:
        """All of the report as plain Python values, ready for JSON."""
        rows = [
            {
                **dataclasses.asdict(row),
                "shape": list(row.shape),
                "memory_percent": row.memory_percent,
            }
            for row in self.rows
        ]
        totals = (
            "weights",
            "nonzero",
            "sparsity",
            "nonzero_ratio",
            "biases",
            "nonzero_biases",
            "nonzero_ratio_with_biases",
            "others",
            "nonzero_others",
            "nonzero_ratio_of_model",
            "n_active",
        )
        figures = {name: getattr(self, name) for name in totals}
        # JSON knows no infinity: the ratio of a model without weights is null.
        return {
            "rows": rows,
            "groups": [dataclasses.asdict(row) for row in self.groups],
            **{k: None if v == math.inf else v for k, v in figures.items()},
        }

    def to_table(self) -> rich.table.Table:
        """The report as a table to print with `rich`."""
        table = rich.table.Table(title="Sparsity at inference")
        table.add_column("weight")
        for header in (
            "shape",
            "weights",
            "nonzero",
            "ratio",
            "active inputs",
            "active outputs",
            "memory %",
        ):
            table.add_column(header, justify="right")
        for row in self.rows:
            table.add_row(
                row.name,
                "x".join(map(str, row.shape)),
                f"{row.weights:,}",
                f"{row.nonzero:,}",
                f"{_ratio(row.weights, row.nonzero):.1f}",
                f"{row.active_inputs} of {row.inputs}",
                f"{row.active_outputs} of {row.outputs}",
                f"{row.memory_percent:.2f}",
            )
        table.add_section()
        for group in self.groups:
            kept = f"{group.active} of {group.groups} groups"
            table.add_row(group.name, "", "", "", "", kept)
        table.add_section()
        for label, total, nonzero in self._totals():
            table.add_row(
                label,
                "",
                f"{total:,}",
                f"{nonzero:,}",
                f"{_ratio(total, nonzero):.1f}",
            )
        return table

    def _totals(self) -> list[tuple[str, int, int]]:
        weights, nonzero = self.weights, self.nonzero
        rows = [("variational weights", weights, nonzero)]
        weights, nonzero = weights + self.biases, nonzero + self.nonzero_biases
        rows.append(("with their biases", weights, nonzero))
        weights, nonzero = weights + self.others, nonzero + self.nonzero_others
        return [*rows, ("whole model", weights, nonzero)]

    def __str__(self) -> str:
        text = io.StringIO()
        console = rich.console.Console(file=text, width=110, color_system=None)
        console.print(self.to_table())
        return text.getvalue()


def sparsity_report(model: keras.layers.Layer) -> SparsityReport:
    """Count what is zero at inference, whether or not `prune` was called.

    Args:
        model: A built Keras model or layer with variational layers.

    Returns:
        A report with one row per variational weight; `str()` makes a table,
        `.to_dict()` plain values.

    Raises:
        TypeError: if `model` is no Keras layer or model.
        ValueError: if it is not built or has no variational weights.
    """
    posteriors = required_variational_weights(model)
    named = list(zip(_row_names(posteriors), posteriors, strict=True))
    weights = {id(posterior.weight) for posterior in posteriors}
    biases: list[np.ndarray] = []
    others: list[np.ndarray] = []
    for layer in flatten_layers(model):
        if isinstance(layer, WeightPosterior):
            continue
        variables = own_variables(layer)
        rest = [x for x in variables if id(x) not in weights]
        is_variational = len(rest) < len(variables)
        (biases if is_variational else others).extend(
            map(ops.convert_to_numpy, rest)
        )
    return SparsityReport(
        rows=tuple(_row(*x) for x in named if not x[1].is_group),
        groups=tuple(_group_row(*x) for x in named if x[1].is_group),
        biases=sum(array.size for array in biases),
        nonzero_biases=_nonzero(biases),
        others=sum(array.size for array in others),
        nonzero_others=_nonzero(others),
    )


def _row_names(posteriors: list[WeightPosterior]) -> list[str]:
    """Labels; paths where labels are equal; numbered where paths are too."""
    labels = Counter(posterior.label for posterior in posteriors)
    uses: Counter[str] = Counter()
    names = []
    for posterior in posteriors:
        unique = labels[posterior.label] == 1
        name = posterior.label if unique else posterior.weight.path
        uses[name] += 1
        names.append(name if uses[name] == 1 else f"{name}_{uses[name]}")
    return names


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


def _ratio(total: int, nonzero: int) -> float:
    return total / nonzero if nonzero else math.inf
