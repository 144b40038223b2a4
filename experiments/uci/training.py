"""Training of many networks at once, what they predict, and how good it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import keras
import numpy as np

import keras_vd
import keras_vd.callbacks
import keras_vd.losses
import keras_vd.optimizers
from experiments.uci import networks
from experiments.uci.data import Stack
from keras_vd.uncertainty import MonteCarloPrediction

DRAWS = 100
MEMBERS = 5  # of an ensemble
LEVEL = 0.95
PHASES = 20  # epochs of `fit`, at whose ends the KL weight rises
WARM_UP = 4  # of them until the KL weight is whole
PREDICTED_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How networks are trained, but for what each network has of its own.

    Attributes:
        units: Of the hidden layer.
        noise: `"heteroscedastic"` or `"homoscedastic"`.
        steps: Of the optimizer.
        batch_size: Rows in a step.
        learning_rate: Of the optimizer at the start; it falls to 0 on a cosine.
        rate: Dropout rate.
        hessian_init: Of `IVON`, for the mean loss of one network.
    """

    units: int
    noise: str
    steps: int
    batch_size: int
    learning_rate: float = 1e-2
    rate: float = 0.0
    hessian_init: float = 1.0


class DivergedError(Exception):
    """Some network that was trained by `recipe` has no finite weights."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(f"Training has diverged: {recipe}")
        self.recipe = recipe


def train(
    method: str, recipe: Recipe, stack: Stack, strengths: np.ndarray, seed: int
) -> keras.Sequential:
    """Train one network on each split of a stack, an ensemble of five.

    Args:
        method: One of `networks.METHODS`.
        recipe: What all networks have in common.
        stack: The rows; their splits may differ, or be copies.
        strengths: `(splits,)`: what the KL divergence of each network is
            multiplied by (of plain networks, the Gaussian prior of unit width
            that weight decay stands for).
        seed: Of the weights, the noise and the order of the rows.

    Raises:
        DivergedError: if training has, of any network.
    """
    if method == "ensemble":
        stack, strengths = stack.repeated(MEMBERS), np.tile(strengths, MEMBERS)
    keras.utils.set_random_seed(seed)
    rows, count, columns = stack.x.shape
    model = networks.build(
        method,
        (count, columns),
        recipe.units,
        recipe.noise,
        recipe.rate,
        0.5 / (rows * count),
    )
    steps = max(1, recipe.steps // PHASES)
    schedule = keras.optimizers.schedules.CosineDecay(
        recipe.learning_rate, steps * PHASES
    )
    optimizer = keras.optimizers.Adam(schedule)
    if method == "ivon":
        optimizer = keras_vd.optimizers.IVON(
            rows,
            schedule,
            hessian_init=recipe.hessian_init,
            # It must forget h_0: the average is of a fifth of the steps.
            beta_2=1.0 - 5.0 / (steps * PHASES),
            seed=seed,
        )
        # Each network has the gradients of its own mean.
        strengths = strengths / count
    model.compile(optimizer, keras_vd.losses.GaussianNLL())
    # The loss is a mean over networks, to which all their rows count.
    annealing = keras_vd.callbacks.KLAnnealing(
        rows * count, start_epoch=0, warmup_epochs=WARM_UP, verbose=0
    )
    model.fit(
        _batches(stack, strengths, min(recipe.batch_size, rows), seed),
        steps_per_epoch=steps,
        epochs=PHASES,
        verbose=0,
        callbacks=[annealing] if method in networks.VARIATIONAL else [],
    )
    if not all(np.all(np.isfinite(x)) for x in model.get_weights()):
        raise DivergedError(recipe)
    if method == "ivon":
        model = optimizer.to_variational(model)
        model.compile(loss=keras_vd.losses.GaussianNLL())
    if method == "sparse_vd":
        keras_vd.prune(model)
    return model


def _batches(
    stack: Stack, strengths: np.ndarray, size: int, seed: int
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield mini-batches without end, in another order for each network.

    The likelihood of a network is divided by its strength: Adam does not see
    the scale of a loss, only the balance of likelihood and divergence.
    """
    rows, count, _ = stack.x.shape
    generator = np.random.default_rng(seed)
    weights = np.tile(1.0 / strengths, (size, 1)).astype("float32")
    order, column = np.tile(np.arange(rows)[:, None], count), np.arange(count)
    while True:
        order = generator.permuted(order, axis=0)
        for start in range(0, rows - size + 1, size):
            chosen = order[start : start + size], column
            yield stack.x[chosen], stack.y[chosen], weights


def predict(
    method: str, model: keras.Sequential, x: np.ndarray, seed: int
) -> MonteCarloPrediction:
    """Predict `(rows, splits, 1)` standardized targets with many draws."""
    size = min(PREDICTED_AT_ONCE, len(x))
    if method in networks.OURS:
        return keras_vd.predict_mc(
            model,
            x,
            DRAWS,
            size,
            seed=seed,
            verbose=0,
            return_samples=True,
        )
    if method == "ensemble":
        x = np.tile(x, (1, MEMBERS, 1))
        outputs = model.predict(x, batch_size=size, verbose=0)
        # (rows, members x splits, 2) to (members, rows, splits, 2)
        draws = np.stack(np.split(outputs, MEMBERS, axis=1))
    else:
        draws = _dropout_draws(model, x, size)
    means, noise = draws[..., :1], np.exp(0.5 * draws[..., 1:])
    return MonteCarloPrediction(
        mean=means.mean(axis=0),
        standard_deviation=means.std(axis=0),
        predictive_entropy=None,
        mutual_information=None,
        calibration=None,
        num_samples=len(draws),
        task="regression",
        samples=means,
        aleatoric_variance=np.square(noise).mean(axis=0),
        noise=noise,
    )


def _dropout_draws(
    model: keras.Sequential, x: np.ndarray, size: int
) -> np.ndarray:
    """Predict with dropout on, `(draws, rows, splits, 2)`."""
    inputs = keras.Input(model.input_shape[1:])
    sampler = keras.Model(inputs, model(inputs, training=True))
    return np.stack(
        [sampler.predict(x, batch_size=size, verbose=0) for _ in range(DRAWS)]
    )


def log_likelihoods(
    prediction: MonteCarloPrediction, stack: Stack
) -> np.ndarray:
    """Compute the mean log density of new targets in their own units.

    Returns:
        Nats, `(splits,)`.
    """
    logs = prediction.log_likelihood(stack.y_new).mean(axis=0)
    return logs - np.log(stack.scale)


def measure(
    prediction: MonteCarloPrediction, stack: Stack
) -> dict[str, np.ndarray]:
    """Compare predictions with new targets, `(splits,)` each."""
    lower, upper = prediction.interval(LEVEL)
    is_inside = (lower <= stack.y_new) & (stack.y_new <= upper)
    squares = np.square(prediction.mean - stack.y_new).mean(axis=(0, 2))
    return {
        "nll": -log_likelihoods(prediction, stack),
        "rmse": np.sqrt(squares) * stack.scale,
        "coverage": is_inside.mean(axis=(0, 2)),
    }


def weights_left(model: keras.Sequential) -> np.ndarray:
    """Share of the weights of each network that are not zero, biases aside."""
    kept = [
        np.asarray(keras.ops.convert_to_numpy(x.keep_mask))
        for x in keras_vd.variational_weights(model)
    ]
    total = sum(mask[0].size for mask in kept)
    return sum(mask.sum(axis=(1, 2)) for mask in kept) / total
