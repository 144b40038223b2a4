"""Tables of what was measured, for terminals and for Markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import rich.table

from benchmarks.libraries import PLAIN
from benchmarks.networks import CASES, DEEP

Record = dict[str, Any]
Cell = Callable[[Record], str]
BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
_NO_CELL = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A title, and lines of text cells below a line of headers."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]

    def to_rich(self) -> rich.table.Table:
        """The table to print in a terminal."""
        table = rich.table.Table(title=self.title)
        for header in self.headers:
            table.add_column(header)
        for row in self.rows:
            table.add_row(*row)
        return table

    def to_markdown(self) -> str:
        """The table in Markdown, its title in bold above it."""
        lines = [self.headers, ["---"] * len(self.headers), *self.rows]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"**{self.title}**\n\n{body}\n"


def make_tables(result: dict[str, Any]) -> list[Table]:
    """All tables that there are records for.

    Args:
        result: Of `benchmarks.running.run`.
    """
    records = result["records"]
    devices = {
        r["backend"]: r["device"] for r in records if r["table"] == "device"
    }
    tables = []
    for backend, device in devices.items():
        own = [
            r
            for r in records
            if (r["backend"], r["library"]) == (backend, "keras_vd")
        ]
        name = BACKENDS[backend]
        tables += _backend_tables(own, f"{name}, {device}", device != "cpu")
    tables += [
        _deep_table(_of(records, "deep")),
        _long_run_table(_of(records, "long run")),
        _memory_table(records),
        *_peer_tables(_of(records, "peers")),
        _failure_table(records),
    ]
    return [table for table in tables if table.rows]


def failures(result: dict[str, Any]) -> list[Record]:
    """Records of what did not run though it is installed."""
    return [r for r in result["records"] if "error" in r]


def _backend_tables(
    records: list[Record], name: str, has_times: bool
) -> list[Table]:
    # Times of a shared processor say little; ratios within one process do.
    cell = _ratio_and_ms if has_times else _ratio
    return [
        _pivot(
            f"Training step, ratio to the plain layer ({name})",
            _of(records, "training"),
            cell,
            left_out=() if has_times else ("plain",),
        ),
        _pivot(
            f"Parts alone, ratio to the plain training step ({name})",
            _of(records, "parts"),
            cell,
        ),
        _pivot(
            f"Prediction, ratio to the plain layer ({name})",
            _of(records, "inference"),
            cell,
            left_out=() if has_times else ("plain",),
        ),
        _pivot(
            f"Seconds until the first step is done ({name})",
            [
                r
                for r in _of(records, "first step")
                if r["variant"] in ("plain", "keras_vd")
            ],
            lambda r: f"{r['seconds']:.1f}",
        ),
        _pivot(
            "Ways to execute a step, 784-300-100-10, ratio to the plain "
            f"layer by default ({name})",
            _of(records, "execution"),
            cell,
            first="option of `compile`",
        ),
    ]


def _of(records: Iterable[Record], table: str) -> list[Record]:
    """Records of one table that hold a measurement."""
    return [
        r
        for r in records
        if r["table"] == table and not ("error" in r or "missing" in r)
    ]


def _title(case: str) -> str:
    return CASES[case].title if case in CASES else DEEP.get(case, case)


def _pivot(
    title: str,
    records: list[Record],
    cell: Cell,
    first: str = "network",
    left_out: Sequence[str] = (),
) -> Table:
    """A row for each case and a column for each variant."""
    cells = {(r["case"], r["variant"]): cell(r) for r in records}
    cases = dict.fromkeys(case for case, _ in cells)
    variants = [
        variant
        for variant in dict.fromkeys(variant for _, variant in cells)
        if variant not in left_out
    ]
    rows = [
        [_title(case), *(cells.get((case, v), _NO_CELL) for v in variants)]
        for case in cases
    ]
    return Table(title, [first, *variants], rows)


def _quartiles(values: Sequence[float]) -> str:
    low, median, high = values
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def _ratio(record: Record, to: str = "plain") -> str:
    ratios = record["ratios"]
    return _quartiles(ratios[to]) if to in ratios else _NO_CELL


def _ratio_and_ms(record: Record) -> str:
    return f"{_ratio(record)}, {record['quartiles_ms'][1]:.3g} ms"


def _long_run_table(records: list[Record]) -> Table:
    return Table(
        "A long `fit` of 784-300-100-10 with `KLAnnealing`",
        [
            "backend",
            "steps",
            "last / first tenth, time of a step",
            "traces",
            "of these after the first tenth",
            "memory gained since, MB",
        ],
        [
            [
                BACKENDS[r["backend"]],
                f"{r['steps']:,}",
                _ratio(r, "first tenth"),
                str(r["traces"]),
                str(r["late_traces"]),
                f"{r['growth_mb']:.1f}",
            ]
            for r in records
        ],
    )


def _deep_table(records: list[Record]) -> Table:
    plain = {
        (r["backend"], r["case"]): r["seconds"]
        for r in records
        if r["variant"] == "plain"
    }
    rows = []
    for r in records:
        row = (r["backend"], r["case"])
        ratio = f"{r['seconds'] / plain[row]:.1f}" if row in plain else _NO_CELL
        rows.append(
            [
                _title(r["case"]),
                BACKENDS[r["backend"]],
                r["variant"],
                f"{r['seconds']:.1f}",
                ratio,
            ]
        )
    return Table(
        "First step of deep networks, traced and compiled",
        ["network", "backend", "layers", "seconds", "/ plain layers"],
        rows,
    )


def _memory_table(records: list[Record]) -> Table:
    plans = {
        (r["backend"], r["variant"]): r["matrices"]
        for r in _of(records, "plan")
    }
    rows = []
    for r in _of(records, "memory"):
        plan = plans.get((r["backend"], r["variant"]))
        rows.append(
            [
                BACKENDS[r["backend"]],
                r["variant"],
                f"{r['matrices']:.1f}",
                _NO_CELL if plan is None else f"{plan:.1f}",
            ]
        )
    return Table(
        "Peak memory of a training step, 4096x4096, batch 256, in weight "
        "matrices of 64 MB",
        ["backend", "layers", "growth", "XLA's plan"],
        rows,
    )


def _peer_tables(records: list[Record]) -> list[Table]:
    return [
        _pivot(
            f"Training step beside {library}, ratio to the plain layer: its "
            "own for its layers, that of Keras for all others",
            [r for r in records if r["library"] == library],
            _ratio_of_peer,
            left_out=("plain",),
        )
        for library in dict.fromkeys(r["library"] for r in records)
    ]


def _ratio_of_peer(record: Record) -> str:
    variant = record["variant"]
    is_peer = variant not in PLAIN and not variant.startswith("keras_vd")
    return _ratio(record, "own plain layer" if is_peer else "plain Keras")


def _failure_table(records: list[Record]) -> Table:
    return Table(
        "Not measured",
        ["backend", "library", "table", "network", "layers", "why"],
        [
            [
                BACKENDS[r["backend"]],
                r["library"],
                r["table"],
                _title(r["case"]),
                r["variant"],
                r.get("error") or r["missing"],
            ]
            for r in records
            if "error" in r or "missing" in r
        ],
    )
