"""Timings of interleaved calls in one process."""

from __future__ import annotations

import os
import sys

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


def ratio(times: np.ndarray, reference: np.ndarray) -> tuple[str, str]:
    """Median and quartiles of the ratio of neighbouring blocks."""
    low, median, high = np.percentile(times / reference, (25, 50, 75))
    return f"{median:.3f}", f"{low:.3f} to {high:.3f}"
