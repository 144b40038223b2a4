"""The report of a model's sparsity: rows, totals and their table."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np
import rich.table
from keras import ops

from keras_vd._backend.keras_internals import flatten_layers, own_variables
from keras_vd._backend.tables import Headline, Report, size_headline
from keras_vd._backend.validation import count_nonfinite
from keras_vd.layers.base import VariationalLayer
from keras_vd.layers.structured import StructuredGate
from keras_vd.posteriors import Posterior, WeightPosterior
from keras_vd.posteriors.finding import (
    named_posteriors,
    variational_weights,
)


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
class GateRow:
    """Gates of one layer at inference.

    Attributes:
        name: Name of the layer.
        units: Number of units or channels that it multiplies.
        active: Number of those that are not always multiplied by 0.
    """

    name: str
    units: int
    active: int

    @property
    def memory_percent(self) -> float:
        """Share of the units still to be kept in memory, in %."""
        return 100.0 * self.active / self.units


@dataclasses.dataclass(frozen=True)
class SparsityReport(Report):
    """Sparsity of a model at inference, weight by weight and in total.

    A weight counts as zero if it, or a group that it belongs to, is pruned.
    Group variables do not count as weights, as they end up inside the kernels.
    Gates are counted apart, as what they save is known only when they have been
    folded into their neighbours and these have been shrunk.

    Attributes:
        rows: One `WeightRow` per variational weight.
        groups: One `GroupRow` per layer and kind of groups.
        gates: One `GateRow` per layer of gates.
        biases: Number of other parameters of the variational layers.
        nonzero_biases: Number of those that are not zero.
        others: Number of parameters of all other layers.
        nonzero_others: Number of those that are not zero.
        nonfinite: Number of entries that are NaN or infinite, by the path of
            their variable. They count as not zero, and `prune` and
            `to_deterministic` refuse them: such a model has diverged.
    """

    rows: tuple[WeightRow, ...]
    groups: tuple[GroupRow, ...]
    gates: tuple[GateRow, ...]
    biases: int
    nonzero_biases: int
    others: int
    nonzero_others: int
    nonfinite: dict[str, int]

    is_about_sizes = True

    @property
    def n_active(self) -> list[int]:
        """Active inputs of each weight, then active units of each gate.

        For example [374, 198, 159].
        """
        return [
            *(row.active_inputs for row in self.rows),
            *(gate.active for gate in self.gates),
        ]

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
        """Fraction of the variational weights that is zero.

        In a model that has gates only, it is the fraction of their units.
        """
        total, nonzero = self.entries
        return 1.0 - nonzero / total

    @property
    def nonzero_ratio(self) -> float:
        """Variational weights per non-zero one: |W| / |W != 0|.

        In a model that has gates only, it is the units per active one.
        """
        return _ratio(*self.entries)

    @property
    def entries(self) -> tuple[int, int]:
        """Number of variational weights, and of those that are not zero.

        In a model that has gates only: of their units, and of active ones.
        """
        if self.rows:
            return self.weights, self.nonzero
        return (
            sum(gate.units for gate in self.gates),
            sum(gate.active for gate in self.gates),
        )

    @property
    def nonzero_ratio_with_biases(self) -> float:
        """Ratio like `nonzero_ratio`, with the biases of the same layers."""
        total, nonzero = self.entries
        return _ratio(total + self.biases, nonzero + self.nonzero_biases)

    @property
    def nonzero_ratio_of_model(self) -> float:
        """Ratio like `nonzero_ratio`, with all parameters of all layers."""
        return _ratio(
            self.weights + self.biases + self.others,
            self.nonzero + self.nonzero_biases + self.nonzero_others,
        )

    def relative_to(self, earlier: SparsityReport) -> SparsityReport:
        """Return this report with the sizes of an earlier one as the whole.

        For models that have got smaller since, as `ShrinkWhileTraining` makes
        them: what has been removed counts as zero.

        Args:
            earlier: Report of the same model before.

        Raises:
            ValueError: if the reports are of other layers.
        """
        return dataclasses.replace(
            self,
            rows=_left_of(earlier.rows, self.rows),
            groups=_left_of(earlier.groups, self.groups),
            gates=_left_of(earlier.gates, self.gates),
            biases=earlier.biases,
            others=earlier.others,
        )

    def to_dict(self) -> dict[str, Any]:
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
        # JSON knows no infinity, which is the ratio if all weights are zero.
        return {
            "rows": rows,
            "groups": [dataclasses.asdict(row) for row in self.groups],
            "gates": [
                {
                    **dataclasses.asdict(gate),
                    "memory_percent": gate.memory_percent,
                }
                for gate in self.gates
            ],
            **{k: None if v == math.inf else v for k, v in figures.items()},
            "nonfinite": dict(self.nonfinite),
        }

    def headlines(self) -> tuple[Headline, ...]:
        what = "weights not zero" if self.rows else "active units"
        *_, (_, total, nonzero) = self._totals()
        return (
            *size_headline(what, *self.entries),
            *size_headline("parameters not zero", total, nonzero),
        )

    def to_table(self) -> rich.table.Table:
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
        for gate in self.gates:
            kept = f"{gate.active} of {gate.units} units"
            memory = f"{gate.memory_percent:.2f}"
            table.add_row(gate.name, "", "", "", "", "", kept, memory)
        table.add_section()
        for label, total, nonzero in self._totals():
            table.add_row(
                label,
                "",
                f"{total:,}",
                f"{nonzero:,}",
                f"{_ratio(total, nonzero):.1f}",
            )
        table.caption_justify = "left"
        table.caption = "\n".join(
            f"not finite: {path} ({number:,} entries)"
            for path, number in self.nonfinite.items()
        )
        return table

    def _totals(self) -> list[tuple[str, int, int]]:
        weights, nonzero = self.weights, self.nonzero
        rows = []
        if self.rows:
            rows.append(("variational weights", weights, nonzero))
            weights += self.biases
            nonzero += self.nonzero_biases
            rows.append(("with their biases", weights, nonzero))
        weights, nonzero = weights + self.others, nonzero + self.nonzero_others
        return [*rows, ("whole model", weights, nonzero)]


# What rows of a report tell of what is left.
_LEFT = ("nonzero", "active_inputs", "active_outputs", "active")


def _left_of(wholes: tuple[Any, ...], rows: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the rows of an earlier report with what is left by now."""
    names, expected = ([row.name for row in x] for x in (rows, wholes))
    if names != expected:
        raise ValueError(
            "Argument `earlier` must be a report of the same model. Received: "
            f"one of {expected}, where this one is of {names}."
        )
    return tuple(
        dataclasses.replace(
            whole, **{x: getattr(row, x) for x in _LEFT if hasattr(row, x)}
        )
        for whole, row in zip(wholes, rows, strict=True)
    )


def _ratio(total: int, nonzero: int) -> float:
    if not total:  # nothing of nothing is zero
        return 1.0
    return total / nonzero if nonzero else math.inf


def sparsity_report(model: keras.layers.Layer) -> SparsityReport:
    """Count what is zero at inference, whether or not `prune` was called.

    Values that are NaN or infinite do not count as zero; the report lists them.

    Args:
        model: A built Keras model or layer with variational layers.

    Returns:
        A report with one row per variational weight and per gate; `str()`
        makes a table, `.to_dict()` plain values.

    Raises:
        TypeError: if `model` is no Keras layer or model.
        ValueError: if it is not built or has no variational layers.

    Example:
    >>> model = keras.Sequential([
    ...     keras.Input((3,)),
    ...     keras_vd.layers.VDDense(2),
    ... ])
    >>> report = keras_vd.sparsity_report(model)
    >>> report.sparsity
    0.0
    """
    named = named_posteriors(model)
    biases, others = _other_values(model, named)
    return SparsityReport(
        rows=tuple(
            _row(name, posterior)
            for name, posterior in named
            if isinstance(posterior, WeightPosterior)
            and not (posterior.is_group or posterior.is_bias)
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
    """List what inference uses besides variational weights and gates.

    Returns:
        The biases of the variational layers, and the values of all others.
    """
    weights = {
        id(posterior.weight)
        for posterior in variational_weights(model)
        if not posterior.is_bias
    }
    # Posteriors, gates and the layers inside a gate hold no parameters of the
    # model itself.
    inner = {id(x) for _, p in named for x in flatten_layers(p)}
    # Biases of what is pruned may be zero at inference only.
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


def _nonzero(arrays: list[np.ndarray]) -> int:
    return sum(int(np.count_nonzero(array)) for array in arrays)


def _row(name: str, posterior: WeightPosterior) -> WeightRow:
    nonzero = ops.convert_to_numpy(posterior.mean()) != 0.0
    reads = _any_along(nonzero, posterior.axes.inputs)
    if posterior.axes.conv_groups > 1:
        # Split the last axis, as each group of outputs reads its own channels.
        split = (*nonzero.shape[:-1], posterior.axes.conv_groups, -1)
        reads = _any_along(nonzero.reshape(split), (-3, -2))
    writes = _any_along(nonzero, posterior.axes.outputs)
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
    """Tell for each index along `axes` whether anything is True."""
    axes = tuple(axis % nonzero.ndim for axis in axes)
    others = tuple(i for i in range(nonzero.ndim) if i not in axes)
    return nonzero.any(axis=others)
