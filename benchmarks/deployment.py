"""All formats of a plain model against a dense one: bytes, times, outputs.

    python -m benchmarks.deployment dense.keras small.keras

What `keras_vd.deployment.deployment_report` says, on inputs drawn for both
models.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import keras_vd
from benchmarks.latency import describe_machine, fail, interface, load
from keras_vd.deployment.drawing import draw_inputs
from keras_vd.deployment.interface import pack


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("dense", help=".keras file that ratios are about")
    add("small", help=".keras file of the same inputs and outputs")
    add("--batch-sizes", nargs="+", type=int, default=[1, 64])
    add("--steps", type=int, default=100, help="length of open axes")
    add("--html", type=Path, help="file for the table as a web page")
    parsed = parser.parse_args(arguments)
    dense, small = load(parsed.dense), load(parsed.small)
    expected, found = (interface(x, parsed.steps) for x in (dense, small))
    if found != expected:
        fail(f"{parsed.small} has inputs and outputs {found}, not {expected}")
    arrays = draw_inputs([dense, small], max(parsed.batch_sizes), parsed.steps)
    print(describe_machine())
    report = keras_vd.deployment.deployment_report(
        small, pack(small, arrays), dense, batch_sizes=parsed.batch_sizes
    )
    if parsed.html:
        parsed.html.write_text(report.to_html())


if __name__ == "__main__":
    main()
