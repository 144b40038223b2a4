"""The MNIST networks of BMRS, pruned by log-normal gates and fine-tuned.

    python -m experiments.bmrs --network lenet5 --seeds 10
    python -m experiments.bmrs --network mlp --seeds 10

The networks of Wright, Igel and Selvan 2024 (arXiv:2406.01345) with a gate
behind each hidden layer, on images of 32x32. A plain network is trained, then
one with gates from its weights, and what is left of that is fine-tuned. Prints
how many parameters are removed and the accuracies, means and standard
deviations over the seeds, and writes results.json to --out.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import rich.console
import rich.table
from keras import layers

import keras_vd
from experiments import common
from experiments.mnist import data as mnist_data
from experiments.mnist import models as mnist_models
from experiments.mnist import recipes as mnist_recipes
from experiments.mnist import training as mnist_training
from keras_vd.layers import LogNormalDropout

SIZE = 32
COLUMNS = {
    "removed_percent": "parameters removed %",
    "shrunk_percent": "removed by `shrink` %",
    "accuracy_dense": "accuracy %, plain",
    "accuracy_pruned": "pruned",
    "accuracy": "fine-tuned",
    "seconds": "seconds",
}
# The defaults of the paper's released code.
MLP_UNITS, MLP_LAYERS = 50, 6
LENET5 = mnist_recipes.Recipe(
    pretrain_epochs=5,
    epochs=10,
    finetune_epochs=30,
    batch_size=500,
    learning_rate=4e-3,
    plain_learning_rate=2e-3,
    finetune_learning_rate=2e-3,
    warmup_epochs=2,
    shift=1,
    gate_factor=10.0,
    kl_scales=(150.0, 150.0, 250.0, 100.0),
)
# Looked for with --holdout 5000.
RECIPES = {
    "lenet5": LENET5,
    "mlp": dataclasses.replace(
        LENET5,
        pretrain_epochs=30,
        epochs=40,
        finetune_epochs=110,
        warmup_epochs=7,
        kl_scales=(260.0, *(24.0,) * (MLP_LAYERS - 1)),
    ),
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--network", choices=tuple(RECIPES), default="lenet5")
    add("--dataset", choices=("mnist", "digits"), default="mnist")
    add("--seeds", type=int, default=1, help="number of runs, of seeds 0, 1...")
    add("--epochs", type=int, help="at most, of every phase")
    common.add_image_options(parser)
    add("--out", type=Path, help="default: runs/bmrs-NETWORK-DATA")
    parsed = parser.parse_args(arguments)
    minima = dict.fromkeys(("seeds", "epochs", "limit", "holdout"), 1)
    common.check_minima(parsed, minima | {"shift": 0})
    return parsed


def enlarged(images: mnist_data.Images) -> mnist_data.Images:
    """The images at the paper's size, between black and white as before."""

    def resize(array: np.ndarray) -> np.ndarray:
        resized = keras.ops.image.resize(
            array,
            (SIZE, SIZE),
            interpolation="bilinear",
            data_format="channels_last",
        )
        return keras.ops.convert_to_numpy(resized)

    return dataclasses.replace(
        images, x_train=resize(images.x_train), x_test=resize(images.x_test)
    )


def build(
    network: str, classes: int, kl_scales: tuple[float, ...] = ()
) -> keras.Sequential:
    """Build one of the networks; its outputs are logits.

    Args:
        network: One of `RECIPES`.
        classes: Number of outputs.
        kl_scales: Factor of each gate's KL; empty for a plain network.
    """
    scales = list(enumerate(kl_scales))

    def gate() -> list[keras.layers.Layer]:
        if not scales:
            return []
        index, scale = scales.pop(0)
        name = f"{mnist_models.GATE_NAME}_{index}"
        return [LogNormalDropout(kl_scale=scale, name=name)]

    stack: list[keras.layers.Layer] = [
        keras.Input((SIZE, SIZE, 1)),
        layers.Rescaling(1.0, -127.0 / 255.0),
    ]
    if network == "lenet5":
        for filters in (6, 16):
            stack += [layers.Conv2D(filters, 5, activation="relu"), *gate()]
            stack += [layers.MaxPooling2D()]
        stack += [layers.Flatten()]
        for units in (120, 84):
            stack += [layers.Dense(units, activation="relu"), *gate()]
    else:
        stack += [layers.Flatten()]
        for _ in range(MLP_LAYERS):
            stack += [layers.Dense(MLP_UNITS, activation="tanh"), *gate()]
    return keras.Sequential([*stack, layers.Dense(classes)], name=network)


def removed_percent(model: keras.Sequential) -> float:
    """Parameters that a gated network has lost, as the paper counts them.

    That are weights of kernels in front of and behind closed gates, and two
    parameters of each closed gate. Biases stay, and so do the weights that read
    the flattened channels of a convolution.
    """
    masks = [
        keras.ops.convert_to_numpy(layer.keep_mask)
        for layer in model.layers
        if isinstance(layer, LogNormalDropout)
    ]
    total = sum(2 * mask.size for mask in masks)
    removed = sum(2 * int(np.sum(~mask)) for mask in masks)
    read: np.ndarray | None = None
    behind = iter(masks)
    for layer in model.layers:
        if not hasattr(layer, "kernel"):
            continue
        shape = tuple(layer.kernel.shape)
        is_kept = np.ones(shape, bool)
        if read is not None and read.size == shape[-2]:
            is_kept &= read[:, None]
        read = next(behind, None)
        if read is not None:
            is_kept &= read
        total += layer.count_params()
        removed += int(np.sum(~is_kept))
    return 100.0 * removed / total


def run_seed(
    network: str,
    images: mnist_data.Images,
    recipe: mnist_recipes.Recipe,
    seed: int,
    out: Path,
) -> dict[str, Any]:
    """Train, prune and fine-tune one network."""
    keras.utils.set_random_seed(seed)
    began = time.perf_counter()
    plain = build(network, images.classes)
    mnist_training.fit(
        plain,
        images,
        recipe.pretrain_epochs,
        recipe,
        recipe.plain_learning_rate,
    )
    model = build(network, images.classes, recipe.kl_scales)
    mnist_models.start_from(model, plain)
    annealing = keras_vd.callbacks.KLAnnealing(
        len(images.x_train), schedule=recipe.kl_share
    )
    mnist_training.fit(
        model, images, recipe.epochs, recipe, recipe.learning_rate, [annealing]
    )
    report = keras_vd.prune(model)
    results: dict[str, Any] = {
        "seed": seed,
        "n_active": report.n_active,
        "accuracy_dense": _accuracy(plain, images),
        "accuracy_pruned": _accuracy(model, images),
        "removed_percent": removed_percent(model),
    }
    pruned = keras_vd.to_deterministic(model)
    shrunk = common.shrink(
        pruned, images.x_test, out / f"shrunk-{seed}.keras", results
    )
    mnist_training.fit(
        shrunk,
        images,
        recipe.finetune_epochs,
        recipe,
        recipe.finetune_learning_rate,
    )
    left = shrunk.count_params() / plain.count_params()
    results["shrunk_percent"] = 100.0 * (1.0 - left)
    results["accuracy"] = _accuracy(shrunk, images)
    results["seconds"] = time.perf_counter() - began
    return results


def _accuracy(model: keras.Model, images: mnist_data.Images) -> float:
    logits = mnist_training.predict(model, images)
    return 100.0 - mnist_training.error_percent(logits, images.y_test)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    network = arguments.network
    out = common.prepare_folder(
        arguments.out or Path("runs") / f"bmrs-{network}-{arguments.dataset}"
    )
    images = mnist_data.load(arguments.dataset, None)
    if arguments.limit:
        images = images.limited(arguments.limit)
    if arguments.holdout:
        images = images.held_out(arguments.holdout)
    images = enlarged(images)
    recipe = choose_recipe(arguments)
    print(f"{common.describe_device()}\n{network}: {recipe}")
    runs = []
    for seed in range(arguments.seeds):
        runs.append(run_seed(network, images, recipe, seed, out))
        print(f"seed {seed}: {_cells(runs[-1:])}", flush=True)
    results = {
        "data": arguments.dataset,
        "network": network,
        "holdout": arguments.holdout,
        "device": common.describe_device(),
        "recipe": dataclasses.asdict(recipe),
        "runs": runs,
    }
    common.write_json(out / "results.json", results)
    table = rich.table.Table(title=f"{network}, {len(runs)} seeds")
    for header in COLUMNS.values():
        table.add_column(header, justify="right")
    table.add_row(*_cells(runs))
    rich.console.Console(width=110).print(table)
    return results


def choose_recipe(arguments: argparse.Namespace) -> mnist_recipes.Recipe:
    """The network's recipe with the user's wishes."""
    recipe = RECIPES[arguments.network]
    if arguments.shift is not None:
        recipe = recipe.changed(shift=arguments.shift)
    if arguments.epochs is None:
        return recipe
    phases = ("pretrain_epochs", "epochs", "finetune_epochs")
    return recipe.changed(
        **{x: min(getattr(recipe, x), arguments.epochs) for x in phases}
    )


def _cells(runs: list[dict[str, Any]]) -> list[str]:
    return [common.spread([run[name] for run in runs], 2) for name in COLUMNS]


if __name__ == "__main__":
    run(parse_arguments())
