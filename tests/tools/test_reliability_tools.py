"""A few cases of each check of reliability, and the checks themselves."""

import contextlib
import itertools
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests.helpers.arrays import random_inputs
from tests.helpers.models import REPOSITORY, mlp
from tools import mutations, training_stability

FILE_KINDS = [x for x in mutations.KINDS if not x.startswith("folder")]


@pytest.mark.parametrize("strength", [1, 2])
def test_the_design_covers_all_levels(strength):
    """Oracle: every combination, written out."""
    rows = training_stability.design(strength, seed=0)
    for names in itertools.combinations(training_stability.FACTORS, strength):
        wanted = itertools.product(
            *(training_stability.FACTORS[name] for name in names)
        )
        found = {tuple(row[name] for name in names) for row in rows}
        assert found == set(wanted)
    assert rows == training_stability.design(strength, seed=0)


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.filterwarnings("ignore")
def test_what_is_not_finite_is_noticed(monkeypatch):
    monkeypatch.setattr(training_stability, "EPOCHS", 1)
    monkeypatch.setattr(training_stability, "STEPS_PER_EPOCH", 2)
    row = {
        "layer": "dense",
        "posterior": "sparse_vd",
        "share": "unit",
        "policy": "float32",
        "optimizer": "Adam",
        "rate": 1e-3,
    }
    check = training_stability.Check()
    check(row)
    assert check.outcomes == {"finite": 1}
    fit = training_stability.fit

    def spoilt(row, is_plain, *others):
        model = fit(row, is_plain)
        if not is_plain:
            model.variables[0].assign(np.full(model.variables[0].shape, np.nan))
        return model

    monkeypatch.setattr(training_stability, "fit", spoilt)
    with pytest.raises(AssertionError):
        check(row)


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FILE_KINDS)
def test_a_damaged_file_runs_no_code(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(mutations, "BOMB", 2**20)
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    model = mlp("sparse_vd")
    model.save(path := folder / "m.keras")
    x = random_inputs(2, 6)
    canary = tmp_path / "a" / "canary"
    damage = mutations.Damage(path, np.random.default_rng(3), canary)
    mutations.KINDS[kind](damage)
    monkeypatch.chdir(folder)
    found = None
    # Keras and HDF5 raise errors of many types.
    with contextlib.suppress(Exception):
        found = keras.saving.load_model(path).predict(x, verbose=0)
    if found is not None and not damage.is_other_model:
        expected = model.predict(x, verbose=0)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    files = {x.name for x in tmp_path.rglob("*") if x.is_file()}
    assert files == {"m.keras"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("killed_runs", "--times", "7"),
        ("damaged_files", "--mutations", "12"),
        ("training_stability", "--only", "0"),
    ],
)
def test_command(command):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"tools.{command[0]}"]
        + list(command[1:]),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"| `python -m tools.{' '.join(command)}` |" in result.stdout
