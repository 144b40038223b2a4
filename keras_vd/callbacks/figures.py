"""Figures of an epoch, for logs, for the progress bar and for people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_vd.posteriors.finding import named_posteriors
from keras_vd.pruning import current_kl_divergence
from keras_vd.sparsity import SparsityReport, sparsity_report

PER_LAYER = "n_active/"
PER_LAYER_KL = "kl/"


class Figures:
    """Figures of a model at the end of an epoch.

    Args:
        model: The model.
        kl_weight: Its KL weight.
        whole: Report of the model before anything was removed from it.

    Attributes:
        totals: Figures of the whole model, by their names in the logs.
        layers: `n_active` of each weight, group and gate.
        nonfinite: Paths of variables with values that are not finite.
    """

    def __init__(
        self, model: keras.Model, kl_weight: float, whole: SparsityReport
    ) -> None:
        report = sparsity_report(model).relative_to(whole)
        self.totals: dict[str, Any] = {
            "kl": current_kl_divergence(model),
            "kl_weight": kl_weight,
            "sparsity": report.sparsity,
            "nonzero_ratio": report.nonzero_ratio,
        }
        counts = [(row.name, row.active_inputs) for row in report.rows]
        counts += [(group.name, group.active) for group in report.groups]
        counts += [(gate.name, gate.active) for gate in report.gates]
        self.layers = {f"{PER_LAYER}{name}": count for name, count in counts}
        self._n_active = report.n_active
        self.nonfinite = list(report.nonfinite)

    def line(self, epoch: int) -> str:
        """Return a line to print, in which epochs count from 1."""
        totals = self.totals
        end = f", not finite: {', '.join(self.nonfinite)}"
        target = ""
        if "target" in totals:
            state, wish = totals["target_state"], totals["target"]
            target = f", target: {wish:.4g}, target_state: {state:.4g}"
        return (
            f"Epoch {epoch + 1}: n_active: {self._n_active}, "
            f"nonzero_ratio: {totals['nonzero_ratio']:.1f}, "
            f"kl: {totals['kl']:.1f} nats, "
            f"kl_weight: {totals['kl_weight']:.3g}{target}"
            f"{end if self.nonfinite else ''}"
        )

    def summary(self) -> dict[str, int]:
        """Return what the progress bar shows in place of `layers`."""
        counts = self.layers.values()
        return {"n_active_min": min(counts), "n_active_sum": sum(counts)}


def layer_kl(model: keras.layers.Layer) -> dict[str, float]:
    """Compute the KL divergence of each posterior, nats, by name in logs."""
    return {
        f"{PER_LAYER_KL}{name}": float(
            ops.convert_to_numpy(posterior.kl_divergence())
        )
        for name, posterior in named_posteriors(model)
    }


class ShortBar:
    """Change to a progress bar: a summary in place of one figure per layer.

    All callbacks share one dictionary of logs, so nothing can be left out of
    it for the bar alone. Instead, the bar's method is given a shorter copy.
    """

    def __init__(
        self,
        bar: keras.callbacks.ProgbarLogger,
        figures: Callable[[], Figures | None],
    ) -> None:
        self._bar, self._figures = bar, figures
        # Set on the instance, so that the bars of other fits stay as they are.
        bar.on_epoch_end = self._on_epoch_end

    def _on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        shown = {
            name: value
            for name, value in (logs or {}).items()
            if not name.startswith((PER_LAYER, PER_LAYER_KL))
        }
        figures = self._figures()
        if figures is not None:
            shown |= figures.summary()
        type(self._bar).on_epoch_end(self._bar, epoch, shown)

    def undo(self) -> None:
        """Restore the bar as it was."""
        vars(self._bar).pop("on_epoch_end", None)
