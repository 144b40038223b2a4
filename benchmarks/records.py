"""What a measurement leaves behind: plain dictionaries, ready for JSON."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.timing import quartiles, ratio

Record = dict[str, Any]


class Recorder:
    """Makes records of one process and hands each of them on.

    Args:
        write: Takes every record.
        **common: What all records have: the backend or the library.

    Attributes:
        common: The same.
    """

    def __init__(self, write: Callable[[Record], None], **common: Any) -> None:
        self._write = write
        self.common = common

    def add(self, table: str, case: str, variant: str, **values: Any) -> None:
        """Hand on one record."""
        self._write(
            {
                **self.common,
                "table": table,
                "case": case,
                "variant": variant,
                **values,
            }
        )

    def add_times(
        self,
        table: str,
        case: str,
        times: Mapping[str, np.ndarray],
        references: Mapping[str, np.ndarray],
    ) -> None:
        """Hand on a record for each variant that was timed.

        Args:
            table: Name of the table.
            case: Name of the case.
            times: Milliseconds per step of each block, by variant.
            references: By title, times to take ratios to.
        """
        for variant, ms in times.items():
            ratios = {
                title: ratio(ms, reference)
                for title, reference in references.items()
            }
            self.add(
                table,
                case,
                variant,
                ms=ms.tolist(),
                quartiles_ms=quartiles(ms),
                ratios=ratios,
            )

    def add_error(
        self, table: str, case: str, variant: str, error: Exception
    ) -> None:
        """Hand on why there is no measurement."""
        traceback.print_exception(error)
        self.add(table, case, variant, error=describe(error))


def describe(error: Exception) -> str:
    """The type of an error and its first line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".rstrip(": ")
