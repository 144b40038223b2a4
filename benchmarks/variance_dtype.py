"""What `variance_dtype="bfloat16"` does to accuracy and sparsity.

    python -m benchmarks.variance_dtype

Trains 64-300-10 with sparse variational dropout on scikit-learn's digits, a
third of which is held out, with and without the option, from equal seeds.
`python -m benchmarks` says what the option does to the time of a step.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import rich.console
import rich.table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_vd


def train(variance_dtype: str | None, seed: int, epochs: int) -> list[float]:
    """Test accuracy in %, and weights per non-zero one."""
    keras.utils.set_random_seed(seed)
    x, y = load_digits(return_X_y=True)
    x, test_x, y, test_y = train_test_split(
        x / 16.0, y, test_size=1 / 3, random_state=seed, stratify=y
    )
    posterior = keras_vd.posteriors.SparseVD(variance_dtype=variance_dtype)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras_vd.layers.VDDense(300, "relu", posterior=posterior),
            keras_vd.layers.VDDense(10, posterior=posterior),
        ]
    )
    model.compile(
        keras.optimizers.Adam(5e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    annealing = keras_vd.callbacks.KLAnnealing(num_examples=len(x), verbose=0)
    model.fit(x, y, epochs=epochs, verbose=0, callbacks=[annealing])
    report = keras_vd.prune(model)
    _, accuracy = model.evaluate(test_x, test_y, verbose=0)
    return [100.0 * accuracy, report.nonzero_ratio]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    arguments = parser.parse_args()
    table = rich.table.Table(
        title=f"{keras.backend.backend()}, seeds 0 to {arguments.seeds - 1}, "
        f"{arguments.epochs} epochs; mean and standard deviation"
    )
    for header in ("variance_dtype", "test accuracy %", "nonzero ratio"):
        table.add_column(header)
    for variance_dtype in (None, "bfloat16"):
        found = [
            train(variance_dtype, seed, arguments.epochs)
            for seed in range(arguments.seeds)
        ]
        means, deviations = np.mean(found, 0), np.std(found, 0, ddof=1)
        cells = zip(means, deviations, strict=True)
        table.add_row(
            str(variance_dtype),
            *(f"{mean:.2f} ± {deviation:.2f}" for mean, deviation in cells),
        )
    rich.console.Console(width=90).print(table)


if __name__ == "__main__":
    main()
