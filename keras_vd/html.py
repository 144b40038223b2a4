"""Write a web page that shows what a variational model has learned."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras

from keras_vd._backend.tables import html_fragment, html_page
from keras_vd._backend.writing import read_back, write_checked
from keras_vd.sparsity import SparsityReport, sparsity_report


def html_report(
    model: keras.layers.Layer,
    path: str | os.PathLike[str],
    history: Any = None,
) -> Path:
    """Write a web page with the sparsity of a model and pictures of it.

    The page is one file that needs nothing else and can be opened without a
    network. It has the table of `sparsity_report`, histograms of log_alpha and
    pictures of the kept weights, the gates, and error against sparsity by
    epoch, as far as the model has them. It is written completely or not at all.

    Args:
        model: A built Keras model or layer with variational layers.
        path: Path of the file. Its folder must exist.
        history: What `fit` returned, or its `history`, of a run with
            `KLAnnealing` and an accuracy metric. None: no training curves.

    Returns:
        The path.

    Raises:
        TypeError: if `model` is no Keras layer or model.
        ValueError: if it is not built or has no variational layers, or
            `history` lacks an accuracy or the nonzero ratio.
        ImportError: if matplotlib is not installed.
        OSError: if the file cannot be written.

    Example:
    >>> layer = keras_vd.layers.VDDense(3)
    >>> model = keras.Sequential([keras.Input((4,)), layer])
    >>> keras_vd.html_report(model, "report.html")  # doctest: +SKIP
    """
    report = sparsity_report(model)
    sections = [
        ("Sparsity", html_fragment(report)),
        *(
            (title, _embedded(figure))
            for title, figure in _figures(model, report, history)
        ),
    ]
    page = html_page(model.name, sections)

    def check(new: Path) -> None:
        if read_back(new, partial(Path.read_text, encoding="utf-8")) != page:
            raise OSError(f"'{new.name}' is not what was written to it.")

    write_checked(
        path, partial(Path.write_text, data=page, encoding="utf-8"), check
    )
    return Path(path)


def _figures(
    model: keras.layers.Layer, report: SparsityReport, history: Any
) -> list[tuple[str, Any]]:
    """Draw what the model has; return titles and figures."""
    try:
        from keras_vd import plots
    except ImportError as error:
        raise ImportError(
            "The pictures of `html_report` need the package matplotlib: `pip "
            f"install matplotlib`. ({error})"
        ) from error
    figures = []
    if report.rows:
        figures += [
            ("log alpha", plots.plot_log_alpha(model)),
            ("Kept weights", plots.plot_kept_weights(model)),
        ]
    if report.gates:
        figures += [("Gates", plots.plot_gates(model))]
    if history is not None:
        curves: Mapping[str, Sequence[float]] = getattr(
            history, "history", history
        )
        figures += [("Training", plots.plot_training(curves))]
    return figures


def _embedded(figure: Any) -> str:
    """Return an HTML image that contains the figure."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="" src="data:image/png;base64,{data}">'
