"""Channels of a trained CNN: what gates remove, and magnitude at equal MACs.

    python -m experiments.channels --model M.h5 --dataset cifar10 --scale 255
    python -m experiments.channels --dataset digits

Takes a trained classifier (--model, of Keras; without it a small residual
network is trained first). Trains it on as it is; with log-normal gates on all
channels that can go, while those with the most noise are closed; and while
channels with the smallest kernels go, down to the same shares of its MACs. All
train for as many epochs; with --distill, from the outputs of the first as well
as from labels. Writes results.json, a picture of accuracy against
MACs and the models to --out.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from keras import layers
from matplotlib.figure import Figure

from experiments import common
from experiments.channels import methods
from experiments.mnist import data as mnist_data
from experiments.rates import LearningRates, make_optimizer

KEPT = (
    *("seed", "epochs", "finetune_epochs", "learning_rate", "gate_factor"),
    *("distill", "parameters", "kl_weight", "batch_size"),
    *("shift", "limit", "holdout"),
)
HEADER = (
    *("method", "accuracy %", "MACs", "times fewer"),
    *("parameters", "times fewer"),
)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, metavar="FILE", help="a trained classifier")
    add("--dataset", choices=mnist_data.DATASETS, default="digits")
    add("--data", type=Path, metavar="FILE.npz", help="images of your own")
    add("--scale", type=float, default=1.0, help="what the model calls white")
    add("--macs", type=float, nargs="+", default=[0.6, 0.4], help="shares left")
    add("--parameters", type=float, default=1.0, help="by gates: share left")
    add("--distill", action="store_true", help="learn from the dense one")
    add("--kl-weight", type=float, default=4.0)
    add("--epochs", type=int, default=20, help="in which channels go")
    add("--finetune-epochs", type=int, default=10)
    add("--learning-rate", type=float, default=1e-3)
    add("--gate-factor", type=float, default=20.0, help="rate of gates by that")
    add("--batch-size", type=int, default=128)
    add("--shift", type=int, default=2, help="random shifts, in pixels")
    add("--seed", type=int, default=0)
    add("--limit", type=int, help="use only that many training images")
    add("--holdout", type=int, help="report on that many training images")
    add("--out", type=Path, help="default: a folder in runs/")
    parsed = parser.parse_args(arguments)
    minima = dict.fromkeys(("epochs", "batch_size", "limit", "holdout"), 1)
    minima |= dict.fromkeys(("finetune_epochs", "shift", "seed"), 0)
    common.check_minima(parsed, minima)
    common.check_positive(parsed, "scale", "kl_weight", "macs")
    common.check_positive(parsed, "parameters")
    common.check_positive(parsed, "learning_rate", "gate_factor")
    if parsed.distill and not hasattr(keras, "distillation"):
        common.fail(
            f"--distill needs Keras 3.12 or newer, not {keras.__version__}"
        )
    return parsed


def build(shape: tuple[int, ...], classes: int) -> keras.Model:
    """An untrained residual network, which returns probabilities."""

    def block(x: Any, channels: int, stride: int) -> Any:
        y = layers.Conv2D(channels, 3, stride, padding="same")(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        y = layers.Conv2D(channels, 3, padding="same")(y)
        y = layers.BatchNormalization()(y)
        if stride > 1:
            x = layers.Conv2D(channels, 1, stride)(x)
        return layers.ReLU()(layers.Add()([x, y]))

    inputs = keras.Input(shape)
    x = layers.Conv2D(16, 3, padding="same")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = block(block(x, 16, 1), 32, 2)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes, "softmax")(x))


class Trainer:
    """Trains and judges classifiers of the same images.

    Attributes:
        teacher: A network that those without gates learn from, if any.
    """

    def __init__(
        self, images: mnist_data.Images, arguments: argparse.Namespace
    ) -> None:
        self.images = images
        self.arguments = arguments
        self.teacher: keras.Model | None = None

    def fit(
        self,
        model: keras.Model,
        epochs: int,
        decays: bool,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> None:
        """Train with Adam, the learning rate constant or falling to 0."""
        if not epochs:
            return
        given = self.arguments
        is_logits = not _ends_in_softmax(model)
        has_gates = methods.has_gates(model)
        if self.teacher and not has_gates:
            # By its name, Keras would take the divergence of the logits.
            loss = (
                keras.losses.KLDivergence()
                if is_logits
                else keras.losses.CategoricalCrossentropy()
            )
            model = keras.distillation.Distiller(
                self.teacher,
                model,
                keras.distillation.LogitsDistillation(1.0, loss),
            )
        model.compile(
            make_optimizer(
                given.learning_rate,
                given.gate_factor if has_gates else 1.0,
                r".*_gate(_\d+)?",
                global_clipnorm=1.0,
            ),
            keras.losses.SparseCategoricalCrossentropy(from_logits=is_logits),
        )
        batches = mnist_data.ShiftedBatches(
            self.images, given.batch_size, given.shift, random.randrange(2**31)
        )
        rates = LearningRates(lambda epoch: 1.0 - decays * epoch / epochs)
        model.fit(
            batches,
            epochs=epochs,
            callbacks=[*callbacks, rates],
            verbose=1 if sys.stdout.isatty() else 2,
        )

    def accuracy_percent(self, model: keras.Model) -> float:
        found = model.predict(self.images.x_test, batch_size=500, verbose=0)
        return 100.0 * float(np.mean(found.argmax(-1) == self.images.y_test))


def _ends_in_softmax(model: keras.Model) -> bool:
    found = [
        x for x in model.layers if getattr(x, "activation", None) is not None
    ]
    return bool(found) and found[-1].activation is keras.activations.softmax


def load(file: Path) -> keras.Model:
    try:
        return keras.models.load_model(file, compile=False)
    # Keras raises errors of many types for what it cannot read.
    except Exception as error:
        common.fail(f"--model {file} cannot be read: {error}")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    data = arguments.data.stem if arguments.data else arguments.dataset
    name = arguments.model.stem if arguments.model else "residual"
    out = common.prepare_folder(
        arguments.out
        or Path("runs") / f"channels-{name}-{data}-seed{arguments.seed}"
    )
    images = mnist_data.load(arguments.dataset, arguments.data)
    images = images.scaled(arguments.scale)
    if arguments.limit:
        images = images.limited(arguments.limit)
    if arguments.holdout:
        images = images.held_out(arguments.holdout)
    keras.utils.set_random_seed(arguments.seed)
    trainer = Trainer(images, arguments)
    schedule = methods.Schedule(arguments.epochs, arguments.finetune_epochs)
    epochs = schedule.epochs + schedule.finetune_epochs
    if arguments.model:
        start = load(arguments.model)
    else:
        start = build(images.x_train.shape[1:], images.classes)
        trainer.fit(start, epochs, decays=True)
    rows: list[dict[str, Any]] = []

    def add(method: str, model: keras.Model) -> methods.Size:
        size = methods.size_of(model)
        row = {
            "method": method,
            "accuracy_percent": trainer.accuracy_percent(model),
            **dataclasses.asdict(size),
        }
        rows.append(row)
        print(common.markdown(HEADER, [cells(row, rows[0])]), flush=True)
        model.save(out / f"{method.replace(' ', '-')}-{size.macs}.keras")
        return size

    whole = add("as it came", start)
    dense = keras.models.clone_model(start)
    dense.set_weights(start.get_weights())
    trainer.fit(dense, epochs, decays=True)
    add("trained on", dense)
    if arguments.distill:
        trainer.teacher = dense
    options = len(images.x_train), arguments.kl_weight
    how = trainer.fit, schedule
    for share in arguments.macs:
        wish = methods.Size(
            int(share * whole.macs),
            int(arguments.parameters * whole.parameters),
        )
        size = add("gates", methods.by_noise(start, *how, wish, *options))
        wish = methods.Size(size.macs, whole.parameters)
        add("magnitude", methods.by_magnitude(start, *how, wish))
    print(common.describe_device())
    print(common.markdown(HEADER, [cells(x, rows[0]) for x in rows]))
    draw(rows, out / "channels.png")
    results = {
        "data": data,
        "model": name,
        "rows": rows,
        "device": common.describe_device(),
        **{key: getattr(arguments, key) for key in KEPT},
    }
    common.write_json(out / "results.json", results)
    return results


def cells(row: dict[str, Any], first: dict[str, Any]) -> list[str]:
    return [
        row["method"],
        f"{row['accuracy_percent']:.2f}",
        f"{row['macs']:,}",
        f"{first['macs'] / row['macs']:.2f}",
        f"{row['parameters']:,}",
        f"{first['parameters'] / row['parameters']:.2f}",
    ]


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    panel = figure.add_subplot()
    for method in dict.fromkeys(row["method"] for row in rows):
        points = sorted(
            (row["macs"], row["accuracy_percent"])
            for row in rows
            if row["method"] == method
        )
        panel.plot(*zip(*points, strict=True), "o-", label=method)
    panel.set_xscale("log")
    common.set_log_ticks(panel)
    panel.set_xlabel("multiplications for an image")
    panel.set_ylabel("accuracy, %")
    panel.legend()
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    run(parse_arguments())
