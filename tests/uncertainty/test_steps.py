"""How Monte Carlo predictions go through data: batches, traces, progress."""

import gc
import re
import weakref
import zipfile

import keras
import numpy as np
import pytest

from keras_vd import layers, predict_mc, prune
from keras_vd.uncertainty import sampler
from tests.helpers.arrays import random_inputs
from tests.helpers.models import mlp

pytestmark = pytest.mark.core

IS_TRACED = keras.backend.backend() != "torch"


@keras.saving.register_keras_serializable(package="tests")
class Probe(keras.layers.Layer):
    """Counts how often Python sees it: once for each trace."""

    calls = 0

    def call(self, inputs):
        self.calls += 1
        return inputs


def probed(*stack):
    """A model that ends in a probe, which has not been called."""
    stack = stack or [layers.VDDense(3, posterior="gaussian")]
    model = keras.Sequential([keras.Input((6,)), *stack, Probe()])
    model.layers[-1].calls = 0
    return model


def traces(model, **options):
    """How often another prediction traces; always 0 where nothing is."""
    probe = model.layers[-1]
    before = probe.calls
    arguments = {"x": random_inputs(4, 6), "num_samples": 3} | options
    predict_mc(model, task="regression", **arguments)
    return probe.calls - before


class Slices(keras.utils.PyDataset):
    def __init__(self, batches, has_end=True, **options):
        super().__init__(**options)
        self.batches, self.has_end = batches, has_end

    def __getitem__(self, index):
        return self.batches[index % len(self.batches)]

    @property
    def num_batches(self):
        return len(self.batches) if self.has_end else None


def slices_of(inputs):
    return [inputs[i : i + 2] for i in range(0, len(inputs), 2)]


def tuples_of(inputs, *rest):
    return [(x, *rest) for x in slices_of(inputs)]


def data_frame(inputs):
    return pytest.importorskip("pandas").DataFrame(inputs)


def tf_dataset(inputs, *rest):
    tf = pytest.importorskip("tensorflow")
    rows = inputs if not rest else (inputs, *rest)
    return tf.data.Dataset.from_tensor_slices(rows).batch(2)


def data_loader(inputs):
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.as_tensor(inputs))
    return torch.utils.data.DataLoader(data, batch_size=2)


TARGETS = np.zeros(2)
DATA = {
    "tensor": keras.ops.convert_to_tensor,
    "float64": lambda x: x.astype("float64"),
    "data frame": data_frame,
    "generator": lambda x: (batch for batch in tuples_of(x)),
    "generator with targets": lambda x: (b for b in tuples_of(x, TARGETS)),
    "data set": lambda x: Slices(tuples_of(x)),
    "data set with weights": lambda x: Slices(tuples_of(x, TARGETS, TARGETS)),
    "data set with workers": lambda x: Slices(tuples_of(x, TARGETS), workers=2),
    "tf.data": tf_dataset,
    "tf.data with targets": lambda x: tf_dataset(x, np.zeros(5)),
    "tf.data with weights": lambda x: tf_dataset(x, np.zeros(5), np.ones(5)),
    "data loader": data_loader,
}


@pytest.mark.integration
@pytest.mark.parametrize("name", DATA)
def test_whatever_predict_takes(name):
    model, inputs = mlp("gaussian"), random_inputs(5, 6)
    labels = np.arange(5) % 3
    expected = predict_mc(model, inputs, 3, labels=labels, seed=0)
    found = predict_mc(model, DATA[name](inputs), 3, labels=labels, seed=0)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-4)
    np.testing.assert_allclose(
        found.standard_deviation, expected.standard_deviation, rtol=1e-3
    )
    assert found.calibration.examples == 5


def test_a_series_is_one_column():
    series = data_frame(random_inputs(5, 1))[0]
    dense = layers.VDDense(1, posterior="gaussian", activation="sigmoid")
    model = keras.Sequential([keras.Input((1,)), dense])
    found = predict_mc(model, series, 3, seed=0)
    expected = predict_mc(model, series.to_numpy()[:, None], 3, seed=0)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-5)


@pytest.mark.integration
def test_batches_of_several_inputs():
    names = ("left", "right")
    ends = [keras.Input((3,), name=name) for name in names]
    joined = keras.layers.Concatenate()(ends)
    outputs = layers.VDDense(2, activation="softmax")(joined)
    model = keras.Model(dict(zip(names, ends, strict=True)), outputs)
    inputs = random_inputs(5, 6)
    rows = {"left": inputs[:, :3], "right": inputs[:, 3:]}
    batches = [
        ({name: rows[name][i : i + 2] for name in names}, TARGETS)
        for i in (0, 2, 4)
    ]
    expected = predict_mc(model, rows, 3, seed=0).mean
    found = predict_mc(model, Slices(batches), 3, seed=0).mean
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.integration
def test_steps():
    model, inputs = mlp(), random_inputs(6, 6)
    endless = Slices(tuples_of(inputs), has_end=False)
    with pytest.raises(ValueError, match="`steps` must be given"):
        predict_mc(model, endless, 2)
    assert len(predict_mc(model, endless, 2, steps=4).mean) == 8
    assert (
        len(predict_mc(model, Slices(tuples_of(inputs)), 2, steps=2).mean) == 4
    )
    assert len(predict_mc(model, inputs, 2, 2, steps=2).mean) == 4
    generator = (batch for batch in tuples_of(inputs))
    with pytest.warns(UserWarning, match="`x` has ended after 3 batches"):
        assert len(predict_mc(model, generator, 2, steps=5).mean) == 6


@pytest.mark.integration
def test_data_that_do_not_fit():
    model, inputs = mlp(), random_inputs(6, 6)
    for data in (Slices(tuples_of(inputs)), (x for x in tuples_of(inputs))):
        with pytest.raises(ValueError, match="`batch_size` is for arrays"):
            predict_mc(model, data, 2, batch_size=2)
    with pytest.raises(ValueError, match="each of the 6 examples"):
        predict_mc(model, Slices(tuples_of(inputs)), 2, labels=[0, 1, 2, 0])
    for data in ("x.npy", [[1.0, 2.0]], {"x": None}, print):
        with pytest.raises(TypeError, match="`x` must be what `predict` takes"):
            predict_mc(model, data, 2)


@pytest.mark.integration
def test_one_trace_for_all_calls():
    model = probed()
    assert traces(model) == (1 if IS_TRACED else 3)
    if not IS_TRACED:
        return
    for options in ({}, {"num_samples": 7}, {"seed": 3}):
        assert traces(model, **options) == 0
    # What is in variables is read at each step.
    dense = model.layers[0]
    dense.kernel.assign(np.ones((6, 3)))
    prune(model, -20.0)
    prediction = predict_mc(model, random_inputs(4, 6), 3, task="regression")
    np.testing.assert_array_equal(prediction.mean, 0.0)
    assert traces(model) == 0
    # A last batch of another size, and one more shape of a whole call.
    assert traces(model, x=random_inputs(10, 6), batch_size=4) == 0
    assert traces(model, x=random_inputs(5, 6)) == 1
    assert traces(model, x=random_inputs(5, 6)) == 0


@pytest.mark.integration
@pytest.mark.skipif(not IS_TRACED, reason="PyTorch traces nothing")
def test_a_changed_model_is_traced_anew():
    first = layers.VDDense(6, posterior="gaussian")
    model = probed(first, layers.VDDense(3))
    assert traces(model) == 1

    def freeze():
        first.trainable = False

    def swap():
        probe = model.layers[-1]
        model.pop()
        model.pop()
        model.add(layers.VDDense(3))
        model.add(probe)

    def clip():
        first.kernel_posterior.train_clip = True

    for change in (
        lambda: model.compile("sgd", "mse"),
        lambda: model.compile("sgd", "mse"),
        freeze,
        swap,
        clip,
    ):
        change()
        assert traces(model) >= 1
        assert traces(model) == 0
    model.compile("sgd", "mse", run_eagerly=True)
    assert traces(model) == 3
    model.compile("sgd", "mse", jit_compile=False)
    assert traces(model) >= 1


@pytest.mark.integration
def test_the_function_goes_with_its_model():
    model = mlp()
    predict_mc(model, random_inputs(4, 6), 2)
    kept = weakref.ref(sampler.sampler_of(model))
    alive = weakref.ref(model)
    assert kept() is sampler.sampler_of(model)
    del model
    gc.collect()
    assert alive() is None
    assert kept() is None


@pytest.mark.integration
def test_files_know_nothing_of_it(tmp_path):
    """Oracle: the file of the same model that was never asked."""
    names = []
    for is_asked in (False, True):
        keras.utils.clear_session(free_memory=False)
        model = mlp("gaussian")
        if is_asked:
            predict_mc(model, random_inputs(4, 6), 2)
        path = tmp_path / f"{is_asked}.keras"
        model.save(path)
        with zipfile.ZipFile(path) as archive:
            config = archive.read("config.json").decode()
            config = re.sub(r'"shared_object_id": \d+', "", config)
            names.append((archive.namelist(), config))
        weights = tmp_path / f"{is_asked}.weights.h5"
        model.save_weights(weights)
        names[-1] += (weights.stat().st_size,)
        assert len(keras.models.clone_model(model).variables) == len(
            model.variables
        )
    assert names[0] == names[1]


def test_a_progress_bar_appears_when_it_takes_long(capsys, monkeypatch):
    model, inputs = mlp(), random_inputs(6, 6)

    def shown(data=inputs, **options):
        predict_mc(model, data, 3, **options)
        return capsys.readouterr().out

    assert shown() == shown(verbose=0) == ""
    assert "9/9" in shown(verbose=1, batch_size=2)
    monkeypatch.setattr(sampler, "PROGRESS_AFTER", 0.0)
    assert "6/6" in shown(batch_size=3)
    assert shown(verbose=0) == ""
    assert "9/9" in shown(Slices(tuples_of(inputs)))
    unknown = shown(x for x in tuples_of(inputs))
    assert "9/Unknown" in unknown
    assert unknown.endswith("\n")
