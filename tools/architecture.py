"""Draw how the package is made, for those who open its code first.

    python -m tools.architecture docs/architecture.svg

Three parts from top to bottom: the way of a model through the functions that
users call, what a variational layer does in a training step, and which part of
the package may import which.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from tests.helpers.package import LAYERS_OF_THE_PACKAGE

# Lengths are in points. A narrow picture has large letters on phones.
WIDTH, MARGIN, GAP = 510.0, 6.0, 20.0
COLUMNS = 3
COLUMN = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS
PADDING = 7.0
HEADING, LARGE, SMALL = 18.0, 14.5, 13.0
LINE = 1.25  # of the size of its letters
# There is no background: boxes have one for white letters, and what is outside
# can be read on white and on black.
OUTSIDE = "#7a7a7a"
MODEL, CALL, NOISE, DIVERGENCE = "#5f6368", "#0d5aa7", "#1b6e3c", "#9a3b12"
STYLE = {
    "svg.fonttype": "none",  # letters stay letters
    "svg.hashsalt": "keras_vd",  # or ids are others each time
}


class Box(NamedTuple):
    """A box of the picture.

    Attributes:
        colour: What kind of thing it is.
        lines: Large lines: names as users write them after `keras_vd.`, where
            `colour` is `CALL`.
        small: Small lines; places in `keras_vd/` end in `/` or `.py`.
        columns: How many columns it is wide.
    """

    colour: str
    lines: tuple[str, ...]
    small: tuple[str, ...] = ()
    columns: int = 1

    @property
    def height(self) -> float:
        letters = LARGE * len(self.lines) + SMALL * len(self.small)
        return letters * LINE + 2 * PADDING


Rows = Sequence[Sequence[Box]]

WAY: Rows = (
    (
        Box(MODEL, ("plain", "Keras model")),
        Box(CALL, ("to_variational",), ("conversion/",)),
        Box(
            CALL,
            ("callbacks.KLAnnealing", "callbacks.KLTarget"),
            ("callbacks/, in fit",),
        ),
    ),
    (
        Box(CALL, ("prune",), ("pruning.py",)),
        Box(CALL, ("to_deterministic",), ("conversion/",)),
        Box(CALL, ("shrink",), ("shrinking/, rules/",)),
    ),
    (
        Box(MODEL, ("small plain", "Keras model")),
        Box(
            CALL,
            ("deployment.export_onnx", "deployment.export_litert"),
            ("deployment/",),
        ),
        Box(CALL, ("compress",), ("pipeline/", "does the above")),
    ),
)
STEP: Rows = (
    (
        Box(MODEL, ("inputs x",)),
        Box(NOISE, ("theta", "log_sigma2"), ("posteriors/",)),
        Box(DIVERGENCE, ("prior",), ("priors.py",)),
    ),
    (
        Box(NOISE, ("mean product",), ("x · theta", "layers/")),
        Box(NOISE, ("variance product",), ("x² · sigma2", "layers/")),
        Box(DIVERGENCE, ("kl_divergence",), ("in nats", "divergences/")),
    ),
    (
        Box(NOISE, ("mean + √variance · noise",), ("posteriors/",), 2),
        Box(DIVERGENCE, ("times kl_weight",), ("set by callbacks/",)),
    ),
    (
        Box(NOISE, ("outputs",), ("bias, activation: layers/",), 2),
        Box(DIVERGENCE, ("add_loss",), ("posteriors/",)),
    ),
    (
        Box(
            MODEL,
            ("loss",),
            ("mean negative log likelihood + kl_weight · KL",),
            3,
        ),
    ),
)
# Between a row and the next one: column from, column to.
STEP_ARROWS = (
    ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 2)),
    ((0, 0), (1, 1), (2, 2)),
    ((0.5, 0.5), (2, 2)),
    ((0.5, 0.5), (2, 2)),
)
HEADINGS = (
    "A model's way through keras_vd/",
    "A variational layer in a training step",
    "Imports only point down",
)


def middle(column: float) -> float:
    """Horizontal middle of a column; halves are between two."""
    return MARGIN + column * (COLUMN + GAP) + COLUMN / 2


def row_height(row: Sequence[Box]) -> float:
    return max(box.height for box in row)


def write(ax: Axes, x: float, y: float, text: str, size: float, **how) -> None:
    ax.text(x, y, text, fontsize=size, va="center", **how)


def draw_row(ax: Axes, row: Sequence[Box], top: float) -> None:
    """Draw boxes beside each other, all as high as the highest."""
    height, left = row_height(row), MARGIN
    for box in row:
        width = box.columns * (COLUMN + GAP) - GAP
        draw_bar(ax, left, top, width, height, box.colour)
        x, y = left + width / 2, top + (height - box.height) / 2 + PADDING
        is_code = box.colour == CALL
        for line in box.lines:
            text = line.rpartition(".")[2] if is_code else line
            family = "monospace" if is_code else "sans-serif"
            how = {"weight": "bold", "family": family, "color": "white"}
            write(ax, x, y + LINE * LARGE / 2, text, LARGE, ha="center", **how)
            y += LINE * LARGE
        for line in box.small:
            how = {"color": "white", "ha": "center"}
            write(ax, x, y + LINE * SMALL / 2, line, SMALL, **how)
            y += LINE * SMALL
        left += width + GAP


def draw_bar(
    ax: Axes, left: float, top: float, width: float, height: float, colour: str
) -> None:
    shape = "round,pad=0,rounding_size=5"
    ax.add_patch(
        FancyBboxPatch((left, top), width, height, shape, fc=colour, ec="none")
    )


def draw_arrow(ax: Axes, *points: tuple[float, float]) -> None:
    """Draw a line through points, with a head at the last one."""
    *before, start, end = points
    ax.plot(*zip(*before, start, strict=True), color=OUTSIDE, lw=2)
    ax.add_patch(
        FancyArrowPatch(
            *(start, end),
            arrowstyle="-|>",
            mutation_scale=13,
            shrinkA=0,
            shrinkB=1,
            color=OUTSIDE,
            lw=2,
        )
    )


def draw_way(ax: Axes, top: float) -> float:
    """Draw the boxes of a model's way; returns where they end."""
    for number, row in enumerate(WAY):
        bottom = top + row_height(row)
        draw_row(ax, row, top)
        y = (top + bottom) / 2
        is_last = number == len(WAY) - 1
        # The last box stands for the way, and is no part of it.
        for column in range(len(row) - 1 - is_last):
            start = middle(column) + COLUMN / 2
            draw_arrow(ax, (start, y), (start + GAP, y))
        if not is_last:
            first, last, y = middle(0), middle(len(row) - 1), bottom + GAP / 2
            turns = ((last, bottom), (last, y), (first, y))
            draw_arrow(ax, *turns, (first, bottom + GAP))
        top = bottom + GAP
    return top - GAP


def draw_step(ax: Axes, top: float) -> float:
    """Draw the boxes of a training step; returns where they end."""
    for number, row in enumerate(STEP):
        bottom = top + row_height(row)
        draw_row(ax, row, top)
        if number < len(STEP) - 1:
            for start, end in STEP_ARROWS[number]:
                # Several that leave or reach a box do so beside each other.
                shift = 0.15 * (end - start) * COLUMN
                draw_arrow(
                    ax,
                    (middle(start) + shift, bottom),
                    (middle(end) - shift, bottom + GAP),
                )
        top = bottom + GAP
    return top - GAP


def draw_imports(ax: Axes, top: float) -> float:
    """Draw a bar for each line of the package; returns where they end."""
    height = LINE * SMALL
    left, start = MARGIN + GAP, top
    for parts in LAYERS_OF_THE_PACKAGE:
        draw_bar(ax, left, top, WIDTH - left - MARGIN, height, MODEL)
        text = ", ".join(parts)
        how = {"family": "monospace", "color": "white"}
        write(ax, left + PADDING, top + height / 2, text, SMALL - 1, **how)
        top += height + 3
    draw_arrow(ax, (left - GAP / 2, start), (left - GAP / 2, top - 3))
    return top - 3


def draw(path: Path) -> None:
    """Write the picture as an SVG file, the same one every time."""
    parts = (draw_way, draw_step, draw_imports)
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        bottom = 0.0
        for heading, part in zip(HEADINGS, parts, strict=True):
            y = bottom + 1.4 * HEADING
            how = {"weight": "bold", "color": OUTSIDE}
            write(ax, MARGIN, y, heading, HEADING, **how)
            bottom = part(ax, y + HEADING) + MARGIN
        figure.set_size_inches(WIDTH / 72, bottom / 72)
        ax.set(xlim=(0.0, WIDTH), ylim=(bottom, 0.0))
        ax.axis("off")
        metadata = {"Date": None, "Creator": None}
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    # `pre-commit` refuses the spaces that matplotlib leaves at ends of lines.
    lines = file.getvalue().splitlines()
    path.write_text("".join(f"{line.rstrip()}\n" for line in lines), "utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    draw(parser.parse_args(arguments).file)


if __name__ == "__main__":
    main()
