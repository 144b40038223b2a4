"""What the exact log-uniform KL costs in a training step.

    python -m benchmarks.kl_cost

Times steps of one network with the exact KL and with Molchanov's
approximation, interleaved in one process, and prints medians, the ratio of
each pair of neighbouring blocks, and its spread.
"""

from __future__ import annotations

import argparse
import functools
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import rich.console
import rich.table

import keras_vd
from benchmarks.timing import ratio
from keras_vd._deploying.readers import interleaved

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
        times = interleaved(
            {
                kl: functools.partial(build(units, kl).train_on_batch, x, y)
                for kl in ("molchanov", "exact")
            },
            arguments.blocks,
            arguments.steps,
        )
        table.add_row(
            name,
            f"{np.median(times['molchanov']):.2f}",
            f"{np.median(times['exact']):.2f}",
            *ratio(times["exact"], times["molchanov"]),
        )
    rich.console.Console(width=90).print(table)


if __name__ == "__main__":
    main()
