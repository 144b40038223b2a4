"""Starts the processes of the benchmarks and gathers what they measured."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.libraries import PEERS
from benchmarks.networks import DEEP
from benchmarks.settings import KEEP_MEMORY, ONE_THREAD, Effort, progress

MEMORY_CASE = "4096"
# By library, whose memory is measured: names of families.
MEMORY_VARIANTS = {
    "keras_vd": ("plain", "two products", "keras_vd", "keras_vd, share unit"),
    "tfp": ("tfp local reparameterization", "tfp Flipout"),
    "edward2": ("edward2 variational dropout",),
    "bayesian-torch": ("torch.nn", "bayesian-torch reparameterization"),
    "blitz": ("blitz",),
}
PACKAGES = (
    "keras-vd",
    "keras",
    "tensorflow",
    "jax",
    "torch",
    "numpy",
    "tf_keras",
    "tensorflow-probability",
    "edward2",
    "bayesian-torch",
    "blitz-bayesian-pytorch",
)


@dataclasses.dataclass(frozen=True)
class Job:
    """What one process does.

    Attributes:
        job: "backend", "peers", "deep" or "memory".
        backend: Of Keras, in that process.
        library: Whose layers: "keras_vd" or a peer.
        cases: Names of the networks.
        variant: Name of the family, for "memory".
    """

    job: str
    backend: str
    library: str
    cases: tuple[str, ...]
    variant: str = ""


def plan(
    backends: Sequence[str], peers: Sequence[str], cases: Sequence[str]
) -> list[Job]:
    """The processes, in their order."""
    deep = [name for name in cases if name in DEEP]
    cases = tuple(name for name in cases if name not in DEEP)
    jobs = []
    if cases:
        jobs += [Job("backend", name, "keras_vd", cases) for name in backends]
        jobs += [Job("peers", PEERS[name], name, cases) for name in peers]
    jobs += [
        Job("deep", backend, "keras_vd", (name,))
        for backend in backends
        for name in deep
    ]
    if MEMORY_CASE in cases:
        hosts = [(name, "keras_vd") for name in backends]
        hosts += [(PEERS[name], name) for name in peers]
        jobs += [
            Job("memory", backend, library, (MEMORY_CASE,), variant)
            for backend, library in hosts
            for variant in MEMORY_VARIANTS[library]
        ]
    return jobs


def run(
    jobs: Sequence[Job], effort: Effort, save: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Run one process after the other.

    Args:
        jobs: What they do.
        effort: How long they measure.
        save: Takes all there is so far, after each process.

    Returns:
        Everything: the machine, versions, settings and records.
    """
    seconds: dict[str, float] = {}
    result: dict[str, Any] = {
        "command": " ".join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
        "settings": {
            "effort": dataclasses.asdict(effort),
            "threads": ONE_THREAD,
            "allocator": KEEP_MEMORY,
            "allocator_of_memory": "the C library's default",
        },
        "seconds": seconds,
        "records": [],
    }
    for job in jobs:
        start = time.perf_counter()
        result["records"] += _run_job(job, effort)
        name = f"{job.job} {job.backend} {job.library}"
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
        save(result)
    return result


def _run_job(job: Job, effort: Effort) -> list[dict[str, Any]]:
    if importlib.util.find_spec(job.backend) is None:
        return [_row(job, missing=f"not installed ({job.backend})")]
    request = {**dataclasses.asdict(job), "effort": dataclasses.asdict(effort)}
    with tempfile.TemporaryDirectory() as name:
        written, found = Path(name, "request.json"), Path(name, "records")
        written.write_text(json.dumps(request))
        found.touch()
        result = subprocess.run(
            [sys.executable, "-m", "benchmarks.worker", written, found],
            env=_environment(job),
            stdout=sys.stderr,
            check=False,
        )
        lines = found.read_text().splitlines()
    records = [json.loads(line) for line in lines]
    if result.returncode:
        progress(f"{job} ended with {result.returncode}")
        reason = f"the process ended with {result.returncode}"
        records.append(_row(job, error=reason))
    return records


def _row(job: Job, **reason: str) -> dict[str, Any]:
    """The record of a process that measured nothing, or not all."""
    return {
        "backend": job.backend,
        "library": job.library,
        "table": "training" if job.job == "backend" else job.job,
        "case": "",
        "variant": job.variant or job.library,
        **reason,
    }


def _environment(job: Job) -> dict[str, str]:
    environment = {
        **os.environ,
        **ONE_THREAD,
        "KERAS_BACKEND": job.backend,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_USE_LEGACY_KERAS": "1",  # what edward2 takes for Keras
    }
    if job.job == "memory":
        return environment
    return environment | KEEP_MEMORY


def machine() -> dict[str, Any]:
    """The processor, its cores and the system."""
    model = platform.processor()
    cpus = Path("/proc/cpuinfo")
    if cpus.exists():
        names = [
            line.split(":")[1].strip()
            for line in cpus.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Versions of the packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
