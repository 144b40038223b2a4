"""The picture of training steps: what stands in it, and that one can read it.

Oracles: ratios by hand, the boxes of the texts as they are drawn.
"""

import itertools

import matplotlib.pyplot as plt
import pytest

from benchmarks.chart import draw_chart, training_ratios
from benchmarks.networks import CASES
from benchmarks.tables import BACKENDS

PEERS = {
    "tensorflow": ["tfp local reparameterization", "tfp Flipout", "edward2"],
    "jax": [],
    "torch": ["reparameterization", "Flipout", "blitz"],
}
OURS = ["plain", "two products", "keras_vd", "keras_vd, share unit"]


def record(table, backend, case, variant, median):
    title = "own plain layer" if table == "peers" else "plain"
    return {
        "table": table,
        "backend": backend,
        "case": case,
        "variant": variant,
        "ratios": {title: [0.1, median, 9.9], "plain Keras": [7.0, 7.0, 7.0]},
    }


def everything():
    for backend, peers in PEERS.items():
        for case in CASES:
            for n, variant in enumerate(OURS):
                yield record("training", backend, case, variant, 1.0 + n)
            for n, variant in enumerate(peers):
                yield record("peers", backend, case, variant, 12.25 + n)


def test_ratios_by_hand():
    found = training_ratios(
        [
            record("training", "torch", "mlp", "plain", 1.0),
            record("training", "torch", "mlp", "keras_vd", 3.0),
            record("training", "torch", "mlp", "keras_vd, exact KL", 4.0),
            record("peers", "torch", "mlp", "torch.nn", 1.0),
            record("peers", "torch", "mlp", "keras_vd", 5.0),
            record("peers", "torch", "mlp", "keras_vd, share unit", 5.0),
            record("peers", "torch", "mlp", "blitz", 2.0),
            record("inference", "torch", "mlp", "keras_vd", 6.0),
            {"table": "peers", "backend": "torch", "variant": "a", "case": ""},
        ]
    )
    assert found == {"torch": {"mlp": {"keras_vd": 3.0, "blitz": 2.0}}}


@pytest.fixture
def figure(monkeypatch, tmp_path):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    draw_chart({"records": list(everything())}, tmp_path / "chart.png")
    drawn = plt.gcf()
    yield drawn
    monkeypatch.undo()
    plt.close(drawn)


def test_every_panel_shows_keras_vd(figure):
    assert [ax.get_title(loc="left") for ax in figure.axes] == list(
        BACKENDS.values()
    )
    for ax, peers in zip(figure.axes, PEERS.values(), strict=True):
        heights = [bar.get_height() for bar in ax.patches]
        ours = [2.0, 3.0, 4.0]
        theirs = [12.25 + n for n in range(len(peers))]
        assert heights == (ours + theirs) * len(CASES)
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [*OURS[1:], *itertools.chain(*PEERS.values())]


def test_it_fits_a_screen_and_no_texts_overlap(figure):
    width, height = figure.get_size_inches()
    assert width <= 16
    assert height <= 9.1
    texts = [
        *figure.axes[-1].get_xticklabels(),
        *figure.legends[0].get_texts(),
        *(text for ax in figure.axes for text in (*ax.texts, ax.title)),
    ]
    boxes = [t.get_window_extent() for t in texts if t.get_text()]
    assert len(boxes) > 100
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)


def test_nothing_to_draw(tmp_path):
    draw_chart({"records": []}, tmp_path / "chart.png")
    assert not (tmp_path / "chart.png").exists()
