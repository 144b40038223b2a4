"""What the README and the docstrings show does what they say."""

import doctest
import importlib
import pathlib
import re

import keras
import numpy as np
import pytest

import keras_vd
from keras_vd.pipeline import compressing
from tests.helpers.deployment import measure_quickly
from tests.helpers.package import MODULES
from tools import layer_table

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.integration
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="exports a SavedModel"
)
def test_the_first_example_of_the_readme(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    names = {}
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    assert len(code.strip().splitlines()) <= 27
    exec(compile(code, "README.md", "exec"), names)
    assert "Sparsity at inference" in capsys.readouterr().out
    # Oracle: the promise of the page. Sparse, accurate, plain, exported.
    report = keras_vd.sparsity_report(names["model"])
    assert report.nonzero_ratio > 10
    classes = names["plain"].predict(names["x"], verbose=0).argmax(-1)
    assert np.mean(classes == names["y"]) > 0.96
    assert {
        type(layer).__module__.split(".")[0] for layer in names["plain"].layers
    } == {"keras"}
    smaller = names["small"].count_params()
    assert smaller < 0.5 * names["plain"].count_params()
    assert (tmp_path / "digits_model" / "saved_model.pb").exists()


@pytest.mark.integration
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="exports a SavedModel"
)
@pytest.mark.filterwarnings("ignore")  # of the converters
def test_the_other_examples_of_the_readme(tmp_path, monkeypatch):
    measure_quickly(monkeypatch)
    monkeypatch.setattr(compressing, "MOST", 20)
    monkeypatch.chdir(tmp_path)
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    names = {"keras": keras, "keras_vd": keras_vd, "plain": plain, "np": np}
    names["x"] = np.zeros((2, 784), "float32")
    names["x_train"] = np.random.default_rng(0).random((40, 64))
    names["y_train"] = np.arange(40) % 10
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL)[1:]:
        exec(compile(code, "README.md", "exec"), names)
    converted = {type(x).__name__ for x in names["variational"].layers}
    assert {"VDConv2D", "VDDepthwiseConv2D", "VDDense"} <= converted
    assert type(names["variational"].get_layer("Conv1")) is keras.layers.Conv2D
    assert isinstance(names["embedding"], keras_vd.layers.VDEmbedding)
    assert isinstance(names["recurrent"], keras_vd.layers.VDLSTM)
    assert isinstance(names["layer"], keras_vd.layers.VDDense)
    assert isinstance(names["report"], keras_vd.reports.DeploymentReport)
    small = keras.models.load_model(tmp_path / "small_digits.keras")
    assert small.input_shape == (None, 64)
    gates = keras_vd.sparsity_report(names["model"]).gates
    assert [gate.units for gate in gates] == [784, 300]
    assert names["prediction"].mutual_information.shape == (2,)


@pytest.mark.integration
def test_the_examples_of_the_page_on_uncertainty():
    """Oracle: what the page says comes out, with room for other backends."""
    page = (ROOT / "docs" / "uncertainty.md").read_text()
    names = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(code, "uncertainty.md", "exec"), names)
    # A standard normal distribution of these targets has -1.43 nats.
    assert names["score"] > -1.25
    assert 0.8 < names["inside"] < 0.98
    assert names["nats"] > -0.5
    right, sure = names["right"], names["sure"]
    assert right[sure].mean() > right[~sure].mean() + 0.05


def test_every_layer_is_in_the_documentation():
    text = README + (ROOT / "docs" / "layers.md").read_text()
    names = (*keras_vd.layers.__all__, *keras_vd.layers._LATER)
    missing = [name for name in names if f"`{name}`" not in text]
    assert missing == []


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(name)
    names = {"keras": keras, "keras_vd": keras_vd, "np": np}
    # What an example defines is the reader's.
    names["__name__"] = "__main__"
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    for example in finder.find(module, name, extraglobs=names):
        runner.run(example)
    assert runner.failures == 0


def test_the_table_of_layers_is_that_of_the_package():
    """Oracle: what the command that it names would write."""
    assert (ROOT / "docs" / "layers.md").read_text() == layer_table.page()


def test_the_table_of_layers_has_the_names_that_people_know():
    names = layer_table.NAMES
    assert names[keras.layers.Convolution2D] == "Conv2D"
    assert names[keras.layers.AvgPool1D] == "AveragePooling1D"
    # Exported under another name than that of its class.
    found = names[keras.layers.GroupQueryAttention]
    assert found == "GroupQueryAttention"
