"""Networks of one hidden layer, many side by side in one Keras model.

Inputs `(examples, networks, columns)`, outputs `(examples, networks, 2)`: the
mean and the log variance of each. No weight is shared between networks.
"""

from __future__ import annotations

import math
from typing import Any

import keras

import keras_vd
import keras_vd.layers
import keras_vd.losses
import keras_vd.posteriors
import keras_vd.priors

VARIATIONAL = ("gaussian", "vd", "sparse_vd")
OURS = (*VARIATIONAL, "ivon")
PLAIN = ("mc_dropout", "ensemble")
METHODS = (*OURS, *PLAIN)


def build(
    method: str,
    shape: tuple[int, int],
    units: int,
    noise: str,
    rate: float,
    decay: float,
) -> keras.Sequential:
    """Build the networks of a method.

    Args:
        method: One of `METHODS`.
        shape: Number of networks, and of input columns.
        units: Units of the hidden layer.
        noise: `"heteroscedastic"` (a second output) or `"homoscedastic"` (a
            number that each network learns).
        rate: Dropout rate of `"mc_dropout"`; it drops hidden units.
        decay: Factor of the squares of weights in the loss, of methods that
            have no prior.
    """
    networks, columns = shape
    outputs = 2 if noise == "heteroscedastic" else 1
    dropout = [keras.layers.Dropout(rate)] if method == "mc_dropout" else []
    model = keras.Sequential(
        [
            keras.Input(shape),
            _dense(method, (networks, columns, units), decay, "relu"),
            *dropout,
            _dense(method, (networks, units, outputs), decay, None),
            *([] if outputs == 2 else _own_noise(networks)),
        ],
        name=method,
    )
    return model


def _dense(
    method: str,
    shape: tuple[int, int, int],
    decay: float,
    activation: str | None,
) -> keras.layers.Layer:
    """Make a dense layer for each network, of the inputs and units in shape."""
    networks, inputs, units = shape
    options: dict[str, Any] = {
        "bias_axes": "su",
        "activation": activation,
        # Keras' initializers would count the inputs of all networks together.
        "kernel_initializer": keras.initializers.RandomNormal(
            stddev=math.sqrt((2.0 if activation else 1.0) / inputs)
        ),
    }
    equation, outputs = "esi,siu->esu", (networks, units)
    if method not in VARIATIONAL:
        if method in PLAIN:
            options["kernel_regularizer"] = keras.regularizers.L2(decay)
        return keras.layers.EinsumDense(equation, outputs, **options)
    return keras_vd.layers.VDEinsumDense(
        equation, outputs, posterior=_posterior(method, inputs), **options
    )


def _posterior(method: str, inputs: int) -> Any:
    if method == "gaussian":
        stddev = 1.0 if inputs < 20 else math.sqrt(10.0 / inputs)
        return keras_vd.posteriors.Gaussian(
            prior=keras_vd.priors.Gaussian(stddev), log_sigma2_init=-9.0
        )
    if method == "vd":
        # One alpha for each weight, as networks share none.
        return keras_vd.posteriors.VD(share="weight", alpha_init=0.01)
    return keras_vd.posteriors.SparseVD(log_sigma2_init=-9.0)


def _own_noise(networks: int) -> list[keras.layers.Layer]:
    """Append a learned log variance to the mean of each network."""
    return [
        keras.layers.Reshape((networks,)),
        keras_vd.layers.HomoscedasticNoise(stddev_init=0.5),
        keras.layers.Reshape((2, networks)),
        keras.layers.Permute((2, 1)),
    ]
