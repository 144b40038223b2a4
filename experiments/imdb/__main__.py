"""Learn which words, units and gates a sentiment model needs.

    python -m experiments.imdb --dataset synthetic
    TFDS_DATA_DIR=... python -m experiments.imdb
    python -m experiments.imdb --groups vocabulary input units gates

`python examples/imdb.py` starts the same from any folder. The run ends with
tables and the words that are left, and writes to --out: results.json,
words.txt, the variational model (model.keras), the pruned plain one
(pruned.keras) and a SavedModel that takes strings (saved_model/).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import keras_vd
from experiments import common, wishes
from experiments.imdb import data, export, models, recipes, tables
from experiments.rates import PiecewiseLinear
from keras_vd.posteriors.sharing import SHARES


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="imdb.py",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", choices=models.MODELS, default="lstm")
    add("--method", choices=models.METHODS, default="sparse_vd")
    add(
        "--groups",
        nargs="*",
        choices=models.GROUPS,
        help="default: the recipe's",
    )
    add("--dataset", choices=("imdb", "synthetic"), default="imdb")
    add("--data", type=Path, metavar="FILE.npz", help="texts of your own")
    add("--recipe", choices=recipes.NAMES, help="default: by the rest")
    add("--vocabulary", type=int, help="token ids; default: the recipe's")
    add("--length", type=int, help="words of a text; default: the recipe's")
    add("--features", type=int, help="of a word; default: the recipe's")
    add("--units", type=int, help="recurrent; default: the recipe's")
    add("--share", choices=SHARES, help="default: the recipe's")
    wishes.add_options(parser)
    add("--epochs", type=int, help="of the method; default: the recipe's")
    add("--seed", type=int, default=0)
    add("--limit", type=int, help="use only that many training texts")
    add("--out", type=Path, help="default: runs/MODEL-METHOD-DATA-seedSEED")
    parsed = parser.parse_args(arguments)
    minima = dict.fromkeys(("length", "features", "units", "epochs"), 1)
    minima |= {"vocabulary": 3, "limit": 10, "seed": 0}
    common.check_minima(parsed, minima)
    wishes.check(parsed, has_held_out=True)
    for name in ("groups", "share", *wishes.NAMES):
        if getattr(parsed, name) and parsed.method not in models.SPARSE:
            option = "--" + name.replace("_", "-")
            common.fail(
                f"{option} goes with --method {', '.join(models.SPARSE)}, not "
                f"with --method {parsed.method}"
            )
    return parsed


def choose_recipe(
    arguments: argparse.Namespace,
) -> tuple[str, recipes.Recipe]:
    """The recipe with the user's wishes in place, and its name."""
    is_plain = arguments.method not in models.SPARSE
    name = arguments.recipe or (
        "synthetic"
        if arguments.dataset == "synthetic" and not arguments.data
        else "plain"
        if is_plain
        else "quick"
    )
    changes = {
        key: getattr(arguments, key)
        for key in (
            "vocabulary",
            "length",
            "features",
            "units",
            "groups",
            "share",
        )
        if getattr(arguments, key) is not None
    }
    recipe = dataclasses.replace(recipes.RECIPES[name], **changes)
    if arguments.epochs:
        recipe = recipe.with_epochs(is_plain, arguments.epochs)
    if wishes.given(arguments):
        recipe = recipe.for_wish(wishes.given(arguments))
    return name, recipe


@dataclasses.dataclass
class Run:
    """A network in training, which may shrink.

    Attributes:
        texts: The data, with the ids that the network knows.
        words: The word of each id.
        network: Description of the network.
        model: The network itself.
        batch_size: Texts per step.
        wish: Arguments of `KLTarget`, or nothing.
        history: The logs of each epoch.
    """

    texts: data.Texts
    words: list[str]
    network: models.Network
    model: keras.Sequential
    batch_size: int
    wish: dict[str, Any]
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def train(self, stage: recipes.Stage) -> None:
        """Train for one stage, removing what is dead now and then."""
        self.network = dataclasses.replace(
            self.network, structure_scale=stage.structure_scale
        )
        step = stage.shrink_every or stage.epochs
        for start in range(0, stage.epochs, step):
            if stage.shrink_every:
                self.shrink()
            self._fit(stage, start, min(start + step, stage.epochs))

    def shrink(self) -> None:
        """Leave out what has no effect on the output any more."""
        self.model, self.network, self.words, new_ids = models.shrink(
            self.model, self.network, self.words
        )
        self.texts = self.texts.renumbered(new_ids)
        print(
            f"{len(self.words) - 2} words, {self.network.features} features "
            f"and {self.network.units} units are left"
        )

    def _fit(self, stage: recipes.Stage, start: int, end: int) -> None:
        """Epochs `start` to `end` of a stage, with a new optimizer."""

        def kl_weight(epoch: int) -> float:
            return stage.at(stage.kl_weight, epoch)

        x, y = self.texts.x_train, self.texts.y_train
        rates = [
            stage.at(stage.learning_rate, epoch)
            for epoch in range(start, end + 1)
        ]
        steps = -(-len(x) // self.batch_size)
        compile_model(self.model, PiecewiseLinear(rates, steps))
        callbacks: list[keras.callbacks.Callback] = []
        if self.network.method in models.SPARSE and self.wish:
            callbacks.append(keras_vd.callbacks.KLTarget(len(x), **self.wish))
        elif self.network.method in models.SPARSE:
            callbacks.append(
                keras_vd.callbacks.KLAnnealing(
                    len(x),
                    max_weight=float(any(map(kl_weight, range(start, end)))),
                    schedule=kl_weight,
                )
            )
        length = stage.length or x.shape[1]
        history = self.model.fit(
            data.tail(x, length),
            y,
            batch_size=self.batch_size,
            initial_epoch=start,
            epochs=end,
            callbacks=callbacks,
            validation_data=(self.texts.x_valid, self.texts.y_valid),
            verbose=1 if sys.stdout.isatty() else 2,
        )
        names = list(history.history)
        values = zip(*history.history.values(), strict=True)
        self.history += [dict(zip(names, row, strict=True)) for row in values]


def compile_model(model: keras.Model, learning_rate: Any) -> None:
    model.compile(
        keras.optimizers.Adam(learning_rate, global_clipnorm=1.0),
        keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy("accuracy", threshold=0.0)],
    )


def accuracy_percent(logits: np.ndarray, labels: np.ndarray) -> float:
    return 100.0 * float(np.mean((logits[:, 0] > 0.0) == (labels > 0.5)))


def predict(model: keras.Model, x: np.ndarray) -> np.ndarray:
    return model.predict(x, batch_size=500, verbose=0)


def train(
    arguments: argparse.Namespace,
    texts: data.Texts,
    recipe: recipes.Recipe,
) -> tuple[Run, tuple[models.Network, Any]]:
    """Train the network, plain first where the recipe says so.

    Returns:
        The run; description and report of the network it started from.
    """
    is_sparse = arguments.method in models.SPARSE
    network = models.Network(
        arguments.model,
        arguments.method,
        len(texts.words),
        recipe.features,
        recipe.units,
        recipe.groups,
        recipe.log_sigma2_init,
        recipe.variational[0].structure_scale if is_sparse else 1.0,
        recipe.share,
    )
    model = network.build()
    report = keras_vd.sparsity_report(model) if is_sparse else None
    run = Run(
        texts, texts.words, network, model, recipe.batch_size, recipe.wish
    )
    if is_sparse and recipe.plain:
        run.network = network.plain()
        run.model = run.network.build()
    for stage in recipe.plain:
        run.train(stage)
    if is_sparse:
        if recipe.plain:
            models.start_from(model, run.model)
        run.network, run.model = network, model
        for stage in recipe.variational:
            run.train(stage)
    return run, (network, report)


def prune(run: Run, accuracies: dict[str, float]) -> keras.Sequential:
    """The plain network of what is left."""
    x, y = run.texts.x_test, run.texts.y_test
    accuracies["trained"] = accuracy_percent(predict(run.model, x), y)
    keras_vd.prune(run.model)
    run.shrink()
    x = run.texts.x_test
    accuracies["pruned"] = accuracy_percent(predict(run.model, x), y)
    return keras_vd.to_deterministic(run.model)


def write_saved_model(
    model: keras.Sequential,
    run: Run,
    length: int,
    out: Path,
    results: dict[str, Any],
) -> None:
    """Write the SavedModel, and what it predicts to the results."""
    strings = run.texts.raw_test
    if strings is None:
        x = run.texts.x_test
        outputs = common.export_and_predict(model, out / "saved_model", x)
    else:
        ids = {run.words[i]: i for i in range(2, len(run.words))}
        if not export.export(model, ids, length, out / "saved_model"):
            return
        outputs = export.predict_exported(out / "saved_model", strings)
    if outputs is None:
        return
    expected = predict(model, run.texts.x_test)
    results["export_difference"] = float(np.abs(outputs - expected).max())
    results["accuracy_percent"]["exported"] = accuracy_percent(
        outputs - 0.5, run.texts.y_test
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    name = arguments.data.stem if arguments.data else arguments.dataset
    out = common.prepare_folder(
        arguments.out
        or Path("runs")
        / f"{arguments.model}-{arguments.method}-{name}-seed{arguments.seed}"
    )
    recipe_name, recipe = choose_recipe(arguments)
    keras.utils.set_random_seed(arguments.seed)
    texts = data.load(
        arguments.dataset,
        arguments.data,
        recipe.vocabulary,
        recipe.length,
        arguments.seed,
    )
    if arguments.limit:
        texts = texts.limited(arguments.limit)
    print(common.describe_device())
    print(f"{arguments.model}, {arguments.method}, {name}: {recipe}")
    start = time.perf_counter()
    results: dict[str, Any] = {
        "model": arguments.model,
        "method": arguments.method,
        "data": name,
        "recipe_name": recipe_name,
        "recipe": dataclasses.asdict(recipe),
        "training_texts": len(texts.x_train),
        "test_texts": len(texts.x_test),
        "seed": arguments.seed,
        "device": common.describe_device(),
        "accuracy_percent": {},
    }
    trained, initial = train(arguments, texts, recipe)
    accuracies = results["accuracy_percent"]
    is_sparse = arguments.method in models.SPARSE
    if is_sparse:
        final = prune(trained, accuracies)
        results["sparsity"] = tables.describe_sparsity(
            *initial,
            keras_vd.sparsity_report(trained.model),
            models.find_alive(trained.model),
        )
        if arguments.data or arguments.dataset != "imdb":
            del results["sparsity"]["ratio_to_published"]
        results["words"] = tables.word_effects(final, trained.words)
        results["vocabulary"] = trained.words
        if arguments.dataset == "synthetic" and not arguments.data:
            matter = [*data.GOOD, *data.BAD]
            results["words_that_matter"] = matter
        trained.model.save(out / "model.keras")
        write_words(out / "words.txt", results["words"])
    else:
        final = trained.model
        accuracies["trained"] = accuracy_percent(
            predict(final, texts.x_test), texts.y_test
        )
    texts = trained.texts  # with the ids of the words that are left
    results["held_out_accuracy_percent"] = accuracy_percent(
        predict(trained.model, texts.x_valid), texts.y_valid
    )
    results["history"] = trained.history
    results["seconds"] = time.perf_counter() - start
    final = models.with_probabilities(final)
    final.save(out / ("pruned.keras" if is_sparse else "model.keras"))
    final = common.shrink(
        final, trained.texts.x_test, out / "shrunk.keras", results
    )
    write_saved_model(final, trained, recipe.length, out, results)
    common.write_json(out / "results.json", results)
    tables.print_summary(results)
    print(f"{results['seconds']:.0f} s of training; written to {out}")
    return results


def write_words(path: Path, effects: list[tuple[str, float]]) -> None:
    lines = [f"{effect:+.3f} {word}" for word, effect in effects]
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    run(parse_arguments())
