import itertools
import json

import numpy as np
import pytest
from scipy import integrate, optimize, special, stats

from keras_vd import regression_calibration


def gaussians(*shape, seed=0):
    """Targets of this shape with the Gaussians that they are drawn from."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=shape)
    stddev = rng.uniform(0.5, 2.0, size=shape)
    return mean + stddev * rng.normal(size=shape), mean, stddev


def mixture_cdf(x, means, stddevs):
    return special.ndtr((x - means) / stddevs).mean()


def crps_by_integral(y, cdf, low, high, breaks=()):
    """Integral of (F(x) - 1{x >= y})^2, which the score is defined by."""
    points = sorted({low, high, y, *breaks})
    return sum(
        integrate.quad(lambda x: (cdf(x) - (x >= y)) ** 2, a, b, epsabs=1e-10)[
            0
        ]
        for a, b in itertools.pairwise(points)
    )


def test_gaussians_by_scipy():
    # Oracles: scipy's distribution function and intervals, and the score by a
    # numeric integral.
    y, mean, stddev = gaussians(40)
    report = regression_calibration(y, mean=mean, stddev=stddev)
    pit = stats.norm.cdf(y, mean, stddev)
    np.testing.assert_allclose(report.pit, pit, atol=1e-12)
    np.testing.assert_allclose(report.levels, np.linspace(0.05, 0.95, 19))
    for level, share in zip(report.levels, report.coverage, strict=True):
        low, high = stats.norm.interval(level, mean, stddev)
        assert share == np.mean((low <= y) & (y <= high))
    assert report.sharpness == pytest.approx(np.mean(high - low))
    assert report.coverage_95 == share
    gaps = np.abs(report.coverage - report.levels)
    assert report.calibration_error == pytest.approx(gaps.mean())
    expected = [
        crps_by_integral(
            yi, lambda x, m=m, s=s: stats.norm.cdf(x, m, s), m - 30, m + 30
        )
        for yi, m, s in zip(y, mean, stddev, strict=True)
    ]
    assert report.crps == pytest.approx(np.mean(expected), rel=1e-6)
    assert report.examples == 40


def test_crps_of_a_gaussian_in_closed_form():
    # Oracle: Gneiting and Raftery 2007, the formula after eq. 20.
    y, mean, stddev = gaussians(50)
    z = (y - mean) / stddev
    formula = stddev * (
        z * (2 * stats.norm.cdf(z) - 1)
        + 2 * stats.norm.pdf(z)
        - 1 / np.sqrt(np.pi)
    )
    report = regression_calibration(y, mean=mean, stddev=stddev)
    assert report.crps == pytest.approx(formula.mean(), rel=1e-12)


@pytest.mark.parametrize("spread", [0.01, 1.0, 100.0])
def test_mixtures_by_scipy(spread):
    # Oracles: sums of scipy's distribution functions, their roots by brentq,
    # and the score by a numeric integral. Parts lie apart or on each other.
    # They are 7, as the quantile at 2 / 5 is anything between 5 apart.
    rng = np.random.default_rng(1)
    means = spread * rng.normal(size=(7, 6))
    stddevs = rng.uniform(0.2, 2.0, size=(7, 6))
    y = spread * rng.normal(size=6)
    report = regression_calibration(y, mean=means, stddev=stddevs)
    scores, widths, covered = [], [], []
    for i in range(6):
        parts = means[:, i], stddevs[:, i]
        low, high = parts[0].min() - 30, parts[0].max() + 30
        low, high = min(low, y[i] - 1), max(high, y[i] + 1)

        def cdf(x, parts=parts):
            return mixture_cdf(x, *parts)

        assert report.pit[i] == pytest.approx(cdf(y[i]), abs=1e-12)
        near = [
            m + k * s for m, s in zip(*parts, strict=True) for k in (-4, 0, 4)
        ]
        scores.append(crps_by_integral(y[i], cdf, low, high, near))
        quantiles = {
            p: optimize.brentq(lambda x, p=p: cdf(x) - p, low, high, xtol=1e-12)
            for p in np.concatenate(
                [(1 - report.levels) / 2, (1 + report.levels) / 2]
            )
        }
        ends = np.array(list(quantiles.values())).reshape(2, -1)
        covered.append((ends[0] <= y[i]) & (y[i] <= ends[1]))
        widths.append(ends[1, -1] - ends[0, -1])
    np.testing.assert_allclose(report.coverage, np.mean(covered, axis=0))
    assert report.sharpness == pytest.approx(np.mean(widths), rel=1e-8)
    assert report.crps == pytest.approx(np.mean(scores), rel=1e-5)


def test_gaussians_of_any_width_far_out():
    # Oracle: scipy's distribution function, of targets everywhere.
    z = np.concatenate([np.linspace(-45.0, 45.0, 5001), [0.0, 1e-300, 1e9]])
    report = regression_calibration(1e-3 * z, mean=0.0 * z, stddev=1e-3)
    np.testing.assert_allclose(report.pit, special.ndtr(z), atol=1e-13)


def test_needles_and_hills_of_a_mixture():
    # Oracle: scipy's distribution function at the ends of the interval.
    rng = np.random.default_rng(2)
    means = 100.0 * rng.normal(size=(7, 300))
    stddevs = np.exp(rng.uniform(-8.0, 3.0, size=(7, 300)))
    for i in range(300):
        parts = means[:, i], stddevs[:, i]
        ends = [
            optimize.brentq(
                lambda x, p=p, parts=parts: mixture_cdf(x, *parts) - p,
                -1000.0,
                1000.0,
            )
            for p in (0.025, 0.975)
        ]
        report = regression_calibration(
            [0.0], mean=parts[0][:, None], stddev=parts[1][:, None]
        )
        assert report.sharpness == pytest.approx(ends[1] - ends[0], rel=1e-7)


def test_one_noise_for_all_parts():
    y, _, _ = gaussians(6, 2)
    means = np.random.default_rng(3).normal(size=(4, 6, 2))
    expected = regression_calibration(
        y, mean=means, stddev=np.full((4, 6, 2), 0.7)
    )
    report = regression_calibration(y, mean=means, stddev=0.7)
    assert report.to_dict() == expected.to_dict()
    assert report.pit.shape == (6, 2)


def test_equal_parts_are_one_gaussian():
    y, mean, stddev = gaussians(30)
    expected = regression_calibration(y, mean=mean, stddev=stddev)
    report = regression_calibration(y, mean=np.stack([mean] * 3), stddev=stddev)
    assert report.crps == pytest.approx(expected.crps)
    assert report.sharpness == pytest.approx(expected.sharpness)
    np.testing.assert_allclose(report.pit, expected.pit, atol=1e-12)


def test_samples_by_loops():
    # Oracles: the score by the integral over the steps of the empirical
    # distribution function; ranks and order statistics by hand.
    rng = np.random.default_rng(4)
    y, samples = rng.normal(size=(6, 2)), rng.normal(size=(39, 6, 2))
    samples[3, 0, 0] = y[0, 0]  # a tie
    report = regression_calibration(y, samples=samples)
    scores, inside, widths = [], [], []
    for index in np.ndindex(6, 2):
        draws = np.sort(samples[(slice(None), *index)])
        points = np.sort([*draws, y[index]])
        scores.append(
            sum(
                (b - a) * (np.mean(draws <= a) - (y[index] <= a)) ** 2
                for a, b in itertools.pairwise(points)
            )
        )
        below, ties = np.sum(draws < y[index]), np.sum(draws == y[index])
        expected = (below + 0.5 * ties + 0.5) / 40
        assert report.pit[index] == pytest.approx(expected)
        # At 95% from the first to the last of 39, at 90% from the second.
        inside.append(
            [draws[k] <= y[index] <= draws[-1 - k] for k in (9, 4, 1, 0)]
        )
        widths.append(draws[-1] - draws[0])
    assert report.crps == pytest.approx(np.mean(scores))
    assert report.sharpness == pytest.approx(np.mean(widths))
    levels = report.levels.round(2).tolist()
    shares = [report.coverage[levels.index(x)] for x in (0.5, 0.75, 0.9, 0.95)]
    np.testing.assert_allclose(shares, np.mean(inside, axis=0))


@pytest.mark.parametrize("form", ["gaussian", "mixture", "samples"])
def test_targets_from_their_own_prediction_are_calibrated(form):
    # Oracle: targets are draws of what is predicted. The standard error of a
    # coverage is at most 0.004, of the mean of the transform 0.002.
    rng = np.random.default_rng(5)
    means, noise = rng.normal(size=(59, 20_000)), rng.normal(size=20_000)
    if form == "gaussian":
        arguments = {"mean": means[0], "stddev": 0.5}
        y = means[0] + 0.5 * noise
    elif form == "mixture":
        means = means[:3]
        arguments = {"mean": means, "stddev": 0.5}
        part = rng.integers(0, 3, 20_000)
        y = means[part, np.arange(20_000)] + 0.5 * noise
    else:
        arguments, y = {"samples": means}, noise
    report = regression_calibration(y, **arguments)
    np.testing.assert_allclose(report.coverage, report.levels, atol=0.015)
    assert report.coverage_95 == pytest.approx(0.95, abs=0.006)
    assert report.pit.mean() == pytest.approx(0.5, abs=0.01)
    assert report.pit.var() == pytest.approx(1 / 12, abs=0.003)


def test_too_sure_and_too_modest():
    y, mean, stddev = gaussians(2000)
    right = regression_calibration(y, mean=mean, stddev=stddev)
    sure = regression_calibration(y, mean=mean, stddev=stddev / 3)
    modest = regression_calibration(y, mean=mean, stddev=3 * stddev)
    assert sure.coverage_95 < 0.6 < 0.9 < right.coverage_95 < 0.98
    assert modest.coverage_95 > 0.99
    assert right.calibration_error < 0.03 < sure.calibration_error
    assert right.crps < min(sure.crps, modest.crps)


def test_a_certain_prediction_has_its_absolute_error_as_score():
    report = regression_calibration([1.0, 5.0], mean=[0.0, 2.0], stddev=1e-9)
    assert report.crps == pytest.approx(2.0)
    report = regression_calibration([1.0, 5.0], samples=[[0.0, 2.0]] * 2)
    assert report.crps == 2.0
    assert report.sharpness == 0.0


def test_report_can_be_read():
    y, mean, stddev = gaussians(3, 4)
    report = regression_calibration(y, mean=mean, stddev=stddev)
    content = json.loads(json.dumps(report.to_dict()))
    assert content["coverage_95"] == report.coverage_95
    assert content["pit"] == report.pit.tolist()
    text = str(report)
    assert f"{report.crps:.4g}" in text
    assert f"{report.sharpness:.4g}" in text
    assert f"{report.calibration_error:.4f}" in text
    assert "95%" in text
    assert "<table>" in report._repr_html_()


Y = [0.0, 1.0]


@pytest.mark.parametrize(
    ("y", "arguments", "message"),
    [
        (Y, {}, "either `samples`, or `mean` and `stddev`. .* none of them"),
        (Y, {"mean": Y}, r"either `samples`.*\['mean'\]"),
        (Y, {"stddev": 1.0}, "either `samples`"),
        (Y, {"samples": [Y, Y], "stddev": 1.0}, "either `samples`"),
        (Y, {"samples": [Y, Y], "mean": Y, "stddev": 1.0}, "either `samples`"),
        ([], {"mean": [], "stddev": 1.0}, "`y` must be an array of finite"),
        ([np.nan], {"mean": [0.0], "stddev": 1.0}, "`y` must be an array of"),
        (Y, {"mean": [0.0, np.inf], "stddev": 1.0}, "`mean` must be an array"),
        (
            Y,
            {"mean": [[0.0], [1.0]], "stddev": 1.0},
            "`mean` must be of the sh",
        ),
        (Y, {"mean": 0.0, "stddev": 1.0}, "`mean` must be of the shape"),
        (Y, {"mean": Y, "stddev": 0.0}, "`stddev` must be positive"),
        (Y, {"mean": Y, "stddev": [1.0, -1.0]}, "`stddev` must be positive"),
        (Y, {"mean": Y, "stddev": np.nan}, "`stddev` must be an array of"),
        (Y, {"mean": Y, "stddev": np.ones(3)}, "`stddev` must be a number, or"),
        (Y, {"mean": Y, "stddev": np.ones((5, 2))}, "`stddev` must be a num"),
        (Y, {"samples": [Y]}, "`samples` must have at least 2"),
        (
            Y,
            {"samples": Y},
            r"`samples` must be of shape .* \(num_samples, 2\)",
        ),
        (Y, {"samples": np.ones((9, 2, 1))}, "`samples` must be of shape"),
        (Y, {"samples": [Y, [0.0, np.nan]]}, "`samples` must be an array of"),
    ],
)
def test_what_does_not_fit_is_refused(y, arguments, message):
    with pytest.raises(ValueError, match=message):
        regression_calibration(y, **arguments)
