"""Scalars and histograms for TensorBoard, without TensorFlow."""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType
from typing import Any


class EventWriter:
    """Writer of an event file that TensorBoard shows.

    Args:
        folder: Where to write; made if it is missing. Older files stay there,
            and TensorBoard joins them by step.

    Raises:
        ImportError: if the package `tensorboard` is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._modules = _import_tensorboard()
        writer = self._modules["writer"]
        self._writer = writer.EventFileWriter(str(folder))

    def write(
        self, step: int, scalars: dict[str, float], histograms: dict[str, Any]
    ) -> None:
        """Write everything of one step at once.

        Args:
            step: Int: position on TensorBoard's horizontal axis.
            scalars: Numbers by tag.
            histograms: Arrays of any shape, by tag.
        """
        scalar_pb = self._modules["scalar"].scalar_pb
        histogram_pb = self._modules["histogram"].histogram_pb
        summaries = [
            *(scalar_pb(tag, value) for tag, value in scalars.items()),
            *(histogram_pb(tag, array) for tag, array in histograms.items()),
        ]
        for summary in summaries:
            self._writer.add_event(
                self._modules["event"].Event(
                    wall_time=time.time(), step=step, summary=summary
                )
            )
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def check_tensorboard() -> None:
    """Raise an ImportError unless the package `tensorboard` is installed."""
    _import_tensorboard()


def _import_tensorboard() -> dict[str, ModuleType]:
    try:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.plugins.histogram import summary_v2 as histogram
        from tensorboard.plugins.scalar import summary_v2 as scalar
        from tensorboard.summary.writer import event_file_writer
    except ImportError as error:
        raise ImportError(
            "Argument `tensorboard` of `KLAnnealing` needs the package "
            f"tensorboard: `pip install tensorboard`. ({error})"
        ) from error
    return {
        "event": event_pb2,
        "histogram": histogram,
        "scalar": scalar,
        "writer": event_file_writer,
    }
