"""Compare methods on the 784-500-300-10 network, the course table, or LeNet-5.

    python -m experiments.compare_methods --dataset digits
    TFDS_DATA_DIR=... python -m experiments.compare_methods --seeds 0 1 2
    TFDS_DATA_DIR=... python -m experiments.compare_methods --network lenet-5

One row per method: test accuracy, units that are left, memory, weights,
parameters and multiplications after `keras_vd.shrink`, and how much faster the
SavedModel of the shrunk network is than that of the dense one, on one thread.
Writes table.md, accuracy_against_memory.png and one folder per method and seed
to --out. `--read` makes the table out of the folders of earlier runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import keras_vd
from experiments import common, compare_tables, pruning_baselines
from experiments.mnist import data as mnist_data
from experiments.mnist import models as mnist_models
from experiments.mnist import recipes as mnist_recipes
from experiments.mnist import training as mnist_training

METHODS = (
    *("none", "dropout", "gaussian_dropout", "vd", "sparse_vd", "ard"),
    *mnist_models.GATES,
    *pruning_baselines.METHODS,
)
ROOT = Path(__file__).resolve().parents[1]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", choices=("mnist", "digits"), default="mnist")
    add("--network", choices=("mlp", "lenet-5"), default="mlp")
    add("--methods", nargs="+", choices=METHODS, default=METHODS)
    add("--seeds", nargs="+", type=int, default=[0])
    add("--epochs", type=int, help="of every phase; default: the recipes'")
    common.add_image_options(parser)
    add("--out", type=Path, help="default: runs/compare-NETWORK-DATA")
    add("--read", nargs="+", type=Path, help="results.json of earlier runs")
    parsed = parser.parse_args(arguments)
    common.check_minima(parsed, {"epochs": 1, "limit": 1, "holdout": 1})
    common.check_minima(parsed, {"shift": 0})
    if min(parsed.seeds) < 0:
        common.fail(f"--seeds must be at least 0, not {min(parsed.seeds)}")
    baselines = set(pruning_baselines.METHODS) & set(parsed.methods)
    if baselines and "sparse_vd" not in parsed.methods:
        common.fail(
            f"--methods {' '.join(sorted(baselines))} prune down to as many "
            "weights as sparse_vd keeps: add sparse_vd"
        )
    return parsed


class Comparison:
    """All methods with one seed; they share the networks they start from."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        images: mnist_data.Images,
        seed: int,
    ) -> None:
        self.images = images
        self.network = arguments.network
        self.seed = seed
        self.wishes = {
            name: value
            for name, value in (
                ("epochs", arguments.epochs),
                ("shift", arguments.shift),
            )
            if value is not None
        }
        self.starts: dict[str, keras.Sequential | None] = {}
        self.kept_by_sparse_vd = 0

    def recipe(self, method: str) -> mnist_recipes.Recipe:
        recipe = mnist_recipes.get(
            self.network, method, len(self.images.x_train)
        )
        wishes = dict(self.wishes)
        if "epochs" in wishes:
            for phase in ("pretrain_epochs", "finetune_epochs"):
                wishes[phase] = min(getattr(recipe, phase), wishes["epochs"])
        return recipe.changed(**wishes)

    def start(self, recipe: mnist_recipes.Recipe) -> keras.Sequential | None:
        """The network to start from, trained once for all who share it."""
        if recipe.first is not None:
            key = json.dumps(dataclasses.asdict(recipe.first))
        else:
            key = f"{recipe.pretrain_epochs} epochs"
        if key not in self.starts:
            self.starts[key] = mnist_training.pretrain(
                self.network, self.images, recipe
            )
        return self.starts[key]

    def train(self, method: str, results: dict[str, Any]) -> keras.Sequential:
        """The plain network that a method ends with."""
        recipe = self.recipe(method)
        results["recipe"] = dataclasses.asdict(recipe)
        # Whatever ran before, a method's result depends on the seed alone.
        keras.utils.set_random_seed(self.seed)
        start = self.start(recipe)
        keras.utils.set_random_seed(self.seed)
        began = time.perf_counter()
        if method in pruning_baselines.METHODS:
            final = pruning_baselines.METHODS[method](
                start, self.images, recipe, self.kept_by_sparse_vd
            )
        elif method not in mnist_models.VARIATIONAL:
            final = mnist_training.train_plain(
                self.network, self.images, recipe, method, recipe.epochs
            )
        else:
            model, results["history"], _ = mnist_training.train_variational(
                self.network, self.images, recipe, method, start
            )
            if method == "beta_bernoulli":
                key = json.dumps(dataclasses.asdict(recipe))
                self.starts[key] = model
            keras_vd.prune(model, recipe.prune_threshold(method))
            results["accuracy_before_finetuning"] = self.accuracy(model)
            results.update(gate_figures(model, self.images))
            final = keras_vd.to_deterministic(model)
            mnist_training.finetune(final, self.images, recipe)
        results["seconds"] = time.perf_counter() - began
        if method == "sparse_vd":
            self.kept_by_sparse_vd = count_nonzero(final)
        return final

    def kernels_at_first(self) -> list[keras.Variable]:
        """Kernels of the network that nothing has been removed from."""
        plain = mnist_models.build(
            self.network,
            "none",
            self.images.x_train.shape[1:],
            self.images.classes,
            self.recipe("none"),
        )
        return pruning_baselines.kernels(plain)

    def accuracy(self, model: keras.Model) -> float:
        logits = mnist_training.predict(model, self.images)
        return 100.0 - mnist_training.error_percent(logits, self.images.y_test)


def gate_figures(
    model: keras.Sequential, images: mnist_data.Images
) -> dict[str, Any]:
    """What gates alone can tell, for those that depend on the input."""
    gates = [
        layer
        for layer in model.layers
        if isinstance(layer, keras_vd.layers.DependentBetaBernoulliDropout)
    ]
    if not gates:
        return {}
    reader = keras.Model(model.inputs, [gate.input for gate in gates])
    inputs = reader.predict(images.x_test, batch_size=1000, verbose=0)
    active = [
        gate.active_per_example(x)
        for gate, x in zip(gates, inputs, strict=True)
    ]
    return {
        "n_active": [gate.n_active for gate in gates],
        "active_per_example": active,
    }


def count_nonzero(model: keras.Model) -> int:
    return sum(
        int(np.count_nonzero(keras.ops.convert_to_numpy(kernel)))
        for kernel in pruning_baselines.kernels(model)
    )


def measure(
    final: keras.Sequential,
    comparison: Comparison,
    results: dict[str, Any],
    folder: Path,
) -> None:
    """Shrink a network, and add the figures of its row to `results`."""
    images = comparison.images
    shrunk = common.shrink(
        final, images.x_test, folder / "shrunk.keras", results
    )
    # `final` may have been shrunk while it was trained.
    whole = [kernel.shape for kernel in comparison.kernels_at_first()]
    units = [shape[-2] for shape in whole]
    weights = sum(map(math.prod, whole))
    arrays = [
        keras.ops.convert_to_numpy(kernel)
        for kernel in pruning_baselines.kernels(final)
    ]
    # Input units, or channels, are on the last axis but one.
    rows = [
        np.moveaxis(array, -2, 0).reshape(array.shape[-2], -1)
        for array in arrays
    ]
    active = [int(np.sum(np.any(array != 0, axis=1))) for array in rows]
    active = results.setdefault("n_active", active)
    left = count_nonzero(shrunk)
    results.update(
        accuracy=comparison.accuracy(final),
        units=units,
        memory_percent=[
            100.0 * a / n for a, n in zip(active, units, strict=True)
        ],
        weights=weights,
        nonzero=left,
        nonzero_ratio=weights / left,
    )
    final.save(folder / "pruned.keras")


def add_latencies(runs: dict[str, dict[str, Any]], folder: Path) -> None:
    """Time the SavedModels of all shrunk networks against the dense one.

    In a process of its own, in which TensorFlow has one thread.
    """
    files = [str(folder / method / "shrunk.keras") for method in runs]
    report = folder / "latency.json"
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    command = [sys.executable, "-m", "benchmarks.latency", *files]
    command += ["--runtimes", "tensorflow", "--json", str(report)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        print(f"no latencies: {done.stderr.strip().splitlines()[-1]}")
        return
    rows = json.loads(report.read_text())["rows"]
    for method, file in zip(runs, files, strict=True):
        runs[method]["latency"] = [
            {name: row[name] for name in ("batch", "ms", "speedup")}
            for row in rows
            if row["model"] == file and row["error"] is None
        ]
        common.write_json(folder / method / "results.json", runs[method])


def compare(
    arguments: argparse.Namespace, images: mnist_data.Images, out: Path
) -> None:
    """Train with every method and seed, and write a results.json each."""
    for seed in arguments.seeds:
        folder = out / f"seed{seed}"
        comparison = Comparison(arguments, images, seed)
        runs: dict[str, dict[str, Any]] = {}
        for method in METHODS:
            if method not in arguments.methods:
                continue
            print(f"== {method}, seed {seed}")
            common.prepare_folder(folder / method)
            results: dict[str, Any] = {
                "data": arguments.dataset,
                "model": arguments.network,
                "method": method,
                "seed": seed,
                "training_images": len(images.x_train),
                "test_images": len(images.x_test),
                "holdout": arguments.holdout,
                "device": common.describe_device(),
            }
            final = comparison.train(method, results)
            measure(final, comparison, results, folder / method)
            common.write_json(folder / method / "results.json", results)
            runs[method] = results
        if "none" in runs:
            add_latencies(runs, folder)


def main(arguments: argparse.Namespace) -> None:
    out = common.prepare_folder(
        arguments.out
        or Path("runs") / f"compare-{arguments.network}-{arguments.dataset}"
    ).resolve()
    files = arguments.read
    if files is None:
        images = mnist_data.load(arguments.dataset, None)
        if arguments.limit:
            images = images.limited(arguments.limit)
        if arguments.holdout:
            images = images.held_out(arguments.holdout)
        print(common.describe_device())
        compare(arguments, images, out)
        files = [
            out / f"seed{seed}" / method / "results.json"
            for seed in arguments.seeds
            for method in arguments.methods
        ]
    groups = common.read_runs(files, "nonzero_ratio")
    rows = sorted(
        groups.values(), key=lambda runs: METHODS.index(runs[0]["method"])
    )
    compare_tables.show(rows, out)


if __name__ == "__main__":
    main(parse_arguments())
