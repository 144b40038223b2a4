"""The report of what `shrink` has removed: rows, totals and their table."""

from __future__ import annotations

import dataclasses
from typing import Any

import rich.table

from keras_vd._backend.tables import Headline, Report, size_headline


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """What is left of one layer.

    Attributes:
        name: Name of the layer, after those of the models around it.
        layer: Name of its class.
        inputs: Number of input units, channels or words.
        kept_inputs: Number of those that it still has, including a channel of
            ones that stands for several constant ones.
        outputs: Number of output units, channels or columns.
        kept_outputs: Number of those that it still has.
        filled_outputs: Number of dead ones among these, kept for `round_to`.
        parameters: Number of its parameters before.
        kept_parameters: Number of them now, including the table that an
            embedding needs where several words share a row.
    """

    name: str
    layer: str
    inputs: int
    kept_inputs: int
    outputs: int
    kept_outputs: int
    filled_outputs: int
    parameters: int
    kept_parameters: int


@dataclasses.dataclass(frozen=True)
class ZeroedRow:
    """Entries of one weight that count as zero because they are small.

    Attributes:
        name: Path of the weight.
        entries: Number of its entries.
        zeroed: Number of those that were not zero before.
        largest: The largest absolute value among these.
    """

    name: str
    entries: int
    zeroed: int
    largest: float


@dataclasses.dataclass(frozen=True)
class ShrinkReport(Report):
    """Report of what `shrink` has removed from a model, and what it could not.

    Attributes:
        rows: One `LayerRow` per layer with weights.
        kept_whole: Why layers have kept all of their units, by their names.
        parameters: Number of parameters of the model before.
        kept_parameters: Number of parameters of the new model.
        macs: Multiply-accumulate operations of one example before, in dense,
            convolution, recurrent and attention layers; None where a spatial
            size or the number of time steps is not known.
        kept_macs: The same of the new model.
        round_to: What numbers of outputs were rounded up to multiples of.
        tolerance: Absolute value up to which weights count as zero.
        zeroed: One `ZeroedRow` per weight in which there were some.
        difference: The largest difference between predictions of the two
            models for a few inputs drawn at random, as a share of the largest
            prediction: an example of what `tolerance` has changed, not a bound.
            None if nothing was zeroed, or if the model reads text.
    """

    rows: tuple[LayerRow, ...]
    kept_whole: dict[str, str]
    parameters: int
    kept_parameters: int
    macs: int | None
    kept_macs: int | None
    round_to: int = 1
    tolerance: float = 0.0
    zeroed: tuple[ZeroedRow, ...] = ()
    difference: float | None = None

    is_about_sizes = True

    @property
    def is_unchanged(self) -> bool:
        """Whether nothing could be removed."""
        return all(
            (row.inputs, row.outputs, row.parameters)
            == (row.kept_inputs, row.kept_outputs, row.kept_parameters)
            for row in self.rows
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self),
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "zeroed": [dataclasses.asdict(row) for row in self.zeroed],
            "is_unchanged": self.is_unchanged,
        }

    def headlines(self) -> tuple[Headline, ...]:
        return tuple(
            headline
            for label, sizes in self._totals().items()
            for headline in size_headline(label, *sizes)
        )

    def to_table(self) -> rich.table.Table:
        title = "Nothing could be removed" if self.is_unchanged else "Shrunk"
        table = rich.table.Table(title=title, caption=self._caption())
        table.add_column("layer")
        for header in ("inputs", "outputs", "parameters", "ratio"):
            table.add_column(header, justify="right")
        table.add_column("kept whole, because")
        for row in self.rows:
            table.add_row(
                f"{row.name} ({row.layer})",
                _change(row.inputs, row.kept_inputs),
                _change(row.outputs, row.kept_outputs)
                + _filled(row.filled_outputs),
                *_changes(row.parameters, row.kept_parameters),
                self.kept_whole.get(row.name, ""),
            )
        table.add_section()
        named = {row.name for row in self.rows}
        for name, reason in self.kept_whole.items():
            if name not in named:
                table.add_row(name, "", "", "", "", reason)
        table.add_section()
        for label, (before, after) in self._totals().items():
            table.add_row(label, "", "", *_changes(before, after))
        return table

    def _totals(self) -> dict[str, tuple[int | None, int | None]]:
        return {
            "parameters": (self.parameters, self.kept_parameters),
            "MACs per example": (self.macs, self.kept_macs),
        }

    def _caption(self) -> str | None:
        """Tell what was done beyond removing what has no effect at all."""
        said = []
        if self.zeroed:
            count = sum(row.zeroed for row in self.zeroed)
            largest = max(row.largest for row in self.zeroed)
            said.append(
                f"{count:,} weights of at most {largest:.1e} count as zero "
                f"(tolerance={self.tolerance:g})."
            )
        if self.difference is not None:
            said.append(
                "For a few random inputs, predictions differ by "
                f"{self.difference:.1e} of the largest."
            )
        if self.round_to > 1:
            said.append(
                f"Outputs are rounded up to multiples of {self.round_to}."
            )
        return "\n".join(said) or None


def _filled(count: int) -> str:
    return f" ({count:,} dead)" if count else ""


def _change(before: int | None, after: int | None) -> str:
    if before is None or after is None:
        return "unknown"
    return f"{before:,}" if before == after else f"{before:,} to {after:,}"


def _changes(before: int | None, after: int | None) -> tuple[str, str]:
    ratio = f"{before / after:.1f}" if before and after else ""
    return _change(before, after), ratio
