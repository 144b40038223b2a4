"""A trained Keras model, converted, made sparse, shrunk and deployed.

What experiments.conversion.pretrained and .transformer share.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import rich.console
import rich.table

import keras_vd
import keras_vd.plots
from experiments import common, wishes
from keras_vd.posteriors.sharing import SHARES

# Columns of the table: figures of a stage, and how they are printed.
COLUMNS = {
    "stage": ("stage", ""),
    "accuracy %": ("accuracy_percent", ".2f"),
    "weights per non-zero one": ("nonzero_ratio", ".1f"),
    "parameters": ("parameters", ",d"),
    "not zero": ("nonzero", ",d"),
    "seconds": ("seconds", ".0f"),
}
METHODS = ("sparse_vd", "ard", "gaussian")
# What the command line can change in a recipe; numbers, share and groups.
CHANGES = (
    "epochs",
    "variational_epochs",
    "finetune_epochs",
    "batch_size",
    "variational_learning_rate",
    "kl_weight",
    "threshold",
    "share",
    "groups",
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train a model, make it sparse and train what is left.

    Attributes:
        epochs: Epochs of the plain model.
        variational_epochs: Epochs of the variational model.
        finetune_epochs: Epochs of the pruned model, its zeros frozen.
        batch_size: Examples per step.
        learning_rate: Of Adam for the plain model; falls linearly to 0.
        variational_learning_rate: The same for the variational model.
        finetune_learning_rate: The same for the pruned one.
        kl_weight: Final weight of the KL; 1 is the variational bound.
        warmup_share: Share of the variational epochs before that is reached.
        threshold: log_alpha at which a weight is pruned at the end; the
            Gaussian posterior has Bayesian model reduction instead.
        share: Which weights share a variance, see `posteriors.SparseVD`.
        groups: Names of groups of weights, see `to_variational`.
        kl_scales: Factors of the KL of some layers, by their names.
        wish: Arguments of `KLTarget`, which then takes the place of
            `kl_weight`.
    """

    epochs: int
    variational_epochs: int
    finetune_epochs: int
    batch_size: int
    learning_rate: float = 1e-3
    variational_learning_rate: float = 1e-3
    finetune_learning_rate: float = 1e-3
    kl_weight: float = 1.0
    warmup_share: float = 0.5
    threshold: float = 3.0
    share: str = "weight"
    groups: tuple[str, ...] = ()
    kl_scales: dict[str, float] = dataclasses.field(default_factory=dict)
    wish: dict[str, Any] = dataclasses.field(default_factory=dict)

    def posterior(
        self, method: str
    ) -> Callable[[keras.layers.Layer], keras_vd.posteriors.WeightPosterior]:
        """The posterior of each layer."""

        def choose(
            layer: keras.layers.Layer,
        ) -> keras_vd.posteriors.WeightPosterior:
            options: dict[str, Any] = {
                "kl_scale": self.kl_scales.get(layer.name, 1.0),
                "share": self.share,
            }
            if method == "gaussian":
                return keras_vd.posteriors.Gaussian(
                    prior=keras_vd.priors.Gaussian(_size_of_weights(layer)),
                    criterion="bmr",
                    **options,
                )
            sparse = {
                "sparse_vd": keras_vd.posteriors.SparseVD,
                "ard": keras_vd.posteriors.ARD,
            }[method]
            return sparse(**options)

        return choose

    def prune_threshold(self, method: str) -> float | None:
        """What to prune at; None leaves it to the method's posterior."""
        is_ours = method != "gaussian" and not self.wish
        return self.threshold if is_ours else None

    def for_small_sets(self) -> Recipe:
        """More epochs, as few steps make one, and less KL per example."""
        return dataclasses.replace(
            self,
            epochs=40,
            variational_epochs=60,
            finetune_epochs=20 if self.finetune_epochs else 0,
            batch_size=32,
            kl_weight=0.3 * self.kl_weight,
        )

    def annealing(self, num_examples: int) -> keras.callbacks.Callback:
        """The callback that sets the KL weight."""
        if self.wish:
            return keras_vd.callbacks.KLTarget(num_examples, **self.wish)
        return keras_vd.callbacks.KLAnnealing(
            num_examples,
            start_epoch=0,
            warmup_epochs=round(self.warmup_share * self.variational_epochs),
            max_weight=self.kl_weight,
        )


def _size_of_weights(layer: keras.layers.Layer) -> float:
    """Root mean square of a layer's weights, biases left out."""
    weights = map(keras.ops.convert_to_numpy, layer.weights)
    squares = [np.square(x).ravel() for x in weights if x.ndim > 1]
    return float(np.sqrt(np.mean(np.concatenate(squares))))


class Task:
    """Data with a loss: what a model is trained and judged by.

    Args:
        data: Arguments `x` and, if that is no dataset, `y` of `fit`.
        num_examples: Number of training examples.
        x_test: Inputs to judge by.
        y_test: Their labels.
        loss: Of logits.
        metric: Makes the metric of logits that they are judged by.
        is_held_out: Whether these are held-out data, which are looked at after
            each epoch, too.
    """

    def __init__(
        self,
        data: dict[str, Any],
        num_examples: int,
        x_test: np.ndarray,
        y_test: np.ndarray,
        loss: keras.losses.Loss,
        metric: Callable[[], keras.metrics.Metric],
        is_held_out: bool,
    ) -> None:
        self.data = data
        self.num_examples = num_examples
        self.x_test, self.y_test = x_test, y_test
        self.loss = loss
        self.metric = metric
        self.is_held_out = is_held_out

    def fit(
        self,
        model: keras.Model,
        epochs: int,
        learning_rate: float,
        callbacks: tuple[keras.callbacks.Callback, ...] = (),
    ) -> dict[str, list[float]]:
        """Train with Adam, the learning rate falling linearly to 0."""

        def rate(epoch: int) -> float:
            return learning_rate * (1.0 - epoch / epochs)

        model.compile(
            keras.optimizers.Adam(learning_rate, global_clipnorm=1.0),
            self.loss,
            metrics=[self.metric()],
        )
        schedule = keras.callbacks.LearningRateScheduler(rate)
        history = model.fit(
            **self.data,
            epochs=epochs,
            callbacks=[*callbacks, schedule],
            validation_data=(
                (self.x_test, self.y_test) if self.is_held_out else None
            ),
            verbose=1 if sys.stdout.isatty() else 2,
        )
        return history.history

    def accuracy_percent(self, model: keras.Model) -> float:
        return self.percent(self.predict(model), self.y_test)

    def percent(self, logits: np.ndarray, labels: np.ndarray) -> float:
        metric = self.metric()
        metric.update_state(labels, logits)
        return 100.0 * float(metric.result())

    def predict(self, model: keras.Model) -> np.ndarray:
        return model.predict(self.x_test, batch_size=500, verbose=0)


class Stages:
    """What each stage makes of a model.

    Args:
        task: What the models are judged by.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.rows: list[dict[str, Any]] = []
        self.start = time.perf_counter()

    def add(self, stage: str, model: keras.Model, **figures: Any) -> None:
        """Judge what has come out of a stage.

        Args:
            stage: Name of the stage.
            model: Its model.
            figures: What is known of it besides.
        """
        seconds = time.perf_counter() - self.start
        accuracy = self.task.accuracy_percent(model)
        self.rows.append(
            {
                "stage": stage,
                "accuracy_percent": accuracy,
                "seconds": seconds,
                **figures,
            }
        )
        print(f"{stage}: accuracy {accuracy:.2f}%")
        self.start = time.perf_counter()

    def cells(self) -> list[list[str]]:
        """The table's rows."""
        return [
            [
                f"{row[name]:{style}}" if row.get(name) is not None else ""
                for name, style in COLUMNS.values()
            ]
            for row in self.rows
        ]

    def to_table(self) -> rich.table.Table:
        table = rich.table.Table(title="Stages")
        for header, (_, style) in COLUMNS.items():
            table.add_column(header, justify="right" if style else "left")
        for cells in self.cells():
            table.add_row(*cells)
        return table


def add_arguments(
    parser: argparse.ArgumentParser, posterior: str, groups: tuple[str, ...]
) -> None:
    """Add the options that both experiments have.

    Args:
        parser: Where to add them.
        posterior: The default of `--posterior`.
        groups: Names of groups that layers of the network can have.
    """
    add = parser.add_argument
    add("--posterior", choices=METHODS, default=posterior)
    add("--share", choices=SHARES, help="default: the recipe's")
    add("--groups", nargs="*", choices=groups, help="default: none")
    for name in CHANGES[:-2]:
        kind = int if name.endswith(("epochs", "size")) else float
        option = "--" + name.replace("_", "-")
        add(option, type=kind, help="default: the recipe's")
    wishes.add_options(parser)
    add("--seed", type=int, default=0)
    add("--limit", type=int, help="use only that many training examples")
    add("--out", type=Path, help="default: a folder in runs/")
    add(
        "--deploy",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write the result in all formats and measure them",
    )


def check_arguments(arguments: argparse.Namespace) -> None:
    minima = dict.fromkeys(("limit", "batch_size", "variational_epochs"), 1)
    minima |= dict.fromkeys(("epochs", "finetune_epochs", "kl_weight"), 0)
    common.check_minima(arguments, {**minima, "seed": 0})
    common.check_positive(arguments, "variational_learning_rate")
    wishes.check(arguments, bool(getattr(arguments, "holdout", False)))
    if arguments.posterior == "gaussian" and arguments.threshold is not None:
        common.fail(
            "--threshold goes with --posterior sparse_vd or ard: gaussian has "
            "Bayesian model reduction, without a threshold"
        )


def choose_recipe(
    recipe: Recipe, arguments: argparse.Namespace, examples: int
) -> Recipe:
    """The recipe with the user's wishes, for that many training examples."""
    if examples < 10_000:
        recipe = recipe.for_small_sets()
    changes = {name: getattr(arguments, name) for name in CHANGES}
    return dataclasses.replace(
        recipe,
        wish=wishes.given(arguments),
        **{k: v for k, v in changes.items() if v is not None},
    )


def load(file: Path, task: Task) -> keras.Model:
    """A trained model from a file, which must fit the data."""
    try:
        model = keras.saving.load_model(file, compile=False)
        outputs = model.predict(task.x_test[:1], verbose=0)
        task.percent(outputs, task.y_test[:1])
    # Keras raises errors of many types for what it cannot read or call.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        common.fail(f"--model {file} is no model for these data: {reason}")
    return model


def run(
    dense: keras.Model,
    task: Task,
    recipe: Recipe,
    method: str,
    out: Path,
    deploy: bool,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Take a trained model through all stages.

    Args:
        dense: The trained model.
        task: Its data.
        recipe: How to train the other stages.
        method: Name of the posterior of the variational layers.
        out: Folder for models and pictures.
        deploy: Whether to write the result in all formats and measure them.
        facts: What results.json shall say about the run.

    Returns:
        What results.json holds.
    """
    stages = Stages(task)
    stages.add("dense", dense, **_size(dense))
    dense.save(out / "dense.keras")
    model, conversion = keras_vd.to_variational(
        dense,
        recipe.posterior(method),
        groups=tuple(recipe.groups),
        return_report=True,
    )
    stages.add("converted", model)
    history = task.fit(
        model,
        recipe.variational_epochs,
        recipe.variational_learning_rate,
        (recipe.annealing(task.num_examples),),
    )
    stages.add("trained with noise", model)
    keras_vd.plots.plot_log_alpha(model).savefig(out / "log_alpha.png")
    report = keras_vd.prune(model, recipe.prune_threshold(method))
    plain = keras_vd.to_deterministic(model)
    ratio = report.nonzero_ratio
    stages.add("pruned", plain, nonzero_ratio=ratio, **_size(plain))
    if recipe.finetune_epochs:
        keras_vd.freeze_zeros(plain)
        task.fit(plain, recipe.finetune_epochs, recipe.finetune_learning_rate)
        stages.add("fine-tuned", plain, nonzero_ratio=ratio, **_size(plain))
    plain.save(out / "pruned.keras")
    results: dict[str, Any] = {}
    shrunk = common.shrink(plain, task.x_test, out / "shrunk.keras", results)
    stages.add("shrunk", shrunk, **_size(shrunk))
    console = rich.console.Console(width=110)
    console.print(report.to_table())
    console.print(stages.to_table())
    print(common.markdown(list(COLUMNS), stages.cells()))
    if deploy:
        x = task.x_test[:64]
        deployed = keras_vd.deployment.deployment_report(shrunk, x, dense)
        results["deployment"] = deployed.to_dict()
    results = {
        **facts,
        **results,
        "method": method,
        "device": common.describe_device(),
        "recipe": dataclasses.asdict(recipe),
        "conversion": conversion.to_dict(),
        "sparsity": report.to_dict(),
        "stages": stages.rows,
        "history": history,
    }
    common.write_json(out / "results.json", results)
    return results


def _size(model: keras.Model) -> dict[str, int]:
    weights = [keras.ops.convert_to_numpy(x) for x in model.weights]
    return {
        "parameters": model.count_params(),
        "nonzero": sum(int(np.count_nonzero(x)) for x in weights),
    }
