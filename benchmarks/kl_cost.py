"""What the exact log-uniform KL costs in a training step.

    python -m benchmarks.kl_cost

Times steps of one network with the exact KL and with Molchanov's
approximation, interleaved in one process, and prints medians, the ratio of
each pair of neighbouring blocks, and its spread.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import rich.console
import rich.table

import keras_vd

NETWORKS = {"784-300-100-10": (784, 300, 100, 10), "1024x1024": (1024, 1024)}


def build(units: tuple[int, ...], kl: str) -> keras.Sequential:
    posterior = keras_vd.posteriors.SparseVD(
        prior=keras_vd.priors.LogUniform(kl)
    )
    model = keras.Sequential([keras.Input((units[0],))])
    for n in units[1:]:
        model.add(
            keras_vd.layers.VDDense(
                n, activation="relu", posterior=posterior, kl_weight=1 / 60000
            )
        )
    model.compile("adam", "mse")
    return model


def seconds_per_step(
    model: keras.Model, x: np.ndarray, y: np.ndarray, steps: int
) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        model.train_on_batch(x, y)
    return (time.perf_counter() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--steps", type=int, default=20, help="per block")
    arguments = parser.parse_args()
    table = rich.table.Table(
        title=f"{keras.backend.backend()}, batch {arguments.batch_size}, "
        f"{os.cpu_count()} cores"
    )
    for header in ("network", "Molchanov ms", "exact ms", "ratio", "quartiles"):
        table.add_column(header, justify="right")
    for name, units in NETWORKS.items():
        rng = np.random.default_rng(0)
        x = rng.standard_normal((arguments.batch_size, units[0]), "float32")
        y = rng.standard_normal((arguments.batch_size, units[-1]), "float32")
        models = {kl: build(units, kl) for kl in ("molchanov", "exact")}
        times = {kl: [] for kl in models}
        for block in range(arguments.blocks + 1):
            for kl, model in models.items():
                seconds = seconds_per_step(model, x, y, arguments.steps)
                if block:  # the first one compiles
                    times[kl].append(1000 * seconds)
        ratios = np.array(times["exact"]) / np.array(times["molchanov"])
        low, median, high = np.percentile(ratios, (25, 50, 75))
        table.add_row(
            name,
            f"{np.median(times['molchanov']):.2f}",
            f"{np.median(times['exact']):.2f}",
            f"{median:.3f}",
            f"{low:.3f} to {high:.3f}",
        )
    rich.console.Console(width=90).print(table)


if __name__ == "__main__":
    main()
