"""The report of what `compress` has made of a model."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import rich.table

from keras_vd._backend.pages import html_page, report_section
from keras_vd._backend.tables import Headline, Report, size_headline
from keras_vd.conversion.report import ConversionReport
from keras_vd.deployment.report import ArtifactRow
from keras_vd.shrinking.report import ShrinkReport
from keras_vd.sparsity import SparsityReport

_RUNTIME = "Keras on one thread, in a process of its own"
# Weights per non-zero one below which a budget has brought little.
_FEW = 1.5


@dataclasses.dataclass(frozen=True)
class StageRow:
    """One stage of the way.

    Attributes:
        name: What was done.
        epochs: Number of epochs, where it trained; 0 otherwise.
        seconds: How long it took in this call.
    """

    name: str
    epochs: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class MetricRow:
    """A metric of the model before, in between and after.

    Attributes:
        name: Its name.
        given: Of the model as it was given.
        trained: After the first stage, which trains it on as it is.
        small: Of the small model.
    """

    name: str
    given: float
    trained: float
    small: float


@dataclasses.dataclass(frozen=True)
class CompressionReport(Report):
    """Report of what `compress` has made of a model.

    Attributes:
        wish: What was wished for, by name: one entry, and with `budget` also
            the `monitor` and the `limit` of that metric.
        reached: The figure of the small model that the wish is about.
        is_met: Whether it is as wished for; for sizes, within 5%.
        metrics: One `MetricRow` per metric, the loss among them.
        measured_on: On which data, in words.
        weights: Entries of all kernels and tables of the model.
        nonzero: Those of the small model that are not zero, or of the pruned
            one where it had fewer: a table that tells which words share a
            vector takes entries, too.
        parameters: Parameters of the model.
        kept_parameters: Parameters of the small model.
        macs: Multiply-accumulate operations for one example, or None if
            unknown.
        kept_macs: Those of the small model.
        files: One `ArtifactRow` for the `.keras` file of the model, and one for
            that of the small one, compressed.
        difference: The largest difference between predictions of the small
            model and the pruned one, relative to the largest.
        stages: One `StageRow` per stage.
        conversion: The report of `to_variational`.
        sparsity: The report of `prune`.
        shrinking: The report of `shrink`.
    """

    wish: dict[str, Any]
    reached: float
    is_met: bool
    metrics: tuple[MetricRow, ...]
    measured_on: str
    weights: int
    nonzero: int
    parameters: int
    kept_parameters: int
    macs: int | None
    kept_macs: int | None
    files: tuple[ArtifactRow, ...]
    difference: float
    stages: tuple[StageRow, ...]
    conversion: ConversionReport
    sparsity: SparsityReport
    shrinking: ShrinkReport

    is_about_sizes = True

    @property
    def nonzero_ratio(self) -> float:
        """Weights of the model per non-zero weight of the small one."""
        return self.weights / max(self.nonzero, 1)

    def to_dict(self) -> dict[str, Any]:
        nested = ("conversion", "sparsity", "shrinking")
        rows = ("metrics", "files", "stages")
        return {
            **{
                field.name: getattr(self, field.name)
                for field in dataclasses.fields(self)
                if field.name not in (*nested, *rows)
            },
            "wish": dict(self.wish),
            "nonzero_ratio": self.nonzero_ratio,
            **{
                name: [dataclasses.asdict(row) for row in getattr(self, name)]
                for name in rows
            },
            **{name: getattr(self, name).to_dict() for name in nested},
        }

    def to_json(self) -> str:
        """Return all of the report as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def to_html(self) -> str:
        """Return a web page with this report and those of the stages."""
        return html_page(
            "A smaller model",
            self.lead(),
            self.headlines(),
            [report_section(*part) for part in self.parts().items()],
        )

    def headlines(self) -> tuple[Headline, ...]:
        metrics = [
            Headline(row.name, f"{row.small:.4g}", f"{row.given:.4g}")
            for row in self.metrics
        ]
        sizes = [
            headline
            for name, (before, after) in self._sizes().items()
            for headline in size_headline(name, before, after)
        ]
        return (*metrics, *sizes)

    def parts(self) -> dict[str, Report]:
        return {
            "Before and after": self,
            "Converted": self.conversion,
            "Pruned": self.sparsity,
            "Shrunk": self.shrinking,
        }

    def to_table(self) -> rich.table.Table:
        table = rich.table.Table(
            title="Before and after", caption=self._caption()
        )
        table.caption_justify = "left"
        table.add_column("")
        for header in ("given", "trained on", "small", "ratio"):
            table.add_column(header, justify="right")
        for row in self.metrics:
            figures = (row.given, row.trained, row.small)
            table.add_row(row.name, *(f"{x:.4g}" for x in figures))
        table.add_section()
        for name, (before, after) in self._sizes().items():
            table.add_row(name, *_change(before, after, ","))
        dense, small = self.files
        for size in small.ms:
            ratio = small.latency_ratio.get(size)
            table.add_row(
                f"ms of a call, batch {size}",
                *_change(dense.ms.get(size), small.ms[size], ".3g", ratio),
            )
        return table

    def _sizes(self) -> dict[str, tuple[int | None, int | None]]:
        dense, small = self.files
        return {
            "weights not zero": (self.weights, self.nonzero),
            "parameters": (self.parameters, self.kept_parameters),
            "MACs per example": (self.macs, self.kept_macs),
            "bytes, .keras file": (dense.bytes, small.bytes),
        }

    def lead(self) -> str:
        ((name, value), *details) = self.wish.items()
        told = "".join(f", {key}: {_figure(x)}" for key, x in details)
        outcome = "met" if self.is_met else "not met"
        text = (
            f"Wish: {name}={value:g}{told}; reached: "
            f"{self.reached:.4g}, {outcome}."
        )
        if name == "budget" and self.nonzero_ratio < _FEW:
            text += (
                " Few weights could go within it: allow a larger "
                "budget, or ask for a size, such as parameters=0.1."
            )
        return text

    def _caption(self) -> str:
        trained = " + ".join(
            str(row.epochs) for row in self.stages if row.epochs
        )
        lines = [
            self.lead(),
            f"Metrics on {self.measured_on}; {trained} epochs.",
            f"Calls of {_RUNTIME}.",
        ]
        lines += [
            f"Not measured, {row.artifact}: {row.error}"
            for row in self.files
            if row.error
        ]
        return "\n".join(lines)


def _figure(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _change(
    before: float | None,
    after: float | None,
    style: str,
    ratio: float | None = None,
) -> tuple[str, str, str, str]:
    """Return the cells of a size before and after, and the ratio."""
    if before is None or after is None:
        cells = [
            "unknown" if x is None else f"{x:{style}}" for x in (before, after)
        ]
        return cells[0], "", cells[1], ""
    ratio = before / max(after, 1) if ratio is None else ratio
    return f"{before:{style}}", "", f"{after:{style}}", f"{ratio:.1f}"
