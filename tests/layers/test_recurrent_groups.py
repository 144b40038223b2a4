"""Group variables of recurrent layers: what a pruned group leaves.

Oracle of the products: `multiplier` in `tests/helpers/recurrent.py`, entry by
entry.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_vd
from keras_vd import layers
from tests.helpers.arrays import to_numpy
from tests.helpers.contract import assert_close, assert_equal, doom
from tests.helpers.models import randomize as randomize_model
from tests.helpers.models import set_kept
from tests.helpers.recurrent import (
    GATES,
    KERNELS,
    make_case,
    record_flipped,
    redraw,
    rewound,
    sigmoid,
)

ALL = ("input", "units", "gates")
CASES = {
    "simple_rnn": make_case(
        "rnn", layers.VDSimpleRNN, groups=("input", "units")
    ),
    "lstm": make_case("lstm", layers.VDLSTM, groups=ALL),
    "gru": make_case("gru", layers.VDGRU, groups=ALL),
    "gru_reset_before": make_case(
        "gru", layers.VDGRU, groups=ALL, reset_after=False
    ),
}
parametrize = pytest.mark.parametrize("name", CASES)
both_samples = pytest.mark.parametrize("weight_samples", ["batch", "sequence"])


def make(name, **arguments):
    """A layer that returns sequences, on a loop that needs no compiling."""
    case = CASES[name]
    return case, case.make(
        **{"return_sequences": True, "unroll": True, **arguments}
    )


def kill(layer, group, *indices):
    """Prune some groups, by their indices."""
    posterior = getattr(layer, f"{group}_group")
    mask = np.ones(posterior.theta.shape, "bool")
    mask[list(indices)] = False
    posterior.keep_mask.assign(mask)


@pytest.mark.core
@parametrize
def test_training_multiplies_the_draws(name):
    """Oracle: the plain layer with the drawn values, multiplied one by one."""
    case, layer = make(name, return_sequences=False)
    kill(layer, "units", 1)
    if "gates" in case.groups:
        kill(layer, "gates", 0, 5, 8)
    inputs = case.inputs()
    with rewound(layer):
        outputs = layer(inputs, training=True)
    drawn = redraw(layer)
    assert drawn["units"][1] == 0.0
    plain = case.plain(layer, [drawn[x] for x in case.weights + case.groups])
    assert_close(outputs, plain(inputs))
    spread = np.abs(drawn["input"] - to_numpy(layer.input_group.theta))
    assert spread.max() > 1e-3


@pytest.mark.integration
@parametrize
def test_sequences_share_the_group_variables(name, monkeypatch):
    """Oracle: mean and deviation of each kernel, multiplied one by one."""
    drawn = record_flipped(monkeypatch)
    case, layer = make(name, weight_samples="sequence")
    with rewound(layer):
        layer(case.inputs(), training=True)
    values = redraw(layer)
    scales = {group: values[group] for group in case.groups}
    thetas = {
        weight: to_numpy(getattr(layer.cell, weight)) for weight in KERNELS
    }
    expected = case.multiply(thetas, scales)
    sampled = case.multiply({w: values[w] for w in KERNELS}, scales)
    for kernel, weight in zip(drawn, KERNELS, strict=True):
        assert_close(kernel.mean, expected[weight])
        deviation = sampled[weight] - expected[weight]
        assert_close(kernel.deviation, deviation)


@pytest.mark.integration
@pytest.mark.core
@parametrize
@both_samples
@pytest.mark.parametrize("training", [False, True])
def test_pruned_unit_is_zero(name, weight_samples, training):
    """Oracle: 0, exactly, at all steps; the others do not read its state."""
    case, layer = make(name, weight_samples=weight_samples)
    kill(layer, "units", 1)
    inputs = case.inputs()
    with rewound(layer):
        outputs = to_numpy(layer(inputs, training=training))
    assert np.all(outputs[..., 1] == 0.0)
    assert np.all(outputs[..., [0, 2]] != 0.0)
    num_states = 1 + isinstance(layer, layers.VDLSTM)
    states = [np.zeros((3, 3), "float32") for _ in range(num_states)]
    states[0][:, 1] = 0.7
    with rewound(layer):
        changed = layer(inputs, initial_state=states, training=training)
    assert_close(to_numpy(changed)[..., [0, 2]], outputs[..., [0, 2]])


@pytest.mark.integration
@pytest.mark.core
@parametrize
@both_samples
@pytest.mark.parametrize("training", [False, True])
def test_pruned_input_is_not_read(name, weight_samples, training):
    """Identity: whatever that entry of the inputs is."""
    case, layer = make(name, weight_samples=weight_samples)
    kill(layer, "input", 0)
    outputs = []
    for value in (0.0, 9.0):
        inputs = case.inputs()
        inputs[..., 0] = value
        with rewound(layer):
            outputs.append(to_numpy(layer(inputs, training=training)))
    assert_equal(*outputs)
    inputs[..., 1] += 1.0
    with rewound(layer):
        changed = to_numpy(layer(inputs, training=training))
    # One entry of one step may move by next to nothing, a sequence may not.
    moved = np.abs(changed - outputs[0]).reshape(len(changed), -1)
    assert moved.max(axis=1).min() > 1e-5


def constant_gates(layer, biases):
    """States at each step of a layer whose gates are all constant."""
    blocks = np.split(biases, GATES[type(layer).__name__][0])
    h = c = np.zeros(len(blocks[0]))
    states = []
    for _ in range(4):
        if isinstance(layer, layers.VDLSTM):
            i, f, candidate, o = blocks
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(candidate)
            h = sigmoid(o) * np.tanh(c)
        else:
            z, _, candidate = blocks
            h = sigmoid(z) * h + (1.0 - sigmoid(z)) * np.tanh(candidate)
        states.append(h)
    return np.stack(states)


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("name", ["lstm", "gru", "gru_reset_before"])
@both_samples
@pytest.mark.parametrize("training", [False, True])
def test_pruned_gates_are_their_activated_bias(name, weight_samples, training):
    """Oracle: Keras' equations with constant gates, at all steps.

    With `reset_after` the candidate's second bias is multiplied by the reset
    gate, which is pruned here too or not; it has to go with the candidate.
    """
    case, layer = make(name, weight_samples=weight_samples)
    num_columns = layer.cell.kernel.shape[1]
    inputs = case.inputs()
    bias = to_numpy(layer.cell.bias)
    if bias.ndim == 2:
        bias = bias[0] + bias[1] * (np.arange(num_columns) < 6)
    expected = constant_gates(layer, bias)
    kill(layer, "gates", *range(num_columns))
    outputs = to_numpy(layer(inputs, training=training))
    assert_close(outputs, np.stack([expected] * 3))
    if "gru" in name:
        # The reset gates of columns 3 to 5 live, and change nothing.
        pruned = [i for i in range(num_columns) if i not in (3, 4, 5)]
        kill(layer, "gates", *pruned)
        outputs = to_numpy(layer(inputs, training=training))
        assert_close(outputs, np.stack([expected] * 3))


@pytest.mark.core
@pytest.mark.parametrize("gate", range(4))
def test_one_pruned_gate_of_an_lstm(gate):
    """Oracle: a Keras layer whose columns of that gate and unit are zero."""
    case, layer = make("lstm")
    column = gate * 3 + 1
    kill(layer, "gates", column)
    inputs = case.inputs()
    thetas = {w: np.array(to_numpy(getattr(layer.cell, w))) for w in KERNELS}
    for values in thetas.values():
        values[:, column] = 0.0
    for group in ("input", "units"):
        getattr(layer, f"{group}_group").weight.assign(
            np.ones(2 if group == "input" else 3)
        )
    layer.gates_group.weight.assign(np.ones(12))
    plain = keras.layers.LSTM(3, return_sequences=True, unroll=True)
    plain.build((None, 4, 2))
    for weight, values in thetas.items():
        getattr(plain.cell, weight).assign(values)
    plain.cell.bias.assign(to_numpy(layer.cell.bias))
    assert_close(layer(inputs), plain(inputs))


@pytest.mark.core
@parametrize
def test_report_of_pruned_groups(name):
    """Oracle: counts in NumPy of the multiplied kernels."""
    case, layer = make(name)
    model = keras.Sequential([keras.Input((4, 2)), layer])
    kept = {}
    for posterior in case.posteriors(layer):
        kept[posterior.name] = doom(posterior)
    report = keras_vd.sparsity_report(model)
    means = {w: kept[f"{w}_posterior"] * 1.0 for w in KERNELS}
    scales = {g: kept[f"{g}_group"] * 1.0 for g in case.groups}
    means = case.multiply(means, scales)
    assert [row.nonzero for row in report.rows] == [
        np.count_nonzero(means[weight]) for weight in KERNELS
    ]
    assert [row.weights for row in report.rows] == [
        means[weight].size for weight in KERNELS
    ]
    assert [row.active_inputs for row in report.rows] == [
        np.count_nonzero(means[weight].any(axis=1)) for weight in KERNELS
    ]
    assert [(row.name, row.groups, row.active) for row in report.groups] == [
        (f"{layer.name}/{g}", scales[g].size, np.count_nonzero(scales[g]))
        for g in case.groups
    ]
    assert report.biases == np.size(to_numpy(layer.cell.bias))
    assert report.others == report.nonzero_others == 0
    assert report.weights == sum(means[weight].size for weight in KERNELS)
    values = report.to_dict()["groups"]
    assert [row["active"] for row in values] == [
        row.active for row in report.groups
    ]
    table = str(report)
    for row in report.groups:
        assert row.name in table
        assert f"{row.active} of {row.groups} groups" in table


def grouped_model():
    """Every kind of layer with groups, one of them in `Bidirectional`."""
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.VDEmbedding(
                9, 4, mask_zero=True, groups=("vocabulary", "features")
            ),
            keras.layers.Bidirectional(
                layers.VDLSTM(3, return_sequences=True, groups=ALL)
            ),
            layers.VDSimpleRNN(
                4,
                return_sequences=True,
                groups=("units", "input"),
                weight_samples="sequence",
            ),
            layers.VDGRU(3, groups=ALL),
            layers.VDDense(2, groups=("output", "input")),
        ]
    )


def set_up(model):
    """Random values everywhere, groups included; some of each are pruned."""
    randomize_model(model)
    for posterior in keras_vd.variational_weights(model):
        kept = np.arange(posterior.theta.shape[0]) != 1
        if posterior.is_group:
            set_kept(posterior, kept)
    return np.random.default_rng(0).integers(0, 9, (5, 6))


@pytest.mark.integration
@pytest.mark.core
def test_to_deterministic():
    """Oracle: the variational model; no class of ours is left."""
    model = grouped_model()
    ids = set_up(model)
    plain = keras_vd.to_deterministic(model)
    expected = to_numpy(model(ids))
    assert_close(plain(ids), expected)
    assert len(np.unique(expected)) > 5
    assert "keras_vd" not in plain.to_json()
    assert len(plain.weights) == 1 + 3 * 4 + 2
    forward = plain.layers[1].forward_layer
    assert type(forward) is keras.layers.LSTM
    assert np.any(to_numpy(forward.cell.kernel) == 0.0)
    # A pruned unit is exactly 0 in the plain layer as well.
    hidden = keras.Sequential(plain.layers[:2])
    assert np.all(to_numpy(hidden(ids))[..., [1, 4]] == 0.0)


@pytest.mark.integration
@pytest.mark.core
def test_saved_model_is_the_same(tmp_path):
    """Oracle: the model that was saved, and its report."""
    model = grouped_model()
    ids = set_up(model)
    report = keras_vd.prune(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_close(loaded(ids), model(ids))
    assert keras_vd.sparsity_report(loaded) == report
    assert {row.active for row in report.groups} == {
        row.groups - 1 for row in report.groups
    }


@pytest.mark.integration
@pytest.mark.core
def test_logs_of_annealing():
    """Oracle: `GroupRow`s; each group has a KL weight of its own, all set."""
    model = grouped_model()
    ids = set_up(model)
    logs = {}
    annealing = keras_vd.callbacks.KLAnnealing(10, 0, 0, verbose=0)
    annealing.set_model(model)
    annealing.on_epoch_begin(0)
    annealing.on_epoch_end(0, logs)
    for row in keras_vd.sparsity_report(model).groups:
        assert logs[f"n_active/{row.name}"] == row.active == row.groups - 1
    names = [name.split("/")[-1] for name in logs if "/" in name]
    assert names.count("gates") == 3
    assert names.count("vocabulary") == names.count("features") == 1
    model(ids, training=True)
    total = sum(float(to_numpy(loss)) for loss in model.losses)
    expected = keras_vd.kl_divergence(model) / 10.0
    assert total == pytest.approx(expected, rel=1e-5)
    assert len(model.losses) == len(keras_vd.variational_weights(model))


def test_report_counts_the_biases_of_inference():
    """Oracle: the plain layer of to_deterministic, counted."""
    model = keras.Sequential(
        [keras.Input((4, 3)), layers.VDGRU(2, groups=("units", "gates"))]
    )
    layer = model.layers[0]
    layer.cell.bias.assign(np.ones((2, 6)))
    layer.units_group.log_sigma2.assign([9.0, -9.0])
    layer.gates_group.log_sigma2.assign([-9.0] * 5 + [9.0])
    report = keras_vd.sparsity_report(model)
    plain = keras_vd.to_deterministic(model)
    bias = to_numpy(plain.layers[0].cell.bias)
    # Unit 0: its candidate's two biases. Unit 1: the recurrent one.
    assert report.nonzero_biases == np.count_nonzero(bias) == 12 - 3
