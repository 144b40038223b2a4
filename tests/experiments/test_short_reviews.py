"""The experiment on short reviews, shrunk to seconds."""

import json

import numpy as np
import pytest

pytest.importorskip("tensorflow")
from experiments import short_reviews


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:KL")  # of a few steps
def test_it_runs_and_writes_what_it_says(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("keras_vd.pipeline.compressing.FEWEST", 4)
    monkeypatch.setattr("keras_vd.pipeline.compressing.MOST", 4)
    rng = np.random.default_rng(0)
    file = tmp_path / "texts.npz"
    arrays = {
        "x_train": rng.integers(1, 30, (80, 12)),
        "y_train": np.arange(80) % 2,
        "x_test": rng.integers(1, 30, (20, 12)),
        "y_test": np.arange(20) % 2,
    }
    np.savez(file, **arrays)
    options = {"data": file, "texts": 60, "vocabulary": 30, "length": 8}
    options |= {"epochs": 2, "out": tmp_path / "out"}
    arguments = [f"--{k}={v}" for k, v in options.items()]
    results = short_reviews.run(short_reviews.parse_arguments(arguments))
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written == results
    assert results["texts"] == {"train": 60, "valid": 8, "test": 20}
    plain, full, budget = results["rows"]
    assert plain["nonzero_ratio"] == 1.0
    assert full["nonzero_ratio"] >= 1.0
    assert budget["network"] == "budget 0.01"
    for row in results["rows"]:
        assert 0.0 <= row["accuracy"] <= 100.0
        assert row["network"] in printed


def test_the_shortest_texts_stay_in_order():
    """Oracle: counted by hand."""
    x = np.array([[5, 6, 7], [5, 0, 0], [5, 6, 0], [5, 6, 7]])
    found, labels = short_reviews.shortest(x, np.array([0, 1, 2, 3]), 3)
    assert labels.tolist() == [0, 1, 2]
    assert found.tolist() == x[:3].tolist()
