"""The comparison of shares, shrunk to seconds."""

import itertools
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments import compare_shares

QUICK = ("--dataset", "digits", "--limit", "150", "--epochs", "2")


@pytest.mark.integration
def test_one_command_makes_the_table(tmp_path, capsys):
    options = (
        *(*QUICK, "--finetune-epochs", "1", "--out", str(tmp_path)),
        *("--kl-weights", "0.5", "--shares"),
    )
    compare_shares.main([*options, "layer"])
    file = tmp_path / "layer-kl0.5-seed0" / "results.json"
    run = json.loads(file.read_text())
    assert run["recipe"]["share"] == "layer"
    assert run["recipe"]["kl_weight"] == 0.5
    found = compare_shares.figures(run)
    assert np.isfinite(found).all()
    # What is there already is read.
    other = tmp_path / "unit-kl0.5-seed0"
    other.mkdir()
    run["cpu_seconds"] = 12345.0
    (other / "results.json").write_text(json.dumps(run))
    capsys.readouterr()
    compare_shares.main([*options, "unit", "layer"])
    printed = capsys.readouterr().out
    assert "12,345" in printed
    table = (tmp_path / "table.md").read_text()
    assert table in printed
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.strip().splitlines()
    ]
    assert rows[0] == list(compare_shares.HEADER)
    assert [row[:2] for row in rows[2:]] == [
        ["unit", "0.5"],
        ["layer", "0.5"],
    ]
    assert (tmp_path / "frontier.png").stat().st_size > 1000
    assert float(rows[3][5]) == pytest.approx(found[2], abs=0.06)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--limit", "0", "--limit must be at least 1, not 0"),
        ("--shift", "-1", "--shift must be at least 0, not -1"),
        ("--seeds", "-3", "--seeds must be at least 0, not -3"),
        ("--shares", "row", "invalid choice: 'row'"),
    ],
)
def test_bad_options_are_refused(option, value, message, capsys):
    with pytest.raises(SystemExit) as ended:
        compare_shares.parse_arguments([option, value])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("low", "high"), [(70, 180), (71, 71.5), (8, 90), (2, 900), (1, 90000)]
)
def test_axes_can_be_read(low, high, monkeypatch, tmp_path):
    """Oracle: the boxes of labels as they are drawn."""
    monkeypatch.setattr(plt, "close", lambda figure: None)
    rows = {
        (share, 1.0): np.array([[2, 1.5 + n, x, 0, 0, 3 * x]])
        for n, (share, x) in enumerate((("weight", low), ("unit", high)))
    }
    compare_shares.draw(rows, tmp_path / "frontier.png", "lenet-5, mnist")
    figure = plt.gcf()
    for panel in figure.axes:
        assert panel.get_xscale() == "log"
        first, last = panel.get_xlim()
        labels = [
            label
            for label in panel.get_xticklabels(which="both")
            if label.get_text() and first <= label.get_position()[0] <= last
        ]
        assert 2 <= len(labels) <= 9
        boxes = [label.get_window_extent() for label in labels]
        for one, other in itertools.pairwise(boxes):
            assert one.x1 + 3 < other.x0
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= max(p.get_window_extent().x1 for p in figure.axes)
    monkeypatch.undo()
    plt.close(figure)
