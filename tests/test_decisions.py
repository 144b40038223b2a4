import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from keras_vd import out_of_distribution_auroc, risk_coverage


def predictions(examples=200, classes=4, decimals=None, seed=0):
    """Probabilities and labels that the probabilities say something about.

    Args:
        examples: Number of examples.
        classes: Number of classes.
        decimals: Round the logits to these, which makes ties.
        seed: Of the random numbers.
    """
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(examples, classes))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    if decimals is not None:
        logits = logits.round(decimals)
    values = np.exp(logits)
    return values / values.sum(axis=1, keepdims=True), labels


def slow_curve(is_right, uncertainty):
    """One threshold after the other: (threshold, coverage, accuracy)."""
    rows = []
    for threshold in sorted(set(uncertainty.tolist())):
        answers = [
            right
            for right, u in zip(is_right, uncertainty, strict=True)
            if u <= threshold
        ]
        share = len(answers) / len(is_right)
        rows.append((threshold, share, sum(answers) / len(answers)))
    return rows


@pytest.mark.parametrize("decimals", [None, 0])
@pytest.mark.parametrize("is_given", [False, True])
def test_curve_by_a_slow_implementation(decimals, is_given):
    # Oracle: a loop over thresholds, and over examples for the area.
    probabilities, labels = predictions(decimals=decimals)
    uncertainty = 1.0 - probabilities.max(axis=1)
    if is_given:
        uncertainty = -(probabilities * np.log(probabilities)).sum(axis=1)
        report = risk_coverage(probabilities, labels, uncertainty)
    else:
        report = risk_coverage(probabilities, labels)
    is_right = probabilities.argmax(axis=1) == labels
    rows = slow_curve(is_right, uncertainty)
    assert (len(rows) < 200) == (decimals == 0)
    expected = np.array(rows).T
    np.testing.assert_allclose(report.uncertainty, expected[0])
    np.testing.assert_allclose(report.coverage, expected[1])
    np.testing.assert_allclose(report.accuracy, expected[2])
    np.testing.assert_allclose(report.risk, 1.0 - expected[2])
    accuracy_of = {threshold: accuracy for threshold, _, accuracy in rows}
    risks = [1.0 - accuracy_of[u] for u in uncertainty.tolist()]
    assert report.aurc == pytest.approx(np.mean(risks))
    assert 0.01 < report.aurc < report.risk[-1]
    for wanted in (0.001, 0.1, 1 / 3, 0.5, 0.7, 0.999, 1.0):
        accuracy = next(a for _, share, a in rows if share >= wanted)
        assert report.accuracy_at(wanted) == pytest.approx(accuracy)
    assert report.accuracy_at(1.0) == pytest.approx(is_right.mean())
    assert report.examples == 200


def test_area_knows_a_good_uncertainty_from_a_bad_one():
    # Oracle: by hand, with 2 of 4 wrong.
    probabilities, labels = np.eye(2)[[0, 0, 0, 0]], [0, 0, 1, 1]
    best = risk_coverage(probabilities, labels, [1, 2, 3, 4])
    assert best.aurc == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    worst = risk_coverage(probabilities, labels, [4, 3, 2, 1])
    assert worst.aurc == pytest.approx((1 + 1 + 2 / 3 + 1 / 2) / 4)
    # An uncertainty that says nothing gets the risk of answering always.
    none = risk_coverage(probabilities, labels, [7, 7, 7, 7])
    assert none.coverage.tolist() == [1.0]
    assert none.aurc == none.risk[0] == 0.5
    assert none.accuracy_at(0.1) == 0.5


def test_rounded_coverages_mean_their_neighbour():
    probabilities, labels = predictions(10)
    report = risk_coverage(probabilities, labels, np.arange(10))
    assert 0.1 + 0.2 > 0.3
    assert report.accuracy_at(0.1 + 0.2) == report.accuracy[2]


def test_predictions_of_higher_rank_count_one_by_one():
    probabilities, labels = predictions(60)
    scores = np.random.default_rng(1).normal(size=60)
    expected = risk_coverage(probabilities, labels, scores)
    report = risk_coverage(
        probabilities.reshape(3, 4, 5, 4),
        labels.reshape(3, 4, 5),
        scores.reshape(3, 4, 5),
    )
    assert report.to_dict() == expected.to_dict()


def test_one_column_is_the_second_of_two_classes():
    rng = np.random.default_rng(2)
    column, labels = rng.uniform(size=(50, 1)), rng.integers(0, 2, 50)
    both = np.concatenate([1 - column, column], axis=1)
    expected = risk_coverage(both, labels).to_dict()
    assert risk_coverage(column, labels[:, None]).to_dict() == expected


def test_curve_can_be_read():
    probabilities, labels = predictions()
    report = risk_coverage(probabilities, labels)
    content = json.loads(json.dumps(report.to_dict()))
    assert content["aurc"] == report.aurc
    assert content["coverage"] == report.coverage.tolist()
    text = str(report)
    assert f"{report.aurc:.4f}" in text.splitlines()[-2]
    assert f"{report.accuracy_at(0.3):.4f}" in text
    assert report.to_table().row_count == 11
    assert "<table>" in report._repr_html_()
    one = risk_coverage(probabilities, labels, np.zeros(200))
    assert one.to_table().row_count == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[0.5, 0.6]], [0]), "`probabilities` must be class probabilities"),
        (([[np.nan, 1.0]], [0]), "`probabilities` must be"),
        ((np.zeros((0, 3)), []), "`probabilities` must be"),
        (([[0.5, 0.5]], [0, 1]), "`labels` must be"),
        (([[0.5, 0.5]], [2]), "`labels` must be"),
        (([[0.5, 0.5]], [np.nan]), "`labels` must be"),
        (([[0.5, 0.5]], [0], [[0.5]]), r"`uncertainty` must be of shape \(1,"),
        (([[0.5, 0.5]], [0], 0.5), "`uncertainty` must be of shape"),
        (([[0.5, 0.5]], [0], [np.nan]), "`uncertainty` must be an array of fi"),
        (([[0.5, 0.5]], [0], [np.inf]), "1 of 1 NaN or infinite"),
        (([[0.5, 0.5]], [0], ["a"]), "`uncertainty` must be an array of fi"),
        (([[0.5, 0.5]], [0], [1j]), "`uncertainty` must be an array of fi"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        risk_coverage(*arguments)


@pytest.mark.parametrize("coverage", [0.0, -0.1, 1.01, np.nan])
def test_coverage_is_a_share(coverage):
    report = risk_coverage([[0.5, 0.5]], [0])
    with pytest.raises(ValueError, match="`coverage` must be"):
        report.accuracy_at(coverage)


@pytest.mark.parametrize("decimals", [0, 1, 15])
def test_auroc_is_that_of_sklearn(decimals):
    # Oracle: sklearn's area under the ROC curve; 0 decimals make ties.
    rng = np.random.default_rng(decimals)
    known = rng.normal(size=(30, 4)).round(decimals)
    foreign = (0.5 + rng.normal(size=77)).round(decimals)
    expected = roc_auc_score(
        [0] * known.size + [1] * foreign.size,
        np.concatenate([known.ravel(), foreign]),
    )
    report = out_of_distribution_auroc(known, foreign)
    assert report.auroc == pytest.approx(expected)
    assert 0.5 < report.auroc < 0.9
    assert (report.examples_in, report.examples_out) == (120, 77)
    assert report.median_in == np.median(known)
    assert report.median_out == np.median(foreign)
    swapped = out_of_distribution_auroc(foreign, known)
    assert swapped.auroc == pytest.approx(1.0 - expected)


def test_auroc_at_its_ends():
    assert out_of_distribution_auroc([1, 2], [3]).auroc == 1.0
    assert out_of_distribution_auroc([3], [1, 2]).auroc == 0.0
    assert out_of_distribution_auroc([1, 1], [1]).auroc == 0.5


def test_auroc_can_be_read():
    report = out_of_distribution_auroc([0.1, 0.25], [0.2, 0.9])
    content = json.loads(json.dumps(report.to_dict()))
    assert content["auroc"] == report.auroc == 0.75
    assert "0.7500" in str(report)
    assert "0.175" in str(report)
    assert "<table>" in report._repr_html_()


@pytest.mark.parametrize(
    "bad", [[], [np.nan], [-np.inf], ["a"], None, [[1], 2]]
)
def test_scores_are_checked(bad):
    with pytest.raises(ValueError, match="`scores_in` must be an array of"):
        out_of_distribution_auroc(bad, [1.0])
    with pytest.raises(ValueError, match="`scores_out` must be an array of"):
        out_of_distribution_auroc([1.0], bad)
