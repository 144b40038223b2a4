"""Pictures of a variational model, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import numpy as np
from keras import ops
from matplotlib.figure import Figure

from keras_vd.posteriors import WeightPosterior
from keras_vd.report import required_posteriors


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
    """Histogram of log_alpha, one panel per variational weight.

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
    """Picture of the non-zero weights, one panel per variational weight.

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
        outputs = posterior.output_axes
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


def plot_training(history: Mapping[str, Sequence[float]]) -> Figure:
    """Error and nonzero ratio by epoch.

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
