"""Interleaved timings of calls in one process."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import numpy as np

# glibc: keep what was freed instead of handing it back to the system.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}


def keep_memory() -> None:
    """Start this program anew with an allocator that keeps its memory.

    Otherwise every large temporary costs page faults, which depend on its
    size and swamp what is measured.
    """
    if any(os.environ.get(name) != KEEP_MEMORY[name] for name in KEEP_MEMORY):
        environment = {**os.environ, **KEEP_MEMORY}
        os.execve(sys.executable, sys.orig_argv, environment)


def interleaved(
    calls: dict[str, Callable[[], object]], blocks: int, steps: int
) -> dict[str, np.ndarray]:
    """Milliseconds per call of each function, block by block.

    Blocks of one function alternate with those of the others, so that a slow
    moment of the machine hits all of them. The first block, which compiles,
    is left out.

    Args:
        calls: Functions by name; each must wait for its own result.
        blocks: Number of blocks of each function.
        steps: Calls per block.

    Returns:
        Arrays of shape `(blocks,)`.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for block in range(blocks + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(steps):
                call()
            if block:
                elapsed = time.perf_counter() - start
                times[name].append(1000 * elapsed / steps)
    return {name: np.array(values) for name, values in times.items()}


def ratio(times: np.ndarray, reference: np.ndarray) -> tuple[str, str]:
    """Median and quartiles of the ratio of neighbouring blocks."""
    low, median, high = np.percentile(times / reference, (25, 50, 75))
    return f"{median:.3f}", f"{low:.3f} to {high:.3f}"
