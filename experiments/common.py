"""What the experiments share: errors for people, devices, outputs, exports."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import keras
import numpy as np
import rich.console
import rich.table
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

import keras_vd

# Largest over smallest value from which on ticks are 1, 2, 5, 10 and so on
# instead of evenly spaced, and those from which on they are powers of ten.
_WIDE, _HUGE = 8, 500


def fail(message: str) -> NoReturn:
    """End the program with one line on stderr and exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which images to train and to report on."""
    add = parser.add_argument
    add("--shift", type=int, help="random shifts; default: the recipe's")
    add("--limit", type=int, help="use only that many training images")
    add("--holdout", type=int, help="report on that many training images")


def check_minima(
    arguments: argparse.Namespace, minima: Mapping[str, int]
) -> None:
    """End the program if an option that was given is below its minimum."""
    for name, minimum in minima.items():
        value = getattr(arguments, name)
        if value is not None and value < minimum:
            option = "--" + name.replace("_", "-")
            fail(f"{option} must be at least {minimum}, not {value}")


def check_positive(arguments: argparse.Namespace, *names: str) -> None:
    """End the program if an option that was given is not above 0."""
    for name in names:
        given = getattr(arguments, name)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and not 0 < value < math.inf:
                option = "--" + name.replace("_", "-")
                fail(f"{option} must be above 0, not {value}")


def describe_device() -> str:
    """Backend, the device that computes, and the number of cores."""
    device = str(keras.ops.zeros(1).device).rsplit("/", 1)[-1]
    return (
        f"Keras {keras.__version__} on {keras.backend.backend()}, device "
        f"{device}, {os.cpu_count()} CPU cores"
    )


def prepare_folder(path: Path) -> Path:
    """Create the output folder and make sure that it takes files."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        fail(f"cannot write to --out {path}: {error.strerror}")
    return path


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def read_runs(
    files: Iterable[Path], measure: str
) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Read results.json files; runs that differ in the seed go together.

    Args:
        files: Paths of the files.
        measure: Entry that tells this experiment's results from another's.

    Returns:
        Lists of results, by data, model, method and recipe.
    """
    groups = defaultdict(list)
    for file in sorted(files):
        try:
            run = json.loads(file.read_text())
            recipe = json.dumps(run["recipe"], sort_keys=True)
            key = (run["data"], run["model"], run["method"], recipe)
            run[measure]
        except (OSError, ValueError, KeyError) as error:
            fail(f"{file} is no results.json of this experiment: {error!r}")
        groups[key].append(run)
    return dict(sorted(groups.items()))


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, and the standard deviation over seeds where there are several."""
    text = f"{np.mean(values):,.{digits}f}"
    if len(values) > 1:
        text += f" ± {np.std(values, ddof=1):,.{digits}f}"
    return text


def print_table(
    title: str,
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    width: int,
) -> None:
    """Print a table whose columns are figures, but for the first one."""
    table = rich.table.Table(title=title)
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    rich.console.Console(width=width).print(table)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def set_log_ticks(panel: Axes) -> None:
    """Give a logarithmic axis a few labels, however narrow its range."""
    low, high = panel.get_xlim()
    if high / low > _HUGE:
        locator = LogLocator()
    elif high / low > _WIDE:
        locator = LogLocator(subs=(1.0, 2.0, 5.0))
    else:
        locator = MaxNLocator(8, steps=(1, 2, 2.5, 5, 10))
    panel.xaxis.set_major_locator(locator)
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")


def shrink(
    model: keras.Model, inputs: np.ndarray, file: Path, results: dict[str, Any]
) -> keras.Model:
    """Remove what is dead in a plain model, and save what is left.

    Args:
        model: The plain model.
        inputs: Examples on which both models are compared.
        file: Where to save the smaller one.
        results: Gets the report, and the largest difference between the
            predictions, relative to the largest prediction.
    """
    smaller, report = keras_vd.shrink(model, return_report=True, verbose=0)
    smaller.save(file)
    expected, outputs = (
        x.predict(inputs, batch_size=500, verbose=0) for x in (model, smaller)
    )
    difference = np.abs(outputs - expected).max() / np.abs(expected).max()
    results["shrunk"] = report.to_dict()
    results["shrinking_difference"] = float(difference)
    return smaller


def archive(
    model: keras.Model,
    file: Path,
    bits: int | dict[str, int],
    results: dict[str, Any],
) -> keras.Model | None:
    """Save a small model as an archive and as a compressed `.keras` file.

    Args:
        model: The plain model.
        file: The archive; the other file has another ending.
        bits: See `keras_vd.deployment.save_archive`.
        results: Gets the bytes of both.

    Returns:
        The model that the archive holds; None where no archive can be written.
    """
    other = file.with_suffix(".keras")
    keras_vd.deployment.save_compressed(model, other)
    results["compressed_bytes"] = other.stat().st_size
    try:
        keras_vd.deployment.save_archive(model, file, bits)
    except ImportError as error:
        print(f"no archive: {error}")
        return None
    results["archive_bytes"] = file.stat().st_size
    results["archive_bits"] = bits
    return keras_vd.deployment.load_archive(file)


def export_and_predict(
    model: keras.Model, folder: Path, inputs: np.ndarray
) -> np.ndarray | None:
    """Export a SavedModel, load it with plain TensorFlow and run it.

    Returns:
        Its outputs, or None where the backend cannot export.
    """
    if keras.backend.backend() == "torch":
        print("no SavedModel: Keras exports it from TensorFlow and JAX only")
        return None
    try:
        import tensorflow as tf

        model.export(folder, verbose=False)
    except ImportError as error:
        print(f"no SavedModel: {error} (it needs TensorFlow)")
        return None
    loaded = tf.saved_model.load(folder)
    batches = np.array_split(inputs, max(1, len(inputs) // 1000))
    return np.concatenate([loaded.serve(batch).numpy() for batch in batches])
