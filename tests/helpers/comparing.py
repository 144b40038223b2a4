"""How tests of `shrink` compare two models."""

from __future__ import annotations

import keras
import numpy as np

import keras_vd
from tests.helpers.arrays import random_inputs, to_float64


def predict(model, inputs):
    outputs = model(inputs, training=False)
    return [to_float64(output) for output in keras.tree.flatten(outputs)]


def assert_equal_predictions(model, other, inputs, rtol=1e-5):
    """Equal up to `rtol` of the largest output."""
    for found, expected in zip(
        predict(other, inputs), predict(model, inputs), strict=True
    ):
        assert found.shape == expected.shape
        largest = np.abs(expected).max(initial=0.0)
        np.testing.assert_allclose(
            found, expected, rtol=0.0, atol=rtol * largest + 1e-30
        )


def shrink(model, **options):
    """The smaller model and its report; `model` itself must not change."""
    before = [to_float64(variable) for variable in model.variables]
    config = model.to_json()
    smaller, report = keras_vd.shrink(
        model, return_report=True, verbose=0, **options
    )
    assert model.to_json() == config
    for variable, old in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(to_float64(variable), old)
    assert not smaller.compiled
    return smaller, report


def fill(model, seed=3):
    """Random values without any zero, everywhere."""
    generator = np.random.default_rng(seed)
    for variable in model.variables:
        if keras.backend.is_float_dtype(variable.dtype):
            values = generator.uniform(0.2, 1.0, variable.shape)
            if variable.name not in ("gamma", "moving_variance"):
                values *= generator.choice([-1.0, 1.0], variable.shape)
            variable.assign(values)


def change(variable, *indices, value=0.0):
    """Set entries of a weight, each index a tuple of NumPy's."""
    values = to_float64(variable)
    for index in indices:
        values[index] = value
    variable.assign(values)


def checked(model, inputs=None, **options):
    """Shrink, compare on random inputs, return the new model and report."""
    smaller, report = shrink(model, **options)
    if inputs is None:
        inputs = [random_inputs(4, *x.shape[1:]) for x in model.inputs]
        inputs = inputs if len(inputs) > 1 else inputs[0]
    assert_equal_predictions(model, smaller, inputs)
    return smaller, report


def weights_of(model, name):
    return [to_float64(x) for x in model.get_layer(name).weights]


def sequential(shape, *stack):
    model = keras.Sequential([keras.Input(shape), *stack])
    fill(model)
    return model
