"""The evidence lower bound of a data set."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from scipy import special, stats

import keras_vd
from keras_vd import layers, posteriors, priors
from keras_vd.posteriors.sampling import sampling_at_inference
from keras_vd.uncertainty.sampler import sampler_of
from tests.helpers.arrays import random_inputs, to_numpy
from tests.helpers.drawing import assert_unchanged, gaussian, snapshot

pytestmark = pytest.mark.core

L = keras.losses


def one_weight(theta, log_sigma2, prior_stddev):
    """Return y = w x, with a normal posterior and prior of w."""
    layer = layers.VDDense(
        1,
        use_bias=False,
        posterior=gaussian(log_sigma2, prior=priors.Gaussian(prior_stddev)),
    )
    model = keras.Sequential([keras.Input((1,)), layer])
    layer.kernel.assign([[theta]])
    model.compile(loss="mse")
    return model


def model_of(loss, units=3, shape=(4,), activation=None):
    model = keras.Sequential(
        [
            keras.Input(shape),
            layers.VDDense(
                units, activation=activation, posterior=gaussian(-1.0)
            ),
        ]
    )
    model.compile(loss=loss)
    return model


def test_one_weight():
    """Oracle: the closed form; at the exact posterior, the log evidence."""
    x, noise, width = random_inputs(20, 1), 0.4, 1.5
    y = 0.8 * x[:, 0] + 0.4 * random_inputs(20, seed=1)
    precision = np.sum(x**2) / noise**2 + 1.0 / width**2
    best = np.sum(x[:, 0] * y) / noise**2 / precision
    evidence = stats.multivariate_normal.logpdf(
        y, cov=noise**2 * np.eye(20) + width**2 * x @ x.T
    )
    for theta, variance in ((best, 1.0 / precision), (0.3, 0.1)):
        model = one_weight(theta, np.log(variance), width)
        report = keras_vd.elbo(
            model, x, y, num_samples=400, seed=0, noise_stddev=noise
        )
        power = np.sum((y - theta * x[:, 0]) ** 2) + variance * np.sum(x**2)
        likelihood = -0.5 * power / noise**2
        likelihood -= 20 * np.log(noise * np.sqrt(2.0 * np.pi))
        ratio = variance / width**2
        kl = 0.5 * (ratio - 1.0 - np.log(ratio) + theta**2 / width**2)
        error = report.standard_error
        assert 0.0 < error < 1.0 + 0.1 * abs(likelihood)
        assert abs(report.log_likelihood - likelihood) < 4.0 * error
        np.testing.assert_allclose(report.kl, kl, rtol=1e-4)
        assert report.elbo == report.log_likelihood - report.kl
        if theta == best:
            np.testing.assert_allclose(likelihood - kl, evidence, rtol=1e-6)
            assert abs(report.elbo - evidence) < 4.0 * error
        else:
            assert report.elbo < evidence


def log_sigmoid_terms(logits, y):
    return y * -np.log1p(np.exp(-logits)) + (1 - y) * -np.log1p(np.exp(logits))


def softmax_terms(logits, y):
    log_p = special.log_softmax(logits, axis=-1)
    return np.take_along_axis(log_p, y[..., None], -1)


LABELS = np.random.default_rng(2).integers(0, 3, 7)
STEPS = np.random.default_rng(3).integers(0, 3, (7, 5))
BITS = np.random.default_rng(4).integers(0, 2, (7, 3))
CASES = {
    "sparse": (
        L.SparseCategoricalCrossentropy(from_logits=True),
        (4,),
        LABELS,
        lambda z: softmax_terms(z, LABELS),
    ),
    "column": (
        L.SparseCategoricalCrossentropy(from_logits=True),
        (4,),
        LABELS[:, None],
        lambda z: softmax_terms(z, LABELS),
    ),
    "steps": (
        L.SparseCategoricalCrossentropy(from_logits=True),
        (5, 4),
        STEPS,
        lambda z: softmax_terms(z, STEPS),
    ),
    "categorical": (
        L.CategoricalCrossentropy(from_logits=True),
        (4,),
        np.eye(3)[LABELS],
        lambda z: softmax_terms(z, LABELS),
    ),
    "binary": (
        L.BinaryCrossentropy(from_logits=True),
        (4,),
        BITS,
        lambda z: log_sigmoid_terms(z, BITS),
    ),
    "normal": (
        "mse",
        (4,),
        np.linspace(-1.0, 1.0, 21).reshape(7, 3),
        lambda z: stats.norm(z, 0.7).logpdf(
            np.linspace(-1.0, 1.0, 21).reshape(7, 3)
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_against_a_loop_over_draws(name):
    """Oracle: NumPy's likelihood of each draw of the model, one by one."""
    loss, shape, y, terms = CASES[name]
    model = model_of(loss, shape=shape)
    x = random_inputs(7, *shape)
    totals, sampler = [], sampler_of(model)
    with sampler.seeded(5) as seeds, sampling_at_inference():
        for i in range(4):
            for state, seed in zip(
                sampler.generators.states, seeds.of_draw(i), strict=True
            ):
                state.assign(seed)
            outputs = to_numpy(model(x, training=False)).astype("float64")
            totals.append(np.sum(terms(outputs)))
    before = snapshot(model)
    report = keras_vd.elbo(
        *(model, x, y, 4, 3),
        seed=5,
        noise_stddev=0.7 if name == "normal" else None,
    )
    assert_unchanged(model, before)
    assert np.std(totals) > 0.01
    np.testing.assert_allclose(
        report.log_likelihood, np.mean(totals), rtol=1e-5
    )
    np.testing.assert_allclose(
        report.standard_error, np.std(totals, ddof=1) / 2.0, rtol=1e-3
    )
    assert report.kl == keras_vd.kl_divergence(model)


@pytest.mark.parametrize(
    ("logits", "probabilities", "activation", "y"),
    [
        (
            L.SparseCategoricalCrossentropy(from_logits=True),
            "sparse_categorical_crossentropy",
            "softmax",
            LABELS,
        ),
        (
            L.BinaryCrossentropy(from_logits=True),
            L.BinaryCrossentropy(),
            "sigmoid",
            BITS,
        ),
    ],
)
def test_probabilities(logits, probabilities, activation, y):
    """Identity: the value of the same model with logits as outputs."""
    model, other = (
        model_of(logits),
        model_of(probabilities, 3, (4,), activation),
    )
    other.set_weights(model.get_weights())
    x = random_inputs(7, 4)
    reports = [keras_vd.elbo(m, x, y, 3, seed=1) for m in (model, other)]
    np.testing.assert_allclose(
        reports[0].log_likelihood, reports[1].log_likelihood, rtol=1e-4
    )


@pytest.mark.parametrize("stddev", [None, 0.4])
def test_gaussian_noise(stddev):
    """Oracle: SciPy's density at the outputs of the same draws, from below."""
    model = model_of(keras_vd.losses.GaussianNLL(stddev), units=2)
    x = random_inputs(5, 4)
    y = random_inputs(5, 1 if stddev is None else 2, seed=1)
    report = keras_vd.elbo(model, x, y, num_samples=3, seed=0)
    samples = keras_vd.predict_mc(
        model, x, 3, seed=0, return_samples=True, verbose=0
    )
    means, noise = samples.samples, stddev or samples.noise
    terms = stats.norm.logpdf(y, means, noise).sum(axis=(1, 2))
    assert report.log_likelihood == pytest.approx(terms.mean(), rel=1e-5)
    with pytest.raises(ValueError, match="`noise_stddev`"):
        keras_vd.elbo(model, x, y, noise_stddev=0.4)


def test_report():
    report = keras_vd.elbo(
        one_weight(0.5, -2.0, 1.0),
        np.ones((4, 1)),
        np.zeros(4),
        num_samples=1,
        seed=0,
        noise_stddev=1.0,
    )
    assert isinstance(report, keras_vd.reports.ElboReport)
    found = json.loads(json.dumps(report.to_dict()))
    assert found["examples"] == 4
    assert found["num_samples"] == 1
    assert found["standard_error"] is None
    assert found["elbo"] == 4 * found["elbo_per_example"] == report.elbo
    assert f"{report.kl:,.2f}" in str(report)
    assert f"{report.elbo / 4:.4f}" in str(report)


X = np.ones((7, 4), "float32")


@pytest.mark.parametrize(
    ("loss", "y", "options", "named"),
    [
        ("mae", LABELS, {}, "negative log likelihood.*mae"),
        (None, LABELS, {}, "loss=None"),
        (L.CategoricalCrossentropy(label_smoothing=0.1), X[:, :3], {}, "0.1"),
        ("mse", X[:, :3], {}, "noise_stddev"),
        ("mse", X[:, :3], {"noise_stddev": 0.0}, "greater than 0"),
        (
            "sparse_categorical_crossentropy",
            LABELS,
            {"noise_stddev": 1.0},
            "1.0",
        ),
        ("sparse_categorical_crossentropy", LABELS + 1, {}, "class numbers"),
        ("sparse_categorical_crossentropy", LABELS[:6], {}, "7 examples"),
        ("sparse_categorical_crossentropy", BITS, {}, r"shape \(7,\)"),
        ("binary_crossentropy", LABELS, {}, "zeros and ones"),
        ("binary_crossentropy", 0.5 * BITS, {}, "zeros and ones"),
        ("binary_crossentropy", BITS, {"num_samples": 0}, "num_samples"),
    ],
)
def test_bad_arguments(loss, y, options, named):
    model = model_of(loss, activation="softmax")
    with pytest.raises(ValueError, match=named) as error:
        keras_vd.elbo(model, X, y, **options)
    assert "Argument `" in str(error.value)


def test_data_sets_are_refused():
    with pytest.raises(TypeError, match="Argument `x` must be an array"):
        keras_vd.elbo(
            model_of("binary_crossentropy"), iter([X]), BITS, num_samples=1
        )


def test_plain_models_are_refused():
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    plain.compile(loss="mse")
    with pytest.raises(ValueError, match="variational layer"):
        keras_vd.elbo(plain, X, X[:, :3], noise_stddev=1.0)


def test_gates():
    """Oracle: the KL counts them, and the bound is finite."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.VDDense(3, posterior=posteriors.ARD()),
            layers.LogNormalDropout(),
        ]
    )
    model.compile(loss="binary_crossentropy")
    report = keras_vd.elbo(model, X, BITS, 2)
    assert np.isfinite(report.elbo)
    assert report.kl == keras_vd.kl_divergence(model)
