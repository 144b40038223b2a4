"""Ways to execute a step, and what a long run does to it."""

from __future__ import annotations

import time
from typing import Any

import keras
import numpy as np
import psutil

import keras_vd
from benchmarks.families import Plain, Variational
from benchmarks.networks import Case
from benchmarks.records import Recorder
from benchmarks.settings import Effort
from benchmarks.steps import Run
from benchmarks.timing import quartiles, time_steps

STEPS_PER_EPOCH = 50
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "jit_compile=True": {"jit_compile": True},
    "steps_per_execution=10": {"steps_per_execution": 10},
}


def measure_execution(case: Case, effort: Effort, recorder: Recorder) -> None:
    """Table "execution": steps under options of `compile`."""
    runs: dict[tuple[str, str], Run] = {}
    for setting, options in SETTINGS.items():
        if keras.backend.backend() == "jax" and "jit_compile" in options:
            continue  # that is the default there
        for name, family in (("plain", Plain()), ("keras_vd", Variational())):
            try:
                training = family.start(case, **options)
                training.first_step()
                runs[setting, name] = training.make_run()
            # Whatever one of them raises, the others go on.
            except Exception as error:
                recorder.add_error("execution", setting, name, error)
    times = time_steps(runs, effort)
    reference = times["default", "plain"]
    for setting, options in SETTINGS.items():
        steps = options.get("steps_per_execution", 1)
        recorder.add_times(
            "execution",
            setting,
            {
                name: ms / steps
                for (own, name), ms in times.items()
                if own == setting
            },
            {"plain": reference},
        )


class _Watch(keras.callbacks.Callback):
    """Milliseconds per step of every epoch, and the memory at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.ms: list[float] = []
        self.megabytes: list[float] = []
        self.traces: list[int] = []

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 0:
            self._start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self._end = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        seconds = self._end - self._start
        self.ms.append(1000 * seconds / (STEPS_PER_EPOCH - 1))
        self.megabytes.append(psutil.Process().memory_info().rss / 2**20)
        self.traces.append(_Counter.calls)


@keras.saving.register_keras_serializable(package="benchmarks")
class _Counter(keras.layers.Layer):
    """Counts how often Python runs through the network: once per trace."""

    calls = 0

    def call(self, inputs):
        _Counter.calls += 1
        return inputs


def measure_long_run(case: Case, effort: Effort, recorder: Recorder) -> None:
    """Table "long run": `fit` with an annealed KL weight."""
    model = case.build(Variational())
    counted = keras.Sequential([model.input, _Counter(), *model.layers[1:]])
    counted.compile(keras.optimizers.SGD(1e-4), "mse")
    x, y = case.arrays(case.batch_size * STEPS_PER_EPOCH)
    watch = _Watch()
    annealing = keras_vd.callbacks.KLAnnealing(
        num_examples=len(x), start_epoch=1, warmup_epochs=2, verbose=0
    )
    counted.fit(
        x,
        y,
        batch_size=case.batch_size,
        epochs=effort.fit_epochs,
        callbacks=[annealing, watch],
        verbose=0,
    )
    tenth = max(2, effort.fit_epochs // 10)  # of which one compiles
    first, last = watch.ms[1:tenth], watch.ms[-tenth + 1 :]
    recorder.add(
        "long run",
        case.name,
        "keras_vd",
        steps=effort.fit_epochs * STEPS_PER_EPOCH,
        first_ms=float(np.median(first)),
        last_ms=float(np.median(last)),
        ratios={"first tenth": quartiles(np.divide(last, first))},
        traces=watch.traces[-1],
        late_traces=watch.traces[-1] - watch.traces[tenth - 1],
        growth_mb=watch.megabytes[-1] - watch.megabytes[tenth - 1],
    )
