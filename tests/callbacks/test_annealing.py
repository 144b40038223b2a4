"""KLAnnealing beside ordinary habits: short fits, other callbacks, the bar."""

import io
import re
import sys
import warnings

import keras
import numpy as np
import pytest

import keras_vd
from keras_vd import layers
from keras_vd.callbacks import KLAnnealing
from keras_vd.callbacks.advice import warn_about_examples
from tests.helpers.arrays import random_inputs, to_float64
from tests.helpers.models import compile_quickly, mlp

EXAMPLES = 16


def tiny(**options):
    model = keras.Sequential([keras.Input((3,)), layers.VDDense(1)])
    compile_quickly(model, **{"loss": "mse"} | options)
    return model


def fit(model, *callbacks, **options):
    x = random_inputs(EXAMPLES, 3)
    options = {"batch_size": 4, "verbose": 0} | options
    return model.fit(x, x[:, :1], callbacks=list(callbacks), **options)


def told(caught):
    """How many warnings come from the callback; Keras has its own."""
    return sum("KLAnnealing" in str(warning.message) for warning in caught)


def kl_weights(model):
    found = keras_vd.variational_weights(model)
    return [float(to_float64(posterior.kl_weight)) for posterior in found]


# Epochs of a fit, and w of each by hand: 0 for a twelfth of them, then a
# quarter of linear warm-up, both rounded down, and never above 5 and 15.
SCALED = {
    1: [1],
    2: [1, 1],
    3: [1, 1, 1],
    4: [0, 1, 1, 1],
    8: [0, 1 / 2, 1],
    12: [0, 0, 1 / 3, 2 / 3, 1],
    24: [0, 0, 0, 1 / 6, 2 / 6],
    60: [0] * 6 + [n / 15 for n in range(1, 16)],
    1000: [0] * 6 + [n / 15 for n in range(1, 16)],
}


@pytest.mark.core
@pytest.mark.parametrize("epochs", SCALED)
def test_the_default_schedule_is_scaled_to_the_fit(epochs):
    annealing = KLAnnealing(10)
    expected = [w / 10 for w in SCALED[epochs]]
    found = [annealing.weight_at(e, epochs) for e in range(len(expected))]
    assert found == pytest.approx(expected)
    full = annealing.full_strength_epoch(epochs)
    assert full <= epochs / 3
    assert annealing.weight_at(full, epochs) == 0.1
    assert annealing.weight_at(epochs - 1, epochs) == 0.1
    assert full == 0 or annealing.weight_at(full - 1, epochs) < 0.1


@pytest.mark.core
def test_one_end_of_the_schedule_can_be_given():
    # By hand: a fit of 24 epochs has a start of 2 and a warm-up of 6.
    assert KLAnnealing(1, start_epoch=9).full_strength_epoch(24) == 15
    assert KLAnnealing(1, warmup_epochs=9).full_strength_epoch(24) == 11
    assert KLAnnealing(1).full_strength_epoch() == 20


@pytest.mark.core
def test_where_a_callable_schedule_ends():
    annealing = KLAnnealing(1, schedule=lambda epoch: min(epoch / 3, 1.0))
    assert annealing.full_strength_epoch(10) == 3
    assert annealing.full_strength_epoch(2) == 1
    with pytest.raises(ValueError, match="`epochs` must be the number"):
        annealing.full_strength_epoch()


@pytest.mark.integration
@pytest.mark.core
def test_a_run_that_is_continued_keeps_its_schedule():
    # Also if the second fit would have another one; a new run starts over.
    model, annealing = tiny(), KLAnnealing(EXAMPLES, verbose=0)
    first = fit(model, annealing, epochs=4).history["kl_weight"]
    second = fit(model, annealing, initial_epoch=4, epochs=30)
    third = fit(model, annealing, epochs=8).history["kl_weight"]
    full = 1 / EXAMPLES
    assert first == pytest.approx([0.0, full, full, full])
    assert second.history["kl_weight"] == pytest.approx([full] * 26)
    assert third == pytest.approx([0.0, full / 2, *[full] * 6])
    assert annealing.weight_at(1) == pytest.approx(full / 2)


@pytest.mark.integration
@pytest.mark.core
def test_a_run_that_goes_on_with_another_schedule_is_told():
    model = tiny()
    fit(model, KLAnnealing(EXAMPLES, verbose=0), epochs=3)
    with pytest.warns(UserWarning, match="KL weight falls from 0.0625 to 0"):
        fit(
            model,
            KLAnnealing(EXAMPLES, verbose=0),
            initial_epoch=3,
            epochs=60,
            steps_per_epoch=1,
        )


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize(
    "options",
    [
        {"start_epoch": 3},
        {"start_epoch": 0, "warmup_epochs": 3},
        {"schedule": "step", "warmup_epochs": 9},
        {"schedule": lambda epoch: 0.0},
    ],
)
def test_a_fit_that_ends_before_full_strength_is_told_once(options):
    model = tiny()
    annealing = KLAnnealing(EXAMPLES, verbose=0, **options)
    with pytest.warns(UserWarning, match="of its full weight") as caught:
        fit(model, annealing, epochs=3)
    assert told(caught) == 1
    fit(model, annealing, epochs=3)
    # Whoever wants no KL is not told that there is none.
    fit(model, KLAnnealing(EXAMPLES, max_weight=0, verbose=0, **options))


@pytest.mark.integration
@pytest.mark.core
def test_a_fit_that_is_stopped_in_the_warm_up_is_told():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    with pytest.warns(UserWarning, match="stopped with the KL at 50%"):
        fit(tiny(), KLAnnealing(EXAMPLES, verbose=0), Stop(), epochs=8)


@pytest.mark.integration
@pytest.mark.core
def test_callbacks_that_prefer_the_warm_up_are_named(tmp_path):
    stopping = keras.callbacks.EarlyStopping
    annealing = KLAnnealing(EXAMPLES, verbose=0)
    with pytest.warns(UserWarning, match="start_from_epoch=2,") as caught:
        fit(tiny(), annealing, stopping("loss", patience=9), epochs=8)
    assert told(caught) == 1
    checkpoint = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", "loss", save_best_only=True
    )
    with pytest.warns(UserWarning, match="initial_epoch=2"):
        fit(tiny(), KLAnnealing(EXAMPLES, verbose=0), checkpoint, epochs=8)
    # None of these compares what cannot be compared.
    annealing = KLAnnealing(EXAMPLES, verbose=0)
    full = annealing.full_strength_epoch(epochs=8)
    for callback, options in (
        (stopping("loss", patience=9, start_from_epoch=full), {}),
        (stopping("nonzero_ratio", mode="max", patience=9), {}),
        (checkpoint, {"initial_epoch": full}),
        (keras.callbacks.ModelCheckpoint(tmp_path / "all.keras"), {}),
    ):
        fit(tiny(), annealing, callback, epochs=8, **options)
        annealing = KLAnnealing(EXAMPLES, verbose=0)


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("comes_first", [True, False])
def test_weights_that_are_restored_keep_the_kl_of_the_schedule(comes_first):
    """Oracle: the schedule; the restored epoch has another KL weight."""
    model = tiny()
    stopping = keras.callbacks.EarlyStopping(
        "kl_weight", mode="min", patience=9, restore_best_weights=True
    )
    annealing = KLAnnealing(EXAMPLES, 0, 2, verbose=0)
    callbacks = [annealing, stopping] if comes_first else [stopping, annealing]
    if comes_first:
        fit(model, *callbacks, epochs=4)
    else:
        # It looks for a figure that is not there yet.
        with pytest.warns(UserWarning, match="kl_weight"):
            fit(model, *callbacks, epochs=4)
    assert kl_weights(model) == pytest.approx([1 / EXAMPLES])


def batches(size, repeats=1):
    x = random_inputs(EXAMPLES, 3)

    class Data(keras.utils.PyDataset):
        def __len__(self):
            return repeats * EXAMPLES // size

        def __getitem__(self, index):
            first = index * size % EXAMPLES
            return x[first : first + size], x[first : first + size, :1]

    return Data()


# (num_examples, options of fit, words of the warning or None).
COUNTS = {
    "right": (16, {}, None),
    "batches": (4, {}, "number of batches: .* 16 examples in 4"),
    "half": (8, {}, "showed 16 examples.* 2 times"),
    "twice": (32, {}, r"showed 16 examples.* 0\.5 times"),
    "validation": (16, {"validation_split": 0.25}, r"12 examples.* 1|0\.75"),
    "right validation": (12, {"validation_split": 0.25}, None),
    "some steps": (16, {"steps_per_epoch": 2}, None),
    "batches of some steps": (2, {"steps_per_epoch": 2}, "number of batches"),
    "sample weights": (16, {"sample_weight": np.full(16, 0.1)}, None),
    "single batch": (16, {"batch_size": 16}, None),
    "single examples": (16, {"batch_size": 1}, None),
}


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("name", COUNTS)
def test_a_number_of_examples_that_cannot_be_right(name):
    num_examples, options, words = COUNTS[name]
    annealing = KLAnnealing(num_examples, verbose=0)
    if words is None:
        fit(tiny(), annealing, epochs=2, **options)
        return
    with pytest.warns(UserWarning, match=words) as caught:
        fit(tiny(), annealing, epochs=2, **options)
    assert told(caught) == 1


@pytest.mark.core
def test_a_wrong_number_of_examples_is_told_once():
    """Oracle: the docstring, "at most once each", for each object."""
    model, annealing = tiny(), KLAnnealing(2 * EXAMPLES, 0, 0, verbose=0)
    with pytest.warns(UserWarning, match="showed 16 examples"):
        fit(model, annealing)
    with warnings.catch_warnings(record=True) as caught:
        fit(model, annealing)
    assert told(caught) == 0


@pytest.mark.core
def test_what_is_wrong_in_a_later_fit_is_told():
    annealing = KLAnnealing(EXAMPLES, 0, 0, verbose=0)
    fit(tiny(), annealing)
    with pytest.warns(UserWarning, match="showed 8 examples"):
        fit(tiny(), annealing, validation_split=0.5)
    with pytest.warns(UserWarning, match="reduction='sum'"):
        fit(tiny(loss=summed()), annealing)


@pytest.mark.core
def test_examples_with_many_labels():
    """Keras' loss is a mean over all labels: N is the number of these."""
    x = random_inputs(EXAMPLES, 5, 3)
    model = keras.Sequential([keras.Input((5, 3)), layers.VDDense(1)])
    compile_quickly(model, loss="mse")
    for num_examples in (EXAMPLES, 5 * EXAMPLES, 7):
        annealing = KLAnnealing(num_examples, 0, 0, verbose=0)
        options = {"callbacks": [annealing], "verbose": 0}
        if num_examples != 7:
            model.fit(x, x[..., :1], **options)
            continue
        with pytest.warns(UserWarning, match="showed 16 examples"):
            model.fit(x, x[..., :1], **options)


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("repeats", [1, 2])
def test_examples_of_a_dataset_are_counted(repeats):
    data, model = batches(4, repeats), tiny()
    right = KLAnnealing(EXAMPLES * repeats, verbose=0)
    model.fit(data, callbacks=[right], verbose=0, validation_data=batches(8))
    with pytest.warns(UserWarning, match=f"showed {16 * repeats} examples"):
        model.fit(data, callbacks=[KLAnnealing(99, verbose=0)], verbose=0)


@pytest.mark.core
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_examples_of_a_generator_are_counted():
    def generator():
        yield from (batches(4)[index] for index in range(4))

    model = tiny()
    for num_examples in (16, 7):
        annealing = KLAnnealing(num_examples, verbose=0)
        options = {"callbacks": [annealing], "verbose": 0}
        if num_examples == 16:
            model.fit(generator(), **options)
            continue
        with pytest.warns(UserWarning, match="showed 16 examples"):
            model.fit(generator(), **options)


def test_a_training_step_of_ones_own_is_not_judged():
    class Own(keras.Model):
        def train_step(self, *args):
            return super().train_step(*args)

    inputs = keras.Input((3,))
    model = Own(inputs, layers.VDDense(1)(inputs))
    compile_quickly(model, loss="mse")
    fit(model, KLAnnealing(99, verbose=0))


@pytest.mark.parametrize(
    ("num_examples", "seen", "steps"),
    [(1003, 992, 31), (60000, 60032, 469), (10, 10, 10), (31, 31, 1)],
)
def test_what_is_near_enough(num_examples, seen, steps, recwarn):
    # A dropped last batch, a rounded number, batches of one, one batch.
    warn_about_examples(num_examples, seen, steps, True, 1)
    assert not recwarn


def summed(reduction="sum"):
    return keras.losses.MeanSquaredError(reduction=reduction)


@pytest.mark.core
@pytest.mark.filterwarnings("ignore:Gradients do not exist")  # with no loss
@pytest.mark.parametrize(
    ("loss", "is_told"),
    [
        ("mse", False),
        (summed("sum_over_batch_size"), False),
        (lambda y, p: keras.ops.mean((y - p) ** 2), False),
        (summed(), True),
        ([summed()], True),
        (None, False),
    ],
)
def test_a_loss_that_is_a_sum_is_told(loss, is_told):
    model, annealing = tiny(loss=loss), KLAnnealing(EXAMPLES, verbose=0)
    if not is_told:
        fit(model, annealing)
        return
    with pytest.warns(UserWarning, match="reduction='sum'.*mean over examples"):
        fit(model, annealing)


@pytest.mark.core
def test_a_sum_in_one_of_several_losses_is_told():
    inputs = keras.Input((3,))
    outputs = {name: layers.VDDense(1, name=name)(inputs) for name in "ab"}
    model = keras.Model(inputs, outputs)
    compile_quickly(model, loss={"a": "mse", "b": summed()})
    x = random_inputs(EXAMPLES, 3)
    annealing = KLAnnealing(EXAMPLES, verbose=0)
    targets = {"a": x[:, :1], "b": x[:, :1]}
    with pytest.warns(UserWarning, match="reduction='sum'"):
        model.fit(x, targets, callbacks=[annealing], verbose=0)


class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = layers.VDDense(4, posterior="ard", name="hidden")
        self.last = layers.VDDense(1, posterior="ard", name="last")

    def call(self, inputs, training=None):
        hidden = self.hidden(inputs, training=training)
        return self.last(hidden, training=training)


UNBUILT = {
    "sequential": lambda: keras.Sequential([layers.VDDense(1)]),
    "subclassed": Net,
    "recurrent": lambda: keras.Sequential(
        [
            keras.layers.Reshape((3, 1)),
            keras.layers.Bidirectional(layers.VDLSTM(2)),
            layers.LogNormalDropout(),
            keras.layers.Dense(1),
        ]
    ),
}


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("name", UNBUILT)
def test_a_model_that_fit_builds(name):
    """Oracles: the KL in the first step's loss; a step that only decays."""
    keras.utils.set_random_seed(0)
    model = UNBUILT[name]()
    # No learning; what decays is gone after one step.
    optimizer = keras.optimizers.AdamW(1e-9, weight_decay=1e9)
    model.compile(optimizer, "mse", metrics=["mse"])
    annealing = KLAnnealing(EXAMPLES, verbose=0)
    history = fit(model, annealing, batch_size=EXAMPLES).history
    assert history["kl_weight"] == [1 / EXAMPLES]
    difference = history["loss"][0] - history["mse"][0]
    assert difference > 0.0
    noise = {
        id(variable)
        for posterior in model._flatten_layers()
        if isinstance(posterior, keras_vd.posteriors.Posterior)
        for variable in posterior.trainable_variables
    }
    for variable in model.trainable_variables:
        if id(variable) not in noise and len(variable.shape) > 1:
            assert np.abs(to_float64(variable)).max() < 1e-6
        elif variable.name == "log_sigma2":
            assert to_float64(variable).max() < -5.0


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.core
@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("verbose", [1, 2])
def test_the_bar_is_short_and_the_line_comes_after_it(
    verbose, is_terminal, monkeypatch
):
    model = mlp()
    compile_quickly(model)
    output = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    history = fit_classes(model, epochs=2, verbose=verbose)
    text = re.sub(r"\x1b\[\d*m", "", output.getvalue()).replace("\b", "")
    lines = [x.split("\r")[-1].strip() for x in text.split("\n")]
    ours = [i for i, x in enumerate(lines) if re.match(r"Epoch \d: ", x)]
    assert len(ours) == 2
    for epoch, index in enumerate(ours):
        bar = lines[index - 1]
        assert "1/1" in bar
        assert "n_active/" not in bar
        counts = [history[f"n_active/vd_dense_{n}"][epoch] for n in names()]
        assert f"n_active_min: {min(counts):.4f}" in bar
        assert f"n_active_sum: {sum(counts):.4f}" in bar
        for name in ("loss", "kl", "kl_weight", "nonzero_ratio"):
            assert f" {name}: " in bar
    assert "n_active_min" not in history


def names():
    return ("one", "two")


def fit_classes(model, **options):
    for layer, name in zip(model.layers, names(), strict=True):
        layer.kernel_posterior.label = f"vd_dense_{name}"
    x = random_inputs(EXAMPLES, 6)
    y = np.arange(EXAMPLES) % 3
    annealing = KLAnnealing(EXAMPLES, **options.pop("annealing", {}))
    return model.fit(x, y, callbacks=[annealing], **options).history


def test_one_switch_leaves_the_layers_out_of_the_logs():
    model = mlp()
    compile_quickly(model)
    options = {"log_layers": False, "verbose": 0}
    history = fit_classes(model, annealing=options, verbose=0)
    assert set(history) == {
        *("loss", "kl", "kl_weight", "sparsity", "nonzero_ratio")
    }


def test_a_bar_of_the_users_is_left_as_it_was():
    model, bar = mlp(), keras.callbacks.ProgbarLogger()
    compile_quickly(model)
    x, y = random_inputs(EXAMPLES, 6), np.arange(EXAMPLES) % 3
    for callbacks in ([bar, KLAnnealing(16)], [KLAnnealing(16), bar]):
        before = dict(vars(bar))
        model.fit(x, y, callbacks=callbacks)
        assert set(vars(bar)) == set(before)
