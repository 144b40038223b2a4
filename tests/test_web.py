import html.parser
import re
import sys

import keras
import numpy as np
import pytest

from keras_vd import (
    calibration_report,
    html_report,
    layers,
    out_of_distribution_auroc,
    regression_calibration,
    risk_coverage,
    shrink,
    sparsity_report,
    temperature_scaling,
    to_deterministic,
)
from keras_vd._backend.tables import html_table, simple_table
from tests.helpers.models import mlp, plain_mlp, randomize

HISTORY = {
    "loss": [1.5, 0.25],
    "accuracy": [0.125, 0.875],
    "val_accuracy": [0.25, 0.75],
    "kl_weight": [0.0, 0.0625],
    "nonzero_ratio": [1.0, 4.0],
    "n_active/one": [6.0, 5.0],
    "n_active/two": [4.0, 3.0],
    "rare": [0.5],
}
VOID = ("meta", "img", "br")


class Page(html.parser.HTMLParser):
    """What is on a web page, whose tags are paired and ids differ."""

    def __init__(self, source):
        super().__init__()
        self.open, self.headlines, self.links, self.ids = [], [], [], []
        self.tags, self.rows, self.text, self.cards = [], [], "", []
        if not isinstance(source, str):
            source = source.read_text(encoding="utf-8")
        self.source = source
        self.feed(source)
        assert self.open == []
        assert len(set(self.ids)) == len(self.ids)
        inside = re.findall(r"url\(#([^)]*)\)", source)
        inside += [x[1:] for x in self.links if x.startswith("#")]
        assert set(inside) == set(self.ids)
        outside = [x for x in self.links if not x.startswith("#")]
        assert all(x.startswith("data:image/png;base64,") for x in outside)
        assert "script" not in self.tags
        assert "link" not in self.tags
        assert not re.search(r"https?:|@import", source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href"):
                self.links.append(value)
            if name == "id":
                self.ids.append(value)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] == "style":
            return
        if self.open[-1] in ("h1", "h2"):
            self.headlines.append(data)
        if self.open[-1] in ("th", "td"):
            self.rows[-1][-1] += data
        if "dl" in self.open and data.strip():
            self.cards.append(data)
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
    page = Page(
        html_report(
            model,
            tmp_path / "report.html",
            HISTORY,
            headlines={"test accuracy": (0.98, 0.975), "bytes": 12345},
            image_shape=(2, 3),
            title="A title",
        )
    )
    sections = ["Sparsity at inference", "Kept pixels", "log alpha as learned"]
    sections += ["Kept weights", "Training"]
    assert page.headlines == ["A title", *sections]
    # Oracle: every figure of the report, from its rows.
    report = sparsity_report(model)
    cells = {row[0]: row[1:] for row in page.rows if row}
    for row in report.rows:
        shape = "x".join(map(str, row.shape))
        expected = [shape, str(row.weights), str(row.nonzero)]
        expected.append(f"{row.weights / row.nonzero:.1f}")
        expected.append(f"{row.active_inputs} of {row.inputs}")
        expected.append(f"{row.active_outputs} of {row.outputs}")
        assert cells[row.name] == [*expected, f"{row.memory_percent:.2f}"]
    for group in report.groups:
        assert f"{group.active} of {group.groups} groups" in cells[group.name]
    assert cells["variational weights"][1:3] == ["45", str(report.nonzero)]
    # In large letters: what the caller gave, sizes, the last epoch.
    cards = page.cards
    assert cards[:5] == [
        *("test accuracy", "0.975", "before: 0.98", "bytes", "12,345")
    ]
    assert cards[5:7] == ["weights not zero", str(report.nonzero)]
    last = ["val_accuracy, last", "0.75", "rare, last", "0.5"]
    assert cards[-4:] == last
    # One of pixels, four histograms, two of kept weights, five of training.
    assert page.tags.count("svg") == 12
    # One row per epoch; layers are a list, and what is rare is only named.
    assert cells["epoch"] == [
        *("loss", "accuracy", "val_accuracy", "KL weight"),
        *("weights per non-zero one", "active inputs"),
    ]
    expected = ["1.5", "0.125", "0.25", "0", "1", "6, 4"]
    assert cells["1"] == expected
    assert cells["2"] == ["0.25", "0.875", "0.75", "0.0625", "4", "5, 3"]
    assert "Not of every epoch: rare." in page.text
    # Light and dark, also in pictures; phones.
    assert "prefers-color-scheme: dark" in page.source
    assert "color-scheme: light dark" in page.source
    assert 'name="viewport" content="width=device-width' in page.source
    drawn = " ".join(re.findall(r"<svg.*?</svg>", page.source, re.DOTALL))
    assert "var(--blue)" in drawn
    assert "stroke: currentColor" in drawn
    assert not re.search(r"(fill|stroke): #", drawn)


@pytest.mark.integration
def test_reports_have_their_curves_and_figures(tmp_path):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1, 1, 1], 40)
    labels = rng.integers(0, 3, 40)
    model = mlp()
    randomize(model)
    plain = to_deterministic(model)
    _, shrunk = shrink(plain, return_report=True, verbose=0)
    reports = [
        calibration_report(probabilities, labels),
        calibration_report(probabilities, labels),
        risk_coverage(probabilities, labels),
        out_of_distribution_auroc([0.1, 0.2], [0.2, 0.9]),
        temperature_scaling(np.log(probabilities), labels),
        regression_calibration(
            rng.normal(size=30), mean=np.zeros(30), stddev=1
        ),
        shrunk,
    ]
    path = html_report(model, tmp_path / "report.html", reports=reports)
    page = Page(path)
    tables = [str(report.to_table().title) for report in reports]
    tables[1] = "Calibration (2)"
    assert page.headlines[-7:] == tables
    # Four of the model; two of the temperature and the regression.
    assert page.tags.count("svg") == 4 + 7
    cards = dict(zip(page.cards[::2], page.cards[1::2], strict=False))
    assert "AUROC" in page.cards
    assert page.cards[page.cards.index("AUROC") + 1] == "0.8750"
    assert f"{reports[2].aurc:.4f}" in page.cards
    # Sizes are at the top.
    assert next(iter(cards)) == "parameters"
    named = Page(
        html_report(model, path, reports={"<Mine>": reports[0]})
    ).headlines
    assert named[-1] == "<Mine>"


@pytest.mark.integration
def test_gates_without_weights(tmp_path):
    page = Page(html_report(gates_only(), str(tmp_path / "report.html")))
    assert page.headlines[1:] == ["Sparsity at inference", "Gates"]
    assert page.tags.count("svg") == 1


@pytest.mark.integration
def test_what_fit_returns_is_a_history(tmp_path):
    history = keras.callbacks.History()
    history.history = {"loss": [1.0]}
    page = Page(html_report(mlp(), tmp_path / "report.html", history))
    assert page.headlines[-1] == "Training"


@pytest.mark.integration
def test_names_are_text(tmp_path):
    """Also letters that matplotlib's font lacks, and its signs of formulas."""
    name = '_<b>&"$x_1$\u5c42[red]'
    inputs = keras.Input((6,))
    outputs = layers.VDDense(3, name=name)(inputs)
    model = keras.Model(inputs, outputs, name="a<b>&c")
    history = {f"n_active/{name}": [1.0], "n_active/<i>": [2.0]}
    page = Page(html_report(model, tmp_path / "report.html", history))
    assert "".join(page.headlines).startswith("a<b>&cSparsity")
    assert name in {row[0] for row in page.rows if row}
    assert page.text.count(name) == 4  # table, two pictures, key of a third
    # The same in a terminal, which has markup of its own.
    assert name in str(sparsity_report(model))


def test_a_table_of_a_report_is_one_in_a_notebook():
    table = simple_table("a<b", ["", "x", "none"], [["<n>", "1", ""]])
    table.add_section()
    table.add_row("", "2", "")
    table.caption = "one & two"
    page = Page(f"<div>{html_table(table)}</div>")
    # Columns without text are left out.
    assert page.rows == [["", "x"], ["<n>", "1"], ["", "2"]]
    assert 'scope="col" class="figure">x<' in page.source
    assert 'scope="row">&lt;n&gt;<' in page.source
    assert page.tags.count("tbody") == 2
    assert "a<b" in page.text
    assert "one & two" in page.text
    shown = Page(sparsity_report(mlp())._repr_html_())
    assert "Sparsity at inference" in shown.text
    assert shown.tags.count("table") == 1


def test_printing_in_a_notebook_prints(monkeypatch):
    """In a notebook rich shows what it prints to a file in its own way."""
    report = sparsity_report(mlp())
    text = str(report)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert str(report) == text
    assert "Sparsity at inference" in text


@pytest.mark.integration
def test_the_old_file_stays_if_the_new_one_fails(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="`history` must have"):
        html_report(mlp(), path, {"loss": []})

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


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"history": [1.0]}, TypeError, "`history` must be what `fit`"),
        ({"history": {"x": ["a"]}}, TypeError, "list of numbers"),
        ({"reports": "text"}, TypeError, "`reports` must be a list"),
        ({"reports": [1]}, TypeError, "`reports` must be a list"),
        ({"headlines": {"x": True}}, TypeError, "must have numbers, texts"),
        ({"headlines": {"x": float("nan")}}, ValueError, "finite numbers"),
        ({"image_shape": (2, 4)}, ValueError, "`image_shape` must be"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, error, message, tmp_path):
    with pytest.raises(error, match=message):
        html_report(mlp(), tmp_path / "report.html", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
def test_plain_models_and_missing_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one variational layer"):
        html_report(plain_mlp(), tmp_path / "report.html")
    with pytest.raises(FileNotFoundError):
        html_report(mlp(), tmp_path / "missing" / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_report_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "keras_vd.drawing", raising=False)
    monkeypatch.delattr("keras_vd.drawing", raising=False)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        html_report(mlp(), tmp_path / "report.html")
    assert np.all([not x.exists() for x in tmp_path.iterdir()])
