"""A run that was killed and resumed ends as the one that was not."""

import keras
import numpy as np
import pytest

from keras_vd import callbacks
from keras_vd._backend import writing
from keras_vd.callbacks import KLAnnealing
from tests.helpers.arrays import to_float64
from tests.helpers.models import (
    Kill,
    classification_data,
    mlp,
    randomize,
    run_python,
)

EPOCHS = 6
KILLED_IN = 3


def train(directory, kill=None, source=keras.callbacks):
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
            source.BackupAndRestore(str(directory / "backup")),
            *(
                []
                if kill is None
                else [Kill(KILLED_IN, kill == "with the process")]
            ),
        ],
    ).history
    values = [
        to_float64(v) for v in [*model.weights, *model.optimizer.variables]
    ]
    return values, history["kl_weight"]


# (epoch - 1) / 4 of 1 / 16, by hand.
KL_WEIGHTS = [0.0, 0.0, 1 / 64, 2 / 64, 3 / 64, 4 / 64]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    values, kl_weights = train(tmp_path_factory.mktemp("unbroken"))
    assert kl_weights == pytest.approx(KL_WEIGHTS)
    return values


@pytest.mark.integration
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
            "import pathlib, sys; "
            "from tests.callbacks.test_resume import train; "
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


class KilledError(BaseException):
    """In the place of a signal, which nothing can catch."""


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("when", ["writing", "checking", "moving", "after"])
def test_a_run_killed_while_it_saves_equals_the_unbroken_one(
    when, unbroken, tmp_path, monkeypatch
):
    # Keras' own fails here: the epoch that it notes is not that of the weights.
    def kill(*arguments):
        raise KilledError

    def kill_after(*arguments):
        move(*arguments)
        raise KilledError

    saves = []

    def save(self, path):
        save_weights(self, path)
        saves.append(path)
        if len(saves) == KILLED_IN:
            if when == "writing":
                raise KilledError
            target = {"checking": "_flush"}.get(when, "_move")
            what = kill_after if when == "after" else kill
            patch.setattr(writing, target, what)

    save_weights, move = keras.Model.save_weights, writing._move
    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "save_weights", save)
        with pytest.raises(KilledError):
            train(tmp_path, source=callbacks)
    assert len(saves) == KILLED_IN
    values, kl_weights = train(tmp_path, source=callbacks)
    done = KILLED_IN if when == "after" else KILLED_IN - 1
    assert kl_weights == pytest.approx(KL_WEIGHTS[done:])
    for found, expected in zip(values, unbroken, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert not any((tmp_path / "backup").iterdir())


@pytest.mark.integration
@pytest.mark.core
def test_a_backup_of_another_kind_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, "by an error")
    with pytest.raises(ValueError, match="does not say how many epochs"):
        train(tmp_path, source=callbacks)
    backup = callbacks.BackupAndRestore(tmp_path)
    backup.set_model(keras.Sequential([keras.layers.Dense(1)]))
    with pytest.raises(ValueError, match="built before `fit`"):
        backup.on_train_begin()
