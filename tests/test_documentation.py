"""What the README, the pages and the docstrings show does what they say."""

import doctest
import importlib
import inspect
import pathlib
import re

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

import keras_vd
from keras_vd.pipeline import compressing
from tests.helpers.deployment import measure_quickly
from tests.helpers.package import MODULES, public_names
from tools import layer_table

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


DOCS = ROOT / "docs"
# How a fence begins, and what is within.
FENCE = re.compile(r"^(`{3,}|:{3,})([^\n]*)\n(.*?)^\1\s*$", re.M | re.S)
SHELL = re.compile(r"([A-Z_]+=\S+ )*(pip|python|bash|git|pytest) |for i in ")
# Pages whose code a test of its own runs.
RUN_ELSEWHERE = {
    "custom_loops.md": "tests/test_custom_loops.py",
    "distributed.md": "tests/helpers/distributed/steps.py",
    "uncertainty.md": "tests/test_documentation.py",
}


def blocks(text):
    """Pairs of what stands behind a fence and what is within."""
    return [(info.strip(), code) for _, info, code in FENCE.findall(text)]


def python_of(path):
    return [code for info, code in blocks(path.read_text()) if info == "python"]


PAGES = {
    path.relative_to(DOCS).as_posix(): path
    for path in sorted(DOCS.rglob("*.md"))
    if python_of(path)
}


def test_every_block_of_code_runs():
    """Each is run by a test or while the book is built, or is for a shell."""
    for path in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        text = path.read_text()
        for info, code in blocks(text):
            if info.startswith("{code-cell}"):
                # Cells run where the page says that it has them.
                assert "file_format: mystnb" in text, path
            elif not info.startswith(("{", "python")):
                assert info == "", (path, info)
                assert SHELL.match(code), (path, code)
    # Who adds a page or a block adds to these figures.
    assert len(PAGES) == 16
    assert sum(len(python_of(path)) for path in PAGES.values()) == 42
    for page, test in RUN_ELSEWHERE.items():
        assert page in PAGES
        assert page in (ROOT / test).read_text()


def test_every_link_leads_somewhere():
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / link).exists(), (path, link)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


@pytest.mark.integration
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="exports a SavedModel"
)
def test_the_first_example_of_the_readme(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compressing, "MOST", 20)
    keras.utils.set_random_seed(0)
    names = {}
    first, *others = python_of(ROOT / "README.md")
    assert len(first.strip().split("\n")) <= 13
    exec(compile(first, "README.md", "exec"), names)
    assert "Sparsity at inference" in capsys.readouterr().out
    # Oracle: the promise of the page. Sparse, accurate, plain, exported.
    report = keras_vd.sparsity_report(names["model"])
    assert report.nonzero_ratio > 10
    small, x = names["small"], names["x"] / 16
    classes = small.predict(x, verbose=0).argmax(-1)
    assert np.mean(classes == names["y"]) > 0.96
    assert {type(layer).__module__.split(".")[0] for layer in small.layers} == {
        "keras"
    }
    assert small.count_params() < 0.5 * 22510
    assert (tmp_path / "digits_model" / "saved_model.pb").exists()
    for code in others:
        exec(compile(code, "README.md", "exec"), names)
    assert type(names["report"]).__name__ == "CompressionReport"
    assert names["small"].input_shape == (None, 64)


@pytest.mark.integration
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="exports a SavedModel"
)
@pytest.mark.filterwarnings("ignore")  # of the converters
@pytest.mark.parametrize("page", sorted(set(PAGES) - set(RUN_ELSEWHERE)))
def test_the_code_of_a_page(page, tmp_path, monkeypatch):
    """Oracles: what the page says comes out, where it says something."""
    measure_quickly(monkeypatch)
    monkeypatch.setattr(compressing, "MOST", 20)
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in python_of(PAGES[page]):
        exec(compile(code, page, "exec"), names)
    CHECKS[page](names)


def check_partial(names):
    partly, features = names["partly"], names["features"]
    (posterior,) = keras_vd.variational_weights(partly)
    assert posterior.theta.shape == (50, 10)
    assert names["accuracy"] > 0.85
    mean = names["prediction"].mean
    drawn = keras_vd.predict_mc(
        names["head"], features[1400:], seed=0, verbose=0
    ).mean
    np.testing.assert_allclose(drawn, mean, atol=1e-5)


def check_variational_model(names):
    report = keras_vd.sparsity_report(names["model"])
    assert report.nonzero_ratio > 1.5
    assert isinstance(names["embedding"], keras_vd.layers.VDEmbedding)
    assert isinstance(names["recurrent"], keras_vd.layers.VDLSTM)
    assert isinstance(names["layer"], keras_vd.layers.VDDense)


def check_gates(names):
    gates = keras_vd.sparsity_report(names["model"]).gates
    assert [gate.units for gate in gates] == [784, 300]


def check_trained_model(names):
    converted = {type(x).__name__ for x in names["variational"].layers}
    assert {"VDSeparableConv2D", "VDDense"} <= converted
    assert type(names["variational"].get_layer("stem")) is keras.layers.Conv2D
    assert keras_vd.sparsity_report(names["gated"]).gates
    plain = keras_vd.to_deterministic(names["variational"])
    images = names["images"]
    np.testing.assert_allclose(
        *(x.predict(images, verbose=0) for x in (names["small"], plain)),
        atol=1e-4,
    )
    assert pathlib.Path("small/saved_model.pb").exists()
    divergence = keras_vd.kl_divergence(names["bayesian"])
    assert np.isfinite(divergence)


def check_target(names):
    small = keras.models.load_model("small_digits.keras")
    assert small.input_shape == (None, 64)
    assert pathlib.Path("small_digits/saved_model.pb").exists()
    assert isinstance(names["report"], keras_vd.reports.CompressionReport)


def check_shrinking(names):
    plain = names["plain"].layers[0].get_weights()[0]
    assert np.mean(plain == 0) == pytest.approx(0.97, abs=0.01)
    assert names["small"].count_params() < names["plain"].count_params()


def check_looking(names):
    assert "<html" in pathlib.Path("report.html").read_text()


def check_predicting(names):
    prediction = names["prediction"]
    digits = load_digits().target[1400:]
    assert np.mean(prediction.mean.argmax(-1) == digits) > 0.8
    assert (prediction.mutual_information > -1e-5).all()
    # Oracle: the targets. Normal ones, without inputs, need 2 x 1.645.
    targets, lower, upper = (names[x] for x in ("y", "lower", "upper"))
    inside = (lower < targets[342:]) & (targets[342:] < upper)
    assert np.mean(inside) == pytest.approx(0.9, abs=0.08)
    assert np.mean(upper - lower) < 3.0


def check_resuming(names):
    """Oracle: a run that was never killed, in a folder of its own."""
    found = names["model"].get_weights()
    pathlib.Path("backup").rename("old")
    for one, other in zip(found, names["train"](6).get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def check_deploying(names):
    assert isinstance(names["report"], keras_vd.reports.DeploymentReport)
    found = names["loaded"].predict(names["x"], verbose=0)
    wanted = names["plain"].predict(names["x"], verbose=0)
    assert np.abs(found - wanted).max() < 0.05


def check_tfmot(names):
    kernel = names["model"].layers[0].get_weights()[0]
    assert np.mean(kernel == 0) == pytest.approx(0.8, abs=0.02)
    assert pathlib.Path("small.tflite").exists()
    report = keras_vd.sparsity_report(names["variational"])
    assert report.nonzero_ratio == pytest.approx(10.0, rel=0.05)


def check_tfp(names):
    assert names["draws"].samples.shape == (50, 397, 10)
    assert (keras.ops.convert_to_numpy(names["sigma"]) > 0).all()


def check_bayesian_torch(names):
    right = names["prediction"].mean.argmax(-1) == names["y"][1400:]
    assert right.mean() > 0.8


CHECKS = {
    "howto/variational_model.md": check_variational_model,
    "howto/gates.md": check_gates,
    "howto/trained_model.md": check_trained_model,
    "howto/target.md": check_target,
    "howto/shrinking.md": check_shrinking,
    "howto/looking.md": check_looking,
    "howto/partial.md": check_partial,
    "howto/predicting.md": check_predicting,
    "howto/resuming.md": check_resuming,
    "howto/deploying.md": check_deploying,
    "migration/tfmot.md": check_tfmot,
    "migration/tfp.md": check_tfp,
    "migration/bayesian_torch.md": check_bayesian_torch,
}


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
    assert names["tailed_score"] > -1.35
    assert names["drawn_nats"] > -0.5
    right, sure = names["right"], names["sure"]
    assert right[sure].mean() > right[~sure].mean() + 0.05


def test_every_layer_is_in_the_documentation():
    pages = [DOCS / "layers.md", *(DOCS / "howto").glob("*.md")]
    text = README + "".join(page.read_text() for page in pages)
    names = (*keras_vd.layers.__all__, *keras_vd.layers._LATER)
    missing = [name for name in names if f"`{name}`" not in text]
    assert missing == []


_EXAMPLES = doctest.DocTestParser()


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


def test_every_entry_of_the_reference_has_an_example():
    """Those of reports are in the functions that return them."""
    missing = []
    for name in public_names():
        path, _, last = name.rpartition(".")
        if path in ("keras_vd.reports", "keras_vd.plots"):
            continue
        try:
            value = getattr(importlib.import_module(path), last)
        except ImportError:
            # A layer of a library that is not here.
            assert last in keras_vd.layers._LATER
            continue
        if not inspect.isclass(value) and not inspect.isfunction(value):
            # Modules and constants.
            continue
        text = value.__doc__ or ""
        if "Example" not in text or not _EXAMPLES.get_examples(text):
            missing.append(name)
        # Where the test above runs it.
        assert value.__module__ in MODULES, name
    assert missing == []


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
