"""What every gate has to satisfy. See test_gate_training.py for the rest."""

import inspect
import math

import keras
import numpy as np
import pytest
from keras import ops
from keras.src.testing import TestCase

from keras_vd import layers
from keras_vd.divergences import log_normal
from tests.helpers.arrays import random_inputs, to_numpy
from tests.helpers.contract import (
    assert_close,
    assert_equal,
    training_gradients,
)
from tests.helpers.gates import (
    BERNOULLI,
    DEPENDENT,
    GATES,
    HARD_CONCRETE,
    KL_WEIGHT,
    LOG_NORMAL,
    Gate,
    parametrize,
)

# Shape of one example, axis of the units.
SHAPES = {
    "units": ((6,), -1),
    "steps, units": ((3, 6), -1),
    "units, steps": ((6, 3), 1),
    "channels last": ((2, 3, 6), 3),
    "channels first": ((6, 2, 3), 1),
    "middle": ((2, 6, 3), -2),
}


@pytest.mark.core
@parametrize
def test_keras_own_layer_test(gate: Gate):
    """Oracle: Keras' harness, and counts worked out by hand.

    Not trained: keep_mask, kl_weight, and two moving statistics.
    """
    TestCase().run_layer_test(
        gate.layer,
        init_kwargs={"kl_weight": KL_WEIGHT, "axis": 1},
        input_shape=(2, 4, 3),
        call_kwargs={"training": True},
        expected_output_shape=(2, 4, 3),
        expected_num_trainable_weights=gate.trainable,
        expected_num_non_trainable_weights=gate.fixed,
        expected_num_non_trainable_variables=gate.fixed + 1,
        expected_num_seed_generators=1,
        expected_num_losses=1,
        supports_masking=gate is not DEPENDENT,
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(x, marks=[pytest.mark.core] if "first" in x else [])
        for x in SHAPES
    ],
)
@parametrize
def test_inference(gate: Gate, name):
    """Oracle: inputs times the closed form, 0 below the threshold.

    Bit by bit the same in every call, and without a loss.
    """
    shape, axis = SHAPES[name]
    layer, inputs = gate.make(shape, axis=axis), random_inputs(5, *shape)
    expected = gate.inference(layer, inputs)
    assert (expected == 0.0).any()
    assert (expected != 0.0).any()
    outputs = layer(inputs)
    assert_close(outputs, expected, 2e-5)
    assert_equal(layer(inputs, training=False), outputs)
    assert layer.losses == []
    found = layer.gate_mean()
    assert tuple(found.shape) == (6,)
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    np.testing.assert_allclose(
        to_numpy(found), gate.exact_mean(layer), rtol=2e-5
    )


@pytest.mark.core
def test_snr():
    # Oracle: the closed form; 0 where pruned.
    layer = LOG_NORMAL.make()
    expected = LOG_NORMAL.exact_snr(layer)
    np.testing.assert_allclose(to_numpy(layer.snr()), expected, rtol=2e-5)
    layer.prune()
    kept = expected > 1.0
    np.testing.assert_allclose(
        to_numpy(layer.snr()), np.where(kept, expected, 0.0), rtol=2e-5
    )


@parametrize
def test_margins_tell_what_is_kept(gate: Gate):
    """Oracle: the gates that are kept, and the order of their means or SNRs."""
    layer = gate.make()
    margin = to_numpy(layer.margin())
    np.testing.assert_array_equal(margin > 0.0, to_numpy(layer.mean()) > 0.0)
    is_log_normal = gate.layer is layers.LogNormalDropout
    exact = gate.exact_snr if is_log_normal else gate.exact_mean
    order = np.argsort(exact(layer))
    assert (np.diff(margin[order]) >= 0.0).all()
    ratio = np.exp(margin[order][-1] - margin[order][-2])
    expected = np.divide(*exact(layer)[order][[-1, -2]])
    power = 2.0 if is_log_normal else 1.0
    assert ratio == pytest.approx(expected**power, rel=1e-4)


def test_margins_of_model_reduction():
    layer = LOG_NORMAL.make(criterion="bmr")
    margin = to_numpy(layer.margin())
    np.testing.assert_array_equal(margin > 0.0, to_numpy(layer.mean()) > 0.0)
    # Identity: twice the log evidence that the gates are worth.
    evidence = log_normal.log_evidence_of_zero(
        layer.mu, layer.log_sigma, layer.min_log, layer.max_log
    )
    np.testing.assert_allclose(margin, -2.0 * to_numpy(evidence), rtol=1e-5)


@pytest.mark.parametrize(
    "kl_scale", [1.0, pytest.param(2.5, marks=pytest.mark.core), 0.0]
)
@parametrize
def test_kl_in_the_loss(gate: Gate, kl_scale):
    """Oracle: weight, scale and closed form, however many calls and rows."""
    layer = gate.make(kl_scale=kl_scale)
    ends = [keras.Input((6,)) for _ in range(2)]
    model = keras.Model(ends, [layer(end) for end in ends])
    total = gate.exact_kl(layer).sum()
    for rows in (1, 7):
        inputs = [random_inputs(rows, 6, seed=seed) for seed in (1, 2)]
        model(inputs, training=True)
        (loss,) = model.losses
        expected = KL_WEIGHT * kl_scale * total
        assert float(to_numpy(loss)) == pytest.approx(expected, rel=1e-5)
        model(inputs, training=False)
        assert model.losses == []
    found = float(to_numpy(layer.kl_divergence()))
    assert found == pytest.approx(total, rel=1e-5)


@parametrize
def test_kl_weight_is_needed_in_training_alone(gate: Gate):
    layer = gate.layer(name="mine")
    layer(random_inputs(2, 3))
    assert not layer.kl_weight.is_set
    with pytest.raises(
        ValueError, match=r"(?s)'mine'.*kl_weight=1 / N.*KLAnnealing\("
    ):
        layer(random_inputs(2, 3), training=True)
    layer.kl_weight.assign(0.0)
    layer(random_inputs(2, 3), training=True)


@pytest.mark.core
@parametrize
def test_save_and_load(gate: Gate, tmp_path):
    """Oracle: the layer that was saved, pruned, annealed and used."""
    layer = gate.make(kl_weight=None)
    inputs = random_inputs(4, 6)
    model = keras.Sequential([keras.Input((6,)), layer])
    layer.kl_weight.assign(0.0123)
    layer.prune()
    model(inputs, training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    (revived,) = loaded.layers
    assert revived.get_config() == layer.get_config()
    for ours, theirs in zip(model.variables, loaded.variables, strict=True):
        assert ours.name == theirs.name
        assert_equal(theirs, ours)
    assert 0 < to_numpy(revived.keep_mask).sum() < 6
    assert to_numpy(revived.kl_weight) == np.float32(0.0123)
    assert revived.kl_weight.is_set
    assert_close(loaded(inputs), model(inputs))
    # The same noise goes on.
    assert_equal(
        revived.seed_generator.state.value, layer.seed_generator.state.value
    )
    assert_close(loaded(inputs, training=True), model(inputs, training=True))


# Every argument off its default. A criterion without a threshold has none.
OPTIONS = {
    "axis": 1,
    "threshold": 0.25,
    "kl_scale": 0.5,
    "kl_weight": 0.25,
    "name": "mine",
}
BERNOULLI_OPTIONS = {
    **OPTIONS,
    "prior_alpha": 0.1,
    "a_init": 0.5,
    "b_init": 0.25,
    "temperature": 0.5,
}
DEPENDENT_OPTIONS = {"beta_init": 0.5, "sigma_init": 0.1, "prior_stddev": 2.0}
ARGUMENTS = [
    (
        LOG_NORMAL,
        [
            {**OPTIONS, "min_log": -9.0, "max_log": 1.0}
            | {"mu_init": 0.5, "log_sigma_init": -2.0},
            {"criterion": "bmr"},
        ],
    ),
    (BERNOULLI, [BERNOULLI_OPTIONS]),
    (DEPENDENT, [BERNOULLI_OPTIONS | DEPENDENT_OPTIONS]),
    (HARD_CONCRETE, [{**OPTIONS, "log_alpha_init": 0.5}]),
]


@pytest.mark.parametrize(("gate", "variants"), ARGUMENTS)
def test_config_round_trip(gate: Gate, variants):
    """Oracle: the arguments, of which the signatures know no others.

    The arguments have to arrive as well: attributes of the same names, and
    the initial values in the variables.
    """
    names = {
        name
        for cls in gate.layer.__mro__
        if cls.__module__.startswith("keras_vd.layers")
        for name, parameter in inspect.signature(
            vars(cls).get("__init__", object)
        ).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    given = {name for variant in variants for name in variant}
    assert names - {"self", "args"} <= given
    default = gate.layer().get_config()
    for variant in variants:
        layer = gate.layer(**variant)
        config = layer.get_config()
        assert {name: config[name] for name in variant} == variant
        assert not any(default[name] == variant[name] for name in variant)
        revived = gate.layer.from_config(config)
        assert revived.get_config() == config
        revived.build((None, 2, 3))
        for name, value in variant.items():
            if name == "kl_weight":
                assert float(to_numpy(revived.kl_weight)) == value
            else:
                assert getattr(revived, name) == value


@pytest.mark.parametrize(("gate", "variants"), ARGUMENTS)
def test_initial_values(gate: Gate, variants):
    # Oracle: the arguments.
    layer = gate.layer(**variants[0])
    layer.build((None, 2, 3))
    assert layer.units == 2
    variables = {
        "mu_init": "mu",
        "log_sigma_init": "log_sigma",
        "a_init": "a_unconstrained",
        "b_init": "b_unconstrained",
        "sigma_init": "sigma_unconstrained",
    }
    for argument, name in variables.items():
        if argument in variants[0]:
            found = to_numpy(getattr(layer, name))
            assert_close(found, np.full(2, variants[0][argument]))
    if gate is DEPENDENT:
        assert_close(layer.normalization.beta, [0.5, 0.5])


@pytest.mark.parametrize(
    "gate", [LOG_NORMAL, BERNOULLI, HARD_CONCRETE], ids=lambda g: g.name
)
@pytest.mark.parametrize("training", [False, True])
def test_masks_pass(gate: Gate, training):
    # Oracle: a recurrent layer that must not see what is masked.
    model = keras.Sequential(
        [
            keras.Input((4, 3)),
            keras.layers.Masking(),
            gate.make((4, 3), kl_weight=0.0),
            keras.layers.LSTM(2),
        ]
    )
    inputs = random_inputs(2, 4, 3)
    inputs[:, 2:] = 0.0
    if not training:
        shorter = model.layers[-1](model.layers[1](inputs[:, :2]))
        assert_close(model(inputs), shorter)
    else:
        padded = model.layers[1](model.layers[0](inputs), training=True)
        assert keras.src.backend.get_keras_mask(padded) is not None


def test_a_dependent_gate_refuses_to_average_over_masked_steps():
    model = [keras.layers.Masking(), DEPENDENT.make((4, 3))]
    with pytest.warns(UserWarning, match="mask"):
        keras.Sequential([keras.Input((4, 3)), *model])


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param("mixed_bfloat16", marks=pytest.mark.core),
        "mixed_float16",
    ],
)
@parametrize
def test_mixed_precision(gate: Gate, policy):
    """Oracle: the float32 layer's KL, bit by bit; finite elsewhere."""
    full, mixed = gate.make(), gate.make(dtype=policy)
    inputs = random_inputs(5, 6)
    outputs = mixed(inputs, training=True)
    full(inputs, training=True)
    dtype = keras.backend.standardize_dtype(outputs.dtype)
    assert dtype == policy.removeprefix("mixed_")
    assert np.isfinite(to_numpy(ops.cast(outputs, "float32"))).all()
    assert to_numpy(full.losses[0]) == to_numpy(mixed.losses[0])
    loss_dtype = keras.backend.standardize_dtype(mixed.losses[0].dtype)
    assert loss_dtype == "float32"
    assert {v.dtype for v in mixed.weights} == {"float32", "bool"}
    for value in training_gradients(mixed, inputs).values():
        assert np.isfinite(value.astype("float32")).all()
    expected = gate.inference(gate.make(), inputs)
    found = ops.cast(mixed(inputs), "float32")
    np.testing.assert_allclose(to_numpy(found), expected, rtol=0.05, atol=0.02)


@parametrize
def test_bad_inputs_are_named(gate: Gate):
    layer = gate.layer(name="mine")
    with pytest.raises(ValueError, match=r"'mine'.*floats.*int32"):
        layer(np.ones((2, 3), "int32"))
    for axis in (0, 2, -2, -3):
        layer = gate.layer(axis=axis, name="mine")
        with pytest.raises(ValueError, match=f"`axis`.*'mine'.*axis={axis}"):
            layer.build((None, 3))
    with pytest.raises(ValueError, match=r"`axis`.*known size.*\(None, None"):
        gate.layer().build((None, None))
    gate.layer().build((None, None, 3))


COMMON_MISTAKES = [
    ({"axis": 1.0}, TypeError),
    ({"axis": None}, TypeError),
    ({"threshold": -0.1}, ValueError),
    ({"threshold": "1"}, TypeError),
    ({"kl_scale": -1.0}, ValueError),
    ({"kl_weight": math.nan}, ValueError),
    ({"kl_weight": True}, TypeError),
]
BERNOULLI_MISTAKES = [
    ({"prior_alpha": 0.0}, ValueError),
    ({"a_init": -11.0}, ValueError),
    ({"b_init": 51.0}, ValueError),
    ({"temperature": 0.0}, ValueError),
    ({"threshold": None}, TypeError),
]
MISTAKES = [
    *((gate, *mistake) for gate in GATES for mistake in COMMON_MISTAKES),
    *(
        (LOG_NORMAL, *mistake)
        for mistake in (
            ({"min_log": "0"}, TypeError),
            ({"min_log": 1.0}, ValueError),
            ({"max_log": math.inf}, ValueError),
            ({"max_log": -20.0}, ValueError),
            ({"mu_init": -21.0}, ValueError),
            ({"mu_init": 5.5}, ValueError),
            ({"log_sigma_init": 5.5}, ValueError),
            ({"criterion": "SNR"}, ValueError),
        )
    ),
    *((BERNOULLI, *mistake) for mistake in BERNOULLI_MISTAKES),
    *((DEPENDENT, *mistake) for mistake in BERNOULLI_MISTAKES),
    (DEPENDENT, {"beta_init": math.inf}, ValueError),
    (DEPENDENT, {"sigma_init": "1"}, TypeError),
    (DEPENDENT, {"prior_stddev": 0.0}, ValueError),
    (HARD_CONCRETE, {"log_alpha_init": 5.0}, ValueError),
    (HARD_CONCRETE, {"log_alpha_init": -5.0}, ValueError),
    (HARD_CONCRETE, {"log_alpha_init": None}, TypeError),
    (HARD_CONCRETE, {"threshold": None}, TypeError),
]


@pytest.mark.parametrize(("gate", "options", "error"), MISTAKES)
def test_bad_arguments_are_named(gate: Gate, options, error):
    # The message has the argument and what came.
    with pytest.raises(error) as caught:
        gate.layer(**options)
    ((argument, received),) = options.items()
    assert f"`{argument}`" in str(caught.value)
    assert f"{argument}={received!r}" in str(caught.value)


def test_model_reduction_has_no_threshold():
    with pytest.raises(ValueError, match=r"`threshold`.*criterion='bmr'"):
        layers.LogNormalDropout(criterion="bmr", threshold=1.0)
    layer = LOG_NORMAL.make(criterion="bmr")
    with pytest.raises(ValueError, match=r"`threshold`.*criterion='bmr'"):
        layer.prune(1.0)
    assert to_numpy(layer.keep_mask).all()
