"""A run that was killed and resumed ends as the one that was not."""

import keras
import numpy as np
import pytest

from keras_vd.callbacks import KLAnnealing
from tests.models import (
    Kill,
    classification_data,
    mlp,
    randomize,
    run_python,
    to_numpy,
)

EPOCHS = 6
KILLED_IN = 3


def train(directory, kill=None):
    """Final variables by path, and the KL weight of each epoch."""
    keras.utils.set_random_seed(4)
    model = mlp("sparse_vd")
    randomize(model)
    model.compile(
        keras.optimizers.AdamW(0.02, weight_decay=0.01),
        "sparse_categorical_crossentropy",
    )
    inputs, labels = classification_data(16)
    history = model.fit(
        inputs,
        labels,
        batch_size=8,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[
            KLAnnealing(16, 1, 4, verbose=0),
            keras.callbacks.BackupAndRestore(str(directory / "backup")),
            *(
                []
                if kill is None
                else [Kill(KILLED_IN, kill == "with the process")]
            ),
        ],
    ).history
    values = [to_numpy(v) for v in [*model.weights, *model.optimizer.variables]]
    return values, history["kl_weight"]


# (epoch - 1) / 4 of 1 / 16, by hand.
KL_WEIGHTS = [0.0, 0.0, 1 / 64, 2 / 64, 3 / 64, 4 / 64]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    values, kl_weights = train(tmp_path_factory.mktemp("unbroken"))
    assert kl_weights == pytest.approx(KL_WEIGHTS)
    return values


@pytest.mark.parametrize(
    "kill",
    [pytest.param("by an error", marks=pytest.mark.core), "with the process"],
)
def test_resumed_run_equals_the_unbroken_one(kill, unbroken, tmp_path):
    # Exactly, to the last bit, optimizer and KL weights included.
    if kill == "by an error":
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, kill)
    else:
        code = (
            "import pathlib, sys; from tests.test_resume import train; "
            "train(pathlib.Path(sys.argv[1]), 'with the process')"
        )
        result = run_python(code, tmp_path)
        assert result.returncode == 9, result.stderr
    assert (tmp_path / "backup" / "latest.weights.h5").exists()
    values, kl_weights = train(tmp_path)
    # Only the epochs that were still to come.
    assert kl_weights == pytest.approx(KL_WEIGHTS[KILLED_IN:])
    for found, expected in zip(values, unbroken, strict=True):
        np.testing.assert_array_equal(found, expected)
