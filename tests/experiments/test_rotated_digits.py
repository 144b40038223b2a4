"""The experiment on rotated digits, shrunk to seconds."""

import json

import numpy as np
import pytest

from experiments import rotated_digits
from experiments.mnist import data as mnist_data


def run(*arguments):
    return rotated_digits.run(
        rotated_digits.parse_arguments([str(a) for a in arguments])
    )


@pytest.mark.integration
@pytest.mark.core
def test_it_runs_and_writes_what_it_says(tmp_path, capsys):
    results = run(
        *("--epochs", 4, "--limit", 400, "--num-samples", 5, "--step", 90),
        *("--out", tmp_path / "out"),
    )
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written == results
    assert (tmp_path / "out" / "rotated.png").read_bytes()[:4] == b"\x89PNG"
    assert [row["angle"] for row in results["rows"]] == [0, 90, 180]
    for row in results["rows"]:
        both = row["variational"], row["plain"]
        # Oracle: their definitions bound them.
        for figures in both:
            assert 0.1 <= figures["confidence"] <= 1.0
            assert 0.0 <= figures["entropy"] <= np.log(10)
            gap = abs(figures["accuracy"] - figures["confidence"])
            assert gap <= figures["calibration_error"] + 1e-6
        assert 0.0 < both[0]["mutual_information"] < both[0]["entropy"]
        assert "mutual_information" not in both[1]
    upright, turned = (x["variational"] for x in results["rows"][:2])
    assert upright["accuracy"] > turned["accuracy"]
    printed = capsys.readouterr().out
    assert f"{100 * upright['accuracy']:.1f}" in printed
    assert f"{turned['entropy']:.3f}" in printed


@pytest.mark.parametrize(("angle", "turns"), [(0, 0), (90, 1), (180, 2)])
def test_right_angles_are_exact(angle, turns):
    # Oracle: NumPy's rotation by quarters.
    images = mnist_data.load("digits", None).x_test[:5]
    np.testing.assert_allclose(
        rotated_digits.rotate(images, angle),
        np.rot90(images, turns, axes=(1, 2)),
        atol=1e-5,
    )


def test_other_angles_stay_images():
    images = mnist_data.load("digits", None).x_test[:5]
    rotated = rotated_digits.rotate(images, 37)
    assert rotated.shape == images.shape
    assert rotated.dtype == images.dtype
    assert rotated.min() >= 0.0
    assert rotated.max() <= 1.0


@pytest.mark.parametrize("option", ["--epochs", "--num-samples", "--step"])
def test_impossible_wishes_end_with_one_line_and_code_2(option, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run(option, 0)
    assert exit_info.value.code == 2
    stderr = capsys.readouterr().err.strip()
    assert stderr == f"error: {option} must be at least 1, not 0"
