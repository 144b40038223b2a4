import json
import warnings

import numpy as np
import pytest
from scipy import optimize, special

from keras_vd import calibration_report, temperature_scaling
from keras_vd.temperature import MAX_TEMPERATURE, MIN_TEMPERATURE


def data(temperature, shape=(400, 5), seed=0):
    """Logits, and labels drawn from their softmax at a temperature."""
    rng = np.random.default_rng(seed)
    logits = 4.0 * rng.normal(size=shape)
    noise = rng.gumbel(size=shape)
    return logits, (logits / temperature + noise).argmax(axis=-1)


def nll(logits, labels, temperature):
    """Nats, by scipy's softmax, one example after the other."""
    rows = special.log_softmax(logits / temperature, axis=-1)
    return -np.mean([row[k] for row, k in zip(rows, labels, strict=True)])


@pytest.mark.parametrize("true", [0.2, 1.0, 3.0, 50.0])
@pytest.mark.parametrize("scale", [0.05, 1.0, 5.0])
def test_temperature_is_scipys_optimum(true, scale):
    # Oracle: a bounded search of scipy in the logarithm of the temperature.
    logits, labels = data(true)
    logits = scale * logits
    report = temperature_scaling(logits, labels)
    found = optimize.minimize_scalar(
        lambda log: nll(logits, labels, np.exp(log)),
        bounds=(np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert report.temperature == pytest.approx(np.exp(found.x), rel=1e-5)
    assert not report.is_bounded
    assert report.nll_before == pytest.approx(nll(logits, labels, 1.0))
    assert report.nll_after == pytest.approx(found.fun)
    assert report.nll_after <= report.nll_before


def test_temperature_of_the_labels_is_found():
    # Oracle: labels are draws at that temperature.
    logits, labels = data(2.5, (20_000, 4))
    report = temperature_scaling(logits, labels)
    assert report.temperature == pytest.approx(2.5, rel=0.05)
    after = report.calibration_after.expected_error
    assert after < 0.02 < 0.1 < report.calibration_before.expected_error


def test_probabilities_and_calibration_are_those_at_the_temperature():
    # Oracle: scipy's softmax.
    logits, labels = data(3.0)
    report = temperature_scaling(logits, labels)
    expected = special.softmax(logits / report.temperature, axis=-1)
    np.testing.assert_allclose(report.apply(logits), expected, rtol=1e-12)
    assert report.calibration_after == calibration_report(expected, labels)
    before = special.softmax(logits, axis=-1)
    assert report.calibration_before.expected_error == pytest.approx(
        calibration_report(before, labels).expected_error
    )


def test_probabilities_are_logits_but_for_a_shift():
    logits, labels = data(3.0)
    probabilities = special.softmax(logits, axis=-1)
    expected = temperature_scaling(logits, labels)
    report = temperature_scaling(probabilities, labels, from_logits=False)
    assert report.temperature == pytest.approx(expected.temperature)
    assert report.nll_after == pytest.approx(expected.nll_after)
    np.testing.assert_allclose(
        report.apply(probabilities), expected.apply(logits)
    )


def test_probabilities_that_are_0_are_tiny():
    # Oracle: the same data with the probability that is written out.
    zeros = [[1.0, 0.0], [1.0, 0.0], [0.5, 0.5], [0.7, 0.3], [0.0, 1.0]]
    tiny = np.maximum(zeros, np.finfo("float32").tiny)
    labels = [0, 1, 0, 1, 1]
    report = temperature_scaling(zeros, labels, from_logits=False)
    expected = temperature_scaling(np.log(tiny), labels)
    assert report.temperature == pytest.approx(expected.temperature)
    assert np.all(np.isfinite(report.apply(zeros)))


@pytest.mark.parametrize("from_logits", [True, False])
def test_one_column_is_the_second_of_two_classes(from_logits):
    column, _ = data(1.0, (300, 1))
    rng = np.random.default_rng(1)
    labels = rng.uniform(size=300) < special.expit(column[:, 0] / 2.0)
    both = np.concatenate([np.zeros_like(column), column], axis=1)
    if not from_logits:
        column, both = special.expit(column), special.softmax(both, axis=-1)
    report = temperature_scaling(column, labels[:, None], from_logits)
    expected = temperature_scaling(both, labels, from_logits)
    assert report.temperature == pytest.approx(expected.temperature)
    assert 1.0 < report.temperature < 4.0
    applied = report.apply(column)
    assert applied.shape == (300, 1)
    np.testing.assert_allclose(applied, expected.apply(both)[:, 1:])


def test_predictions_of_higher_rank_count_one_by_one():
    logits, labels = data(2.0, (60, 3))
    expected = temperature_scaling(logits, labels)
    shaped = logits.reshape(3, 4, 5, 3)
    report = temperature_scaling(shaped, labels.reshape(3, 4, 5))
    assert report.to_dict() == expected.to_dict()
    applied = report.apply(shaped)
    assert applied.shape == (3, 4, 5, 3)
    np.testing.assert_array_equal(
        applied.reshape(60, 3), expected.apply(logits)
    )


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_separable_labels_are_bounded_and_said(scale):
    logits, _ = data(1.0)
    with pytest.warns(UserWarning, match="right about every label"):
        report = temperature_scaling(scale * logits, logits.argmax(axis=-1))
    assert report.temperature == MIN_TEMPERATURE
    assert report.is_bounded
    assert "0.001 (a bound)" in str(report)
    assert np.all(np.isfinite(report.apply(logits)))


def test_wrong_logits_are_bounded_and_said():
    logits, _ = data(1.0)
    with pytest.warns(UserWarning, match="say nothing true about the labels"):
        report = temperature_scaling(logits, logits.argmin(axis=-1))
    assert report.temperature == MAX_TEMPERATURE
    assert report.is_bounded


def test_logits_that_say_nothing_stay():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = temperature_scaling(np.full((3, 2), 7.0), [0, 1, 1])
    assert (report.temperature, report.is_bounded) == (1.0, False)
    assert report.nll_after == pytest.approx(np.log(2.0))


def test_huge_logits_do_not_overflow():
    logits, labels = data(1.0)
    with pytest.warns(UserWarning, match="temperatures from 0.001 to 1000"):
        report = temperature_scaling(1e6 * logits, labels)
    assert report.temperature == MAX_TEMPERATURE
    assert np.isfinite(report.nll_before)


def test_report_can_be_read():
    logits, labels = data(3.0)
    report = temperature_scaling(logits, labels)
    content = json.loads(json.dumps(report.to_dict()))
    assert content["temperature"] == report.temperature
    after = content["calibration_after"]
    assert after["expected_error"] == report.calibration_after.expected_error
    assert f"{report.nll_before:.4f}" in str(report)
    assert f"{report.nll_after:.4f}" in str(report)
    assert f"{report.temperature:.4g}" in str(report)
    assert "<table>" in report._repr_html_()


@pytest.mark.parametrize(
    ("logits", "labels", "from_logits", "message"),
    [
        ([1.0, 2.0], [0, 1], True, "`logits` must be of shape"),
        ([[np.nan, 1.0]], [0], True, "`logits` must be an array of finite"),
        ([[-np.inf, 1.0]], [0], True, "`logits` must be an array of finite"),
        (np.zeros((0, 2)), [], True, "and not empty"),
        ([[1.0, 2.0]], [2], True, "`labels` must be class numbers"),
        ([[1.0, 2.0]], [0, 1], True, "`labels` must be class numbers"),
        ([[1.0, 2.0]], [np.nan], True, "`labels` must be class numbers"),
        ([[1.0, 2.0]], [0], False, "`probabilities` must be class prob"),
        ([[np.nan, 1.0]], [0], False, "`probabilities` must be class prob"),
    ],
)
def test_what_does_not_fit_is_refused(logits, labels, from_logits, message):
    with pytest.raises(ValueError, match=message):
        temperature_scaling(logits, labels, from_logits)


def test_applying_is_checked_too():
    logits, labels = data(3.0)
    report = temperature_scaling(logits, labels)
    with pytest.raises(ValueError, match="`logits` must be an array of finite"):
        report.apply([[np.nan, 0.0]])
    with pytest.raises(ValueError, match="`logits` must be of shape"):
        report.apply([1.0, 0.0])


def test_from_logits_is_a_bool():
    with pytest.raises(TypeError, match="`from_logits` must be True or False"):
        temperature_scaling([[1.0, 2.0]], [0], from_logits="yes")
