"""Files that this and earlier versions have written still load.

`python -m tools.file_samples tests/files` has written them. Oracle: what their
models computed when they were written.
"""

from __future__ import annotations

import json
import pathlib
import zipfile

import keras
import numpy as np
import pytest

import keras_vd

FILES = sorted((pathlib.Path(__file__).parent / "files").glob("*/*.keras"))


def test_there_is_a_file_of_every_layer_and_posterior():
    names = {file.stem for file in FILES}
    assert {*keras_vd.layers.__all__, *keras_vd.layers._LATER} <= names
    kinds = keras_vd.posteriors._NAMES.values()
    assert {kind.__name__ for kind in kinds} <= names


def version(text):
    return [int(number) for number in text.split(".")[:2]]


@pytest.mark.core
@pytest.mark.parametrize(
    "file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}"
)
def test_a_file_loads_and_computes_the_same(file):
    if file.stem == "VDPositionEmbedding":
        pytest.importorskip("keras_hub", exc_type=ImportError)
    with zipfile.ZipFile(file) as archive:
        written_by = json.loads(archive.read("metadata.json"))["keras_version"]
    if version(written_by) > version(keras.__version__):
        pytest.skip(f"Keras {written_by} wrote arguments that older ones lack")
    model = keras.models.load_model(file)
    with np.load(file.with_suffix(".npz")) as expected:
        outputs = model(expected["inputs"])
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(outputs),
            expected["outputs"],
            rtol=1e-4,
            atol=1e-5,
        )
        assert keras_vd.kl_divergence(model) == pytest.approx(
            float(expected["kl_divergence"]), rel=1e-4
        )
    for weight in keras_vd.variational_weights(model):
        assert keras.ops.convert_to_numpy(weight.kl_weight) == np.float32(0.01)
        assert not keras.ops.convert_to_numpy(weight.keep_mask).all()
