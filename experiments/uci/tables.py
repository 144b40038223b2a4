"""Tables of the results, beside what others have published."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from experiments import common
from experiments.uci import networks
from experiments.uci.data import FILES

# Test NLL in nats of networks of the same size on the same splits, in the order
# of `FILES`; Hernandez-Lobato and Adams 2015 (arXiv:1502.05336), Gal and
# Ghahramani 2016 (arXiv:1506.02142), Lakshminarayanan et al. 2017
# (arXiv:1612.01474), and the code of edward2.
PUBLISHED = {
    "PBP": (2.57, 3.16, 2.04, -0.90, -3.73, 2.84, 2.97, 0.97, 1.63),
    "MC dropout (paper)": (
        *(2.46, 3.04, 1.99, -0.95, -3.80, 2.80, 2.89, 0.93, 1.55),
    ),
    "deep ensembles (paper)": (
        *(2.41, 3.06, 1.38, -1.20, -5.63, 2.79, 2.83, 0.94, 1.18),
    ),
    "mean-field VI (edward2)": (
        *(3.12, 3.22, 0.93, -1.03, -6.12, 2.85, 2.93, 1.00, 2.01),
    ),
}
GOALS = {
    "PBP": 7,
    "MC dropout (paper)": 5,
    "deep ensembles (paper)": 3,
}
MEASURES = {"nll": "NLL, nats", "rmse": "RMSE", "coverage": "coverage of 95%"}
Cells = dict[str, dict[str, Any]]  # by "data set/method"


def summary(values: list[float], digits: int = 2) -> str:
    """Mean, and its standard error over splits."""
    text = f"{np.mean(values):.{digits}f}"
    if len(values) > 1:
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        text += f" ± {error:.{digits}f}"
    return text


def chosen_nll(cells: Cells, name: str) -> list[float] | None:
    """NLL of each split by that of our methods that its held-out rows chose."""
    found = [
        cells[f"{name}/{method}"]
        for method in networks.OURS
        if f"{name}/{method}" in cells
    ]
    if len(found) < len(networks.OURS):
        return None
    best = np.argmin([cell["held_out_nll"] for cell in found], axis=0)
    splits = np.arange(len(best))
    values = np.array([x["nll"] for x in found])[best, splits]
    return [float(x) for x in values]


def our_means(cells: Cells) -> dict[str, dict[str, float]]:
    """Mean NLL by row and data set: methods, their best, the chosen ones."""
    rows: dict[str, dict[str, float]] = {
        method: {
            name: float(np.mean(cells[f"{name}/{method}"]["nll"]))
            for name in FILES
            if f"{name}/{method}" in cells
        }
        for method in networks.METHODS
    }
    rows["best of ours"] = {
        name: min(rows[x][name] for x in networks.OURS if name in rows[x])
        for name in FILES
        if any(name in rows[x] for x in networks.OURS)
    }
    chosen = {name: chosen_nll(cells, name) for name in FILES}
    rows["chosen of ours"] = {
        name: float(np.mean(values))
        for name, values in chosen.items()
        if values is not None
    }
    return {row: means for row, means in rows.items() if means}


def count_better(means: dict[str, float], published: str) -> int:
    """Number of data sets on which means are below those of others.

    Args:
        means: Test NLL by data set.
        published: A row of `PUBLISHED`.
    """
    others = dict(zip(FILES, PUBLISHED[published], strict=True))
    # Published figures have two digits: a tie in these is no win.
    return sum(round(mean, 2) < others[name] for name, mean in means.items())


def result_rows(cells: Cells, measure: str) -> list[list[str]]:
    """Rows of one measure, a column for each data set."""
    rows = []
    for method in networks.METHODS:
        cells_of = [cells.get(f"{name}/{method}") for name in FILES]
        if any(cells_of):
            texts = [_cell(x and x[measure], measure) for x in cells_of]
            rows.append([method, *texts])
    return rows


def _cell(values: list[float] | None, measure: str) -> str:
    if not values:
        return ""
    digits = 3 if measure == "coverage" else 2
    if measure == "rmse":
        # Units differ: two significant digits where targets are small.
        size = -math.floor(math.log10(np.mean(values)))
        digits = max(digits, size + 1)
    return summary(values, digits)


def all_rows(cells: Cells) -> dict[str, list[list[str]]]:
    """Rows by title."""
    tables = {
        title: result_rows(cells, name) for name, title in MEASURES.items()
    }
    chosen = [chosen_nll(cells, name) for name in FILES]
    if any(chosen):
        tables[MEASURES["nll"]].append(
            ["chosen of ours", *(summary(x) if x else "" for x in chosen)]
        )
    tables[MEASURES["nll"]] += [
        [name, *(f"{x:.2f}" for x in values)]
        for name, values in PUBLISHED.items()
    ]
    left = {
        name: [100 * x for x in cells[f"{name}/sparse_vd"]["weights_left"]]
        for name in FILES
        if f"{name}/sparse_vd" in cells
    }
    if left:
        texts = [summary(left[x], 1) if x in left else "" for x in FILES]
        tables["weights left, %"] = [["sparse_vd", *texts]]
    tables["strengths chosen (KL divergence, decay), geometric mean"] = [
        [method, *(_strength(cells.get(f"{x}/{method}")) for x in FILES)]
        for method in networks.METHODS
        if any(f"{name}/{method}" in cells for name in FILES)
    ]
    return tables


def _strength(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    return f"{np.exp(np.mean(np.log(cell['strength']))):.2f}"


def count_rows(cells: Cells) -> list[list[str]]:
    """Rows of how many data sets are better than in each published row."""
    return [
        [row, *(f"{count_better(means, x)} of {len(means)}" for x in PUBLISHED)]
        for row, means in our_means(cells).items()
    ]


def show(cells: Cells, is_markdown: bool) -> None:
    """Print all tables, and whether the goals are reached."""
    tables = {
        title: (["", *FILES], rows) for title, rows in all_rows(cells).items()
    }
    tables["data sets with a lower NLL than"] = (
        ["", *PUBLISHED],
        count_rows(cells),
    )
    for title, (header, rows) in tables.items():
        if is_markdown:
            print(f"\n{title}\n\n{common.markdown(header, rows)}")
        else:
            common.print_table(title, header, rows, width=150)
    best = our_means(cells).get("best of ours", {})
    for published, goal in GOALS.items():
        count = count_better(best, published)
        print(
            f"best of ours: lower than {published} on {count} of "
            f"{len(best)}; goal {goal} of {len(FILES)}: "
            f"{'reached' if count >= goal else 'missed'}"
        )
    seconds = sum(cell["seconds"] for cell in cells.values())
    print(f"{seconds / 60:.1f} minutes of training and tests")
