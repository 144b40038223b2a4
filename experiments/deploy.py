"""Write a small network in all formats, measure the files and use them.

    python -m experiments.mnist --dataset digits --out runs/small
    python -m experiments.deploy runs/small/shrunk.keras --dataset digits

Prints bytes, load time and latency of each format against the dense network in
the same runtime, then the accuracy of each file, read as anyone would who has
never heard of Keras. --dense FILE.keras is the dense network; by default it is
the one with as many units as --model of experiments.mnist. The files stay in
--out.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import rich.console
import rich.table

import keras_vd
from experiments import common
from experiments.mnist import data as mnist_data
from experiments.mnist import models as mnist_models
from experiments.mnist import recipes as mnist_recipes

BATCH_SIZE = 64
Function = Callable[[np.ndarray], np.ndarray]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("network", type=Path, metavar="FILE.keras", help="plain and small")
    add("--dense", type=Path, metavar="FILE.keras")
    add("--model", choices=mnist_models.MODELS, default="lenet-300-100")
    add("--dataset", choices=mnist_data.DATASETS, default="mnist")
    add("--data", type=Path, metavar="FILE.npz", help="images of your own")
    add("--out", type=Path, help="default: deployed/ beside the network")
    return parser.parse_args(arguments)


def load(file: Path) -> keras.Model:
    try:
        return keras.saving.load_model(file, compile=False)
    except (OSError, ValueError, TypeError) as error:
        common.fail(f"{file} is no Keras model: {error}".partition("\n")[0])


def from_tensorflow(path: Path) -> Function:
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    return lambda x: loaded.serve(x).numpy()


def from_litert(path: Path) -> Function:
    from ai_edge_litert.interpreter import Interpreter

    reader = Interpreter(str(path))
    reader.allocate_tensors()
    (inputs,), (outputs,) = (
        reader.get_input_details(),
        reader.get_output_details(),
    )

    def call(x: np.ndarray) -> np.ndarray:
        reader.set_tensor(inputs["index"], x)
        reader.invoke()
        return reader.get_tensor(outputs["index"])

    return call


def from_onnx(path: Path) -> Function:
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    (inputs,) = session.get_inputs()
    return lambda x: session.run(None, {inputs.name: x})[0]


def from_keras(path: Path) -> Function:
    if path.suffix == ".kvd":
        return keras_vd.deployment.load_archive(path).predict_on_batch
    return keras.saving.load_model(path).predict_on_batch


READERS = {
    "Keras": from_keras,
    "TensorFlow": from_tensorflow,
    "LiteRT": from_litert,
    "ONNX Runtime": from_onnx,
}


def accuracy_percent(call: Function, images: mnist_data.Images) -> float:
    """Over whole batches of one size, as LiteRT files have a fixed one."""
    right, n = 0, len(images.x_test)
    for start in range(0, n, BATCH_SIZE):
        # The last batch is filled up with the first images.
        rows = np.arange(start, start + BATCH_SIZE) % n
        classes = call(images.x_test[rows]).argmax(-1)
        right += np.sum((classes == images.y_test[rows])[: n - start])
    return 100.0 * float(right) / n


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    out = common.prepare_folder(
        arguments.out or arguments.network.parent / "deployed"
    )
    images = mnist_data.load(arguments.dataset, arguments.data)
    network = load(arguments.network)
    if arguments.dense:
        dense = load(arguments.dense)
    else:
        dense = mnist_models.build(
            arguments.model,
            "none",
            images.x_train.shape[1:],
            images.classes,
            mnist_recipes.PLAIN,
        )
    report = keras_vd.deployment.deployment_report(
        network, images.x_test[:BATCH_SIZE], dense, out, (1, BATCH_SIZE)
    )
    rows = []
    for row in report.rows:
        if row.error or row.artifact == "dense":
            continue
        path = out / row.files[BATCH_SIZE]
        accuracy = accuracy_percent(READERS[row.runtime](path), images)
        rows.append(
            {
                "runtime": row.runtime,
                "file": row.artifact,
                "accuracy_percent": accuracy,
                "bytes": row.bytes,
                "times_smaller": report.rows[0].bytes / row.bytes,
            }
        )
    show(rows)
    results = {
        "network": str(arguments.network),
        "device": common.describe_device(),
        "deployment": report.to_dict(),
        "accuracies": rows,
    }
    common.write_json(out / "results.json", results)
    print(f"written to {out}")
    return results


def show(rows: list[dict[str, Any]]) -> None:
    table = rich.table.Table(
        title="What the files are worth, against the dense .keras file"
    )
    for name in ("runtime", "file"):
        table.add_column(name)
    for name in ("accuracy %", "bytes", "times smaller"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["runtime"],
            row["file"],
            f"{row['accuracy_percent']:.2f}",
            f"{row['bytes']:,}",
            f"{row['times_smaller']:.1f}",
        )
    rich.console.Console(width=110).print(table)


if __name__ == "__main__":
    run(parse_arguments())
