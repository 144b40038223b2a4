"""Classification where the data shifts: which method knows that it does?

    python -m experiments.shifts
    TFDS_DATA_DIR=... python -m experiments.shifts --dataset digits mnist imdb

Networks learn digits and meet rotated ones and noise, or they learn movie
reviews and meet them with their words shuffled, or random words. Prints for
each data set a table of accuracy, likelihood, calibration and AUROC, what is
lost by leaving the posterior of a sparse network, and which method is first in
each column. Hyper-parameters are chosen by the first seed on held-out training
examples; each figure is of test examples that are looked at once. Results are
written to --output after each network; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras

from experiments import common
from experiments.shifts import data, methods, tables
from experiments.shifts.recipes import CANDIDATES, Recipe


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.shifts",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", nargs="+", choices=data.DATASETS, default=["digits"])
    add(
        "--methods",
        nargs="+",
        choices=methods.METHODS,
        default=list(methods.METHODS),
        help="plain: also at a temperature, and the ensemble",
    )
    add("--seeds", type=int, default=3, help="number of runs, of seeds 0, 1...")
    add("--epochs", type=int, help="of every network; default: the recipes'")
    add("--num-samples", type=int, default=30, help="draws of a prediction")
    add("--members", type=int, default=5, help="networks of the ensemble")
    add("--limit", type=int, help="use only that many training examples")
    add("--output", type=Path, default=Path("runs", "shifts.json"))
    add("--markdown", action="store_true", help="print tables as Markdown")
    parsed = parser.parse_args(arguments)
    minima = dict.fromkeys(("seeds", "epochs", "limit"), 1)
    minima |= dict.fromkeys(("num_samples", "members"), 2)
    common.check_minima(parsed, minima)
    return parsed


def read(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows that an earlier run with the same settings has written."""
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text())
        rows, others = content["rows"], content["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        common.fail(f"--output {path} is no file of this command: {error!r}")
    if others != settings:
        common.fail(
            f"--output {path} was written with {others}, not with {settings}"
        )
    return rows


def write(path: Path, content: dict[str, Any]) -> None:
    """Write results; an interruption leaves the old ones."""
    new = path.with_suffix(".part")
    common.write_json(new, content)
    new.replace(path)


def candidates_for(
    rows: list[dict[str, Any]], dataset: str, method: str
) -> tuple[Recipe, ...]:
    """The recipe that the first seed has chosen, or all to choose from."""
    for row in rows:
        if (row["dataset"], row["method"], row["seed"]) == (dataset, method, 0):
            return (Recipe(**row["recipe"]),)
    return CANDIDATES[dataset][method]


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure what is not in the file yet; print the tables."""
    path = arguments.output
    common.prepare_folder(path.parent)
    names = ("epochs", "num_samples", "members", "limit")
    values = {name: getattr(arguments, name) for name in names}
    rows = read(path, values)
    settings = methods.Settings(
        arguments.num_samples, arguments.members, arguments.epochs
    )
    print(common.describe_device())
    for dataset in arguments.dataset:
        problem = data.load(dataset, arguments.limit)
        # By seed, so that an interrupted run has every method.
        for seed in range(arguments.seeds):
            for method in arguments.methods:
                key = (dataset, method, seed)
                found = [
                    tuple(row[name] for name in ("dataset", "method", "seed"))
                    for row in rows
                ]
                if key in found:
                    continue
                print(f"{dataset}, {method}, seed {seed}", flush=True)
                candidates = candidates_for(rows, dataset, method)
                row = methods.run(problem, method, candidates, settings, seed)
                rows.append(row | {"device": common.describe_device()})
                write(path, {"settings": values, "rows": rows})
                print(f"  {row['seconds']:.0f} s", flush=True)
                keras.utils.clear_session()
                gc.collect()
    wanted = [
        row
        for row in rows
        if row["dataset"] in arguments.dataset
        and row["method"] in arguments.methods
        and row["seed"] < arguments.seeds
    ]
    tables.show(wanted, arguments.markdown)
    print(f"written to {path}")
    return rows


if __name__ == "__main__":
    run(parse_arguments())
