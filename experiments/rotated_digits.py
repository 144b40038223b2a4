"""Rotated digits become uncertain: a variational network against a plain one.

    python -m experiments.rotated_digits
    python -m experiments.rotated_digits --dataset mnist --epochs 10

Both networks are trained on upright digits and asked about rotated ones, which
they have never seen. The run ends with a table, and writes it to --out as
results.json, with a picture (rotated.png).
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
import scipy.ndimage
from matplotlib.figure import Figure

import keras_vd
import keras_vd.callbacks
import keras_vd.layers
import keras_vd.posteriors
import keras_vd.priors
from experiments import common
from experiments.mnist import data as mnist_data

EPOCHS = {"digits": 60, "mnist": 10}
HIDDEN_UNITS = (300, 100)
LEARNING_RATE = 3e-3
BATCH_SIZE = {"training": 64, "prediction": 500}
PRIOR_STDDEV, LOG_SIGMA2_INIT = 0.5, -4.0
# All 10,000 of MNIST at 13 angles would take ten times as long.
TEST_IMAGES = 1000


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", choices=tuple(EPOCHS), default="digits")
    add("--epochs", type=int, help=f"default: {EPOCHS}")
    add("--num-samples", type=int, default=50, help="draws of the weights")
    add("--step", type=int, default=15, help="degrees from row to row")
    add("--limit", type=int, help="use only that many training images")
    add("--seed", type=int, default=0)
    add("--out", type=Path, help="default: runs/rotated-DATASET-seedSEED")
    parsed = parser.parse_args(arguments)
    minima = dict.fromkeys(("epochs", "num_samples", "step", "limit"), 1)
    common.check_minima(parsed, minima | {"seed": 0})
    return parsed


def train(
    images: mnist_data.Images, epochs: int, is_variational: bool
) -> keras.Sequential:
    """Train a network whose outputs are probabilities."""
    if is_variational:
        # Weights of pixels that are always black go back to the prior, where
        # a small variance at the start would keep them for long.
        posterior = keras_vd.posteriors.Gaussian(
            prior=keras_vd.priors.Gaussian(PRIOR_STDDEV),
            log_sigma2_init=LOG_SIGMA2_INIT,
        )
        options = {"posterior": posterior}
        dense = keras_vd.layers.VDDense
    else:
        options, dense = {}, keras.layers.Dense
    model = keras.Sequential(
        [
            keras.Input(images.x_train.shape[1:]),
            keras.layers.Flatten(),
            *(dense(n, activation="relu", **options) for n in HIDDEN_UNITS),
            dense(images.classes, activation="softmax", **options),
        ]
    )
    model.compile(
        keras.optimizers.Adam(LEARNING_RATE), "sparse_categorical_crossentropy"
    )
    annealing = keras_vd.callbacks.KLAnnealing(
        len(images.x_train),
        start_epoch=0,
        warmup_epochs=epochs // 2,
        verbose=0,
    )
    model.fit(
        images.x_train,
        images.y_train,
        batch_size=BATCH_SIZE["training"],
        epochs=epochs,
        verbose=0,
        callbacks=[annealing] if is_variational else [],
    )
    return model


def rotate(images: np.ndarray, angle: float) -> np.ndarray:
    """Images `(n, height, width, channels)`, rotated by degrees."""
    rotated = scipy.ndimage.rotate(
        images, angle, axes=(1, 2), reshape=False, order=1
    )
    return np.clip(rotated, 0.0, 1.0)


def predict(
    model: keras.Model, inputs: np.ndarray, num_samples: int, seed: int
) -> dict[str, np.ndarray]:
    """Class probabilities, and what is uncertain about them in nats."""
    if keras_vd.variational_weights(model):
        prediction = keras_vd.predict_mc(
            model, inputs, num_samples, BATCH_SIZE["prediction"], seed=seed
        )
        return {
            "probabilities": prediction.mean,
            "entropy": prediction.predictive_entropy,
            "mutual_information": prediction.mutual_information,
        }
    probabilities = model.predict(
        inputs, batch_size=BATCH_SIZE["prediction"], verbose=0
    )
    logs = np.log(np.maximum(probabilities, 1e-30))
    return {
        "probabilities": probabilities,
        "entropy": -(probabilities * logs).sum(axis=-1),
    }


def summarize(
    prediction: dict[str, np.ndarray], labels: np.ndarray
) -> dict[str, float]:
    """Means over the images of one angle."""
    report = keras_vd.calibration_report(prediction["probabilities"], labels)
    return {
        "accuracy": report.accuracy,
        "confidence": report.confidence,
        "calibration_error": report.expected_error,
        **{
            name: float(prediction[name].mean())
            for name in ("entropy", "mutual_information")
            if name in prediction
        },
    }


def compare(
    models: dict[str, keras.Model],
    inputs: np.ndarray,
    labels: np.ndarray,
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    """One row for each angle."""
    angles = range(0, 181, arguments.step)
    rows: list[dict[str, Any]] = [{"angle": angle} for angle in angles]
    # All angles at once: they meet the same draws of the weights.
    rotated = np.concatenate([rotate(inputs, angle) for angle in angles])
    for name, model in models.items():
        prediction = predict(
            model, rotated, arguments.num_samples, arguments.seed
        )
        for i, row in enumerate(rows):
            chosen = slice(i * len(inputs), (i + 1) * len(inputs))
            part = {key: value[chosen] for key, value in prediction.items()}
            row[name] = summarize(part, labels)
    return rows


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    out = common.prepare_folder(
        arguments.out
        or Path("runs") / f"rotated-{arguments.dataset}-seed{arguments.seed}"
    )
    images = mnist_data.load(arguments.dataset, None)
    if arguments.limit:
        images = images.limited(arguments.limit)
    epochs = arguments.epochs or EPOCHS[arguments.dataset]
    print(common.describe_device())
    start = time.perf_counter()
    keras.utils.set_random_seed(arguments.seed)
    models = {
        "variational": train(images, epochs, is_variational=True),
        "plain": train(images, epochs, is_variational=False),
    }
    inputs, labels = images.x_test[:TEST_IMAGES], images.y_test[:TEST_IMAGES]
    rows = compare(models, inputs, labels, arguments)
    results = {
        "data": arguments.dataset,
        "training_images": len(images.x_train),
        "test_images": len(inputs),
        "epochs": epochs,
        "num_samples": arguments.num_samples,
        "seed": arguments.seed,
        "device": common.describe_device(),
        "rows": rows,
        "seconds": time.perf_counter() - start,
    }
    draw(rows, inputs).savefig(out / "rotated.png", dpi=120)
    common.write_json(out / "results.json", results)
    print_summary(results, out)
    return results


def draw(rows: list[dict[str, Any]], inputs: np.ndarray) -> Figure:
    """Accuracy, confidence and uncertainty by angle, above one image."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    layout = figure.add_gridspec(2, 1, height_ratios=(4, 1))
    angles = [row["angle"] for row in rows]
    panels = layout[0].subgridspec(1, 3).subplots()
    for panel, title, curves in zip(
        panels,
        ("accuracy and confidence", "entropy, nats", "calibration error"),
        (
            ("accuracy", "confidence"),
            ("entropy", "mutual_information"),
            ("calibration_error",),
        ),
        strict=True,
    ):
        for name, color in (("variational", "tab:blue"), ("plain", "tab:red")):
            for curve, style in zip(curves, ("-", "--"), strict=False):
                if (name, curve) == ("plain", "mutual_information"):
                    continue
                panel.plot(
                    angles,
                    [row[name][curve] for row in rows],
                    style,
                    color=color,
                    label=f"{name}: {curve.replace('_', ' ')}",
                )
        panel.set(title=title, xlabel="degrees", ylim=(0, None))
        panel.legend(fontsize="small")
    examples = layout[1].subgridspec(1, len(rows)).subplots(squeeze=False)[0]
    for panel, angle in zip(examples, angles, strict=True):
        panel.imshow(rotate(inputs[:1], angle)[0, ..., 0], cmap="binary")
        panel.set(xticks=[], yticks=[])
    return figure


def print_summary(results: dict[str, Any], out: Path) -> None:
    table = rich.table.Table(
        title=f"{results['data']}, rotated: variational network ("
        f"{results['num_samples']} draws) | plain network"
    )
    table.add_column("degrees", justify="right")
    headers = (
        "accuracy %",
        "confidence %",
        "entropy",
        "mutual inf.",
        "ECE %",
    )
    for header in (*headers, *headers[:3], headers[-1]):
        table.add_column(header, justify="right")
    for row in results["rows"]:
        cells = []
        for name in ("variational", "plain"):
            figures = row[name]
            cells += [
                f"{100 * figures['accuracy']:.1f}",
                f"{100 * figures['confidence']:.1f}",
                f"{figures['entropy']:.3f}",
            ]
            if name == "variational":
                cells += [f"{figures['mutual_information']:.3f}"]
            cells += [f"{100 * figures['calibration_error']:.1f}"]
        table.add_row(str(row["angle"]), *cells)
    console = rich.console.Console(width=120)
    console.print(table)
    console.print(f"{results['seconds']:.0f} s; written to {out}")


if __name__ == "__main__":
    run(parse_arguments())
