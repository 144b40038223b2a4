"""Turn runs of experiments.mnist into a Markdown table and a frontier.

    python -m experiments.mnist.summary runs/*/results.json --out frontier.png

Runs of the same network, method, data and recipe are averaged over their
seeds. The picture shows error against nonzero ratio: curves for the same
weights at several thresholds, stars for the final networks, means over the
seeds, and published points.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common import (
    fail,
    markdown,
    read_runs,
    set_log_ticks,
    spread,
)

# Error in %, weights / non-zero weights: Molchanov et al. 2017, table 1.
PUBLISHED = {
    "lenet-300-100": {
        "Han et al. 2015": (1.59, 12),
        "DNS 2016": (1.99, 56),
        "SWS 2017": (1.94, 23),
        "Sparse VD 2017": (1.92, 68),
    },
    "lenet-5": {
        "Han et al. 2015": (0.77, 12),
        "DNS 2016": (0.91, 111),
        "SWS 2017": (0.97, 200),
        "Sparse VD 2017": (0.75, 280),
    },
}

HEADER = (
    "data",
    "network",
    "method",
    "seeds",
    "error %, trained",
    "error %, final",
    "nonzero ratio",
    "with biases",
    "n_active",
    "memory %",
    "parameters after shrinking",
    "MACs",
    "bytes of the archive, error %",
    "seconds",
)


def final_error(run: dict[str, Any]) -> float:
    errors = run["errors_percent"]
    return errors.get("fine-tuned", errors.get("pruned", errors["trained"]))


def describe(run: dict[str, Any]) -> str:
    """The method, who shares a variance, and whether images were shifted."""
    parts = [run["method"]]
    share = run["recipe"].get("share", "weight")
    if share != "weight":
        parts.append(f"one variance per {share}")
    shift = run["recipe"].get("shift")
    if shift:
        parts.append(f"shifts of {shift} pixel")
    return ", ".join(parts)


def row(runs: list[dict[str, Any]]) -> list[str]:
    first = runs[0]
    cells = [first["data"], first["model"], describe(first)]
    cells.append(", ".join(str(run["seed"]) for run in runs))
    cells.append(spread([run["errors_percent"]["trained"] for run in runs], 2))
    cells.append(spread([final_error(run) for run in runs], 2))
    if "sparsity" in first:
        sparsities = [run["sparsity"] for run in runs]
        for name in ("nonzero_ratio", "nonzero_ratio_with_biases"):
            has_weights = bool(first["sparsity"]["rows"])
            ratios = [s[name] for s in sparsities]
            cells.append(spread(ratios, 1) if has_weights else "-")
        active = np.mean([s["n_active"] for s in sparsities], axis=0)
        cells.append("-".join(f"{n:.0f}" for n in active))
        memory = np.mean(
            [
                [r["memory_percent"] for r in s["rows"] or s["gates"]]
                for s in sparsities
            ],
            axis=0,
        )
        cells.append(" / ".join(f"{m:.1f}" for m in memory))
    else:
        cells += ["1", "1", "all", "100"]
    for name in ("parameters", "macs"):
        if all("shrunk" in run for run in runs):
            kept = spread([run["shrunk"][f"kept_{name}"] for run in runs], 0)
            cells.append(f"{kept} of {first['shrunk'][name]:,}")
        else:
            cells.append("-")
    if all("archive_bytes" in run for run in runs):
        size = spread([run["archive_bytes"] for run in runs], 0)
        errors = [run["errors_percent"]["archived"] for run in runs]
        cells.append(f"{size}, {spread(errors, 2)}")
    else:
        cells.append("-")
    cells.append(spread([run["seconds"] for run in runs], 0))
    return cells


def draw_runs(panel: Axes, runs: list[dict[str, Any]]) -> None:
    """A curve over thresholds, and a star for the final network."""
    curves = [
        [(p["nonzero_ratio"], p["error_percent"]) for p in run["frontier"]]
        for run in runs
    ]
    name = describe(runs[0])
    (line,) = panel.plot(
        *np.mean(curves, axis=0).T, ".-", label=f"{name}: as trained"
    )
    panel.plot(
        np.mean([run["sparsity"]["nonzero_ratio"] for run in runs]),
        np.mean([final_error(run) for run in runs]),
        "*",
        color=line.get_color(),
        markersize=14,
        label=f"{name}: pruned and fine-tuned",
    )


def plot_frontier(groups: dict[tuple, list[dict[str, Any]]]) -> Figure:
    networks = [name for name in PUBLISHED if any(name in g for g in groups)]
    if not networks:
        fail("a frontier needs runs of lenet-300-100 or lenet-5")
    figure = Figure(figsize=(6 * len(networks), 6), layout="constrained")
    panels = figure.subplots(1, len(networks), squeeze=False)[0]
    for panel, network in zip(panels, networks, strict=True):
        for key, runs in groups.items():
            is_comparable = network in key and "mnist" in key
            if is_comparable and "frontier" in runs[0]:
                draw_runs(panel, runs)
        published = PUBLISHED[network]
        for marker, (name, (error, ratio)) in zip(
            "sv^D", published.items(), strict=True
        ):
            panel.plot(ratio, error, marker, color="gray", label=name)
        panel.set(
            title=network,
            xlabel="weights / non-zero weights",
            ylabel="test error, %",
            xscale="log",
        )
        set_log_ticks(panel)
        panel.grid(alpha=0.3)
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15))
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="PNG of the frontier")
    arguments = parser.parse_args()
    groups = read_runs(arguments.files, "errors_percent")
    print(markdown(HEADER, map(row, groups.values())))
    if arguments.out:
        plot_frontier(groups).savefig(arguments.out, dpi=120)


if __name__ == "__main__":
    main()
