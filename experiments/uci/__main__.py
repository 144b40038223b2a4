"""Compare regressions on the nine UCI data sets with what is published.

    UCI_DATA_DIR=... KERAS_BACKEND=jax python -m experiments.uci
    python -m experiments.uci --data DIR --data-sets boston --methods gaussian

Networks of one hidden layer of 50 units (100 for protein), 20 official splits
(5 for protein), all splits of a data set in one model. Each split chooses its
hyper-parameters on a fifth of its training rows. What --output holds already is
not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from experiments import common
from experiments.uci import data, methods, networks, tables


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.uci",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        default=os.environ.get("UCI_DATA_DIR"),
        help="folder of NAME.npz; default: the variable UCI_DATA_DIR",
    )
    names = tuple(data.FILES)
    add("--data-sets", nargs="+", choices=names, default=names)
    add(
        "--methods",
        nargs="+",
        choices=networks.METHODS,
        default=networks.METHODS,
    )
    add("--splits", type=int, help="only the first so many; default: all")
    add("--epochs", type=float, default=1.0, help="factor of the recipes'")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("runs/uci/results.json"))
    add("--markdown", action="store_true", help="tables for documents")
    parsed = parser.parse_args(arguments)
    common.check_minima(parsed, {"splits": 1, "seed": 0})
    common.check_positive(parsed, "epochs")
    if parsed.data is None:
        common.fail("--data, or the variable UCI_DATA_DIR, must be given")
    return parsed


def read_cells(arguments: argparse.Namespace) -> dict[str, Any]:
    """Results that are there already, of the same options."""
    settings = {x: getattr(arguments, x) for x in ("splits", "epochs", "seed")}
    file = arguments.output
    if not file.exists():
        return {"settings": settings, "cells": {}}
    try:
        results: dict[str, Any] = json.loads(file.read_text())
        known, _ = results["settings"], results["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        common.fail(f"--output {file} is no result of this: {error!r}")
    if known != settings:
        common.fail(f"--output {file} is of other options: {known}")
    return results


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    common.prepare_folder(arguments.output.parent)
    results = read_cells(arguments)
    results["device"] = f"{common.describe_device()}, {platform.machine()}"
    print(results["device"])
    cells = results["cells"]
    for name in arguments.data_sets:
        dataset = data.load(Path(arguments.data), name, arguments.splits)
        for method in arguments.methods:
            key = f"{name}/{method}"
            if key in cells:
                continue
            grid = methods.grid_of(method, name, arguments.epochs)
            cells[key] = methods.run(method, dataset, grid, arguments.seed)
            common.write_json(arguments.output, results)
            print(describe(key, cells[key]), flush=True)
    tables.show(cells, arguments.markdown)
    return results


def describe(key: str, cell: dict[str, Any]) -> str:
    """One line on what was just run."""
    candidates = np.round(cell["candidates"], 3).tolist()
    return (
        f"{key}: NLL {tables.summary(cell['nll'], 3)}, "
        f"RMSE {tables.summary(cell['rmse'], 4)}, "
        f"coverage {np.mean(cell['coverage']):.3f}, "
        f"{cell['seconds']:.0f} s; held-out NLL of candidates {candidates}"
    )


if __name__ == "__main__":
    run(parse_arguments())
