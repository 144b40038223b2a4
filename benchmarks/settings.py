"""How processes are set up and how long they measure."""

from __future__ import annotations

import dataclasses
import os
import sys

# glibc: keep what was freed instead of handing it back to the system.
# Otherwise every large temporary costs page faults, which depend on its size
# and swamp what is measured.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
    "MALLOC_ARENA_MAX": "1",  # the others, of threads, hand all back
}
ONE_THREAD = {
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        blocks: Blocks of calls of each variant.
        block_seconds: What a block takes, unless one call takes longer.
        fit_epochs: Epochs of 50 steps of the long run.
    """

    blocks: int = 7
    block_seconds: float = 0.05
    fit_epochs: int = 30


QUICK = Effort(blocks=3, block_seconds=0.005, fit_epochs=5)


def pin_to_one_core() -> None:
    """Keep this process on one core, where the system has a way to."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def progress(message: str) -> None:
    """Say on the standard error stream what is going on."""
    print(message, file=sys.stderr, flush=True)
