"""The report of how a model can be deployed: rows and their table."""

from __future__ import annotations

import dataclasses
from typing import Any

import rich.table
import rich.text

from keras_vd._backend.tables import Report


@dataclasses.dataclass(frozen=True)
class ArtifactRow:
    """One file in the runtime that reads it.

    Attributes:
        artifact: Name of the way in which it was written.
        runtime: Name of the runtime that reads it.
        error: Why it was not written or could not be measured; "" otherwise.
            Numbers that are then missing are None.
        files: Names of the files or folders, by batch size.
        bytes: Its size.
        gzip_bytes: Its size after gzip, or, for a folder, after tar and gzip.
        disk_ratio: How many times smaller it is than the dense one of the same
            runtime.
        load_ms: Milliseconds to open it and to compute once, in a process in
            which the runtime has been started.
        ms: Milliseconds of a call on one thread, by batch size.
        latency_ratio: How many times faster than the dense one of the same
            runtime, by batch size: the median over neighbouring blocks.
        latency_ratio_range: Its quartiles, by batch size.
        difference: The largest difference of an output from those of the Keras
            model that was written, relative to the largest output.
    """

    artifact: str
    runtime: str
    error: str = ""
    files: dict[int, str] = dataclasses.field(default_factory=dict)
    bytes: int | None = None
    gzip_bytes: int | None = None
    disk_ratio: float | None = None
    load_ms: float | None = None
    ms: dict[int, float] = dataclasses.field(default_factory=dict)
    latency_ratio: dict[int, float] = dataclasses.field(default_factory=dict)
    latency_ratio_range: dict[int, tuple[float, float]] = dataclasses.field(
        default_factory=dict
    )
    difference: float | None = None


@dataclasses.dataclass(frozen=True)
class DeploymentReport(Report):
    """Sizes and speeds of a model in the runtimes that serve it.

    Attributes:
        rows: One `ArtifactRow` per file; the first of each runtime is dense.
        batch_sizes: Numbers of examples per call.
    """

    rows: tuple[ArtifactRow, ...]
    batch_sizes: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "batch_sizes": list(self.batch_sizes),
        }

    def to_table(self) -> rich.table.Table:
        title = (
            "Deployment; in brackets: times smaller, times faster than dense"
        )
        notes = ["Latency on one thread, in a process without Keras"]
        notes += [
            f"{row.runtime}, {row.artifact}: {row.error}"
            for row in self.rows
            if row.error
        ]
        # Plain text, because markup would take the `[extra]` of a command for
        # a style.
        caption = rich.text.Text("\n".join(notes))
        table = rich.table.Table(title=title, caption=caption)
        table.add_column("runtime")
        table.add_column("artifact")
        headers = ["bytes", "gzipped", "load ms"]
        headers += [f"ms, batch {n}" for n in self.batch_sizes]
        for header in [*headers, "difference"]:
            table.add_column(header, justify="right")
        previous = None
        for row in self.rows:
            if row.runtime != previous:
                table.add_section()
            table.add_row(
                row.runtime if row.runtime != previous else "",
                row.artifact,
                _with_ratio(row.bytes, row.disk_ratio, ",", ".3g"),
                _number(row.gzip_bytes, ","),
                _number(row.load_ms, ".0f"),
                *[
                    _with_ratio(
                        row.ms.get(n), row.latency_ratio.get(n), ".3g", ".2f"
                    )
                    for n in self.batch_sizes
                ],
                _number(row.difference, ".0e"),
            )
            previous = row.runtime
        return table


def _number(value: float | None, style: str) -> str:
    return "" if value is None else f"{value:{style}}"


def _with_ratio(
    value: float | None, ratio: float | None, style: str, ratio_style: str
) -> str:
    text = _number(value, style)
    return text if ratio is None else f"{text} ({ratio:{ratio_style}})"
