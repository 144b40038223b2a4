"""Models, steps and runs that the tests of several devices share."""

import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_vd import layers, posteriors, prune, sparsity_report
from keras_vd.callbacks import KLAnnealing, KLTarget
from tests.helpers.arrays import to_float64
from tests.helpers.models import (
    REPOSITORY,
    Kill,
    classification_data,
    run_python,
)

EXAMPLES = 16
# So large that the KL outweighs the likelihood.
KL_WEIGHT = 0.01


def quiet():
    """A posterior with a KL and next to no noise: sigma is 3e-7."""
    return posteriors.ARD(log_sigma2_init=-30.0, estimator="weight")


def noisy():
    """A posterior whose noise is as large as its weights."""
    return posteriors.ARD(log_sigma2_init=-2.0)


def dense(posterior, gates=True):
    """Dense layers with group variables and, as an option, a gate."""
    options = {"posterior": posterior, "kl_weight": KL_WEIGHT}
    gate = layers.BetaBernoulliDropout(kl_weight=KL_WEIGHT, a_init=2.0)
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.VDDense(8, "relu", groups=("input",), **options),
            *([gate] if gates else []),
            layers.VDDense(4, "softmax", **options),
        ]
    )


def recurrent(posterior):
    options = {"posterior": posterior, "kl_weight": KL_WEIGHT}
    return keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.VDEmbedding(12, 4, **options),
            layers.VDLSTM(4, **options),
            layers.VDDense(4, "softmax", **options),
        ]
    )


def data(model):
    inputs, labels = classification_data(EXAMPLES)
    if inputs.shape[1:] != model.input_shape[1:]:
        inputs = np.random.default_rng(5).integers(0, 12, (EXAMPLES, 5))
    return inputs, labels


def make(build, *arguments, **options):
    """A compiled model with the same values whatever it is built under."""
    keras.utils.set_random_seed(0)
    model = build(*arguments, **options)
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    return model


def step(model):
    """Loss of one step on all data, before it is taken."""
    inputs, labels = data(model)
    history = model.fit(
        inputs, labels, batch_size=EXAMPLES, shuffle=False, verbose=0
    )
    return history.history["loss"][0]


# What `KLTarget` is asked for, of the model that `dense` builds.
WISHES = ({"nonzero_ratio": 3.0}, {"n_active": 11}, {"budget": 0.5})


def train_to(wish, model):
    """Train with `KLTarget`, and see to it that the wish came true."""
    inputs, labels = data(model)
    history = model.fit(
        inputs,
        labels,
        batch_size=EXAMPLES // 2,
        epochs=10,
        shuffle=False,
        verbose=0,
        validation_data=(inputs, labels),
        callbacks=[KLTarget(EXAMPLES, verbose=0, **wish)],
    ).history
    report = sparsity_report(model)
    if "budget" in wish:
        loss = model.evaluate(inputs, labels, EXAMPLES, verbose=0)
        assert loss <= history["target"][-1]
        assert report.nonzero_ratio > 1.5
    elif "n_active" in wish:
        assert sum(report.n_active) == wish["n_active"]
    else:
        found = report.nonzero_ratio
        assert found == pytest.approx(wish["nonzero_ratio"], rel=0.05)


def values(model):
    """All variables of a model but its seeds."""
    return [to_float64(variable) for variable in model.weights]


def assert_close(found, expected, **tolerances):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, **tolerances)


def run_and_save(model, directory, killed_in=-1):
    """Train for 4 epochs of 2 steps; what came out, to `result.npz`.

    Args:
        model: A compiled model.
        directory: Where the backup and the results go.
        killed_in: Epoch in which the process dies.
    """
    directory.mkdir(parents=True, exist_ok=True)
    inputs, labels = data(model)
    history = model.fit(
        inputs,
        labels,
        batch_size=EXAMPLES // 2,
        epochs=4,
        shuffle=False,
        verbose=0,
        callbacks=[
            KLAnnealing(EXAMPLES, 0, 3, verbose=0),
            keras.callbacks.BackupAndRestore(str(directory / "backup")),
            Kill(killed_in),
        ],
    ).history
    found = {f"value_{i:02}": value for i, value in enumerate(values(model))}
    found["loss"] = history["loss"]
    found["n_active"] = sparsity_report(model).n_active
    found["n_active_pruned"] = prune(model, threshold=0.0).n_active
    np.savez(directory / "result.npz", **found)


def documented(title=None):
    """Code blocks of a section of the page about several devices.

    Args:
        title: Of the section; None: what comes before all sections.
    """
    page = (REPOSITORY / "docs" / "distributed.md").read_text()
    opening, *sections = page.split("\n## ")
    found = dict(section.split("\n", 1) for section in sections)
    text = opening if title is None else found[title]
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return [block.replace("epochs=60", "epochs=1") for block in blocks]


def run_documented(title):
    """Run what the page says of an engine, for an epoch; the names it sets."""
    names = {}
    for block in [*documented(), *documented(title)]:
        exec(block, names)
    return names


def run_tests(name, **environment):
    """Run the tests of a file in a process with devices of its own.

    Returns:
        Its exit status, which is not 0 if a test fails or if there is none,
        and what it printed.
    """
    code = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    options = ("-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider")
    path = pathlib.Path(__file__).parent / name
    result = run_python(code, *options, path, **environment)
    return result.returncode, result.stdout + result.stderr


def start_python(*arguments, **environment):
    """Start a new interpreter in the repository."""
    settings = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, **settings, **environment},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
