"""The reports of `to_variational` and `to_functional`: what, and why not."""

from __future__ import annotations

import dataclasses
from typing import Any

import rich.table

from keras_vd._backend.tables import Report, as_lists


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
        groups: Names of its groups of weights.
    """

    name: str
    layer: str
    converted_to: str | None
    reason: str | None
    parameters: int
    groups: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class StreamRow:
    """Outcome for channels that can only go together.

    Attributes:
        name: Name of their gate; None if they have none.
        gate: Name of its class.
        layers: Names of the layers that make the channels. There are several
            where sums or products tie their outputs.
        channels: Number of channels.
        reason: Why they have no gate; None if they have.
    """

    name: str | None
    gate: str | None
    layers: tuple[str, ...]
    channels: int
    reason: str | None


@dataclasses.dataclass(frozen=True)
class ConversionReport(Report):
    """Report of what `to_variational` has converted, what not and why.

    Attributes:
        rows: One `ConversionRow` per layer with weights.
        streams: One `StreamRow` per set of channels, if gates were asked for.
    """

    rows: tuple[ConversionRow, ...]
    streams: tuple[StreamRow, ...] = ()

    @property
    def converted(self) -> list[str]:
        """Names of the layers that are variational now."""
        return [row.name for row in self.rows if row.converted_to]

    @property
    def skipped(self) -> dict[str, str]:
        """Reasons why layers were not converted, by their names."""
        return {row.name: row.reason for row in self.rows if row.reason}

    @property
    def gated(self) -> dict[str, tuple[str, ...]]:
        """Names of the layers whose channels a gate is for, by its name."""
        return {row.name: row.layers for row in self.streams if row.name}

    def to_dict(self) -> dict[str, Any]:
        return as_lists(dataclasses.asdict(self))

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
                _with_groups(row),
                row.reason or "",
                f"{row.parameters:,}",
            )
        table.add_section()
        for stream in self.streams:
            table.add_row(
                stream.name or "no gate",
                f"{stream.channels:,} channels of {', '.join(stream.layers)}",
                stream.gate or "",
                stream.reason or "",
                "",
            )
        return table


def _with_groups(row: ConversionRow) -> str:
    groups = f" ({', '.join(row.groups)})" if row.groups else ""
    return (row.converted_to or row.layer) + groups


@dataclasses.dataclass(frozen=True)
class CompositeRow:
    """Outcome for one layer or model that is made of layers.

    Attributes:
        name: Its name, after the names of the models and layers that it is in.
        layer: Name of its class.
        reason: Why it stays whole, and what to do; None if its parts were
            written out.
        parameters: Number of its parameters.
    """

    name: str
    layer: str
    reason: str | None
    parameters: int


@dataclasses.dataclass(frozen=True)
class FunctionalReport(Report):
    """Report of what `to_functional` has written out, what not and why.

    Attributes:
        rows: One `CompositeRow` per layer or model with parts and a `call` of
            its own, and per nested model that had to be taken apart.
        differences: What the Functional model does not do as the model did,
            in words.
    """

    rows: tuple[CompositeRow, ...]
    differences: tuple[str, ...] = ()

    @property
    def written_out(self) -> list[str]:
        """Names of what stands in the model part by part now."""
        return [row.name for row in self.rows if row.reason is None]

    @property
    def kept_whole(self) -> dict[str, str]:
        """Reasons why the others stay whole, by their names."""
        return {row.name: row.reason for row in self.rows if row.reason}

    def to_dict(self) -> dict[str, Any]:
        return as_lists(dataclasses.asdict(self))

    def to_table(self) -> rich.table.Table:
        table = rich.table.Table(
            title=f"Written out: {len(self.written_out)} of {len(self.rows)} "
            "layers made of layers",
            caption="\n".join(self.differences) or None,
        )
        for header in ("layer", "class", "stays whole, because"):
            table.add_column(header, overflow="fold")
        table.add_column("parameters", justify="right")
        for row in self.rows:
            table.add_row(
                row.name, row.layer, row.reason or "", f"{row.parameters:,}"
            )
        return table
