from __future__ import annotations

import keras
import numpy as np
import pytest
from scipy import integrate, special, stats

from keras_vd import layers, posteriors, priors
from keras_vd.divergences import kl
from keras_vd.posteriors.sharing import SHARES
from tests.helpers.arrays import to_numpy
from tests.helpers.contract import Case, assert_close, assert_equal

DENSE = Case("dense", layers.VDDense, (4,), {"units": 3})


def make(posterior):
    return DENSE.make(posterior=posterior).kernel_posterior


def log_uniform(theta, log_sigma2):
    """Exact divergence: 2 * integral of Dawson's function (Hron 2018)."""
    end = np.abs(theta) / np.sqrt(2.0 * np.exp(log_sigma2))
    return 2.0 * integrate.quad(special.dawsn, 0.0, end)[0]


def normal(theta, log_sigma2, prior_stddev):
    """Divergence of two normals by quadrature of its definition."""
    posterior = stats.norm(theta, np.exp(0.5 * log_sigma2))
    prior = stats.norm(0.0, prior_stddev)
    return integrate.quad(
        lambda w: posterior.pdf(w) * (posterior.logpdf(w) - prior.logpdf(w)),
        theta - 9.0 * posterior.std(),
        theta + 9.0 * posterior.std(),
        epsabs=1e-10,
    )[0]


def automatic(theta, log_sigma2):
    """As `normal`, the prior's variance being theta^2 + sigma2."""
    return normal(theta, log_sigma2, np.sqrt(theta**2 + np.exp(log_sigma2)))


@pytest.mark.core
@pytest.mark.parametrize(
    ("posterior", "oracle", "tolerance"),
    [
        # The surrogate of the exact divergence is within 1e-3 per weight.
        ("sparse_vd", log_uniform, 2e-3),
        ("ard", automatic, 1e-5),
        ("gaussian", lambda t, s: normal(t, s, 1.0), 1e-5),
        (
            posteriors.Gaussian(prior=priors.Gaussian(0.3)),
            lambda t, s: normal(t, s, 0.3),
            1e-5,
        ),
    ],
    ids=["sparse_vd", "ard", "gaussian", "gaussian_narrow"],
)
def test_kl_divergence_is_the_sum_in_nats(posterior, oracle, tolerance):
    """Oracle: quadrature with SciPy, weight by weight."""
    posterior = make(posterior)
    theta = to_numpy(posterior.theta).astype("float64")
    log_sigma2 = to_numpy(posterior.log_sigma2).astype("float64")
    expected = sum(map(oracle, theta.ravel(), log_sigma2.ravel()))
    assert_close(posterior.kl_divergence(), expected, tolerance)


@pytest.mark.integration
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="TensorFlow Probability is a TensorFlow library",
)
def test_gaussian_against_tensorflow_probability():
    """Oracle: tfp's registered divergence of two normals."""
    tfp = pytest.importorskip("tensorflow_probability")
    posterior = make("gaussian")
    ours = tfp.distributions.Normal(
        posterior.theta, np.exp(0.5 * to_numpy(posterior.log_sigma2))
    )
    expected = ours.kl_divergence(tfp.distributions.Normal(0.0, 1.0))
    assert_close(posterior.kl_divergence(), np.sum(expected), 1e-5)


@pytest.mark.core
@pytest.mark.parametrize("kind", ["sparse_vd", "ard", "gaussian"])
def test_log_alpha(kind):
    """Oracle: log_sigma2 - log(theta^2 + 1e-8) in [-20, 20], in NumPy."""
    layer = DENSE.make(posterior=kind)
    theta = np.array(
        [[0.0, 1e-3, -2.0], [1.0, -1.0, 0.1], [0.0, 1e4, 3.0], [5.0, 0.5, -0.5]]
    )
    log_sigma2 = np.array(
        [
            [1.0, -3.0, 0.0],
            [-25.0, 25.0, 2.0],
            [5.0, -9.0, 1.0],
            [0.0, 1.0, 2.0],
        ]
    )
    layer.kernel.assign(theta)
    layer.kernel_posterior.log_sigma2.assign(log_sigma2)
    expected = log_sigma2 - np.log(theta**2 + 1e-8)
    assert expected.min() < -20.0
    assert expected.max() > 20.0
    assert_close(
        layer.kernel_posterior.log_alpha, np.clip(expected, -20, 20), 1e-5
    )


def test_log_alpha_and_log_sigma2_are_inverse():
    """Identity: a weight's log_alpha, put in as log_sigma2, comes back."""
    posterior = make("sparse_vd")
    log_alpha = np.random.default_rng(0).uniform(-9.0, 9.0, (4, 3))
    theta = to_numpy(posterior.theta)
    posterior.log_sigma2.assign(log_alpha + np.log(theta**2 + 1e-8))
    assert_close(posterior.log_alpha, log_alpha, 1e-5)


@pytest.mark.parametrize(
    ("name", "prior", "threshold"),
    [
        ("sparse_vd", priors.LogUniform, 3.0),
        ("ard", priors.ARD, 3.0),
        ("gaussian", priors.Gaussian, None),
    ],
)
def test_methods_are_those_of_their_papers(name, prior, threshold):
    posterior = posteriors.get(name)
    assert type(posterior.prior) is prior
    assert posterior.threshold == threshold


@pytest.mark.parametrize("form", ["exact", "molchanov"])
def test_form_of_the_log_uniform_divergence(form):
    """Oracle: the function of that name."""
    posterior = make(posteriors.SparseVD(prior=priors.LogUniform(form)))
    terms = getattr(kl, f"log_uniform_{form}")(posterior.log_alpha)
    assert_close(posterior.kl_divergence(), to_numpy(terms).sum())


def reduced(**options):
    """A posterior of 12 weights on both sides of the criterion."""
    posterior = make(
        posteriors.Gaussian(
            prior=priors.Gaussian(0.5), criterion="bmr", **options
        )
    )
    rng = np.random.default_rng(0)
    posterior.weight.assign(rng.normal(0.0, 0.4, (4, 3)))
    posterior.log_sigma2.assign(
        rng.uniform(-4.0, -1.0, posterior.log_sigma2.shape)
    )
    if posterior.share == "rank1":
        posterior.log_sigma2_input.assign(rng.uniform(-1.0, 1.0, (4, 1)))
    return posterior


def log_sigma2_of(posterior):
    total = sum(
        to_numpy(x).astype("float64") for x in posterior._noise_parameters()
    )
    return np.broadcast_to(total, posterior.weight.shape)


def log_evidence_of_zero(theta, log_sigma2, stddev):
    """Savage-Dickey ratio: densities of posterior and prior at 0."""
    posterior = stats.norm(theta, np.exp(0.5 * log_sigma2))
    return posterior.logpdf(0.0) - stats.norm(0.0, stddev).logpdf(0.0)


@pytest.mark.core
@pytest.mark.parametrize("share", SHARES)
def test_model_reduction_keeps_what_the_evidence_needs(share):
    """Oracle: SciPy's densities at 0, weight by weight."""
    posterior = reduced(share=share)
    theta = to_numpy(posterior.theta)
    is_kept = log_evidence_of_zero(theta, log_sigma2_of(posterior), 0.5) < -1e-4
    assert 2 <= is_kept.sum() <= 10
    expected = np.where(is_kept, theta, 0.0)
    assert_equal(posterior.mean(), expected)
    assert posterior.sparsity() == np.mean(~is_kept)
    assert_equal(to_numpy(posterior.margin()) > 0.0, is_kept)
    posterior.prune()
    assert_equal(posterior.keep_mask, is_kept)
    # What is pruned does not come back.
    posterior.log_sigma2.assign(np.full(posterior.log_sigma2.shape, -15.0))
    assert_equal(posterior.mean(), expected)


@pytest.mark.core
def test_model_reduction_in_training():
    """Oracle: `train_clip` takes the means of what is zero, not its noise."""
    means = {}
    for train_clip in (False, True):
        posterior = reduced(train_clip=train_clip, estimator="weight")
        theta = to_numpy(posterior.theta)
        sigma = np.exp(0.5 * log_sigma2_of(posterior))
        draws = np.stack([to_numpy(posterior.sample()) for _ in range(400)])
        expected = to_numpy(posterior.mean()) if train_clip else theta
        error = np.abs(draws.mean(0) - expected) / (sigma / 20.0)
        assert error.max() < 4.5
        np.testing.assert_allclose(draws.std(0), sigma, rtol=0.2)
        means[train_clip] = expected
    assert (means[True] != means[False]).any()


def test_a_weight_that_is_its_prior_goes():
    """Oracle: the evidences are equal where posterior and prior are."""
    posterior = reduced()
    for stddev in (0.1, 0.5, 3.0):
        posterior.prior.stddev = stddev
        posterior.weight.assign(np.zeros((4, 3)))
        posterior.log_sigma2.assign(np.full((4, 3), 2.0 * np.log(stddev)))
        assert posterior.sparsity() == 1.0
        posterior.weight.assign(np.full((4, 3), 0.1 * stddev))
        assert posterior.sparsity() == 0.0


@pytest.mark.core
@pytest.mark.parametrize("share", ["weight", "unit", "rank1"])
def test_a_trained_weight_starts_well_within_the_evidence(share):
    """Oracle: kept, and still kept with twice the noise power."""
    posterior = reduced(share=share)
    posterior.weight.assign(np.geomspace(1e-6, 5.0, 12).reshape(4, 3))
    posterior.start_from_weight()
    assert posterior.sparsity() == 0.0
    posterior.log_sigma2.assign(to_numpy(posterior.log_sigma2) + np.log(2.0))
    assert posterior.sparsity() == 0.0


def test_revived_weights_count():
    """Oracle: the same, for weights that counted as zero."""
    posterior = reduced()
    before = to_numpy(posterior.log_sigma2).copy()
    is_zero = to_numpy(posterior.mean()) == 0.0
    is_wanted = is_zero & (np.arange(12).reshape(4, 3) % 2 == 0)
    assert is_wanted.any()
    posterior.revive(is_wanted)
    assert (to_numpy(posterior.mean())[is_wanted] != 0.0).all()
    assert_equal(posterior.log_sigma2[~is_wanted], before[~is_wanted])


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"criterion": "bmrs"}, "criterion"),
        ({"criterion": "bmr", "threshold": 3.0}, "threshold"),
        ({"criterion": "bmr", "prior": "ard"}, "prior"),
        ({"criterion": "bmr", "prior": "log_uniform"}, "prior"),
    ],
)
def test_what_goes_not_with_model_reduction(options, name):
    with pytest.raises(ValueError, match=f"Argument `{name}` must be") as error:
        posteriors.Gaussian(**options)
    assert "Received" in str(error.value)


def test_model_reduction_takes_no_threshold_later():
    posterior = reduced()
    with pytest.raises(ValueError, match="Argument `threshold` must be None"):
        posterior.prune(0.0)
    assert to_numpy(posterior.keep_mask).all()


@pytest.mark.core
def test_model_reduction_is_saved(tmp_path):
    """Identity: the loaded model has the same zeros, of groups as well."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.VDDense(
                3,
                posterior=posteriors.Gaussian(
                    prior=priors.Gaussian(0.5),
                    criterion="bmr",
                    log_sigma2_init=-2.0,
                ),
                groups=("input",),
                kl_weight=0.1,
            ),
        ]
    )
    model.layers[0].kernel.assign(np.geomspace(0.01, 2.0, 12).reshape(4, 3))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    ours, theirs = model.layers[0], loaded.layers[0]
    for name in ("kernel_posterior", "input_group"):
        assert getattr(theirs, name).get_config()["criterion"] == "bmr"
    assert 0.0 < ours.kernel_posterior.sparsity() < 1.0
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    assert_close(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    assert_equal(
        to_numpy(theirs.kernel_posterior.mean()) == 0.0,
        to_numpy(ours.kernel_posterior.mean()) == 0.0,
    )
