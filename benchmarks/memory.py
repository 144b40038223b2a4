"""Peak memory of a training step, in units of the network's weight matrix.

Meant for a fresh process with the C library's default allocator. Before the
network is built, a small one of the same layers is trained, so that what
runtimes and compilers need once is there already. Kernels of Keras and keras_vd
start at 0: what random ones leave behind would be there for the step to use and
not count as its own. Other libraries keep theirs, which can only flatter them.
"""

from __future__ import annotations

import dataclasses
import gc
import resource
import sys
from pathlib import Path
from typing import Any

import keras

from benchmarks.libraries import families
from benchmarks.networks import Case
from benchmarks.steps import device_name, training_variables

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def measure_memory(case: Case, library: str, name: str, recorder: Any) -> None:
    """Tables "memory" and, on JAX, "plan": one variant of one dense layer.

    Args:
        case: A square network of one layer.
        library: See `benchmarks.libraries.families`.
        name: Name of a family of that library.
        recorder: Takes the records.
    """
    options = {"kernel_initializer": "zeros"} if library == "keras_vd" else {}
    family = families(library)[name](**options)
    family.start(dataclasses.replace(case, sizes=(64, 64))).first_step()
    training = family.start(case)
    gc.collect()
    before = _used_now()
    forget_peak()
    training.first_step()
    growth = _peak() - before
    matrix = 4 * case.num_weights()
    recorder.add("memory", case.name, name, matrices=growth / matrix)
    if recorder.common["backend"] == "jax":
        matrices = _planned_bytes(case, training.model) / matrix
        recorder.add("plan", case.name, name, matrices=matrices)


def _planned_bytes(case: Case, model: Any) -> int:
    """Temporaries of a training step by XLA's own plan."""
    import jax

    batch = jax.device_put(case.arrays(case.batch_size))
    state = tuple(
        [variable.value for variable in group]
        for group in training_variables(model)
    )
    step = jax.jit(model.train_step, donate_argnums=0)
    analysis = step.lower(state, batch).compile().memory_analysis()
    return analysis.temp_size_in_bytes


def _statistics() -> dict[str, int] | None:
    """JAX's own account of its GPU's memory, if there is one."""
    if keras.backend.backend() != "jax" or device_name() == "cpu":
        return None
    import jax

    return jax.devices()[0].memory_stats()


def _used_now() -> int:
    statistics = _statistics()
    if statistics:
        return statistics["bytes_in_use"]
    return resident("VmRSS") if _STATUS.exists() else _largest_so_far()


def _peak() -> int:
    statistics = _statistics()
    if statistics:
        return statistics["peak_bytes_in_use"]
    return resident("VmHWM") if _STATUS.exists() else _largest_so_far()


def forget_peak() -> None:
    """Let the system's peak start over, where it can (Linux)."""
    if _CLEAR.exists():
        _CLEAR.write_text("5")


def resident(name: str) -> int:
    """Bytes of this process by Linux: "VmRSS" now, "VmHWM" at most."""
    line = next(
        line
        for line in _STATUS.read_text().splitlines()
        if line.startswith(name)
    )
    return 1024 * int(line.split()[1])


def _largest_so_far() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
