"""`experiments.bare_defaults`: its figures are those of the small models."""

import json

import pytest

from experiments import bare_defaults
from keras_vd.pipeline import compressing
from keras_vd.reports import ArtifactRow


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:KLTarget")  # few steps
def test_rows_are_written(tmp_path, capsys, monkeypatch, compiled_steps):
    # Without the process that measures files.
    files = [ArtifactRow(x, "Keras", bytes=1) for x in ("dense", "compressed")]
    monkeypatch.setattr(compressing, "keras_files", lambda *_: files)
    out = tmp_path / "bare"
    arguments = ["--epochs", "4", "--seeds", "3", "--out", str(out)]
    rows = bare_defaults.run(bare_defaults.parse_arguments(arguments))
    assert [row["started"] for row in rows] == ["untrained", "trained"]
    assert json.loads((out / "results.json").read_text())["rows"] == rows
    printed = capsys.readouterr().out
    for row in rows:
        assert f"| {row['accuracy']:.2f} |" in printed
        assert row["times_fewer"] == pytest.approx(
            (64 * 300 + 300 + 300 * 10 + 10) / row["parameters"]
        )


def test_test_digits_are_not_trained_on():
    """Oracle: all 1,797 digits are there, none of them twice."""
    (x, y), (x_test, y_test) = bare_defaults.digits(1)
    assert (len(x), len(x_test)) == (1437, 360) == (len(y), len(y_test))
    assert not {row.tobytes() for row in x} & {row.tobytes() for row in x_test}


def test_wrong_arguments_are_refused(capsys):
    for wrong in (["--seeds", "-1"], ["--epochs", "3"]):
        with pytest.raises(SystemExit):
            bare_defaults.parse_arguments(wrong)
    assert "--seeds must be at least 0" in capsys.readouterr().err
