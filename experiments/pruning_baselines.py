"""Pruning without a posterior: weights go by a score, step by step.

Start from a trained network, remove the weights of lowest score over all
layers, train what is left, and again; the share that is left falls with the
cube of the time that is left (Zhu and Gupta 2017, arXiv:1710.01878). The score
is |w| (Han et al. 2015, arXiv:1506.02626), by `MagnitudePruning`, or
`sensitivity`.
"""

from __future__ import annotations

import keras
import numpy as np

import keras_vd
from experiments.mnist import data as mnist_data
from experiments.mnist import recipes as mnist_recipes
from experiments.mnist import training as mnist_training

# Batches over which |w dL/dw| is averaged.
SENSITIVITY_BATCHES = 100


def kernels(model: keras.Model) -> list[keras.Variable]:
    return [layer.kernel for layer in model.layers if hasattr(layer, "kernel")]


def _count(model: keras.Model) -> int:
    return sum(int(np.prod(kernel.shape)) for kernel in kernels(model))


def sensitivity(
    model: keras.Model, images: mnist_data.Images
) -> list[np.ndarray]:
    """Mean of |w dL/dw| over training batches (Mozer and Smolensky 1989).

    On any backend: plain gradient descent with a rate of 1 moves a weight by
    minus its gradient.
    """
    probe = keras.models.clone_model(model)
    probe.set_weights(model.get_weights())
    for layer in probe.layers:
        layer.kernel_regularizer = None
    probe.compile(
        keras.optimizers.SGD(1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    weights = probe.get_weights()
    scores = [np.zeros(kernel.shape) for kernel in kernels(probe)]
    order = np.random.default_rng(0).permutation(len(images.x_train))
    batches = min(SENSITIVITY_BATCHES, len(order))
    for chosen in np.array_split(order, batches):
        old = [keras.ops.convert_to_numpy(x) for x in kernels(probe)]
        probe.train_on_batch(images.x_train[chosen], images.y_train[chosen])
        for score, kernel, start in zip(
            scores, kernels(probe), old, strict=True
        ):
            gradient = start - keras.ops.convert_to_numpy(kernel)
            score += np.abs(start * gradient) / batches
        probe.set_weights(weights)
    return scores


def by_magnitude(
    start: keras.Model,
    images: mnist_data.Images,
    recipe: mnist_recipes.Recipe,
    kept: int,
) -> keras.Model:
    """Prune by |w| down to `kept` weights; see `by_sensitivity`."""
    model = keras.models.clone_model(start)
    model.set_weights(start.get_weights())
    # The shortest run that prunes and trains on.
    epochs = max(2, recipe.epochs)
    every = max(1, epochs // recipe.prune_steps)
    pruning = keras_vd.callbacks.MagnitudePruning(
        1.0 - kept / _count(start),
        end_epoch=epochs - every if epochs > every else 1,
        every=every,
        scope="global",
        verbose=0,
    )
    mnist_training.fit(
        model,
        images,
        epochs,
        recipe,
        recipe.finetune_learning_rate,
        [pruning],
    )
    return model


def by_sensitivity(
    start: keras.Model,
    images: mnist_data.Images,
    recipe: mnist_recipes.Recipe,
    kept: int,
) -> keras.Model:
    """Prune a trained network down to `kept` weights.

    Args:
        start: The trained network; not changed.
        images: The data.
        recipe: `epochs` are split evenly over `prune_steps`.
        kept: Number of weights that are left, biases not counted.
    """
    model = start
    total = _count(start)
    for step in range(1, recipe.prune_steps + 1):
        time_left = 1.0 - step / recipe.prune_steps
        number = kept + round((total - kept) * time_left**3)
        scores = sensitivity(model, images)
        alive = [
            keras.ops.convert_to_numpy(kernel) != 0 for kernel in kernels(model)
        ]
        # Removed weights have no score that could bring them back.
        ranked = np.concatenate(
            [s[a] for s, a in zip(scores, alive, strict=True)]
        )
        threshold = np.partition(ranked, -number)[-number]
        # A fresh copy has no constraints of the step before.
        pruned = keras.models.clone_model(model)
        pruned.set_weights(model.get_weights())
        for kernel, score, is_alive in zip(
            kernels(pruned), scores, alive, strict=True
        ):
            values = keras.ops.convert_to_numpy(kernel)
            kernel.assign(np.where(is_alive & (score >= threshold), values, 0))
        keras_vd.freeze_zeros(pruned)
        epochs = max(1, recipe.epochs // recipe.prune_steps)
        mnist_training.fit(
            pruned, images, epochs, recipe, recipe.finetune_learning_rate
        )
        model = pruned
    return model


METHODS = {"magnitude": by_magnitude, "sensitivity": by_sensitivity}
