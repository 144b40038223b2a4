"""Predictions of variational models and of what they turn into."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np

import keras_vd
from benchmarks.families import Plain, Variational
from benchmarks.networks import Case
from benchmarks.records import Recorder
from benchmarks.settings import Effort
from benchmarks.steps import Run, prediction_run
from benchmarks.timing import time_steps

BATCH_SIZES = (1, 128)
# Those whose layers have units between them, half of which can go.
SHRUNK_KINDS = ("lenet", "LSTM", "GRU", "embedding")


def measure_inference(case: Case, effort: Effort, recorder: Recorder) -> None:
    """Table "inference": one row for each batch size."""
    trained = case.build(Variational())
    builders: dict[str, Callable[[], keras.Model]] = {
        "plain": lambda: case.build(Plain()),
        "as trained": lambda: trained,
        "to_deterministic": lambda: keras_vd.to_deterministic(trained),
    }
    if case.kind in SHRUNK_KINDS or len(case.sizes) > 2:
        builders["shrunk"] = lambda: shrunk(case)
    models = {}
    for name, build in builders.items():
        try:
            models[name] = build()
        # Whatever one of them raises, the others go on.
        except Exception as error:
            recorder.add_error("inference", case.name, name, error)
    for batch_size in BATCH_SIZES:
        x, _ = case.arrays(batch_size)
        runs: dict[str, Run] = {
            name: prediction_run(model, x) for name, model in models.items()
        }
        times = time_steps(runs, effort)
        recorder.add_times(
            "inference",
            f"{case.title.split(', batch')[0]}, batch {batch_size}",
            times,
            {"plain": times["plain"]},
        )


def shrunk(case: Case) -> keras.Model:
    """The network after half of the units of every hidden layer died.

    Raises:
        RuntimeError: if `shrink` did not remove them.
    """
    model = case.build(Variational())
    for layer in model.layers[:-1]:  # not the outputs of the network
        for posterior in keras_vd.variational_weights(layer):
            log_sigma2 = keras.ops.convert_to_numpy(posterior.log_sigma2).copy()
            # The gates of a recurrent layer stand side by side.
            units = getattr(layer, "units", log_sigma2.shape[-1])
            is_dead = np.arange(log_sigma2.shape[-1]) % units >= units // 2
            log_sigma2[..., is_dead] = 10.0
            posterior.log_sigma2.assign(log_sigma2)
    keras_vd.prune(model)
    smaller = keras_vd.shrink(keras_vd.to_deterministic(model), verbose=0)
    if smaller.count_params() > 0.7 * case.build(Plain()).count_params():
        raise RuntimeError(f"{case.name}: the dead units were not removed.")
    return smaller
