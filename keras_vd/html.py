"""Write a web page that shows what a variational model has learned."""

from __future__ import annotations

import math
import numbers
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_vd._backend.pages import (
    Section,
    html_headlines,
    html_page,
    html_picture,
    html_pictures,
    report_section,
)
from keras_vd._backend.tables import (
    Headline,
    Report,
    html_note,
    html_table,
    simple_table,
)
from keras_vd._backend.writing import read_back, write_checked
from keras_vd.calibration import CalibrationReport
from keras_vd.decisions import RiskCoverageReport
from keras_vd.layers.structured import StructuredGate
from keras_vd.posteriors import WeightPosterior
from keras_vd.posteriors.finding import named_posteriors
from keras_vd.regression import RegressionCalibrationReport
from keras_vd.sparsity import sparsity_report
from keras_vd.temperature import TemperatureReport

# Pictures of more weights would make a page that is slow to open.
MOST_PICTURES = 24
# What `KLAnnealing` adds to the metrics of an epoch, and what it is.
_ANNEALING = {
    "kl": "KL divergence, nats",
    "kl_weight": "KL weight",
    "nonzero_ratio": "weights per non-zero one",
    "sparsity": "share of zeros",
}
# Beginnings of the figures that there are for each layer, likewise.
_BY_LAYER = {
    "n_active/": "active inputs",
    "kl/": "KL divergence of a layer, nats",
}


def html_report(
    model: keras.layers.Layer,
    path: str | os.PathLike[str],
    history: Any = None,
    *,
    reports: Sequence[Report] | Mapping[str, Report] = (),
    headlines: Mapping[str, Any] | None = None,
    image_shape: Sequence[int] | None = None,
    title: str | None = None,
) -> Path:
    """Write a web page about a model, to be sent to others.

    The page is one file that needs nothing else: no network and no script. It
    is light or dark as its reader's system is, and fits a phone. It has the
    sizes before and after in large figures, the table of `sparsity_report`,
    the pixels that the first layer still reads, histograms of log_alpha as
    learned, the kept weights, gates, training by epoch, and the tables and
    curves of further reports, as far as there are any. It is written
    completely or not at all.

    Args:
        model: A built Keras model or layer with variational layers.
        path: Path of the file. Its folder must exist.
        history: What `fit` returned, or its `history`. None: no training
            curves.
        reports: Reports to add, such as those of `shrink`, `compress`,
            `calibration_report`, `risk_coverage` or `regression_calibration`;
            a mapping gives them titles.
        headlines: Figures to show first, by what they are: a number or text,
            or a pair of what it was before and what it is.
        image_shape: Height and width of the images that the first layer reads,
            and channels if there are any, which come last; None: those of the
            model's inputs, or 28 x 28 for 784 inputs.
        title: Title of the page; None: the model's name.

    Returns:
        The path.

    Raises:
        TypeError: if `model` is no Keras layer or model, or another argument
            is not of the types above.
        ValueError: if the model is not built or has no variational layers, a
            headline is not finite, `history` has no epochs, or `image_shape`
            does not fit the first variational weight.
        ImportError: if matplotlib is not installed.
        OSError: if the file cannot be written.

    Example:
    >>> layer = keras_vd.layers.VDDense(3)
    >>> model = keras.Sequential([keras.Input((4,)), layer])
    >>> keras_vd.html_report(
    ...     model, "report.html", headlines={"accuracy": (0.981, 0.979)}
    ... )  # doctest: +SKIP
    """
    try:
        from keras_vd import drawing
    except ImportError as error:
        raise ImportError(
            "The pictures of `html_report` need the package matplotlib: `pip "
            f"install matplotlib`. ({error})"
        ) from error
    sparsity = sparsity_report(model)
    curves = _curves(history)
    titled = _titled(reports)
    given = [_headline(*item) for item in (headlines or {}).items()]
    album = _Album(drawing)
    sections = [
        report_section("Sparsity at inference", sparsity),
        *_model_sections(album, model, image_shape),
        *_training_sections(album, curves),
    ]
    for heading, report in titled.items():
        sections += _report_sections(album, heading, report)
    summaries = [*(x for x in titled.values() if x.is_about_sizes), sparsity]
    known = [
        *given,
        *(headline for report in summaries for headline in report.headlines()),
        *_last_metrics(curves),
    ]
    first: dict[str, Headline] = {}
    for headline in known:
        first.setdefault(headline.label, headline)
    page = html_page(
        model.name if title is None else title,
        "\n".join([*filter(None, (x.lead() for x in summaries)), _what(model)]),
        first.values(),
        sections,
    )

    def check(new: Path) -> None:
        if read_back(new, partial(Path.read_text, encoding="utf-8")) != page:
            raise OSError(f"'{new.name}' is not what was written to it.")

    write_checked(
        path, partial(Path.write_text, data=page, encoding="utf-8"), check
    )
    return Path(path)


class _Album:
    """Makes the pictures of one page, whose ids must differ.

    Args:
        drawing: The module `keras_vd.drawing`, which needs matplotlib.
    """

    def __init__(self, drawing: Any) -> None:
        self.drawing = drawing
        self._count = 0

    def picture(
        self,
        caption: str,
        draw: Callable[..., Any],
        *arguments: Any,
        key: Sequence[tuple[str, str]] = (),
    ) -> str:
        """Return a picture as HTML.

        Args:
            caption: What it shows.
            draw: Draws it, given a panel and the arguments.
            *arguments: What it shows.
            key: Names of its colours, and what the page calls these.
        """
        self._count += 1
        svg = self.drawing.inline_svg(
            lambda panel: draw(panel, *arguments),
            f"picture{self._count}",
            caption,
        )
        return html_picture(caption, svg, key)


def _what(model: keras.layers.Layer) -> str:
    """Tell in a sentence what is variational about a model."""
    kinds = Counter(
        _kind(posterior) for _, posterior in named_posteriors(model)
    )
    return "; ".join(f"{count} {kind}" for kind, count in kinds.items()) + "."


def _kind(posterior: Any) -> str:
    name = type(posterior).__name__
    if isinstance(posterior, StructuredGate):
        return f"x gates {name}"
    what = "group" if posterior.is_group else "weight"
    prior = type(posterior.prior).__name__
    limit = posterior.threshold
    pruning = "" if limit is None else f", zero from log alpha {limit:g} on"
    return f"x {what} {name}, prior {prior}{pruning}"


def _model_sections(
    album: _Album,
    model: keras.layers.Layer,
    image_shape: Sequence[int] | None,
) -> list[Section]:
    """Return what a page shows of the weights and gates of a model."""
    drawing = album.drawing
    named = named_posteriors(model)
    weights = [x for x in named if isinstance(x[1], WeightPosterior)]
    gates = [x for x in named if isinstance(x[1], StructuredGate)]
    sections = []
    pixels = drawing.kept_inputs(model, image_shape)
    if pixels is not None:
        picture = album.picture(
            "Weights of the first layer that read each pixel",
            drawing.draw_kept_inputs,
            pixels,
        )
        sections.append(Section("Kept pixels", html_pictures([picture])))
    key = (("kept", "blue"), ("zero at inference", "faint"))
    matrices = [x for x in weights if not x[1].is_group]
    for title, draw, posteriors, colours in (
        ("log alpha as learned", drawing.draw_log_alpha, weights, key),
        ("Kept weights", drawing.draw_kept_weights, matrices, ()),
        ("Gates", drawing.draw_gates, gates, (("kept", "ink"), key[1])),
    ):
        shown, note = _largest(posteriors)
        pictures = [
            album.picture(name, draw, posterior, key=colours)
            for name, posterior in shown
        ]
        if pictures:
            sections.append(Section(title, note + html_pictures(pictures)))
    return sections


def _largest(
    named: list[tuple[str, Any]],
) -> tuple[list[tuple[str, Any]], str]:
    """Choose the largest posteriors, in order; return what to say of that."""
    if len(named) <= MOST_PICTURES:
        return named, ""
    sizes = [math.prod(x.keep_mask.shape) for _, x in named]
    chosen = np.sort(np.argsort(sizes, kind="stable")[-MOST_PICTURES:])
    note = html_note(f"The {MOST_PICTURES} largest of {len(named)}.")
    return [named[i] for i in chosen], note


def _curves(history: Any) -> dict[str, list[float]]:
    """Return the figures of every epoch by name, as floats."""
    if history is None:
        return {}
    logs = getattr(history, "history", history)
    if not isinstance(logs, Mapping):
        raise TypeError(
            "Argument `history` must be what `fit` returned, or its "
            f"`history`. Received: {history!r} (of type "
            f"{type(history).__name__})."
        )
    curves = {}
    for name, values in logs.items():
        try:
            curves[str(name)] = [float(value) for value in values]
        except (TypeError, ValueError) as error:
            raise TypeError(
                "Argument `history` must have a list of numbers for each "
                f"name. Received for {name!r}: {values!r}."
            ) from error
    if not any(curves.values()):
        raise ValueError(
            "Argument `history` must have at least one epoch. Received: "
            f"{dict(logs)!r}."
        )
    return curves


def _epochs(curves: Mapping[str, list[float]]) -> int:
    return max(map(len, curves.values()), default=0)


def _metrics(curves: Mapping[str, list[float]]) -> list[str]:
    """List the names of metrics, without those of their validation."""
    names = (
        name.removeprefix("val_")
        for name in curves
        if name not in _ANNEALING and not name.startswith(tuple(_BY_LAYER))
    )
    return list(dict.fromkeys(names))


def _last_metrics(curves: Mapping[str, list[float]]) -> list[Headline]:
    """Return the metrics of the last epoch; those of validation if any."""
    names = _metrics(curves)
    found = []
    for name in [x for x in names if x not in ("loss", "learning_rate")]:
        values = curves.get(f"val_{name}", curves.get(name))
        if values:
            source = f"val_{name}" if f"val_{name}" in curves else name
            found.append(Headline(f"{source}, last", f"{values[-1]:.4g}"))
    return found


def _training_sections(
    album: _Album, curves: Mapping[str, list[float]]
) -> list[Section]:
    """Return the section about training: curves, and a table of epochs."""
    epochs = _epochs(curves)
    if not epochs:
        return []
    # Where validation was rarer, its epochs are not known.
    whole = {k: v for k, v in curves.items() if len(v) == epochs}
    families: dict[str, dict[str, list[float]]] = {}
    for name in _metrics(whole):
        pair = (name, f"val_{name}")
        families[name] = {x: whole[x] for x in pair if x in whole}
    for name, label in _ANNEALING.items():
        # The ratio says the same as the share of zeros, and is seen better.
        if name in whole and name != "sparsity":
            families[label] = {name: whole[name]}
    for start, label in _BY_LAYER.items():
        layers = {
            name.removeprefix(start): values
            for name, values in whole.items()
            if name.startswith(start)
        }
        if layers:
            families[label] = layers
    drawing = album.drawing
    pictures = []
    for label, lines in families.items():
        has_key = 1 < len(lines) <= len(drawing.LINES)
        key = tuple(zip(lines, drawing.LINES, strict=False)) if has_key else ()
        pictures.append(
            album.picture(label, drawing.draw_curves, lines, key=key)
        )
    rare = sorted(set(curves) - set(whole))
    note = html_note(f"Not of every epoch: {', '.join(rare)}." if rare else "")
    return [
        Section(
            "Training",
            f"{note}{html_pictures(pictures)}\n<details>\n"
            f"<summary>All {epochs:,} epochs</summary>\n"
            f"{_epoch_table(whole, epochs)}\n</details>",
        )
    ]


def _epoch_table(curves: Mapping[str, list[float]], epochs: int) -> str:
    """Return a table with a row for each epoch; figures of layers as lists."""
    columns: dict[str, list[str]] = {}
    for name, values in curves.items():
        start = next((x for x in _BY_LAYER if name.startswith(x)), None)
        texts = [f"{value:.4g}" for value in values]
        if start is None:
            columns[name] = texts
        elif start in columns:
            pairs = zip(columns[start], texts, strict=True)
            columns[start] = [", ".join(pair) for pair in pairs]
        else:
            columns[start] = texts
    labels = {**_ANNEALING, **_BY_LAYER}
    headers = [labels.get(name, name) for name in columns]
    rows = zip(map(str, range(1, epochs + 1)), *columns.values(), strict=True)
    table = simple_table("Epochs", ["epoch", *headers], rows)
    return html_table(table, has_caption=False)


def _titled(
    reports: Sequence[Report] | Mapping[str, Report],
) -> dict[str, Report]:
    """Return reports by their titles, which differ."""
    is_many = isinstance(reports, Mapping | list | tuple)
    found = reports.values() if isinstance(reports, Mapping) else reports
    if not is_many or not all(isinstance(x, Report) for x in found):
        raise TypeError(
            "Argument `reports` must be a list or mapping of reports, such as "
            f"`keras_vd.shrink` returns. Received: reports={reports!r}."
        )
    if isinstance(reports, Mapping):
        return {str(title): report for title, report in reports.items()}
    titled: dict[str, Report] = {}
    uses: Counter[str] = Counter()
    for report in reports:
        title = next(iter(report.parts()))
        uses[title] += 1
        number = f" ({uses[title]})" if uses[title] > 1 else ""
        titled[title + number] = report
    return titled


def _headline(label: str, value: Any) -> Headline:
    """Return a figure that a caller gave."""
    if isinstance(value, list | tuple) and len(value) == 2:
        before, after = (_figure(label, x) for x in value)
        return Headline(str(label), after, before)
    return Headline(str(label), _figure(label, value))


def _figure(label: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            "Argument `headlines` must have numbers, texts or pairs of these. "
            f"Received for {label!r}: {value!r}."
        )
    if not math.isfinite(value):
        raise ValueError(
            "Argument `headlines` must have finite numbers. Received for "
            f"{label!r}: {value!r}."
        )
    is_whole = isinstance(value, numbers.Integral)
    return f"{value:,}" if is_whole else f"{float(value):.4g}"


def _report_sections(
    album: _Album, heading: str, report: Report
) -> list[Section]:
    """Return the sections of a report, the first under the heading."""
    pictures = _report_pictures(album, report)
    above = [
        "" if report.is_about_sizes else html_headlines(report.headlines()),
        html_pictures(pictures) if pictures else "",
    ]
    (_, first), *others = report.parts().items()
    return [
        report_section(heading, first, "\n".join(filter(None, above))),
        *(
            report_section(f"{heading}: {title}", part)
            for title, part in others
        ),
    ]


def _report_pictures(album: _Album, report: Report) -> list[str]:
    drawing = album.drawing
    drawings: list[tuple[str, Callable[..., Any], Report]] = []
    if isinstance(report, CalibrationReport):
        drawings = [("Reliability", drawing.draw_calibration, report)]
    elif isinstance(report, TemperatureReport):
        before, after = report.calibration_before, report.calibration_after
        drawings = [
            ("Reliability at temperature 1", drawing.draw_calibration, before),
            (
                f"Reliability at temperature {report.temperature:.4g}",
                drawing.draw_calibration,
                after,
            ),
        ]
    elif isinstance(report, RiskCoverageReport):
        drawings = [("Risk by coverage", drawing.draw_risk_coverage, report)]
    elif isinstance(report, RegressionCalibrationReport):
        drawings = [
            ("Coverage by level", drawing.draw_coverage, report),
            ("Probability integral transform", drawing.draw_pit, report),
        ]
    return [album.picture(*one) for one in drawings]
