"""A layer and a prior of one's own, by the table of CONTRIBUTING.md.

This file is what a new module of the package would be: nothing else has to know
of the layer `VDBilinear`, its rule and the prior `Laplace`.
"""

from __future__ import annotations

import pathlib
import re

import keras
import numpy as np
import pytest
from keras import ops
from scipy import integrate, stats

import keras_vd
from keras_vd import posteriors, priors
from keras_vd._backend.types import Tensor
from keras_vd.layers.base import LinearLayer
from keras_vd.posteriors.binding import Axes
from keras_vd.rules.costs import count_macs
from keras_vd.rules.rule import Rule, rule_for, to_numpy

ROOT = pathlib.Path(__file__).parents[1]
register = keras.saving.register_keras_serializable(package="tests")

pytestmark = pytest.mark.core


@register
class Bilinear(keras.layers.Layer):
    """A plain layer of two inputs: y_k = sum_ij a_i W_ijk b_j + bias_k."""

    activation = None

    def __init__(self, units, **options):
        super().__init__(**options)
        self.units = units

    def build(self, input_shape):
        sizes = [shape[-1] for shape in input_shape]
        self.kernel = self.add_weight(
            name="kernel", shape=(*sizes, self.units), initializer="normal"
        )
        self.bias = self.add_weight(
            name="bias", shape=(self.units,), initializer="zeros"
        )

    def call(self, inputs):
        return self._linear_op(outer(inputs), self.kernel) + self.bias

    def _linear_op(self, inputs, kernel):
        return ops.einsum("bij,ijk->bk", inputs, kernel)

    def compute_output_shape(self, input_shape):
        return (input_shape[0][0], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def outer(inputs):
    """Products of all pairs, `(batch, i, j)`."""
    return ops.einsum("bi,bj->bij", *inputs)


@register
class VDBilinear(LinearLayer, Bilinear):
    """`Bilinear` with a posterior over its kernel."""

    _available_groups = ("output",)

    def _kernel_axes(self, weight: str) -> Axes:
        return Axes(inputs=(0, 1), outputs=(2,))

    def _linear_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        return ops.einsum("bij,ijk->bk", inputs, kernel)

    def call(self, inputs, training=None):
        return super().call(outer(inputs), training=training)


@rule_for(Bilinear)
class BilinearRule(Rule):
    """Outputs without weights are their bias; inputs go that nobody reads."""

    def __init__(self, layer, uses):
        super().__init__(layer, uses)
        self.kernel = to_numpy(layer.kernel)

    @classmethod
    def refusal(cls, layer, node):
        return None if len(node.inputs) == 2 else "it is called otherwise"

    @classmethod
    def macs(cls, layer, node):
        return int(np.prod(layer.kernel.shape))

    def find_constants(self, node):
        is_fixed = ~self.kernel.any(axis=(0, 1))
        bias = to_numpy(self.layer.bias)
        node.outputs[0].constant = np.where(is_fixed, bias, np.nan)

    def require(self, node):
        read = self.kernel[..., node.outputs[0].keep] != 0.0
        node.inputs[0].keep |= read.any(axis=(1, 2))
        node.inputs[1].keep |= read.any(axis=(0, 2))

    def shrunk(self):
        first, second = (tensor.keep for tensor in self.uses[0].inputs)
        kernel = self.kernel[first][:, second][..., self.output.keep]
        config = {**self.config, "units": kernel.shape[-1]}
        return config, [kernel, to_numpy(self.layer.bias)[self.output.keep]]


@register
class Laplace(priors.Prior):
    """p(w) = exp(-|w| / scale) / (2 scale)."""

    def __init__(self, scale=1.0):
        self.scale = scale

    def kl_divergence(self, theta, log_sigma2, log_alpha):
        sigma = ops.exp(0.5 * log_sigma2)
        z = theta / sigma
        # E|w| under the posterior.
        size = sigma * np.sqrt(2.0 / np.pi) * ops.exp(-0.5 * z * z)
        size = size + theta * ops.erf(z * np.sqrt(0.5))
        entropy = 0.5 * (np.log(2.0 * np.pi * np.e) + log_sigma2)
        return size / self.scale + np.log(2.0 * self.scale) - entropy

    def get_config(self):
        return {"scale": self.scale}


def plain_model():
    a, b = keras.Input((5,)), keras.Input((4,))
    x = keras.layers.Dense(6, activation="relu")(a)
    y = keras.layers.Dense(3)(b)
    z = Bilinear(4, name="bilinear")([x, y])
    return keras.Model([a, b], keras.layers.Dense(2)(z))


def data(batch_size=8):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(batch_size, n)).astype("float32") for n in (5, 4)]


def test_a_layer_goes_the_whole_way(tmp_path):
    """Oracles: the predictions of the step before, and counts by hand."""
    plain, inputs = plain_model(), data()
    expected = plain.predict(inputs, verbose=0)
    model = keras_vd.to_variational(
        plain, include="bilinear", kl_weight=0.1, verbose=0
    )
    layer = model.get_layer("bilinear")
    assert type(layer) is VDBilinear
    np.testing.assert_allclose(
        model.predict(inputs, verbose=0), expected, rtol=1e-5, atol=1e-6
    )
    model.compile("sgd", "mse")
    model.fit(inputs, np.zeros((8, 2)), epochs=1, verbose=0)
    # Output 0 goes, and with it and its own weights input 5 of the first.
    log_sigma2 = np.full(layer.kernel.shape, -20.0)
    log_sigma2[..., 0] = log_sigma2[5] = 20.0
    layer.kernel_posterior.log_sigma2.assign(log_sigma2)
    report = keras_vd.prune(model)
    assert report.rows[0].active_outputs == 3
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    expected = model.predict(inputs, verbose=0)
    np.testing.assert_allclose(
        loaded.predict(inputs, verbose=0), expected, rtol=1e-5, atol=1e-6
    )
    final = keras_vd.to_deterministic(loaded)
    assert type(final.get_layer("bilinear")) is Bilinear
    smaller = keras_vd.shrink(final, verbose=0)
    assert smaller.get_layer("bilinear").kernel.shape == (5, 3, 3)
    np.testing.assert_allclose(
        smaller.predict(inputs, verbose=0), expected, rtol=1e-5, atol=1e-5
    )
    assert count_macs(smaller) == 5 * 5 + 4 * 3 + 5 * 3 * 3 + 3 * 2


def test_noise_of_a_layer():
    """Oracle: y ~ N(sum a W b, sum a^2 sigma2 b^2), in NumPy."""
    layer = VDBilinear(
        2,
        kl_weight=0.1,
        posterior=posteriors.Gaussian(log_sigma2_init=-1.0),
    )
    a, b = (np.repeat(x[:1, :3], 20000, axis=0) for x in data())
    outputs = ops.convert_to_numpy(layer([a, b], training=True))
    products = np.einsum("i,j->ij", a[0], b[0])
    kernel = ops.convert_to_numpy(layer.kernel)
    mean = np.einsum("ij,ijk->k", products, kernel)
    stddev = np.sqrt(np.exp(-1.0) * np.sum(products**2))
    np.testing.assert_allclose(
        outputs.mean(axis=0), mean, atol=5.0 * stddev / np.sqrt(20000)
    )
    np.testing.assert_allclose(outputs.std(axis=0), stddev, rtol=0.03)


def test_a_prior_is_its_divergence(tmp_path):
    """Oracle: quadrature with SciPy, weight by weight."""
    layer = keras_vd.layers.VDDense(
        3, posterior=posteriors.SparseVD(prior=Laplace(0.5)), kl_weight=0.1
    )
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile("adam", "mse")
    model.fit(np.ones((8, 4)), np.zeros((8, 3)), epochs=2, verbose=0)
    posterior = layer.kernel_posterior
    expected = 0.0
    thetas, log_sigma2s = map(
        ops.convert_to_numpy, (posterior.theta, posterior.log_sigma2)
    )
    prior = stats.laplace(scale=0.5)
    for theta, log_sigma2 in zip(thetas.flat, log_sigma2s.flat, strict=True):
        q = stats.norm(theta, np.exp(0.5 * log_sigma2))
        expected += integrate.quad(
            lambda w, q=q: q.pdf(w) * (q.logpdf(w) - prior.logpdf(w)),
            theta - 9.0 * q.std(),
            theta + 9.0 * q.std(),
        )[0]
    assert keras_vd.kl_divergence(model) == pytest.approx(expected, rel=1e-4)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert keras_vd.kl_divergence(loaded) == pytest.approx(expected, rel=1e-4)
    assert loaded.layers[0].kernel_posterior.prior.scale == 0.5


def test_the_table_of_files_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text[text.index("## Which file") : text.index("## Adding a layer")]
    named = re.findall(r"`([\w/]+(?:\.py|\.md|/))`", table)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).exists()] == []
