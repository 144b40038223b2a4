"""Table and picture of experiments.compare_methods."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.common import markdown, print_table, spread

# Accuracy in %, active units of 784-500-300: the course's table and, for the
# papers, Neklyudov et al. 2017 and Lee et al. 2018.
PUBLISHED = {
    "none, published": (97.98, (784, 500, 300)),
    "Beta-Bernoulli, published": (98.70, (374, 198, 159)),
    "log-normal, published": (98.52, (327, 157, 114)),
    "log-normal, SBP paper": (98.45, (245, 160, 55)),
}
HEADER = (
    "method",
    "seeds",
    "accuracy %",
    "n_active",
    "memory %",
    "nonzero ratio",
    "parameters",
    "MACs",
    "faster at batch 1",
    "at batch 64",
    "seconds",
)


def mean_of(runs: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.mean([run[name] for run in runs], axis=0)


def row(runs: list[dict[str, Any]]) -> list[str]:
    """Cells of one method: means, with the deviation over seeds."""
    active = "-".join(f"{n:.0f}" for n in mean_of(runs, "n_active"))
    if "active_per_example" in runs[0]:
        per_example = mean_of(runs, "active_per_example")
        numbers = "-".join(f"{n:.0f}" for n in per_example)
        active += f", {numbers} per image"
    memory = " / ".join(f"{m:.2f}" for m in mean_of(runs, "memory_percent"))
    latencies = [
        spread([x["speedup"] for x in pair], 2)
        for pair in zip(*(run.get("latency", []) for run in runs), strict=True)
    ]
    return [
        runs[0]["method"],
        ", ".join(str(run["seed"]) for run in runs),
        spread([run["accuracy"] for run in runs], 2),
        active,
        memory,
        spread([run["nonzero_ratio"] for run in runs], 1),
        spread([run["shrunk"]["kept_parameters"] for run in runs], 0),
        spread([run["shrunk"]["kept_macs"] for run in runs], 0),
        *(latencies or ["-", "-"]),
        spread([run["seconds"] for run in runs], 0),
    ]


def picture(rows: list[list[dict[str, Any]]]) -> Figure:
    """Accuracy against the memory that the shrunk network takes."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    panel = figure.subplots()
    for index, runs in enumerate(rows):
        memory = [
            100 * run["shrunk"]["kept_parameters"] / run["shrunk"]["parameters"]
            for run in runs
        ]
        accuracies = [run["accuracy"] for run in runs]
        panel.errorbar(
            np.mean(memory),
            np.mean(accuracies),
            yerr=np.std(accuracies, ddof=1) if len(runs) > 1 else None,
            fmt="osDv^<>Ph*X"[index % 11],
            label=runs[0]["method"],
        )
    units = rows[0][0]["units"]
    for name, (accuracy, active) in PUBLISHED.items():
        if units == list(PUBLISHED["none, published"][1]):
            sizes = [dense_parameters(x) for x in (active, units)]
            memory_percent = 100 * sizes[0] / sizes[1]
            panel.plot(memory_percent, accuracy, "x", color="gray")
            is_right = memory_percent > 50
            panel.annotate(
                f"{name}  " if is_right else f"  {name}",
                (memory_percent, accuracy),
                color="gray",
                ha="right" if is_right else "left",
            )
    panel.set(
        xlabel="parameters of the shrunk network, % of the dense one",
        ylabel="test accuracy, %",
        xscale="log",
    )
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def dense_parameters(units: Any) -> int:
    """Weights and biases of a network of dense layers with 10 outputs."""
    sizes = [*units, 10]
    return sum((n + 1) * m for n, m in itertools.pairwise(sizes))


def show(rows: list[list[dict[str, Any]]], out: Path) -> None:
    """Print the table, write it as Markdown, and draw the picture."""
    cells = [row(runs) for runs in rows]
    print_table(rows[0][0]["model"], HEADER, cells, width=180)
    text = markdown(HEADER, cells)
    (out / "table.md").write_text(text + "\n")
    print(text)
    picture(rows).savefig(out / "accuracy_against_memory.png", dpi=120)
    print(f"written to {out}")
