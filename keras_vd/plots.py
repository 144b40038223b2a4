"""Draw variational models as matplotlib figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keras_vd import drawing
from keras_vd.calibration import CalibrationReport
from keras_vd.decisions import RiskCoverageReport
from keras_vd.layers.structured import StructuredGate
from keras_vd.posteriors import WeightPosterior
from keras_vd.posteriors.finding import named_posteriors, required_posteriors
from keras_vd.regression import RegressionCalibrationReport

_COLUMNS = 4  # of panels


def _required_weights(model: keras.layers.Layer) -> list[WeightPosterior]:
    posteriors = required_posteriors(model)
    found = [x for x in posteriors if isinstance(x, WeightPosterior)]
    if not found:
        raise ValueError(
            "Argument `model` must have variational weights to draw. "
            f"Received '{model.name}', which has gates only."
        )
    return found


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Make a figure with panels in rows of up to four."""
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(4 * columns, height * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[count:]:
        panel.remove()
    return figure, list(panels[:count])


def plot_log_alpha(model: keras.layers.Layer, bins: int = 80) -> Figure:
    """Draw histograms of log_alpha as learned, one panel per weight.

    A well-trained sparse model shows two hills with the threshold (dashed)
    between them. Weights that are zero at inference are grey, pruned ones at
    the value that they were pruned with. Weights of which nothing is left, so
    that log_alpha is at its bound of 20, are a bar of their own.

    Args:
        model: A built Keras model or layer with variational layers.
        bins: Number of bars.

    Returns:
        A figure; `figure.savefig(path)` writes it.
    """
    posteriors = _required_weights(model)
    figure, panels = _panels(len(posteriors), 3)
    for panel, posterior in zip(panels, posteriors, strict=True):
        drawing.draw_log_alpha(panel, posterior, bins)
        panel.set_title(posterior.label, parse_math=False)
    return figure


def plot_kept_weights(model: keras.layers.Layer) -> Figure:
    """Draw the non-zero weights, one panel per variational weight.

    Args:
        model: A built Keras model or layer with variational layers.

    Returns:
        A figure. Rows are inputs (for convolutions: kernel positions times
        input channels), columns are output units; kept weights are blue. More
        than 96 rows or columns are drawn in blocks, the bluer the larger the
        share of a block that is kept.
    """
    posteriors = _required_weights(model)
    figure, panels = _panels(len(posteriors), 4)
    for panel, posterior in zip(panels, posteriors, strict=True):
        drawing.draw_kept_weights(panel, posterior)
        panel.set_title(posterior.label, parse_math=False)
    return figure


def plot_kept_inputs(
    model: keras.layers.Layer, image_shape: Sequence[int] | None = None
) -> Figure:
    """Draw how many weights of the first layer read each pixel of an image.

    Args:
        model: A built Keras model or layer whose first variational weight
            reads images pixel by pixel, as that of a dense layer does.
        image_shape: Height and width of the images, and channels if there are
            any, which come last; None: those of the model's inputs, or 28 x 28
            for 784 inputs.

    Returns:
        A figure; the bluer a pixel, the more weights read it.

    Raises:
        TypeError: if `model` is no Keras layer or model.
        ValueError: if it is not built or has no variational weights, or if the
            shape of the images is unknown or does not fit.
    """
    _required_weights(model)
    counts = drawing.kept_inputs(model, image_shape)
    if counts is None:
        raise ValueError(
            "Argument `image_shape` must be given where the model's inputs "
            "are no images that its first variational weight reads. Received: "
            "image_shape=None."
        )
    figure = Figure(figsize=(4, 4), layout="constrained")
    drawing.draw_kept_inputs(figure.subplots(), counts)
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
    figure, panels = _panels(len(gates), 3)
    for panel, (name, gate) in zip(panels, gates, strict=True):
        drawing.draw_gates(panel, gate)
        panel.set_title(
            f"{name}: {gate.n_active} of {gate.units}", parse_math=False
        )
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
    drawing.draw_calibration(panel, report)
    panel.set_title(f"expected calibration error {report.expected_error:.3f}")
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
    drawing.draw_risk_coverage(panel, report)
    panel.set_title(f"area under the curve {report.aurc:.4f}")
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
    drawing.draw_coverage(left, report)
    left.set_title(f"calibration error {report.calibration_error:.3f}")
    drawing.draw_pit(right, report, bins)
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
