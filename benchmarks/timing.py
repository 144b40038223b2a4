"""Timings of interleaved calls in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.settings import Effort
from keras_vd.deployment.readers import interleaved


def quartiles(values: np.ndarray) -> list[float]:
    """First quartile, median and third quartile."""
    return np.percentile(values, (25, 50, 75)).tolist()


def ratio(times: np.ndarray, reference: np.ndarray) -> list[float]:
    """Quartiles, the median in their middle, of ratios of neighbouring blocks.

    Args:
        times: Array of shape `(blocks,)`.
        reference: What the other one took in the same blocks.
    """
    return quartiles(np.asarray(times) / np.asarray(reference))


def time_steps(
    runs: Mapping[Any, Callable[[int], None]], effort: Effort
) -> dict[Any, np.ndarray]:
    """Milliseconds per step, block by block, of what was run already.

    Args:
        runs: By name, functions that take a number of steps, do them and wait
            until they are done.
        effort: How long to measure.

    Returns:
        Arrays of shape `(blocks,)`.
    """
    steps, blocks = {}, {}
    for name, run in runs.items():
        run(1)
        start = time.perf_counter()
        run(1)
        seconds = time.perf_counter() - start
        steps[name] = max(1, round(effort.block_seconds / seconds))
        blocks[name] = _block(run, steps[name])
    times = interleaved(blocks, effort.blocks, 1)
    return {name: times[name] / steps[name] for name in times}


def _block(run: Callable[[int], None], steps: int) -> Callable[[], None]:
    return lambda: run(steps)
