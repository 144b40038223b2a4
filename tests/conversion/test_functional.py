"""Models of users written out; oracle everywhere: the model itself.

Predictions are compared to the last bit, as parts are called as before.
"""

import random
from collections import Counter

import keras
import numpy as np
import pytest
from keras import ops

import keras_vd
from keras_vd._backend.keras_internals import flatten_layers
from keras_vd.conversion.functional import written_out
from tests.helpers.arrays import random_inputs, to_numpy
from tests.helpers.composites import (
    MODELS,
    Classifier,
    K,
    Plain,
    Residual,
    called,
    guide,
    random_model,
    words,
)
from tests.helpers.models import compile_quickly, randomize

SOME = [
    pytest.param(name, marks=[pytest.mark.core] if i % 3 == 0 else [])
    for i, name in enumerate(MODELS)
]


def write(model):
    return keras_vd.to_functional(model, return_report=True, verbose=0)


def outputs(model, inputs, training=False):
    found = model(inputs, training=training)
    return [to_numpy(x) for x in keras.tree.flatten(found)]


def assert_same(model, other, inputs, training=False):
    pairs = zip(
        outputs(model, inputs, training),
        outputs(other, inputs, training),
        strict=True,
    )
    for one, two in pairs:
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)


def values(model):
    return {id(x): to_numpy(x).copy() for x in model.variables}


def assert_written_out(model, inputs):
    """Equal predictions, layers, weights and training; names of their own."""
    randomize(model)
    known = {id(x) for x in flatten_layers(model)}
    functional, report = write(model)
    assert report.written_out
    assert not report.kept_whole
    assert_same(model, functional, inputs)

    parts = [
        x for x in flatten_layers(functional) if not isinstance(x, keras.Model)
    ]
    made = [x for x in parts if id(x) not in known]
    assert all(not x.weights for x in made)
    composites = [x for x in parts if type(x).__module__.startswith("tests")]
    assert not composites
    assert {id(x) for x in functional.variables} == values(model).keys()
    names = Counter(x.name for x in functional.operations)
    assert max(names.values()) == 1

    before = values(model)
    for one in (model, functional):
        for variable in model.variables:
            variable.assign(before[id(variable)])
        outputs(one, inputs, training=True)
        if one is model:
            expected = values(model)
    for key, value in values(model).items():
        np.testing.assert_array_equal(value, expected[key])
    return functional


@pytest.mark.parametrize("name", SOME)
def test_models(name):
    model, inputs = MODELS[name]()
    functional = assert_written_out(model, inputs)
    again, _ = write(model)
    assert [x.name for x in again.operations] == [
        x.name for x in functional.operations
    ]


@pytest.mark.parametrize("name", SOME)
def test_training_without_noise(name):
    """The same outputs, which batch normalization and dropout change."""
    model, inputs = MODELS[name]()
    randomize(model)
    functional, _ = write(model)
    for layer in flatten_layers(model):
        if isinstance(layer, K.Dropout):
            layer.rate = 0.0
    assert_same(model, functional, inputs, training=True)


# Masks that a convolution does not hand on.
@pytest.mark.filterwarnings("ignore:.*input with a mask attach:UserWarning")
@pytest.mark.parametrize("seed", range(12))
def test_random_models(seed):
    model, inputs = random_model(seed)
    functional = assert_written_out(model, inputs)
    assert_same(model, functional, inputs, training=True)


def test_a_file_needs_no_class_of_the_user(tmp_path):
    for name in ("guide", "dictionaries", "masks", "vision"):
        model, inputs = MODELS[name]()
        functional, _ = write(model)
        functional.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert_same(functional, loaded, inputs)
