"""The report of what `to_variational` has converted, and what not."""

from __future__ import annotations

import dataclasses
from typing import Any

import rich.table

from keras_vd._backend.tables import Report


@dataclasses.dataclass(frozen=True)
class ConversionRow:
    """What became of one layer.

    Attributes:
        name: Name of the layer, behind those of the models and wrappers it is
            in.
        layer: Name of its class before.
        converted_to: Name of its class now; None if it stayed.
        reason: Why it stayed; None if it was converted.
        parameters: Number of its parameters before.
    """

    name: str
    layer: str
    converted_to: str | None
    reason: str | None
    parameters: int


@dataclasses.dataclass(frozen=True)
class ConversionReport(Report):
    """What `to_variational` has converted, what not and why.

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
        """Why a layer stayed as it was, by its name."""
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
