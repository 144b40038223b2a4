"""Weights that are not finite are neither kept nor dropped."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_vd
from keras_vd import deployment, layers, posteriors
from keras_vd.callbacks import KLAnnealing
from tests.helpers.arrays import random_inputs, to_float64
from tests.helpers.gates import DEPENDENT, parametrize, set_open

pytestmark = pytest.mark.core

X = random_inputs(8, 5)
NOT_FINITE = (np.nan, np.inf, -np.inf)


def make(posterior="sparse_vd", **options):
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.VDDense(4, posterior=posterior, kl_weight=1e-3, **options),
            layers.LogNormalDropout(kl_weight=1e-3),
            keras.layers.Dense(2),
        ]
    )


def spoil(variable, value):
    """Put one bad entry into a variable; return the variable's path."""
    values = np.array(to_float64(variable))
    values.flat[-1] = value
    variable.assign(values)
    return variable.path


def float_paths(model):
    return [x.path for x in model.weights if "float" in str(x.dtype)]


def by_path(model, path):
    return next(x for x in model.weights if x.path == path)


@pytest.mark.integration
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("posterior", ["sparse_vd", "vd", "gaussian"])
def test_every_verb_says_which_weight(posterior, value):
    paths = float_paths(make(posterior, name="hidden", groups=("input",)))
    for index in range(len(paths)):
        model = make(posterior, groups=("input",))
        path = spoil(by_path(model, float_paths(model)[index]), value)
        report = keras_vd.sparsity_report(model)
        assert report.nonfinite == {path: 1}
        assert report.to_dict()["nonfinite"] == {path: 1}
        text = str(report)
        assert "not finite" in text
        assert path in text
        for verb in (
            keras_vd.prune,
            keras_vd.to_deterministic,
            lambda m: keras_vd.predict_mc(m, X, 2, task="regression"),
        ):
            with pytest.raises(ValueError, match=path):
                verb(model)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_plain_models_are_refused(value, tmp_path):
    for index in (0, 1):
        model = keras.Sequential(
            [keras.Input((5,)), keras.layers.Dense(4), keras.layers.Dense(2)]
        )
        path = spoil(model.weights[2 * index], value)
        for verb in (
            keras_vd.shrink,
            keras_vd.to_variational,
            lambda m: deployment.save_compressed(m, tmp_path / "model.zip"),
            lambda m: deployment.export_saved_model(m, tmp_path / "saved"),
            lambda m: deployment.export_packed(m, tmp_path / "packed"),
            lambda m: deployment.export_onnx(m, tmp_path / "model.onnx"),
            lambda m: deployment.export_litert(m, tmp_path / "model.tflite"),
            lambda m: deployment.deployment_report(m, m),
        ):
            with pytest.raises(ValueError, match=path):
                verb(model)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("weight", ["kernel", "log_sigma2"])
def test_predictions_of_a_diverged_model_are_not_finite(weight):
    model = make()
    layer = model.layers[0]
    spoil(
        layer.kernel
        if weight == "kernel"
        else layer.kernel_posterior.log_sigma2,
        np.nan,
    )
    assert np.isnan(model.predict(X, verbose=0)).all(axis=0).any()


@parametrize
def test_a_gate_of_a_diverged_model_is_not_finite(gate):
    """Oracle: NaN for the unit that has one, nothing else changed."""
    layer = gate.make((6,))
    set_open(layer)
    inputs = random_inputs(3, 6)
    expected = to_float64(layer(inputs))
    assert np.isfinite(expected).all()
    for variable in layer.trainable_variables:
        values = to_float64(variable)
        values[2] = np.nan
        variable.assign(values)
    expected[:, 2] = np.nan
    np.testing.assert_array_equal(to_float64(layer(inputs)), expected)
    # What is pruned stays away.
    layer.keep_mask.assign(np.arange(6) != 2)
    expected[:, 2] = 0.0
    np.testing.assert_array_equal(to_float64(layer(inputs)), expected)


def test_a_diverged_gate_counts_as_on():
    layer = DEPENDENT.make((6,))
    set_open(layer)
    inputs = random_inputs(3, 6)
    layer.normalization.beta.assign(np.full(6, np.nan))
    assert layer.active_per_example(inputs) == 6.0


def test_a_diverged_model_does_not_look_sparse():
    model = make()
    for variable in model.trainable_variables:
        variable.assign(np.full(variable.shape, np.nan))
    report = keras_vd.sparsity_report(model)
    assert report.nonzero_ratio == 1.0
    assert report.sparsity == 0.0
    assert report.n_active == [5, 4]


def test_parts_refuse_to_be_pruned():
    model = make()
    dense, gate, _ = model.layers
    path = spoil(dense.kernel_posterior.log_sigma2, np.nan)
    with pytest.raises(ValueError, match=path):
        dense.kernel_posterior.prune()
    path = spoil(gate.mu, np.nan)
    with pytest.raises(ValueError, match=path):
        gate.prune()


def test_the_divergence_of_a_diverged_model_is_refused():
    model = make()
    path = spoil(model.layers[0].kernel, np.nan)
    with pytest.raises(ValueError, match=path):
        keras_vd.kl_divergence(model)


@pytest.mark.integration
def test_the_callback_stops_and_says_where(capsys):
    model = make()
    model.compile("sgd", "mse")
    path = model.layers[0].kernel.path
    annealing = KLAnnealing(8, start_epoch=0, warmup_epochs=0)
    spoil(model.layers[0].kernel, np.nan)
    with pytest.warns(UserWarning, match=path):
        history = model.fit(
            X, np.zeros((8, 2)), epochs=3, verbose=0, callbacks=[annealing]
        )
    assert len(history.epoch) == 1
    assert f"not finite: {path}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["sparse_vd", "ard"])
@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_variances_have_a_bound(name, estimator):
    # Oracle: the bound itself, e^10 (theta^2 + 1).
    layer = layers.VDDense(
        1,
        posterior=posteriors.get(name).__class__(estimator=estimator),
        kl_weight=1.0,
    )
    layer.build((None, 1))
    layer.kernel.assign([[3.0]])
    outputs = {}
    for log_sigma2 in (10.0 + np.log(10.0), 60.0, 1e4):
        layer.kernel_posterior.log_sigma2.assign([[log_sigma2]])
        layer.kernel_posterior.seed_generator.state.assign([1, 2])
        noisy = layer(np.ones((4, 1), "float32"), training=True)
        outputs[log_sigma2] = to_float64(noisy)
    first, *others = outputs.values()
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-3)


def test_wide_gaussians_are_not_bounded():
    layer = layers.VDDense(1, posterior="gaussian", kl_weight=1.0)
    layer.build((None, 1))
    layer.kernel.assign([[0.0]])
    layer.kernel_posterior.log_sigma2.assign([[np.log(1e4)]])
    noisy = to_float64(layer(np.ones((4000, 1), "float32"), training=True))
    assert abs(noisy.std() / 100.0 - 1.0) < 0.06  # 5 standard errors


@pytest.mark.integration
@pytest.mark.parametrize("name", ["sparse_vd", "ard", "vd", "gaussian"])
def test_a_huge_learning_rate_stays_finite(name):
    keras.utils.set_random_seed(0)
    posterior = posteriors.get(name)
    model = keras.Sequential(
        [keras.Input((5,))]
        + [
            layers.VDDense(
                16, activation="relu", posterior=posterior, kl_weight=0.1
            )
            for _ in range(3)
        ]
        + [layers.VDDense(2, posterior=posterior, kl_weight=0.1)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(10.0), loss)
    labels = np.arange(8) % 2
    model.fit(np.tile(X, (60, 1)), np.tile(labels, 60), batch_size=8, verbose=0)
    for variable in model.weights:
        assert np.isfinite(to_float64(variable)).all(), variable.path
