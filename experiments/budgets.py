"""Data on which no recipe was tuned: as small as a budget allows.

    python -m experiments.budgets
    TFDS_DATA_DIR=... python -m experiments.budgets --dataset reviews cifar10

A small network learns scikit-learn's breast cancer data (30 numbers), the
shortest of the IMDB reviews (as `examples/sentiment.py` does) or a part of
CIFAR-10: plain, with the full KL (`KLAnnealing`), and by `keras_vd.compress`
with a budget of a point of accuracy on examples held out. Prints a table of the
test sets, and writes it to --out as results.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from keras import layers

import keras_vd
from experiments import common
from experiments.imdb import data as imdb_data
from experiments.mnist import data as image_data

DATASETS = ("cancer", "reviews", "synthetic", "cifar10")
UNITS, BATCH_SIZE, METRIC = 16, 64, "accuracy"
HEADER = (
    *("data", "network", "accuracy %", "nonzero ratio", "parameters"),
    "seconds",
)

Pair = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Data and a network for it.

    Attributes:
        train: Inputs and labels to train on.
        valid: Those held out, for the best epoch and the budget.
        test: Those that a row is about.
        layers: Makes the network's layers; its outputs are logits, of two
            classes one.
        rate: Of Adam.
        groups: What goes besides weights.
    """

    train: Pair
    valid: Pair
    test: Pair
    layers: Callable[[], list[layers.Layer]]
    rate: float
    groups: tuple[str, ...] = ()

    def compiled(self, model: keras.Model) -> keras.Model:
        loss: Any = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        metric: Any = keras.metrics.SparseCategoricalAccuracy(METRIC)
        if model.output_shape[-1] == 1:
            loss = keras.losses.BinaryCrossentropy(from_logits=True)
            metric = keras.metrics.BinaryAccuracy(METRIC, threshold=0.0)
        model.compile(keras.optimizers.Adam(self.rate), loss, metrics=[metric])
        return model

    def build(self) -> keras.Model:
        inputs = self.train[0]
        dtype = "int32" if inputs.dtype.kind == "i" else "float32"
        shape = keras.Input(inputs.shape[1:], dtype=dtype)
        return self.compiled(keras.Sequential([shape, *self.layers()]))


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", nargs="+", choices=DATASETS, default=["cancer"])
    add("--data", type=Path, metavar="FILE.npz", help="texts of your own")
    add("--texts", type=int, default=9000, help="the shortest to train on")
    add("--vocabulary", type=int, default=5000)
    add("--length", type=int, default=100, help="words read, the last ones")
    add("--images", type=int, default=10000, help="of CIFAR-10 to train on")
    add("--epochs", type=int, default=30, help="but of compress")
    add("--budget", type=float, default=0.01)
    add("--seeds", type=int, nargs="+", default=[0])
    add("--out", type=Path, default=Path("runs", "budgets"))
    add("--markdown", action="store_true", help="print the table as Markdown")
    parsed = parser.parse_args(arguments)
    names = ("texts", "vocabulary", "length", "images", "epochs")
    common.check_minima(parsed, dict.fromkeys(names, 1))
    if min(parsed.seeds) < 0:
        common.fail("--seeds must be at least 0")
    common.check_positive(parsed, "budget")
    return parsed


def cancer(parsed: argparse.Namespace, seed: int) -> Problem:
    """Three fifths to train on, one to hold out and one to test, by seed."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    x, y = load_breast_cancer(return_X_y=True)
    rows, test = train_test_split(
        np.arange(len(y)), test_size=0.2, random_state=seed, stratify=y
    )
    train, valid = train_test_split(
        rows, test_size=0.25, random_state=seed, stratify=y[rows]
    )
    x = ((x - x[train].mean(axis=0)) / x[train].std(axis=0)).astype("float32")
    pairs = ((x[part], y[part]) for part in (train, valid, test))
    return Problem(
        *pairs,
        lambda: [
            layers.Dense(100, activation="relu"),
            layers.Dense(50, activation="relu"),
            layers.Dense(1),
        ],
        rate=0.003,
    )


def shortest(x: np.ndarray, y: np.ndarray, texts: int) -> Pair:
    """The texts of the fewest words, and their labels, in the same order."""
    lengths = (x != imdb_data.PADDING).sum(axis=1)
    chosen = np.sort(np.argsort(lengths, kind="stable")[:texts])
    return x[chosen], y[chosen]


def reviews(name: str, parsed: argparse.Namespace, seed: int) -> Problem:
    """The shortest texts, read by the network of the example."""
    # All words of a text, so that the shortest ones can be told.
    texts = imdb_data.load(
        *(name, parsed.data, parsed.vocabulary, 10 * parsed.length), 0
    )
    pairs = (
        shortest(*pair, parsed.texts)
        for pair in (
            (texts.x_train, texts.y_train),
            (texts.x_valid, texts.y_valid),
            (texts.x_test, texts.y_test),
        )
    )
    words = len(texts.words)
    return Problem(
        *((imdb_data.tail(x, parsed.length), y) for x, y in pairs),
        lambda: [
            layers.Embedding(words, UNITS, mask_zero=True),
            layers.LSTM(UNITS),
            layers.Dense(1),
        ],
        rate=0.01,
        groups=("vocabulary",),
    )


def cifar10(parsed: argparse.Namespace, seed: int) -> Problem:
    """The first images, and a fifth as many of the last ones to hold out."""
    images = image_data.load("cifar10", None)
    held_out = images.held_out(-(-parsed.images // 5))
    training = held_out.limited(parsed.images)
    return Problem(
        (training.x_train, training.y_train),
        (held_out.x_test, held_out.y_test),
        (images.x_test, images.y_test),
        lambda: [
            layers.Conv2D(16, 5, strides=2, activation="relu"),
            layers.Conv2D(32, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10),
        ],
        rate=0.001,
    )


PROBLEMS: dict[str, Callable[[argparse.Namespace, int], Problem]] = {
    "cancer": cancer,
    "reviews": functools.partial(reviews, "imdb"),
    "synthetic": functools.partial(reviews, "synthetic"),
    "cifar10": cifar10,
}


def rows(
    problem: Problem, epochs: int, budget: float, seed: int
) -> list[dict[str, Any]]:
    """Train each network; returns a row for each."""
    keras.utils.set_random_seed(seed)
    train, valid = problem.train, problem.valid
    settings = {"batch_size": BATCH_SIZE, "verbose": 0}
    found = []

    def add(name: str, model: keras.Model, ratio: float, start: float) -> None:
        measured = model.evaluate(*problem.test, verbose=0, return_dict=True)
        found.append(
            {
                "network": name,
                "accuracy": 100.0 * float(measured[METRIC]),
                "nonzero_ratio": ratio,
                "parameters": model.count_params(),
                "seconds": time.perf_counter() - start,
            }
        )

    start = time.perf_counter()
    plain = problem.build()
    best = keras.callbacks.EarlyStopping(
        f"val_{METRIC}", mode="max", patience=epochs, restore_best_weights=True
    )
    plain.fit(
        *train,
        epochs=epochs,
        validation_data=valid,
        callbacks=[best],
        **settings,
    )
    add("plain, best epoch", plain, 1.0, start)

    start = time.perf_counter()
    model = problem.compiled(
        keras_vd.to_variational(
            problem.build(), groups=problem.groups, verbose=0
        )
    )
    annealing = keras_vd.callbacks.KLAnnealing(len(train[0]), verbose=0)
    model.fit(*train, epochs=epochs, callbacks=[annealing], **settings)
    ratio = keras_vd.prune(model).nonzero_ratio
    small = keras_vd.shrink(keras_vd.to_deterministic(model), verbose=0)
    add("full KL", problem.compiled(small), ratio, start)

    start = time.perf_counter()
    small, report = keras_vd.compress(
        plain,
        *train,
        valid,
        budget=budget,
        monitor=METRIC,
        groups=problem.groups,
        seed=seed,
        **settings,
    )
    add(f"budget {budget:g}", small, report.nonzero_ratio, start)
    return found


def run(parsed: argparse.Namespace) -> list[dict[str, Any]]:
    """Train all of them; returns what is written."""
    common.prepare_folder(parsed.out)
    results = []
    for dataset in parsed.dataset:
        for seed in parsed.seeds:
            problem = PROBLEMS[dataset](parsed, seed)
            parts = (problem.train, problem.valid, problem.test)
            counts = ", ".join(str(len(labels)) for _, labels in parts)
            print(
                f"{dataset}, seed {seed}: {counts} to train on, hold out, test",
                flush=True,
            )
            for row in rows(problem, parsed.epochs, parsed.budget, seed):
                results.append({"dataset": dataset, "seed": seed, **row})
            content = {
                "device": common.describe_device(),
                "arguments": {k: str(v) for k, v in vars(parsed).items()},
                "rows": results,
            }
            common.write_json(parsed.out / "results.json", content)
    show(results, parsed.markdown)
    print(f"written to {parsed.out}")
    return results


def show(results: list[dict[str, Any]], is_markdown: bool) -> None:
    """Print means over seeds, with standard deviations."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in results:
        cells.setdefault((row["dataset"], row["network"]), []).append(row)
    digits = {"accuracy": 2, "nonzero_ratio": 1, "parameters": 0, "seconds": 0}
    table = [
        [
            *names,
            *(common.spread([x[k] for x in own], digits[k]) for k in digits),
        ]
        for names, own in cells.items()
    ]
    if is_markdown:
        print(common.markdown(HEADER, table))
    else:
        common.print_table("Budgets", HEADER, table, width=110)


if __name__ == "__main__":
    run(parse_arguments())
