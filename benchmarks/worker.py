"""One process of the benchmarks: a backend, a library, or one variant.

    python -m benchmarks.worker REQUEST RECORDS

`benchmarks/running.py` writes the request and reads the records, one line of
JSON each, as they come.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.networks import CASES
from benchmarks.records import Record, Recorder
from benchmarks.settings import Effort, pin_to_one_core, progress

INFERENCE_CASES = (
    "mlp",
    "4096",
    "lenet-5",
    "conv",
    "lstm",
    "embedding",
)


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    with Path(sys.argv[2]).open("w") as file:

        def write(record: Record) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()

        library = request["library"]
        recorder = Recorder(write, backend=request["backend"], library=library)
        effort = Effort(**request["effort"])
        try:
            recorder.add("device", "", "", device=_prepare())
            _JOBS[request["job"]](request, effort, recorder)
        except ModuleNotFoundError as error:
            missing = f"not installed ({error.name})"
            variant = request.get("variant") or library
            recorder.add(request["job"], "", variant, missing=missing)


def _prepare() -> str:
    import keras

    from benchmarks.steps import device_name

    # That models come one after the other is no news.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    keras.utils.set_random_seed(0)
    device = device_name()
    if device == "cpu":
        pin_to_one_core()
    return device


def _attempt(
    recorder: Recorder, table: str, case: str, call: Callable[[], None]
) -> None:
    """Call a measurement; if it fails, the others go on."""
    progress(f"{recorder.common['backend']}: {table}, {case}")
    try:
        call()
    except ModuleNotFoundError:
        raise
    # The error is a row of the table.
    except Exception as error:
        recorder.add_error(table, case, "all", error)


def _run_backend(request: Any, effort: Effort, recorder: Recorder) -> None:
    """All tables of keras_vd on one backend but that of memory."""
    import keras

    from benchmarks import execution, inference, training

    for name in request["cases"]:
        measures = {"training": training.measure_training}
        if name in INFERENCE_CASES:
            measures["inference"] = inference.measure_inference
        # PyTorch traces nothing: Keras refuses one option there, and the other
        # takes minutes.
        if name == "mlp" and keras.backend.backend() != "torch":
            measures["execution"] = execution.measure_execution
            measures["long run"] = execution.measure_long_run
        for table, measure in measures.items():
            _attempt(
                recorder,
                table,
                name,
                lambda m=measure, n=name: m(CASES[n], effort, recorder),
            )
            keras.utils.clear_session(free_memory=True)


def _run_deep(request: Any, effort: Effort, recorder: Recorder) -> None:
    """One row of the table of deep networks."""
    from benchmarks.deep import measure_first_step

    (name,) = request["cases"]
    _attempt(recorder, "deep", name, lambda: measure_first_step(name, recorder))


def _run_memory(request: Any, effort: Effort, recorder: Recorder) -> None:
    """One row of the table of memory."""
    from benchmarks.memory import measure_memory

    name, library = request["variant"], request["library"]
    progress(f"memory of {name}")
    try:
        measure_memory(CASES[request["cases"][0]], library, name, recorder)
    except ModuleNotFoundError:
        raise
    # The error is a row of the table.
    except Exception as error:
        recorder.add_error("memory", request["cases"][0], name, error)


def _run_peer(request: Any, effort: Effort, recorder: Recorder) -> None:
    """One other library, interleaved with plain layers and keras_vd."""
    from benchmarks import peers

    made: dict[str, Any] = {}
    library = request["library"]

    def prepare() -> None:
        made.update(peers.make_families(library))

    _attempt(recorder, "peers", library, prepare)
    for name in request["cases"] if made else ():
        if peers.has_peer(CASES[name], made):
            _attempt(
                recorder,
                "peers",
                name,
                lambda n=name: peers.measure_peer(
                    CASES[n], made, effort, recorder
                ),
            )


_JOBS = {
    "backend": _run_backend,
    "deep": _run_deep,
    "memory": _run_memory,
    "peers": _run_peer,
}


if __name__ == "__main__":
    main()
