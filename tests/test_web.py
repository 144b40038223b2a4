import html.parser
import sys

import keras
import numpy as np
import pytest

import keras_vd
from keras_vd import (
    calibration_report,
    html_report,
    layers,
    prune,
    shrink,
    sparsity_report,
    to_deterministic,
)
from keras_vd.posteriors.finding import named_posteriors
from tests.helpers.models import mlp, plain_mlp, randomize

HISTORY = {"accuracy": [0.1, 0.9], "nonzero_ratio": [1.0, 4.0]}


class Page(html.parser.HTMLParser):
    """Headlines, cells, ids and links of a page; whether tags are paired."""

    def __init__(self, path):
        super().__init__()
        self.open, self.headlines, self.links, self.text = [], [], [], ""
        self.ids, self.cells, self.pictures = [], [], 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href")]
        self.ids += [v for k, v in attrs if k == "id"]
        self.pictures += tag == "svg"
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in ("img", "meta"):
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headlines.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)
        self.text += data


def gates_only():
    return keras.Sequential(
        [keras.Input((6,)), layers.LogNormalDropout(), keras.layers.Dense(3)]
    )


@pytest.mark.integration
@pytest.mark.core
def test_one_page_with_all_there_is(tmp_path):
    model = mlp(groups=("input",))
    randomize(model)
    path = html_report(model, tmp_path / "report.html", HISTORY)
    page = Page(path)
    assert page.open == []
    assert page.headlines == [
        model.name,
        "Sparsity at inference",
        "log alpha as learned",
        "Kept weights",
        "Training",
    ]
    # Oracle: the figures of the report in the terminal.
    report = sparsity_report(model)
    table = report.to_table()
    for column in table.columns:
        for cell in column.cells:
            assert not str(cell) or str(cell) in page.cells
    # Nothing is fetched, and no id is there twice.
    posteriors = len(named_posteriors(model))
    assert page.pictures == 2 * posteriors + len(HISTORY)
    inside = ("#", "data:image/png;base64,")
    assert all(link.startswith(inside) for link in page.links)
    marks = {link[1:] for link in page.links if link.startswith("#")}
    assert marks <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    text = path.read_text()
    assert "http" not in text
    assert "<script" not in text
    # Readers' own theme, on a phone, too.
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text
    # Every epoch of the history.
    for values in HISTORY.values():
        assert all(f"{value:.4g}" in page.cells for value in values)


@pytest.mark.integration
def test_reports_and_headlines(tmp_path):
    model = mlp()
    randomize(model)
    prune(model)
    _, shrunk = shrink(to_deterministic(model), return_report=True, verbose=0)
    probabilities = np.full((4, 2), 0.5)
    calibration = calibration_report(probabilities, [0, 1, 0, 1])
    path = html_report(
        model,
        tmp_path / "report.html",
        reports={"Made <small>": shrunk, "Calibration": calibration},
        headlines={"accuracy": (0.981, 0.979), "bytes": 12345, "for": "x & y"},
        title="A & B",
    )
    page = Page(path)
    assert page.headlines[0] == "A & B"
    assert {"Made <small>", "Calibration"} <= set(page.headlines)
    for text in ("0.979", "before: 0.981", "12,345", "x & y"):
        assert text in page.text
    before, after = shrunk.parameters, shrunk.kept_parameters
    assert f"{after:,}" in page.text
    assert f"before: {before:,}" in page.text
    assert "Reliability" in page.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"headlines": {"a": float("nan")}}, "`headlines` must have finite"),
        ({"headlines": {"a": None}}, "`headlines` must have numbers"),
        ({"reports": "text"}, "`reports` must be a list"),
        ({"reports": [1]}, "`reports` must be a list"),
        ({"history": 3}, "`history` must be what `fit` returned"),
        ({"history": {"loss": []}}, "`history` must have at least one epoch"),
        ({"history": {"loss": ["x"]}}, "`history` must have a list of numbers"),
        ({"image_shape": (5, 5)}, "`image_shape` must be the height"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path):
    with pytest.raises((TypeError, ValueError), match=message):
        html_report(mlp(), tmp_path / "report.html", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
def test_gates_without_weights(tmp_path):
    page = Page(html_report(gates_only(), str(tmp_path / "report.html")))
    assert page.headlines[1:] == ["Sparsity at inference", "Gates"]
    assert page.pictures == 1


@pytest.mark.integration
def test_what_fit_returns_is_a_history(tmp_path):
    history = keras.callbacks.History()
    history.history = HISTORY
    page = Page(html_report(mlp(), tmp_path / "report.html", history))
    assert page.headlines[-1] == "Training"


@pytest.mark.integration
def test_names_are_text(tmp_path):
    inputs = keras.Input((6,))
    outputs = layers.VDDense(3)(inputs)
    model = keras.Model(inputs, outputs, name="a<b>&c")
    page = Page(html_report(model, tmp_path / "report.html"))
    assert "".join(page.headlines).startswith("a<b>&cSparsity at inference")


@pytest.mark.integration
def test_the_old_file_stays_if_the_new_one_fails(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="`history` must have"):
        html_report(mlp(), path, {})

    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        html_report(mlp(), path)
    assert [x.name for x in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text() == "old"


@pytest.mark.integration
def test_a_link_stays_a_link(tmp_path):
    (link := tmp_path / "link.html").symlink_to(real := tmp_path / "real.html")
    assert html_report(mlp(), link) == link
    assert link.is_symlink()
    assert "Sparsity" in real.read_text()


@pytest.mark.integration
def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one variational layer"):
        html_report(plain_mlp(), tmp_path / "report.html")
    with pytest.raises(FileNotFoundError):
        html_report(mlp(), tmp_path / "missing" / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_report_says_so(tmp_path, monkeypatch):
    for name in ("plots", "drawing"):
        monkeypatch.delattr(keras_vd, name, raising=False)
        monkeypatch.delitem(sys.modules, f"keras_vd.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        html_report(mlp(), tmp_path / "report.html")
    assert np.all([not x.exists() for x in tmp_path.iterdir()])
