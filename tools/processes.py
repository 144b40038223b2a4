"""Processes that are forked from one that has imported everything.

They start at once. What forks them must have computed nothing yet: threads of a
backend do not survive it.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import traceback
from collections.abc import Callable
from typing import Any


class Died(RuntimeError):
    """A process ended without a result."""


class Child:
    """A forked process that sends a sign when it begins, and a result.

    Args:
        function: What it calls; gets a function that sends the sign.
    """

    def __init__(self, function: Callable[[Callable[[], None]], Any]) -> None:
        self.reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._work(function, writer)
        os.close(writer)
        self._received = b""

    def _work(self, function: Callable[..., Any], writer: int) -> None:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        try:
            result = (True, function(lambda: os.write(writer, b"!")))
        except BaseException:
            result = (False, traceback.format_exc())
        os.write(writer, b"=")
        with os.fdopen(writer, "wb") as file:
            file.write(pickle.dumps(result))
        os._exit(0)

    def wait_for_sign(self, seconds: float = 120.0) -> None:
        """Wait until the child begins, or ends."""
        select.select([self.reader], [], [], seconds)
        self._received += os.read(self.reader, 1)

    def kill(self) -> None:
        """Kill it, whether or not it still runs."""
        os.kill(self.pid, signal.SIGKILL)
        self._end()

    def result(self) -> Any:
        """What the function returned; an error if it failed."""
        received = self._received + self._end()
        answer = received.partition(b"=")[2]
        if not answer:
            raise Died(f"the process died: {_cause(self.status)}")
        is_fine, value = pickle.loads(answer)
        if not is_fine:
            raise RuntimeError(value)
        return value

    def _end(self) -> bytes:
        with os.fdopen(self.reader, "rb") as file:
            received = file.read()
        _, self.status = os.waitpid(self.pid, 0)
        return received


def _cause(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def in_child(
    function: Callable[..., Any], *arguments: Any, seconds: int = 120
) -> Any:
    """The result of a function that is called in a process of its own.

    Raises:
        Died: if the process died, or was not ready in time.
        RuntimeError: if the function raised, with the traceback.
    """

    def call(sign: Callable[[], None]) -> Any:
        signal.alarm(seconds)
        return function(*arguments)

    return Child(call).result()
