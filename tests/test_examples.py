"""The examples that a user would copy."""

from __future__ import annotations

import ast
import importlib
import os
import pathlib
import re
import runpy
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = {
    file.stem: file
    for file in sorted((ROOT / "examples").glob("*.py"))
    if file.stem not in ("_launch", "imdb", "mnist")
}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """What an example prints, run in an empty folder.

    In this process: one of its own would first import the backend.
    """

    def start(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES[name]), run_name="__main__")
        return capsys.readouterr().out

    return start


def accuracies(text):
    """Accuracies in percent, by the name before them."""
    found = re.findall(r"^(\w+): accuracy ([\d.]+)%", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def parameters(text):
    found = re.findall(
        r"^(\w+): accuracy .*?, ([\d,]+) parameters", text, re.MULTILINE
    )
    return {name: int(value.replace(",", "")) for name, value in found}


def test_there_are_five():
    assert set(EXAMPLES) == {
        *("deploy", "sentiment", "train_and_prune"),
        *("trained_cnn", "uncertainty"),
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_they_are_short_and_stand_alone(name):
    text = EXAMPLES[name].read_text()
    assert len(text.splitlines()) <= 120
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    allowed = {"keras", "keras_vd", "numpy", "sklearn"}
    if name == "deploy":
        allowed |= {"tensorflow", "ai_edge_litert", "onnxruntime"}
    assert imported <= allowed | sys.stdlib_module_names
    assert f"examples/{name}.py" in (ROOT / "README.md").read_text()


def test_nothing_edits_the_path_of_modules():
    # In two parts, so that this file does not find itself.
    edits = re.compile("sys" + r"\.path\s*(\.|\[|\+?=)")
    for folder in ("benchmarks", "examples", "experiments", "tests", "tools"):
        for file in (ROOT / folder).rglob("*.py"):
            assert not edits.search(file.read_text()), file


@pytest.mark.integration
@pytest.mark.parametrize("name", ["train_and_prune", "trained_cnn"])
def test_small_networks_are_as_accurate_as_sparse_ones(name, run, tmp_path):
    """Oracle: the dense network, and predictions that shrinking keeps."""
    text = run(name)
    accuracy, sizes = accuracies(text), parameters(text)
    first = next(iter(accuracy))
    assert accuracy[first] > 94.0
    assert accuracy["small"] == accuracy["sparse"]
    assert accuracy["small"] > accuracy[first] - 2.5
    assert sizes["small"] < 0.7 * sizes[first]
    assert list(tmp_path.glob("small_*.keras"))


@pytest.mark.integration
def test_the_words_that_matter_are_kept(run):
    """Oracle: the 20 words that the labels depend on; a point is few of them.

    And the plain network: the budget is a point on texts held out, and a
    difference on 970 others has a standard error of half a point.
    """
    text = run("sentiment")
    kept = re.search(r"^kept \d+ of 500 words: (.*)$", text, re.MULTILINE)
    words = kept.group(1).split()
    matter = {word for word in words if not word.startswith("word")}
    assert 17 <= len(matter) <= 20
    assert len(words) < 60
    accuracy, sizes = accuracies(text), parameters(text)
    assert accuracy["plain"] > 97.0
    assert accuracy["small"] > accuracy["plain"] - 2.5
    assert sizes["small"] < sizes["plain"] / 5
    ratio = re.search(r"variational weights.*?([\d.]+) │", text)
    assert float(ratio.group(1)) > 20.0


@pytest.mark.integration
def test_the_unknown_is_told_from_the_known(run):
    """Oracle: digits upright are known, on their side and noise are not."""
    text = run("uncertainty")
    rows = {
        name: list(map(float, re.findall(r"[\d.]+", rest)))
        for name, rest in re.findall(
            r"^(upright|on their side|noise) (.*)$", text, re.MULTILINE
        )
    }
    assert rows["upright"][0] > 95.0
    # The last numbers of a row: entropy and mutual information.
    for name in ("on their side", "noise"):
        for known, unknown in zip(
            rows["upright"][-2:], rows[name][-2:], strict=True
        ):
            assert unknown > 2.0 * known


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")  # of the converters
def test_files_for_every_runtime(run, tmp_path):
    """Oracles: the sizes on disk, and Keras' outputs on unseen digits."""
    text = run("deploy")
    files = tmp_path / "deployed"
    sizes = {
        x: (files / x).stat().st_size for x in ("model.keras", "small.keras")
    }
    assert sizes["small.keras"] < 0.5 * sizes["model.keras"]
    for name, size in sizes.items():
        assert f"{name}: {size:,} bytes" in text
    differences = re.findall(
        r"^(\S+): .* of an output (\S+)$", text, re.MULTILINE
    )
    assert max(float(x) for _, x in differences) < 1e-4
    written = {name for name, _ in differences}
    assert "small.keras" in written
    if keras.backend.backend() == "tensorflow":
        assert {"saved_model", "small.tflite", "small.onnx"} <= written
    again = run("deploy", files / "small.keras")
    assert f"small.keras: {sizes['small.keras']:,} bytes" in again


def start(name, folder, *arguments):
    """Start an experiment as a user does, who has set no PYTHONPATH."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.pop("PYTHONPATH", None)
    return subprocess.Popen(
        [sys.executable, ROOT / "examples" / f"{name}.py", *arguments],
        env=environment | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.integration
@pytest.mark.parametrize("name", ["mnist", "imdb"])
def test_experiments_keep_their_names(name, capsys):
    if name == "imdb":
        pytest.importorskip("tensorflow")
    experiment = importlib.import_module(f"experiments.{name}.__main__")
    with pytest.raises(SystemExit) as ended:
        experiment.parse_arguments(["--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {name}.py [-h]")


@pytest.mark.integration
def test_experiments_keep_their_exit_codes(tmp_path):
    pytest.importorskip("tensorflow")
    process = start("imdb", tmp_path, "--epochs", "0")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    expected = "error: --epochs must be at least 1, not 0"
    assert errors.strip().splitlines()[-1] == expected


@pytest.mark.integration
def test_an_experiment_runs_in_the_folder_of_the_user(tmp_path):
    """Paths are relative to that folder, and its modules hide none."""
    (tmp_path / "experiments").mkdir()
    for module in ("experiments/__init__.py", "keras.py"):
        (tmp_path / module).write_text("raise RuntimeError")
    arrays = {
        "x_train": np.zeros((20, 8, 8), "uint8"),
        "y_train": np.arange(20) % 2,
        "x_test": np.zeros((4, 8, 8), "uint8"),
        "y_test": np.arange(4) % 2,
    }
    np.savez(tmp_path / "images.npz", **arrays)
    process = start(
        *("mnist", tmp_path, "--data", "images.npz", "--out", "found"),
        *("--method", "none", "--epochs", "1"),
    )
    text, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert text.rstrip().endswith("written to found")
    assert (tmp_path / "found" / "results.json").exists()


@pytest.mark.integration
@pytest.mark.skipif(os.name == "nt", reason="has other signals")
def test_an_experiment_ends_at_an_interrupt(tmp_path):
    # Where this process ignores interrupts, as jobs in the background do, the
    # one that it starts would, too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = start("mnist", tmp_path, "--dataset", "digits")
    signal.signal(signal.SIGINT, before)
    # While libraries start, their finalizers may swallow an interrupt.
    for line in process.stdout:
        if line.startswith("Epoch 2:"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
