"""Digits by `keras_vd.compress` with no option: how small, how right, how fast.

    KERAS_BACKEND=torch python -m experiments.bare_defaults --seeds 0 1 2

A network of 300 units, untrained and trained for 20 epochs, goes through
`keras_vd.compress(model, x, y)`, whose wish is then to lose no more than a
point of accuracy on digits held out. Prints the accuracy of a fifth of the
digits, which no training has seen, and writes it to --out as results.json.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_vd
from experiments import common

EPOCHS = 20  # of the trained one
TEST_DIGITS = 360
HEADER = (
    *("seed", "started", "accuracy %, start", "small", "nonzero ratio"),
    *("parameters", "times fewer", "seconds"),
)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[0])
    add(
        "--epochs", type=int, help="of all trainings; default: that of compress"
    )
    add("--out", type=Path, default=Path("runs", "bare-defaults"))
    parsed = parser.parse_args(arguments)
    if min(parsed.seeds) < 0:
        parser.error(f"--seeds must be at least 0, got {min(parsed.seeds)}")
    if parsed.epochs is not None:
        common.check_minima(parsed, {"epochs": 4})
    return parsed


def digits(seed: int) -> Any:
    """`((x, y), (x_test, y_test))`, as many of each digit in both."""
    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(
        x / 16.0, y, test_size=TEST_DIGITS, random_state=seed, stratify=y
    )
    return (x, y), (x_test, y_test)


def build() -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(300, "relu"),
            keras.layers.Dense(10, "softmax"),
        ]
    )
    model.compile(
        "adam", "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return model


def row(seed: int, is_trained: bool, epochs: int | None) -> dict[str, Any]:
    """Compress one network; returns what is written of it."""
    train, test = digits(seed)
    keras.utils.set_random_seed(seed)
    model = build()
    if is_trained:
        model.fit(*train, epochs=EPOCHS, verbose=0)
    start = time.perf_counter()
    small, report = keras_vd.compress(
        model, *train, epochs=epochs, seed=seed, verbose=0
    )
    seconds = time.perf_counter() - start
    before, after = (
        100.0 * x.evaluate(*test, verbose=0, return_dict=True)["accuracy"]
        for x in (model, small)
    )
    return {
        "seed": seed,
        "started": "trained" if is_trained else "untrained",
        "accuracy_before": before,
        "accuracy": after,
        "nonzero_ratio": report.nonzero_ratio,
        "parameters": small.count_params(),
        "times_fewer": model.count_params() / small.count_params(),
        "seconds": seconds,
    }


def cells(row: dict[str, Any]) -> list[str]:
    return [
        str(row["seed"]),
        row["started"],
        f"{row['accuracy_before']:.2f}",
        f"{row['accuracy']:.2f}",
        f"{row['nonzero_ratio']:.1f}",
        f"{row['parameters']:,}",
        f"{row['times_fewer']:.2f}",
        f"{row['seconds']:.0f}",
    ]


def run(parsed: argparse.Namespace) -> list[dict[str, Any]]:
    """Compress all of them; returns what is written."""
    out = common.prepare_folder(parsed.out)
    rows = [
        row(seed, is_trained, parsed.epochs)
        for seed in parsed.seeds
        for is_trained in (False, True)
    ]
    results = {"seeds": parsed.seeds, "epochs": parsed.epochs, "rows": rows}
    common.write_json(out / "results.json", results)
    print(common.markdown(HEADER, map(cells, rows)))
    print(f"written to {out}")
    return rows


if __name__ == "__main__":
    run(parse_arguments())
