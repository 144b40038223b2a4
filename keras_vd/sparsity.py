"""The report of a model's sparsity: rows, totals and their table."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import rich.table

from keras_vd._tables import Report


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
    Group variables are no weights: they end up inside the kernels. Gates are
    counted apart: what they save is known when they are folded into their
    neighbours and these are shrunk.

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

        Of the units with gates, in a model that has no such weights.
        """
        total, nonzero = self._entries()
        return 1.0 - nonzero / total

    @property
    def nonzero_ratio(self) -> float:
        """Variational weights per non-zero one: |W| / |W != 0|.

        Units per active one, in a model that has gates only.
        """
        return _ratio(*self._entries())

    def _entries(self) -> tuple[int, int]:
        if self.rows:
            return self.weights, self.nonzero
        return (
            sum(gate.units for gate in self.gates),
            sum(gate.active for gate in self.gates),
        )

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


def _ratio(total: int, nonzero: int) -> float:
    return total / nonzero if nonzero else math.inf
