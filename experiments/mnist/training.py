"""Training loops of the image experiments: plain, variational, fine-tuning."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

import keras_vd
from experiments.mnist import models, recipes
from experiments.mnist.data import Images, ShiftedBatches
from experiments.rates import LearningRates, make_optimizer

History = dict[str, list[float]]


def fit(
    model: keras.Model,
    images: Images,
    epochs: int,
    recipe: recipes.Recipe,
    learning_rate: float,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> History:
    """Train with Adam, the learning rate constant first, then linear to 0."""
    has_gates = any(map(models.is_gate, model.layers))
    model.compile(
        make_optimizer(
            learning_rate,
            recipe.gate_factor if has_gates else 1.0,
            rf"{models.GATE_NAME}_\d+",
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    data: dict[str, Any] = {
        "x": images.x_train,
        "y": images.y_train,
        "batch_size": recipe.batch_size,
    }
    if recipe.shift:
        seed = random.randrange(2**31)  # follows --seed
        data = {
            "x": ShiftedBatches(images, recipe.batch_size, recipe.shift, seed)
        }
    rates = LearningRates(recipe.learning_rate_share(epochs))
    history = model.fit(
        **data,
        epochs=epochs,
        callbacks=[*callbacks, rates],
        # The test set is not looked at during training; held-out images are.
        validation_data=(
            (images.x_test, images.y_test) if images.is_held_out else None
        ),
        verbose=1 if sys.stdout.isatty() else 2,
    )
    return history.history


def error_percent(logits: np.ndarray, labels: np.ndarray) -> float:
    return 100.0 * float(np.mean(logits.argmax(-1) != labels))


def predict(model: keras.Model, images: Images) -> np.ndarray:
    return model.predict(images.x_test, batch_size=1000, verbose=0)


def train_plain(
    network: str,
    images: Images,
    recipe: recipes.Recipe,
    method: str,
    epochs: int,
) -> keras.Sequential:
    model = models.build(
        network, method, images.x_train.shape[1:], images.classes, recipe
    )
    fit(model, images, epochs, recipe, recipe.plain_learning_rate)
    return model


def shrinks_while_training(recipe: recipes.Recipe, method: str) -> bool:
    """Tell whether a network loses what is dead while it is trained."""
    # A budget goes back to weights from before.
    if not recipe.shrink_every or "budget" in recipe.wish:
        return False
    # Gates of dead channels count for the other wishes.
    is_of_shrunk = recipe.wish.keys() <= {"parameters", "macs"}
    return is_of_shrunk or method not in models.GATES


def train_variational(
    network: str,
    images: Images,
    recipe: recipes.Recipe,
    method: str,
    start: keras.Sequential | None,
) -> tuple[keras.Sequential, History, keras_vd.reports.SparsityReport]:
    """Train a variational network.

    Args:
        network: One of `models.MODELS`.
        images: The data.
        recipe: How to train it.
        method: One of `models.VARIATIONAL`.
        start: Trained network that it starts from, or None.

    Returns:
        The network, what was logged, and the report of the untrained network,
        which may have been larger.
    """
    model = models.build(
        network, method, images.x_train.shape[1:], images.classes, recipe
    )
    if start is not None:
        models.start_from(model, start)
    annealing = recipe.annealing(len(images.x_train))
    whole = keras_vd.sparsity_report(model)
    callbacks = [annealing]
    if shrinks_while_training(recipe, method):
        start_epoch = 0
        if isinstance(annealing, keras_vd.callbacks.KLTarget):
            start_epoch = annealing.cut_epoch(recipe.epochs)
        callbacks.append(
            keras_vd.callbacks.ShrinkWhileTraining(
                recipe.shrink_every, start_epoch
            )
        )
    history = fit(
        model, images, recipe.epochs, recipe, recipe.learning_rate, callbacks
    )
    return model, history, whole


def pretrain(
    network: str,
    images: Images,
    recipe: recipes.Recipe,
) -> keras.Sequential | None:
    """The network that a method starts from; None for a random start."""
    if recipe.first is not None:
        # Gates that depend on the input refine gates that do not.
        start = pretrain(network, images, recipe.first)
        method = "beta_bernoulli"
        first, *_ = train_variational(
            network, images, recipe.first, method, start
        )
        return first
    if not recipe.pretrain_epochs:
        return None
    return train_plain(network, images, recipe, "none", recipe.pretrain_epochs)


def finetune(
    plain: keras.Sequential,
    images: Images,
    recipe: recipes.Recipe,
) -> None:
    """Train the weights that are left once more."""
    if recipe.finetune_epochs:
        keras_vd.freeze_zeros(plain)
        fit(
            plain,
            images,
            recipe.finetune_epochs,
            recipe,
            recipe.finetune_learning_rate,
        )
