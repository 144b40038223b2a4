"""The training step of every case as a bar chart."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.libraries import PLAIN
from benchmarks.networks import CASES
from benchmarks.tables import BACKENDS

_COLORS = {
    "two products": "#9e9e9e",
    "keras_vd": "#0d47a1",
    "keras_vd, share unit": "#64b5f6",
}
_PEER_COLORS = (
    "#ef6c00",
    "#ffcc80",
    "#2e7d32",
    "#ad1457",
    "#f48fb1",
    "#6d4c41",
)
_LOW, _ABOVE = 0.5, 1.8  # where bars begin; room for figures above them
_GAP = 1.0  # between cases, in widths of a bar
_LETTERS, _BARS = 15, 4  # a line of a case's title, and what it is as wide as

Ratios = dict[str, dict[str, dict[str, float]]]


def draw_chart(result: dict[str, Any], path: Path) -> None:
    """Write a panel for each backend, peers beside keras_vd in every case.

    Panels lie below each other and have their cases in common. Nothing is
    written where no training step was measured.

    Args:
        result: Of `benchmarks.running.run`.
        path: Name of the PNG file.
    """
    ratios = training_ratios(result["records"])
    if not ratios:
        return
    ticks = _ticks(ratios)
    figure, axes = plt.subplots(
        len(ratios),
        sharex=True,
        sharey=True,
        squeeze=False,
        figsize=(16, 1.2 + 2.6 * len(ratios)),
        layout="constrained",
    )
    colors = _colors(ratios)
    for ax, (backend, cases) in zip(axes[:, 0], ratios.items(), strict=True):
        _draw_panel(ax, cases, ticks, colors)
        ax.set_title(BACKENDS[backend], loc="left", fontsize=11)
    _set_scale(axes[0, 0], ratios)
    titles = [textwrap.fill(CASES[case].title, _LETTERS) for case in ticks]
    axes[-1, 0].set_xticks(list(ticks.values()), titles, fontsize=8)
    figure.supylabel(
        "time of a training step / that of the library's plain layer",
        fontsize=10,
    )
    patches = [
        matplotlib.patches.Patch(color=color, label=variant)
        for variant, color in colors.items()
    ]
    figure.legend(
        handles=patches,
        loc="outside upper center",
        ncols=len(patches),
        fontsize=9,
        frameon=False,
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def training_ratios(records: list[Any]) -> Ratios:
    """Median ratios by backend, case and variant.

    A peer's ratio is to the plain layer of its own library, keras_vd's to that
    of Keras.

    Args:
        records: Of `benchmarks.running.run`.
    """
    found: Ratios = {}
    for r in records:
        of_keras_vd = r["table"] == "training" and r["variant"] in _COLORS
        of_peer = r["table"] == "peers" and r["variant"] not in (
            *PLAIN,
            *_COLORS,
        )
        title = "plain" if of_keras_vd else "own plain layer"
        if (of_keras_vd or of_peer) and title in r.get("ratios", {}):
            case = found.setdefault(r["backend"], {}).setdefault(r["case"], {})
            _, case[r["variant"]], _ = r["ratios"][title]
    return found


def _ticks(ratios: Ratios) -> dict[str, float]:
    """Middles of the cases, which are as wide as in their fullest panel."""
    ticks, start = {}, 0.0
    for case in CASES:
        bars = max(len(cases.get(case, ())) for cases in ratios.values())
        if bars:
            width = max(bars, _BARS) + _GAP
            ticks[case] = start + width / 2
            start += width
    return ticks


def _colors(ratios: Ratios) -> dict[str, str]:
    """Colors of all variants, in the order of their bars."""
    peers = dict.fromkeys(
        variant
        for cases in ratios.values()
        for case in cases.values()
        for variant in case
        if variant not in _COLORS
    )
    return _COLORS | dict(zip(peers, _PEER_COLORS, strict=False))


def _set_scale(ax: Any, ratios: Ratios) -> None:
    """Make ratios of 1 and of 30 readable; all panels have this scale."""
    values = [
        ratio
        for cases in ratios.values()
        for case in cases.values()
        for ratio in case.values()
    ]
    ax.set_yscale("log")
    ax.set_ylim(min(_LOW, *values), _ABOVE * max(1.0, *values))
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _draw_panel(
    ax: Any,
    cases: dict[str, dict[str, float]],
    ticks: dict[str, float],
    colors: dict[str, str],
) -> None:
    for case, found in cases.items():
        variants = [variant for variant in colors if variant in found]
        start = ticks[case] - (len(variants) - 1) / 2
        bars = ax.bar(
            [start + i for i in range(len(variants))],
            [found[variant] for variant in variants],
            0.9,
            color=[colors[variant] for variant in variants],
        )
        ax.bar_label(bars, fmt="%.2f", fontsize=7, rotation=90, padding=2)
    ax.axhline(1.0, color="black", linewidth=0.8)
    ax.margins(x=0.01)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(axis="x", length=0)
