"""The experiment that writes all formats, on a small network."""

import json

import keras
import numpy as np
import pytest

from experiments import deploy
from experiments.mnist import data as mnist_data
from experiments.mnist import models as mnist_models
from experiments.mnist import recipes as mnist_recipes
from tests.helpers.deployment import measure_quickly


def run(*arguments):
    return deploy.run(deploy.parse_arguments([str(x) for x in arguments]))


@pytest.mark.integration
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="writes all formats"
)
@pytest.mark.filterwarnings("ignore")  # of the converters
def test_every_file_is_used(tmp_path, capsys, monkeypatch):
    """Oracle: Keras' own accuracy of the same network."""
    measure_quickly(monkeypatch)
    keras.utils.set_random_seed(0)
    images = mnist_data.load("digits", None)
    network = mnist_models.build(
        "lenet-300-100", "none", (8, 8, 1), 10, mnist_recipes.PLAIN
    )
    network.compile("adam", "sparse_categorical_crossentropy")
    for layer in network.layers:
        if layer.weights:
            kernel = np.asarray(layer.kernel)
            layer.kernel.assign(np.where(np.abs(kernel) > 0.12, kernel, 0.0))
    network.save(tmp_path / "small.keras")
    results = run(
        tmp_path / "small.keras", "--dataset", "digits", "--out", tmp_path
    )
    logits = network.predict(images.x_test, verbose=0)
    expected = 100.0 * np.mean(logits.argmax(-1) == images.y_test)
    rows = results["accuracies"]
    assert {row["runtime"] for row in rows} == set(deploy.READERS)
    for row in rows:
        is_rounded = row["file"].endswith(("int8", "8 bits"))
        rounding = 5.0 if is_rounded else 1e-6
        assert row["accuracy_percent"] == pytest.approx(expected, abs=rounding)
    assert json.loads((tmp_path / "results.json").read_text())["accuracies"]
    assert "times smaller" in capsys.readouterr().out


def test_what_is_no_model_ends_with_one_line_and_code_2(capsys, tmp_path):
    with pytest.raises(SystemExit) as exit_info:
        run(__file__, "--dataset", "digits", "--out", tmp_path)
    assert exit_info.value.code == 2
    assert "is no Keras model" in capsys.readouterr().err
