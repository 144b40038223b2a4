"""Make a trained Keras CNN sparse, small and fast.

    python -m experiments.conversion.pretrained --dataset digits
    python -m experiments.conversion.pretrained --dataset mnist --network course

Trains a plain convolutional network with batch normalization, or takes one of
yours (--model FILE.keras), converts it with `keras_vd.to_variational`, trains
it on with noise, prunes it, trains what is left, shrinks it and writes it for
TensorFlow, LiteRT and ONNX Runtime. The table says what each stage costs and
brings. Writes to --out: results.json, the models and pictures.
"""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from keras import layers

from experiments import common
from experiments.conversion import stages
from experiments.mnist import data as mnist_data

NETWORKS = ("small", "course")
RECIPES = {
    "small": stages.Recipe(
        epochs=8,
        variational_epochs=20,
        finetune_epochs=12,
        batch_size=100,
        variational_learning_rate=2e-3,
        kl_weight=0.7,
        warmup_share=0.3,
        # It has most of the weights, of which it needs the fewest.
        kl_scales={"hidden": 5.0},
    ),
}
RECIPES["course"] = RECIPES["small"]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--network", choices=NETWORKS, default="small")
    add("--model", type=Path, metavar="FILE.keras", help="trained, of yours")
    add("--dataset", choices=mnist_data.DATASETS, default="mnist")
    add("--data", type=Path, metavar="FILE.npz", help="images of your own")
    stages.add_arguments(parser, "sparse_vd", ("input", "output"))
    add("--shift", type=int, default=1, help="random shifts, in pixels")
    add("--holdout", type=int, help="report on that many training images")
    parsed = parser.parse_args(arguments)
    stages.check_arguments(parsed)
    common.check_minima(parsed, {"shift": 0, "holdout": 1})
    return parsed


def build(
    network: str, input_shape: tuple[int, ...], classes: int
) -> keras.Sequential:
    """An untrained network, which returns logits."""

    def convolution(channels: int) -> list[keras.layers.Layer]:
        return [
            layers.Conv2D(channels, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
        ]

    if network == "course":
        body = [
            *convolution(16),
            layers.BatchNormalization(),
            *convolution(16),
            layers.Flatten(),
        ]
    else:
        body = [
            *convolution(16),
            layers.BatchNormalization(),
            *convolution(32),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(128, activation="relu", name="hidden"),
            layers.BatchNormalization(),
        ]
    return keras.Sequential(
        [keras.Input(input_shape), *body, layers.Dense(classes)], name=network
    )


def make_task(
    images: mnist_data.Images, batch_size: int, shift: int, is_held_out: bool
) -> stages.Task:
    seed = random.randrange(2**31)  # follows --seed
    return stages.Task(
        {"x": mnist_data.ShiftedBatches(images, batch_size, shift, seed)},
        len(images.x_train),
        images.x_test,
        images.y_test,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        lambda: keras.metrics.SparseCategoricalAccuracy("accuracy"),
        is_held_out,
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    data = arguments.data.stem if arguments.data else arguments.dataset
    network = arguments.model.stem if arguments.model else arguments.network
    out = common.prepare_folder(
        arguments.out
        or Path("runs") / f"convert-{network}-{data}-seed{arguments.seed}"
    )
    images = mnist_data.load(arguments.dataset, arguments.data)
    if arguments.limit:
        images = images.limited(arguments.limit)
    if arguments.holdout:
        images = images.held_out(arguments.holdout)
    keras.utils.set_random_seed(arguments.seed)
    recipe = stages.choose_recipe(
        RECIPES[arguments.network], arguments, len(images.x_train)
    )
    task = make_task(
        images, recipe.batch_size, arguments.shift, bool(arguments.holdout)
    )
    if arguments.model:
        dense = stages.load(arguments.model, task)
    else:
        shape = images.x_train.shape[1:]
        dense = build(arguments.network, shape, images.classes)
        task.fit(dense, recipe.epochs, recipe.learning_rate)
    return stages.run(
        dense,
        task,
        recipe,
        arguments.posterior,
        out,
        arguments.deploy,
        {
            "data": data,
            "model": network,
            "seed": arguments.seed,
            "holdout": arguments.holdout,
            "shift": arguments.shift,
        },
    )


if __name__ == "__main__":
    run(parse_arguments())
