"""The experiment on budgets, shrunk to seconds."""

import json

import numpy as np
import pytest

pytest.importorskip("tensorflow")
from experiments import budgets


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
    arguments += ["--dataset", "reviews", "cancer"]
    rows = budgets.run(budgets.parse_arguments(arguments))
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["rows"] == rows
    assert "reviews, seed 0: 60, 8, 20 to train on, hold out, test" in printed
    assert "cancer, seed 0: 341, 114, 114 to train on" in printed
    assert [row["dataset"] for row in rows] == ["reviews"] * 3 + ["cancer"] * 3
    for plain, full, budget in (rows[:3], rows[3:]):
        assert plain["nonzero_ratio"] == 1.0
        assert full["nonzero_ratio"] >= 1.0
        assert budget["network"] == "budget 0.01"
    for row in rows:
        assert 0.0 <= row["accuracy"] <= 100.0
        assert row["network"] in printed


def test_means_are_those_of_a_network(capsys):
    """Oracle: by hand."""
    columns = ("accuracy", "nonzero_ratio", "parameters", "seconds")
    rows = [
        {"dataset": "cancer", "network": name, **dict.fromkeys(columns, value)}
        for name, value in (("a", 1.0), ("b", 5.0), ("a", 3.0))
    ]
    budgets.show(rows, is_markdown=True)
    printed = capsys.readouterr().out
    assert "| cancer | a | 2.00 ± 1.41 | 2.0 ± 1.4 | 2 ± 1 | 2 ± 1 |" in printed
    assert "| cancer | b | 5.00 | 5.0 | 5 | 5 |" in printed


def test_no_example_is_in_two_parts():
    parsed = budgets.parse_arguments([])
    problem = budgets.cancer(parsed, 0)
    parts = [
        {row.tobytes() for row in x}
        for x, _ in (problem.train, problem.valid, problem.test)
    ]
    assert [len(part) for part in parts] == [341, 114, 114]
    assert len(set.union(*parts)) == 569


def test_the_shortest_texts_stay_in_order():
    """Oracle: counted by hand."""
    x = np.array([[5, 6, 7], [5, 0, 0], [5, 6, 0], [5, 6, 7]])
    found, labels = budgets.shortest(x, np.array([0, 1, 2, 3]), 3)
    assert labels.tolist() == [0, 1, 2]
    assert found.tolist() == x[:3].tolist()


def test_wrong_arguments_are_refused(capsys):
    for wrong in (["--seeds", "-1"], ["--budget", "0"], ["--images", "0"]):
        with pytest.raises(SystemExit):
            budgets.parse_arguments(wrong)
    assert "--images must be at least 1" in capsys.readouterr().err
