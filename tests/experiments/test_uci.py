"""The regressions on UCI's data, on a tiny set of the same format."""

import json

import keras
import numpy as np
import pytest
import scipy.stats

import keras_vd
from experiments.uci import __main__ as uci
from experiments.uci import data, methods, networks, tables, training
from experiments.uci.training import Recipe
from keras_vd.uncertainty import MonteCarloPrediction

ROWS, SPLITS = 40, 2


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 3)) * (1.0, 10.0, 0.0)
    y = 100.0 + 50.0 * x[:, 0] + rng.normal(size=ROWS)
    tests = {f"test_{i}": np.arange(4) + 4 * i for i in range(SPLITS)}
    np.savez(tmp_path / "yacht.npz", x=x, y=y, n_splits=SPLITS, **tests)
    return tmp_path


@pytest.fixture
def yacht(folder):
    return data.load(folder, "yacht")


def test_every_split_sees_its_own_rows(yacht):
    rows, held_out = data.hold_out(yacht.trainings, seed=0)
    for i in range(SPLITS):
        parts = [set(x[i].tolist()) for x in (rows, held_out, yacht.tests)]
        assert sum(map(len, parts)) == ROWS == len(set.union(*parts))
    stack = data.stack(yacht, rows, held_out)
    # Undone by hand, the rows of a split are those of the files.
    for i in range(SPLITS):
        own = yacht.y[rows[i]]
        y = stack.y[:, i, 0] * own.std() + own.mean()
        np.testing.assert_allclose(y, own, rtol=1e-5)
        first = yacht.x[held_out[i], 1]
        own = yacht.x[rows[i], 1]
        np.testing.assert_allclose(
            stack.x_new[:, i, 1], (first - own.mean()) / own.std(), rtol=1e-4
        )
    assert np.all(stack.x[..., 2] == 0.0)


def test_batches_are_of_the_rows_of_each_network(yacht):
    rows, held_out = data.hold_out(yacht.trainings, seed=0)
    stack = data.stack(yacht, rows, held_out)
    batches = training._batches(stack, np.array([1.0, 0.5]), 7, seed=0)
    # Four batches of 29 rows are 28 rows, of which none comes twice.
    drawn = [next(batches) for _ in range(4)]
    for i in range(SPLITS):
        seen = np.concatenate([y[:, i, 0] for _, y, _ in drawn])
        assert len(np.unique(seen)) == len(seen) == 28
        assert set(seen) <= set(stack.y[:, i, 0])
    np.testing.assert_array_equal(drawn[0][2], [[1.0, 2.0]] * 7)


def test_the_likelihood_is_in_the_units_of_the_targets(yacht):
    """A single normal has the density that scipy says."""
    stack = data.stack(yacht, yacht.trainings, yacht.tests)
    shape = (1, *stack.y_new.shape)
    samples = np.random.default_rng(1).normal(size=shape).astype("float32")
    prediction = MonteCarloPrediction(
        mean=samples[0],
        standard_deviation=np.zeros(shape[1:]),
        predictive_entropy=None,
        mutual_information=None,
        calibration=None,
        num_samples=1,
        task="regression",
        samples=samples,
        noise=np.full(shape, 0.3),
    )
    values = training.measure(prediction, stack)
    for i in range(SPLITS):
        own = yacht.y[yacht.trainings[i]]
        means = samples[0, :, i, 0] * own.std() + own.mean()
        y, stddev = yacht.y[yacht.tests[i]], 0.3 * own.std()
        expected = -scipy.stats.norm.logpdf(y, means, stddev).mean()
        np.testing.assert_allclose(values["nll"][i], expected, rtol=1e-5)
        error = np.sqrt(np.mean((means - y) ** 2))
        np.testing.assert_allclose(values["rmse"][i], error, rtol=1e-5)
        inside = np.abs(means - y) < 1.959964 * stddev
        np.testing.assert_allclose(values["coverage"][i], inside.mean())


@pytest.mark.parametrize("noise", ["heteroscedastic", "homoscedastic"])
def test_networks_side_by_side_share_nothing(noise):
    """The outputs of one do not depend on the inputs of another."""
    model = networks.build("ensemble", (3, 2), 4, noise, 0.0, 0.0)
    x = np.ones((5, 3, 2), "float32")
    changed = x.copy()
    changed[:, 1] = 7.0
    before, after = (keras.ops.convert_to_numpy(model(z)) for z in (x, changed))
    assert before.shape == (5, 3, 2)
    np.testing.assert_array_equal(before[:, ::2], after[:, ::2])
    assert np.any(before[:, 1] != after[:, 1])


@pytest.mark.parametrize("copies", [1, 3])
def test_ivon_counts_the_rows_of_one_network(yacht, copies):
    """Gradients are nothing beside such an h_0, so that h shrinks by itself."""
    stack = data.stack(yacht, yacht.trainings, yacht.tests).repeated(copies)
    recipe = Recipe(4, "heteroscedastic", 20, 10, hessian_init=1e9)
    strengths = np.ones(copies * SPLITS)
    model = training.train("ivon", recipe, stack, strengths, seed=0)
    rows, share = ROWS - len(yacht.tests[0]), 5 / 20
    # 20 steps, the first of which leaves h as it is.
    precision = rows * 1e9 * (1 - share + share**2 / 2) ** 19
    for weight in keras_vd.variational_weights(model):
        variance = np.exp(keras.ops.convert_to_numpy(weight.log_sigma2))
        np.testing.assert_allclose(variance, 1 / precision, rtol=0.02)


def test_test_rows_do_not_change_the_choice(yacht, monkeypatch):
    monkeypatch.setattr(training, "DRAWS", 2)
    grid = methods.Grid((Recipe(3, "heteroscedastic", 20, 10),), (1.0, 0.1))
    scores = [methods.score_candidates("ensemble", yacht, grid, 0)]
    y = yacht.y.copy()
    # Of both splits: a test row of one is a training row of the other.
    own = data.DataSet(yacht.name, yacht.x, y, yacht.tests)
    own.y[yacht.tests[0]] += 1e3
    scores.append(methods.score_candidates("ensemble", own, grid, 0))
    np.testing.assert_array_equal(scores[0][0], scores[1][0])
    assert np.all(scores[0][1] != scores[1][1])


def test_what_diverges_is_not_chosen(yacht):
    recipes = (
        Recipe(3, "homoscedastic", 20, 10, learning_rate=1e30),
        Recipe(3, "homoscedastic", 20, 10, learning_rate=1e-3),
    )
    grid = methods.Grid(recipes, (1.0,))
    scores = methods.score_candidates("ensemble", yacht, grid, 0)
    assert np.all(scores[:, 0] == -np.inf)
    assert np.all(np.isfinite(scores[:, 1]))


def test_what_diverges_on_all_rows_gives_way(yacht, monkeypatch):
    """Also where it was the best on the held-out ones, and to an end."""
    recipes = tuple(
        Recipe(3, "homoscedastic", 20, 10, learning_rate=rate)
        for rate in (1e30, 1e-3)
    )
    scores = np.zeros((SPLITS, 2, 1))
    scores[:, 0] = 1.0

    def score(method, dataset, grid, seed):
        return scores[:, : len(grid.recipes)].copy()

    monkeypatch.setattr(methods, "score_candidates", score)
    found = methods.run("ensemble", yacht, methods.Grid(recipes, (1.0,)), 0)
    assert found["held_out_nll"] == [0.0] * SPLITS
    assert np.all(np.isfinite(found["nll"]))
    with pytest.raises(training.DivergedError, match="1e\\+30"):
        methods.run("ensemble", yacht, methods.Grid(recipes[:1], (1.0,)), 0)


def test_splits_are_tested_with_what_they_chose(yacht, monkeypatch):
    trained = []

    def train(method, recipe, stack, strengths, seed):
        trained.append((recipe.noise, strengths.tolist(), stack.x.shape[1]))
        raise InterruptedError

    recipes = tuple(Recipe(3, x, 20, 10) for x in ("homoscedastic",) * 2)
    grid = methods.Grid(recipes, (1.0, 0.1))
    scores = np.zeros((SPLITS, 2, 2))
    scores[0, 1, 1] = scores[1, 1, 0] = 1.0
    monkeypatch.setattr(methods, "score_candidates", lambda *x: scores)
    monkeypatch.setattr(training, "train", train)
    with pytest.raises(InterruptedError):
        methods.run("gaussian", yacht, grid, 0)
    assert trained == [("homoscedastic", [0.1, 1.0], SPLITS)]


def cell(nll, held_out):
    return {"nll": nll, "held_out_nll": held_out}


def test_counts_are_of_lower_likelihoods():
    cells = {
        # PBP 2.57, MC dropout 2.46, ensembles 2.41
        "boston/gaussian": cell([2.0, 3.0], [1.0, 2.0]),
        "boston/vd": cell([2.5, 2.4], [1.5, 1.0]),
        "boston/sparse_vd": cell([2.6, 2.6], [9.0, 9.0]),
        "boston/ivon": cell([2.7, 2.7], [9.0, 9.0]),
        # PBP 1.63
        "yacht/ensemble": cell([1.0, 1.2], [1.0, 1.0]),
    }
    means = tables.our_means(cells)
    assert means["best of ours"] == {"boston": pytest.approx(2.45)}
    # Each split takes the method that its held-out rows prefer.
    assert means["chosen of ours"] == {"boston": pytest.approx(2.2)}
    best = means["best of ours"]
    counts = [tables.count_better(best, x) for x in tables.PUBLISHED]
    assert counts == [1, 1, 0, 1]
    assert tables.count_better(means["ensemble"], "PBP") == 1
    assert tables.summary([1.0, 3.0]) == "2.00 ± 1.00"


@pytest.mark.integration
@pytest.mark.parametrize("method", networks.METHODS)
def test_a_run_is_written_and_not_repeated(folder, method, monkeypatch, capsys):
    monkeypatch.setattr(training, "DRAWS", 3)
    file = folder / "out" / "results.json"
    options = ["--data", str(folder), "--data-sets", "yacht"]
    options += ["--methods", method, "--epochs", "0.003"]
    options += ["--output", str(file), "--markdown"]
    found = uci.run(uci.parse_arguments(options))
    written = json.loads(file.read_text())
    assert written["cells"] == found["cells"]
    values = found["cells"][f"yacht/{method}"]
    for measure in tables.MEASURES:
        assert len(values[measure]) == SPLITS
        assert np.all(np.isfinite(values[measure]))
    monkeypatch.setattr(methods, "run", None)
    capsys.readouterr()
    uci.run(uci.parse_arguments(options))
    assert f"| {method} |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        uci.run(uci.parse_arguments([*options, "--seed", "1"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere", "--splits", "0"], "--splits must be"),
        (["--data", "nowhere", "--epochs", "0"], "--epochs must be"),
        ([], "UCI_DATA_DIR"),
    ],
)
def test_bad_options(options, message, capsys, monkeypatch):
    monkeypatch.delenv("UCI_DATA_DIR", raising=False)
    with pytest.raises(SystemExit) as ended:
        uci.parse_arguments(options)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_file_ends_the_program(tmp_path, capsys):
    with pytest.raises(SystemExit):
        data.load(tmp_path, "boston")
    assert "bostonHousing.npz" in capsys.readouterr().err
