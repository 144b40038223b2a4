"""Draw one panel of a picture: what `plots` and `html_report` are made of."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import keras
import matplotlib
import numpy as np
from keras import ops
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from keras_vd.calibration import CalibrationReport
from keras_vd.decisions import RiskCoverageReport
from keras_vd.layers import LogNormalDropout
from keras_vd.layers.structured import StructuredGate
from keras_vd.posteriors import WeightPosterior
from keras_vd.posteriors.finding import variational_weights
from keras_vd.posteriors.moments import MAX_ABS_LOG_ALPHA
from keras_vd.regression import RegressionCalibrationReport

# Names of colours on a page, by what matplotlib calls them. Black is what
# letters have.
COLOURS = {
    "blue": "#1f77b4",
    "orange": "#ff7f0e",
    "green": "#2ca02c",
    "red": "#d62728",
    "purple": "#9467bd",
    "brown": "#8c564b",
    "pink": "#e377c2",
    "olive": "#bcbd22",
    "cyan": "#17becf",
    "faint": "#bbbbbb",
}
LINES = tuple(name for name in COLOURS if name != "faint")
_BLUE, _RED, _FAINT = (COLOURS[name] for name in ("blue", "red", "faint"))
_THEMED = {
    "#000000": "currentColor",
    "#ffffff": "var(--page)",
    **{value: f"var(--{name})" for name, value in COLOURS.items()},
}
# From nothing to a blue that is seen on white and on black.
_DENSITY = LinearSegmentedColormap.from_list(
    "density", [(0.22, 0.55, 0.85, 0.0), (0.22, 0.55, 0.85, 1.0)]
)
# More rows or columns than a picture on a phone has room for.
MOST_CELLS = 96
_STYLE: Any = {
    "svg.fonttype": "none",  # letters stay letters
    "font.size": 9.0,
    "axes.spines.right": False,
    "axes.spines.top": False,
}


@contextmanager
def page_style() -> Iterator[None]:
    """Draw as `inline_svg` needs it within this context."""
    with matplotlib.rc_context(_STYLE):
        yield


def inline_svg(
    draw: Callable[[Axes], Any],
    prefix: str,
    description: str,
    size: tuple[float, float] = (4.0, 2.8),
) -> str:
    """Draw a picture as a part of a web page that has its colours.

    Args:
        draw: What draws it, given a panel.
        prefix: What the ids in it begin with, which a page must not repeat.
        description: What it shows, for those who cannot see it.
        size: Width and height in inches.

    Returns:
        An SVG element. Its colours are the variables of the page, and black
        is the colour of text.
    """
    file = io.BytesIO()
    with page_style(), warnings.catch_warnings():
        # Readers' browsers have letters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        figure.savefig(file, format="svg", transparent=True)
    root = ElementTree.fromstring(file.getvalue())
    _clean(root, prefix)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": description,
    }
    return ElementTree.tostring(root, encoding="unicode")


def _clean(root: ElementTree.Element, prefix: str) -> None:
    """Leave what a page needs, with ids and colours of its own."""
    for parent in list(root.iter()):
        parent.tag = parent.tag.rpartition("}")[2]
        for child in list(parent):
            # Who made it and when, and rules that would be those of the page.
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    text = ElementTree.tostring(root, encoding="unicode")
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            if name == "id" and value not in used:
                del element.attrib[name]
            elif name == "id":
                element.set(name, f"{prefix}-{value}")
            elif name.endswith("}href"):
                del element.attrib[name]
                if value.startswith("#"):
                    value = f"#{prefix}-{value[1:]}"
                element.set("href", value)
            elif name == "style":
                element.set(name, _themed(value))
            elif value.startswith("url(#"):
                element.set(name, f"url(#{prefix}-{value[5:]}")


def _themed(style: str) -> str:
    """Replace colours by those of the page; it sets the kind of letters."""
    style = re.sub(
        r"#[0-9a-f]{6}", lambda x: _THEMED.get(x.group(), x.group()), style
    )
    return re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", style)


def draw_log_alpha(
    panel: Axes, posterior: WeightPosterior, bins: int = 80
) -> None:
    """Draw a histogram of log_alpha as learned, with what is zero apart.

    Weights whose log_alpha is the largest there is, 20, since nothing is left
    of them, are a bar of their own at the right end.

    Args:
        panel: Where to draw.
        posterior: Posterior of a weight.
        bins: Number of bars.
    """
    log_alpha = ops.convert_to_numpy(posterior.learned_log_alpha).ravel()
    # Bars between neighbours of a shorter type would have no width.
    log_alpha = log_alpha.astype("float64")
    kept = ops.convert_to_numpy(posterior.mean()).ravel() != 0.0
    is_known = np.isfinite(log_alpha)
    is_apart = is_known & (log_alpha >= MAX_ABS_LOG_ALPHA)
    inside = is_known & ~is_apart
    edges = np.histogram_bin_edges(log_alpha[inside], bins)
    for chosen, colour in ((inside & ~kept, _FAINT), (inside & kept, _BLUE)):
        counts, _ = np.histogram(log_alpha[chosen], edges)
        # Ends below 1, as one weight must be seen on a logarithmic axis.
        panel.stairs(counts, edges, baseline=0.5, fill=True, color=colour)
    panel.set_yscale("log")
    # At least one power of ten, and no others in between.
    panel.set_ylim(0.5, max(panel.get_ylim()[1], 12.0))
    panel.yaxis.set_minor_formatter(NullFormatter())
    if is_apart.any():
        width = (edges[-1] - edges[0]) / 20
        place = edges[-1] + 2 * width
        for chosen, colour in ((~kept, _FAINT), (kept, _BLUE)):
            count = np.count_nonzero(is_apart & chosen)
            if count:
                panel.bar(place, count, width, color=colour)
        count = np.count_nonzero(is_apart)
        panel.annotate(
            f"20: {count:,}",
            (place, count),
            ha="right",
            va="bottom",
            xytext=(width and 6, 1),
            textcoords="offset points",
        )
    if posterior.threshold is not None:
        panel.axvline(posterior.threshold, linestyle="--", color="black")
    unknown = log_alpha.size - np.count_nonzero(is_known)
    note = f" ({unknown:,} not finite)" if unknown else ""
    panel.set(xlabel=f"log alpha{note}", ylabel="weights")


def block_means(
    matrix: np.ndarray, most: int = MOST_CELLS
) -> tuple[np.ndarray, tuple[int, int]]:
    """Average a matrix over blocks of equal size.

    Args:
        matrix: Array of two axes.
        most: Number of blocks along an axis that is not exceeded.

    Returns:
        The means, and the rows and columns of a block. The last ones may be
        smaller.
    """
    totals = matrix.astype("float64")
    counts = np.ones((1, 1))
    rows, columns = (-(-size // most) for size in matrix.shape)
    for axis, block in enumerate((rows, columns)):
        starts = np.arange(0, matrix.shape[axis], block)
        totals = np.add.reduceat(totals, starts, axis=axis)
        sizes = np.diff(starts, append=matrix.shape[axis])
        counts = counts * np.expand_dims(sizes, 1 - axis)
    return totals / counts, (rows, columns)


def draw_kept_weights(panel: Axes, posterior: WeightPosterior) -> None:
    """Draw which weights are not zero, or how many of a block if large.

    Args:
        panel: Where to draw.
        posterior: Posterior of a weight.
    """
    nonzero = ops.convert_to_numpy(posterior.mean()) != 0.0
    outputs = posterior.axes.outputs
    picture = np.moveaxis(nonzero, outputs, range(-len(outputs), 0))
    columns = int(np.prod([nonzero.shape[axis] for axis in outputs]))
    picture = picture.reshape(-1, columns)
    means, (height, width) = block_means(picture)
    is_coarse = height * width > 1
    panel.imshow(
        means,
        cmap=_DENSITY,
        aspect="auto",
        interpolation="none",
        vmin=0,
        vmax=(means.max() or 1.0) if is_coarse else 1,
        # The last blocks may be cut off.
        extent=(
            -0.5,
            means.shape[1] * width - 0.5,
            means.shape[0] * height - 0.5,
            -0.5,
        ),
    )
    panel.set_xlim(-0.5, picture.shape[1] - 0.5)
    panel.set_ylim(picture.shape[0] - 0.5, -0.5)
    panel.set(xlabel="output unit", ylabel="input")
    if is_coarse:
        panel.set_xlabel(
            f"output unit\nblocks of {height} x {width}, "
            f"up to {means.max():.1%} kept"
        )


def draw_kept_inputs(panel: Axes, counts: np.ndarray) -> None:
    """Draw how many weights read each pixel of an image.

    Args:
        panel: Where to draw.
        counts: Integers of shape `(height, width)`.
    """
    panel.imshow(
        counts,
        cmap=_DENSITY,
        interpolation="none",
        vmin=0,
        vmax=max(counts.max(), 1),
    )
    read = np.count_nonzero(counts)
    panel.set_xlabel(
        f"{read:,} of {counts.size:,} pixels are read,\n"
        f"by up to {counts.max():,} weights"
    )


def kept_inputs(
    model: keras.layers.Layer, image_shape: Sequence[int] | None = None
) -> np.ndarray | None:
    """Count the weights of the first layer that read each pixel.

    Args:
        model: A built Keras model or layer with variational layers.
        image_shape: Height and width of the images, and channels if there are
            any, which come last; None: those of the model's inputs, or 28 x 28
            for 784 inputs.

    Returns:
        Integers of shape `(height, width)`; None if `image_shape` is None and
        the first variational weight does not read images pixel by pixel.

    Raises:
        ValueError: if `image_shape` does not fit the first variational weight.
    """
    found = (x for x in variational_weights(model) if not x.is_group)
    posterior = next(found, None)
    size = 0
    if posterior is not None and len(posterior.axes.inputs) == 1:
        size = posterior.weight.shape[posterior.axes.inputs[0]]
    if image_shape is None:
        image_shape = _shape_of_inputs(model, size)
        if image_shape is None:
            return None
    shape = tuple(image_shape)
    is_shape = len(shape) in (2, 3) and all(
        isinstance(x, int) and x > 0 for x in shape
    )
    if posterior is None or not is_shape or np.prod(shape) != size:
        raise ValueError(
            "Argument `image_shape` must be the height and width of images, "
            "and channels if there are any, whose product is the number of "
            f"inputs of the first variational weight, {size}. Received: "
            f"image_shape={image_shape!r}."
        )
    nonzero = ops.convert_to_numpy(posterior.mean()) != 0.0
    others = tuple(set(range(nonzero.ndim)) - set(posterior.axes.inputs))
    counts = nonzero.sum(axis=others).reshape(shape)
    return counts.sum(axis=-1) if counts.ndim == 3 else counts


def _shape_of_inputs(
    model: keras.layers.Layer, size: int
) -> tuple[int, ...] | None:
    """Return height, width and channels of the images a model takes."""
    # Models of several inputs have a list, and subclassed ones none.
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or not all(
        isinstance(x, int) for x in shape[1:]
    ):
        return None
    if shape[1:] == (784,) and size == 784:
        return (28, 28)
    if len(shape) not in (3, 4) or np.prod(shape[1:]) != size:
        return None
    return shape[1:]


def draw_gates(panel: Axes, gate: StructuredGate) -> None:
    """Draw the gates of a layer by unit; see `plots.plot_gates`.

    Args:
        panel: Where to draw.
        gate: A layer of gates.
    """
    has_ratio = isinstance(gate, LogNormalDropout)
    heights = ops.convert_to_numpy(
        gate.snr() if has_ratio else gate.gate_mean()
    )
    kept = ops.convert_to_numpy(gate.mean()) != 0.0
    edges = np.arange(gate.units + 1) - 0.5
    # On a logarithmic axis bars have no natural lower end.
    lowest = 0.5 * heights[heights > 0].min() if heights.any() else 0.0
    for chosen, colour in ((~kept, _FAINT), (kept, "black")):
        bars = np.where(chosen & (heights > 0), heights, lowest)
        panel.stairs(bars, edges, baseline=lowest, fill=True, color=colour)
    if heights.any():
        panel.set_yscale("log")
    if gate.threshold is not None:
        panel.axhline(gate.threshold, linestyle="--", color=_RED)
    panel.set(
        xlabel="unit",
        ylabel="signal-to-noise ratio" if has_ratio else "expected gate",
    )


def draw_calibration(panel: Axes, report: CalibrationReport) -> None:
    """Draw the accuracy of each bin of confidence, and the diagonal."""
    panel.bar(
        [row.lower for row in report.bins],
        [row.accuracy for row in report.bins],
        width=[row.upper - row.lower for row in report.bins],
        align="edge",
        edgecolor="black",
        color=_BLUE,
    )
    panel.plot([0, 1], [0, 1], linestyle="--", color="black")
    panel.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))


def draw_risk_coverage(panel: Axes, report: RiskCoverageReport) -> None:
    """Draw risk by coverage, and the risk of answering always."""
    panel.step(
        np.concatenate([[0.0], report.coverage]),
        np.concatenate([report.risk[:1], report.risk]),
        where="pre",
        color=_BLUE,
    )
    panel.axhline(report.risk[-1], linestyle="--", color="black")
    panel.set(xlabel="coverage", ylabel="risk", xlim=(0, 1))
    panel.set_ylim(bottom=0.0)


def draw_coverage(panel: Axes, report: RegressionCalibrationReport) -> None:
    """Draw the coverage of central intervals by level, and the diagonal."""
    panel.plot(report.levels, report.coverage, marker="o", color=_BLUE)
    panel.plot([0, 1], [0, 1], linestyle="--", color="black")
    panel.set(
        xlabel="level of the central interval",
        ylabel="coverage",
        xlim=(0, 1),
        ylim=(0, 1),
    )


def draw_pit(
    panel: Axes, report: RegressionCalibrationReport, bins: int = 20
) -> None:
    """Draw the density of the PIT values, and that of a calibrated model."""
    panel.hist(
        report.pit.ravel(),
        bins=bins,
        range=(0, 1),
        density=True,
        edgecolor="black",
        color=_BLUE,
    )
    panel.axhline(1.0, linestyle="--", color="black")
    panel.set(
        xlabel="probability integral transform", ylabel="density", xlim=(0, 1)
    )


def draw_curves(panel: Axes, curves: Mapping[str, Sequence[float]]) -> None:
    """Draw figures by epoch.

    Args:
        panel: Where to draw.
        curves: Figures of each epoch, by name; lines have the colours of
            `LINES` in this order, or one for all if these are too few.
    """
    has_colours = len(curves) <= len(LINES)
    highest, lowest = 0.0, np.inf
    for number, values in enumerate(curves.values()):
        colour = COLOURS[LINES[number]] if has_colours else _BLUE
        marker = "o" if len(values) == 1 else None
        epochs = np.arange(1, len(values) + 1)
        panel.plot(epochs, values, color=colour, marker=marker)
        finite = np.asarray(values)[np.isfinite(values)]
        highest = max(highest, finite.max(initial=0.0))
        lowest = min(lowest, finite.min(initial=np.inf))
    if lowest > 0.0 and highest > 30.0 * lowest:
        panel.set_yscale("log")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("epoch")
