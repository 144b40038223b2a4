"""What the checks of reliability have in common: cases, a count, a row.

A case is a label that is enough to repeat it, such as `"seed 17"`, and a
function that raises if something is wrong.
"""

from __future__ import annotations

import dataclasses
import sys
import time
import traceback
from collections.abc import Callable, Iterable

Case = tuple[str, Callable[[], None]]


@dataclasses.dataclass
class Tally:
    """How many cases of a check were tried, and which failed.

    Attributes:
        check: What is checked, in a few words.
        tried: Number of cases.
        failures: Labels of those that failed.
        seconds: Wall time.
    """

    check: str
    tried: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def row(self) -> str:
        """A row of the table in `docs/reliability.md`."""
        command = f"python -m {_module()} {' '.join(sys.argv[1:])}".strip()
        return (
            f"| {self.check} | {self.tried:,} | {len(self.failures)} | "
            f"`{command}` | {self.seconds / 60:.1f} min |"
        )


def run_cases(
    check: str, cases: Iterable[Case], minutes: float | None = None
) -> Tally:
    """Run cases one by one, and print every failure when it happens.

    An interrupt (Ctrl-C) ends the run with what was tried until then.

    Args:
        check: What is checked, in a few words.
        cases: The cases, made one at a time.
        minutes: Time after which no further case is begun.
    """
    tally = Tally(check)
    start = time.monotonic()
    for label, case in cases:
        try:
            case()
        except KeyboardInterrupt:
            break
        except Exception:
            tally.failures.append(label)
            print(f"FAILED {label}\n{traceback.format_exc()}", flush=True)
        tally.tried += 1
        tally.seconds = time.monotonic() - start
        if tally.tried % 100 == 0:
            print(
                f"{tally.tried} tried, {len(tally.failures)} failed, "
                f"{tally.seconds:.0f} s",
                flush=True,
            )
        if minutes is not None and tally.seconds > 60 * minutes:
            break
    return tally


def finish(*tallies: Tally) -> None:
    """Print the rows, and exit with 1 if anything failed."""
    for tally in tallies:
        print(tally.row())
        for label in tally.failures:
            print(f"  failed: {label}")
    sys.exit(any(tally.failures for tally in tallies))


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else sys.argv[0]
