import base64
import html.parser
import re
import sys

import keras
import numpy as np
import pytest

from keras_vd import html_report, layers, sparsity_report
from tests.helpers.models import mlp, plain_mlp, randomize

HISTORY = {"accuracy": [0.1, 0.9], "nonzero_ratio": [1.0, 4.0]}


class Page(html.parser.HTMLParser):
    """Headlines, text and links of a web page; whether its tags are paired."""

    def __init__(self, path):
        super().__init__()
        self.open, self.headlines, self.sources, self.text = [], [], [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.sources += [v for k, v in attrs if k in ("src", "href")]
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headlines.append(data)
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
        *("Sparsity", "log alpha", "Kept weights", "Training"),
    ]
    # Oracle: the report in the terminal says the same.
    lines = str(sparsity_report(model)).splitlines()
    assert all(line.rstrip() in page.text for line in lines)
    # Nothing is fetched: all pictures are inside.
    assert len(page.sources) == 3
    for source in page.sources:
        data = re.fullmatch(r"data:image/png;base64,(.*)", source).group(1)
        assert base64.b64decode(data)[:4] == b"\x89PNG"
    assert "http" not in re.sub(r"base64,[^\"]*", "", path.read_text())


@pytest.mark.integration
def test_gates_without_weights(tmp_path):
    page = Page(html_report(gates_only(), str(tmp_path / "report.html")))
    assert page.headlines[1:] == ["Sparsity", "Gates"]
    assert len(page.sources) == 1


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
    assert "".join(page.headlines).startswith("a<b>&cSparsity")


@pytest.mark.integration
def test_the_old_file_stays_if_the_new_one_fails(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="`history` must have"):
        html_report(mlp(), path, {"loss": [1.0]})

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
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "keras_vd.plots", raising=False)
    monkeypatch.delattr("keras_vd.plots", raising=False)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        html_report(mlp(), tmp_path / "report.html")
    assert np.all([not x.exists() for x in tmp_path.iterdir()])
