"""The command line of `compress`."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import keras
import numpy as np

from keras_vd._backend.writing import write_checked
from keras_vd.deployment.keras_files import save_compressed
from keras_vd.pipeline.compressing import compress

_WISHES = {
    "nonzero_ratio": (float, "weights per non-zero weight, such as 20"),
    "parameters": (None, "parameters: a number, or a share such as 0.1"),
    "macs": (None, "multiply-accumulate operations: likewise"),
    "n_active": (None, "inputs that weights still read: likewise"),
    "budget": (float, "by how much the metric may be worse, such as 0.01"),
}
_ENDINGS = (".txt", ".json", ".html")
_EPILOG = """\
The model must be a compiled one of plain Keras layers, saved with `model.save`.
The data is a file of `numpy.savez`, with arrays `x` and `y` and, optionally,
`x_val` and `y_val`; without these a share of `x` is held out. Without a wish,
it is a budget of 0.01 for a metric that shall be large, and of 5% of its value
for one that shall be small. The backend is that of KERAS_BACKEND.

exit codes: 0 if the small model was written, 1 if it could not be made or
written, 2 for arguments or files that do not fit, 3 if it was written but is
not what was wished for.

    python -m keras_vd compress model.keras --data train.npz --macs 0.5 \\
        --out small.keras --report report.html
"""


class _Problem(Exception):
    """What is wrong with an argument or a file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Its arguments; by default those of the process.

    Returns:
        The exit code.
    """
    parser, command = _parsers()
    parsed = parser.parse_args(arguments)
    try:
        return _compress(parsed)
    except (_Problem, TypeError, ValueError, FileExistsError) as error:
        _end(command, error)
    except (ImportError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _end(command: argparse.ArgumentParser, error: Exception) -> NoReturn:
    command.error(str(error))


def _parsers() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(
        "python -m keras_vd", description="Tools of keras_vd."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "compress",
        help="make a small Keras model of a compiled one",
        description="Make a small plain Keras model of a compiled one: train "
        "it, remove what it does not need, and write what is left.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("model", type=Path, metavar="MODEL.keras")
    add("--data", type=Path, required=True, metavar="FILE.npz")
    add("--out", type=Path, required=True, metavar="SMALL.keras")
    wishes = command.add_argument_group("wishes, one of them")
    one = wishes.add_mutually_exclusive_group()
    for name, (kind, text) in _WISHES.items():
        option = f"--{name.replace('_', '-')}"
        one.add_argument(option, type=kind or _size, help=text, metavar="N")
    add("--monitor", metavar="METRIC", help="the metric of the budget")
    add("--epochs", type=int, metavar="N", help="by default by the data")
    add("--batch-size", type=int, metavar="N", help="32 by default")
    add(
        "--learning-rate",
        type=float,
        metavar="RATE",
        help="by default the model's",
    )
    add("--exclude", nargs="+", metavar="LAYER", help="layers that stay")
    add("--distill", action="store_true", help="learn from the model's outputs")
    add("--work-dir", type=Path, metavar="FOLDER", help="to go on after a stop")
    add(
        "--report",
        type=Path,
        metavar="FILE",
        help=f"with {', '.join(_ENDINGS)}",
    )
    add("--seed", type=int, default=0, metavar="N")
    add("--quiet", action="store_true", help="print nothing but errors")
    return parser, command


def _size(text: str) -> float:
    """Read a number of at least 1, or a share."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def _compress(parsed: argparse.Namespace) -> int:
    for name in ("out", "report"):
        _check_place(name, getattr(parsed, name))
    model = _load(parsed.model)
    arrays = _arrays(parsed.data)
    validation = [arrays[x] for x in ("x_val", "y_val") if x in arrays]
    small, report = compress(
        model,
        arrays["x"],
        arrays["y"],
        tuple(validation) or None,
        epochs=parsed.epochs,
        batch_size=parsed.batch_size,
        monitor=parsed.monitor,
        learning_rate=parsed.learning_rate,
        exclude=parsed.exclude,
        distill=parsed.distill,
        work_dir=parsed.work_dir,
        seed=parsed.seed,
        verbose=0 if parsed.quiet else 1,
        **{name: getattr(parsed, name) for name in _WISHES},
    )
    save_compressed(small, parsed.out)
    if parsed.report is not None:
        _write(parsed.report, report)
    if not parsed.quiet:
        print(f"written to {parsed.out}")
    return 0 if report.is_met else 3


def _check_place(name: str, path: Path | None) -> None:
    """Raise before training if a file could not be written after it."""
    if path is None:
        return
    endings = (".keras",) if name == "out" else _ENDINGS
    if path.suffix not in endings:
        raise _Problem(
            f"--{name} must end in {' or '.join(endings)}, not '{path}'"
        )
    if not path.absolute().parent.is_dir():
        raise _Problem(f"--{name}: there is no folder '{path.parent}'")


def _load(path: Path) -> keras.Model:
    if not path.is_file():
        raise _Problem(f"there is no file '{path}'")
    try:
        with warnings.catch_warnings():
            # Of the state of the optimizer, which is not used.
            warnings.simplefilter("ignore")
            return keras.models.load_model(path)
    # Keras has errors of many types for files that it cannot read.
    except Exception as error:
        raise _Problem(f"'{path}' is no Keras model: {error}") from error


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise _Problem(f"--data: there is no file '{path}'")
    try:
        with np.load(path) as stored:
            arrays = dict(stored)
    # Likewise NumPy.
    except Exception as error:
        raise _Problem(f"--data: '{path}' is no npz file: {error}") from error
    missing = {"x", "y"} - set(arrays)
    if ("x_val" in arrays) != ("y_val" in arrays):
        missing |= {"x_val", "y_val"} - set(arrays)
    if missing:
        raise _Problem(
            f"--data: '{path}' has arrays {sorted(arrays)}, and no "
            f"{' and no '.join(sorted(missing))}"
        )
    return arrays


def _write(path: Path, report: Any) -> None:
    made = {
        ".txt": report.__str__,
        ".json": report.to_json,
        ".html": report.to_html,
    }[path.suffix]()

    def write(new: Path) -> None:
        new.write_text(made, encoding="utf-8")

    write_checked(path, write, Path.stat)
