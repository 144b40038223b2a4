"""The experiment on shifted data, shrunk to seconds."""

import importlib
import json

import keras
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import keras_vd
from experiments.shifts import data, measures, methods, tables
from experiments.shifts.recipes import CANDIDATES, Recipe

command = importlib.import_module("experiments.shifts.__main__")

SETTINGS = methods.Settings(num_samples=3, members=2, epochs=None)
QUICK = Recipe(2, 1e-2, 64)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", 200)


def prediction(seed, scale):
    """Two draws of logits, and what is measured of them."""
    rng = np.random.default_rng(seed)
    draws = [scale * rng.normal(size=(40, 3)) for _ in range(2)]
    return draws, measures.Prediction.of_draws(draws)


def entropy(p):
    return -(p * np.log(p)).sum(axis=-1)


def test_measures():
    """Oracles: scikit-learn's AUROC, the entropies' definitions."""
    draws, known = prediction(0, 3.0)
    _, foreign = prediction(1, 1.0)
    softmax = [np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in draws]
    mean = np.mean(softmax, axis=0)
    np.testing.assert_allclose(known.probabilities, mean)
    np.testing.assert_allclose(known.entropy, entropy(mean))
    np.testing.assert_allclose(
        known.mutual_information,
        entropy(mean) - np.mean([entropy(p) for p in softmax], axis=0),
    )
    labels = np.arange(40) % 3
    found = measures.measure(
        known,
        labels,
        {"turned": (foreign, True), "noise": (foreign, False)},
    )
    is_foreign = np.arange(80) >= 40
    for short, name in (("H", "entropy"), ("MI", "mutual_information")):
        scores = [getattr(x, name) for x in (known, foreign)]
        expected = roc_auc_score(is_foreign, np.concatenate(scores))
        assert found[f"turned AUROC {short}"] == pytest.approx(expected)
        assert found[f"noise AUROC {short}"] == pytest.approx(expected)
    picked = foreign.probabilities[np.arange(40), labels]
    assert found["turned NLL"] == pytest.approx(-np.log(picked).mean())
    assert found["accuracy"] == np.mean(mean.argmax(-1) == labels)
    assert "noise NLL" not in found


def test_one_draw_has_no_mutual_information():
    draws, _ = prediction(0, 1.0)
    alone = measures.Prediction.of_draws(draws[:1])
    assert alone.mutual_information is None
    found = measures.measure(alone, np.zeros(40, int), {"x": (alone, False)})
    assert "x AUROC MI" not in found
    # Oracle: a network cannot tell examples from themselves.
    assert found["x AUROC H"] == 0.5


def test_images_are_rotated_by_their_own_angles(digits):
    """Oracles: no rotation changes nothing, NumPy's by quarters."""
    x = digits.x_test[:3]
    turned = data.rotate(x, np.array([0.0, 90.0, -90.0]))
    expected = x[0], np.rot90(x[1]), np.rot90(x[2], -1)
    np.testing.assert_allclose(turned, expected, atol=1e-5)


def test_shifted_digits(digits):
    rotated, noise = digits.shifts["rotated"], digits.shifts["noise"]
    assert rotated.x.shape == noise.x.shape == digits.x_test.shape
    assert rotated.has_labels
    assert not noise.has_labels
    # Every time the same, whatever was drawn before.
    again = data.load("digits").shifts
    assert (again["rotated"].x == rotated.x).all()
    assert (again["noise"].x == noise.x).all()
    # No image is at hand twice.
    whole = data.load("digits")
    parts = (whole.x_train, whole.x_valid, whole.x_test)
    images = [image.tobytes() for part in parts for image in part]
    assert len(set(images)) == len(images) == 1797


def test_shuffling_keeps_the_bag_of_words():
    """Oracle: sorted words, and a network that takes their mean."""
    rng = np.random.default_rng(0)
    x = rng.integers(1, 50, (20, 12), "int32")
    x[np.arange(12) >= rng.integers(2, 13, (20, 1))] = data.PADDING
    shuffled = data.shuffle_words(x, rng)
    assert (shuffled != x).any()
    np.testing.assert_array_equal(np.sort(shuffled), np.sort(x))
    np.testing.assert_array_equal(shuffled == 0, x == 0)
    bag = keras.Sequential(
        [
            keras.layers.Embedding(50, 4),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(2),
        ]
    )
    logits = [bag.predict(texts, verbose=0) for texts in (x, shuffled)]
    np.testing.assert_allclose(*logits, atol=1e-6)
    words = data.random_words(x, 50, rng)
    np.testing.assert_array_equal(words == 0, x == 0)
    assert set(np.unique(words[words > 0])) <= set(range(2, 50))
    assert words.dtype == x.dtype


@pytest.mark.parametrize("method", ["gaussian", "dropout"])
def test_seeds_repeat(method, digits):
    recipe = Recipe(1, 1e-2, 100, dropout_rate=0.3 * (method == "dropout"))
    found = [
        methods.predictor(
            methods.train(digits, method, recipe, seed), method, SETTINGS, seed
        )(digits.x_test[:20])
        for seed in (1, 1, 2)
    ]
    same, other = (
        np.abs(found[0].probabilities - x.probabilities).max()
        for x in found[1:]
    )
    assert same < 1e-5 < other
    assert found[0].mutual_information.max() > 1e-4


def test_the_best_candidate_is_chosen(digits, monkeypatch):
    """Oracle: the scores that are handed in; test data is not looked at."""
    scores = {1: 0.7, 2: 0.2, 3: 0.4}
    candidates = tuple(Recipe(epochs, 1e-3, 64) for epochs in scores)

    def train(problem, method, recipe, seed):
        return recipe.epochs

    def predictor(model, method, settings, seed):
        def predict(x):
            assert x is digits.x_valid
            right = np.full(len(x), np.exp(-scores[model]))
            rows = np.tile((1.0 - right[:, None]) / 9.0, 10)
            rows[np.arange(len(x)), digits.y_valid] = right
            return measures.Prediction(rows, right, None)

        return predict

    monkeypatch.setattr(methods, "train", train)
    monkeypatch.setattr(methods, "predictor", predictor)
    recipe, model, found = methods.choose(
        digits, "plain", candidates, SETTINGS, 0
    )
    assert (recipe.epochs, model) == (2, 2)
    assert found == pytest.approx(list(scores.values()))


@pytest.mark.parametrize(
    ("method", "units"), [("gaussian_first", 300), ("gaussian_last", 10)]
)
def test_one_layer_alone_is_variational(method, units, digits):
    """The others are of the plain network."""
    model = methods.train(digits, method, QUICK, 0)
    (posterior,) = keras_vd.variational_weights(model)
    assert posterior.theta.shape[-1] == units
    assert sum(type(x) is keras.layers.Dense for x in model.layers) == 2
    row = methods.run(digits, method, (QUICK,), SETTINGS, 0)
    name = method.replace("_", ", ")
    assert list(row["networks"]) == [name]
    assert "rotated AUROC MI" in row["networks"][name]  # of its draws


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:The likelihood of `labels`")
def test_texts_meet_every_method():
    """Oracle: `shrink` does not change what the means predict."""
    rng = np.random.default_rng(0)
    x = rng.integers(1, 30, (90, 12), "int32")
    y = (x < 15).sum(axis=1) > 6
    parts = np.split(x, 3), np.split(y.astype("int32"), 3)
    pairs = [part for pair in zip(*parts, strict=True) for part in pair]
    shifts = {"shuffled": data.Shift(data.shuffle_words(x[60:], rng), True)}
    problem = data.Problem("texts", *pairs, 2, shifts)
    for method in methods.METHODS:
        row = methods.run(problem, method, (QUICK,), SETTINGS, 0)
        for figures in row["networks"].values():
            assert np.isfinite(list(figures.values())).all()
            assert 0.0 <= figures["shuffled AUROC H"] <= 1.0
    found = row["networks"]  # of sparse_vd
    assert list(found) == list(tables.STAGES)
    means, shrunk = (
        found[f"sparse_vd, {x}"] for x in ("pruned, means", "shrunk")
    )
    assert means["NLL"] == pytest.approx(shrunk["NLL"], abs=1e-4)
    assert found["sparse_vd"]["NLL"] != pytest.approx(means["NLL"], abs=1e-6)


@pytest.mark.integration
@pytest.mark.core
def test_it_runs_goes_on_and_prints_what_it_says(tmp_path, capsys):
    file = tmp_path / "out" / "results.json"
    options = [
        *("--methods", "plain", "sparse_vd", "--epochs", "3"),
        *("--num-samples", "3", "--members", "2", "--output", str(file)),
        *("--limit", "200"),
    ]

    def run(*more):
        rows = command.run(command.parse_arguments([*options, *more]))
        return rows, capsys.readouterr().out

    first, _ = run("--seeds", "1")
    rows, printed = run("--seeds", "2", "--markdown")
    assert rows[:2] == first
    assert json.loads(file.read_text())["rows"] == rows
    assert [row["seed"] for row in rows] == [0, 0, 1, 1]
    for method in (0, 1):
        # What the first seed chose among all the second takes.
        assert rows[method]["recipe"] == rows[method + 2]["recipe"]
        assert len(rows[method + 2]["held_out_nll"]) == 1
    assert len(rows[1]["held_out_nll"]) == len(CANDIDATES["digits"]["vd"])
    accuracies = [
        100 * row["networks"]["plain"]["accuracy"] for row in rows[::2]
    ]
    mean, spread = np.mean(accuracies), np.std(accuracies, ddof=1)
    assert f"| plain | {mean:.2f} ± {spread:.2f} |" in printed
    for name in ("ensemble of 2", "plain, temperature", *tables.STAGES):
        assert f"| {name} |" in printed
    # How many weights there were stands above how many are left.
    lost = printed[printed.index("what is lost") :]
    sizes = [row["networks"]["plain"][tables.SIZE] for row in rows[::2]]
    plain = next(x for x in lost.splitlines() if x.startswith("| plain |"))
    assert plain.endswith(f"| {np.mean(sizes):,.0f} |")
    with pytest.raises(SystemExit):
        run("--limit", "100")
    assert "was written with" in capsys.readouterr().err


def test_the_standing_is_that_of_the_means():
    """Oracle: by hand."""
    figures = {
        "plain": {"NLL": [0.3, 0.5], "x AUROC H": [0.9, 0.9]},
        "sparse_vd, shrunk": {"NLL": [0.2, 0.4], "x AUROC H": [0.7, 0.9]},
        "MC dropout": {"NLL": [0.1, 0.2], "x AUROC H": [0.5, 0.5]},
    }
    text = tables.standing(figures, "NLL")
    assert text.startswith(
        "NLL: MC dropout is first, 0.1500; ours is sparse_vd"
    )
    # Standard errors 0.05 and 0.1.
    assert "number 2 of 3, apart by 0.1500 ± 0.1118" in text
    assert tables.standing(figures, "x AUROC H").startswith(
        "x AUROC H: plain is first"
    )
    del figures["MC dropout"]
    assert tables.standing(figures, "NLL") == (
        "NLL: sparse_vd, shrunk is first, 0.3000, ours; of others plain, 0.4000"
    )


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--seeds", "0", "--seeds must be at least 1, not 0"),
        ("--members", "1", "--members must be at least 2, not 1"),
        ("--num-samples", "1", "--num-samples must be at least 2, not 1"),
        ("--dataset", "cats", "invalid choice: 'cats'"),
    ],
)
def test_wrong_arguments_are_refused(option, value, message, capsys):
    with pytest.raises(SystemExit):
        command.parse_arguments([option, value])
    assert message in capsys.readouterr().err


def test_a_wrong_file_is_told(tmp_path, capsys):
    file = tmp_path / "results.json"
    file.write_text("{}")
    with pytest.raises(SystemExit):
        command.read(file, {})
    assert "is no file of this command" in capsys.readouterr().err
