"""The networks, how they are trained and how they predict."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

import keras_vd
from experiments.shifts.data import Problem
from experiments.shifts.measures import (
    Prediction,
    measure,
    negative_log_likelihood,
)
from experiments.shifts.recipes import Recipe

METHODS = (
    *("plain", "dropout", "gaussian", "gaussian_first", "gaussian_last"),
    *("vd", "sparse_vd"),
)
# Of the layers with a kernel or a table, the one that alone is variational.
PARTS = {"gaussian_first": 0, "gaussian_last": -1}
HIDDEN_UNITS = (300, 100)
FEATURES, FILTERS, WIDTH = 16, 32, 5  # of a word, of the convolution
PREDICTION_BATCH = 1000

Predictor = Callable[[np.ndarray], Prediction]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run is made with.

    Attributes:
        num_samples: Draws of each prediction.
        members: Networks of the ensemble.
        epochs: In place of those of the recipes, if not None.
    """

    num_samples: int
    members: int
    epochs: int | None


class MonteCarloDropout(layers.Dropout):
    """Dropout at inference, too (Gal and Ghahramani 2016, arXiv:1506.02142)."""

    # A functional model passes its own `training` over that of a call.
    def call(self, inputs: Any, training: bool = True) -> Any:
        return super().call(inputs, training=True)


def build(problem: Problem, recipe: Recipe) -> keras.Model:
    """Build the plain network; its outputs are logits.

    Images meet dense layers. Texts meet a convolution over the words, to which
    their order matters. With a `dropout_rate` what dense layers and convolution
    read is dropped, at inference, too.
    """

    def dropped(x: Any) -> Any:
        if not recipe.dropout_rate:
            return x
        return MonteCarloDropout(recipe.dropout_rate)(x)

    dtype = "int32" if problem.is_text else "float32"
    inputs = keras.Input(problem.x_train.shape[1:], dtype=dtype)
    if problem.is_text:
        words = int(problem.x_train.max()) + 1
        x = dropped(layers.Embedding(words, FEATURES)(inputs))
        x = layers.Conv1D(FILTERS, WIDTH, activation="relu")(x)
        x = dropped(layers.GlobalMaxPooling1D()(x))
    else:
        x = layers.Flatten()(inputs)
        for units in HIDDEN_UNITS:
            x = layers.Dense(units, activation="relu")(x)
            x = dropped(x)
    return keras.Model(inputs, layers.Dense(problem.classes)(x))


def posterior(method: str, recipe: Recipe) -> keras_vd.posteriors.Posterior:
    """The posterior of every weight but the biases."""
    if method == "vd":
        return keras_vd.posteriors.VD(share="unit")
    start = {"log_sigma2_init": recipe.log_sigma2_init}
    if method == "sparse_vd":
        return keras_vd.posteriors.SparseVD(**start)
    prior = keras_vd.priors.Gaussian(recipe.prior_stddev)
    return keras_vd.posteriors.Gaussian(prior=prior, **start)


def train(
    problem: Problem, method: str, recipe: Recipe, seed: int
) -> keras.Model:
    """Train one network."""
    keras.utils.set_random_seed(seed)
    model = build(problem, recipe)
    number = len(problem.x_train)
    callbacks = []
    if method not in ("plain", "dropout"):
        weighted = [x.name for x in model.layers if x.trainable_weights]
        model = keras_vd.to_variational(
            model,
            posterior(method, recipe),
            include=weighted[PARTS[method]] if method in PARTS else None,
            verbose=0,
        )
        annealing = keras_vd.callbacks.KLAnnealing(
            number,
            start_epoch=0,
            warmup_epochs=recipe.epochs // 2,
            max_weight=recipe.kl_weight,
            verbose=0,
        )
        callbacks.append(annealing)
    steps = -(-number // recipe.batch_size) * recipe.epochs
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.PolynomialDecay(
                recipe.learning_rate, steps, 0.0
            )
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(
        problem.x_train,
        problem.y_train,
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        verbose=0,
        callbacks=callbacks,
    )
    return model


def logits(model: keras.Model, x: np.ndarray) -> np.ndarray:
    return model.predict(x, batch_size=PREDICTION_BATCH, verbose=0)


def predictor(
    model: keras.Model, method: str, settings: Settings, seed: int
) -> Predictor:
    """What predicts with the network itself: sampled unless it is plain."""
    if method == "plain":
        return lambda x: Prediction.of_draws([logits(model, x)])
    draws = settings.num_samples
    if method == "dropout":
        return lambda x: Prediction.of_draws(
            logits(model, x) for _ in range(draws)
        )

    def predict(x: np.ndarray) -> Prediction:
        found = keras_vd.predict_mc(
            model, x, draws, PREDICTION_BATCH, seed=seed, verbose=0
        )
        return Prediction(
            found.mean, found.predictive_entropy, found.mutual_information
        )

    return predict


def choose(
    problem: Problem,
    method: str,
    candidates: tuple[Recipe, ...],
    settings: Settings,
    seed: int,
) -> tuple[Recipe, keras.Model, list[float]]:
    """Train by every candidate; held-out examples tell which is best.

    Returns:
        The best recipe, its network, and the negative log likelihood of the
        held-out examples by each of them, in nats.
    """
    best: tuple[float, Recipe, keras.Model] | None = None
    scores = []
    if settings.epochs:
        changed = {"epochs": settings.epochs}
        candidates = tuple(
            dataclasses.replace(recipe, **changed) for recipe in candidates
        )
    for recipe in dict.fromkeys(candidates):
        model = train(problem, method, recipe, seed)
        predict = predictor(model, method, settings, seed)
        score = negative_log_likelihood(
            predict(problem.x_valid), problem.y_valid
        )
        scores.append(score)
        print(f"  held-out NLL {score:.4f}: {recipe}", flush=True)
        if best is None or score < best[0]:
            best = score, recipe, model
        del model, predict
        gc.collect()
    assert best is not None  # there are candidates
    return best[1], best[2], scores


def run(
    problem: Problem,
    method: str,
    candidates: tuple[Recipe, ...],
    settings: Settings,
    seed: int,
) -> dict[str, Any]:
    """Train a method, and measure all that it leads to.

    Args:
        problem: The data.
        method: One of `METHODS`.
        candidates: Recipes to choose from.
        settings: How to predict.
        seed: Of the networks and of their draws.

    Returns:
        The recipe that was chosen, the held-out scores, seconds, and by the
        names in the tables the figures of each network.
    """
    start = time.perf_counter()
    recipe, model, scores = choose(
        problem, method, candidates, settings, 1000 * seed
    )
    shifts = problem.shifts.items()
    figures = {}
    for name, (predict, size) in _networks(
        problem, method, model, recipe, settings, seed
    ):
        figures[name] = measure(
            predict(problem.x_test),
            problem.y_test,
            {key: (predict(x.x), x.has_labels) for key, x in shifts},
        )
        figures[name]["non-zero weights"] = size
    return {
        "dataset": problem.name,
        "method": method,
        "seed": seed,
        "recipe": dataclasses.asdict(recipe),
        "held_out_nll": scores,
        "networks": figures,
        "seconds": time.perf_counter() - start,
    }


def _networks(
    problem: Problem,
    method: str,
    model: keras.Model,
    recipe: Recipe,
    settings: Settings,
    seed: int,
) -> Any:
    """Yield name, predictor and size of each network of a method.

    One after the other, as `prune` changes what was measured before.
    """
    own = predictor(model, method, settings, seed)
    if method == "plain":
        size = _nonzero(model)
        yield "plain", (own, size)
        yield "plain, temperature", (_at_temperature(problem, model), size)
        members = [model]
        for i in range(1, settings.members):
            members.append(train(problem, method, recipe, 1000 * seed + i))
        yield (
            f"ensemble of {settings.members}",
            (
                lambda x: Prediction.of_draws(logits(m, x) for m in members),
                size * settings.members,
            ),
        )
        return
    if method == "dropout":
        yield "MC dropout", (own, _nonzero(model))
        return
    name = method.replace("_", ", ") if method in PARTS else method
    yield name, (own, _nonzero(keras_vd.to_deterministic(model)))
    if method == "sparse_vd":
        keras_vd.prune(model)
        plain = keras_vd.to_deterministic(model)
        size = _nonzero(plain)
        yield "sparse_vd, pruned", (own, size)
        yield (
            "sparse_vd, pruned, means",
            (predictor(plain, "plain", settings, seed), size),
        )
        small = keras_vd.shrink(plain, verbose=0)
        size = _nonzero(small)
        yield (
            "sparse_vd, shrunk",
            (predictor(small, "plain", settings, seed), size),
        )
        yield (
            "sparse_vd, shrunk, temperature",
            (_at_temperature(problem, small), size),
        )


def _at_temperature(problem: Problem, model: keras.Model) -> Predictor:
    """Predict at the temperature that suits the held-out examples."""
    report = keras_vd.temperature_scaling(
        logits(model, problem.x_valid), problem.y_valid
    )
    return lambda x: Prediction.of_draws(
        [logits(model, x) / report.temperature]
    )


def _nonzero(model: keras.Model) -> int:
    """Number of weights that are not zero, biases included."""
    return sum(
        int(np.count_nonzero(keras.ops.convert_to_numpy(x)))
        for x in model.trainable_weights
    )
