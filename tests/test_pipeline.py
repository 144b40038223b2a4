"""`compress`: what was wished for is there, by counts of the small model."""

import contextlib
import dataclasses
import io
import json
import math
import os

import keras
import numpy as np
import pytest

import keras_vd
from keras_vd.pipeline import command, compressing
from keras_vd.pipeline.compiling import Recipe
from keras_vd.pipeline.data import Data, Shuffled
from keras_vd.pipeline.folder import WorkFolder
from keras_vd.pipeline.keeping import KeepBest
from keras_vd.reports import ArtifactRow, CompressionReport
from tests.helpers.arrays import random_inputs, to_float64
from tests.helpers.deployment import measure_quickly
from tests.helpers.models import run_python

EXAMPLES, FEATURES = 80, 20
# 20 * 30 + 30 * 16 + 16 * 3 weights, and as many MACs.
WEIGHTS = 1128
ON_TENSORFLOW = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="needs tf.data"
)


def data(examples=EXAMPLES):
    """Classes that two of the features decide."""
    inputs = random_inputs(examples, FEATURES)
    return inputs, (inputs[:, 0] > 0) + 1 * (inputs[:, 1] > 0)


def compiled(model, **options):
    settings = {
        "optimizer": keras.optimizers.Adam(0.02),
        "loss": "sparse_categorical_crossentropy",
        "metrics": ["accuracy"],
        # Tracing takes TensorFlow longer than a few steps.
        "run_eagerly": keras.backend.backend() == "tensorflow",
    }
    model.compile(**settings | options)
    return model


def network(**options):
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(30, "relu"),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(16, "relu"),
            keras.layers.Dense(3, "softmax"),
        ]
    )
    return compiled(model, **options)


@pytest.fixture
def unmeasured(monkeypatch):
    """Leave out the process that measures files."""
    rows = [ArtifactRow("dense", "Keras", bytes=100)]
    rows += [ArtifactRow("compressed", "Keras", bytes=50)]
    monkeypatch.setattr(compressing, "keras_files", lambda *_: rows)


def compress(model, *arguments, **options):
    settings = {"epochs": 10, "batch_size": 16, "verbose": 0}
    if not isinstance(arguments[0], np.ndarray | dict):
        del settings["batch_size"]
    return keras_vd.compress(model, *arguments, **settings | options)


def dense_sizes(model):
    """Weights that are not zero, parameters and MACs, from arrays alone."""
    kernels = [
        to_float64(layer.kernel)
        for layer in model.layers
        if isinstance(layer, keras.layers.Dense)
    ]
    return {
        "nonzero": sum(np.count_nonzero(kernel) for kernel in kernels),
        "parameters": sum(k.size + k.shape[1] for k in kernels),
        "macs": sum(kernel.size for kernel in kernels),
    }


class Starts(keras.callbacks.Callback):
    """Counts trainings and their epochs; kills one, if it is to."""

    def __init__(self, training=None, epoch=None, with_process=False):
        super().__init__()
        self.epochs = []
        self.doomed = training, epoch
        self.with_process = with_process

    def on_train_begin(self, logs=None):
        self.epochs.append(0)

    def on_epoch_end(self, epoch, logs=None):
        self.epochs[-1] += 1

    def on_train_batch_end(self, batch, logs=None):
        if (len(self.epochs) - 1, self.epochs[-1]) == self.doomed:
            if self.with_process:
                os._exit(9)
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def outcome():
    """One call, at which several tests look."""
    keras.utils.set_random_seed(0)
    model, counter, printed = network(), Starts(), io.StringIO()
    rows = [ArtifactRow(x, "Keras", bytes=100) for x in ("dense", "small")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compressing, "keras_files", lambda *_: rows)
        with contextlib.redirect_stdout(printed):
            small, report = compress(
                *(model, *data(), data(40)),
                nonzero_ratio=6.0,
                callbacks=[counter],
                verbose=1,
            )
    return model, small, report, counter.epochs, printed.getvalue()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("wish", "key", "expected"),
    [
        ({"nonzero_ratio": 8.0}, "nonzero", WEIGHTS / 8),
        ({"parameters": 0.4}, "parameters", 0.4 * (WEIGHTS + 49)),
        ({"macs": 450}, "macs", 450),
    ],
)
def test_sizes_are_met(wish, key, expected, unmeasured):
    """Oracle: the arrays of the small model."""
    small, report = compress(network(), *data(), **wish)
    found = dense_sizes(small)
    assert report.is_met
    # `shrink` takes more weights: those of units that nothing reads.
    lowest = 0.5 if key == "nonzero" else 0.95
    assert lowest * expected <= found[key] <= expected
    assert report.nonzero == found["nonzero"]
    assert (report.weights, report.macs) == (WEIGHTS, WEIGHTS)
    assert report.kept_parameters == found["parameters"]
    assert report.kept_macs == found["macs"]
    assert report.wish == wish


@pytest.mark.core
@pytest.mark.integration
def test_the_small_model_is_plain_compiled_and_as_reported(outcome):
    model, small, report, trained, _ = outcome
    held_out = data(40)
    assert report.is_met
    assert trained == [2, 7, 1]
    assert {type(x).__module__.split(".")[0] for x in small.layers} == {"keras"}
    constraints = [w.constraint for w in small.trainable_variables]
    assert constraints == [None] * len(constraints)
    measured = small.evaluate(*held_out, verbose=0, return_dict=True)
    before = model.evaluate(*held_out, verbose=0, return_dict=True)
    for row in report.metrics:
        assert row.small == pytest.approx(measured[row.name], rel=1e-4)
        assert row.given == pytest.approx(before[row.name], rel=1e-4)
    assert {row.name for row in report.metrics} == {"loss", "accuracy"}
    assert report.difference < 1e-4
    assert [row.epochs for row in report.stages] == [2, 7, 1, 0]


@pytest.mark.integration
def test_a_budget_is_kept(unmeasured):
    x, y = data(160)
    small, report = compress(
        network(), x, y, epochs=30, budget=0.3, monitor="loss"
    )
    loss = next(row for row in report.metrics if row.name == "loss")
    assert report.wish["limit"] == pytest.approx(loss.trained + 0.3)
    assert report.is_met == (loss.small <= loss.trained + 0.3)
    assert report.is_met
    assert report.reached == loss.small
    assert dense_sizes(small)["nonzero"] < WEIGHTS


@pytest.mark.core
@pytest.mark.parametrize(
    ("is_larger_better", "before", "values", "kept"),
    [
        (True, 0.5, [0.6, 0.8, 0.8, 0.7], 2),  # of equal ones the last
        (False, 0.5, [0.6, 0.3, 0.4], 1),
        (True, 0.9, [0.6, 0.8], -1),  # none is as good as before
        (False, 0.1, [0.2, math.nan], -1),
        (True, math.nan, [math.nan, 0.2, 0.1], 1),
    ],
)
def test_which_epoch_is_kept(is_larger_better, before, values, kept):
    """The oracle is the list: every epoch marks the weights with its number."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    (_, bias) = model.get_weights()
    keeping = KeepBest("val_score", is_larger_better, before)
    keeping.set_model(model)
    model.set_weights([np.full((1, 1), -1.0), bias])
    keeping.on_train_begin()
    for epoch, value in enumerate(values):
        model.set_weights([np.full((1, 1), float(epoch)), bias])
        keeping.on_epoch_end(epoch, {"val_score": value})
    keeping.on_train_end()
    assert float(to_float64(model.layers[0].kernel)[0, 0]) == kept
    best = before if kept < 0 else values[kept]
    assert keeping.value == best


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:KLTarget")  # few steps
def test_without_a_wish_it_is_a_point_of_the_metric(unmeasured):
    _, report = compress(network(), *data())
    accuracy = next(x for x in report.metrics if x.name == "accuracy")
    assert report.wish["budget"] == 0.01
    assert report.wish["monitor"] == "accuracy"
    assert report.wish["limit"] == pytest.approx(accuracy.trained - 0.01)


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:KLTarget")
def test_without_a_wish_a_loss_may_grow_by_a_share(unmeasured):
    _, report = compress(network(metrics=None), *data())
    (loss,) = report.metrics
    assert report.wish["monitor"] == "loss"
    assert report.wish["limit"] == pytest.approx(1.05 * loss.trained)


@pytest.mark.core
@pytest.mark.integration
def test_the_given_model_is_left_as_it_was(unmeasured):
    x, y = data()
    metric = keras.metrics.SparseCategoricalAccuracy(name="right")
    model = network(metrics=[metric])
    model.fit(x, y, epochs=1, verbose=0)
    model.layers[2].trainable = False
    objects = (model.optimizer, model.loss, metric, list(model.layers))
    flags = [layer.trainable for layer in model.layers]
    variables = [*model.variables, *model.optimizer.variables]
    before = [to_float64(variable) for variable in variables]
    compress(model, x, y, nonzero_ratio=4.0)
    after = [*model.variables, *model.optimizer.variables]
    assert list(map(id, after)) == list(map(id, variables))
    for value, variable in zip(before, after, strict=True):
        np.testing.assert_array_equal(to_float64(variable), value)
    assert objects == (model.optimizer, model.loss, metric, list(model.layers))
    assert flags == [layer.trainable for layer in model.layers]
    assert model.compiled


@pytest.mark.integration
def test_a_frozen_layer_stays_as_it_is(unmeasured):
    model = network()
    model.layers[0].trainable = False
    compiled(model)
    small, report = compress(model, *data(), nonzero_ratio=3.0)
    assert "frozen" in next(iter(report.conversion.skipped.values()))
    kernel = to_float64(model.layers[0].kernel)
    kept = next(to_float64(w) for w in small.weights if len(w.shape) == 2)
    columns = {tuple(column) for column in kernel.T.tolist()}
    assert {tuple(column) for column in kept.T.tolist()} <= columns


@pytest.mark.integration
@pytest.mark.parametrize(
    "wish", [{"nonzero_ratio": 4.0}, {"budget": 1.0}], ids=["size", "budget"]
)
def test_killed_calls_go_on_in_their_epochs(wish, tmp_path, unmeasured):
    """Oracle: the call that was not killed, to the last bit."""
    x, y = data()
    keras.utils.set_random_seed(3)
    model = network()
    wish = {"epochs": 20, **wish}
    expected, _ = compress(model, x, y, **wish)
    folder = tmp_path / "work"

    def call(*doomed):
        counter = Starts(*doomed)
        context = (
            pytest.raises(KeyboardInterrupt)
            if doomed
            else contextlib.nullcontext()
        )
        with context:
            small, _ = compress(
                model, x, y, **wish, work_dir=folder, callbacks=[counter]
            )
            assert_same_weights(small, expected)
        return counter.epochs

    # Three trainings of 3, 15 and 2 epochs. Each call is killed in the next
    # one, and the first that it goes on with has only its other epochs.
    assert call(0, 1) == [1]
    assert call(1, 5) == [2, 5]
    assert call(1, 1) == [10, 1]
    assert call() == [1]
    # Once more: nothing is trained.
    assert call() == []


def assert_same_weights(found, expected):
    pairs = zip(found.weights, expected.weights, strict=True)
    for one, other in pairs:
        np.testing.assert_array_equal(to_float64(one), to_float64(other))


@pytest.mark.integration
def test_a_killed_process_is_resumed_by_another(tmp_path):
    code = """
import sys
import keras
from tests.test_pipeline import Starts, compress, data, network
keras.utils.set_random_seed(3)
callbacks = [Starts(1, 3, True)] if sys.argv[2] == "killed" else []
small, report = compress(
    network(), *data(), nonzero_ratio=4.0, work_dir=sys.argv[1],
    callbacks=callbacks,
)
print([float(keras.ops.sum(keras.ops.abs(w))) for w in small.weights])
"""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert run_python(code, killed, "killed").returncode == 9
    resumed = run_python(code, killed, "resumed")
    unbroken = run_python(code, whole, "whole")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.splitlines()[-1] == unbroken.stdout.splitlines()[-1]


def contents(folder):
    return {x: x.read_bytes() for x in folder.rglob("*") if x.is_file()}


@pytest.mark.integration
def test_a_folder_of_another_call_is_refused(tmp_path, unmeasured):
    x, y = data()
    model = network()
    folder = tmp_path / "work"
    compress(model, x, y, nonzero_ratio=4.0, epochs=4, work_dir=folder)
    before = contents(folder)
    others = {
        "wish": (model, x, y, {"nonzero_ratio": 5.0}),
        "epochs": (model, x, y, {"nonzero_ratio": 4.0, "epochs": 5}),
        "seed": (model, x, y, {"nonzero_ratio": 4.0, "seed": 1}),
        "options": (model, x, y, {"nonzero_ratio": 4.0, "exclude": "dense"}),
        "model": (network(), x, y, {"nonzero_ratio": 4.0}),
        "data": (model, x + 1, y, {"nonzero_ratio": 4.0}),
    }
    others["options"][3]["exclude"] = model.layers[0].name
    for name, (other, inputs, labels, options) in others.items():
        options = {"epochs": 4, **options}
        with pytest.raises(FileExistsError, match=f"another .*{name}"):
            compress(other, inputs, labels, work_dir=folder, **options)
    assert contents(folder) == before


def test_weights_of_16_bits_are_kept(tmp_path):
    """Oracle: the weights themselves, whose numbers float32 has, too."""
    one, other = (
        compiled(
            keras.Sequential(
                [keras.Input((3,)), keras.layers.Dense(2, dtype="bfloat16")]
            )
        )
        for _ in range(2)
    )
    expected = [to_float64(x) for x in one.weights]
    folder = WorkFolder(tmp_path / "work", {})
    folder.save("trained", one)
    assert folder.load("trained", other)
    for found, wanted in zip(other.weights, expected, strict=True):
        np.testing.assert_array_equal(to_float64(found), wanted)
    # And so is what callbacks remember.
    best = KeepBest("loss", False, 1.0)
    best.set_model(one)
    best.on_train_begin()
    (backup,) = folder.backup("tuned", {"best": best})
    backup.set_model(one)
    backup.on_train_begin()
    backup.on_epoch_end(0)
    (file,) = (tmp_path / "work").glob("tuned*")
    with np.load(file) as stored:
        for i, wanted in enumerate(expected):
            found = stored[f"best/weight/{i}"]
            np.testing.assert_array_equal(found.astype("float64"), wanted)


@pytest.mark.parametrize("name", ["thesis.txt", "call.json"])
def test_a_folder_with_other_things_is_left_alone(name, tmp_path, unmeasured):
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match="`work_dir`"):
        compress(network(), *data(), nonzero_ratio=4.0, work_dir=tmp_path)
    assert {x.name for x in tmp_path.iterdir()} == {name}
    assert (tmp_path / name).read_text() == "mine"


class Untrained(keras.callbacks.Callback):
    """Fails if anything is trained."""

    def on_train_begin(self, logs=None):
        raise AssertionError("training began")


def frozen():
    model = network()
    model.trainable = False
    return compiled(model)


class OwnStep(keras.Model):
    def compute_loss(self, *args, **kwargs):
        return 2.0 * super().compute_loss(*args, **kwargs)


def own_step():
    model = network()
    return compiled(OwnStep(model.inputs, model.outputs))


@pytest.mark.integration
def test_a_training_step_of_ones_own_is_kept_or_refused(unmeasured):
    """Oracle: twice the loss of Keras."""
    model = own_step()
    _, report = compress(model, *data(), nonzero_ratio=4.0)
    loss = next(row for row in report.metrics if row.name == "loss")
    plain = keras.Model(model.inputs, model.outputs)
    held_out = Data(*data(), None, 0.2, 16, None, 0).validation
    found = compiled(plain).evaluate(*held_out, verbose=0, return_dict=True)
    assert loss.given == pytest.approx(2.0 * found["loss"], rel=1e-4)
    with pytest.raises(ValueError, match="`compute_loss` of its own"):
        Recipe(model).check(network())


def uncompiled():
    model = network()
    return keras.Model(model.inputs, model.outputs)


def numbers():
    x, y = data()
    while True:
        yield x, y


class Endless(keras.utils.PyDataset):
    @property
    def num_batches(self):
        return None

    def __getitem__(self, index):
        return data(16)


@pytest.mark.parametrize(
    ("build", "options", "error", "words"),
    [
        (
            *(network, {"nonzero_ratio": 4.0, "macs": 0.5}, ValueError),
            r"`nonzero_ratio`, .*macs.*there can be one",
        ),
        (network, {"nonzero_ratio": 0.5}, ValueError, "`nonzero_ratio`"),
        (network, {"nonzero_ratio": "4"}, TypeError, "`nonzero_ratio`"),
        (network, {"budget": -0.1}, ValueError, "`budget`"),
        (network, {"nonzero_ratio": 1e6}, ValueError, "must be possible"),
        (network, {"parameters": 3}, ValueError, "must be possible"),
        (network, {"epochs": 0}, ValueError, "`epochs` must be .* least 4"),
        (network, {"epochs": -1}, ValueError, "`epochs`"),
        (network, {"epochs": 3}, ValueError, "`epochs`"),
        (network, {"epochs": 10.0}, TypeError, "`epochs`"),
        (network, {"batch_size": 0}, ValueError, "`batch_size`"),
        (network, {"learning_rate": 0.0}, ValueError, "`learning_rate`"),
        (network, {"seed": -1}, ValueError, "`seed`"),
        (network, {"validation_split": 1.0}, ValueError, "something to train"),
        (network, {"validation_split": 0.0}, ValueError, "`validation_data`"),
        (network, {"monitor": "f1"}, ValueError, "`monitor`.*accuracy.*loss"),
        (network, {"num_examples": 3}, ValueError, "`num_examples`"),
        (network, {"exclude": "nothing"}, ValueError, "`exclude`"),
        (frozen, {}, ValueError, "must have a layer that can be converted"),
        (uncompiled, {}, ValueError, "must be compiled.*no optimizer"),
        (lambda: 3, {}, TypeError, "`model`"),
        (
            *(lambda: keras.Sequential([keras.layers.Dense(3)]), {}),
            *(ValueError, "must be built"),
        ),
    ],
)
def test_what_cannot_be_is_told_before_training(build, options, error, words):
    with pytest.raises(error, match=words):
        compress(build(), *data(), callbacks=[Untrained()], **options)


@pytest.mark.parametrize(
    ("make", "options", "error", "words"),
    [
        (numbers, {}, ValueError, "can be read once"),
        (Endless, {}, ValueError, "must have an end"),
        (lambda: "text", {}, TypeError, "`x` must be data"),
        (lambda: np.zeros((0, FEATURES)), {}, ValueError, "`x`"),
        (
            *(lambda: {"a": np.zeros((3, 2)), "b": np.zeros((4, 2))}, {}),
            *(ValueError, "as many examples"),
        ),
    ],
)
def test_data_that_cannot_be_is_told_before_training(
    make, options, error, words
):
    with pytest.raises(error, match=words):
        keras_vd.compress(
            network(), make(), callbacks=[Untrained()], verbose=0, **options
        )


class Batched(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return -(-len(self.x) // 16)

    def __getitem__(self, index):
        rows = slice(16 * index, 16 * index + 16)
        return self.x[rows], self.y[rows]


@pytest.mark.integration
def test_data_sets_are_counted(unmeasured):
    x, y = data(75)
    _, report = compress(network(), Batched(x, y), nonzero_ratio=4.0)
    assert report.measured_on == "training data"
    found = Data(Batched(x, y), None, None, 0.2, None, None, 0)
    assert (found.num_examples, found.steps) == (75, 5)
    with pytest.raises(ValueError, match="`validation_data` must be given"):
        compress(network(), Batched(x, y), budget=0.1)
    with pytest.raises(ValueError, match="`y`"):
        compress(network(), Batched(x, y), y, nonzero_ratio=4.0)


@pytest.mark.integration
@ON_TENSORFLOW
def test_tf_data_is_read_as_fit_reads_it(unmeasured):
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices(data(75)).batch(16)
    _, report = compress(network(), dataset, None, dataset, nonzero_ratio=4.0)
    assert report.measured_on == "validation data"
    with pytest.raises(ValueError, match="must have an end"):
        compress(network(), dataset.repeat(), nonzero_ratio=4.0)


@pytest.mark.integration
def test_several_inputs_and_outputs(unmeasured):
    """With loss weights, and a metric of one output."""
    inputs = {k: keras.Input((10,), name=k) for k in ("left", "right")}
    hidden = keras.layers.Concatenate()(list(inputs.values()))
    hidden = keras.layers.Dense(30, "relu")(hidden)
    outputs = {
        "kind": keras.layers.Dense(3, "softmax", name="kind")(hidden),
        "size": keras.layers.Dense(1, name="size")(hidden),
    }
    model = compiled(
        keras.Model(inputs, outputs),
        loss={"kind": "sparse_categorical_crossentropy", "size": "mse"},
        loss_weights={"kind": 1.0, "size": 0.1},
        metrics={"kind": ["accuracy"]},
    )
    x, y = data()
    x = {"left": x[:, :10], "right": x[:, 10:]}
    y = {"kind": y, "size": y[:, None].astype("float32")}
    small, report = compress(model, x, y, nonzero_ratio=4.0)
    assert report.is_met
    assert set(small.output) == {"kind", "size"}
    assert any("accuracy" in row.name for row in report.metrics)


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:KLTarget")  # one channel is too much
def test_channels_of_a_convolution_go(unmeasured):
    """Oracle: MACs by hand, from the shapes of the kernels."""
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, "softmax"),
        ]
    )
    x = random_inputs(64, 6, 6, 1)
    y = np.arange(64) % 3
    small, report = compress(compiled(model), x, y, macs=0.5)
    assert len(report.conversion.gated) == 2
    kernels = [w for w in small.weights if len(w.shape) > 1]
    sites = [36 if len(w.shape) == 4 else 1 for w in kernels]
    macs = sum(
        n * int(np.prod(w.shape)) for n, w in zip(sites, kernels, strict=True)
    )
    assert macs == report.kept_macs
    whole = 36 * 9 * 16 + 36 * 9 * 256 + 48
    assert report.macs == whole
    assert 0.4 * whole < macs <= 0.5 * whole


@pytest.mark.integration
def test_nested_models_are_compressed(unmeasured):
    inner = keras.Sequential(
        [keras.Input((FEATURES,)), keras.layers.Dense(30, "relu")]
    )
    model = keras.Sequential([inner, keras.layers.Dense(3, "softmax")])
    _, report = compress(compiled(model), *data(), nonzero_ratio=4.0)
    assert report.is_met
    assert report.weights == 690


def test_epochs_follow_from_the_number_of_steps():
    """Oracle: 8,000 steps, but 20 epochs at least and 250 at most."""
    found = [compressing._epochs(None, steps) for steps in (1, 80, 10_000)]
    assert found == [250, 100, 20]
    assert compressing._split(100) == (15, 75, 10)
    assert compressing._split(4) == (1, 2, 1)


def test_the_order_of_arrays_is_that_of_the_seed_and_the_epoch():
    arrays = np.arange(10.0), {"label": np.arange(10)}

    def order(seed, epoch):
        batches = Shuffled(arrays, 4, seed)
        batches.begin_epoch(epoch)
        rows = [batches[i] for i in range(len(batches))]
        for x, y in rows:
            np.testing.assert_array_equal(x, y["label"])
        return np.concatenate([x for x, _ in rows]).tolist()

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)
    assert sorted(order(0, 3)) == list(range(10))


def test_examples_are_held_out_once_for_all():
    x, y = data()
    one, other = (Data(x, y, None, 0.25, 8, None, 5) for _ in range(2))
    held_out, labels = one.validation
    assert (len(held_out), one.num_examples) == (20, 60)
    np.testing.assert_array_equal(held_out, other.validation[0])
    rows = [np.flatnonzero((x == row).all(axis=1))[0] for row in held_out]
    np.testing.assert_array_equal(y[rows], labels)
    trained = {tuple(row) for row in one.batches.arrays[0].tolist()}
    assert not trained & {tuple(row) for row in held_out.tolist()}


def test_a_schedule_becomes_its_largest_rate():
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, 500, warmup_target=0.3, warmup_steps=100
    )
    recipe = Recipe(network(optimizer=keras.optimizers.Adam(schedule)))
    optimizer = recipe.compile_arguments()["optimizer"]
    # Within the steps that are looked at.
    rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
    assert 0.9 * 0.3 < rate <= 0.3
    optimizer.learning_rate = 0.1


def test_optimizers_and_metrics_are_new_ones_alike():
    metric = keras.metrics.SparseTopKCategoricalAccuracy(k=2, name="two")
    model = network(
        optimizer=keras.optimizers.SGD(0.3, momentum=0.7), metrics=[metric]
    )
    recipe = Recipe(model)
    one, other = recipe.compile_arguments(), recipe.compile_arguments()
    assert one["optimizer"] is not other["optimizer"]
    assert one["optimizer"].get_config() == model.optimizer.get_config()
    assert one["metrics"][0] is not metric
    assert one["metrics"][0].get_config() == metric.get_config()
    faster = Recipe(model, 0.5).compile_arguments()["optimizer"]
    assert faster.get_config()["learning_rate"] == pytest.approx(0.5)


@pytest.mark.integration
def test_the_report_is_text_json_and_a_page(outcome):
    _, _, report, _, printed = outcome
    assert isinstance(report, CompressionReport)
    read = json.loads(report.to_json())
    assert read == report.to_dict()
    assert read["nonzero_ratio"] == report.nonzero_ratio
    assert {x["name"] for x in read["metrics"]} == {"loss", "accuracy"}
    page = report.to_html()
    for text in (str(report), page, printed):
        assert "nonzero_ratio=6" in text
        assert f"{report.parameters:,}" in text
        assert "MACs per example" in text
    assert page.startswith("<!DOCTYPE html>")
    assert page.count("<h2>") == 4
    assert "1/4: train the plain network, 2 epochs" in printed
    assert "2/4: train to nonzero_ratio=6, 7 epochs" in printed


@pytest.mark.integration
def test_a_budget_that_brought_little_says_what_else_to_ask_for(outcome):
    _, _, report, _, _ = outcome
    size = dataclasses.replace(report, nonzero=report.weights)
    assert "Few" not in str(size)
    nothing = dataclasses.replace(size, wish={"budget": 0.01})
    assert "Few weights" in nothing.lead()
    assert "Few weights" in str(nothing)
    half = dataclasses.replace(nothing, nonzero=report.weights // 2)
    assert "Few" not in str(half)


@pytest.mark.integration
def test_files_and_calls_are_measured(monkeypatch):
    measure_quickly(monkeypatch)
    _, report = compress(network(), *data(), nonzero_ratio=4.0)
    dense, small = report.files
    assert dense.error == small.error == ""
    assert small.bytes < dense.bytes
    assert set(small.ms) == {1, 64}
    assert "ms of a call, batch 64" in str(report)


@pytest.mark.integration
@pytest.mark.skipif(
    not hasattr(keras, "distillation"), reason="this Keras has no Distiller"
)
def test_the_plain_network_teaches(unmeasured):
    counter = Starts()
    small, report = compress(
        *(network(), *data()),
        nonzero_ratio=4.0,
        distill=True,
        callbacks=[counter],
    )
    assert counter.epochs == [2, 7, 1]
    assert report.is_met
    assert "student_loss" not in {row.name for row in report.metrics}
    assert all(layer.trainable for layer in small.layers)


def test_without_a_distiller_it_says_so(monkeypatch):
    monkeypatch.delattr(keras, "distillation", raising=False)
    with pytest.raises(ImportError, match=r"Keras 3\.12"):
        compress(network(), *data(), distill=True, callbacks=[Untrained()])


@pytest.fixture
def files(tmp_path, unmeasured):
    """A saved model and data."""
    x, y = data()
    network().save(tmp_path / "model.keras")
    np.savez(tmp_path / "train.npz", x=x, y=y, x_val=x, y_val=y)
    return tmp_path


def run(folder, *options, model="model.keras", source="train.npz"):
    return command.main(
        [
            *("compress", str(folder / model), "--data", str(folder / source)),
            *("--out", str(folder / "small.keras"), "--epochs", "6"),
            *map(str, options),
        ]
    )


@pytest.mark.integration
def test_the_command_writes_a_model_and_a_report(files, capsys):
    report = files / "report.json"
    code = run(files, "--macs", "0.5", "--report", report)
    assert code == 0
    text = capsys.readouterr().out
    assert "Before and after" in text
    assert "small.keras" in text
    small = keras.models.load_model(files / "small.keras")
    assert dense_sizes(small)["macs"] <= WEIGHTS / 2
    found = json.loads(report.read_text())
    assert found["kept_macs"] == dense_sizes(small)["macs"]
    assert found["wish"] == {"macs": 0.5}


@pytest.mark.integration
def test_the_command_is_quiet_if_it_is_asked_to(files, capsys):
    code = run(files, "--nonzero-ratio", 3, "--quiet")
    assert (code, capsys.readouterr().out) == (0, "")


@pytest.mark.parametrize(
    ("options", "changes", "words"),
    [
        (("--macs", "0.5", "--budget", "1"), {}, "not allowed with"),
        (("--macs", "much"), {}, "invalid"),
        (("--macs", "3"), {}, "must be possible"),
        (("--epochs", "0"), {}, "`epochs`"),
        (("--report", "report.pdf"), {}, ".txt or .json or .html"),
        (("--report", "nowhere/report.txt"), {}, "no folder"),
        ((), {"model": "other.keras"}, "there is no file"),
        ((), {"model": "train.npz"}, "is no Keras model"),
        ((), {"source": "other.npz"}, "there is no file"),
        ((), {"source": "model.keras"}, "no y"),
        ((), {"source": "half.npz"}, "no y_val"),
        (("--work-dir", "."), {}, "`work_dir`"),
    ],
)
def test_the_command_ends_with_2_for_what_does_not_fit(
    options, changes, words, files, capsys, monkeypatch
):
    monkeypatch.chdir(files)
    x, y = data()
    np.savez(files / "half.npz", x=x, y=y, x_val=x)
    with pytest.raises(SystemExit) as ended:
        run(files, *options, **changes)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert words in message
    assert not (files / "small.keras").exists()


def test_the_command_explains_itself(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["compress", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for word in ("--macs", "--budget", "x_val", "exit codes", "--work-dir"):
        assert word in text


@pytest.mark.integration
def test_the_command_is_a_module(tmp_path):
    code = """
import runpy, sys
sys.argv = "keras_vd compress nothing.keras --data a --out b".split()
runpy.run_module("keras_vd", run_name="__main__")
"""
    result = run_python(code)
    assert result.returncode == 2
    assert "--out must end in .keras" in result.stderr
