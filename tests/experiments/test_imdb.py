"""The sentiment experiment, shrunk to seconds."""

import dataclasses
import functools
import json

import keras
import numpy as np
import pytest

import keras_vd
from tests.helpers.arrays import to_float64
from tests.helpers.models import run_python

pytest.importorskip("tensorflow")
from experiments.imdb import __main__ as imdb
from experiments.imdb import data, models, recipes, summary, tables
from experiments.rates import PiecewiseLinear

IS_TORCH = keras.backend.backend() == "torch"
NETWORK = models.Network("lstm", "sparse_vd", 12, 4, 5)


def run(*arguments):
    return imdb.run(imdb.parse_arguments([str(a) for a in arguments]))


@pytest.fixture
def npz(tmp_path):
    """A factory of text files: 60 texts of ids, or as told."""

    def write(**changes):
        rng = np.random.default_rng(0)
        arrays = {
            "x_train": rng.integers(2, 20, (60, 7)),
            "y_train": np.arange(60) % 2,
            "x_test": rng.integers(0, 20, (11, 9)),
            "y_test": np.arange(11) % 2,
        } | changes
        file = tmp_path / "texts.npz"
        np.savez(file, **{k: v for k, v in arrays.items() if v is not None})
        return file

    return write


def disturb(model, seed):
    """Random weights, of which parts and groups are pruned."""
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        if variable.name.startswith("log_sigma2"):
            value = np.where(rng.random(variable.shape) < 0.7, 9.0, -9.0)
        else:
            value = rng.uniform(0.3, 1.0, variable.shape)
            value *= rng.choice([-1.0, 1.0], variable.shape)
        variable.assign(value.astype("float32"))


@pytest.mark.integration
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("share", ["weight", "unit", "rank1"])
@pytest.mark.parametrize("groups", [(), models.GROUPS])
@pytest.mark.parametrize("kind", models.MODELS)
def test_shrinking_changes_no_prediction(kind, groups, share, seed):
    """Identity: the small network on the new ids, the large on the old."""
    network = dataclasses.replace(
        NETWORK,
        model=kind,
        groups=groups,
        share=share,
    )
    model = network.build()
    disturb(model, seed)
    # No bias of a candidate: its unit is zero as long as nothing comes in.
    for layer in models.recurrent_layers(model):
        bias = to_float64(layer.cell.bias).copy()
        bias[..., 2 * layer.units : 3 * layer.units] = 0.0
        layer.cell.bias.assign(bias)
    rng = np.random.default_rng(seed)
    ids = rng.integers(2, 12, (20, 6))
    ids[rng.random(20) < 0.5, 4:] = data.PADDING
    words = [f"w{i}" for i in range(12)]
    new, small, kept, new_ids = models.shrink(model, network, words)
    expected = to_float64(model(ids))
    np.testing.assert_allclose(to_float64(new(new_ids[ids])), expected, 1e-5)
    alive = models.find_alive(model)
    assert small.vocabulary == len(kept) == 2 + len(alive.words)
    assert [words[i] for i in alive.words] == kept[2:]
    # Nothing more to remove, and nothing that counts was lost.
    again = models.find_alive(new)
    assert len(again.words) == len(alive.words)
    assert again.gates == alive.gates
    assert tuple(map(len, again.units)) == tuple(map(len, alive.units))
    before = 10 + 4 + 5 * len(alive.units)
    after = map(len, (alive.words, alive.features, *alive.units))
    assert sum(after) <= before


def test_shrinking_carries_over_what_training_goes_on_with():
    model = NETWORK.build()
    disturb(model, 0)
    network = dataclasses.replace(NETWORK, structure_scale=7.0)
    new, *_ = models.shrink(model, network, ["w"] * 12)
    alive = models.find_alive(model)
    old = model.get_layer("recurrent").recurrent_kernel_posterior
    found = new.get_layer("recurrent").recurrent_kernel_posterior
    units = alive.units[0]
    columns = np.concatenate([units + 5 * gate for gate in range(4)])
    for name in ("theta", "log_sigma2", "keep_mask"):
        np.testing.assert_array_equal(
            to_float64(getattr(found, name)),
            to_float64(getattr(old, name))[np.ix_(units, columns)],
        )
    assert found.kl_scale == 7.0
    assert new.get_layer("embedding").embeddings_posterior.kl_scale == 1.0


def test_units_that_cannot_be_anything_but_zero_are_dead():
    """Oracle: built by hand. Unit 0 is read, 1 is not, 2 gets no input."""
    network = dataclasses.replace(NETWORK, units=3)
    model = network.build()
    for posterior in keras_vd.variational_weights(model):
        posterior.weight.assign(np.ones(posterior.weight.shape))
    layer = model.get_layer("recurrent")
    kernel, recurrent = np.ones((4, 12)), np.zeros((3, 12))
    kernel[:, 8] = 0.0  # candidate of unit 2
    kernel[3] = 0.0  # nothing reads feature 3
    recurrent[2, 0] = 1.0  # unit 0 reads unit 2, which is zero
    layer.cell.kernel.assign(kernel)
    layer.cell.recurrent_kernel.assign(recurrent)
    model.get_layer("classifier").kernel.assign([[1.0], [0.0], [1.0]])
    alive = models.find_alive(model)
    np.testing.assert_array_equal(alive.units[0], [0])
    np.testing.assert_array_equal(alive.features, [0, 1, 2])
    np.testing.assert_array_equal(alive.words, np.arange(2, 12))
    assert alive.gates == 4
    # A bias brings unit 2 to life.
    bias = to_float64(layer.cell.bias).copy()
    bias[8] = 0.5
    layer.cell.bias.assign(bias)
    np.testing.assert_array_equal(models.find_alive(model).units[0], [0, 2])


def test_ids_are_those_of_text_vectorization():
    """Oracle: Keras' layer on standardized texts, cut by hand."""
    texts = np.array(
        ["A good, GOOD film!<br />Great_fun", "", "bad  film " * 9, "Café"]
    )
    words = data.adapt(texts, 6)
    ids = {word: i for i, word in enumerate(words) if i > 1}
    found = data.Encoder(ids, 5).encode(texts)
    vectorizer = keras.layers.TextVectorization(
        vocabulary=words[2:], standardize=None
    )
    plain = ["a good good film greatfun", "", "bad film " * 9, "café"]
    for row, text in zip(found, plain, strict=True):
        expected = to_float64(vectorizer([text]))[0] if text else np.zeros(0)
        expected = expected[expected != 0][-5:]
        np.testing.assert_array_equal(row[: len(expected)], expected)
        assert not row[len(expected) :].any()
    assert words[:3] == ["", "[UNK]", "film"]


def test_tail_keeps_the_last_tokens():
    ids = np.array([[3, 4, 5, 0], [6, 0, 0, 0], [0, 0, 0, 0], [7, 8, 9, 5]])
    expected = [[4, 5], [6, 0], [0, 0], [9, 5]]
    np.testing.assert_array_equal(data.tail(ids, 2), expected)


def test_synthetic_labels_are_the_majority_of_opinions():
    x_train, y_train, x_test, _ = data.make_synthetic(0, texts=90)
    assert len(x_train) == 60
    assert len(x_test) == 30
    for text, label in zip(x_train, y_train, strict=True):
        words = text.split()
        good = sum(word in data.GOOD for word in words)
        bad = sum(word in data.BAD for word in words)
        assert good != bad
        assert label == (good > bad)


def test_no_validation_or_test_text_decides_the_vocabulary(npz):
    train = np.array([f"seen{i}" for i in range(60)])
    test = np.array([f"unseen{i}" for i in range(11)])
    file = npz(x_train=train, x_test=test)
    texts = data.load("imdb", file, 1000, 4, 0)
    assert len(texts.x_valid) == 6
    # A word for each training text; those of the others are unknown.
    assert len(texts.words) == 2 + 54
    assert (texts.x_train[:, 0] >= 2).all()
    assert (texts.x_valid[:, 0] == data.UNKNOWN).all()
    assert (texts.x_test[:, 0] == data.UNKNOWN).all()


# Run where neither Keras nor keras_vd can be imported.
SERVE = """
import json, sys
sys.modules.update({"keras": None, "keras_vd": None})
import numpy as np
import tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
texts = json.loads(sys.argv[2])
whole = loaded.serve(tf.constant(texts)).numpy()
single = [loaded.serve(tf.constant([text])).numpy()[0] for text in texts]
print(json.dumps([whole.tolist(), np.array(single).tolist()]))
"""


@pytest.mark.integration
@pytest.mark.parametrize(
    ("kind", "groups"), [("lstm", models.GROUPS), ("bilstm", ("gates",))]
)
def test_a_run_leaves_models_and_words(
    kind, groups, tmp_path, capsys, monkeypatch
):
    few = functools.partial(data.make_synthetic, texts=300)
    monkeypatch.setattr(data, "make_synthetic", few)
    out = tmp_path / "out"
    results = run(
        *("--dataset", "synthetic", "--model", kind, "--limit", 64),
        *("--epochs", 2, "--groups", *groups, "--out", out),
    )
    written = json.loads((out / "results.json").read_text())
    assert written["accuracy_percent"] == results["accuracy_percent"]
    # Oracle: the accuracy that Keras logged in the last epoch.
    assert written["held_out_accuracy_percent"] == pytest.approx(
        100.0 * written["history"][-1]["val_accuracy"]
    )
    lines = (out / "words.txt").read_text().splitlines()
    words = [line.split()[1] for line in lines]
    assert len(words) == results["sparsity"]["kept"]["words"][0]
    assert "words that matter" in capsys.readouterr().out
    if IS_TORCH:
        return
    # Oracle: the Keras model, on ids that the test looks up by itself.
    model = keras.saving.load_model(out / "pruned.keras")
    vocabulary = written["vocabulary"]
    texts = ["superb " * 50 + "boring", "", "Superb! awful", "nothing"]
    ids = np.zeros((4, 32), "int32")
    for row, text in zip(ids, texts, strict=True):
        tokens = [
            vocabulary.index(word) if word in vocabulary else 1
            for word in text.lower().replace("!", "").split()[-32:]
        ]
        row[: len(tokens)] = tokens
    expected = model.predict(ids, verbose=0)
    served = run_python(SERVE, out / "saved_model", json.dumps(texts))
    whole, single = json.loads(served.stdout)
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    np.testing.assert_allclose(single, expected, atol=1e-5)
    assert results["export_difference"] < 1e-5
    exported = results["accuracy_percent"]["exported"]
    assert exported == results["accuracy_percent"]["pruned"]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("method", "kind"),
    [("none", "bilstm"), ("dropout", "lstm"), ("ard", "gru")],
)
def test_ids_of_the_users_own(method, kind, npz, tmp_path):
    results = run(
        *("--data", npz(), "--method", method, "--vocabulary", 20),
        *("--model", kind),
        *("--features", 3, "--units", 2, "--length", 5, "--epochs", 1),
        *("--recipe", "quick", "--out", tmp_path / "out"),
    )
    name = "pruned.keras" if method == "ard" else "model.keras"
    model = keras.saving.load_model(tmp_path / "out" / name)
    assert model.input_shape == (None, None)
    assert results["training_texts"] == 54
    assert ("sparsity" in results) == (method == "ard")
    if method == "ard":
        assert all(word.startswith("#") for word, _ in results["words"])
        rows = results["sparsity"]["matrices"]
        assert [row["shape"] for row in rows] == [
            [20, 3],
            [3, 6],
            [2, 6],
            [2, 1],
        ]
    if not IS_TORCH:
        assert results["export_difference"] < 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, "lacks ['x_test']"),
        ({"x_train": np.zeros((60, 7))}, "x_train must be strings"),
        ({"x_train": np.zeros(60, int)}, "x_train must be strings"),
        ({"y_train": np.arange(60)}, "y_train must be 0 or 1"),
        ({"y_test": np.zeros(3)}, "y_test must be 0 or 1 for each of 11"),
        ({"x_train": np.array(["a"] * 60)}, "must be of one kind"),
        ({"x_train": np.full((60, 7), 20)}, "must be in [0, 20)"),
        ({"x_train": np.full((60, 7), -1)}, "must be in [0, 20)"),
    ],
)
def test_texts_that_cannot_be_read(changes, message, npz, capsys, tmp_path):
    arguments = ("--vocabulary", 20, "--out", tmp_path / "out")
    with pytest.raises(SystemExit) as exit_info:
        run("--data", npz(**changes), *arguments)
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", 0), "--epochs must be at least 1, not 0"),
        (("--vocabulary", 2), "--vocabulary must be at least 3"),
        (("--method", "none", "--groups", "gates"), "--groups goes with"),
        (("--method", "none", "--n-active", 9), "--n-active goes with"),
        (("--nonzero-ratio", 1), "`nonzero_ratio` must be"),
        (("--data", "no_such_file.npz"), "cannot read --data"),
        (("--data", __file__), "cannot read --data"),
        (("--out", __file__), "cannot write to --out"),
    ],
)
def test_impossible_wishes_end_with_one_line_and_code_2(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        run("--dataset", "synthetic", *arguments)
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.integration
@pytest.mark.parametrize("wish", [("nonzero_ratio", 8), ("n_active", 20)])
def test_a_size_instead_of_a_kl_weight(wish, npz, tmp_path):
    """Oracle: the wish, which `KLTarget` meets within 5%."""
    name, value = wish
    results = run(
        *("--data", npz(), "--vocabulary", 20, "--length", 5),
        *("--features", 10, "--units", 8, "--recipe", "quick"),
        *("--epochs", 4, "--out", tmp_path / "out"),
        *("--" + name.replace("_", "-"), value),
    )
    assert results["recipe"]["wish"] == {name: value}
    stage = results["recipe"]["variational"][0]
    assert len(results["recipe"]["variational"]) == 1
    assert (stage["epochs"], stage["shrink_every"]) == (4, 0)
    last = results["history"][-1]
    assert last["target_state"] == pytest.approx(value, rel=0.05)
    if name == "nonzero_ratio":
        # What nothing reads counts as well as long as `KLTarget` looks.
        assert results["sparsity"]["ratio"] >= 0.95 * value


@pytest.mark.parametrize("epochs", [1, 2, 5, 37, 100])
def test_a_recipe_stretches_to_any_number_of_epochs(epochs):
    recipe = recipes.RECIPES["groups"].with_epochs(False, epochs)
    assert sum(stage.epochs for stage in recipe.variational) == epochs
    assert all(stage.epochs > 0 for stage in recipe.variational)


def test_the_published_network_has_the_published_size():
    """Oracle: 6,220,164 of 20,003 words (released log), less 3 words."""
    assert tables.lstm_weights(*tables.PUBLISHED) == (6_220_164 - 3 * 300)
    network = models.Network("lstm", "sparse_vd", 200, 30, 12)
    report = keras_vd.sparsity_report(network.build())
    assert report.weights == tables.lstm_weights(200, 30, 12)


def test_summary_averages_seeds(tmp_path, capsys, monkeypatch):
    for seed, (accuracy, nonzero) in enumerate(((86.0, 80), (87.0, 100))):
        results = {
            "data": "imdb",
            "model": "lstm",
            "method": "sparse_vd",
            "recipe_name": "quick",
            "seed": seed,
            "seconds": 60.0,
            "recipe": dataclasses.asdict(recipes.RECIPES["quick"]),
            "accuracy_percent": {"trained": accuracy, "exported": accuracy},
            "sparsity": {
                "weights": 4000,
                "nonzero": nonzero,
                "ratio": 4000 / nonzero,
                "ratio_with_biases": 20.0,
                "kept": {
                    name: [5, 9]
                    for name in ("words", "features", "units", "gates")
                },
            },
        }
        (tmp_path / f"{seed}.json").write_text(json.dumps(results))
    files = [str(file) for file in tmp_path.glob("*.json")]
    monkeypatch.setattr("sys.argv", ["x", *files])
    summary.main()
    cells = capsys.readouterr().out.splitlines()[-1].split(" | ")
    # Oracle: mean and sample standard deviation by hand.
    assert "0, 1" in cells
    assert "86.50 ± 0.71" in cells
    assert "90 ± 14 of 4,000" in cells
    assert "45 ± 7" in cells
    assert "5 ± 0 of 9" in cells


@pytest.mark.integration
@pytest.mark.slow
def test_the_kept_words_are_those_that_matter(tmp_path):
    results = run("--dataset", "synthetic", "--out", tmp_path / "out")
    effects = dict(results["words"])
    assert {w for w in effects if effects[w] > 0} == set(data.GOOD)
    assert {w for w in effects if effects[w] < 0} == set(data.BAD)
    assert results["accuracy_percent"]["exported"] > 99.0


def test_a_wish_has_the_learning_rates_of_the_recipe():
    """Oracle: the rates of both stages, one after the other, by NumPy."""
    recipe = recipes.RECIPES["quick"].for_wish({"nonzero_ratio": 9.0})
    (stage,) = recipe.variational
    assert stage.epochs == 12
    rates = [stage.at(stage.learning_rate, x) for x in np.arange(13.0)]
    expected = np.interp(np.arange(13), [0, 4, 12], [3e-3, 3e-3, 0.0])
    np.testing.assert_allclose(rates, expected, atol=1e-12)
    schedule = PiecewiseLinear(rates, steps=10)
    steps = np.arange(150)
    np.testing.assert_allclose(
        [float(schedule(step)) for step in steps],
        np.interp(steps / 10, np.arange(13), expected),
        atol=1e-9,
    )


def test_a_wish_has_the_last_kl_of_the_structure():
    # Oracle: the recipe's last stage.
    recipe = recipes.RECIPES["weights"]
    assert recipe.variational[-1].structure_scale == 3.0
    (stage,) = recipe.for_wish({"nonzero_ratio": 9.0}).variational
    assert stage.structure_scale == 3.0


def test_a_stage_of_two_values_is_linear():
    """Oracle: Keras' own linear schedule."""
    linear = keras.optimizers.schedules.PolynomialDecay(3e-3, 40, 1e-3)
    stage = recipes.Stage(4, (3e-3, 1e-3))
    rates = [stage.at(stage.learning_rate, epoch) for epoch in range(5)]
    ours = PiecewiseLinear(rates, steps=10)
    for step in range(0, 60, 7):
        assert float(ours(step)) == pytest.approx(float(linear(step)))
