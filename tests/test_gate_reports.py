"""Gates in reports, in `prune` and in `KLAnnealing`."""

import contextlib
import io
import json
import math

import keras
import numpy as np
import pytest

import keras_vd
from keras_vd import layers
from keras_vd.callbacks import KLAnnealing
from tests.helpers.arrays import random_inputs, to_float64, to_numpy
from tests.helpers.gates import (
    BERNOULLI,
    DEPENDENT,
    GATES,
    LOG_NORMAL,
    Gate,
    parametrize,
    set_open,
    set_threshold_case,
)
from tests.helpers.models import (
    ard_kl,
    classification_data,
    compile_quickly,
    inference_weight,
)
from tests.helpers.models import randomize as randomize_weights

KEPT = np.array([True, False, True, True, False, False])


def gates_only(kl_weight=None):
    """6 inputs of which 3 pass, then 5 units of which 2 do.

    Others: 6*5 + 5 of the first Dense, 5*3 + 3 of the second.
    """
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.LogNormalDropout(name="inputs", kl_weight=kl_weight),
            keras.layers.Dense(5, "relu", bias_initializer="ones"),
            layers.BetaBernoulliDropout(name="hidden", kl_weight=kl_weight),
            keras.layers.Dense(3, "softmax", bias_initializer="ones"),
        ]
    )
    set_threshold_case(model.layers[0], KEPT)
    set_threshold_case(model.layers[2], KEPT[:5] & [True, True, True, 0, 0])
    return model


def mixed():
    """Weights and a dependent gate, whose batch normalization is its own."""
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.VDDense(6, "relu", posterior="ard", name="first"),
            layers.DependentBetaBernoulliDropout(name="gate"),
            keras.layers.BatchNormalization(),
            layers.VDDense(3, "softmax", posterior="ard", name="last"),
        ]
    )
    randomize_weights(model)
    set_threshold_case(model.layers[1], KEPT)
    return model


@pytest.mark.core
def test_gates_alone():
    # By hand: counts as in the docstring of the model.
    report = keras_vd.sparsity_report(gates_only())
    assert (report.rows, report.groups) == ((), ())
    inputs, hidden = report.gates
    assert (inputs.name, inputs.units, inputs.active) == ("inputs", 6, 3)
    assert (hidden.name, hidden.units, hidden.active) == ("hidden", 5, 2)
    assert inputs.memory_percent == pytest.approx(50.0)
    assert hidden.memory_percent == pytest.approx(40.0)
    assert report.n_active == [3, 2]
    assert (report.weights, report.nonzero, report.biases) == (0, 0, 0)
    assert (report.others, report.nonzero_others) == (53, 53)
    assert report.sparsity == pytest.approx(1 - 5 / 11)
    assert report.nonzero_ratio == pytest.approx(11 / 5)
    assert report.nonzero_ratio_with_biases == report.nonzero_ratio
    assert report.nonzero_ratio_of_model == pytest.approx(1.0)
    values = report.to_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["gates"] == [
        {"name": "inputs", "units": 6, "active": 3, "memory_percent": 50.0},
        {"name": "hidden", "units": 5, "active": 2, "memory_percent": 40.0},
    ]
    assert values["n_active"] == [3, 2]
    # A ratio of nothing is no number in JSON.
    assert json.dumps(values, allow_nan=False)


def test_weights_and_gates():
    """Oracle: NumPy on the weights; the gate's state counts nowhere.

    Others: 4 times 6 of the BatchNormalization that is no gate's.
    """
    model = mixed()
    report = keras_vd.sparsity_report(model)
    kernels = [inference_weight(p) for p in keras_vd.variational_weights(model)]
    assert len(kernels) == 2
    nonzero = sum(np.count_nonzero(kernel) for kernel in kernels)
    assert (report.weights, report.nonzero) == (54, nonzero)
    assert (report.biases, report.others) == (9, 24)
    rows = [int((kernel != 0).any(axis=1).sum()) for kernel in kernels]
    assert report.n_active == [*rows, 3]
    assert report.sparsity == pytest.approx(1 - nonzero / 54)
    assert report.nonzero_ratio == pytest.approx(54 / nonzero)


def test_table():
    lines = str(keras_vd.sparsity_report(gates_only())).splitlines()
    (line,) = [line for line in lines if "inputs " in line and "3 of" in line]
    assert "3 of 6 units" in line
    assert "50.00" in line
    assert any("hidden" in x and "2 of 5 units" in x for x in lines)
    assert not any("variational weights" in line for line in lines)
    assert any("whole model" in line and " 53 " in line for line in lines)
    lines = str(keras_vd.sparsity_report(mixed())).splitlines()
    assert any("gate" in x and "3 of 6 units" in x for x in lines)
    assert any("variational weights" in x and " 54 " in x for x in lines)


def test_all_gates_closed():
    model = gates_only()
    for index in (0, 2):
        layer = model.layers[index]
        set_threshold_case(layer, np.zeros(layer.units, "bool"))
        assert layer.n_active == 0
    report = keras_vd.prune(model)
    assert report.n_active == [0, 0]
    assert report.sparsity == 1.0
    assert report.nonzero_ratio == math.inf
    assert report.to_dict()["nonzero_ratio"] is None
    assert "inf" in str(report) or "0 of 6" in str(report)


@parametrize
def test_names_of_gates(gate: Gate):
    # Two gates of one name in two submodels get two rows.
    blocks = [
        keras.Sequential([keras.Input((6,)), gate.layer(name="same")], name=x)
        for x in ("a", "b")
    ]
    model = keras.Sequential([keras.Input((6,)), *blocks])
    report = keras_vd.sparsity_report(model)
    assert len({row.name for row in report.gates}) == 2
    assert report.others == report.biases == 0
    # Nothing of nothing is zero.
    assert report.nonzero_ratio_of_model == 1.0


def test_kl_divergence_of_a_model():
    # Oracle: closed forms; neither weights nor scales apply.
    model = mixed()
    gate = model.get_layer("gate")
    expected = DEPENDENT.exact_kl(gate).sum()
    expected += sum(map(ard_kl, keras_vd.variational_weights(model)))
    gate.kl_weight.assign(7.0)
    assert keras_vd.kl_divergence(model) == pytest.approx(expected, rel=1e-5)


def test_prune_of_gates_alone():
    model = gates_only()
    for threshold in (3.0, 1.0, -5):
        with pytest.raises(ValueError, match=r"`threshold`.*gates only"):
            keras_vd.prune(model, threshold)
    assert all(to_float64(model.layers[i].keep_mask).all() for i in (0, 2))
    report = keras_vd.prune(model)
    assert report.n_active == [3, 2]
    np.testing.assert_array_equal(to_float64(model.layers[0].keep_mask), KEPT)
    set_open(model.layers[0])
    assert keras_vd.sparsity_report(model).n_active == [3, 2]


def test_a_threshold_beside_model_reduction_changes_nothing():
    # Oracle: an error, and the masks of all other weights as before.
    reduced = keras_vd.posteriors.Gaussian(criterion="bmr")
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras_vd.layers.VDDense(3),
            keras_vd.layers.VDDense(2, posterior=reduced),
        ]
    )
    with pytest.raises(ValueError, match="Argument `threshold` must be None"):
        keras_vd.prune(model, -20.0)
    for weight in keras_vd.variational_weights(model):
        assert to_numpy(weight.keep_mask).all()


@pytest.mark.parametrize("threshold", [None, 2.0, -20.0])
def test_prune_of_weights_and_gates(threshold):
    # Oracle: a threshold is one of log_alpha; gates have their own.
    model = mixed()
    report = keras_vd.prune(model, threshold)
    kept = to_float64(model.get_layer("gate").keep_mask)
    np.testing.assert_array_equal(kept, KEPT)
    assert report.gates[0].active == 3
    masks = [
        to_float64(p.keep_mask).any()
        for p in keras_vd.variational_weights(model)
    ]
    assert masks == [threshold != -20.0] * 2


def test_gates_are_no_variational_weights():
    assert keras_vd.variational_weights(gates_only()) == []
    labels = [p.label for p in keras_vd.variational_weights(mixed())]
    assert labels == ["first", "last"]


def test_a_shared_gate_counts_once():
    gate = LOG_NORMAL.make()
    inputs = keras.Input((6,))
    model = keras.Model(inputs, gate(keras.layers.ReLU()(gate(inputs))))
    report = keras_vd.sparsity_report(model)
    assert [row.units for row in report.gates] == [6]
    found = keras_vd.kl_divergence(model)
    assert found == pytest.approx(LOG_NORMAL.exact_kl(gate).sum(), rel=1e-5)


def test_unbuilt_gates_are_refused():
    for gate in GATES:
        model = keras.Sequential([gate.layer()], name="unbuilt")
        with pytest.raises(ValueError, match="'unbuilt' is not: call it"):
            keras_vd.sparsity_report(model)


@pytest.mark.integration
@pytest.mark.core
def test_annealing():
    """Oracle: the schedule by hand, and the report after each epoch.

    Every gate holds the weight of its epoch, the loss has it times the KL.
    """
    model = gates_only()
    model.compile(
        keras.optimizers.Adam(0.01),
        "sparse_categorical_crossentropy",
        metrics=["sparse_categorical_crossentropy"],
    )
    seen = []

    class Spy(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            gates = [model.layers[0], model.layers[2]]
            kl = sum(
                gate.exact_kl(x).sum()
                for gate, x in zip((LOG_NORMAL, BERNOULLI), gates, strict=True)
            )
            weights = [float(to_float64(x.kl_weight)) for x in gates]
            seen.append((weights, kl))

        def on_epoch_end(self, epoch, logs=None):
            report = keras_vd.sparsity_report(model)
            assert logs["n_active/inputs"] == report.gates[0].active
            assert logs["n_active/hidden"] == report.gates[1].active
            assert logs["sparsity"] == pytest.approx(report.sparsity)
            assert logs["nonzero_ratio"] == pytest.approx(report.nonzero_ratio)
            found = keras_vd.kl_divergence(model)
            assert logs["kl"] == pytest.approx(found, rel=1e-5)

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        history = model.fit(
            *classification_data(16),
            batch_size=16,
            epochs=4,
            verbose=0,
            callbacks=[KLAnnealing(16, 1, 2, 0.5), Spy()],
        ).history
    expected = [0.0, 0.0, 0.25 / 16, 0.5 / 16]
    for epoch, (weight, (found, kl)) in enumerate(
        zip(expected, seen, strict=True)
    ):
        assert found == pytest.approx([weight] * 2)
        likelihood = history["sparse_categorical_crossentropy"][epoch]
        total = likelihood + weight * kl
        assert history["loss"][epoch] == pytest.approx(total, rel=1e-5)
    assert "n_active: [3, 2]" in printed.getvalue()


def test_evaluation_has_no_kl():
    # Oracle: cross-entropy of the predictions, by NumPy.
    model = gates_only(kl_weight=1.0)
    compile_quickly(model)
    inputs, labels = classification_data(16)
    model.fit(inputs, labels, verbose=0)
    probabilities = to_float64(model.predict(inputs, verbose=0))
    expected = -np.log(probabilities[np.arange(16), labels]).mean()
    found = model.evaluate(inputs, labels, verbose=0)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.core
def test_variables_of_gates_do_not_decay():
    """Oracle: with zero gradients AdamW only multiplies by 1 - rate * decay.

    What a gate has of a batch normalization is its own, too.
    """
    model = keras.Sequential(
        [
            keras.Input((6,)),
            *(gate.make(kl_weight=None) for gate in GATES),
            keras.layers.BatchNormalization(),
        ]
    )
    plain = model.layers[-1]
    plain.gamma.assign(np.full(6, 2.0))
    model.compile(keras.optimizers.AdamW(0.5, weight_decay=0.1), "mse")
    annealing = KLAnnealing(16)
    annealing.set_model(model)
    annealing.on_train_begin()
    optimizer = model.optimizer
    variables = model.trainable_variables
    assert len(variables) == 2 + 2 + 5 + 1 + 2
    zeros = [keras.ops.zeros(variable.shape) for variable in variables]
    before = [to_float64(variable) for variable in variables]
    optimizer.build(variables)
    if keras.backend.backend() == "jax":
        after = optimizer.stateless_apply(
            [variable.value for variable in optimizer.variables],
            zeros,
            [variable.value for variable in variables],
        )[0]
    else:
        optimizer.apply(zeros, variables)
        after = variables
    for variable, old, new in zip(variables, before, after, strict=True):
        is_plain = variable is plain.gamma or variable is plain.beta
        factor = 0.95 if is_plain else 1.0
        np.testing.assert_allclose(to_float64(new), factor * old, rtol=1e-6)


def test_gates_take_part_in_a_resumed_run(tmp_path):
    # Identity: a run that is saved and loaded goes on with the same noise.
    model = gates_only(kl_weight=0.1)
    compile_quickly(model)
    data = classification_data(16)
    model.fit(*data, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    compile_quickly(loaded)
    inputs = random_inputs(4, 6)
    np.testing.assert_allclose(
        to_float64(loaded(inputs, training=True)),
        to_float64(model(inputs, training=True)),
        rtol=1e-5,
    )
