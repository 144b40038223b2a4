"""Networks of examples/mnist.py, plain or variational."""

from __future__ import annotations

import keras
from common import fail
from keras import layers

import keras_vd

MODELS = ("mlp", "lenet-300-100", "lenet-5")
SPARSE = ("sparse_vd", "ard")
VARIATIONAL = (*SPARSE, "vd", "gaussian")
METHODS = ("none", "dropout", "gaussian_dropout", *VARIATIONAL)

HIDDEN_UNITS = {"mlp": (500, 300), "lenet-300-100": (300, 100)}
INPUT_RATE, HIDDEN_RATE = 0.2, 0.5


def build(
    model: str,
    method: str,
    image_shape: tuple[int, ...],
    classes: int,
    posterior: keras_vd.posteriors.WeightPosterior | None,
    weight_decay: float,
) -> keras.Sequential:
    """Build one of the networks; its outputs are logits.

    Args:
        model: One of `MODELS`. `"lenet-5"` is the Caffe variant.
        method: One of `METHODS`.
        image_shape: `(height, width, channels)`.
        classes: Number of outputs.
        posterior: Template for the variational methods, else None.
        weight_decay: Factor of |kernel|^2 / 2 in the loss of plain layers.
    """
    if posterior is not None:
        options = {"posterior": posterior}
        dense, conv = keras_vd.layers.VDDense, keras_vd.layers.VDConv2D
    else:
        penalty = keras.regularizers.L2(weight_decay / 2)
        options = {"kernel_regularizer": penalty if weight_decay else None}
        dense, conv = layers.Dense, layers.Conv2D
    stack: list[keras.layers.Layer] = [keras.Input(image_shape)]
    if model == "lenet-5":
        if min(image_shape[:2]) < 16:
            fail(
                "--model lenet-5 needs images of at least 16x16; these are "
                f"{image_shape[0]}x{image_shape[1]}"
            )
        for filters in (20, 50):
            stack += [conv(filters, 5, activation="relu", **options)]
            stack += [layers.MaxPooling2D()]
        stack += [layers.Flatten(), *_dropout(method, HIDDEN_RATE)]
        stack += [dense(500, activation="relu", **options)]
        stack += _dropout(method, HIDDEN_RATE)
    else:
        stack += [layers.Flatten(), *_dropout(method, INPUT_RATE)]
        for units in HIDDEN_UNITS[model]:
            stack += [dense(units, activation="relu", **options)]
            stack += _dropout(method, HIDDEN_RATE)
    stack += [dense(classes, **options)]
    return keras.Sequential(stack, name=f"{model}-{method}")


def _dropout(method: str, rate: float) -> list[keras.layers.Layer]:
    if method == "dropout":
        return [layers.Dropout(rate)]
    if method == "gaussian_dropout":
        return [layers.GaussianDropout(rate)]
    return []


def start_from(model: keras.Sequential, pretrained: keras.Sequential) -> None:
    """Copy kernels and biases of a plain network of the same shape."""
    sources = [layer for layer in pretrained.layers if layer.weights]
    targets = [layer for layer in model.layers if layer.weights]
    for source, target in zip(sources, targets, strict=True):
        target.kernel.assign(keras.ops.convert_to_numpy(source.kernel))
        target.bias.assign(keras.ops.convert_to_numpy(source.bias))
