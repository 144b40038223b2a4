"""Measure files in fresh processes, on one thread."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from keras_vd.deployment import readers
from keras_vd.deployment.readers import Arrays

# Set by the environment, because TensorFlow's number of threads is fixed once
# it has started.
ONE_THREAD = {
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "CUDA_VISIBLE_DEVICES": "-1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
BLOCKS = 11  # blocks of calls, of each file
SECONDS = 0.03  # length of each block


@dataclasses.dataclass(frozen=True)
class File:
    """A file to measure, the names of its inputs, and the examples per call."""

    path: Path
    names: Sequence[str]
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Results of a file in its runtime.

    Attributes:
        load_ms: Milliseconds to open it and to compute once.
        ms: Milliseconds per call, for each block of calls.
        outputs: What it computed.
        error: Why there are no results; "" otherwise.
    """

    load_ms: float = 0.0
    ms: Sequence[float] = ()
    outputs: Arrays = dataclasses.field(default_factory=list)
    error: str = ""

    def speedups(self, reference: Measurement) -> tuple[float, float, float]:
        """Compute how many times faster it is than a reference.

        Returns:
            The median, the lower and the upper quartile over the blocks.
        """
        ratios = np.array(reference.ms) / np.array(self.ms)
        low, median, high = np.percentile(ratios, (25, 50, 75)).tolist()
        return median, low, high


def measure(
    runtime: str,
    files: Sequence[File],
    arrays: Arrays,
    blocks: int | None = None,
    seconds: float | None = None,
) -> list[Measurement]:
    """Open, run and time files in one runtime.

    Blocks of calls of files with the same batch size alternate.

    Args:
        runtime: A key of `readers.READERS`.
        files: The files.
        arrays: Inputs, of the largest batch size.
        blocks: Number of blocks of calls; `BLOCKS` by default.
        seconds: Length of a block; `SECONDS` by default.

    Returns:
        A measurement of each file.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "inputs.npz", *arrays)
        request = folder / "request.json"
        described = [
            {
                "path": str(file.path),
                "names": list(file.names),
                "batch_size": file.batch_size,
            }
            for file in files
        ]
        content = {
            "runtime": runtime,
            "files": described,
            "blocks": BLOCKS if blocks is None else blocks,
            "seconds": SECONDS if seconds is None else seconds,
        }
        request.write_text(json.dumps(content))
        backend = {"KERAS_BACKEND": keras.backend.backend()}
        result = subprocess.run(
            [sys.executable, "-P", readers.__file__, str(request)],
            env={**os.environ, **ONE_THREAD, **backend},
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            lines = result.stderr.strip().splitlines() or ["no message"]
            error = f"{runtime} ended with {result.returncode}: {lines[-1]}"
            return [Measurement(error=error)] * len(files)
        found = json.loads((folder / "found.json").read_text())
        return [
            Measurement(**{**values, "outputs": _outputs(folder, i)})
            for i, values in enumerate(found)
        ]


def _outputs(folder: Path, i: int) -> Arrays:
    file = folder / f"outputs_{i}.npz"
    if not file.exists():
        return []
    with np.load(file) as stored:
        return readers.stored_arrays(stored)
