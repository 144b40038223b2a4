"""Training steps, what they consist of, and the time until the first one."""

from __future__ import annotations

from benchmarks.families import FAMILIES, family_names
from benchmarks.networks import Case
from benchmarks.parts import part_runs
from benchmarks.records import Recorder
from benchmarks.settings import Effort
from benchmarks.steps import Run, device_name
from benchmarks.timing import time_steps

PARTS = ("normal draws", "KL and gradient")


def measure_training(case: Case, effort: Effort, recorder: Recorder) -> None:
    """Tables "training", "first step" and, for dense layers, "parts"."""
    runs: dict[str, Run] = {}
    is_accelerated = device_name() != "cpu"
    for name in family_names(case, is_accelerated):
        try:
            training = FAMILIES[name]().start(case)
            seconds = training.first_step()
            runs[name] = training.make_run()
            if case.kind == "dense" and name == "keras_vd":
                runs.update(part_runs(case, training.model))
        # Whatever one of them raises, the others go on.
        except Exception as error:
            recorder.add_error("training", case.name, name, error)
        else:
            recorder.add("first step", case.name, name, seconds=seconds)
    times = time_steps(runs, effort)
    references = {"plain": times["plain"]}
    steps = {name: times[name] for name in times if name not in PARTS}
    recorder.add_times("training", case.name, steps, references)
    floor = ("two products", *PARTS)
    if all(name in times for name in (*floor, "keras_vd")):
        parts = {name: times[name] for name in floor}
        parts["their sum"] = sum(parts.values())
        parts["keras_vd"] = times["keras_vd"]
        recorder.add_times("parts", case.name, parts, references)
