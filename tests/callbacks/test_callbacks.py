import contextlib
import csv
import io
import math

import keras
import numpy as np
import pytest

from keras_vd import kl_divergence, sparsity_report, variational_weights
from keras_vd.callbacks import KLAnnealing
from tests.helpers.arrays import to_float64
from tests.helpers.models import (
    ard_kl,
    classification_data,
    compile_quickly,
    inference_weight,
    mlp,
    nested,
    plain_mlp,
    randomize,
)

# (options, {epoch: w}), by hand from the definition of the schedule.
SCHEDULES = {
    "linear": (
        {},
        {0: 0, 4: 0, 5: 0, 6: 1 / 15, 10: 1 / 3, 19: 14 / 15, 20: 1, 999: 1},
    ),
    "cosine": (
        {"schedule": "cosine", "start_epoch": 2, "warmup_epochs": 4},
        {1: 0, 2: 0, 3: (1 - math.sqrt(0.5)) / 2, 4: 0.5, 6: 1, 7: 1}
        | {5: (1 + math.sqrt(0.5)) / 2},
    ),
    "step": ({"schedule": "step"}, {0: 0, 5: 0, 6: 0, 19: 0, 20: 1, 21: 1}),
    "callable": ({"schedule": lambda epoch: epoch**2}, {0: 0, 1: 1, 3: 9}),
    "no warm-up": (
        {"start_epoch": 3, "warmup_epochs": 0},
        {0: 0, 2: 0, 3: 1, 4: 1},
    ),
    "full from the first epoch": (
        {"start_epoch": 0, "warmup_epochs": 0},
        {0: 1, 1: 1},
    ),
    "at once": (
        {"start_epoch": 0, "warmup_epochs": 2},
        {0: 0, 1: 0.5, 2: 1},
    ),
}


@pytest.mark.core
@pytest.mark.parametrize("max_weight", [1.0, 0.25, 0])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_values(name, max_weight):
    # Oracle: values by hand.
    options, expected = SCHEDULES[name]
    annealing = KLAnnealing(50, max_weight=max_weight, **options)
    found = {epoch: annealing.weight_at(epoch) for epoch in expected}
    wanted = {epoch: max_weight * w / 50 for epoch, w in expected.items()}
    assert found == pytest.approx(wanted, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "step"])
def test_schedule_never_falls(schedule):
    annealing = KLAnnealing(1, 2, 7, 3.0, schedule)
    weights = [annealing.weight_at(epoch) for epoch in range(15)]
    assert weights == sorted(weights)
    assert weights[2] == 0.0
    assert weights[9] == 3.0


@pytest.mark.core
@pytest.mark.parametrize(
    ("options", "error", "allowed"),
    [
        ({"num_examples": 0}, ValueError, "at least 1"),
        ({"num_examples": -3}, ValueError, "at least 1"),
        ({"num_examples": 60000.0}, TypeError, "an integer"),
        ({"num_examples": True}, TypeError, "an integer"),
        ({"num_examples": "60000"}, TypeError, "an integer"),
        ({"num_examples": None}, TypeError, "an integer"),
        ({"start_epoch": -1}, ValueError, "at least 0"),
        ({"start_epoch": 2.5}, TypeError, "an integer"),
        ({"warmup_epochs": -1}, ValueError, "at least 0"),
        ({"warmup_epochs": "15"}, TypeError, "an integer"),
        ({"max_weight": -0.1}, ValueError, "at least 0"),
        ({"max_weight": math.nan}, ValueError, "finite"),
        ({"max_weight": math.inf}, ValueError, "finite"),
        ({"max_weight": "1"}, TypeError, "finite number"),
        ({"schedule": "exponential"}, ValueError, "'linear'"),
        ({"schedule": None}, ValueError, "'cosine'"),
    ],
)
def test_bad_arguments_are_named(options, error, allowed):
    # The message has the argument, what is allowed and what came.
    with pytest.raises(error) as caught:
        KLAnnealing(**{"num_examples": 10, **options})
    ((argument, received),) = options.items()
    for part in (f"`{argument}`", allowed, f"{argument}={received!r}"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("value", "error"),
    [(-0.1, ValueError), (math.nan, ValueError), ("1", TypeError)],
)
def test_bad_value_of_a_callable_schedule(value, error):
    annealing = KLAnnealing(10, schedule=lambda epoch: value)
    with pytest.raises(error, match=r"schedule\(epoch\)"):
        annealing.weight_at(0)


@pytest.mark.core
def test_model_without_variational_layers_is_refused():
    model = plain_mlp()
    compile_quickly(model)
    with pytest.raises(ValueError, match="at least one variational layer"):
        model.fit(
            *classification_data(4), callbacks=[KLAnnealing(4)], verbose=0
        )


class Spy(keras.callbacks.Callback):
    """Reads weights and counts for itself, apart from the code under test."""

    def __init__(self):
        super().__init__()
        self.begin, self.end, self.logs = [], [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.begin.append(self.look())

    def on_epoch_end(self, epoch, logs=None):
        self.end.append(self.look())
        self.logs.append(dict(logs))

    def look(self):
        posteriors = variational_weights(self.model)
        kernels = [inference_weight(posterior) for posterior in posteriors]
        zeros = sum((kernel == 0).sum() for kernel in kernels)
        weights = sum(kernel.size for kernel in kernels)
        return {
            "kl": sum(map(ard_kl, posteriors)),
            "kl_weights": [float(to_float64(p.kl_weight)) for p in posteriors],
            "sparsity": zeros / weights,
            "nonzero_ratio": weights / (weights - zeros),
            # All of them are kernels of shape (inputs, units).
            "n_active": [int((k != 0).any(axis=1).sum()) for k in kernels],
        }


class Run:
    """Four epochs of one step each on a nested model."""

    NUM_EXAMPLES = 16
    # start_epoch=1, warmup_epochs=2, max_weight=0.5, by hand.
    WEIGHTS = (0.0, 0.0, 0.25 / 16, 0.5 / 16)
    NAMES = ("first", "steps", "last")

    def __init__(self, directory):
        keras.utils.set_random_seed(1)
        self.model = nested()
        randomize(self.model)
        self.model.compile(
            keras.optimizers.Adam(0.02),
            "sparse_categorical_crossentropy",
            metrics=["sparse_categorical_crossentropy"],
        )
        inputs, labels = classification_data(self.NUM_EXAMPLES)
        self.data = inputs, labels
        self.spy = Spy()
        path = directory / "log.csv"
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            self.history = self.model.fit(
                inputs,
                labels,
                validation_data=(inputs[:8], labels[:8]),
                batch_size=self.NUM_EXAMPLES,
                epochs=4,
                verbose=0,
                callbacks=[
                    KLAnnealing(self.NUM_EXAMPLES, 1, 2, 0.5),
                    self.spy,
                    keras.callbacks.CSVLogger(path),
                ],
            ).history
        self.printed = printed.getvalue()
        with path.open() as file:
            self.csv = list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("run"))


@pytest.mark.integration
@pytest.mark.core
def test_every_posterior_holds_the_weight_during_the_epoch(run):
    # Oracle: the schedule by hand; nested and TimeDistributed layers too.
    for epoch, weight in enumerate(run.WEIGHTS):
        for moment in (run.spy.begin[epoch], run.spy.end[epoch]):
            assert moment["kl_weights"] == pytest.approx([weight] * 3)


@pytest.mark.integration
@pytest.mark.core
def test_logs_equal_an_independent_count(run):
    # Oracle: the spy's counts with NumPy, from the variables alone.
    names = [f"n_active/{name}" for name in run.NAMES]
    for epoch, seen in enumerate(run.spy.end):
        logs = run.spy.logs[epoch]
        assert logs["kl"] == pytest.approx(seen["kl"], rel=1e-4)
        assert logs["kl_weight"] == pytest.approx(run.WEIGHTS[epoch])
        assert logs["sparsity"] == pytest.approx(seen["sparsity"])
        assert logs["nonzero_ratio"] == pytest.approx(seen["nonzero_ratio"])
        assert [logs[name] for name in names] == seen["n_active"]
        for name in ("kl", "kl_weight", "sparsity", "nonzero_ratio", *names):
            assert run.history[name][epoch] == logs[name]
            assert float(run.csv[epoch][name]) == pytest.approx(logs[name])


@pytest.mark.core
def test_prints_one_line_per_epoch(run):
    lines = [line for line in run.printed.splitlines() if line]
    assert len(lines) == 4
    for epoch, seen in enumerate(run.spy.end):
        start = f"Epoch {epoch + 1}: n_active: {seen['n_active']}, "
        assert lines[epoch].startswith(start)
        assert f"kl_weight: {run.WEIGHTS[epoch]:.3g}" in lines[epoch]


@pytest.mark.core
def test_loss_is_likelihood_plus_weighted_kl(run):
    """Oracle: the metric, computed in the same noisy forward pass.

    Each epoch has one step, so its KL is that of the weights it began with.
    """
    for epoch, weight in enumerate(run.WEIGHTS):
        likelihood = run.history["sparse_categorical_crossentropy"][epoch]
        kl = run.spy.begin[epoch]["kl"]
        expected = likelihood + weight * kl
        assert run.history["loss"][epoch] == pytest.approx(expected, rel=1e-5)
    assert weight * kl > 0.1


@pytest.mark.core
def test_evaluation_loss_has_no_kl(run):
    # Oracle: cross-entropy of the predicted probabilities, by NumPy.
    inputs, labels = (array[:8] for array in run.data)
    probabilities = to_float64(run.model.predict(inputs, verbose=0))
    expected = -np.log(probabilities[np.arange(8), labels]).mean()
    loss, _ = run.model.evaluate(inputs, labels, verbose=0)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert run.history["val_loss"][-1] == pytest.approx(expected, rel=1e-5)


def test_verbose_0_is_silent(capsys):
    model = mlp()
    compile_quickly(model)
    model.fit(
        *classification_data(4),
        callbacks=[KLAnnealing(4, verbose=0)],
        verbose=0,
    )
    assert capsys.readouterr().out == ""


def test_layers_of_one_name_are_logged_apart():
    # Two keys, not one that overwrites the other.
    first, second = mlp(), mlp()
    for model in (first, second):
        for index, layer in enumerate(model.layers):
            layer.name = f"dense_{index}"
    inputs = keras.Input((6,))
    both = keras.layers.Add()([first(inputs), second(inputs)])
    model = keras.Model(inputs, both)
    compile_quickly(model)
    history = model.fit(
        *classification_data(4),
        callbacks=[KLAnnealing(4, verbose=0)],
        verbose=0,
    ).history
    assert sum(key.startswith("n_active/") for key in history) == 4


@pytest.mark.core
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_noise_parameters_do_not_decay(policy, global_dtype_policy):
    """Oracle: with zero gradients AdamW only multiplies by 1 - rate * decay.

    The user's own exclusions, by variable and by name, stay.
    """
    global_dtype_policy(policy)
    model = mlp()
    randomize(model)
    optimizer = keras.optimizers.AdamW(0.5, weight_decay=0.1)
    first, second = model.layers
    optimizer.exclude_from_weight_decay([first.kernel], ["bias"])
    # Wraps the optimizer in a LossScaleOptimizer under mixed_float16.
    model.compile(optimizer, "mse")
    is_wrapped = model.optimizer is not optimizer
    assert is_wrapped == (policy == "mixed_float16")
    annealing = KLAnnealing(16)
    annealing.set_model(model)
    annealing.on_train_begin()
    variables = model.trainable_variables
    before = [to_float64(variable) for variable in variables]
    after = apply_zero_gradients(model.optimizer, variables)
    assert len(variables) == 6
    for variable, old, new in zip(variables, before, after, strict=True):
        factor = 0.95 if variable is second.kernel else 1.0
        np.testing.assert_allclose(to_float64(new), factor * old, rtol=1e-6)


def apply_zero_gradients(optimizer, variables):
    zeros = [keras.ops.zeros(variable.shape) for variable in variables]
    optimizer.build(variables)
    if keras.backend.backend() != "jax":
        optimizer.apply(zeros, variables)
        return variables
    return optimizer.stateless_apply(
        [variable.value for variable in optimizer.variables],
        zeros,
        [variable.value for variable in variables],
    )[0]


@pytest.fixture
def global_dtype_policy():
    policy = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(policy)


def test_a_second_fit_starts_over():
    # Epochs count from initial_epoch, whatever an earlier fit did.
    model = mlp()
    compile_quickly(model)
    annealing = KLAnnealing(4, 2, 2, verbose=0)
    for initial_epoch, weights in ((3, [0.125, 0.25]), (1, [0.0, 0.0])):
        history = model.fit(
            *classification_data(4),
            initial_epoch=initial_epoch,
            epochs=initial_epoch + 2,
            callbacks=[annealing],
            verbose=0,
        ).history
        assert history["kl_weight"] == pytest.approx(weights)
    report = sparsity_report(model)
    assert history["nonzero_ratio"][-1] == report.nonzero_ratio
    assert history["kl"][-1] == pytest.approx(kl_divergence(model))
