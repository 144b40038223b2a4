"""The report says what is on disk and what the runtimes do with it."""

import json
import sys

import keras
import numpy as np
import pytest

from keras_vd import deployment
from keras_vd.deployment import comparison
from tests.helpers.arrays import random_inputs
from tests.helpers.deployment import (
    BACKEND,
    ON_TENSORFLOW,
    dense_model,
    measure_quickly,
    size,
)
from tests.helpers.models import mlp

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    measure_quickly(monkeypatch)


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    reference = keras.models.clone_model(model := dense_model())
    with pytest.MonkeyPatch.context() as patch:
        measure_quickly(patch)
        patch.setitem(sys.modules, "onnxruntime", None)
        report = deployment.deployment_report(
            model, random_inputs(3, 32), reference, folder, (1, 4), verbose=0
        )
    return folder, report


@pytest.mark.integration
@ON_TENSORFLOW
@pytest.mark.filterwarnings("ignore")  # of the converters
def test_rows_are_what_is_on_disk(reported):
    folder, report = reported
    rows = {(row.runtime, row.artifact): row for row in report.rows}
    assert len(rows) == len(report.rows) == 15
    for runtime, artifact, file in (
        ("Keras", "dense", "dense.keras"),
        ("Keras", "compressed", "compressed.keras"),
        ("TensorFlow", "packed", "packed_saved_model"),
        ("LiteRT", "sparse", "batch_1_sparse.tflite"),
    ):
        row, dense = rows[runtime, artifact], rows[runtime, "dense"]
        assert row.error == ""
        assert row.bytes == size(folder / file)
        assert 0 < row.gzip_bytes < row.bytes
        assert row.disk_ratio == pytest.approx(dense.bytes / row.bytes)
        assert set(row.ms) == set(row.latency_ratio) == {1, 4}
        assert row.load_ms > 0
        assert 0 <= row.difference < 1e-4
    dense = rows["TensorFlow", "dense"]
    assert dense.disk_ratio == dense.latency_ratio[1] == 1
    archive = rows["Keras", "archive, 8 bits"]
    for row in (archive, rows["TensorFlow", "packed, int8"]):
        assert 1e-6 < row.difference < 0.05
    assert archive.bytes == size(folder / "archive.kvd")


@ON_TENSORFLOW
@pytest.mark.filterwarnings("ignore")
def test_a_missing_runtime_is_a_row_with_the_reason(reported):
    _, report = reported
    rows = [row for row in report.rows if row.runtime == "ONNX Runtime"]
    assert len(rows) == 3
    for row in rows:
        assert "keras-vd[runtimes]" in row.error
        assert row.bytes is row.disk_ratio is row.difference is None
    assert str(report).count("keras-vd[runtimes]") == 3


@ON_TENSORFLOW
@pytest.mark.filterwarnings("ignore")
def test_the_report_is_a_table_a_page_and_json(reported):
    _, report = reported
    assert json.loads(json.dumps(report.to_dict()))["rows"][0]["bytes"] > 0
    assert "compiled" in str(report)
    assert "compression" not in str(report)
    assert "<table>" in report._repr_html_()
    assert report.to_table().row_count == len(report.rows)


def test_arguments_are_checked():
    x = random_inputs(2, 32)
    other = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="`reference` must have the inputs"):
        deployment.deployment_report(dense_model(), x, other)
    with pytest.raises(ValueError, match="convert it first"):
        deployment.deployment_report(mlp(), random_inputs(2, 6))
    with pytest.raises(ValueError, match="`batch_sizes` must hold"):
        deployment.deployment_report(dense_model(), x, batch_sizes=())
    with pytest.raises(ValueError, match="`batch_sizes` must be an integer"):
        deployment.deployment_report(dense_model(), x, batch_sizes=(0,))


@pytest.mark.core
@pytest.mark.skipif(BACKEND != "torch", reason="TensorFlow writes them all.")
def test_what_a_backend_cannot_write_is_a_row():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    report = deployment.deployment_report(
        model, np.ones((1, 4)), batch_sizes=(1,), verbose=0
    )
    for row in report.rows:
        if row.runtime in ("TensorFlow", "LiteRT"):
            assert "KERAS_BACKEND=tensorflow" in row.error
        elif row.runtime == "Keras":
            assert row.error == ""


def test_the_dense_file_is_measured_without_an_optimizer(tmp_path):
    """Oracle: the same model, never compiled; Adam would double its file."""
    model = keras.Sequential([keras.Input((40,)), keras.layers.Dense(60)])
    dense = comparison.ARTIFACTS[0][0]
    sizes = []
    for name in ("uncompiled", "compiled"):
        if name == "compiled":
            model.compile("adam", "mse")
            model.fit(np.ones((8, 40)), np.ones((8, 60)), verbose=0)
        dense.write(model, path := tmp_path / f"{name}.keras", 1)
        sizes.append(size(path))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)
