"""The training step of every case as a bar chart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.networks import CASES
from benchmarks.tables import BACKENDS

_COLORS = {"two products": "#9e9e9e", "keras_vd": "#1565c0"}
_PEER_COLORS = ("#ef6c00", "#c62828", "#6a1b9a", "#2e7d32", "#795548")
_BAR = 0.8  # of the distance between neighbouring bars


def draw_chart(result: dict[str, Any], path: Path) -> None:
    """Write one panel for each backend, peers beside keras_vd.

    Args:
        result: Of `benchmarks.running.run`.
        path: Name of the PNG file.
    """
    panels = _panels(result["records"])
    bars = [
        sum(map(len, cases.values())) + len(cases) for cases in panels.values()
    ]
    figure, axes = plt.subplots(
        len(panels),
        squeeze=False,
        figsize=(9, 1.2 * len(panels) + 0.26 * sum(bars)),
        height_ratios=[max(n, 3) for n in bars],
        layout="constrained",
    )
    for ax, (backend, cases) in zip(axes[:, 0], panels.items(), strict=True):
        _draw_panel(ax, BACKENDS[backend], cases)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _panels(records: list[Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Median ratios by backend, case and variant.

    A peer's ratio is to the plain layer of its own library.
    """
    panels: dict[str, dict[str, dict[str, float]]] = {}
    for r in records:
        of_keras_vd = r["table"] == "training" and r["variant"] in _COLORS
        of_peer = r["table"] == "peers" and r["variant"] not in (
            "plain",
            "keras_vd",
            "tf_keras",
            "torch.nn",
        )
        title = "plain" if of_keras_vd else "own plain layer"
        if (of_keras_vd or of_peer) and title in r.get("ratios", {}):
            cases = panels.setdefault(r["backend"], {})
            case = cases.setdefault(CASES[r["case"]].title, {})
            case[r["variant"]] = r["ratios"][title][1]
    return panels


def _draw_panel(ax: Any, name: str, cases: dict[str, dict[str, float]]) -> None:
    peers = dict.fromkeys(
        v for case in cases.values() for v in case if v not in _COLORS
    )
    colors = _COLORS | dict(zip(peers, _PEER_COLORS, strict=False))
    position, ticks = 0.0, []
    for case in cases.values():
        order = [variant for variant in colors if variant in case]
        ticks.append(position + (len(order) - 1) / 2)
        for variant in order:
            label = (
                variant
                if variant not in ax.get_legend_handles_labels()[1]
                else None
            )
            ax.barh(
                position,
                case[variant],
                _BAR,
                color=colors[variant],
                label=label,
            )
            ax.text(
                case[variant],
                position,
                f" {case[variant]:.2f}",
                va="center",
                fontsize=7,
            )
            position += 1
        position += 1
    ax.set_yticks(ticks, list(cases), fontsize=8)
    ax.invert_yaxis()
    ax.axvline(1.0, color="black", linewidth=0.8)
    ax.set_xlabel("time of a training step / that of the plain layer")
    ax.set_title(name)
    ax.margins(x=0.1)
    ax.legend(fontsize=7)
