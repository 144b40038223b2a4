"""The picture of the README: a trained network, its zeros, the small one.

    python -m experiments.from_zeros_to_small

Trains the network of the README on four fifths of scikit-learn's digits, plain
and variational, and draws the kernels of the plain network, of the pruned and
of the shrunk one to the same scale. Accuracies are those of the last fifth;
bytes are those of files by `keras_vd.deployment.save_compressed`. What is in
the picture is printed, too.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_vd
from experiments import common

UNITS, RATE = 300, 5e-3
_COLOR = "#0d47a1"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--epochs", type=int, default=60)
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("docs/pipeline.png"))
    parsed = parser.parse_args(arguments)
    common.check_minima(parsed, {"epochs": 1, "seed": 0})
    return parsed


def trained(dense: Any, x: np.ndarray, y: np.ndarray, epochs: int) -> Any:
    """A network of `Dense` or `VDDense` layers, with the KL of the latter."""
    model = keras.Sequential(
        [keras.Input((64,)), dense(UNITS, activation="relu"), dense(10)]
    )
    model.compile(
        keras.optimizers.Adam(RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    callbacks = []
    if dense is keras_vd.layers.VDDense:
        annealing = keras_vd.callbacks.KLAnnealing(len(x), verbose=0)
        callbacks.append(annealing)
    model.fit(x, y, epochs=epochs, verbose=0, callbacks=callbacks)
    return model


def measure(model: keras.Model, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """What the picture says of a plain model."""
    kernels = [
        layer.get_weights()[0] for layer in model.layers if layer.weights
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.keras"
        keras_vd.deployment.save_compressed(model, file)
        size = file.stat().st_size
    right = model.predict(x, verbose=0).argmax(axis=-1) == y
    return {
        "kernels": kernels,
        "parameters": model.count_params(),
        "nonzero": sum(np.count_nonzero(kernel) for kernel in kernels),
        "accuracy": 100.0 * float(np.mean(right)),
        "bytes": size,
    }


def draw(stages: dict[str, dict[str, Any]], path: Path) -> None:
    """Write the kernels of all stages, a dot for each weight that is not 0."""
    figure, axes = plt.subplots(
        1, len(stages), figsize=(12, 4.6), layout="constrained"
    )
    height = max(x["kernels"][0].shape[1] for x in stages.values())
    width = max(
        sum(k.shape[min(i, 1)] for i, k in enumerate(x["kernels"]))
        for x in stages.values()
    )
    gap = 14
    for ax, (title, stage) in zip(axes, stages.items(), strict=True):
        first, second = stage["kernels"]
        # Hidden units are rows of both, so that a unit that goes is a line.
        for left, kernel in ((0, first.T), (first.shape[0] + gap, second)):
            rows, columns = kernel.shape
            ax.imshow(
                kernel != 0,
                extent=(left, left + columns, rows, 0),
                cmap=matplotlib.colors.ListedColormap(["#dde6f0", _COLOR]),
                vmin=0,
                vmax=1,
                interpolation="nearest",
                aspect="auto",
            )
        ax.set(xlim=(-2, width + gap + 2), ylim=(height + 2, -2))
        ax.axis("off")
        ax.set_title(title, fontsize=19, fontweight="bold")
        text = (
            f"{stage['nonzero']:,} weights not zero\n"
            f"{stage['parameters']:,} parameters\n"
            f"{stage['bytes']:,} bytes\n{stage['accuracy']:.1f}% right"
        )
        ax.text(
            *(0.5, -0.03, text),
            transform=ax.transAxes,
            ha="center",
            va="top",
            fontsize=17,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, facecolor="white")
    plt.close(figure)


def main(arguments: list[str] | None = None) -> dict[str, dict[str, Any]]:
    options = parse_arguments(arguments)
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        (x / 16).astype("float32"), y, test_size=360, random_state=0, stratify=y
    )
    models = {}
    for dense in (keras.layers.Dense, keras_vd.layers.VDDense):
        keras.utils.set_random_seed(options.seed)
        models[dense] = trained(dense, x_train, y_train, options.epochs)
    keras_vd.prune(models[keras_vd.layers.VDDense])
    zeros = keras_vd.to_deterministic(models[keras_vd.layers.VDDense])
    # All inputs stay, so that all three pictures have the same ones.
    found = {
        "trained": models[keras.layers.Dense],
        "full of zeros": zeros,
        "small": keras_vd.shrink(zeros, verbose=0, gather_inputs=False),
    }
    stages = {
        name: measure(model, x_test, y_test) for name, model in found.items()
    }
    for name, stage in stages.items():
        figures = {k: v for k, v in stage.items() if k != "kernels"}
        print(name, *(f"{k}={v}" for k, v in figures.items()))
    draw(stages, options.out)
    print(f"written to {options.out}")
    return stages


if __name__ == "__main__":
    main()
