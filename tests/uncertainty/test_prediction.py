import dataclasses
import tracemalloc

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats

from keras_vd import (
    calibration_report,
    layers,
    predict_mc,
    prune,
    variational_weights,
)
from keras_vd.uncertainty import MonteCarloPrediction, sampler
from tests.helpers.arrays import random_inputs, to_float64
from tests.helpers.drawing import (
    NO_NOISE,
    STACKS,
    Probe,
    assert_unchanged,
    gaussian,
    sequential,
    snapshot,
)
from tests.helpers.models import mlp, plain_mlp, randomize


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_moments_of_a_linear_layer(estimator):
    """Oracle: y ~ N(x @ theta + b, x^2 @ sigma2), whatever the estimator."""
    num_samples = 2000
    dense = layers.VDDense(5, posterior=gaussian(estimator=estimator))
    model = sequential((6,), dense)
    inputs = random_inputs(4, 6)
    prediction = predict_mc(
        model, inputs, num_samples, seed=1, task="regression"
    )
    theta, bias = to_float64(dense.kernel), to_float64(dense.bias)
    mean = inputs @ theta + bias
    stddev = np.sqrt(np.square(inputs) @ np.full((6, 5), np.exp(-2.0)))
    z = (prediction.mean - mean) / (stddev / np.sqrt(num_samples))
    assert np.abs(z).max() < 5
    # The standard deviation of a sample's: sigma / sqrt(2 n).
    ratio = prediction.standard_deviation / stddev - 1.0
    assert np.abs(ratio).max() < 5 / np.sqrt(2 * num_samples)
    assert prediction.mean.dtype == "float32"
    assert prediction.num_samples == num_samples
    assert prediction.task == "regression"
    assert prediction.predictive_entropy is None
    assert prediction.mutual_information is None
    assert prediction.expected_calibration_error is None


@pytest.fixture
def known_draws(monkeypatch):
    """Lets the draws of a model be the arrays that a test chooses."""

    def choose(draws):
        draws = iter(draws)
        monkeypatch.setattr(
            sampler.Sampler, "predict_on_batch", lambda *_: next(draws)
        )

    return choose


def check_statistics(prediction, draws):
    """Oracle: NumPy and SciPy on all draws, shape (samples, n, classes)."""
    np.testing.assert_allclose(prediction.mean, draws.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        prediction.standard_deviation, draws.std(0), rtol=1e-5
    )
    entropy = scipy.stats.entropy(draws.mean(0), axis=-1)
    np.testing.assert_allclose(
        prediction.predictive_entropy, entropy, rtol=1e-5
    )
    each = scipy.stats.entropy(draws, axis=-1).mean(0)
    np.testing.assert_allclose(
        prediction.mutual_information, entropy - each, rtol=1e-4, atol=1e-6
    )


def test_statistics_of_given_draws(known_draws):
    logits = 3.0 * np.random.default_rng(0).normal(size=(9, 4, 3))
    draws = scipy.special.softmax(logits, axis=-1)
    draws[0, 0] = [0.0, 1.0, 0.0]  # 0 log 0 is 0
    known_draws(draws)
    labels = [0, 2, 1, 1]
    prediction = predict_mc(mlp(), random_inputs(4, 6), 9, labels=labels)
    check_statistics(prediction, draws)
    expected = calibration_report(draws.mean(0), labels).expected_error
    assert prediction.expected_calibration_error == pytest.approx(expected)


def test_print_sums_up_what_may_be_long(known_draws):
    """Oracle: smallest, mean and largest of the arrays, and few lines."""
    known_draws(np.random.default_rng(0).normal(size=(3, 500, 2)))
    model = sequential((6,), layers.VDDense(2))
    # All at once, as the draws are.
    prediction = predict_mc(
        *(model, random_inputs(500, 6), 3),
        batch_size=500,
        task="regression",
    )
    text = str(prediction)
    for x in (prediction.mean, prediction.epistemic_variance):
        for figure in (x.min(), x.mean(), x.max()):
            assert f"{figure:.4g}" in text
    assert "500x2" in text
    assert "entropy" not in text
    assert len(text.splitlines()) < 12


def test_statistics_of_logits(known_draws):
    logits = 3.0 * np.random.default_rng(0).normal(size=(9, 4, 3))
    known_draws(100.0 + logits)  # a softmax does not see a shift
    inputs = random_inputs(4, 6)
    model = sequential((6,), layers.VDDense(3))
    prediction = predict_mc(model, inputs, 9, task="classification")
    check_statistics(prediction, scipy.special.softmax(logits, axis=-1))


@pytest.mark.parametrize("from_logits", [False, True])
def test_statistics_of_one_column(from_logits, known_draws):
    logits = 3.0 * np.random.default_rng(0).normal(size=(9, 4, 1))
    column = scipy.special.expit(logits)
    known_draws(logits if from_logits else column)
    inputs, labels = random_inputs(4, 6), [0, 1, 1, 0]
    activation = "linear" if from_logits else "sigmoid"
    model = sequential((6,), layers.VDDense(1, activation=activation))
    prediction = predict_mc(model, inputs, 9, labels=labels, task="binary")
    both = np.concatenate([1 - column, column], axis=-1)
    np.testing.assert_allclose(prediction.mean, column.mean(0), rtol=1e-5)
    first = (prediction.mean, prediction.standard_deviation)
    mean, stddev = (np.repeat(x, 2, axis=-1) for x in first)
    mean[:, 0] = 1 - mean[:, 0]
    prediction = dataclasses.replace(
        prediction, mean=mean, standard_deviation=stddev
    )
    check_statistics(prediction, both)
    assert prediction.calibration.examples == 4


def test_mutual_information_is_never_negative(known_draws):
    draws = np.full((3, 2, 3), 1 / 3, "float32")
    known_draws(draws)
    prediction = predict_mc(mlp(), random_inputs(2, 6), 3)
    assert prediction.mutual_information.min() >= 0.0
    np.testing.assert_allclose(
        prediction.predictive_entropy, np.log(3.0), rtol=1e-6
    )
    np.testing.assert_allclose(prediction.mutual_information, 0.0, atol=1e-6)


@pytest.mark.core
def test_entropies_of_a_network():
    model = mlp()
    randomize(model)
    prediction = predict_mc(model, random_inputs(20, 6), 40, seed=0)
    information = prediction.mutual_information
    assert information.shape == (20,)
    assert (information > 0.0).all()
    assert (information < prediction.predictive_entropy).all()
    assert (prediction.predictive_entropy < np.log(3.0) + 1e-6).all()


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("name", STACKS)
def test_every_layer_draws_and_nothing_else_does(name):
    """No KL weight was set anywhere; losses of training would need one."""
    shape, stack = STACKS[name]()
    probe = Probe()
    model = sequential(shape, *stack, keras.layers.Dropout(0.5), probe)
    inputs = (
        np.arange(12).reshape(3, 4) % 9
        if name == "embedding"
        else random_inputs(3, *shape)
    )
    inference = model.predict(inputs, verbose=0)
    before, compiled = snapshot(model), model.predict_function
    probe.calls = 0
    prediction = predict_mc(model, inputs, 30, seed=0, task="regression")
    if keras.backend.backend() != "torch":
        assert probe.calls == 1
    # Something is drawn, and Dropout, which would halve a few, is off.
    assert np.median(prediction.standard_deviation) > 1e-4
    assert_unchanged(model, before)
    assert model.losses == []
    assert model.predict_function is compiled
    np.testing.assert_array_equal(model.predict(inputs, verbose=0), inference)


@pytest.mark.integration
@pytest.mark.core
def test_without_noise_it_is_predict():
    """Dropout of every kind is off; batch statistics are not used."""
    posterior = gaussian(NO_NOISE)
    model = sequential(
        (4,),
        layers.VDEmbedding(9, 5, posterior=posterior),
        keras.layers.Dropout(0.5),
        keras.layers.BatchNormalization(),
        keras.layers.Bidirectional(
            layers.VDLSTM(
                4, dropout=0.5, recurrent_dropout=0.5, posterior=posterior
            )
        ),
        layers.VDDense(3, activation="softmax", posterior=posterior),
    )
    tokens = np.arange(40).reshape(10, 4) % 9
    before = snapshot(model)
    prediction = predict_mc(model, tokens, 5, batch_size=4)
    assert_unchanged(model, before)
    expected = model.predict(tokens, verbose=0)
    np.testing.assert_allclose(prediction.mean, expected, atol=1e-6)
    np.testing.assert_allclose(prediction.standard_deviation, 0.0, atol=1e-6)
    np.testing.assert_allclose(prediction.mutual_information, 0.0, atol=1e-6)


@pytest.mark.integration
@pytest.mark.core
def test_dependent_gates_use_moving_statistics():
    """Oracle: phi(x) = clip(x + 10 - 5 + noise, 0, 1) = 1, whatever the batch.

    Batch statistics of equal examples would make it clip(-5 + noise) = 0.
    """
    gate = layers.DependentBetaBernoulliDropout(
        beta_init=-5.0, a_init=5.0, sigma_init=-5.0
    )
    model = keras.Sequential([keras.Input((6,)), gate])
    gate.normalization.moving_mean.assign(np.full(6, -10.0))
    inputs = np.ones((8, 6))
    prediction = predict_mc(model, inputs, 800, seed=0, task="regression")
    expected = to_float64(gate.gate_mean())
    assert (expected > 0.7).all()
    # One gate for all examples of a draw.
    np.testing.assert_array_equal(prediction.mean, prediction.mean[:1] * inputs)
    np.testing.assert_allclose(prediction.mean[0], expected, atol=0.08)


@pytest.mark.integration
@pytest.mark.core
def test_what_is_pruned_has_no_noise():
    dense = layers.VDDense(5, posterior="sparse_vd")
    model = sequential((6,), dense)
    randomize(model)
    inputs = random_inputs(7, 6)
    noisy = predict_mc(model, inputs, 20, task="regression").standard_deviation
    assert (noisy > 0.1).all()
    prune(model)
    kept = to_float64(dense.kernel_posterior.keep_mask)
    theta = to_float64(dense.kernel) * kept
    prediction = predict_mc(model, inputs, 500, seed=0, task="regression")
    # randomize() puts log_alpha of kept weights at -4.
    variance = np.square(inputs) @ (np.exp(-4.0) * np.square(theta))
    np.testing.assert_allclose(
        prediction.standard_deviation, np.sqrt(variance), rtol=0.2
    )
    prune(model, -20.0)
    prediction = predict_mc(model, inputs, 3, task="regression")
    np.testing.assert_array_equal(prediction.standard_deviation, 0.0)
    np.testing.assert_allclose(
        prediction.mean, np.tile(to_float64(dense.bias), (7, 1)), rtol=1e-6
    )


@pytest.mark.integration
@pytest.mark.core
def test_a_seed_decides_the_draws():
    model, inputs = mlp("gaussian"), random_inputs(5, 6)

    def mean(**options):
        return predict_mc(model, inputs, 2, **options).mean

    np.testing.assert_array_equal(mean(seed=3), mean(seed=3))
    assert (mean(seed=3) != mean(seed=4)).any()
    assert (mean() != mean()).any()
    keras.utils.set_random_seed(0)
    first = mean()
    keras.utils.set_random_seed(0)
    np.testing.assert_array_equal(first, mean())


@pytest.mark.integration
def test_training_goes_on_as_if_nothing_had_happened():
    results = []
    for is_asked in (False, True):
        keras.utils.set_random_seed(1)
        model = mlp(kl_weight=0.01)
        model.compile("sgd", "sparse_categorical_crossentropy")
        inputs, labels = random_inputs(8, 6), np.arange(8) % 3
        losses = []
        for _ in range(2):
            losses.append(model.train_on_batch(inputs, labels))
            if is_asked:
                predict_mc(model, inputs, 3, seed=0)
                assert model.losses == [] or len(model.losses) == 2
        results.append((losses, snapshot(model)))
    assert results[0][0] == results[1][0]
    for one, other in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.integration
def test_memory_does_not_grow_with_the_number_of_draws():
    model, inputs = mlp(), random_inputs(5000, 6)

    def peak(num_samples):
        tracemalloc.start()
        predict_mc(model, inputs, num_samples, batch_size=2500)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(1)
    # 40 more draws would take 40 * 2500 * 3 * 4 bytes, 1.2 MB.
    assert peak(42) < peak(2) + 300_000


@pytest.mark.integration
@pytest.mark.core
def test_structures_of_inputs_and_outputs():
    left, right = (
        keras.Input((3,), name="left"),
        keras.Input((2,), name="right"),
    )
    joined = keras.layers.Concatenate()([left, right])
    posterior = gaussian()
    model = keras.Model(
        {"left": left, "right": right},
        {
            "logits": layers.VDDense(3, posterior=posterior)(joined),
            "value": layers.VDDense(1, posterior=posterior)(joined),
        },
    )
    inputs = {"left": random_inputs(5, 3), "right": random_inputs(5, 2)}
    prediction = predict_mc(
        model,
        inputs,
        20,
        batch_size=2,
        labels={"logits": np.arange(5) % 3, "value": None},
        task={"logits": "classification", "value": "regression"},
        seed=0,
    )
    assert set(prediction) == {"logits", "value"}
    np.testing.assert_allclose(
        prediction["logits"].mean.sum(axis=-1), 1.0, rtol=1e-5
    )
    assert prediction["logits"].calibration.examples == 5
    assert prediction["logits"].mutual_information.shape == (5,)
    assert prediction["value"].mean.shape == (5, 1)
    assert prediction["value"].calibration is None
    assert (prediction["value"].standard_deviation > 0.0).all()
    # Inputs that are no arrays of NumPy give the same.
    tensors = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
    again = predict_mc(
        model, tensors, 20, batch_size=2, seed=0, task="regression"
    )
    np.testing.assert_allclose(
        again["value"].mean, prediction["value"].mean, rtol=1e-5
    )
    with pytest.raises(ValueError, match="`labels` must have one entry for"):
        predict_mc(model, inputs, 2, labels={"value": 0}, task="regression")


@pytest.mark.integration
@pytest.mark.core
def test_half_precision():
    model = mlp("gaussian", dtype="mixed_bfloat16")
    inputs = random_inputs(5, 6)
    prediction = predict_mc(model, inputs, 50, seed=0)
    expected = model.predict(inputs, verbose=0).astype("float32")
    assert prediction.predictive_entropy is not None
    np.testing.assert_allclose(prediction.mean, expected, atol=0.05)


def test_a_model_inside_another_model():
    inner = mlp("gaussian")
    outer = keras.Sequential([keras.Input((6,)), inner, keras.layers.ReLU()])
    prediction = predict_mc(
        outer, random_inputs(4, 6), 5, task="classification", from_logits=False
    )
    assert isinstance(prediction, MonteCarloPrediction)
    # A hidden layer may be dead for an example, which leaves nothing to draw.
    assert prediction.mutual_information.max() > 0.0
    assert len(variational_weights(outer)) == 2


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "`num_samples` must be an integer"),
        ({"num_samples": 2.5}, TypeError, "`num_samples` must be an integer"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be an integer"),
        ({"seed": -1}, ValueError, "`seed` must be an integer"),
        ({"steps": 0}, ValueError, "`steps` must be an integer"),
        ({"verbose": 2}, ValueError, "`verbose` must be 'auto', 0 or 1"),
        ({"x": iter([1])}, TypeError, "`x` must be what `predict` takes"),
        ({"x": np.float32(1)}, TypeError, "`x` must be what `predict`"),
        ({"x": np.zeros((0, 6))}, ValueError, "at least one example"),
        (
            {"x": [np.zeros((2, 6)), np.zeros((3, 6))]},
            ValueError,
            "same number of samples",
        ),
        ({"labels": [0, 1]}, ValueError, "each of the 4 examples"),
        ({"labels": [0, 1, 2, 3]}, ValueError, "class numbers 0, 1, ..., 2"),
        ({"labels": np.eye(4)[:, :3]}, ValueError, r"of shape \(4,\)"),
        ({"model": plain_mlp()}, ValueError, "at least one variational layer"),
        ({"model": layers.VDDense(3)}, TypeError, "must be a Keras model"),
        (
            {"model": keras.Sequential([layers.VDDense(3)])},
            ValueError,
            "must be built",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, error, message):
    arguments = {"model": mlp(), "x": random_inputs(4, 6), "num_samples": 2}
    with pytest.raises(error, match=message):
        predict_mc(**arguments | changes)


def test_states_are_refused():
    inputs = keras.Input(batch_shape=(2, 3, 4))
    outputs = keras.layers.GRU(5, stateful=True, name="memory")(inputs)
    model = keras.Model(inputs, layers.VDDense(1)(outputs))
    with pytest.raises(ValueError, match="'memory' has `stateful=True`"):
        predict_mc(model, np.zeros((2, 3, 4)), 2, task="regression")


@pytest.mark.core
def test_numbers_that_are_not_finite_are_refused():
    # Some processors' relu makes 0 of NaN.
    model = keras.Sequential(
        [keras.Input((6,)), layers.VDDense(3, activation="softmax")]
    )
    inputs = random_inputs(4, 6)
    before = snapshot(model)
    inputs[2, 3] = np.nan
    with pytest.raises(ValueError, match="returns 3 values that are not fini"):
        predict_mc(model, inputs, 2)
    assert_unchanged(model, before)
