"""Turn runs of experiments.imdb into a Markdown table.

    python -m experiments.imdb.summary runs/*/results.json

Runs that differ in the seed alone are averaged.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from experiments.common import markdown, read_runs, spread

HEADER = (
    "data",
    "network, embedding + units",
    "method, recipe",
    "groups",
    "seeds",
    "accuracy %, trained",
    "exported",
    "non-zero of weights",
    "ratio",
    "with biases",
    "to published",
    "words",
    "features",
    "units",
    "gates",
    "seconds",
)


def row(runs: list[dict[str, Any]]) -> list[str]:
    first = runs[0]
    recipe = first["recipe"]

    def accuracy(stage: str) -> str:
        return spread([run["accuracy_percent"][stage] for run in runs], 2)

    cells = [
        first["data"],
        f"{first['model']}, {recipe['vocabulary']:,}x{recipe['features']} + "
        f"{recipe['units']}",
        f"{first['method']}, {first['recipe_name']}",
        ", ".join(recipe["groups"]) or "-",
        ", ".join(str(run["seed"]) for run in runs),
        accuracy("trained"),
        accuracy("exported"),
    ]
    if "sparsity" in first:
        found = [run["sparsity"] for run in runs]
        nonzero = spread([s["nonzero"] for s in found], 0)
        cells.append(f"{nonzero} of {found[0]['weights']:,}")
        for name in ("ratio", "ratio_with_biases", "ratio_to_published"):
            is_there = name in found[0]
            ratios = [s[name] for s in found] if is_there else []
            cells.append(spread(ratios, 0) if is_there else "-")
        for name in ("words", "features", "units", "gates"):
            kept = spread([s["kept"][name][0] for s in found], 0)
            cells.append(f"{kept} of {found[0]['kept'][name][1]:,}")
    else:
        cells += ["all", "1", "1", "-", *["all"] * 4]
    cells.append(spread([run["seconds"] for run in runs], 0))
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    runs = read_runs(parser.parse_args().files, "accuracy_percent")
    print(markdown(HEADER, map(row, runs.values())))


if __name__ == "__main__":
    main()
