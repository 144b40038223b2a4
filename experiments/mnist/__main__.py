"""Train, prune and export sparse networks on MNIST or digits.

    python -m experiments.mnist --dataset digits
    python -m experiments.mnist --model lenet-5 --method sparse_vd --seed 0

`python examples/mnist.py` starts the same from any folder. Without further
arguments each method uses the recipe of recipes.py. The run ends with a table,
and writes to --out: results.json, the trained variational model (model.keras),
the pruned plain one (pruned.keras), the same without what is dead in it
(shrunk.keras), as a SavedModel (saved_model/), in few bytes (small.keras, and
small.kvd with rounded weights), and pictures.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import rich.console
import rich.table

import keras_vd
import keras_vd.plots
from experiments import common, wishes
from experiments.mnist import data, models, recipes, training
from experiments.mnist.training import error_percent, predict
from keras_vd.posteriors.sharing import SHARES
from keras_vd.rules.costs import count_macs

FRONTIER = (3.0, 2.0, 1.0, 0.5, 0.0, -0.5, -1.0)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="mnist.py",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", choices=models.MODELS, default="lenet-300-100")
    add("--method", choices=models.METHODS, default="sparse_vd")
    add("--dataset", choices=("mnist", "digits"), default="mnist")
    add("--data", type=Path, metavar="FILE.npz", help="images of your own")
    add("--pretrain-epochs", type=int, help="default: the recipe's")
    add("--epochs", type=int, help="default: the recipe's")
    add("--finetune-epochs", type=int, help="default: the recipe's")
    add("--batch-size", type=int, help="default: the recipe's")
    add("--kl-weight", type=float, help="default: the recipe's")
    wishes.add_options(parser)
    add("--threshold", type=float, help="default: the recipe's")
    add("--share", choices=SHARES, help="default: the recipe's")
    add("--shrink-every", type=int, help="default: the recipe's")
    add("--more-bits", type=int, help="than the posterior asks for")
    add("--seed", type=int, default=0)
    common.add_image_options(parser)
    add("--out", type=Path, help="default: runs/MODEL-METHOD-DATA-seedSEED")
    parsed = parser.parse_args(arguments)
    minima = dict.fromkeys(("epochs", "batch_size", "limit", "holdout"), 1)
    minima |= dict.fromkeys(("pretrain_epochs", "finetune_epochs"), 0)
    minima |= {"shift": 0, "seed": 0, "shrink_every": 0, "more_bits": 0}
    common.check_minima(parsed, minima)
    wishes.check(parsed, bool(parsed.holdout))
    sparse = models.SPARSE
    for name, methods in (
        ("pretrain_epochs", models.VARIATIONAL),
        *((name, models.VARIATIONAL) for name in ("kl_weight", *wishes.NAMES)),
        ("shrink_every", models.VARIATIONAL),
        ("finetune_epochs", (*sparse, *models.GATES)),
        ("threshold", sparse),
        ("share", sparse),
        ("more_bits", models.WEIGHTS),
    ):
        if getattr(parsed, name) is not None and parsed.method not in methods:
            option = "--" + name.replace("_", "-")
            common.fail(
                f"{option} goes with --method {', '.join(methods)}, "
                f"not with --method {parsed.method}"
            )
    return parsed


def choose_recipe(arguments: argparse.Namespace, images: int) -> recipes.Recipe:
    """The default recipe with the user's wishes in place."""
    changes = {
        name: getattr(arguments, name)
        for name in (
            "pretrain_epochs",
            "epochs",
            "finetune_epochs",
            "batch_size",
            "kl_weight",
            "threshold",
            "share",
            "shrink_every",
            "shift",
        )
        if getattr(arguments, name) is not None
    }
    recipe = recipes.get(arguments.model, arguments.method, images)
    recipe = recipe.changed(**changes)
    return dataclasses.replace(recipe, wish=wishes.given(arguments))


def frontier(
    model: keras.Sequential, images: data.Images, weights: int
) -> list[dict[str, float]]:
    """Error and nonzero ratio of the same weights at several thresholds.

    Args:
        model: The variational network.
        images: The data.
        weights: Number of weights of the network that training started from.
    """
    plain = keras_vd.to_deterministic(model)
    points = []
    for threshold in FRONTIER:
        nonzero = 0
        for posterior in keras_vd.variational_weights(model):
            log_alpha = keras.ops.convert_to_numpy(posterior.log_alpha)
            theta = keras.ops.convert_to_numpy(posterior.theta)
            kept = np.where(log_alpha < threshold, theta, 0.0)
            plain.get_layer(posterior.label).kernel.assign(kept)
            nonzero += np.sum(kept != 0)
        points.append(
            {
                "threshold": threshold,
                "error_percent": error_percent(
                    predict(plain, images), images.y_test
                ),
                "nonzero_ratio": weights / max(1, int(nonzero)),
            }
        )
    return points


def sizes(
    network: str, images: data.Images, recipe: recipes.Recipe
) -> dict[str, int | None]:
    """Count what the network has before anything is removed from it."""
    plain = models.build(
        network, "none", images.x_train.shape[1:], images.classes, recipe
    )
    return {"parameters": plain.count_params(), "macs": count_macs(plain)}


def run_variational(
    arguments: argparse.Namespace,
    images: data.Images,
    recipe: recipes.Recipe,
    out: Path,
    results: dict[str, Any],
) -> tuple[keras.Sequential, keras_vd.reports.SparsityReport]:
    """Train, prune, fine-tune; add to `results` and write to `out`."""
    errors, plots = results["errors_percent"], keras_vd.plots
    start = training.pretrain(arguments.model, images, recipe)
    model, history, whole = training.train_variational(
        arguments.model, images, recipe, arguments.method, start
    )
    errors["trained"] = error_percent(predict(model, images), images.y_test)
    results["history"] = history
    has_weights = bool(keras_vd.variational_weights(model))
    if has_weights:
        results["frontier"] = frontier(model, images, whole.weights)
        # Before pruning, which turns log_alpha into a mark.
        plots.plot_log_alpha(model).savefig(out / "log_alpha.png")
    report = keras_vd.prune(model, recipe.prune_threshold(arguments.method))
    report = report.relative_to(whole)
    errors["pruned"] = error_percent(predict(model, images), images.y_test)
    results["sparsity"] = report.to_dict()
    if has_weights:
        results["bit_widths"] = keras_vd.bit_widths(model)
        plots.plot_kept_weights(model).savefig(out / "kept_weights.png")
    plots.plot_training(history).savefig(out / "training.png")
    model.save(out / "model.keras")
    final = keras_vd.to_deterministic(model)
    is_whole = not training.shrinks_while_training(recipe, arguments.method)
    if recipe.shrink_every and arguments.method in models.GATES and is_whole:
        final = keras_vd.shrink(final, verbose=0)
    training.finetune(final, images, recipe)
    if recipe.finetune_epochs:
        errors["fine-tuned"] = error_percent(
            predict(final, images), images.y_test
        )
    results["whole"] = sizes(arguments.model, images, recipe)
    return final, report


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    name = arguments.data.stem if arguments.data else arguments.dataset
    out = common.prepare_folder(
        arguments.out
        or Path("runs")
        / f"{arguments.model}-{arguments.method}-{name}-seed{arguments.seed}"
    )
    images = data.load(arguments.dataset, arguments.data)
    if arguments.limit:
        images = images.limited(arguments.limit)
    if arguments.holdout:
        images = images.held_out(arguments.holdout)
    recipe = choose_recipe(arguments, len(images.x_train))
    keras.utils.set_random_seed(arguments.seed)
    print(common.describe_device())
    print(f"{arguments.model}, {arguments.method}, {name}: {recipe}")

    start, cpu_start = time.perf_counter(), time.process_time()
    results: dict[str, Any] = {
        "model": arguments.model,
        "method": arguments.method,
        "data": name,
        "training_images": len(images.x_train),
        "test_images": len(images.x_test),
        "holdout": arguments.holdout,
        "seed": arguments.seed,
        "device": common.describe_device(),
        "recipe": dataclasses.asdict(recipe),
        "errors_percent": {},
    }
    errors = results["errors_percent"]
    report = None
    if arguments.method in models.VARIATIONAL:
        final, report = run_variational(arguments, images, recipe, out, results)
    else:
        final = training.train_plain(
            arguments.model, images, recipe, arguments.method, recipe.epochs
        )
        errors["trained"] = error_percent(predict(final, images), images.y_test)
    results["seconds"] = time.perf_counter() - start
    results["cpu_seconds"] = time.process_time() - cpu_start
    final.save(out / "pruned.keras" if report else out / "model.keras")
    expected = predict(final, images)
    shrunk = common.shrink(final, images.x_test, out / "shrunk.keras", results)
    results["shrunk"] |= results.pop("whole", {})
    bits = results.pop("bit_widths", 8)
    if isinstance(bits, dict):
        # Fine-tuned weights have left the middle of their posterior.
        more = arguments.more_bits or 0
        bits = {name: x + more for name, x in bits.items()}
    archived = common.archive(shrunk, out / "small.kvd", bits, results)
    if archived is not None:
        errors["archived"] = error_percent(
            predict(archived, images), images.y_test
        )
    outputs = common.export_and_predict(
        shrunk, out / "saved_model", images.x_test
    )
    if outputs is not None:
        errors["exported"] = error_percent(outputs, images.y_test)
        difference = np.abs(outputs - expected).max()
        results["export_difference"] = float(difference)
    common.write_json(out / "results.json", results)
    print_summary(results, report, out)
    return results


def print_summary(
    results: dict[str, Any],
    report: keras_vd.reports.SparsityReport | None,
    out: Path,
) -> None:
    console = rich.console.Console(width=110)
    if report is not None:
        console.print(report.to_table())
    table = rich.table.Table(title=f"{results['model']}, {results['method']}")
    table.add_column("model")
    table.add_column("error %", justify="right")
    table.add_column("accuracy %", justify="right")
    for stage, error in results["errors_percent"].items():
        table.add_row(stage, f"{error:.2f}", f"{100.0 - error:.2f}")
    console.print(table)
    if report is not None and report.rows:
        console.print(
            f"n_active: {report.n_active}, nonzero ratio: "
            f"{report.nonzero_ratio:.1f} (with biases: "
            f"{report.nonzero_ratio_with_biases:.1f})"
        )
    shrunk = results["shrunk"]
    console.print(
        f"shrunk: {shrunk['kept_parameters']:,} of {shrunk['parameters']:,} "
        f"parameters, {shrunk['kept_macs']:,} of {shrunk['macs']:,} "
        "multiplications"
    )
    sizes = f"{results['compressed_bytes']:,} bytes compressed"
    if "archive_bytes" in results:
        sizes += f", {results['archive_bytes']:,} as an archive"
    console.print(sizes)
    console.print(f"{results['seconds']:.0f} s of training; written to {out}")


if __name__ == "__main__":
    run(parse_arguments())
