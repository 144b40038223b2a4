"""What the library takes from Keras' private side, pinned.

A failure here means that this Keras release is not supported yet.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from keras_vd import _keras_internals as internals
from tests.contract import assert_equal, to_numpy


class Probe(keras.layers.Layer):
    """Notes in which type its variable is read during a call."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, inputs):
        self.usual = ops.convert_to_tensor(self.scale).dtype
        with internals.full_precision():
            self.full = ops.convert_to_tensor(self.scale).dtype
        return inputs


@pytest.mark.core
def test_full_precision():
    """Oracle: variables are float32 under a mixed policy, when asked."""
    probe = Probe(dtype="mixed_bfloat16")
    probe(np.ones((1, 2), "float32"))
    assert keras.backend.standardize_dtype(probe.usual) == "bfloat16"
    assert keras.backend.standardize_dtype(probe.full) == "float32"


@pytest.mark.core
def test_walking_layers():
    """Oracle: a model put together by hand."""
    inner = keras.layers.Dense(2)
    wrapper = keras.layers.TimeDistributed(inner)
    dropout = keras.layers.Dropout(0.5)
    model = keras.Sequential([keras.Input((3, 2)), wrapper, dropout])
    assert internals.sublayers(wrapper) == [inner]
    found = internals.flatten_layers(model)
    assert {id(layer) for layer in found} >= {
        id(layer) for layer in (model, wrapper, inner, dropout)
    }
    assert len({id(layer) for layer in found}) == len(found)


@pytest.mark.core
def test_own_variables():
    """Oracle: by hand; a sublayer's variables are its own."""
    batch_norm = keras.layers.BatchNormalization()
    batch_norm.build((None, 2))
    assert [v.name for v in internals.own_variables(batch_norm)] == [
        "gamma",
        "beta",
        "moving_mean",
        "moving_variance",
    ]
    wrapper = keras.layers.TimeDistributed(keras.layers.Dense(2))
    wrapper.build((None, 3, 2))
    assert internals.own_variables(wrapper) == []


def decayed(optimizer, variables):
    """Which variables a step without gradients has made smaller."""
    for variable in variables:
        variable.assign(np.ones(variable.shape))
    optimizer.apply(
        [ops.zeros(variable.shape) for variable in variables], variables
    )
    return [bool(np.all(to_numpy(v) < 0.99)) for v in variables]


@pytest.mark.core
@pytest.mark.parametrize("is_scaled", [False, True])
def test_exclude_from_weight_decay(is_scaled):
    """Oracle: a step of AdamW with zero gradients, which only decays."""
    variables = [
        keras.Variable(np.ones(2, "float32"), name=name)
        for name in ("kernel", "users_own", "ours", "later")
    ]
    inner = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    inner.exclude_from_weight_decay([variables[1]])
    optimizer = inner
    if is_scaled:
        if keras.backend.backend() == "jax":
            pytest.skip("LossScaleOptimizer.apply is not eager on JAX")
        optimizer = keras.optimizers.LossScaleOptimizer(inner)
    internals.exclude_from_weight_decay(optimizer, [variables[2]])
    optimizer.build(variables)
    assert decayed(optimizer, variables) == [True, False, False, True]
    internals.exclude_from_weight_decay(optimizer, [variables[3]])
    assert decayed(optimizer, variables) == [True, False, False, False]


def test_optimizers_without_exclusions_are_accepted():
    variable = keras.Variable(np.ones(2, "float32"))
    optimizer = keras.optimizers.SGD(0.1)
    internals.exclude_from_weight_decay(optimizer, [variable])
    optimizer.apply([ops.ones(2)], [variable])
    assert_equal(variable, np.float32(1.0) - np.float32(0.1) * np.ones(2, "f"))
