"""The layer contract for recurrent layers, and where their noise enters.

Oracles are loops over time steps in NumPy, see `tests/helpers/recurrent.py`.
"""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest

import keras_vd
from keras_vd import layers, posteriors
from tests.helpers.arrays import to_numpy
from tests.helpers.contract import (
    KL_WEIGHT,
    MAX_Z,
    LayerContract,
    MixedPrecisionContract,
    assert_close,
    assert_equal,
    assert_moments,
    check_every_argument,
    parametrize,
    randomize,
)
from tests.helpers.recurrent import (
    KERNELS,
    make_case,
    record_flipped,
    redraw,
    rewound,
    sequence_weights,
    slow_rnn,
)

LSTM_GROUPS = ("input", "units", "gates")
CASES = [
    make_case("simple_rnn", layers.VDSimpleRNN, core=True),
    make_case(
        "simple_rnn_groups",
        layers.VDSimpleRNN,
        groups=("units", "input"),
        use_bias=False,
        return_sequences=True,
    ),
    make_case("lstm", layers.VDLSTM),
    make_case(
        "lstm_by_sequence",
        layers.VDLSTM,
        core=True,
        weight_samples="sequence",
        groups=LSTM_GROUPS,
    ),
    make_case(
        "lstm_no_bias",
        layers.VDLSTM,
        use_bias=False,
        go_backwards=True,
        return_sequences=True,
        implementation=1,
    ),
    make_case("lstm_groups", layers.VDLSTM, groups=LSTM_GROUPS, unroll=True),
    make_case("gru", layers.VDGRU, core=True, groups=("gates", "units")),
    make_case(
        "gru_by_sequence",
        layers.VDGRU,
        weight_samples="sequence",
        implementation=1,
    ),
    make_case(
        "gru_reset_before",
        layers.VDGRU,
        groups=LSTM_GROUPS,
        reset_after=False,
    ),
]
LAYERS = [
    make_case("simple_rnn", layers.VDSimpleRNN, core=True),
    make_case("lstm", layers.VDLSTM, core=True),
    make_case("lstm_split", layers.VDLSTM, implementation=1),
    make_case("lstm_no_bias", layers.VDLSTM, use_bias=False),
    make_case("gru", layers.VDGRU, core=True),
    make_case("gru_split", layers.VDGRU, implementation=1),
    make_case("gru_no_bias", layers.VDGRU, use_bias=False),
    make_case("gru_reset_before", layers.VDGRU, core=True, reset_after=False),
    make_case(
        "gru_reset_before_split",
        layers.VDGRU,
        reset_after=False,
        implementation=1,
    ),
]


@parametrize(CASES)
class TestContract(LayerContract):
    pass


@parametrize(case for case in CASES if case.core)
class TestMixedPrecision(MixedPrecisionContract):
    pass


@parametrize(LAYERS)
def test_batch_sample(case):
    """Oracle: loops over the steps with one draw of each kernel."""
    layer, inputs = case.make(return_sequences=True), case.inputs()
    outputs = []
    for _ in range(2):
        with rewound(layer):
            outputs.append(to_numpy(layer(inputs, training=True)))
        weights = redraw(layer)
        expected = [slow_rnn(layer, x, weights)[0] for x in inputs]
        assert_close(outputs[-1], np.stack(expected), 1e-5)
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-2


@parametrize(LAYERS)
def test_samples_per_sequence(case, monkeypatch):
    """Oracle: loops over the steps, with weights of each sequence's own."""
    drawn = record_flipped(monkeypatch)
    layer = case.make(return_sequences=True, weight_samples="sequence")
    inputs = case.inputs(4)
    with rewound(layer):
        outputs = layer(inputs, training=True)
    assert len(drawn) == len(KERNELS)
    drawn = dict(zip(KERNELS, drawn, strict=True))
    found = set()
    for name, weight in redraw(layer).items():
        assert_equal(drawn[name].mean + drawn[name].deviation, weight)
        for signs in (drawn[name].input_signs, drawn[name].output_signs):
            found |= set(np.unique(to_numpy(signs)))
    # All of them together: 8 signs alone are equal every now and then.
    assert found == {-1.0, 1.0}
    weights = [sequence_weights(drawn, b) for b in range(4)]
    expected = [
        slow_rnn(layer, x, own)[0]
        for x, own in zip(inputs, weights, strict=True)
    ]
    assert_close(outputs, np.stack(expected), 1e-5)
    # Two sequences may well have the same few signs; all four have not.
    assert any(
        np.abs(weights[0][name] - other[name]).max() > 1e-2
        for other in weights[1:]
        for name in KERNELS
    )


@pytest.mark.integration
@pytest.mark.core
def test_weights_of_sequences_are_uncorrelated_samples():
    """Oracle: theta and sigma2; correlations of 0 between two sequences.

    A linear layer without bias returns row 0 of the kernel for the first two
    sequences, and of the recurrent kernel for the others. An entry's products
    in two sequences have variance E d^4 = 3 sigma^4, hence the bound.
    """
    keras.utils.set_random_seed(0)
    num_draws = 250
    simple = make_case(
        "linear",
        layers.VDSimpleRNN,
        activation=None,
        use_bias=False,
        unroll=True,
    )
    layer = simple.make(weight_samples="sequence")
    unit_inputs = np.zeros((4, 1, 2), "float32")
    unit_inputs[:2, :, 0] = 1.0
    unit_state = np.zeros((4, 3), "float32")
    unit_state[2:, 0] = 1.0
    rows = np.stack(
        [
            to_numpy(
                layer(unit_inputs, initial_state=unit_state, training=True)
            )
            for _ in range(num_draws)
        ]
    ).astype("float64")
    for sequences, weight in (((0, 1), "kernel"), ((2, 3), "recurrent_kernel")):
        posterior = getattr(layer, f"{weight}_posterior")
        mean = to_numpy(posterior.theta)[0]
        variance = np.exp(to_numpy(posterior.log_sigma2))[0]
        for sequence in sequences:
            assert_moments(rows[:, sequence], mean, variance)
    correlation = np.corrcoef(rows.reshape(num_draws, -1), rowvar=False)
    np.fill_diagonal(correlation, 0.0)
    assert np.abs(correlation).max() < MAX_Z * np.sqrt(3.0 / num_draws)


@pytest.mark.core
def test_signs_are_fair_and_independent(monkeypatch):
    """Oracle: means and correlations of 0, within 5 / sqrt(n)."""
    keras.utils.set_random_seed(0)
    drawn, num_sequences = record_flipped(monkeypatch), 2000
    layer = make_case("lstm", layers.VDLSTM).make(weight_samples="sequence")
    layer(np.ones((num_sequences, 1, 2), "float32"), training=True)
    signs = [
        to_numpy(part)
        for kernel in drawn
        for part in (kernel.input_signs, kernel.output_signs)
    ]
    assert [part.shape[1] for part in signs] == [2, 12, 3, 12]
    signs = np.concatenate(signs, axis=1)
    assert np.abs(signs.mean(0)).max() < MAX_Z / np.sqrt(num_sequences)
    correlation = np.corrcoef(signs, rowvar=False)
    np.fill_diagonal(correlation, 0.0)
    assert np.abs(correlation).max() < MAX_Z / np.sqrt(num_sequences)


@pytest.mark.core
def test_two_sequences_of_one_call_share_the_size_of_the_noise():
    """Oracle: signs only; |W_b - theta| is the same for all sequences."""
    simple = make_case(
        "linear", layers.VDSimpleRNN, activation=None, use_bias=False
    )
    layer = simple.make(weight_samples="sequence", unroll=True)
    inputs = np.zeros((6, 1, 2), "float32")
    inputs[..., 0] = 1.0
    rows = to_numpy(layer(inputs, training=True))
    deviations = rows - to_numpy(layer.cell.kernel)[0]
    assert_close(np.abs(deviations), np.abs(deviations[:1]).repeat(6, 0), 1e-5)
    assert len(np.unique(deviations > 0, axis=0)) > 1


@parametrize(LAYERS[:2] + LAYERS[-2:])
@pytest.mark.parametrize("weight_samples", ["batch", "sequence"])
def test_nothing_is_drawn_inside_the_loop(case, weight_samples):
    """Identity: as much noise for 2 steps as for 7; equal at all steps."""
    layer, seeds = (
        case.make(weight_samples=weight_samples, return_sequences=True),
        [],
    )
    for posterior in case.posteriors(layer)[1:]:
        posterior.weight.assign(np.zeros(posterior.weight.shape))
        posterior.log_sigma2.assign(np.full(posterior.weight.shape, -80.0))
    for num_steps in (2, 7):
        inputs = np.ones((3, num_steps, 2), "float32")
        with rewound(layer):
            outputs = to_numpy(layer(inputs, training=True))
            generators = [x.seed_generator for x in case.posteriors(layer)]
            seeds.append([np.array(to_numpy(g.state)) for g in generators])
    assert_equal(seeds[0], seeds[1])
    if case.layer is layers.VDSimpleRNN:
        assert_close(outputs, outputs[:, :1].repeat(7, axis=1))


@pytest.mark.integration
@parametrize(CASES)
def test_kl_loss_knows_neither_batch_nor_steps(case):
    """Oracle: KL_WEIGHT times `kl_divergence`, for every shape."""
    layer = case.make(unroll=False)
    expected = KL_WEIGHT * keras_vd.kl_divergence(layer)
    for shape in [(1, 2, 2), (5, 2, 2), (2, 6, 2)]:
        layer(np.ones(shape, "float32"), training=True)
        assert len(layer.losses) == len(case.posteriors(layer))
        total = sum(float(to_numpy(loss)) for loss in layer.losses)
        assert total == pytest.approx(expected, rel=1e-6)
    layer(np.ones((1, 2, 2), "float32"))
    assert layer.losses == []


@pytest.mark.integration
@pytest.mark.parametrize("implementation", [1, 2])
@pytest.mark.parametrize("kind", [layers.VDLSTM, layers.VDGRU])
def test_dropout_goes_with_both(kind, implementation):
    """Identity: with all inputs dropped, or none, the loop without dropout.

    Dropout masks come from the cell's seeds, which are the same.
    """
    keras.utils.set_random_seed(0)
    arguments = {"dropout": 0.5, "recurrent_dropout": 0.5, "seed": 3}
    results = []
    for weight_samples in ("batch", "sequence"):
        dropping = make_case(
            "dropping", kind, implementation=implementation, **arguments
        )
        layer = dropping.make(weight_samples=weight_samples)
        for posterior in dropping.posteriors(layer):
            posterior.log_sigma2.assign(np.full(posterior.theta.shape, -80.0))
        results.append(to_numpy(layer(dropping.inputs(), training=True)))
        plain = dropping.plain(
            layer, [x.theta for x in dropping.posteriors(layer)]
        )
        assert_close(results[-1], plain(dropping.inputs(), training=True))
    assert_close(results[0], results[1])
    assert np.abs(results[0] - to_numpy(layer(dropping.inputs()))).max() > 1e-2


@pytest.mark.core
@pytest.mark.parametrize(
    ("layer", "arguments", "message"),
    [
        (layers.VDLSTM, {"groups": ("output",)}, "groups"),
        (layers.VDLSTM, {"groups": "units"}, "groups"),
        (layers.VDLSTM, {"groups": ("units", "units")}, "groups"),
        (layers.VDSimpleRNN, {"groups": ("gates",)}, "groups"),
        (layers.VDGRU, {"groups": ("vocabulary",)}, "groups"),
        (layers.VDGRU, {"groups": 2}, "groups"),
        (layers.VDGRU, {"groups": None}, "groups"),
        (layers.VDLSTM, {"weight_samples": "local"}, "weight_samples"),
        (layers.VDLSTM, {"weight_samples": "weight"}, "weight_samples"),
        (layers.VDGRU, {"weight_samples": None}, "weight_samples"),
    ],
)
def test_bad_arguments(layer, arguments, message):
    """Errors name the argument, what is allowed and what came."""
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"Argument `{message}`") as error:
        layer(3, **arguments)
    allowed = {
        "groups": sorted({"input", "units", "gates"}),
        "weight_samples": ["batch", "sequence"],
    }[name]
    if layer is layers.VDSimpleRNN:
        allowed.remove("gates")
        assert "'gates'" not in str(error.value).split("Received")[0]
    for choice in allowed:
        assert f"'{choice}'" in str(error.value)
    assert f"{name}={value!r}" in str(error.value)


@pytest.mark.core
@pytest.mark.parametrize(
    "layer", [layers.VDSimpleRNN, layers.VDLSTM, layers.VDGRU]
)
def test_units_need_an_activation_that_is_zero_at_zero(layer):
    with pytest.raises(ValueError, match="`activation` is 0 at 0") as error:
        layer(3, groups=("units",), activation="sigmoid", name="mine")
    assert "'mine'" in str(error.value)
    assert "0.5 there" in str(error.value)
    layer(3, groups=("units",), activation="relu")
    layer(3, activation="sigmoid")


@pytest.mark.core
def test_input_noise_is_refused():
    posterior = posteriors.VD(noise="input")
    with pytest.raises(ValueError, match="`noise` must be 'weight'") as error:
        layers.VDGRU(3, posterior=posterior, name="mine")
    assert "noise='input'" in str(error.value)
    assert "'mine'" in str(error.value)
    layers.VDGRU(3, posterior="vd")


@pytest.mark.core
@pytest.mark.parametrize("weight_samples", ["batch", "sequence"])
def test_missing_kl_weight(weight_samples):
    """Also of the groups alone, after the kernels' were set."""
    gru = make_case("gru", layers.VDGRU, groups=("units",))
    layer = gru.make(kl_weight=None, weight_samples=weight_samples, name="mine")
    layer(gru.inputs())
    with pytest.raises(ValueError, match=r"'mine.*KLAnnealing"):
        layer(gru.inputs(), training=True)
    for name in KERNELS:
        getattr(layer, f"{name}_posterior").kl_weight.assign(0.1)
    with pytest.raises(ValueError, match=r"'mine/units'.*KLAnnealing"):
        layer(gru.inputs(), training=True)
    layer.units_group.kl_weight.assign(0.1)
    layer(gru.inputs(), training=True)


def test_labels():
    """Oracle: by hand."""
    layer = make_case("lstm", layers.VDLSTM, groups=("gates",)).make(
        name="lstm"
    )
    assert [x.label for x in keras_vd.variational_weights(layer)] == [
        "lstm/kernel",
        "lstm/recurrent_kernel",
        "lstm/gates",
    ]
    assert [x.is_group for x in keras_vd.variational_weights(layer)] == [
        False,
        False,
        True,
    ]


@pytest.mark.core
@pytest.mark.parametrize(
    "posterior",
    ["vd", "ard", posteriors.Gaussian(share="unit", estimator="weight")],
)
def test_other_posteriors(posterior):
    """Oracle: loops with the weights that the posterior draws.

    The posterior's own `estimator` plays no part.
    """
    lstm = make_case("lstm", layers.VDLSTM, unroll=True)
    layer, inputs = lstm.make(posterior=posterior), lstm.inputs()
    with rewound(layer):
        outputs = layer(inputs, training=True)
    weights = redraw(layer)
    assert np.abs(weights["kernel"] - to_numpy(layer.cell.kernel)).max() > 1e-2
    expected = [slow_rnn(layer, x, weights)[1][0] for x in inputs]
    assert_close(outputs, np.stack(expected), 1e-5)


@pytest.mark.integration
def test_random_seed_makes_training_reproducible():
    """Identity: same seed, same outputs; else not."""
    gru, results = make_case("gru", layers.VDGRU, unroll=True), []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        layer = gru.layer(
            3, kl_weight=0.1, weight_samples="sequence", unroll=True
        )
        layer.build((None, 4, 2))
        randomize(layer)
        results.append(to_numpy(layer(gru.inputs(), training=True)))
    assert_equal(results[0], results[1])
    assert np.abs(results[0] - results[2]).max() > 1e-3


REGULARIZATION = {"regularizer": "l2", "constraint": "non_neg"}
ARGUMENTS = {
    "units": 3,
    "activation": "relu",
    "use_bias": False,
    "kernel_initializer": "ones",
    "recurrent_initializer": "ones",
    "bias_initializer": "ones",
    **{
        f"{weight}_{kind}": value
        for weight in ("kernel", "recurrent", "bias")
        for kind, value in REGULARIZATION.items()
    },
    "activity_regularizer": "l2",
    "dropout": 0.25,
    "recurrent_dropout": 0.5,
    "seed": 3,
    "return_sequences": True,
    "return_state": True,
    "go_backwards": True,
    "stateful": True,
    "unroll": True,
    "groups": ("units", "input"),
    "weight_samples": "sequence",
}
GATED = {"recurrent_activation": "hard_sigmoid", "use_cudnn": False}


@pytest.mark.parametrize(
    ("layer", "arguments"),
    [
        (layers.VDSimpleRNN, {}),
        (layers.VDLSTM, {"unit_forget_bias": False, **GATED}),
        (layers.VDGRU, {"reset_after": False, **GATED}),
    ],
)
def test_every_argument_survives_the_config(layer, arguments):
    is_simple = layer is layers.VDSimpleRNN
    check_every_argument(
        layer,
        ARGUMENTS | arguments,
        ignored_by_keras={"activity_regularizer"} if is_simple else (),
    )


@pytest.mark.integration
def test_weight_samples_survive_files(tmp_path):
    """Oracle: how the two use the batch."""
    gru = make_case("gru", layers.VDGRU, weight_samples="sequence")
    model = keras.Sequential([keras.Input((4, 2)), gru.make()])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    inputs = np.repeat(gru.inputs(1), 6, axis=0)
    for found in (model, loaded, keras.models.clone_model(model)):
        outputs = to_numpy(found(inputs, training=True))
        assert np.abs(outputs - outputs[:1]).max() > 1e-3
    whole = dataclasses.replace(gru, weight_samples="batch").make()
    outputs = to_numpy(whole(inputs, training=True))
    assert_close(outputs, outputs[:1].repeat(6, axis=0))
