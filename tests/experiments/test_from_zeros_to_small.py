"""The picture of the README, after a few epochs."""

import matplotlib.image
import numpy as np
import pytest

from experiments import from_zeros_to_small


@pytest.mark.integration
def test_the_picture_has_what_is_printed(tmp_path, capsys, compiled_steps):
    """Oracles: the layers' sizes, counts by NumPy, equal predictions."""
    out = tmp_path / "pipeline.png"
    stages = from_zeros_to_small.main(["--epochs", "15", "--out", str(out)])
    trained, zeros, small = stages.values()
    assert trained["parameters"] == zeros["parameters"] == 64 * 300 + 310 + 3000
    assert trained["nonzero"] == 64 * 300 + 3000 > zeros["nonzero"]
    rows = [kernel.shape for kernel in small["kernels"]]
    assert rows == [(64, rows[1][0]), (rows[1][0], 10)]
    assert small["parameters"] == 75 * rows[1][0] + 10
    assert small["accuracy"] == zeros["accuracy"] > 80.0
    assert small["bytes"] < zeros["bytes"] < trained["bytes"]
    pixels = matplotlib.image.imread(out)
    assert pixels.shape[1] == 1200
    # Something is drawn, on white.
    assert np.ptp(pixels[..., :3]) == 1.0
    assert f"nonzero={zeros['nonzero']}" in capsys.readouterr().out
