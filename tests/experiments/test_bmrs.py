"""The experiment on the networks of BMRS, shrunk to seconds."""

import json

import keras
import numpy as np
import pytest

from experiments import bmrs


def run(*arguments):
    return bmrs.run(bmrs.parse_arguments([str(x) for x in arguments]))


@pytest.mark.integration
@pytest.mark.parametrize("network", bmrs.RECIPES)
def test_it_runs_and_writes_what_it_says(network, tmp_path, capsys):
    results = run(
        *("--network", network, "--dataset", "digits", "--limit", 100),
        *("--epochs", 1, "--seeds", 2, "--out", tmp_path),
    )
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(
        json.dumps(results)
    )
    printed = capsys.readouterr().out
    first, second = results["runs"]
    assert (first["seed"], second["seed"]) == (0, 1)
    mean = np.mean([x["accuracy"] for x in results["runs"]])
    assert f"{mean:.2f} ±" in printed
    # Oracle: what Keras counts in the file.
    shrunk = keras.saving.load_model(tmp_path / "shrunk-0.keras")
    whole = bmrs.build(network, 10).count_params()
    left = 100.0 * (1.0 - shrunk.count_params() / whole)
    assert first["shrunk_percent"] == pytest.approx(left)


@pytest.mark.parametrize(
    ("network", "weights"),
    [
        # Oracle: by hand; of the paper's code, with 32x32 inputs.
        ("lenet5", 156 + 2416 + 48_120 + 10_164 + 850),
        ("mlp", 51_250 + 5 * 2_550 + 510),
    ],
)
def test_the_networks_are_those_of_the_paper(network, weights):
    assert bmrs.build(network, 10).count_params() == weights


def test_parameters_are_counted_as_the_paper_does():
    # Oracle: by hand. Two filters of the second convolution are gone, and
    # what reads them, 2 * 25 of 400 pixels, counts as kept; 100 of 120 units,
    # with 400 weights before and 84 behind each.
    model = bmrs.build("lenet5", 10, (1.0,) * 4)
    gates = [x for x in model.layers if hasattr(x, "keep_mask")]
    gates[1].keep_mask.assign(np.arange(16) >= 2)
    gates[2].keep_mask.assign(np.arange(120) >= 100)
    total = bmrs.build("lenet5", 10).count_params() + 2 * (6 + 16 + 120 + 84)
    removed = 2 * 150 + 2 * 2 + 100 * (400 + 84 + 2)
    assert bmrs.removed_percent(model) == pytest.approx(100 * removed / total)
    gates[0].keep_mask.assign(np.arange(6) >= 1)
    removed += 25 + 14 * 25 + 2
    assert bmrs.removed_percent(model) == pytest.approx(100 * removed / total)


def test_images_are_enlarged():
    # Oracle: bilinear interpolation keeps a ramp a ramp, and the colors.
    from experiments.mnist import data

    images = data.load("digits", None).limited(3)
    large = bmrs.enlarged(images)
    assert large.x_train.shape == (3, 32, 32, 1)
    assert large.x_test.shape[1:] == (32, 32, 1)
    assert large.x_train.min() >= 0.0
    assert large.x_train.max() <= 1.0
    np.testing.assert_allclose(
        large.x_train.mean(), images.x_train.mean(), atol=0.02
    )


@pytest.mark.parametrize("option", ["--seeds", "--epochs", "--holdout"])
def test_impossible_wishes_end_with_one_line_and_code_2(option, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run(option, 0)
    assert exit_info.value.code == 2
    stderr = capsys.readouterr().err.strip()
    assert stderr == f"error: {option} must be at least 1, not 0"
