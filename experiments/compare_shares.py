"""Compare who shares a variance: error against size and against time.

    python -m experiments.compare_shares --dataset digits
    python -m experiments.compare_shares --shares weight unit --seeds 0 1 2

Trains one network of `experiments.mnist` for every share of the posterior, KL
weight and seed, each in a process of its own. One row per share and KL weight:
the error before fine-tuning and after it, weights per non-zero one at the
recipe's threshold and at the ends of the range from -1 to 3, and the CPU
seconds of training on one thread. Writes table.md, frontier.png and a folder
for each run to --out; runs that are there already are read, not repeated.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.settings import ONE_THREAD
from experiments import common
from experiments.mnist.models import MODELS
from keras_vd.posteriors.sharing import SHARES

THRESHOLDS = (-1.0, 3.0)
HEADER = (
    "share",
    "KL weight",
    "seeds",
    "error %, pruned",
    "error %, fine-tuned",
    "weights per non-zero one",
    *(f"at threshold {threshold:g}" for threshold in THRESHOLDS),
    "CPU s",
)
# Columns of `figures` that errors are drawn against.
_AXES = {2: "weights per non-zero one", 5: "CPU seconds of training"}
# Options of experiments.mnist that every run is given.
PASSED_ON = ("epochs", "finetune_epochs", "shift", "limit", "holdout")


def parse_arguments(arguments: Sequence[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", choices=MODELS, default="lenet-300-100")
    add("--dataset", choices=("mnist", "digits"), default="mnist")
    add("--shares", nargs="+", choices=SHARES, default=list(SHARES))
    add("--kl-weights", nargs="+", type=float, default=[1.0])
    add("--seeds", nargs="+", type=int, default=[0])
    add("--epochs", type=int, help="default: the recipe's")
    add("--finetune-epochs", type=int, help="default: the recipe's")
    common.add_image_options(parser)
    add("--out", type=Path, help="default: runs/shares-MODEL-DATA")
    parsed = parser.parse_args(arguments)
    positive = ("epochs", "limit", "holdout")
    others = ("finetune_epochs", "shift")
    common.check_minima(
        parsed, dict.fromkeys(positive, 1) | dict.fromkeys(others, 0)
    )
    if min(parsed.seeds) < 0:
        common.fail(f"--seeds must be at least 0, not {min(parsed.seeds)}")
    return parsed


def train(
    arguments: Any, share: str, kl_weight: float, seed: int, out: Path
) -> dict[str, Any]:
    """Return the results of one run, which is made unless it is there."""
    file = out / f"{share}-kl{kl_weight:g}-seed{seed}" / "results.json"
    if not file.exists():
        options = {
            "model": arguments.model,
            "dataset": arguments.dataset,
            "share": share,
            "kl_weight": kl_weight,
            "seed": seed,
            "out": file.parent,
        }
        for name in PASSED_ON:
            if getattr(arguments, name) is not None:
                options[name] = getattr(arguments, name)
        command = [sys.executable, "-m", "experiments.mnist"]
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        print(" ".join(command[1:]), flush=True)
        subprocess.run(
            command,
            env=os.environ | ONE_THREAD,
            stdout=subprocess.DEVNULL,
            check=True,
        )
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def figures(run: dict[str, Any]) -> list[float]:
    """List what the columns behind the seeds show of one run."""
    errors = run["errors_percent"]
    ratios = {
        point["threshold"]: point["nonzero_ratio"] for point in run["frontier"]
    }
    return [
        errors["pruned"],
        errors.get("fine-tuned", errors["pruned"]),
        run["sparsity"]["nonzero_ratio"],
        *(ratios[threshold] for threshold in THRESHOLDS),
        run["cpu_seconds"],
    ]


def draw(
    rows: dict[tuple[str, float], np.ndarray], file: Path, title: str
) -> None:
    """Draw error against size, and against the time of training.

    Args:
        rows: By share and KL weight, `figures` of every seed.
        file: What to write.
        title: Of the picture.
    """
    figure, panels = plt.subplots(
        1, 2, sharey=True, figsize=(11, 4.5), layout="constrained"
    )
    shares = list(dict.fromkeys(share for share, _ in rows))
    for panel, (column, label) in zip(panels, _AXES.items(), strict=True):
        for share in shares:
            points = np.array(
                [
                    found.mean(0)[[column, 1]]
                    for (of, _), found in rows.items()
                    if of == share
                ]
            )
            panel.plot(*points[np.argsort(points[:, 0])].T, "o-", label=share)
        panel.set(xlabel=label, xscale="log")
        panel.margins(x=0.1)
        common.set_log_ticks(panel)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("error %, fine-tuned")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside right upper",
        title="share",
    )
    figure.suptitle(title)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = parse_arguments(arguments)
    out = common.prepare_folder(
        parsed.out or Path("runs") / f"shares-{parsed.model}-{parsed.dataset}"
    )
    rows: dict[tuple[str, float], np.ndarray] = {}
    device = ""
    for share, kl_weight in itertools.product(parsed.shares, parsed.kl_weights):
        runs = [
            train(parsed, share, kl_weight, seed, out) for seed in parsed.seeds
        ]
        device = runs[0]["device"]
        rows[share, kl_weight] = np.array([figures(run) for run in runs])
    digits = (2, 2, 1, 1, 1, 0)
    table = common.markdown(
        HEADER,
        [
            [
                share,
                f"{kl_weight:g}",
                ", ".join(map(str, parsed.seeds)),
                *map(common.spread, found.T, digits),
            ]
            for (share, kl_weight), found in rows.items()
        ],
    )
    draw(rows, out / "frontier.png", f"{parsed.model}, {parsed.dataset}")
    (out / "table.md").write_text(table)
    print(f"{device}, one thread\n\n{table}")


if __name__ == "__main__":
    main()
