"""Training steps of other libraries, interleaved with plain ones."""

from __future__ import annotations

from typing import Any

from benchmarks.families import FAMILIES
from benchmarks.libraries import PLAIN, families
from benchmarks.networks import Case
from benchmarks.records import Recorder
from benchmarks.settings import Effort
from benchmarks.steps import Run
from benchmarks.timing import time_steps

_KERAS_VD = ("keras_vd", "keras_vd, share unit")


def make_families(library: str) -> dict[str, Any]:
    """By name, the families to compare; the library's plain one comes first.

    Raises:
        ModuleNotFoundError: if the library is not installed.
    """
    ours = {name: FAMILIES[name] for name in ("plain", *_KERAS_VD)}
    return {name: make() for name, make in (families(library) | ours).items()}


def has_peer(case: Case, made: dict[str, Any]) -> bool:
    """Whether the library has a layer to compare in this network.

    Args:
        case: The network.
        made: Of `make_families`.
    """
    return any(
        case.kind in family.kinds
        for name, family in made.items()
        if name not in (*PLAIN, *_KERAS_VD)
    )


def measure_peer(
    case: Case, made: dict[str, Any], effort: Effort, recorder: Recorder
) -> None:
    """Table "peers": one library and one network.

    Args:
        case: The network.
        made: Of `make_families`.
        effort: How long to measure.
        recorder: Takes the records.
    """
    runs: dict[str, Run] = {}
    for name, family in made.items():
        if case.kind not in family.kinds:
            continue
        try:
            training = family.start(case)
            training.first_step()
            runs[name] = training.make_run()
        # Whatever one of them raises, the others go on.
        except Exception as error:
            recorder.add_error("peers", case.name, name, error)
    times = time_steps(runs, effort)
    plain = {"own plain layer": next(iter(made)), "plain Keras": "plain"}
    references = {
        title: times[name] for title, name in plain.items() if name in times
    }
    recorder.add_times("peers", case.name, times, references)
