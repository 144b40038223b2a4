"""The comparison of wishes with recipes, shrunk to seconds."""

import json

import numpy as np
import pytest

from experiments import targets

OPTIONS = ("--", "--limit", "500", "--epochs", "4", "--finetune-epochs", "0")


def read_table(file):
    lines = file.read_text().strip().splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines
    ]
    return rows[0], {row[0]: row[1:] for row in rows[2:]}


@pytest.mark.integration
def test_one_command_makes_the_table(tmp_path, capsys):
    """Oracle: the results of the runs; what is there already is read."""
    recipe = {
        "errors_percent": {"pruned": 12.0},
        "sparsity": {"nonzero_ratio": 6.0, "n_active": [50, 30, 20]},
        "shrunk": {"kept_parameters": 9_000, "kept_macs": 8_900},
    }
    plain = {"errors_percent": {"trained": 9.25}}
    budget = {
        "errors_percent": {"pruned": 11.5},
        "sparsity": {"nonzero_ratio": 7.0, "n_active": [40, 20, 10]},
        "shrunk": {"kept_parameters": 8_000, "kept_macs": 7_900},
        "history": {"target": [0.8, 0.9]},
    }
    for name, results in (
        ("recipe", recipe),
        ("plain", plain),
        ("budget", budget),
    ):
        folder = tmp_path / "seed0" / name
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(results))
    wishes = ("--wishes", "nonzero_ratio", "budget")
    targets.main(["--out", str(tmp_path), *wishes, *OPTIONS])
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out
    header, rows = read_table(tmp_path / "table.md")
    assert header == list(targets.HEADER)
    # 88.5% where the best epoch of the plain network less the budget is 90%.
    assert rows["accuracy, %"] == [
        *("90.00", "88.50", "1.50 points"),
        *("88.50", "88.00", "7.0", "6.0"),
    ]
    file = tmp_path / "seed0" / "nonzero_ratio" / "results.json"
    run = json.loads(file.read_text())
    assert run["recipe"]["wish"] == {"nonzero_ratio": 6.0}
    ratio = run["sparsity"]["nonzero_ratio"]
    assert ratio == pytest.approx(6.0, rel=0.05)
    accuracy = 100.0 - run["errors_percent"]["pruned"]
    asked, reached, missed, *others = rows["nonzero_ratio"]
    assert (asked, reached) == ("6.0", f"{ratio:.1f}")
    assert missed == f"{100 * abs(ratio / 6.0 - 1.0):.2f}%"
    assert others == [f"{accuracy:.2f}", "88.00", f"{ratio:.1f}", "6.0"]


def test_figures_of_every_experiment():
    """Oracle: results as the experiments write them, read by hand."""
    shrunk = {"kept_parameters": 8, "kept_macs": None}
    texts = {
        "accuracy_percent": {"trained": 80.0, "pruned": 79.0},
        "held_out_accuracy_percent": 78.5,
        "sparsity": {
            "ratio": 9.0,
            "n_active": [3, 2],
            "kept": {"words": [3, 100]},
        },
        "shrunk": {
            **shrunk,
            "rows": [
                {"layer": "Embedding", "kept_inputs": 5, "kept_outputs": 2},
                {"layer": "LSTM", "kept_inputs": 2, "kept_outputs": 4},
            ],
        },
    }
    assert targets.figures(texts) == {
        # 95 words of two features each, which `shrink` leaves in.
        "parameters": 8 + 190,
        "n_active": 5,
        "nonzero_ratio": 9.0,
        "accuracy": 79.0,
    }
    stages = {
        "stages": [{"accuracy_percent": 90.0}, {"accuracy_percent": 89.0}],
        "sparsity": {"nonzero_ratio": 3.0, "n_active": [2, 1]},
        "shrunk": {**shrunk, "kept_macs": 7},
    }
    assert targets.figures(stages) == {
        "parameters": 8,
        "macs": 7,
        "n_active": 3,
        "nonzero_ratio": 3.0,
        "accuracy": 89.0,
    }
    assert targets.lost_points(None, stages, 0, None) == 1.0
    assert targets.held_out_accuracy(stages) == 89.0
    assert targets.held_out_accuracy(texts) == 78.5
    logs = [{"target": 0.5}, {"target": 0.25}]
    assert targets.last_of({"history": logs}, "target") == 0.25
    assert targets.last_of({"history": {"target": [1, 2]}}, "target") == 2.0


@pytest.mark.parametrize(
    ("recipe", "plain"),
    [
        (
            {"held_out_accuracy_percent": 78.5},
            {"held_out_accuracy_percent": 80.0},
        ),
        (
            {
                "errors_percent": {"pruned": 21.5},
                "sparsity": {"nonzero_ratio": 3.0},
                "shrunk": {"kept_parameters": 8, "kept_macs": 7},
            },
            {"errors_percent": {"trained": 20.0}},
        ),
    ],
    ids=["texts", "images"],
)
def test_a_budget_is_what_the_recipe_lost(recipe, plain, tmp_path):
    """Oracle: a subtraction."""
    (tmp_path / "plain").mkdir()
    file = tmp_path / "plain" / "results.json"
    file.write_text(json.dumps(plain))
    assert targets.lost_points(None, recipe, 0, tmp_path) == 1.5


def test_seeds_are_averaged_and_the_largest_miss_is_told():
    """Oracle: mean and standard deviation by hand."""
    values = np.array(
        [[100, 102, 2, 97, 98, 5, 6], [110, 110, 0, 98, 98, 7, 6]]
    )
    assert targets.cells("macs", values.astype(float)) == [
        *("macs", "105 ± 7", "106 ± 6", "2.00%"),
        *("97.50 ± 0.71", "98.00 ± 0.00", "6.0 ± 1.4", "6.0 ± 0.0"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seeds", "-3"), "--seeds must be at least 0, not -3"),
        (("--wishes", "size"), "invalid choice: 'size'"),
    ],
)
def test_bad_options_are_refused(options, message, capsys):
    with pytest.raises(SystemExit) as ended:
        targets.parse_arguments(options)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.integration
def test_a_run_that_fails_ends_the_program(tmp_path):
    with pytest.raises(SystemExit) as ended:
        targets.main(["--out", str(tmp_path), "--", "--limit", "100"])
    assert ended.value.code == 2
