"""A layer, a prior, a posterior and a gate of one's own.

They are the skeleton files of `docs/howto/extending.md`, and what new modules
of the package would be: nothing else has to know of the layer `VDBilinear`,
its rule, the prior `Laplace`, the posterior `SoftplusGaussian` and the gate
`GaussianGate`. Strings in `priors` and `posteriors` are all that they lack.
"""

from __future__ import annotations

import importlib.util
import pathlib
import re

import keras
import numpy as np
import pytest
from keras import ops
from scipy import integrate, stats

import keras_vd
from keras_vd import posteriors
from keras_vd.rules.costs import count_macs

ROOT = pathlib.Path(__file__).parents[1]
SKELETONS = ROOT / "docs" / "howto" / "skeletons"


def load(name):
    path = SKELETONS / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"skeleton_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_layer = load("layer")
Bilinear, VDBilinear = _layer.Bilinear, _layer.VDBilinear
Laplace = load("prior").Laplace
SoftplusGaussian = load("posterior").SoftplusGaussian
GaussianGate = load("gate").GaussianGate

pytestmark = pytest.mark.core


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


def dense_with_posterior(**options):
    """A model of one layer, of random means and deviations from 0.1 to 0.7."""
    posterior = SoftplusGaussian(**options)
    layer = keras_vd.layers.VDDense(3, posterior=posterior, kl_weight=0.1)
    model = keras.Sequential([keras.Input((4,)), layer])
    rng = np.random.default_rng(0)
    layer.kernel.assign(rng.normal(size=(4, 3)))
    layer.kernel_posterior.rho.assign(rng.uniform(-2.0, 0.0, (4, 3)))
    return model


def moments(model):
    """Means and standard deviations of the kernel, float64, in NumPy."""
    posterior = model.layers[0].kernel_posterior
    theta, rho = (
        np.array(ops.convert_to_numpy(x), "float64")
        for x in (posterior.theta, posterior.rho)
    )
    return theta, np.log1p(np.exp(rho))


@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_noise_of_a_posterior(estimator):
    """Oracle: y ~ N(x theta, x^2 sigma^2), in NumPy."""
    model, number = dense_with_posterior(estimator=estimator), 20000
    theta, sigma = moments(model)
    x = np.array([[1.0, -2.0, 0.5, 0.0]], "float32")
    if estimator == "local":
        inputs = np.repeat(x, number, axis=0)
        outputs = ops.convert_to_numpy(model(inputs, training=True))
    else:
        number = 300
        posterior = model.layers[0].kernel_posterior
        kernels = [
            ops.convert_to_numpy(posterior.sample()) for _ in range(number)
        ]
        outputs = (x @ np.stack(kernels))[:, 0]
    stddev = np.sqrt(x**2 @ sigma**2)[0]
    gap = (outputs.mean(axis=0) - (x @ theta)[0]) / stddev * np.sqrt(number)
    assert np.abs(gap).max() < 5.0
    # A sample variance has the relative variance 2 / n.
    gap = (outputs.var(axis=0) / stddev**2 - 1.0) / np.sqrt(2.0 / number)
    assert np.abs(gap).max() < 5.0


def test_a_posterior_goes_the_whole_way(tmp_path):
    """Oracles: two Gaussians' divergence; what was computed before saving."""
    model = dense_with_posterior(threshold=0.0)
    theta, sigma = moments(model)
    divergence = np.sum((sigma**2 + theta**2 - 1.0) / 2.0 - np.log(sigma))
    assert keras_vd.kl_divergence(model) == pytest.approx(divergence, rel=1e-5)
    # log alpha >= 0 is sigma >= |theta|.
    kept = sigma < np.abs(theta)
    assert 0 < kept.sum() < kept.size
    inputs = np.random.default_rng(1).normal(size=(5, 4)).astype("float32")
    expected = inputs @ (theta * kept)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0].kernel_posterior) is SoftplusGaussian
    assert keras_vd.kl_divergence(loaded) == pytest.approx(divergence, rel=1e-5)
    assert keras_vd.prune(loaded).nonzero == kept.sum()
    for found in (model, loaded, keras_vd.to_deterministic(loaded)):
        outputs = found.predict(inputs, verbose=0)
        np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def test_options_of_a_posterior():
    posterior = SoftplusGaussian(rho_init=-1.0, threshold=2.0)
    revived = posteriors.get(posteriors.serialize(posterior))
    assert type(revived) is SoftplusGaussian
    assert revived.get_config() == posterior.get_config()
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model = keras_vd.to_variational(plain, posterior=posterior, verbose=0)
    _, sigma = moments(model)
    np.testing.assert_allclose(sigma, np.log1p(np.exp(-1.0)), rtol=1e-6)


@pytest.mark.integration
def test_a_posterior_is_trained_to_the_exact_one():
    """Oracle: Bayesian linear regression.

    A mean squared error is the log likelihood of noise of variance 1/2. With
    orthogonal columns of +-1 the exact posterior of N examples is factorized:
    precision 1 + 2 N and mean w 2 N / (1 + 2 N) for targets x w.
    """
    keras.utils.set_random_seed(0)
    columns = np.array(np.meshgrid(*[[-1.0, 1.0]] * 4)).reshape(4, -1).T
    x = np.tile(columns, (128, 1)).astype("float32")
    weights = np.array(
        [[1.0, 0.0, -0.5], [0.3, 2.0, 0.0], [0.0] * 3, [1.0] * 3]
    )
    layer = keras_vd.layers.VDDense(
        3, posterior=SoftplusGaussian(), use_bias=False
    )
    model = keras.Sequential([keras.Input((4,)), layer])
    optimizer = keras.optimizers.Adam(0.01, beta_2=0.99)
    # The loss is a mean over outputs, the likelihood a sum.
    model.compile(optimizer, "mse", loss_weights=3.0)
    annealing = keras_vd.callbacks.KLAnnealing(len(x), 0, 2, verbose=0)
    model.fit(
        x,
        x @ weights,
        batch_size=32,
        epochs=16,
        callbacks=[annealing],
        verbose=0,
    )
    theta, sigma = moments(model)
    precision = 1.0 + 2.0 * len(x)
    np.testing.assert_allclose(theta, weights, atol=0.02)
    np.testing.assert_allclose(sigma, precision**-0.5, rtol=0.15)


def test_a_gate_goes_the_whole_way(tmp_path):
    """Oracles: quadrature, a draw's moments, and NumPy's forward pass."""
    gate = GaussianGate(kl_weight=0.1)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, activation="relu"),
            gate,
            keras.layers.Dense(3),
        ]
    )
    rng = np.random.default_rng(0)
    mu = rng.uniform(0.2, 1.0, 6) * np.tile([1.0, -1.0], 3)
    # |mu| / sigma is 10 for the first three units, and 0.1 for the others.
    sigma = np.abs(mu) / np.repeat([10.0, 0.1], 3)
    gate.mu.assign(mu)
    gate.log_sigma2.assign(2.0 * np.log(sigma))
    expected = 0.0
    prior = stats.norm()
    for m, s in zip(mu, sigma, strict=True):
        q = stats.norm(m, s)
        expected += integrate.quad(
            lambda z, q=q: q.pdf(z) * (q.logpdf(z) - prior.logpdf(z)),
            m - 9.0 * s,
            m + 9.0 * s,
        )[0]
    assert keras_vd.kl_divergence(model) == pytest.approx(expected, rel=1e-4)
    ones = ops.ones((1, 6))
    draws = np.concatenate(
        [ops.convert_to_numpy(gate(ones, training=True)) for _ in range(400)]
    )
    assert np.abs((draws.mean(axis=0) - mu) / sigma).max() < 5.0 / np.sqrt(400)
    np.testing.assert_allclose(draws.std(axis=0), sigma, rtol=0.25)
    x = rng.normal(size=(5, 4)).astype("float32")
    first, _, last = (layer.get_weights() for layer in model.layers)
    hidden = np.maximum(x @ first[0] + first[1], 0) * mu * (sigma < np.abs(mu))
    outputs = hidden @ last[0] + last[1]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[1]) is GaussianGate
    keras_vd.prune(loaded)
    assert loaded.layers[1].n_active == 3
    plain = keras_vd.to_deterministic(loaded)
    small = keras_vd.shrink(plain, verbose=0)
    for found in (model, loaded, plain, small):
        np.testing.assert_allclose(
            found.predict(x, verbose=0), outputs, rtol=1e-4, atol=1e-5
        )
    assert small.layers[0].units == 3


def test_the_page_names_every_skeleton():
    page = (SKELETONS.parent / "extending.md").read_text()
    for path in SKELETONS.glob("*.py"):
        assert f"{{literalinclude}} skeletons/{path.name}" in page


def test_the_table_of_files_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text[text.index("## Which file") : text.index("## Adding a layer")]
    named = re.findall(r"`([\w/]+(?:\.py|\.md|/))`", table)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).exists()] == []
