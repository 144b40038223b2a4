import keras
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from keras_vd import (
    calibration_report,
    drawing,
    layers,
    plots,
    posteriors,
    prune,
    regression_calibration,
    risk_coverage,
    variational_weights,
)
from tests.helpers.arrays import to_float64
from tests.helpers.models import (
    inference_weight,
    log_alpha,
    mlp,
    plain_mlp,
    randomize,
)


@pytest.fixture(scope="module")
def model():
    model = keras.Sequential(
        [
            keras.Input((5, 6)),
            layers.VDConv1D(4, 2, name="conv"),
            layers.VDSeparableConv1D(3, 2, depth_multiplier=2, name="parts"),
            layers.VDDense(2, name="dense"),
        ]
    )
    randomize(model)
    return model


LABELS = [
    "conv",
    "parts/depthwise_kernel",
    "parts/pointwise_kernel",
    "dense",
]
HISTORY = {
    "accuracy": [0.1, 0.2, 0.3],
    "val_accuracy": [0.5, 0.75, 0.875],
    "nonzero_ratio": [1.0, 4.0, 16.0],
}


@pytest.mark.parametrize(
    "plot", [plots.plot_log_alpha, plots.plot_kept_weights]
)
def test_one_panel_per_weight(plot, model):
    figure = plot(model)
    assert isinstance(figure, Figure)
    assert [panel.get_title() for panel in figure.axes] == LABELS


@pytest.mark.core
def test_histogram_holds_every_weight(model):
    # Oracle: NumPy's histogram of log_alpha from the variables.
    panels = plots.plot_log_alpha(model, bins=7).axes
    for panel, posterior in zip(
        panels, variational_weights(model), strict=True
    ):
        zero, kept = (bars.get_data().values for bars in panel.patches)
        values = log_alpha(posterior)
        expected, edges = np.histogram(values, bins=7)
        np.testing.assert_array_equal(zero + kept, expected)
        is_kept = inference_weight(posterior) != 0
        below, _ = np.histogram(values[is_kept], edges)
        np.testing.assert_array_equal(kept, below)
        assert (zero + kept).sum() == np.prod(posterior.weight.shape)
        (threshold,) = panel.lines
        assert list(threshold.get_xdata()) == [3.0, 3.0]
        assert panel.get_yscale() == "log"


def test_histogram_of_weights_that_hardly_differ():
    # Oracle: all 30 are there; 79 numbers do not fit between two of float32.
    model = mlp()
    first = variational_weights(model)[0]
    first.weight.assign(np.ones((6, 5), "float32"))
    values = np.full((6, 5), -5.0, "float32")
    values[0, 0] = np.nextafter(values[0, 0], np.float32(0.0))
    first.log_sigma2.assign(values)
    panel = plots.plot_log_alpha(model).axes[0]
    zero, kept = (bars.get_data().values for bars in panel.patches)
    assert (kept[0], kept[-1]) == (29, 1)
    assert zero.sum() == 0


def test_histogram_of_pruned_weights_is_that_of_before():
    # Oracle: the variables, which pruning leaves alone.
    model = mlp()
    randomize(model)
    first = variational_weights(model)[0]
    first.weight.assign(np.where(np.arange(5) == 2, 0.0, first.weight))
    first.log_sigma2.assign(np.where(np.arange(5) == 2, 5.0, first.log_sigma2))
    prune(model)
    panel = plots.plot_log_alpha(model).axes[0]
    zero, kept, apart = panel.patches
    counts = [bars.get_data().values.sum() for bars in (zero, kept)]
    # Six weights of which nothing is left are apart, where they are told.
    assert apart.get_height() == 6
    assert panel.texts[0].get_text() == "20: 6"
    assert counts[1] == np.count_nonzero(inference_weight(first))
    assert sum(counts) + 6 == 30
    edges = zero.get_data().edges
    values = np.delete(log_alpha(first), 2, axis=1)
    assert (edges[0], edges[-1]) == pytest.approx((values.min(), values.max()))
    assert edges[-1] < 19


def test_large_matrices_are_drawn_in_blocks():
    # Oracle: NumPy's mean, of each block and of all.
    mask = np.random.default_rng(0).random((210, 100)) < 0.1
    means, (rows, columns) = drawing.block_means(mask)
    assert (rows, columns) == (3, 2)
    blocks = mask.reshape(70, 3, 50, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(means, blocks)
    assert means.mean() == pytest.approx(mask.mean())
    # The last blocks are smaller, and weigh less.
    means, _ = drawing.block_means(mask, 40)
    assert means.shape == (35, 34)
    assert means[-1, -1] == pytest.approx(mask[-6:, -1:].mean())
    sizes = np.outer(np.full(35, 6), [3] * 33 + [1])
    assert np.average(means, weights=sizes) == pytest.approx(mask.mean())


def test_pixels_that_the_first_layer_reads():
    # Oracle: loops over the kernel.
    model = keras.Sequential(
        [keras.Input((2, 3, 2)), keras.layers.Flatten(), layers.VDDense(4)]
    )
    randomize(model)
    (posterior,) = variational_weights(model)
    kernel = inference_weight(posterior)
    expected = [
        [
            sum(np.count_nonzero(kernel[6 * i + 2 * j + c]) for c in (0, 1))
            for j in range(3)
        ]
        for i in range(2)
    ]
    (image,) = plots.plot_kept_inputs(model).axes[0].images
    np.testing.assert_array_equal(image.get_array(), expected)
    (flat,) = plots.plot_kept_inputs(model, (3, 4)).axes[0].images
    counts = (kernel != 0).sum(axis=1).reshape(3, 4)
    np.testing.assert_array_equal(flat.get_array(), counts)


@pytest.mark.parametrize("shape", [None, (2, 4), (6,), (2.0, 3), "ab"])
def test_pixels_need_a_shape_that_fits(shape):
    with pytest.raises(ValueError, match="`image_shape` must be"):
        plots.plot_kept_inputs(mlp(), shape)


@pytest.mark.parametrize("share", ["layer", "unit", "input", "weight"])
def test_histogram_counts_weights_that_share_alpha(share):
    # Oracle: every weight has the alpha they begin with.
    model = mlp(posteriors.VD(alpha_init=0.5, share=share))
    panels = plots.plot_log_alpha(model, bins=3).axes
    for panel, posterior in zip(
        panels, variational_weights(model), strict=True
    ):
        _, kept = (bars.get_data() for bars in panel.patches)
        count = np.prod(posterior.theta.shape)
        np.testing.assert_array_equal(kept.values, [0, count, 0])
        assert kept.edges[1] < np.log(0.5) < kept.edges[2]


def test_histogram_has_no_line_without_a_threshold():
    for panel in plots.plot_log_alpha(mlp("gaussian")).axes:
        assert len(panel.lines) == 0


@pytest.mark.core
def test_picture_of_kept_weights(model):
    # Oracle: loops over the kernels by their documented shapes.
    kernels = map(inference_weight, variational_weights(model))
    conv, depthwise, pointwise, dense = [kernel != 0 for kernel in kernels]
    expected = [
        [[conv[k, i, o] for o in range(4)] for k in range(2) for i in range(6)],
        [
            [depthwise[k, i, m] for i in range(4) for m in range(2)]
            for k in range(2)
        ],
        pointwise[0],
        dense,
    ]
    panels = plots.plot_kept_weights(model).axes
    for panel, picture in zip(panels, expected, strict=True):
        (image,) = panel.images
        np.testing.assert_array_equal(image.get_array(), picture)
        # Zero is white, one is black, also if all weights are alike.
        assert image.get_clim() == (0, 1)


def test_training_curves():
    # Oracle: errors by hand; validation accuracy comes first.
    left, right = plots.plot_training(HISTORY).axes
    (error,), (ratio,) = left.lines, right.lines
    assert error.get_xdata().tolist() == [1, 2, 3]
    assert error.get_ydata().tolist() == [50.0, 25.0, 12.5]
    assert list(ratio.get_ydata()) == [1.0, 4.0, 16.0]
    without = {k: v for k, v in HISTORY.items() if k != "val_accuracy"}
    (error,) = plots.plot_training(without).axes[0].lines
    np.testing.assert_allclose(error.get_ydata(), [90.0, 80.0, 70.0])


@pytest.mark.parametrize("missing", ["accuracy", "nonzero_ratio"])
def test_training_curves_need_their_data(missing):
    history = {k: v for k, v in HISTORY.items() if not k.endswith(missing)}
    with pytest.raises(ValueError, match="`history` must have") as caught:
        plots.plot_training(history)
    assert str(sorted(history)) in str(caught.value)


@pytest.mark.parametrize(
    "plot", [plots.plot_log_alpha, plots.plot_kept_weights]
)
def test_plain_models_are_refused(plot):
    with pytest.raises(ValueError, match="at least one variational layer"):
        plot(plain_mlp())


@pytest.mark.integration
@pytest.mark.core
def test_files_without_a_display(model, tmp_path, monkeypatch):
    """Figures become files, and pyplot, which may open windows, has none.

    A fully pruned model has a log_alpha of 20 everywhere.
    """
    monkeypatch.delenv("DISPLAY", raising=False)
    pruned = mlp()
    prune(pruned, -20.0)
    figures = [
        plots.plot_log_alpha(model),
        plots.plot_kept_weights(model),
        plots.plot_log_alpha(pruned),
        plots.plot_kept_weights(pruned),
        plots.plot_training(HISTORY),
        plots.plot_risk_coverage(risk_coverage(np.eye(2), [0, 0])),
        plots.plot_regression_calibration(
            regression_calibration([0.5], mean=[0.0], stddev=1.0)
        ),
    ]
    for number, figure in enumerate(figures):
        path = tmp_path / f"{number}.png"
        figure.savefig(path)
        assert path.read_bytes()[:4] == b"\x89PNG"
        pixels = pyplot.imread(path)
        assert pixels.std() > 0.01
    assert pyplot.get_fignums() == []


def gates_model():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.LogNormalDropout(name="signal"),
            layers.LogNormalDropout(name="evidence", criterion="bmr"),
            layers.BetaBernoulliDropout(name="coins"),
        ]
    )
    signal, evidence, coins = model.layers
    for gate in (signal, evidence):
        gate.mu.assign(np.array([0.0, -18.0, 0.0, -15.0, -1.0, -2.0]))
        gate.log_sigma.assign(np.array([-2.0, 2.0, 1.0, 2.0, -1.0, 0.0]))
    coins.a_unconstrained.assign(np.array([2.0, -9.0, 1.0, -8.0, 0.0, -1.0]))
    coins.keep_mask.assign(np.array([1, 1, 0, 1, 1, 1], bool))
    return model


@pytest.mark.core
def test_gates_by_unit():
    # Oracle: the gates' own ratios, means and inference values.
    model = gates_model()
    figure = plots.plot_gates(model)
    for panel, gate in zip(figure.axes, model.layers, strict=True):
        is_coin = gate.name == "coins"
        values = to_float64(gate.gate_mean() if is_coin else gate.snr())
        kept = to_float64(gate.mean()) != 0.0
        grey, black = panel.patches
        assert black.get_facecolor() == (0, 0, 0, 1)
        for bars, chosen in ((grey, ~kept), (black, kept)):
            heights, edges, lowest = bars.get_data()
            assert edges.tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
            expected = np.where(chosen & (values > 0), values, lowest)
            np.testing.assert_allclose(heights, expected, rtol=1e-6)
            assert 0 < lowest < values[values > 0].min()
        assert 0 < kept.sum() < 6
        assert panel.get_title() == f"{gate.name}: {kept.sum()} of 6"
        assert panel.get_yscale() == "log"
        thresholds = [line.get_ydata()[0] for line in panel.lines]
        expected = {"signal": [1.0], "evidence": [], "coins": [1e-3]}
        assert thresholds == expected[gate.name]
    figure.canvas.draw()


def test_gates_that_are_all_pruned_can_be_drawn():
    model = gates_model()
    prune(model)
    model.layers[0].keep_mask.assign(np.zeros(6, bool))
    figure = plots.plot_gates(model)
    figure.canvas.draw()
    assert figure.axes[0].get_title() == "signal: 0 of 6"


def test_gates_are_needed_to_draw_them():
    with pytest.raises(ValueError, match="must have gates"):
        plots.plot_gates(mlp())


def test_reliability_diagram():
    # Oracle: the bins by hand.
    report = calibration_report(
        [[0.95, 0.05], [0.9, 0.1], [0.6, 0.4], [0.45, 0.55]], [0, 1, 0, 0], 5
    )
    (panel,) = plots.plot_calibration(report).axes
    bars = [
        (bar.get_x(), bar.get_width(), bar.get_height())
        for bar in panel.patches
    ]
    np.testing.assert_allclose(bars, [(0.4, 0.2, 0.5), (0.8, 0.2, 0.5)])
    # |1/2 - 1.15/2| and |1/2 - 1.85/2|, half of the examples each.
    assert panel.get_title() == "expected calibration error 0.250"
    (diagonal,) = panel.lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]


def test_risk_coverage_curve():
    # Oracle: by hand; the second and third example are answered together.
    report = risk_coverage(
        np.eye(2)[[0, 0, 0, 0]], [0, 0, 1, 1], [0.1, 0.2, 0.2, 0.3]
    )
    (panel,) = plots.plot_risk_coverage(report).axes
    curve, always = panel.lines
    points = [(0, 0), (0.25, 0), (0.75, 1 / 3), (1, 0.5)]
    np.testing.assert_allclose(curve.get_xydata(), points)
    assert curve.get_drawstyle() == "steps-pre"
    # What the steps enclose is the area that the report states.
    assert 0.5 / 3 + 0.25 * 0.5 == pytest.approx(report.aurc)
    assert panel.get_title() == "area under the curve 0.2917"
    assert list(always.get_ydata()) == [0.5, 0.5]
    assert panel.get_ylim()[0] == 0.0


def test_regression_diagram():
    # Oracle: NumPy's histogram of the report's own values.
    rng = np.random.default_rng(0)
    y = rng.normal(size=(30, 4))
    report = regression_calibration(y, mean=np.zeros((30, 4)), stddev=0.5)
    left, right = plots.plot_regression_calibration(report, bins=8).axes
    curve, diagonal = left.lines
    np.testing.assert_array_equal(curve.get_xdata(), report.levels)
    np.testing.assert_array_equal(curve.get_ydata(), report.coverage)
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    error = f"calibration error {report.calibration_error:.3f}"
    assert left.get_title() == error
    heights = [bar.get_height() for bar in right.patches]
    counts, _ = np.histogram(report.pit, bins=8, range=(0, 1))
    np.testing.assert_allclose(heights, counts / 120 * 8)
    assert heights[0] > 2.0 > 1.0 > heights[4]  # too sure: heaps at the ends
    (even,) = right.lines
    assert list(even.get_ydata()) == [1.0, 1.0]
