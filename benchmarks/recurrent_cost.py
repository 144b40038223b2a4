"""What a variational recurrent layer costs, against the plain Keras layer.

    python -m benchmarks.recurrent_cost

Times training steps of a model of one recurrent layer and a dense output, and
predictions after `to_deterministic`, interleaved with the plain model in one
process.
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
from benchmarks.timing import keep_memory, ratio
from keras_vd._deploying.readers import interleaved

# Batch size, time steps, features, units; the last is the published network
# of examples/imdb.py.
SHAPES = ((32, 100, 64, 128), (64, 30, 300, 256), (64, 200, 300, 128))


def build(
    layer: keras.layers.Layer, steps: int, features: int
) -> keras.Sequential:
    model = keras.Sequential(
        [keras.Input((steps, features)), layer, keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.SGD(0.01), "mse")
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--steps", type=int, default=5, help="per block")
    parser.add_argument(
        "--default-malloc",
        action="store_true",
        help="let the C library hand memory back to the system",
    )
    arguments = parser.parse_args()
    if not arguments.default_malloc:
        keep_memory()
    table = rich.table.Table(
        title=f"{keras.backend.backend()}, {os.cpu_count()} cores; "
        "batch x steps x features x units"
    )
    for header in ("layer", "shape", "what", "plain ms", "ratio", "quartiles"):
        table.add_column(header)
    for name in ("LSTM", "GRU"):
        plain_layer = getattr(keras.layers, name)
        layer = getattr(keras_vd.layers, f"VD{name}")
        for shape in SHAPES:
            batch, steps, features, units = shape
            rng = np.random.default_rng(0)
            x = rng.standard_normal((batch, steps, features), "float32")
            y = rng.standard_normal((batch, 1), "float32")
            models = {"plain": build(plain_layer(units), steps, features)}
            for estimator in ("batch", "sequence"):
                models[estimator] = build(
                    layer(units, kl_weight=1e-4, estimator=estimator),
                    steps,
                    features,
                )
            times = interleaved(
                {
                    key: functools.partial(model.train_on_batch, x, y)
                    for key, model in models.items()
                },
                arguments.blocks,
                arguments.steps,
            )
            label = "x".join(map(str, shape))
            for estimator in ("batch", "sequence"):
                table.add_row(
                    f"VD{name}",
                    label,
                    f"training, {estimator}",
                    f"{np.median(times['plain']):.1f}",
                    *ratio(times[estimator], times["plain"]),
                )
            models["deterministic"] = keras_vd.to_deterministic(models["batch"])
            times = interleaved(
                {
                    key: functools.partial(models[key].predict_on_batch, x)
                    for key in ("plain", "deterministic")
                },
                arguments.blocks,
                arguments.steps,
            )
            table.add_row(
                f"VD{name}",
                label,
                "inference, converted",
                f"{np.median(times['plain']):.1f}",
                *ratio(times["deterministic"], times["plain"]),
            )
    rich.console.Console(width=100).print(table)


if __name__ == "__main__":
    main()
