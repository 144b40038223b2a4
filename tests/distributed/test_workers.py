"""Runs that are killed and go on: two worker processes, or two JAX devices.

Oracle: the same run on one device or, with noise, the run that nobody killed.
"""

import json
import socket

import keras
import numpy as np
import pytest

from tests.helpers.distributed.steps import (
    dense,
    make,
    quiet,
    run_and_save,
    start_python,
)
from tests.helpers.distributed.workers import KILLED_IN

BACKEND = keras.backend.backend()
DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}


def free_ports(count):
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def start(directory, *arguments, killed=None):
    """Start a run: one process for JAX, two for TensorFlow."""
    environments = [DEVICES]
    if BACKEND == "tensorflow":
        cluster = {"worker": [f"localhost:{port}" for port in free_ports(2)]}
        tasks = [{"type": "worker", "index": index} for index in range(2)]
        environments = [
            {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})}
            for task in tasks
        ]
    return [
        start_python(
            "-m",
            "tests.helpers.distributed.workers",
            directory / str(index),
            *arguments,
            *(["killed"] if index == killed else []),
            **environment,
        )
        for index, environment in enumerate(environments)
    ]


def end(processes):
    for process in processes:
        process.kill()
        process.communicate()


def run(directory, *arguments):
    """Folders of the processes of a run that ends by itself."""
    processes = start(directory, *arguments)
    try:
        for process in processes:
            output, _ = process.communicate(timeout=200)
            assert process.returncode == 0, output
    finally:
        end(processes)
    return [directory / str(index) for index in range(len(processes))]


def run_and_kill(directory):
    """As `run`, but the last process dies."""
    last = (BACKEND == "tensorflow") * 1
    processes = start(directory, killed=last)
    try:
        assert processes[last].wait(timeout=200) == 9
    finally:
        # The other waits for it: what starts workers ends them all.
        end(processes)
    assert not list(directory.glob("*/noisy/result.npz"))


def assert_same(found, expected, **tolerances):
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_allclose(
            found[name], expected[name], err_msg=name, **tolerances
        )


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.skipif(BACKEND == "torch", reason="not an engine of torch")
def test_runs_end_as_they_should(tmp_path):
    unbroken = run(tmp_path / "unbroken", "quiet")
    # Oracle: one device, next to no noise. `n_active` is among the results.
    run_and_save(make(dense, quiet(), gates=False), tmp_path / "single")
    expected = np.load(tmp_path / "single" / "result.npz")
    for folder in unbroken:
        found = np.load(folder / "quiet" / "result.npz")
        assert_same(found, expected, rtol=1e-5, atol=1e-6)
    if BACKEND == "tensorflow":
        noises = [np.load(folder / "noise.npy") for folder in unbroken]
        assert not np.allclose(*noises)
    # Oracle: the run that nobody killed.
    expected = dict(np.load(unbroken[0] / "noisy" / "result.npz"))
    expected["loss"] = expected["loss"][KILLED_IN:]
    run_and_kill(tmp_path / "killed")
    for folder in run(tmp_path / "killed"):
        found = np.load(folder / "noisy" / "result.npz")
        assert_same(found, expected, rtol=1e-6)
