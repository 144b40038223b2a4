"""Collect what converters log, so that it is not shown."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


class _Collector(logging.Handler):
    def __init__(self, lines: list[str]):
        super().__init__(logging.ERROR)
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@contextlib.contextmanager
def collected_logs(*names: str) -> Iterator[list[str]]:
    """Collect the errors that some loggers log, tracebacks included.

    Nothing that they log is shown, because a converter also complains about
    what it then does in another way. An error that is raised after a failed
    conversion may quote the list.
    """
    lines: list[str] = []
    loggers = [logging.getLogger(name) for name in names]
    kept = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [_Collector(lines)], False
    try:
        yield lines
    finally:
        for logger, (handlers, propagate) in zip(loggers, kept, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
