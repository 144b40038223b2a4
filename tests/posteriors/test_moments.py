"""Ways to the same moments: by logarithms, and by signal-to-noise ratios."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_vd import posteriors, priors
from keras_vd._backend import fusing
from keras_vd.divergences import kl
from keras_vd.posteriors.eager_moments import FORMS, EagerMoments
from keras_vd.posteriors.moments import (
    MAX_ABS_LOG_ALPHA,
    THETA2_FLOOR,
    Moments,
)
from keras_vd.posteriors.signal_to_noise import (
    DIVERGENCES,
    SignalToNoiseMoments,
)
from tests.helpers.arrays import to_numpy
from tests.helpers.gradients import gradient

pytestmark = pytest.mark.core

RNG = np.random.default_rng(0)
SHAPE = (60, 50)
THETA = (RNG.normal(size=SHAPE) * 10.0 ** RNG.uniform(-6, 1, SHAPE)).astype(
    "float32"
)
LOG_SIGMA2 = RNG.uniform(-40.0, 30.0, SHAPE).astype("float32")
KEEP_MASK = RNG.random(SHAPE) < 0.8
LOG_ALPHA = LOG_SIGMA2 - np.log(THETA.astype("float64") ** 2 + THETA2_FLOOR)
INSIDE = np.abs(LOG_ALPHA) < MAX_ABS_LOG_ALPHA
PRIORS = {
    "exact": priors.LogUniform("exact"),
    "molchanov": priors.LogUniform("molchanov"),
    "kingma": priors.LogUniform("kingma"),
    "ard": priors.ARD(),
    "gaussian": priors.Gaussian(0.5),
}
# By what a fast form stands for: who computes with it.
USERS = {
    priors.LogUniform.kl_divergence: [
        PRIORS["exact"],
        PRIORS["molchanov"],
        PRIORS["kingma"],
    ],
    priors.ARD.kl_divergence: [PRIORS["ard"]],
    posteriors.AdditiveGaussian._log_variances: [
        posteriors.SparseVD,
        posteriors.ARD,
        posteriors.Gaussian,
    ],
}
# Shapes of the parts that a shared log variance is the sum of.
SHARED = [[(1, 50)], [(60, 1)], [(1, 1)], [(1, 50), (60, 1)]]
# Those for PyTorch use operations of its own.
FAST = [SignalToNoiseMoments]
if keras.backend.backend() == "torch":
    FAST.append(EagerMoments)
BY_SNR = [
    (kl.exact_by_snr, kl.log_uniform_exact),
    (kl.molchanov_by_snr, kl.log_uniform_molchanov),
    (kl.ard_by_snr, kl.ard),
]


def moments(
    kind, theta=THETA, log_sigma2=LOG_SIGMA2, keep_mask=KEEP_MASK, factors=()
):
    """Moments of one log variance, or of the sum of `factors`."""
    theta, *factors = map(ops.convert_to_tensor, (theta, *factors))
    log_sigma2 = sum(factors) if factors else ops.convert_to_tensor(log_sigma2)
    log_alpha = log_sigma2 - ops.log(ops.square(theta) + THETA2_FLOOR)
    keep_mask = ops.convert_to_tensor(keep_mask)
    return kind(theta, log_sigma2, log_alpha, keep_mask, tuple(factors))


def test_every_fast_form_is_tested():
    """The priors in `test_divergence_and_gradients`, moments in all."""
    assert set(USERS) == {*fusing.FAST_MOMENTS, *DIVERGENCES}
    assert set(USERS) == {*fusing.EAGER_MOMENTS, *FORMS}
    for function, users in USERS.items():
        for user in users:
            cls = user if isinstance(user, type) else type(user)
            assert getattr(cls, function.__name__) is function
            assert isinstance(user, type) or user in PRIORS.values()


def test_the_cases_reach_beyond_the_bounds():
    assert 0.3 < INSIDE.mean() < 0.9
    assert LOG_ALPHA.min() < -MAX_ABS_LOG_ALPHA < MAX_ABS_LOG_ALPHA
    assert LOG_ALPHA.max() > MAX_ABS_LOG_ALPHA


def test_signal_to_noise_ratio():
    """Oracle: the definition, in NumPy."""
    found = to_numpy(moments(SignalToNoiseMoments).snr)
    expected = np.exp(-0.5 * np.maximum(LOG_ALPHA, -MAX_ABS_LOG_ALPHA))
    np.testing.assert_allclose(found[KEEP_MASK], expected[KEEP_MASK], rtol=2e-5)
    assert np.all(found[~KEEP_MASK] == 0.0)


@pytest.mark.parametrize("threshold", [None, -20.0, -3.0, 0.0, 3.0, 20.0])
def test_which_weights_are_kept(threshold):
    """Oracle: log_alpha below the threshold."""
    bound = MAX_ABS_LOG_ALPHA
    expected = KEEP_MASK
    if threshold is not None:
        expected = KEEP_MASK & (np.clip(LOG_ALPHA, -bound, bound) < threshold)
    for kind in (Moments, *FAST):
        found = moments(kind)
        np.testing.assert_array_equal(
            to_numpy(found.is_kept(threshold)), expected
        )
        np.testing.assert_array_equal(
            to_numpy(found.mean(threshold)), np.where(expected, THETA, 0.0)
        )


@pytest.mark.parametrize("threshold", [-20.0, -3.0, 0.0, 3.0, 20.0])
@pytest.mark.parametrize("shapes", SHARED)
def test_which_weights_are_kept_by_shared_variances(threshold, shapes):
    """Oracle: log_alpha below the threshold."""
    factors = [RNG.uniform(-20.0, 10.0, s).astype("float32") for s in shapes]
    log_alpha = sum(factors) - np.log(
        THETA.astype("float64") ** 2 + THETA2_FLOOR
    )
    bound = MAX_ABS_LOG_ALPHA
    expected = KEEP_MASK & (np.clip(log_alpha, -bound, bound) < threshold)
    for kind in (Moments, *FAST):
        found = moments(kind, factors=factors).is_kept(threshold)
        np.testing.assert_array_equal(to_numpy(found), expected)


@pytest.mark.parametrize("kind", [Moments, *FAST])
def test_a_weight_at_the_threshold_is_pruned(kind):
    """Where theta is 1, log_alpha is log_sigma2."""
    for threshold in np.arange(-10.0, 10.0, 0.25):
        log_sigma2 = np.float32(threshold + np.array([-1e-5, 0.0, 1e-5]))
        found = moments(kind, np.ones(3, "float32"), log_sigma2, np.ones(3) > 0)
        is_kept = to_numpy(found.is_kept(float(threshold)))
        mean = to_numpy(found.mean(float(threshold)))
        assert mean.tolist() == [1.0, 0.0, 0.0], threshold
        assert is_kept.tolist() == [True, False, False], threshold


@pytest.mark.parametrize("kind", FAST)
@pytest.mark.parametrize("name", PRIORS)
def test_divergence_and_gradients(name, kind):
    """Oracle: the prior's own divergence of log_alpha, and autodiff's clip."""

    def divergence(kind):
        def call(theta, log_sigma2):
            return moments(kind, theta, log_sigma2).kl_divergence(PRIORS[name])

        return call

    by_logarithm, by_snr = divergence(Moments), divergence(kind)
    expected = float(to_numpy(by_logarithm(THETA, LOG_SIGMA2)))
    found = float(to_numpy(by_snr(THETA, LOG_SIGMA2)))
    assert found == pytest.approx(expected, rel=1e-5)
    # The two forms differ by 1e-6 in the slope of log_alpha, and that varies.
    slopes = (2.0 * np.abs(THETA) / (THETA**2 + THETA2_FLOOR), 1.0)
    for ours, theirs, slope in zip(
        gradient(by_snr, THETA, LOG_SIGMA2),
        gradient(by_logarithm, THETA, LOG_SIGMA2),
        slopes,
        strict=True,
    ):
        allowed = 1e-4 * np.abs(theirs) + 1e-6 * slope
        assert np.all(np.abs(ours - theirs) <= allowed)
        assert np.all(ours[~KEEP_MASK] == 0.0)
        if name != "gaussian":
            assert np.all(ours[~INSIDE] == 0.0)
            assert np.all(ours[INSIDE & KEEP_MASK & (LOG_ALPHA < -1)] != 0.0)


class Doubled(priors.LogUniform):
    """A user's own, made of one that has a form by signal-to-noise ratios."""

    def kl_divergence(self, theta, log_sigma2, log_alpha):
        return 2.0 * super().kl_divergence(theta, log_sigma2, log_alpha)


@pytest.mark.parametrize("kind", FAST)
def test_a_divergence_of_ones_own_is_the_one_that_counts(kind):
    """Identity: twice the divergence of the prior it extends."""
    found = moments(kind)
    single = to_numpy(found.kl_divergence(priors.LogUniform()))
    doubled = to_numpy(found.kl_divergence(Doubled()))
    np.testing.assert_allclose(doubled, 2.0 * single, rtol=1e-5)


@pytest.mark.parametrize("shapes", SHARED)
@pytest.mark.parametrize("has_factors", [True, False])
@pytest.mark.parametrize("kind", FAST)
def test_shared_variances(shapes, has_factors, kind):
    """Oracle: the same variances, one given to every weight."""
    parts = [
        RNG.uniform(-5.0, 0.0, shape).astype("float32") for shape in shapes
    ]
    full = np.broadcast_to(sum(parts), SHAPE).copy()

    def terms(found):
        divergence = found.kl_divergence(PRIORS["molchanov"])
        return ops.sum(found.sigma2()) + ops.sum(found.stddev()) + divergence

    def shared(theta, *parts):
        if has_factors:
            return terms(moments(kind, theta, factors=parts))
        return terms(moments(kind, theta, sum(parts)))

    ours = gradient(shared, THETA, *parts)
    theirs = gradient(lambda *x: terms(moments(kind, *x)), THETA, full)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    for found, shape in zip(ours[1:], shapes, strict=True):
        axes = tuple(axis for axis in (0, 1) if shape[axis] == 1)
        summed = theirs[1].sum(axis=axes, keepdims=True)
        np.testing.assert_allclose(found, summed, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 50), SHAPE])
@pytest.mark.parametrize("kind", [Moments, *FAST])
def test_variances_are_bounded_by_the_size_of_each_weight(shape, kind):
    """Oracle: exp(10) (theta^2 + 1); also where weights share an own form."""
    found = moments(kind, log_sigma2=np.full(shape, 25.0, "float32"))
    expected = np.exp(10.0) * (THETA.astype("float64") ** 2 + 1.0)
    expected = np.where(KEEP_MASK, np.minimum(expected, np.exp(25.0)), 0.0)
    np.testing.assert_allclose(to_numpy(found.sigma2()), expected, rtol=1e-5)
    np.testing.assert_allclose(
        to_numpy(found.stddev()), np.sqrt(expected), rtol=1e-5
    )


@pytest.mark.parametrize(("by_snr", "function"), BY_SNR)
def test_divergences_by_signal_to_noise_ratio(by_snr, function):
    """Identity: the function of log_alpha."""
    log_alpha = np.linspace(-20.0, 20.0, 4001).astype("float32")
    snr = ops.convert_to_tensor(np.exp(-0.5 * log_alpha))
    np.testing.assert_allclose(
        to_numpy(by_snr(ops.convert_to_tensor(log_alpha), snr)),
        to_numpy(function(log_alpha)),
        rtol=2e-6,
        atol=2e-6,
    )
    slopes = gradient(lambda x: by_snr(x, snr), log_alpha)
    np.testing.assert_allclose(
        slopes[0], gradient(function, log_alpha)[0], atol=1e-6
    )
    # What is pruned has no signal, and costs nothing.
    nothing = ops.zeros(3)
    assert np.all(to_numpy(by_snr(nothing, nothing)) == 0.0)
    assert np.all(gradient(by_snr, *np.zeros((2, 3), "float32"))[0] == 0)
