"""What KLAnnealing writes for TensorBoard, read back by TensorBoard."""

import sys

import keras
import numpy as np
import pytest

from keras_vd import layers, variational_weights
from keras_vd.callbacks import KLAnnealing
from tests.helpers.arrays import to_float64
from tests.helpers.models import (
    classification_data,
    compile_quickly,
    log_alpha,
    mlp,
)

pytest.importorskip("tensorboard")


def read(folder):
    """Scalars and histograms by tag, each with its steps."""
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.util import tensor_util

    events = event_accumulator.EventAccumulator(
        str(folder), size_guidance={event_accumulator.TENSORS: 0}
    )
    events.Reload()
    return {
        tag: {
            event.step: tensor_util.make_ndarray(event.tensor_proto)
            for event in events.Tensors(tag)
        }
        for tag in events.Tags()["tensors"]
    }


def train(model, annealing, first_epoch=0, epochs=3):
    compile_quickly(model)
    inputs, labels = classification_data(8)
    return model.fit(
        inputs,
        labels,
        initial_epoch=first_epoch,
        epochs=epochs,
        verbose=0,
        callbacks=[annealing],
    ).history


@pytest.mark.core
def test_figures_and_histograms_of_every_epoch(tmp_path):
    model, folder = mlp(), tmp_path / "new" / "folder"
    annealing = KLAnnealing(8, 0, 2, verbose=0, tensorboard=folder)
    history = train(model, annealing)
    written = read(folder)
    # Oracle: the logs of the same run.
    scalars = {"kl", "kl_weight", "sparsity", "nonzero_ratio"}
    scalars |= {tag for tag in history if tag.startswith("n_active/")}
    for tag in scalars:
        values = [float(written[tag][step]) for step in range(3)]
        assert values == pytest.approx(history[tag]), tag
    # Oracle: log_alpha from the variables, counted within each bar.
    for posterior in variational_weights(model):
        bars = written[f"log_alpha/{posterior.label}"]
        assert sorted(bars) == [0, 1, 2]
        values = log_alpha(posterior)
        lower, upper, counts = bars[2].T
        assert counts.sum() == values.size
        for low, high, count in zip(lower, upper, counts, strict=True):
            inside = (values >= low - 1e-5) & (values <= high + 1e-5)
            outside = (values >= low + 1e-5) & (values <= high - 1e-5)
            assert outside.sum() <= count <= inside.sum()
    assert set(written) == scalars | {
        f"log_alpha/{x.label}" for x in variational_weights(model)
    }


def test_a_resumed_run_goes_on_at_its_epoch(tmp_path):
    model = mlp()
    for first, last in ((0, 2), (2, 4)):
        annealing = KLAnnealing(8, verbose=0, tensorboard=str(tmp_path))
        train(model, annealing, first, last)
    assert sorted(read(tmp_path)["kl"]) == [0, 1, 2, 3]
    # Nothing is left open by the callback, which can be used again.
    train(model, annealing, 4, 5)
    assert sorted(read(tmp_path)["kl"]) == [0, 1, 2, 3, 4]


def test_an_interrupted_run_has_written_what_it_did(tmp_path):
    class Kill(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    model = mlp()
    compile_quickly(model)
    annealing = KLAnnealing(8, verbose=0, tensorboard=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            *classification_data(8), verbose=0, callbacks=[annealing, Kill()]
        )
    assert sorted(read(tmp_path)["kl"]) == [0]


def test_gates_have_histograms_of_their_means(tmp_path):
    gate = layers.LogNormalDropout(name="gate")
    model = keras.Sequential(
        [keras.Input((6,)), gate, keras.layers.Dense(3, "softmax")]
    )
    train(model, KLAnnealing(8, verbose=0, tensorboard=tmp_path), 0, 1)
    lower, upper, counts = read(tmp_path)["gate_mean/gate"][0].T
    means = to_float64(gate.gate_mean())
    assert counts.sum() == 6
    np.testing.assert_allclose(lower.min(), means.min(), rtol=1e-5)
    np.testing.assert_allclose(upper.max(), means.max(), rtol=1e-5)


def test_without_the_package_the_callback_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        KLAnnealing(8, tensorboard=tmp_path)
    KLAnnealing(8)
