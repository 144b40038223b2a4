"""Exported models are compared before they are timed."""

import importlib.util
import json
import subprocess
import sys

import keras
import numpy as np
import pytest

from benchmarks import deployment, latency
from keras_vd.deployment.drawing import draw_inputs
from keras_vd.deployment.measuring import Measurement
from tests.helpers.models import REPOSITORY

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="The runtimes are given what Keras exports from TensorFlow.",
)
NEEDED = {
    "tensorflow": (),
    "litert": ("ai_edge_litert",),
    "onnx": ("onnxruntime", "tf2onnx"),
}
INSTALLED = [
    runtime
    for runtime, names in NEEDED.items()
    if all(importlib.util.find_spec(name) for name in names)
]
QUICK = ("--blocks", "2", "--seconds", "0.001", "--steps", "5")


def mlp(folder, units, features=6):
    inputs = keras.Input((features,))
    # Never zero: an error of a factor shows.
    hidden = keras.layers.Dense(units, "tanh")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(hidden))
    model.save(path := folder / f"mlp_{units}_{features}.keras")
    return str(path)


def lstm(folder, words, remap=False):
    """Ids of any number of steps, also through a table of other ids."""
    inputs = ids = keras.Input((None,), dtype="int32")
    if remap:
        table = keras.layers.Embedding(words, 1)
        ids = keras.ops.cast(keras.ops.squeeze(table(inputs), -1), "int32")
        hidden = keras.layers.Embedding(4, 2)(ids)
    else:
        hidden = keras.layers.Embedding(words, 3)(ids)
    outputs = keras.layers.Dense(1)(keras.layers.LSTM(4)(hidden))
    model = keras.Model(inputs, outputs)
    if remap:
        table.set_weights([np.arange(words).reshape(-1, 1) % 4])
    model.save(path := folder / f"lstm_{words}_{remap}.keras")
    return str(path)


@pytest.fixture(scope="module", params=["mlp", "lstm"])
def compared(request, tmp_path_factory):
    """What a run was given and wrote: paths, batch sizes, rows, table."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "mlp":
        paths, batch_sizes = [mlp(folder, 8), mlp(folder, 2)], (1, 3)
    else:
        paths = [lstm(folder, 30), lstm(folder, 20, remap=True)]
        batch_sizes = (2,)
    file = folder / "latency.json"
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.latency", *paths, *QUICK]
        + ["--batch-sizes", *map(str, batch_sizes), "--json", file]
        + ["--runtimes", *INSTALLED],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rows = json.loads(file.read_text())["rows"]
    return paths, batch_sizes, rows, result.stdout


@pytest.mark.integration
def test_every_model_is_timed_in_every_runtime(compared):
    paths, batch_sizes, rows, printed = compared
    assert [(row["runtime"], row["batch"], row["model"]) for row in rows] == [
        (runtime, batch, path)
        for runtime in INSTALLED
        for batch in batch_sizes
        for path in paths
    ]
    for row in rows:
        assert list(row) == list(latency.FORMATS)
        assert row["error"] is None
        assert 0 <= row["difference"] <= 1e-4
        assert row["bytes"] > 100
        assert row["ms"] > 0
        assert 0 < row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
    # The reference against itself, block by block.
    for row in rows[::2]:
        assert row["speedup_low"] == row["speedup"] == row["speedup_high"] == 1
    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(rows)
    assert len({line.count("|") for line in table}) == 1


def test_ids_are_those_that_all_models_know(tmp_path):
    # Oracle: tables of 30 and 20 words, the second before another table.
    paths = [lstm(tmp_path, 30), lstm(tmp_path, 20, remap=True)]
    models = [latency.load(path) for path in paths]
    (ids,) = draw_inputs(models, 50, 8)
    assert ids.shape == (50, 8)
    assert ids.dtype == np.int32
    assert (ids.min(), ids.max()) == (0, 19)
    (ids,) = draw_inputs(models[:1], 50, 8)
    assert ids.max() == 29


def test_float_inputs_are_normal_numbers_unless_they_are_ids(tmp_path):
    inputs = [keras.Input((400,)), keras.Input((400,))]
    embedded = keras.layers.Embedding(7, 1)(inputs[1])
    outputs = keras.ops.mean(embedded, 1) + keras.layers.Dense(1)(inputs[0])
    model = keras.Model(inputs, outputs)
    numbers, ids = draw_inputs([model], 10, 5)
    assert numbers.dtype == ids.dtype == np.float32
    assert abs(numbers.mean()) < 0.1
    assert numbers.std() == pytest.approx(1, abs=0.1)
    assert set(ids.flat) == set(range(7))


def run(*arguments):
    latency.main([*arguments, *QUICK, "--batch-sizes", "2"])


def test_other_inputs_are_refused_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run(mlp(tmp_path, 8), mlp(tmp_path, 8, features=5))
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "mlp_8_5.keras has inputs" in captured.err


def test_what_is_no_model_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "text.keras").write_text("nothing")
    for name in ("text.keras", "none.keras"):
        with pytest.raises(SystemExit) as ended:
            run(mlp(tmp_path, 8), str(tmp_path / name))
        assert ended.value.code == 2
        assert f"{name} holds no" in (error := capsys.readouterr().err)
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda outputs: 1.001 * outputs, "relative difference 1.0e-03"),
        (lambda outputs: outputs[:, :1], "relative difference inf"),
        (lambda outputs: np.nan * outputs, "relative difference nan"),
    ],
)
def test_a_wrong_artifact_gets_no_time(
    change, message, tmp_path, monkeypatch, capsys
):
    paths, file = [mlp(tmp_path, 8), mlp(tmp_path, 2)], tmp_path / "rows.json"

    def write(model, path, batch_size):
        path.write_text("exported")

    def measure(runtime, files, arrays, blocks, seconds):
        outputs = [
            latency.predict(latency.load(path), arrays) for path in paths
        ]
        outputs[1] = [change(array) for array in outputs[1]]
        return [Measurement(1.0, [1.0], found) for found in outputs]

    onnx = (*latency.RUNTIMES["onnx"][:2], write)
    monkeypatch.setitem(latency.RUNTIMES, "onnx", onnx)
    monkeypatch.setattr(latency, "measure", measure)
    run(*paths, "--runtimes", "onnx", "--json", str(file))
    right, wrong = json.loads(file.read_text())["rows"]
    assert right["speedup"] == 1
    assert wrong["error"].endswith(message)
    assert wrong["ms"] is wrong["speedup"] is None
    assert message in capsys.readouterr().out


def test_speedups_are_of_neighbouring_blocks():
    # Oracle: by hand. The ratios are 2, 4 and 1.
    reference, other = [4.0, 4.0, 8.0], [2.0, 1.0, 8.0]
    found = Measurement(ms=other).speedups(Measurement(ms=reference))
    assert found == (2, 1.5, 3)


def test_a_failing_runtime_leaves_a_row(tmp_path, monkeypatch, capsys):
    def write(model, path, batch_size):
        raise RuntimeError("no such operation\nand more")

    onnx = (*latency.RUNTIMES["onnx"][:2], write)
    monkeypatch.setitem(latency.RUNTIMES, "onnx", onnx)
    run(mlp(tmp_path, 2), "--runtimes", "onnx")
    assert "RuntimeError: no such operation |" in capsys.readouterr().out


def test_a_runtime_that_is_not_installed_is_no_error(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    run(mlp(tmp_path, 2), "--runtimes", "onnx")
    assert "| not installed: " in capsys.readouterr().out


def test_all_formats_are_asked_for_what_both_models_know(tmp_path, monkeypatch):
    """Oracle: the smaller of two tables of words limits the ids drawn."""
    asked = []

    def report(model, x, reference, batch_sizes):
        asked.append((model, x, reference, batch_sizes))

    monkeypatch.setattr(
        deployment.keras_vd.deployment, "deployment_report", report
    )
    dense, small = lstm(tmp_path, 9), lstm(tmp_path, 7)
    deployment.main([dense, small, "--steps", "5", "--batch-sizes", "1", "2"])
    ((model, x, reference, batch_sizes),) = asked
    assert reference.layers[1].input_dim == 9
    assert model.layers[1].input_dim == 7
    assert x.shape == (2, 5)
    assert 0 <= x.min() <= x.max() < 7
    assert batch_sizes == [1, 2]
    with pytest.raises(SystemExit) as exit_info:
        deployment.main([dense, mlp(tmp_path, 3)])
    assert exit_info.value.code == 2
