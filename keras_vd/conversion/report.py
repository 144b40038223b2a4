"""The report of which layers `to_variational` has converted, and which not."""

from __future__ import annotations

import dataclasses
from typing import Any

import rich.table

from keras_vd._backend.tables import Report


@dataclasses.dataclass(frozen=True)
class ConversionRow:
    """Outcome of the conversion for one layer.

    Attributes:
        name: Name of the layer, after the names of the models and wrappers
            that it is in.
        layer: Name of its class before the conversion.
        converted_to: Name of its class now; None if it was not converted.
        reason: Why it was not converted; None if it was.
        parameters: Number of its parameters before the conversion.
    """

    name: str
    layer: str
    converted_to: str | None
    reason: str | None
    parameters: int


@dataclasses.dataclass(frozen=True)
class ConversionReport(Report):
    """Report of what `to_variational` has converted, what not and why.

    Attributes:
        rows: One `ConversionRow` per layer with weights.
    """

    rows: tuple[ConversionRow, ...]

    @property
    def converted(self) -> list[str]:
        """Names of the layers that are variational now."""
        return [row.name for row in self.rows if row.converted_to]

    @property
    def skipped(self) -> dict[str, str]:
        """Reasons why layers were not converted, by their names."""
        return {row.name: row.reason for row in self.rows if row.reason}

    def to_dict(self) -> dict[str, Any]:
        return {"rows": [dataclasses.asdict(row) for row in self.rows]}

    def to_table(self) -> rich.table.Table:
        total = sum(row.parameters for row in self.rows)
        done = sum(row.parameters for row in self.rows if row.converted_to)
        table = rich.table.Table(
            title=f"Converted: {len(self.converted)} of {len(self.rows)} "
            f"layers, {done:,} of {total:,} parameters"
        )
        for header in ("layer", "was", "is", "stays, because"):
            table.add_column(header, overflow="fold")
        table.add_column("parameters", justify="right")
        for row in self.rows:
            table.add_row(
                row.name,
                row.layer,
                row.converted_to or row.layer,
                row.reason or "",
                f"{row.parameters:,}",
            )
        return table
