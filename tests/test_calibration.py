import json

import numpy as np
import pytest

from keras_vd import calibration_report


def random_probabilities(*shape, seed=0, sharpness=3.0):
    rng = np.random.default_rng(seed)
    values = np.exp(sharpness * rng.normal(size=shape))
    return values / values.sum(axis=-1, keepdims=True)


def slow_expected_error(probabilities, labels, bins):
    """Guo et al. 2017, eqs. 1 to 3, one example after the other."""
    members = [[] for _ in range(bins)]
    for row, label in zip(probabilities, labels, strict=True):
        confidence, choice = max((p, -i) for i, p in enumerate(row))
        for m in range(1, bins + 1):
            if (m - 1) / bins < confidence <= m / bins:
                members[m - 1].append((confidence, float(-choice == label)))
    total = 0.0
    for pairs in filter(None, members):
        confidence, accuracy = (sum(x) / len(pairs) for x in zip(*pairs))  # noqa: B905
        total += len(pairs) / len(labels) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_expected_error_by_a_slow_implementation(bins):
    probabilities = random_probabilities(500, 4)
    labels = np.random.default_rng(1).integers(0, 4, 500)
    report = calibration_report(probabilities, labels, bins)
    expected = slow_expected_error(probabilities, labels, bins)
    assert expected > 0.01
    assert report.expected_error == pytest.approx(expected)
    assert report.examples == sum(x.examples for x in report.bins) == 500
    right = probabilities.argmax(axis=1) == labels
    assert report.accuracy == pytest.approx(right.mean())
    assert report.confidence == pytest.approx(probabilities.max(axis=1).mean())
    if bins == 1:
        gap = abs(right.mean() - probabilities.max(axis=1).mean())
        assert report.expected_error == pytest.approx(gap)


def test_fifteen_bins_are_the_default():
    probabilities = random_probabilities(500, 3)
    labels = np.zeros(500, int)
    report = calibration_report(probabilities, labels)
    assert report == calibration_report(probabilities, labels, 15)
    for row in report.bins:
        assert row.upper - row.lower == pytest.approx(1 / 15)
        assert row.lower < row.confidence <= row.upper


def test_an_upper_edge_belongs_to_its_bin():
    report = calibration_report([[0.5, 0.5], [0.75, 0.25]], [0, 0], 4)
    edges = [(row.lower, row.upper, row.examples) for row in report.bins]
    assert edges == [(0.25, 0.5, 1), (0.5, 0.75, 1)]


def test_certainty_that_is_right_has_no_error():
    report = calibration_report(np.eye(3), [0, 1, 2])
    assert (report.expected_error, report.accuracy) == (0.0, 1.0)
    report = calibration_report(np.eye(3), [1, 2, 0])
    assert (report.expected_error, report.accuracy) == (1.0, 0.0)


def test_one_column_is_the_second_of_two_classes():
    rng = np.random.default_rng(2)
    column, labels = rng.uniform(size=(50, 1)), rng.integers(0, 2, 50)
    both = np.concatenate([1 - column, column], axis=1)
    expected = calibration_report(both, labels)
    assert calibration_report(column, labels) == expected
    # As binary labels often come.
    floats = labels[:, None].astype("float32")
    assert calibration_report(column, floats) == expected


def test_predictions_of_higher_rank_count_one_by_one():
    probabilities = random_probabilities(10, 4, 5, 3)
    labels = np.random.default_rng(3).integers(0, 3, (10, 4, 5))
    expected = calibration_report(probabilities.reshape(-1, 3), labels.ravel())
    assert calibration_report(probabilities, labels) == expected


def test_report_can_be_read():
    report = calibration_report(random_probabilities(40, 3), np.zeros(40, int))
    content = json.loads(json.dumps(report.to_dict()))
    assert content["expected_error"] == report.expected_error
    assert len(content["bins"]) == len(report.bins)
    lines = str(report).splitlines()
    assert f"{report.expected_error:.4f}" in lines[-2]
    assert f"{report.bins[0].accuracy:.4f}" in str(report)
    assert "<table>" in report._repr_html_()


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        ([[0.5, 0.6]], [0], "`probabilities` must be class probabilities"),
        ([[1.5, -0.5]], [0], "`probabilities` must be"),
        ([[np.nan, 1.0]], [0], "`probabilities` must be"),
        ([0.5, 0.5], [0, 1], "`probabilities` must be"),
        (np.zeros((0, 3)), [], "`probabilities` must be"),
        ([[0.5, 0.5]], [0, 1], r"`labels` must be .* of shape \(1,\)"),
        ([[0.5, 0.5]], [[0, 1]], "`labels` must be"),
        ([[0.5, 0.5]], ["a"], "`labels` must be"),
        ([[0.5, 0.5]], [2], r"Received values from 2 to 2"),
        ([[0.5, 0.5]], [-1], "class numbers 0, 1, ..., 1"),
        ([[0.5, 0.5]], [0.5], "class numbers 0, 1, ..., 1"),
        ([[0.5, 0.5]], [np.nan], "class numbers 0, 1, ..., 1"),
        ([[0.5]], [2], "class numbers 0, 1, ..., 1"),
    ],
)
def test_what_does_not_fit_is_refused(probabilities, labels, message):
    with pytest.raises(ValueError, match=message):
        calibration_report(probabilities, labels)


def test_bins_are_checked():
    with pytest.raises(ValueError, match="`bins` must be an integer of at"):
        calibration_report([[0.5, 0.5]], [0], bins=0)
