"""Gates in training: draws, pruning, gradients, fits."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

from keras_vd import layers
from tests.helpers.arrays import random_inputs, to_numpy
from tests.helpers.contract import (
    assert_close,
    assert_equal,
    assert_moments,
    training_gradients,
)
from tests.helpers.gates import (
    BERNOULLI,
    BOUNDS,
    DEPENDENT,
    GATES,
    HARD_CONCRETE,
    KL_WEIGHT,
    LOG_NORMAL,
    Gate,
    exact,
    parametrize,
    parametrize_core,
    set_open,
)
from tests.helpers.gradients import gradient
from tests.helpers.log_normal import MP, exact_log_density, exact_moment
from tests.helpers.models import compile_quickly

# Units of equal variables: as many independent draws in one call.
MANY = 4000


def drawn(layer, rows=2):
    """Training outputs for inputs of 1."""
    outputs = layer(np.ones((rows, layer.units), "float32"), training=True)
    return to_numpy(outputs).astype("float64")


def fill(layer, **values):
    layer.build((None, MANY))
    for name, value in values.items():
        variable = getattr(layer, name)
        variable.assign(np.full(variable.shape, value, "float32"))
    return layer


@pytest.mark.parametrize(
    ("mu", "log_sigma"),
    [
        pytest.param(0.0, -1.0, marks=pytest.mark.core),
        (-1.0, -2.0),
        (3.0, 0.5),
        (0.0, 5.0),
    ],
)
def test_log_normal_draws(mu, log_sigma):
    """Oracle: closed forms of the moments; one draw for the whole batch."""
    keras.utils.set_random_seed(1)
    layer = layers.LogNormalDropout(kl_weight=0.0)
    outputs = drawn(fill(layer, mu=mu, log_sigma=log_sigma))
    assert_equal(outputs[0], outputs[1])
    raw = [
        float(exact_moment(MP.mpf(mu), MP.mpf(log_sigma), BOUNDS, k))
        for k in range(5)
    ]
    fourth = raw[4] - 4 * raw[1] * raw[3] + 6 * raw[1] ** 2 * raw[2]
    fourth -= 3 * raw[1] ** 4
    variance = raw[2] - raw[1] ** 2
    assert_moments(outputs[0], raw[1], variance, fourth / variance**2)
    assert np.abs(drawn(layer) - outputs).max() > 0.01


MIDDLES = (np.arange(1500) + 0.5) / 1500


def relaxed_moments(log_pi, temperature=0.1):
    """E z^n over u, n = 0 to 4, by the midpoint rule."""
    pi = np.exp(log_pi)[:, None]
    noise = np.log(MIDDLES) - np.log1p(-MIDDLES)
    logits = (np.log(pi) - np.log1p(-pi) + noise) / temperature
    z = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
    return np.array([np.mean(z**n, axis=1) for n in range(5)])


def kumaraswamy_log_pi(a_unconstrained, b_unconstrained):
    """log pi at the midpoints of u, by the definition of the quantile."""
    a, b = np.log1p(np.exp([a_unconstrained, b_unconstrained]))
    return np.log1p(-(MIDDLES ** (1 / b))) / a


def assert_raw_moments(draws, raw):
    variance = raw[2] - raw[1] ** 2
    fourth = raw[4] - 4 * raw[1] * raw[3] + 6 * raw[1] ** 2 * raw[2]
    fourth -= 3 * raw[1] ** 4
    assert_moments(draws, raw[1], variance, fourth / variance**2)


def assert_both_open(draws, probability):
    """Two examples' gates are above 1/2 as often as they should be."""
    share = np.mean((draws[0] > 0.5) & (draws[1] > 0.5))
    error = np.sqrt(probability * (1 - probability) / MANY)
    assert abs(share - probability) < 5 * error


SHAPES = [
    pytest.param(-1.0, 0.5413, marks=pytest.mark.core),
    (2.0, 0.5413),
    (1.0, 2.0),
]


@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_beta_bernoulli_draws(a, b):
    """Oracle: moments by the midpoint rule over u and pi.

    pi is one for all examples and z is not: both are on with probability
    E pi^2, not with (E pi)^2 or E pi.
    """
    keras.utils.set_random_seed(1)
    layer = layers.BetaBernoulliDropout(kl_weight=0.0)
    outputs = drawn(fill(layer, a_unconstrained=a, b_unconstrained=b))
    assert np.abs(outputs[0] - outputs[1]).max() > 0.5
    log_pi = kumaraswamy_log_pi(a, b)
    raw = relaxed_moments(log_pi).mean(axis=1)
    for row in outputs:
        assert_raw_moments(row, raw)
    both = np.mean(np.exp(2 * log_pi))
    once = np.mean(np.exp(log_pi))
    error = np.sqrt(both * (1 - both) / MANY)
    assert min(both - once**2, once - both) > 5.5 * error
    assert_both_open(outputs, both)


@pytest.mark.core
def test_dependent_draws():
    """Oracle: as above, with phi = clip(beta + sigma noise, 0, 1).

    All inputs are equal, so a normalized input is beta. One noise per unit
    for all examples.
    """
    keras.utils.set_random_seed(1)
    layer = layers.DependentBetaBernoulliDropout(kl_weight=0.0)
    fill(layer, a_unconstrained=2.0, b_unconstrained=0.5413)
    layer.sigma_unconstrained.assign(np.full(MANY, np.log(np.expm1(0.4))))
    layer.normalization.beta.assign(np.full(MANY, 0.6))
    outputs = drawn(layer)
    import scipy.stats

    phi = 0.6 + 0.4 * scipy.stats.norm.ppf(MIDDLES)
    phi = np.clip(phi, 1e-6, 1 - 1e-6)
    log_pi = kumaraswamy_log_pi(2.0, 0.5413)
    of_phi = relaxed_moments(np.log(phi)).mean(axis=1)
    raw = relaxed_moments(log_pi).mean(axis=1) * of_phi
    for row in outputs:
        assert_raw_moments(row, raw)
    spread = np.cov(outputs)[0, 1]
    # E[(pi phi)^2] - (E pi phi)^2, up to the relaxation.
    pi = np.exp(log_pi)
    shared = np.mean(pi**2) * np.mean(phi**2) - (pi.mean() * phi.mean()) ** 2
    assert spread == pytest.approx(shared, rel=0.25)


@parametrize
def test_draws_lie_along_the_axis(gate: Gate):
    # Identity: all entries of a channel have one factor.
    layer = gate.make((6, 2, 3), axis=1)
    if gate is HARD_CONCRETE:
        layer.log_alpha.assign(np.full(6, 0.5))
    elif gate is not LOG_NORMAL:
        layer.a_unconstrained.assign(np.zeros(6))
    inputs = random_inputs(4, 6, 2, 3)
    factors = to_numpy(layer(inputs, training=True)) / inputs
    flat = factors.reshape(4, 6, -1)
    np.testing.assert_allclose(
        flat, np.broadcast_to(flat[..., :1], flat.shape), rtol=1e-5, atol=1e-6
    )
    assert np.ptp(flat[..., 0], axis=1).min() > 0.0
    by_example = np.ptp(flat, axis=0).max()
    assert (by_example < 1e-5) == (gate in (LOG_NORMAL, HARD_CONCRETE))


@pytest.mark.parametrize(
    "threshold", [pytest.param(None, marks=pytest.mark.core), "own"]
)
@parametrize
def test_prune(gate: Gate, threshold):
    """Oracle: closed forms against the threshold.

    Pruned units stay zero in training and at inference, however open their
    variables become, and leave the KL.
    """
    layer, inputs = gate.make(), random_inputs(5, 6)
    limit = gate.threshold
    if threshold:
        # Between the largest two.
        limit = float(np.sort(gate.criterion(layer))[-2:].mean())
    expected = gate.criterion(layer) > limit
    active = gate.criterion(layer) > gate.threshold
    assert layer.n_active == active.sum() == 3
    layer.prune(limit if threshold else None)
    assert_equal(to_numpy(layer.keep_mask), expected)
    assert layer.n_active == expected.sum() == (1 if threshold else 3)
    assert isinstance(layer.n_active, int)
    kept_kl = gate.exact_kl(layer)[expected].sum()
    found = float(to_numpy(layer.kl_divergence()))
    assert found == pytest.approx(kept_kl, rel=1e-5)
    set_open(layer)
    if gate is DEPENDENT:
        layer.normalization.beta.assign(np.full(6, 9.0))
    assert_equal(to_numpy(layer.gate_mean()) != 0.0, expected)
    assert_equal(to_numpy(layer.mean()) != 0.0, expected)
    for training in (False, True):
        outputs = to_numpy(layer(inputs, training=training))
        assert not outputs[:, ~expected].any()
        assert outputs[:, expected].any(axis=0).all()
    assert float(to_numpy(layer.losses[0])) == pytest.approx(
        KL_WEIGHT * gate.exact_kl(layer)[expected].sum(), rel=1e-5
    )
    # What is gone does not come back with a laxer threshold.
    layer.prune(0.0)
    assert_equal(to_numpy(layer.keep_mask), expected)


def test_bad_thresholds_of_prune_are_refused():
    for gate in GATES:
        layer = gate.make()
        with pytest.raises(ValueError, match="`threshold` must be a finite"):
            layer.prune(-1.0)
        with pytest.raises(TypeError, match="`threshold` must be a finite"):
            layer.prune("1")
        assert to_numpy(layer.keep_mask).all()


def test_model_reduction():
    # Oracle: the density at min_log over the prior's, with 80 digits.
    layer = LOG_NORMAL.make(criterion="bmr")
    layer.mu.assign([-19.0, -15.0, -10.0, -5.0, 0.0, 0.0])
    layer.log_sigma.assign([0.0, 2.0, 3.0, 1.0, 2.0, -5.0])
    evidence = exact(
        layer,
        "mu",
        "log_sigma",
        lambda m, s: exact_log_density(m, s, BOUNDS, MP.mpf(-20)) + MP.log(20),
    )
    kept = evidence < 0.0
    assert 0 < kept.sum() < 6
    assert not np.array_equal(kept, LOG_NORMAL.exact_snr(layer) > 1.0)
    assert layer.n_active == kept.sum()
    assert_equal(to_numpy(layer.mean()) > 0.0, kept)
    layer.prune()
    assert_equal(to_numpy(layer.keep_mask), kept)


EXTREMES = {
    "mu": (-20.0, -3.0, 0.0, 5.0),
    "log_sigma": (-20.0, -5.0, 5.0),
    "a_unconstrained": (-10.0, 0.0, 50.0),
    "b_unconstrained": (-10.0, 0.5, 50.0),
    "log_alpha": (-np.log(100.0), 0.0, np.log(100.0)),
}


@parametrize_core
def test_gradients_are_finite_at_the_extremes(gate: Gate):
    # A plain float32 gate gives NaN here.
    names = [name for name in EXTREMES if hasattr(gate.make(), name)]
    corners = np.array(list(itertools.product(*map(EXTREMES.get, names))))
    layer = gate.make((len(corners),))
    for name, values in zip(names, corners.T, strict=True):
        getattr(layer, name).assign(values)
    for seed in range(3):
        inputs = random_inputs(5, len(corners), seed=seed)
        gradients = training_gradients(layer, inputs)
        assert len(gradients) == gate.trainable
        for value in gradients.values():
            assert np.isfinite(value).all()
        assert np.isfinite(to_numpy(layer(inputs, training=True))).all()
        assert np.isfinite(to_numpy(layer(inputs))).all()


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-24])
@parametrize
def test_the_rarest_draws_are_finite(gate: Gate, uniform, monkeypatch):
    # Generators return 0 once in 16 million draws; logs of it are infinite.
    def rarest(shape, minval=0.0, maxval=1.0, dtype=None, seed=None):
        return ops.full(shape, uniform, dtype=dtype)

    layer = gate.make()
    monkeypatch.setattr(keras.random, "uniform", rarest)
    inputs = random_inputs(5, 6)
    assert np.isfinite(to_numpy(layer(inputs, training=True))).all()
    for value in training_gradients(layer, inputs).values():
        assert np.isfinite(value).all()


@parametrize
def test_every_parameter_learns_from_the_outputs(gate: Gate):
    layer = gate.make(kl_weight=0.0)
    set_open(layer)
    if gate is HARD_CONCRETE:  # draws of 1 have no slope
        layer.log_alpha.assign(np.zeros(6))
    for path, value in training_gradients(layer, random_inputs(9, 6)).items():
        assert np.isfinite(value).all(), path
        assert np.any(value != 0.0), path


def fit_sum(layer, optimizer, sign):
    """Two steps that make the outputs smaller (1) or larger (-1)."""
    model = keras.Sequential([keras.Input((layer.units,)), layer])
    compile_quickly(
        model, optimizer=optimizer, loss=lambda y, p: sign * ops.mean(p)
    )
    data = np.ones((8, layer.units), "float32")
    model.fit(data, data, batch_size=4, epochs=1, verbose=0)


RANGES = {
    "mu": (-20.0, 5.0),
    "log_sigma": (-20.0, 5.0),
    "a_unconstrained": (-10.0, np.inf),
    "b_unconstrained": (-10.0, 50.0),
    "log_alpha": (-np.log(100.0) - 1e-6, np.log(100.0) + 1e-6),
}


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@parametrize
def test_constraints_keep_variables_in_range(gate: Gate, sign):
    # Oracle: the documented ranges.
    layer = gate.make(kl_weight=1.0)
    fit_sum(layer, keras.optimizers.SGD(1e4), 1e4 * sign)
    checked = 0
    for name, (low, high) in RANGES.items():
        if hasattr(layer, name):
            value = to_numpy(getattr(layer, name))
            assert np.isfinite(value).all()
            assert (value >= low).all()
            assert (value <= high).all()
            checked += 1
    assert checked == min(2, gate.trainable)


@pytest.mark.integration
def test_variables_come_back_from_their_bounds():
    """Gradients at the bounds, which a clipped read would not pass."""
    gate = LOG_NORMAL.make(kl_weight=0.0)
    gate.mu.assign(np.full(6, 5.0))
    gate.log_sigma.assign(np.full(6, 2.0))
    fit_sum(gate, keras.optimizers.SGD(1.0), 1.0)
    assert (to_numpy(gate.mu) < 5.0).all()
    gate.mu.assign(np.full(6, -20.0))
    fit_sum(gate, keras.optimizers.SGD(1.0), -1e3)
    assert (to_numpy(gate.mu) > -20.0).all()
    gate.mu.assign(np.zeros(6))
    gate.log_sigma.assign(np.full(6, 5.0))
    fit_sum(gate, keras.optimizers.Adam(0.1), -1e3)
    assert (to_numpy(gate.log_sigma) < 5.0).all()
    # The prior Beta(1, 1) pulls a towards 1, and b.
    gate = BERNOULLI.make(kl_weight=1e-3, prior_alpha=1.0)
    gate.a_unconstrained.assign(np.full(6, -10.0))
    gate.b_unconstrained.assign(np.full(6, -10.0))
    fit_sum(gate, keras.optimizers.Adam(0.1), 0.0)
    assert (to_numpy(gate.b_unconstrained) > -10.0).all()
    gate.b_unconstrained.assign(np.full(6, 50.0))
    fit_sum(gate, keras.optimizers.Adam(0.1), 0.0)
    assert (to_numpy(gate.a_unconstrained) > -10.0).all()
    assert (to_numpy(gate.b_unconstrained) < 50.0).all()


TOY_OPTIONS = {
    LOG_NORMAL: {"log_sigma_init": -2.0, "kl_weight": 0.03},
    BERNOULLI: {"a_init": 2.0, "kl_weight": 0.3},
    DEPENDENT: {"a_init": 2.0, "beta_init": 2.0, "kl_weight": 0.3},
    HARD_CONCRETE: {"log_alpha_init": 1.0, "kl_weight": 1.0},
}


@pytest.mark.integration
@parametrize_core
def test_a_fit_closes_the_gates_of_inputs_that_do_not_matter(gate: Gate):
    """Oracle: the data: 4 of 12 inputs decide."""
    keras.utils.set_random_seed(4)
    inputs = random_inputs(1024, 12)
    targets = inputs[:, :4] @ np.array([3.0, -3.0, 3.0, -3.0], "float32")
    layer = gate.layer(**TOY_OPTIONS[gate])
    dense = keras.layers.Dense(1)
    model = keras.Sequential([keras.Input((12,)), layer, dense])
    model.compile(keras.optimizers.Adam(0.03), "mse")
    before = gate.criterion(layer)
    history = model.fit(
        inputs, targets, batch_size=16, epochs=3, verbose=0
    ).history["loss"]
    assert np.isfinite(history).all()
    assert history[-1] < history[0]
    after = gate.criterion(layer)
    assert after[:4].min() > 2.0 * after[4:].max()
    assert (after[4:] < before[4:]).all()
    for variable in layer.trainable_variables:
        assert np.isfinite(to_numpy(variable)).all()


def test_moving_statistics_of_a_dependent_gate():
    """Oracle: m <- 0.99 m + 0.01 mean over the batch of the pooled units."""
    layer = DEPENDENT.make((6, 2, 3), axis=1)
    normalization = layer.normalization
    old = [
        to_numpy(x)
        for x in (normalization.moving_mean, normalization.moving_variance)
    ]
    inputs = random_inputs(9, 6, 2, 3) + 2.0
    layer(inputs)
    assert_equal(normalization.moving_mean, old[0])
    layer(inputs, training=True)
    pooled = inputs.mean(axis=(2, 3))
    new = [pooled.mean(axis=0), pooled.var(axis=0)]
    found = [normalization.moving_mean, normalization.moving_variance]
    for one, was, seen in zip(found, old, new, strict=True):
        assert_close(one, 0.99 * was + 0.01 * seen, 1e-5)


def test_active_per_example():
    # Oracle: non-zero outputs, counted.
    layer, inputs = DEPENDENT.make(), random_inputs(50, 6)
    outputs = DEPENDENT.inference(layer, inputs)
    active = (outputs != 0.0).sum(axis=1)
    assert len(set(active)) > 1
    found = layer.active_per_example(inputs)
    assert isinstance(found, float)
    assert found == pytest.approx(active.mean(), abs=1e-6)
    assert found < layer.n_active


@pytest.mark.parametrize("training", [False, True])
def test_no_gradient_to_inputs_through_phi(training):
    # Oracle: the gates themselves, which are the derivative of x z for fixed z.
    layer, inputs = DEPENDENT.make(), random_inputs(5, 6)
    state = layer.seed_generator.state
    seed = to_numpy(state.value)
    (found,) = gradient(lambda x: layer(x, training=training), inputs)
    state.assign(seed)
    normalization = layer.normalization
    outputs = to_numpy(layer(inputs, training=training))
    assert np.abs(found).max() > 0.01
    if training:
        # The moving statistics play no part in training.
        assert normalization.built
    assert_close(found, outputs / inputs, 1e-5)


@parametrize
def test_inner_seeds_make_runs_repeat(gate: Gate):
    """Identity: the same seed, the same noise."""
    outputs = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        layer = gate.make()
        set_open(layer)
        outputs.append(to_numpy(layer(random_inputs(3, 6), training=True)))
    assert_equal(outputs[0], outputs[1])
    assert np.abs(outputs[0] - outputs[2]).max() > 0.0
