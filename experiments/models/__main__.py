"""What becomes of models that people have: convert, train, shrink, write.

    python -m experiments.models
    python -m experiments.models --only VGG16 BertBackbone

Tries the families of `keras.applications`, small networks of KerasHub (where
that is installed) and networks such as people write, all with random weights.
For each: which share of the kernels' parameters becomes variational, how far
predictions move, whether `fit` with `KLAnnealing` has a KL, what is left when
channels or hidden units are dead, compared with a network that never had them,
and which files can be written of that. Prints a table; writes models.json.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import keras_vd
from experiments import common
from experiments.models import networks
from keras_vd import deployment

HEADER = (
    "network",
    "parameters",
    "kernels converted %",
    "predictions differ by",
    "KL after a step, nats",
    "plain again, differs by",
    "shrunk to",
    "without the dead",
    "shrunk differs by",
    "files",
    "seconds",
)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of these")
    parser.add_argument("--out", type=Path, default=Path("runs/models"))
    parsed = parser.parse_args(arguments)
    found = [*networks.users(), *networks.applications()]
    if importlib.util.find_spec("keras_hub"):
        found += networks.of_hub()
    elif parsed.only is None:
        print("KerasHub is not installed: `pip install keras-vd[hub]`")
    known = [x.name for x in found]
    unknown = set(parsed.only or ()) - set(known)
    if unknown:
        common.fail(f"--only must name some of {known}, not {sorted(unknown)}")
    out = common.prepare_folder(parsed.out)
    warnings.simplefilter("ignore")
    rows = []
    for network in found:
        if parsed.only is None or network.name in parsed.only:
            rows.append(try_network(network))
            print(common.markdown(HEADER, [row_of(rows[-1])]), flush=True)
            common.write_json(out / "models.json", {"rows": rows})
            keras.utils.clear_session()
            gc.collect()
    print(common.describe_device())
    print(common.markdown(HEADER, map(row_of, rows)))
    return rows


def try_network(network: networks.Network) -> dict[str, Any]:
    """Take one network all the way."""
    start = time.perf_counter()
    keras.utils.set_random_seed(0)
    model, inputs = network.build()
    randomize(model)
    result: dict[str, Any] = {
        "name": network.name,
        "parameters": model.count_params(),
    }
    expected = predict(model, inputs)
    variational = keras_vd.to_variational(model, verbose=0)
    weights = keras_vd.variational_weights(variational)
    kernels = sum(size_of(x) for x in model.weights if is_kernel(x))
    result["converted"] = sum(size_of(x.theta) for x in weights) / kernels
    result["difference"] = difference(predict(variational, inputs), expected)
    result["kl"] = train(variational, inputs, expected)
    plain = keras_vd.to_deterministic(variational)
    result["plain_difference"] = difference(
        predict(plain, inputs), predict(variational, inputs)
    )
    del variational, plain
    result |= shrink(network, model, inputs)
    result["seconds"] = time.perf_counter() - start
    return result


def is_kernel(variable: keras.Variable) -> bool:
    # Biases of attention have an axis for the heads.
    return len(variable.shape) > 1 and variable.name != "bias"


def randomize(model: keras.Model) -> None:
    """Let normalization and biases be as in a network that was trained."""
    generator = np.random.default_rng(0)
    for variable in model.weights:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(generator.uniform(0.7, 1.3, variable.shape))
        elif variable.name in ("beta", "moving_mean", "bias"):
            variable.assign(generator.normal(0.0, 0.1, variable.shape))


def predict(model: keras.Model, inputs: Any) -> list[np.ndarray]:
    outputs = keras.tree.flatten(model(inputs, training=False))
    return [np.asarray(keras.ops.convert_to_numpy(x)) for x in outputs]


def difference(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """The largest difference, in terms of the largest value."""
    return max(
        float(np.abs(one - two).max() / np.abs(two).max())
        for one, two in zip(found, expected, strict=True)
    )


def size_of(weight: Any) -> int:
    return int(np.prod(weight.shape))


def train(model: keras.Model, inputs: Any, outputs: list[np.ndarray]) -> float:
    """Train for a step towards zero; return the KL."""

    def size(labels: Any, found: Any) -> Any:
        return keras.ops.mean(keras.ops.square(found))

    keras.Model.compile(
        model,
        optimizer=keras.optimizers.Adam(1e-5),
        loss=size,
        run_eagerly=True,
    )
    count = len(outputs[0])
    labels = keras.tree.map_structure(
        lambda x: np.zeros((count, 1)), model(inputs, training=False)
    )
    annealing = keras_vd.callbacks.KLAnnealing(count, 0, 0, verbose=0)
    history = keras.Model.fit(
        model, inputs, labels, verbose=0, callbacks=[annealing]
    )
    return float(history.history["kl"][-1])


def shrink(
    network: networks.Network, model: keras.Model, inputs: Any
) -> dict[str, Any]:
    if network.kill is None:
        return {}
    without = network.kill(model)
    expected = predict(model, inputs)
    smaller = keras_vd.shrink(model, verbose=0)
    return {
        "shrunk": smaller.count_params(),
        "without": without,
        "shrunk_difference": difference(predict(smaller, inputs), expected),
        "files": files(smaller, inputs),
    }


def files(model: keras.Model, inputs: Any) -> dict[str, str | None]:
    """Write a model in all formats; say of each what is wrong, or None."""
    writers: dict[str, Callable[..., Any]] = {
        "m.keras": deployment.save_compressed
    }
    if keras.backend.backend() == "tensorflow":
        writers |= {
            "saved_model": deployment.export_saved_model,
            "m.tflite": deployment.export_litert,
            "m.onnx": deployment.export_onnx,
        }
    found: dict[str, str | None] = {}
    for name, write in writers.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                write(model, Path(folder, name), x=inputs)
                found[name] = None
            except (ValueError, RuntimeError, OSError) as error:
                found[name] = " ".join(str(error).split())
    return found


def row_of(result: dict[str, Any]) -> list[str]:
    ratios = [
        f"{result[name] / result['parameters']:.3f}" if name in result else "-"
        for name in ("shrunk", "without")
    ]
    shrunk = result.get("shrunk_difference")
    return [
        result["name"],
        f"{result['parameters']:,}",
        f"{100 * result['converted']:.1f}",
        f"{result['difference']:.0e}",
        f"{result['kl']:,.0f}",
        f"{result['plain_difference']:.0e}",
        *ratios,
        "-" if shrunk is None else f"{shrunk:.0e}",
        files_of(result.get("files", {})),
        f"{result['seconds']:.0f}",
    ]


def files_of(problems: dict[str, str]) -> str:
    """Say which files were written, given what kept each from being."""
    if not problems:
        return "-"
    failed = [name for name, problem in problems.items() if problem]
    return f"no {', '.join(failed)}" if failed else f"all {len(problems)}"


if __name__ == "__main__":
    main()
