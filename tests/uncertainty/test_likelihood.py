"""How likely labels and targets are under the mean of all draws."""

import keras
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from keras_vd import layers, losses, predict_mc
from keras_vd.uncertainty import sampler
from tests.helpers.arrays import random_inputs
from tests.helpers.drawing import gaussian, sequential

pytestmark = pytest.mark.core


@pytest.fixture
def predict(monkeypatch):
    """Predicts with draws that a test chooses, shape (draws, examples, ...)."""

    def predict(draws, loss=None, **options):
        model = sequential((6,), layers.VDDense(draws.shape[-1]))
        if loss is not None:
            model.compile("sgd", loss)
        given = iter(draws)
        monkeypatch.setattr(
            sampler.Sampler, "predict_on_batch", lambda *_: next(given)
        )
        monkeypatch.setattr(
            "keras_vd.uncertainty.prediction.functional_part", lambda _: None
        )
        inputs = random_inputs(draws.shape[1], 6)
        return predict_mc(model, inputs, len(draws), **options)

    return predict


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("middle", [(), (3,)])
def test_classes(predict, middle):
    """Oracle: the log of the mean over the draws, at the label."""
    logits = 3.0 * normal(7, 4, *middle, 5)
    labels = np.arange(4 * max(1, *middle, 1)).reshape(4, *middle) % 5
    prediction = predict(logits, task="classification", from_logits=True)
    mean = scipy.special.softmax(logits, axis=-1).mean(0)
    expected = np.log(
        [p[y] for p, y in zip(mean.reshape(-1, 5), labels.flat, strict=True)]
    )
    found = prediction.log_likelihood(labels)
    assert found.dtype == "float64"
    np.testing.assert_allclose(found, expected.reshape(labels.shape))
    np.testing.assert_allclose(
        prediction.expected_entropy,
        scipy.stats.entropy(
            scipy.special.softmax(logits, axis=-1), axis=-1
        ).mean(0),
        rtol=1e-4,
    )
    assert prediction.aleatoric_variance is None
    assert prediction.epistemic_variance is None


def test_binary(predict):
    """Oracle: 64 bits, in which 1 - p is not 0 at a logit of 30."""
    logits = 3.0 * normal(7, 4, 1) + np.array([[0.0], [30.0], [30.0], [0.0]])
    labels = np.array([0, 0, 1, 1])
    prediction = predict(logits, task="binary", from_logits=True)
    zero = np.log(scipy.special.expit(-logits[..., 0]).mean(0))
    one = np.log(scipy.special.expit(logits[..., 0]).mean(0))
    expected = np.where(labels == 1, one, zero)
    for shape in ((4,), (4, 1)):
        found = prediction.log_likelihood(labels.reshape(shape))
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-9)


def test_multi_label(predict):
    probabilities = scipy.special.expit(normal(7, 4, 3))
    labels = np.array([[0, 1, 1], [1, 1, 1], [0, 0, 0], [1, 0, 0]])
    prediction = predict(probabilities, task="multi-label", from_logits=False)
    mean = probabilities.mean(0)
    expected = np.log(np.where(labels == 1, mean, 1 - mean)).sum(-1)
    np.testing.assert_allclose(prediction.log_likelihood(labels), expected)


def test_a_probability_of_zero(predict):
    draws = np.array([[[0.0, 1.0]]])
    prediction = predict(draws, task="classification", from_logits=False)
    assert prediction.log_likelihood([0]) == -np.inf
    assert prediction.log_likelihood([1]) == 0.0


def mixture_density(targets, means, stddevs):
    """Mean of the products of SciPy's normal densities over the columns."""
    densities = scipy.stats.norm.pdf(targets, means, stddevs)
    return densities.prod(axis=-1).mean(axis=0)


@pytest.mark.parametrize("noise", [0.5, [0.5, 2.0, 0.7]])
def test_regression(predict, noise):
    means, targets = normal(7, 4, 3), normal(4, 3, seed=1)
    prediction = predict(
        means, task="regression", noise=noise, return_samples=True
    )
    expected = np.log(mixture_density(targets, means, noise))
    found = prediction.log_likelihood(targets)
    assert found.dtype == "float64"
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(
        prediction.aleatoric_variance,
        np.broadcast_to(np.square(noise), (4, 3)),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        prediction.epistemic_variance, means.var(0), rtol=1e-5
    )


def test_heteroscedastic_regression(predict):
    """Statistics and samples are those of the means."""
    outputs, targets = normal(7, 4, 5, 4), normal(4, 5, 2, seed=1)
    means, stddevs = outputs[..., :2], np.exp(0.5 * outputs[..., 2:])
    prediction = predict(
        outputs,
        task="regression",
        noise="heteroscedastic",
        return_samples=True,
    )
    np.testing.assert_allclose(prediction.samples, means, rtol=1e-6)
    np.testing.assert_allclose(prediction.mean, means.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        prediction.standard_deviation, means.std(0), rtol=1e-5
    )
    np.testing.assert_allclose(prediction.noise, stddevs)
    expected = np.log(mixture_density(targets, means, stddevs))
    found = prediction.log_likelihood(targets)
    assert found.shape == (4, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Law of total variance: that of many draws from the mixture.
    rng = np.random.default_rng(2)
    draws = rng.normal(means, stddevs, (40_000, *means.shape)).reshape(
        -1, 4, 5, 2
    )
    np.testing.assert_allclose(
        prediction.aleatoric_variance + prediction.epistemic_variance,
        draws.var(0),
        rtol=0.03,
    )


def test_the_density_integrates_to_one(predict):
    outputs = normal(3, 1, 2)
    prediction = predict(
        outputs,
        task="regression",
        noise="heteroscedastic",
        return_samples=True,
    )
    total, _ = scipy.integrate.quad(
        lambda y: np.exp(prediction.log_likelihood([[y]])[0]), -20.0, 20.0
    )
    assert total == pytest.approx(1.0, abs=1e-6)


def test_targets_far_away(predict):
    """Where all densities are 0 in float64, their logs are not."""
    means = normal(5, 1, 1)
    prediction = predict(
        means, task="regression", noise=0.01, return_samples=True
    )
    expected = scipy.special.logsumexp(
        scipy.stats.norm.logpdf(1e3, means[:, 0, 0], 0.01)
    ) - np.log(5)
    np.testing.assert_allclose(
        prediction.log_likelihood([[1e3]]), expected, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("loss", "outputs", "columns"),
    [
        (losses.GaussianNLL(0.5), 1, 1),
        (losses.GaussianNLL([0.5, 0.1]), 2, 2),
        (losses.GaussianNLL(), 4, 2),
    ],
)
def test_the_compiled_loss_tells_the_noise(loss, outputs, columns):
    """Oracle: of one draw, the log likelihood is minus the loss."""
    dense = layers.VDDense(outputs, posterior=gaussian())
    model = sequential((6,), dense)
    model.compile("sgd", loss)
    inputs, targets = random_inputs(5, 6), random_inputs(5, columns)
    prediction = predict_mc(model, inputs, 1, 2, return_samples=True)
    assert prediction.task == "regression"
    assert prediction.mean.shape == (5, columns)
    stddev = np.broadcast_to(prediction.noise, (1, 5, columns))[0]
    as_outputs = np.concatenate(
        [prediction.mean, 2 * np.log(stddev)], axis=-1
    ).astype("float32")
    expected = losses.GaussianNLL(reduction=None)(targets, as_outputs)
    np.testing.assert_allclose(
        prediction.log_likelihood(targets),
        -keras.ops.convert_to_numpy(expected),
        rtol=1e-4,
    )


def test_noise_given_comes_before_the_compiled_one(predict):
    options = {"loss": losses.GaussianNLL(0.5), "noise": 2.0}
    prediction = predict(normal(2, 3, 1), **options)
    np.testing.assert_array_equal(prediction.noise, 2.0)
    np.testing.assert_array_equal(prediction.aleatoric_variance, 4.0)


def test_noise_of_one_of_several_outputs():
    inputs = keras.Input((3,))
    model = keras.Model(
        inputs,
        {
            "number": layers.VDDense(2)(inputs),
            "class": layers.VDDense(3, activation="softmax")(inputs),
        },
    )
    both = predict_mc(
        model,
        random_inputs(5, 3),
        4,
        task={"number": "regression", "class": "classification"},
        noise={"number": [0.1, 0.2], "class": None},
        return_samples=True,
    )
    np.testing.assert_array_equal(both["number"].noise, [0.1, 0.2])
    assert both["number"].log_likelihood(np.zeros((5, 2))).shape == (5,)
    assert both["class"].log_likelihood(np.zeros(5, int)).shape == (5,)


def test_without_noise_it_is_unknown(predict):
    prediction = predict(
        normal(2, 3, 1), task="regression", return_samples=True
    )
    assert prediction.aleatoric_variance is None
    assert prediction.noise is None
    with pytest.raises(ValueError, match=r"only with noise.*GaussianNLL"):
        prediction.log_likelihood(np.zeros((3, 1)))


def test_without_draws_there_is_no_likelihood(predict):
    prediction = predict(normal(2, 3, 1), task="regression", noise=1.0)
    with pytest.raises(ValueError, match="`return_samples=True`"):
        prediction.log_likelihood(np.zeros((3, 1)))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.zeros(3), r"shape of the mean prediction, \(3, 1\).*\(3,\)"),
        (np.zeros((3, 2)), "shape of the mean prediction"),
        (np.zeros((1, 1)), "shape of the mean prediction"),
        (np.array([["a"]] * 3), "must be the targets"),
        (np.array([[0.0], [np.nan], [np.inf]]), "1 NaN and 1 infinite of 3"),
    ],
)
def test_targets_that_do_not_fit_are_refused(predict, targets, message):
    prediction = predict(
        normal(2, 3, 1), task="regression", noise=1.0, return_samples=True
    )
    with pytest.raises(ValueError, match=message):
        prediction.log_likelihood(targets)


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 2], np.eye(3), [0, 0, 0.5]])
def test_labels_that_do_not_fit_are_refused(predict, labels):
    draws = scipy.special.softmax(normal(2, 3, 2), axis=-1)
    prediction = predict(draws, task="classification", from_logits=False)
    with pytest.raises(ValueError, match="`labels` must be class numbers"):
        prediction.log_likelihood(labels)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"noise": 0.0}, ValueError, "`noise` must be a finite number greater"),
        ({"noise": [1.0, -1.0]}, ValueError, "`noise` must be a finite num"),
        ({"noise": [1.0] * 3}, ValueError, "`noise` must have one entry for"),
        ({"noise": True}, TypeError, "`noise` must be a finite number"),
        ({"noise": "learned"}, ValueError, "must be 'heteroscedastic', a stan"),
        (
            {"noise": 1.0, "task": "classification", "from_logits": True},
            ValueError,
            "`noise` is for the targets of a regression",
        ),
        (
            {"noise": 1.0, "task": None, "loss": losses.GaussianNLL()},
            ValueError,
            "contradicts the compiled loss",
        ),
        (
            {
                "noise": "heteroscedastic",
                "task": None,
                "loss": losses.GaussianNLL(0.1),
            },
            ValueError,
            "contradicts the compiled loss",
        ),
        (
            {"noise": 1.0, "from_logits": True},
            ValueError,
            "`from_logits` is for probabilities",
        ),
    ],
)
def test_noise_that_does_not_fit_is_refused(predict, options, error, message):
    with pytest.raises(error, match=message):
        predict(normal(2, 3, 2), **{"task": "regression"} | options)


def test_heteroscedastic_outputs_need_an_even_number_of_columns(predict):
    with pytest.raises(ValueError, match=r"\(examples, ..., 2 k\)"):
        predict(normal(2, 3, 3), task="regression", noise="heteroscedastic")


@pytest.mark.integration
@pytest.mark.parametrize("stddev", [None, [0.5, 0.1]])
def test_a_saved_model_keeps_its_noise(stddev, tmp_path):
    model = sequential((6,), layers.VDDense(2, posterior=gaussian()))
    model.compile("sgd", losses.GaussianNLL(stddev))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.loss, losses.GaussianNLL)
    first, second = (
        predict_mc(x, random_inputs(3, 6), 2, seed=0).aleatoric_variance
        for x in (model, loaded)
    )
    assert first.shape == (3, 2 if stddev else 1)
    np.testing.assert_allclose(first, second, rtol=1e-5)
