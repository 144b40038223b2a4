"""All tables of docs/benchmarks.md: time and memory, beside other libraries.

    python -m benchmarks

Starts a process for each backend, each other library and each measurement of
memory, one after the other, and prints tables. `--output` gets everything in
`benchmarks.json` and a picture of the training steps in `benchmarks.png`.

What is timed, and how: `benchmarks/steps.py`. Blocks of steps of one variant
alternate with those of the others in one process; a ratio is the median over
neighbouring blocks, with quartiles. Processes have one thread on one core and
an allocator that keeps its memory (`benchmarks/settings.py`), except where
memory is measured. The exit status is 1 if something failed that is
installed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich.console

from benchmarks.chart import draw_chart
from benchmarks.libraries import PEERS
from benchmarks.networks import CASES, DEEP
from benchmarks.running import plan, run
from benchmarks.settings import QUICK, Effort
from benchmarks.tables import BACKENDS, failures, make_tables

EVERY = (*CASES, *DEEP)
DEFAULT = tuple(case for case in EVERY if case != "resnet50")
QUICK_CASES = ("mlp",)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--backends",
        nargs="*",
        choices=BACKENDS,
        default=list(BACKENDS),
        help="to measure keras_vd on",
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=PEERS,
        default=list(PEERS),
        help="other libraries to compare with",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=EVERY,
        metavar="CASE",
        help=f"of {', '.join(EVERY)}; by default all but resnet50, which takes "
        "6 minutes",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run: figures mean nothing"
    )
    parser.add_argument(
        "--markdown", action="store_true", help="print tables as Markdown"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument(
        "--read", type=Path, metavar="JSON", help="print what was measured"
    )
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse()
    if arguments.read:
        result = json.loads(arguments.read.read_text())
    else:
        every = QUICK_CASES if arguments.quick else DEFAULT
        jobs = plan(
            arguments.backends, arguments.peers, arguments.only or every
        )
        arguments.output.mkdir(parents=True, exist_ok=True)
        file = arguments.output / "benchmarks.json"
        result = run(
            jobs,
            QUICK if arguments.quick else Effort(),
            lambda found: file.write_text(json.dumps(found, indent=1)),
        )
        draw_chart(result, arguments.output / "benchmarks.png")
    show(result, arguments.markdown)
    return 1 if failures(result) else 0


def show(result: dict[str, Any], markdown: bool) -> None:
    """Print what it ran on and all tables."""
    machine, versions = result["machine"], result["versions"]
    heading = f"{machine['cpu']}, {machine['cores']} cores; " + ", ".join(
        f"{name} {version}" for name, version in versions.items()
    )
    if markdown:
        print(f"{heading}\n")
        for table in make_tables(result):
            print(table.to_markdown())
    else:
        console = rich.console.Console(width=160)
        console.print(heading)
        for table in make_tables(result):
            console.print(table.to_rich())


if __name__ == "__main__":
    sys.exit(main())
