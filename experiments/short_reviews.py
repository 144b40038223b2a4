"""Short reviews, on which no recipe was tuned: a size or a budget.

    python -m experiments.short_reviews
    python -m experiments.short_reviews --dataset synthetic

The network of `examples/sentiment.py` reads the shortest of the IMDB reviews:
plain, with the full KL (`KLAnnealing`), and by `keras_vd.compress` with a
budget of a point of accuracy on reviews held out. Prints a table of the test
set, and writes it to --out as results.json.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import rich.console
import rich.table

import keras_vd
from experiments import common
from experiments.imdb import data as imdb_data

UNITS, RATE, BATCH_SIZE = 16, 0.01, 64
GROUPS = ("vocabulary",)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", choices=("imdb", "synthetic"), default="imdb")
    add("--data", type=Path, metavar="FILE.npz", help="texts of your own")
    add("--texts", type=int, default=9000, help="the shortest to train on")
    add("--vocabulary", type=int, default=5000)
    add("--length", type=int, default=100, help="words read, the last ones")
    add("--epochs", type=int, default=30, help="but of compress")
    add("--budget", type=float, default=0.01)
    add("--seed", type=int, default=0)
    add("--out", type=Path, help="default: runs/short-reviews-seedSEED")
    parsed = parser.parse_args(arguments)
    minima = dict.fromkeys(("texts", "vocabulary", "length", "epochs"), 1)
    common.check_minima(parsed, minima | {"seed": 0})
    common.check_positive(parsed, "budget")
    return parsed


def shortest(x: np.ndarray, y: np.ndarray, texts: int) -> Any:
    """The texts of the fewest words, and their labels, in the same order."""
    lengths = (x != imdb_data.PADDING).sum(axis=1)
    chosen = np.sort(np.argsort(lengths, kind="stable")[:texts])
    return x[chosen], y[chosen]


def build(vocabulary: int, length: int) -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((length,), dtype="int32"),
            keras.layers.Embedding(vocabulary, UNITS, mask_zero=True),
            keras.layers.LSTM(UNITS),
            keras.layers.Dense(1),
        ]
    )
    compile_model(model)
    return model


def compile_model(model: keras.Model) -> None:
    model.compile(
        keras.optimizers.Adam(RATE),
        keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy(threshold=0.0)],
    )


def run(parsed: argparse.Namespace) -> dict[str, Any]:
    """Train all of them; returns what is written."""
    out = common.prepare_folder(
        parsed.out or Path("runs", f"short-reviews-seed{parsed.seed}")
    )
    keras.utils.set_random_seed(parsed.seed)
    # All words of a text, so that the shortest ones can be told.
    texts = imdb_data.load(
        *(parsed.dataset, parsed.data, parsed.vocabulary, 10 * parsed.length),
        parsed.seed,
    )
    splits = {
        name: shortest(*pair, parsed.texts)
        for name, pair in {
            "train": (texts.x_train, texts.y_train),
            "valid": (texts.x_valid, texts.y_valid),
            "test": (texts.x_test, texts.y_test),
        }.items()
    }
    splits = {
        name: (imdb_data.tail(x, parsed.length), y)
        for name, (x, y) in splits.items()
    }
    results = {
        "arguments": {k: str(v) for k, v in vars(parsed).items()},
        "texts": {name: len(y) for name, (_, y) in splits.items()},
        "rows": rows(splits, len(texts.words), parsed),
    }
    common.write_json(out / "results.json", results)
    show(results)
    print(f"written to {out}")
    return results


def rows(
    splits: dict[str, Any], vocabulary: int, parsed: argparse.Namespace
) -> list[dict[str, Any]]:
    """Train each network; returns a row for each."""
    train, test = splits["train"], splits["test"]
    settings = {"batch_size": BATCH_SIZE, "verbose": 0}
    found = []

    def add(name: str, model: keras.Model, ratio: float, start: float) -> None:
        accuracy = model.evaluate(*test, verbose=0, return_dict=True)
        found.append(
            {
                "network": name,
                "accuracy": 100.0 * float(accuracy["binary_accuracy"]),
                "nonzero_ratio": ratio,
                "parameters": model.count_params(),
                "seconds": time.perf_counter() - start,
            }
        )

    start = time.perf_counter()
    plain = build(vocabulary, parsed.length)
    best = keras.callbacks.EarlyStopping(
        "val_binary_accuracy",
        mode="max",
        patience=parsed.epochs,
        restore_best_weights=True,
    )
    plain.fit(
        *train,
        epochs=parsed.epochs,
        validation_data=splits["valid"],
        callbacks=[best],
        **settings,
    )
    add("plain, best epoch", plain, 1.0, start)

    start = time.perf_counter()
    untrained = build(vocabulary, parsed.length)
    model = keras_vd.to_variational(untrained, groups=GROUPS, verbose=0)
    compile_model(model)
    annealing = keras_vd.callbacks.KLAnnealing(len(train[0]), verbose=0)
    model.fit(*train, epochs=parsed.epochs, callbacks=[annealing], **settings)
    ratio = keras_vd.prune(model).nonzero_ratio
    small = keras_vd.shrink(keras_vd.to_deterministic(model), verbose=0)
    compile_model(small)
    add("full KL", small, ratio, start)

    start = time.perf_counter()
    small, report = keras_vd.compress(
        plain,
        *train,
        splits["valid"],
        budget=parsed.budget,
        groups=GROUPS,
        seed=parsed.seed,
        **settings,
    )
    add(f"budget {parsed.budget:g}", small, report.nonzero_ratio, start)
    return found


def show(results: dict[str, Any]) -> None:
    table = rich.table.Table()
    headers = ("network", "accuracy %", "nonzero ratio", "parameters", "s")
    for header in headers:
        table.add_column(header)
    for row in results["rows"]:
        table.add_row(
            row["network"],
            f"{row['accuracy']:.2f}",
            f"{row['nonzero_ratio']:.1f}",
            f"{row['parameters']:,}",
            f"{row['seconds']:.0f}",
        )
    rich.console.Console().print(table)


if __name__ == "__main__":
    run(parse_arguments())
