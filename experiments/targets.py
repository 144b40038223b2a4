"""Ask `KLTarget` for what a recipe reached: size, and accuracy at that size.

    python -m experiments.targets --network digits --seeds 0 1 2
    TFDS_DATA_DIR=... python -m experiments.targets --network mnist

Trains a network by its recipe, whose KL weight was chosen by hand; then once
for each wish, with `KLTarget` in place of that weight: for as many weights that
are not zero, parameters and MACs after `keras_vd.shrink`, and active units, as
the recipe's network has, and for no more accuracy lost than that. Figures are
those of held-out data; lstm has accuracies of the test set, but for the wish
that is about held-out data. Writes table.md, and a folder for each
run, to --out; runs that are there already are read, not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.settings import ONE_THREAD
from experiments import common, wishes

HEADER = (
    *("wish", "asked for", "reached", "off by, at most", "accuracy %"),
    *("the recipe's", "nonzero ratio", "the recipe's"),
)
# Experiments of this folder, and options that choose a network and its data.
# Where one judges by held-out data, wishes are judged by the same.
NETWORKS = {
    "digits": ("mnist", "--dataset", "digits", "--holdout", "300"),
    "mnist": ("mnist", "--holdout", "5000"),
    "cnn": (
        *("mnist", "--model", "lenet-5", "--method", "log_normal"),
        *("--holdout", "5000"),
    ),
    "lstm": ("imdb",),
    "transformer": (
        *("conversion.transformer", "--holdout", "--no-deploy"),
        *("--posterior", "sparse_vd", "--share", "unit"),
    ),
}


def parse_arguments(arguments: Sequence[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--network", choices=NETWORKS, default="digits")
    add("--wishes", nargs="+", choices=wishes.NAMES, default=wishes.NAMES)
    add("--seeds", nargs="+", type=int, default=[0])
    add("--out", type=Path, help="default: runs/targets-NETWORK")
    add("options", nargs="*", help="of the experiment; begin them with --")
    parsed = parser.parse_args(arguments)
    if min(parsed.seeds) < 0:
        common.fail(f"--seeds must be at least 0, not {min(parsed.seeds)}")
    return parsed


def train(
    arguments: Any, options: Sequence[str], seed: int, folder: Path
) -> dict[str, Any]:
    """Return the results of one run, which is made unless it is there."""
    file = folder / "results.json"
    if not file.exists():
        module, *fixed = NETWORKS[arguments.network]
        command = [sys.executable, "-m", f"experiments.{module}", *fixed]
        command += ["--seed", str(seed), "--out", str(folder)]
        command += [*arguments.options, *options]
        print(" ".join(command[1:]), flush=True)
        done = subprocess.run(
            command, env=os.environ | ONE_THREAD, stdout=subprocess.DEVNULL
        )
        if done.returncode:
            # It has said why.
            raise SystemExit(done.returncode)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def figures(run: dict[str, Any]) -> dict[str, float]:
    """Read accuracy and sizes from the results of any of the experiments."""
    sparsity, shrunk = run["sparsity"], run["shrunk"]
    found = {
        "parameters": shrunk["kept_parameters"] + words_left_out(run),
        "macs": shrunk["kept_macs"],
        "n_active": sum(sparsity.get("n_active", ())) or None,
        "nonzero_ratio": sparsity.get("nonzero_ratio", sparsity.get("ratio")),
    }
    if "errors_percent" in run:
        errors = run["errors_percent"]
        accuracy = 100.0 - errors.get("fine-tuned", errors["pruned"])
    elif "accuracy_percent" in run:
        accuracy = run["accuracy_percent"]["pruned"]
    else:
        accuracy = run["stages"][-1]["accuracy_percent"]
    found["accuracy"] = accuracy
    return {k: v for k, v in found.items() if v is not None}


def words_left_out(run: dict[str, Any]) -> int:
    """Count parameters of words that a run on texts has taken out.

    `keras_vd.shrink` does not, and `KLTarget` counts as it does.
    """
    if "kept" not in run["sparsity"]:
        return 0
    (embedding,) = (
        row for row in run["shrunk"]["rows"] if row["layer"] == "Embedding"
    )
    _, vocabulary = run["sparsity"]["kept"]["words"]
    left_out: int = vocabulary - embedding["kept_inputs"]
    return left_out * int(embedding["kept_outputs"])


def last_of(run: dict[str, Any], name: str) -> float:
    """Read from a run what was logged in its last epoch."""
    history = run["history"]
    if isinstance(history, list):
        return float(history[-1][name])
    return float(history[name][-1])


def held_out_accuracy(run: dict[str, Any]) -> float:
    """Read the accuracy, in percent, that a budget is about."""
    if "held_out_accuracy_percent" in run:
        return float(run["held_out_accuracy_percent"])
    return figures(run)["accuracy"]


def lost_points(
    arguments: Any, run: dict[str, Any], seed: int, out: Path
) -> float:
    """Points of accuracy that a recipe lost against the plain network."""
    if "stages" in run:
        plain = run["stages"][0]["accuracy_percent"]
    else:
        other = train(arguments, ("--method", "none"), seed, out / "plain")
        if "held_out_accuracy_percent" in other:
            plain = held_out_accuracy(other)
        else:
            plain = 100.0 - other["errors_percent"]["trained"]
    return max(0.0, plain - held_out_accuracy(run))


def rows_of(
    arguments: Any, seed: int, out: Path
) -> dict[str, tuple[float, ...]]:
    """Train by the recipe and with each wish; return the table's figures.

    Args:
        arguments: Of the command line.
        seed: Of all networks.
        out: Folder of the runs.

    Returns:
        By wish: what was asked for, what was reached, by how much that misses
        it, accuracies and nonzero ratios of the two networks.
    """
    run = train(arguments, (), seed, out / "recipe")
    recipe = figures(run)
    found = {}
    for name in arguments.wishes:
        if name == "budget":
            asked = lost_points(arguments, run, seed, out)
            asked = round(asked, 2)
        elif name in recipe:
            asked = recipe[name]
            asked = round(asked, 2) if name == "nonzero_ratio" else int(asked)
        else:
            continue
        option = "--" + name.replace("_", "-")
        wished = train(arguments, (option, str(asked)), seed, out / name)
        reached = figures(wished)
        if name == "budget":
            limit = 100.0 * last_of(wished, "target")
            accuracy = held_out_accuracy(wished)
            figure = (limit, accuracy, max(0.0, limit - accuracy))
        else:
            state = reached[name]
            if "accuracy_percent" in wished:
                # The report on texts leaves out what nothing reads.
                state = last_of(wished, "target_state")
            missed = 100.0 * abs(state / asked - 1.0)
            figure = (asked, state, missed)
        found[name] = (
            *figure,
            *(
                x[key]
                for key in ("accuracy", "nonzero_ratio")
                for x in (reached, recipe)
            ),
        )
    return found


def cells(name: str, values: np.ndarray) -> list[str]:
    """Write a row of the table; `values` has one row for each seed."""
    digits = 2 if name == "budget" else 1 if name == "nonzero_ratio" else 0
    unit = " points" if name == "budget" else "%"
    asked, reached, missed, *others = values.T
    return [
        "accuracy, %" if name == "budget" else name,
        common.spread(asked, digits),
        common.spread(reached, digits),
        f"{missed.max():.2f}{unit}",
        *(
            common.spread(x, d)
            for x, d in zip(others, (2, 2, 1, 1), strict=True)
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = parse_arguments(arguments)
    out = common.prepare_folder(
        parsed.out or Path("runs") / f"targets-{parsed.network}"
    ).resolve()
    seeds = [rows_of(parsed, x, out / f"seed{x}") for x in parsed.seeds]
    print(common.describe_device())
    rows = [
        cells(name, np.array([rows[name] for rows in seeds]))
        for name in seeds[0]
    ]
    table = common.markdown(HEADER, rows)
    print(table)
    (out / "table.md").write_text(table + "\n")


if __name__ == "__main__":
    main()
