"""Networks of experiments.mnist, plain or variational."""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras
from keras import layers

import keras_vd
import keras_vd.layers
from experiments.common import fail

if TYPE_CHECKING:
    from experiments.mnist.recipes import Recipe

MODELS = ("mlp", "lenet-300-100", "lenet-5")
SPARSE = ("sparse_vd", "ard")
GATES = {
    "log_normal": keras_vd.layers.LogNormalDropout,
    "beta_bernoulli": keras_vd.layers.BetaBernoulliDropout,
    "dependent_beta_bernoulli": keras_vd.layers.DependentBetaBernoulliDropout,
    "hard_concrete": keras_vd.layers.HardConcreteDropout,
}
GATE_NAME = "gate"
WEIGHTS = (*SPARSE, "vd", "gaussian")
VARIATIONAL = (*WEIGHTS, *GATES)
METHODS = ("none", "dropout", "gaussian_dropout", *VARIATIONAL)

HIDDEN_UNITS = {"mlp": (500, 300), "lenet-300-100": (300, 100)}
INPUT_RATE, HIDDEN_RATE = 0.2, 0.5


def build(
    model: str,
    method: str,
    image_shape: tuple[int, ...],
    classes: int,
    recipe: Recipe,
) -> keras.Sequential:
    """Build one of the networks; its outputs are logits.

    Args:
        model: One of `MODELS`. `"lenet-5"` is the Caffe variant.
        method: One of `METHODS`.
        image_shape: `(height, width, channels)`.
        classes: Number of outputs.
        recipe: What it is going to be trained with.
    """
    if method in VARIATIONAL and method not in GATES:
        options = {"posterior": recipe.posterior(method)}
        dense, conv = keras_vd.layers.VDDense, keras_vd.layers.VDConv2D
    else:
        penalty = keras.regularizers.L2(recipe.weight_decay / 2)
        options = {
            "kernel_regularizer": penalty if recipe.weight_decay else None
        }
        dense, conv = layers.Dense, layers.Conv2D
    # One before each dense layer and after each convolution.
    gates = iter(_gates(method, recipe, 4 if model == "lenet-5" else 3))
    stack: list[keras.layers.Layer] = [keras.Input(image_shape)]
    if model == "lenet-5":
        if min(image_shape[:2]) < 16:
            fail(
                "--model lenet-5 needs images of at least 16x16; these are "
                f"{image_shape[0]}x{image_shape[1]}"
            )
        for filters in (20, 50):
            stack += [conv(filters, 5, activation="relu", **options)]
            stack += [*next(gates), layers.MaxPooling2D()]
        stack += [layers.Flatten(), *_dropout(method, HIDDEN_RATE)]
        stack += [*next(gates), dense(500, activation="relu", **options)]
        stack += [*_dropout(method, HIDDEN_RATE), *next(gates)]
    else:
        stack += [layers.Flatten(), *_dropout(method, INPUT_RATE)]
        stack += next(gates)
        for units in HIDDEN_UNITS[model]:
            stack += [dense(units, activation="relu", **options)]
            stack += [*_dropout(method, HIDDEN_RATE), *next(gates)]
    stack += [dense(classes, **options)]
    return keras.Sequential(stack, name=f"{model}-{method}")


def _dropout(method: str, rate: float) -> list[keras.layers.Layer]:
    if method == "dropout":
        return [layers.Dropout(rate)]
    if method == "gaussian_dropout":
        return [layers.GaussianDropout(rate)]
    return []


def _gates(
    method: str, recipe: Recipe, number: int
) -> list[list[keras.layers.Layer]]:
    """One gate for each place, or nothing for other methods."""
    if method not in GATES:
        return [[]] * number
    options = {
        "log_normal": {},
        "beta_bernoulli": {"a_init": recipe.a_init},
        "dependent_beta_bernoulli": {"sigma_init": recipe.sigma_init},
        # Open at first, as the network is trained.
        "hard_concrete": {"log_alpha_init": 2.0},
    }[method]
    return [
        [GATES[method](name=f"{GATE_NAME}_{i}", kl_scale=scale, **options)]
        for i, scale in enumerate(recipe.kl_scales or (1.0,) * number)
    ]


def is_gate(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, tuple(GATES.values()))


def start_from(model: keras.Sequential, pretrained: keras.Sequential) -> None:
    """Copy what a network of the same shape has: kernels, biases, gates."""
    for names in (("kernel", "bias"), ("a_unconstrained", "b_unconstrained")):
        sources, targets = (
            [layer for layer in network.layers if hasattr(layer, names[0])]
            for network in (pretrained, model)
        )
        # A plain network has no gates for those of `model`.
        for source, target in zip(sources, targets, strict=bool(sources)):
            for name in names:
                value = keras.ops.convert_to_numpy(getattr(source, name))
                getattr(target, name).assign(value)
