"""Tables of all figures, and which method is first in each column."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from experiments import common

_WIDTH = 120
SIZE = "non-zero weights"
OURS = ("gaussian", "vd", "sparse_vd")
STAGES = (
    "sparse_vd",
    "sparse_vd, pruned",
    "sparse_vd, pruned, means",
    "sparse_vd, shrunk",
    "sparse_vd, shrunk, temperature",
)

# By network, for each column one value a seed.
Figures = dict[str, dict[str, list[float]]]
Table = tuple[list[str], list[list[str]]]


def gather(rows: Iterable[dict[str, Any]], dataset: str) -> Figures:
    """Collect the figures of one data set, seed by seed."""
    figures: Figures = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        if row["dataset"] != dataset:
            continue
        for network, values in row["networks"].items():
            columns = figures.setdefault(network, {})
            for column, value in values.items():
                columns.setdefault(column, []).append(value)
    return figures


def columns_of(figures: Figures) -> list[str]:
    """All columns but the size, in the order of the first network with all."""
    longest: Sequence[str] = max(figures.values(), key=len, default={})
    return [name for name in longest if name != SIZE]


def is_ours(network: str) -> bool:
    return network.split(",")[0] in OURS


def is_better_high(column: str) -> bool:
    return column.endswith("accuracy") or "AUROC" in column


def rank(figures: Figures, column: str) -> list[tuple[str, float]]:
    """Networks and their means over the seeds, the best one first."""
    sign = -1.0 if is_better_high(column) else 1.0
    means = [
        (network, float(np.mean(values[column])))
        for network, values in figures.items()
        if column in values
    ]
    return sorted(means, key=lambda pair: sign * pair[1])


def standing(figures: Figures, column: str) -> str:
    """Say which network is first in a column, and where ours is.

    The difference is that of the means, with its standard error over the
    seeds.
    """
    ranked = rank(figures, column)
    first, value = ranked[0]
    text = f"{column}: {first} is first, {_format(column, value)}"
    ours = [i for i, (network, _) in enumerate(ranked) if is_ours(network)]
    if not ours:
        return text
    if ours[0] > 0:
        network, own = ranked[ours[0]]
        text += (
            f"; ours is {network}, {_format(column, own)}, number "
            f"{ours[0] + 1} of {len(ranked)}"
        )
        both = figures[first][column], figures[network][column]
        if min(map(len, both)) > 1:
            error = np.sqrt(sum(np.var(x, ddof=1) / len(x) for x in both))
            text += (
                f", apart by {_format(column, abs(own - value))} ± "
                f"{_format(column, float(error))} (standard error)"
            )
        return text
    others = [pair for pair in ranked if not is_ours(pair[0])]
    if others:
        text += f", ours; of others {others[0][0]}"
        text += f", {_format(column, others[0][1])}"
    return text


def _is_percent(column: str) -> bool:
    return column.endswith(("accuracy", "ECE"))


def _format(column: str, value: float) -> str:
    return f"{100 * value:.2f}%" if _is_percent(column) else f"{value:.4f}"


def _cell(values: dict[str, list[float]], column: str) -> str:
    if column not in values:
        return "-"
    if column == SIZE:
        return f"{np.mean(values[column]):,.0f}"
    scale, digits = (100.0, 2) if _is_percent(column) else (1.0, 3)
    return common.spread([scale * x for x in values[column]], digits)


def _headers(columns: Sequence[str]) -> list[str]:
    """Columns with their units."""
    units = {"accuracy": "accuracy %", "NLL": "NLL, nats", "ECE": "ECE %"}
    headers = []
    for column in columns:
        *place, last = column.rsplit(" ", 1)
        headers.append(" ".join([*place, units.get(last, last)]))
    return headers


def table(
    figures: Figures, networks: Iterable[str], columns: Sequence[str]
) -> Table:
    """Header and rows of those networks that were measured."""
    return ["network", *_headers(columns)], [
        [network, *(_cell(figures[network], x) for x in columns)]
        for network in networks
        if network in figures
    ]


def show(rows: list[dict[str, Any]], is_markdown: bool) -> None:
    """Print everything about all data sets."""
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        figures = gather(rows, dataset)
        mine = [row for row in rows if row["dataset"] == dataset]
        seeds = sorted({row["seed"] for row in mine})
        columns = columns_of(figures)
        scores = [x for x in columns if "AUROC" in x]
        others = [x for x in columns if "AUROC" not in x]
        # The plain network says how many weights there were.
        stages = ("plain", *STAGES) if STAGES[0] in figures else ()
        for title, content in (
            ("with labels", table(figures, figures, others)),
            (
                "AUROC by entropy (H) and mutual information (MI)",
                table(figures, figures, scores),
            ),
            (
                "what is lost by leaving the posterior",
                table(figures, stages, [*others, SIZE]),
            ),
        ):
            if content[1]:
                title = f"{dataset}, {len(seeds)} seeds: {title}"
                _print(title, content, is_markdown)
        print("\nFirst in each column:")
        for column in columns:
            print(f"- {standing(figures, column)}")
        print("\nChosen by the likelihood of held-out examples:")
        for row in mine:
            if row["seed"] == seeds[0]:
                print(f"- {row['method']}: {row['recipe']}")
        seconds = sum(row["seconds"] for row in mine)
        print(f"\n{seconds / 60:.1f} minutes for {dataset}\n")


def _print(title: str, content: Table, is_markdown: bool) -> None:
    header, rows = content
    if is_markdown:
        print(f"\n{title}\n\n{common.markdown(header, rows)}")
    else:
        common.print_table(title, header, rows, _WIDTH)
