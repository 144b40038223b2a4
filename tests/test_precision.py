"""Bits follow from what the posteriors say of the weights."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_vd
from keras_vd import posteriors
from keras_vd.precision import posterior_steps
from tests.helpers.arrays import random_inputs
from tests.helpers.models import mlp, plain_mlp

pytestmark = pytest.mark.core


def dense(posterior, theta, log_sigma2):
    """One layer with given means and, where it has them, log variances."""
    theta = np.asarray(theta, "float32")
    layer = keras_vd.layers.VDDense(
        theta.shape[1], posterior=posterior, name="dense"
    )
    model = keras.Sequential([keras.Input((len(theta),)), layer])
    layer.kernel.assign(theta)
    if log_sigma2 is not None:
        variable = layer.kernel_posterior.log_sigma2
        variable.assign(np.full(variable.shape, log_sigma2, "float32"))
    return model


def step(model):
    plain = keras_vd.to_deterministic(model)
    (value,) = posterior_steps(model, plain).values()
    return value


@pytest.mark.parametrize("share", ["weight", "unit", "input", "layer"])
@pytest.mark.parametrize("kind", ["SparseVD", "ARD", "Gaussian"])
def test_one_standard_deviation(kind, share):
    """Oracle: step^2 / 12 = sigma^2 / 2, so the step is sqrt(6) sigma."""
    posterior = getattr(posteriors, kind)(share=share)
    theta = np.array([[1.0, -0.5, 2.0], [0.7, 0.9, -1.3]])
    model = dense(posterior, theta, 2 * np.log(0.01))
    assert step(model) == pytest.approx(np.sqrt(6) * 0.01, rel=2e-3)
    # 2.0 is 81.6 steps: 7 bits and a sign.
    assert keras_vd.bit_widths(model) == {"dense": 8}


def test_different_standard_deviations():
    """Oracle: the mean of 1 / sigma^2, by hand, over the kept weights."""
    theta = np.array([[1.0, -2.0], [3.0, 0.001]])
    model = dense("sparse_vd", theta, 0.0)
    posterior = model.layers[0].kernel_posterior
    sigma = np.array([[0.01, 0.02], [0.05, 3.0]])  # the last one is zero
    posterior.log_sigma2.assign(2 * np.log(sigma))
    harmonic = np.mean(1 / sigma.ravel()[:3] ** 2) ** -0.5
    assert step(model) == pytest.approx(np.sqrt(6) * harmonic, rel=2e-3)


def test_multiplicative_noise():
    """Small weights may vanish, and must not make the steps small.

    Oracle: min(step^2 / 12, w^2) / (alpha w^2) is 0.5 on average, where the
    last of three weights is rounded to zero: (2 x + 1 / 0.7) / 3 = 0.5 with
    x = step^2 / 12 / (0.7 * 4).
    """
    posterior = posteriors.VD(alpha_init=0.7)
    model = dense(posterior, [[2.0], [-2.0], [1e-6]], None)
    x = (1.5 - 1 / 0.7) / 2
    assert step(model) == pytest.approx(np.sqrt(12 * 0.7 * 4 * x), rel=2e-3)


def test_some_weight_is_left_where_little_is_known():
    posterior = posteriors.SparseVD(threshold=3.0)
    model = dense(posterior, [[1.0, -0.9]], np.log(10.0))
    assert step(model) == pytest.approx(1.0)
    assert keras_vd.bit_widths(model) == {"dense": 2}
    pruned = dense(posterior, [[1.0, -0.9]], np.log(100.0))
    assert keras_vd.bit_widths(pruned) == {"dense": 2}


def test_factors_of_gates_and_groups_scale_the_step():
    """Oracle: the step without them, times what multiplies the weights."""
    keras.utils.set_random_seed(0)
    theta = random_inputs(4, 3)
    expected = step(dense("sparse_vd", theta, -9.0))
    gate = keras_vd.layers.LogNormalDropout()
    layer = keras_vd.layers.VDDense(3, name="dense")
    model = keras.Sequential([keras.Input((4,)), gate, layer])
    layer.kernel.assign(theta)
    log_sigma2 = layer.kernel_posterior.log_sigma2
    log_sigma2.assign(np.full(log_sigma2.shape, -9.0))
    gate.mu.assign(np.full(4, -2.0))
    gate.log_sigma.assign(np.full(4, -5.0))
    factor = float(keras.ops.convert_to_numpy(gate.gate_mean())[0])
    assert 0.1 < factor < 0.2
    assert step(model) == pytest.approx(factor * expected, rel=3e-3)


def test_names_are_those_of_the_reports():
    """Oracle: the labels of the posteriors, of which two are in one layer."""
    inputs = keras.Input((5, 4))
    hidden = keras_vd.layers.VDLSTM(3, name="lstm", return_sequences=True)
    attention = keras_vd.layers.VDMultiHeadAttention(2, 2, name="attention")
    hidden = hidden(inputs)
    model = keras.Model(inputs, attention(hidden, hidden))
    labels = [x.label for x in keras_vd.variational_weights(model)]
    assert list(keras_vd.bit_widths(model)) == labels
    assert {"lstm/kernel", "attention/query"} < set(labels)


def test_models_without_posteriors_of_weights_are_refused():
    with pytest.raises(ValueError, match="variational layer"):
        keras_vd.bit_widths(plain_mlp())
    gates = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3),
            keras_vd.layers.LogNormalDropout(),
            layers.Dense(2),
        ]
    )
    with pytest.raises(ValueError, match="weights with a posterior"):
        keras_vd.bit_widths(gates)
    with pytest.raises(TypeError, match="Keras model"):
        keras_vd.bit_widths(3)
    assert len(keras_vd.bit_widths(mlp())) == 2


class Block(layers.Layer):
    """Two of them have layers of the same name."""

    def __init__(self, units, **options):
        super().__init__(**options)
        self.dense = keras_vd.layers.VDDense(units, name="inner")

    def call(self, inputs, training=None):
        return self.dense(inputs, training=training)


def test_names_in_composites_are_those_of_the_plain_model():
    """Oracle: the layers of the plain model."""
    inputs = keras.Input((4,))
    outputs = Block(2, name="b")(Block(3, name="a")(inputs))
    model = keras.Model(inputs, outputs)
    names = {x.name for x in keras_vd.to_deterministic(model).layers[1:]}
    assert set(keras_vd.bit_widths(model)) == names == {"a_inner", "b_inner"}
