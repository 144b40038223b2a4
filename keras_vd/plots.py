"""Draw variational models as matplotlib figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import numpy as np
from keras import ops
from matplotlib.figure import Figure

from keras_vd.calibration import CalibrationReport
from keras_vd.decisions import RiskCoverageReport
from keras_vd.layers import LogNormalDropout
from keras_vd.layers.structured import StructuredGate
from keras_vd.posteriors import WeightPosterior
from keras_vd.posteriors.finding import named_posteriors, required_posteriors
from keras_vd.regression import RegressionCalibrationReport


def _required_weights(model: keras.layers.Layer) -> list[WeightPosterior]:
    posteriors = required_posteriors(model)
    found = [x for x in posteriors if isinstance(x, WeightPosterior)]
    if not found:
        raise ValueError(
            "Argument `model` must have variational weights to draw. "
            f"Received '{model.name}', which has gates only."
        )
    return found


def plot_log_alpha(model: keras.layers.Layer, bins: int = 80) -> Figure:
    """Draw histograms of log_alpha, one panel per variational weight.

    A well-trained sparse model shows two hills with the threshold (dashed)
    between them.

    Args:
        model: A built Keras model or layer with variational layers.
        bins: Number of bars.

    Returns:
        A figure; `figure.savefig(path)` writes it.
    """
    posteriors = _required_weights(model)
    figure = Figure(figsize=(4 * len(posteriors), 3), layout="constrained")
    panels = figure.subplots(1, len(posteriors), squeeze=False)[0]
    for panel, posterior in zip(panels, posteriors, strict=True):
        panel.hist(ops.convert_to_numpy(posterior.log_alpha).ravel(), bins=bins)
        if posterior.threshold is not None:
            panel.axvline(posterior.threshold, linestyle="--", color="black")
        panel.set(title=posterior.label, xlabel="log alpha", yscale="log")
    panels[0].set_ylabel("weights")
    return figure


def plot_kept_weights(model: keras.layers.Layer) -> Figure:
    """Draw the non-zero weights, one panel per variational weight.

    Args:
        model: A built Keras model or layer with variational layers.

    Returns:
        A figure. Rows are inputs (for convolutions: kernel positions times
        input channels), columns are output units; kept weights are black.
    """
    posteriors = _required_weights(model)
    figure = Figure(figsize=(4 * len(posteriors), 4), layout="constrained")
    panels = figure.subplots(1, len(posteriors), squeeze=False)[0]
    for panel, posterior in zip(panels, posteriors, strict=True):
        nonzero = ops.convert_to_numpy(posterior.mean()) != 0.0
        outputs = posterior.axes.outputs
        picture = np.moveaxis(nonzero, outputs, range(-len(outputs), 0))
        columns = int(np.prod([nonzero.shape[axis] for axis in outputs]))
        panel.imshow(
            picture.reshape(-1, columns),
            cmap="binary",
            aspect="auto",
            interpolation="none",
            vmin=0,
            vmax=1,
        )
        panel.set(title=posterior.label, xlabel="output unit", ylabel="input")
    return figure


def plot_gates(model: keras.layers.Layer) -> Figure:
    """Draw gates by unit, one panel per layer of gates.

    Args:
        model: A built Keras model or layer with gates.

    Returns:
        A figure. A bar is a unit's signal-to-noise ratio, for gates that have
        one, or its expected gate, on a logarithmic scale; black is kept. The
        dashed line is the threshold that this has to exceed.

    Raises:
        ValueError: if the model has no gates.
    """
    gates = [
        (name, posterior)
        for name, posterior in named_posteriors(model)
        if isinstance(posterior, StructuredGate)
    ]
    if not gates:
        raise ValueError(
            "Argument `model` must have gates, such as "
            f"`keras_vd.layers.LogNormalDropout`. Received '{model.name}', "
            "which has none."
        )
    figure = Figure(figsize=(4 * len(gates), 3), layout="constrained")
    panels = figure.subplots(1, len(gates), squeeze=False)[0]
    for panel, (name, gate) in zip(panels, gates, strict=True):
        has_ratio = isinstance(gate, LogNormalDropout)
        heights = ops.convert_to_numpy(
            gate.snr() if has_ratio else gate.gate_mean()
        )
        is_kept = ops.convert_to_numpy(gate.mean()) != 0.0
        panel.bar(
            np.arange(gate.units),
            heights,
            width=1.0,
            color=np.where(is_kept, "black", "lightgray"),
        )
        if gate.threshold is not None:
            panel.axhline(gate.threshold, linestyle="--", color="tab:red")
        panel.set(
            title=f"{name}: {gate.n_active} of {gate.units}",
            xlabel="unit",
            ylabel="signal-to-noise ratio" if has_ratio else "expected gate",
        )
        if heights.any():
            panel.set_yscale("log")
    return figure


def plot_calibration(report: CalibrationReport) -> Figure:
    """Draw a reliability diagram (Guo et al. 2017, arXiv:1706.04599).

    Args:
        report: What `keras_vd.calibration_report` or `.calibration` of a
            `keras_vd.predict_mc` returned.

    Returns:
        A figure with the accuracy of each bin of confidence, and the diagonal
        on which confidence is accuracy.
    """
    figure = Figure(figsize=(4, 4), layout="constrained")
    panel = figure.subplots()
    panel.bar(
        [row.lower for row in report.bins],
        [row.accuracy for row in report.bins],
        width=[row.upper - row.lower for row in report.bins],
        align="edge",
        edgecolor="black",
        color="tab:blue",
    )
    panel.plot([0, 1], [0, 1], linestyle="--", color="black")
    panel.set(
        title=f"expected calibration error {report.expected_error:.3f}",
        xlabel="confidence",
        ylabel="accuracy",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    return figure


def plot_risk_coverage(report: RiskCoverageReport) -> Figure:
    """Draw a risk-coverage curve (Geifman and El-Yaniv 2017, arXiv:1705.08500).

    Args:
        report: What `keras_vd.risk_coverage` returned.

    Returns:
        A figure with the share of the answers that is wrong by the share of
        the predictions that is answered. A step belongs to the examples that
        are answered at its right end only. The dashed line is the risk of
        answering always, where an uncertainty that says nothing would lie.
    """
    figure = Figure(figsize=(5, 4), layout="constrained")
    panel = figure.subplots()
    panel.step(
        np.concatenate([[0.0], report.coverage]),
        np.concatenate([report.risk[:1], report.risk]),
        where="pre",
        color="tab:blue",
    )
    panel.axhline(report.risk[-1], linestyle="--", color="black")
    panel.set(
        title=f"area under the curve {report.aurc:.4f}",
        xlabel="coverage",
        ylabel="risk",
        xlim=(0, 1),
    )
    panel.set_ylim(bottom=0.0)
    return figure


def plot_regression_calibration(
    report: RegressionCalibrationReport, bins: int = 20
) -> Figure:
    """Draw coverage against level, and a histogram of the PIT values.

    Args:
        report: What `keras_vd.regression_calibration` returned.
        bins: Number of bars.

    Returns:
        A figure. Left: the share of the targets within central intervals, above
        the diagonal (dashed) if they are too wide. Right: the density of the
        probability integral transform, 1 (dashed) for a calibrated model.
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(report.levels, report.coverage, marker="o", color="tab:blue")
    left.plot([0, 1], [0, 1], linestyle="--", color="black")
    left.set(
        title=f"calibration error {report.calibration_error:.3f}",
        xlabel="level of the central interval",
        ylabel="coverage",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    right.hist(
        report.pit.ravel(),
        bins=bins,
        range=(0, 1),
        density=True,
        edgecolor="black",
        color="tab:blue",
    )
    right.axhline(1.0, linestyle="--", color="black")
    right.set(
        xlabel="probability integral transform", ylabel="density", xlim=(0, 1)
    )
    return figure


def plot_training(history: Mapping[str, Sequence[float]]) -> Figure:
    """Draw error and nonzero ratio by epoch.

    Args:
        history: `History.history` of a run with `KLAnnealing` and an accuracy
            metric; `val_accuracy` is preferred to `accuracy`.

    Returns:
        A figure with the error in % on the left axis and the nonzero ratio on
        the right one.

    Raises:
        ValueError: if `history` lacks an accuracy or the nonzero ratio.
    """
    accuracy = "val_accuracy" if "val_accuracy" in history else "accuracy"
    missing = {accuracy, "nonzero_ratio"} - set(history)
    if missing:
        raise ValueError(
            "Argument `history` must have 'accuracy' or 'val_accuracy', and "
            "'nonzero_ratio', which `KLAnnealing` adds. Received the keys "
            f"{sorted(history)}."
        )
    error = 100.0 * (1.0 - np.asarray(history[accuracy]))
    epochs = np.arange(1, len(error) + 1)
    figure = Figure(figsize=(6, 4), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    left.plot(epochs, error, color="tab:red")
    right.plot(epochs, history["nonzero_ratio"], color="tab:blue")
    left.set(xlabel="epoch")
    left.set_ylabel(f"error, % ({accuracy})", color="tab:red")
    right.set_ylabel("weights / non-zero weights", color="tab:blue")
    right.set_yscale("log")
    return figure
