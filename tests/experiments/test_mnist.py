"""The experiments on images, shrunk to seconds."""

import json
import os

import keras
import numpy as np
import pytest

import keras_vd
from experiments import common
from experiments.mnist import __main__ as mnist
from experiments.mnist import data, models, recipes, summary, training


def run(*arguments):
    return mnist.run(mnist.parse_arguments([str(a) for a in arguments]))


@pytest.fixture
def npz(tmp_path):
    """A factory of image files: 60 small images of 3 classes, or as told."""

    def write(**changes):
        rng = np.random.default_rng(0)
        arrays = {
            "x_train": rng.integers(0, 256, (60, 16, 16), "uint8"),
            "y_train": np.arange(60) % 3,
            "x_test": rng.integers(0, 256, (12, 16, 16), "uint8"),
            "y_test": np.arange(12) % 3,
        } | changes
        file = tmp_path / "images.npz"
        np.savez(file, **{k: v for k, v in arrays.items() if v is not None})
        return file

    return write


@pytest.mark.integration
@pytest.mark.parametrize("method", models.METHODS)
def test_every_method_runs_on_digits(method, tmp_path):
    is_fine_tuned = method in (*models.SPARSE, *models.GATES)
    results = run(
        *("--dataset", "digits", "--method", method, "--limit", 64),
        *("--epochs", 2, "--out", tmp_path / "out"),
        *(("--pretrain-epochs", 1) if method in models.GATES else ()),
        *(("--finetune-epochs", 1) if is_fine_tuned else ()),
        *(("--more-bits", 2) if method in models.WEIGHTS else ()),
    )
    # Oracle: what is on disk is what was returned, and loads again.
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["errors_percent"] == results["errors_percent"]
    assert results["training_images"] == 64
    model = keras.models.load_model(tmp_path / "out" / "model.keras")
    images = data.load("digits", None)
    error = mnist.error_percent(mnist.predict(model, images), images.y_test)
    is_variational = method in models.VARIATIONAL
    stage = "pruned" if is_variational else "trained"
    assert error == pytest.approx(results["errors_percent"][stage])
    pictures = {file.name for file in (tmp_path / "out").glob("*.png")}
    expected = {"training.png"} if is_variational else set()
    if method in models.WEIGHTS:
        expected |= {"log_alpha.png", "kept_weights.png"}
    assert pictures == expected
    if method in models.WEIGHTS:
        bits = keras_vd.bit_widths(model)
        assert results["archive_bits"] == {k: v + 2 for k, v in bits.items()}
    # Oracle: equal predictions, of a plain model that loads by itself.
    assert results["shrinking_difference"] < 1e-5
    shrunk = keras.models.load_model(tmp_path / "out" / "shrunk.keras")
    assert shrunk.count_params() == results["shrunk"]["kept_parameters"]
    if keras.backend.backend() == "tensorflow":
        assert results["export_difference"] < 1e-6


@pytest.mark.integration
def test_lenet_5_takes_a_file_of_the_users_own(npz, tmp_path, capsys):
    results = run(
        *("--model", "lenet-5", "--data", npz(), "--pretrain-epochs", 1),
        *("--epochs", 1, "--finetune-epochs", 1, "--holdout", 10),
        *("--out", tmp_path / "out"),
    )
    # Oracle: the Caffe variant on 16x16 images leaves 1x1x50 inputs to fc 500.
    shapes = [row["shape"] for row in results["sparsity"]["rows"]]
    assert shapes == [[5, 5, 1, 20], [5, 5, 20, 50], [50, 500], [500, 3]]
    assert results["training_images"] == 50
    assert results["test_images"] == 10
    assert "val_accuracy" in results["history"]
    # Fine-tuning keeps the zeros: count them in the plain network.
    plain = keras.models.load_model(tmp_path / "out" / "pruned.keras")
    kernels = [layer.kernel for layer in plain.layers if layer.weights]
    nonzero = sum(int(np.count_nonzero(np.asarray(k))) for k in kernels)
    assert nonzero <= results["sparsity"]["nonzero"]
    assert "active inputs" in capsys.readouterr().out


@pytest.mark.integration
@pytest.mark.parametrize("wish", [("nonzero_ratio", 8), ("budget", 90)])
def test_a_wish_instead_of_a_kl_weight(wish, tmp_path):
    """Oracle: the wish; a budget that any network keeps lets it shrink."""
    name, value = wish
    results = run(
        *("--dataset", "digits", "--limit", 128, "--epochs", 4),
        *("--finetune-epochs", 0, "--holdout", 64, "--out", tmp_path / "out"),
        *("--" + name.replace("_", "-"), value, "--shrink-every", 1),
    )
    ratio = results["sparsity"]["nonzero_ratio"]
    if name == "nonzero_ratio":
        assert results["recipe"]["wish"] == {name: value}
        assert ratio == pytest.approx(value, rel=0.05)
    else:
        assert results["recipe"]["wish"]["budget"] == 0.9
        limit = results["history"]["target"][-1]
        assert 1.0 - results["errors_percent"]["pruned"] / 100.0 >= limit


@pytest.mark.integration
def test_the_seed_decides_the_result(tmp_path, monkeypatch):
    # Of a method with noise, but little to draw; no file plays a part.
    monkeypatch.setattr(common, "export_and_predict", lambda *arguments: None)
    losses = [
        run(
            *("--dataset", "digits", "--method", "log_normal", "--limit", 64),
            *("--pretrain-epochs", 0, "--epochs", 1, "--finetune-epochs", 0),
            *("--seed", seed, "--out", tmp_path / str(i)),
        )["history"]["loss"]
        for i, seed in enumerate((3, 3, 4))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != pytest.approx(losses[2], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", 0), "--epochs must be at least 1, not 0"),
        (("--batch-size", -1), "--batch-size must be at least 1"),
        (("--limit", 10**6), "--limit 1000000 is more than the 1437"),
        (("--holdout", 1437), "--holdout 1437 leaves none"),
        (("--model", "lenet-5"), "needs images of at least 16x16"),
        (("--method", "none", "--kl-weight", 0.5), "--kl-weight goes with"),
        (("--method", "vd", "--threshold", 1), "--threshold goes with"),
        (("--method", "none", "--macs", 0.5), "--macs goes with"),
        (("--method", "log_normal", "--more-bits", 1), "--more-bits goes with"),
        (("--macs", 0.5, "--kl-weight", 1), "finds by itself"),
        (("--n-active", -1), "`n_active` must be"),
        (("--budget", 1), "give --holdout"),
        (("--out", __file__), "cannot write to --out"),
        (("--data", "no_such_file.npz"), "cannot be read as an .npz file"),
        (("--data", __file__), "cannot be read as an .npz file"),
    ],
)
def test_impossible_wishes_end_with_one_line_and_code_2(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        run("--dataset", "digits", *arguments)
    assert exit_info.value.code == 2
    stderr = capsys.readouterr().err.strip().splitlines()
    assert stderr[-1].startswith("error: ")
    assert message in stderr[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "missing: y_test"),
        ({"x_train": np.zeros((60, 256))}, "x_train must have shape"),
        ({"x_train": np.zeros((0, 16, 16))}, "x_train must have shape"),
        ({"y_train": np.zeros(59, int)}, "y_train must have shape (60,)"),
        ({"y_train": np.zeros(60)}, "y_train must hold integers"),
        ({"y_train": np.full(60, -1)}, "y_train must hold integers"),
        ({"x_test": np.full((12, 16, 16), np.nan)}, "not finite"),
        ({"x_test": np.zeros((12, 8, 8))}, "differ in shape"),
    ],
)
def test_a_bad_file_is_refused(changes, message, npz, capsys):
    with pytest.raises(SystemExit) as exit_info:
        data.load("digits", npz(**changes))
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_integers_are_scaled_and_floats_are_not(npz):
    images = data.load("mnist", npz(x_test=np.full((12, 16, 16), 0.5)))
    assert images.x_train.max() == 1.0
    assert images.x_train.shape == (60, 16, 16, 1)
    np.testing.assert_array_equal(images.x_test, 0.5)


@pytest.mark.integration
def test_a_missing_data_set_is_one_line(capsys, monkeypatch, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")

    def no_network(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    monkeypatch.setattr("socket.create_connection", no_network)
    with pytest.raises(SystemExit) as exit_info:
        data.load("mnist", None)
    assert exit_info.value.code == 2
    line = capsys.readouterr().err.strip()
    assert "no route to host" in line
    assert "--dataset digits needs no download" in line
    assert len(line.splitlines()) == 1


@pytest.mark.integration
@pytest.mark.skipif(
    "TFDS_DATA_DIR" not in os.environ, reason="TFDS_DATA_DIR is not set"
)
def test_real_mnist_is_read():
    # Oracle: facts published with the data set.
    images = data.load("mnist", None)
    assert images.x_train.shape == (60000, 28, 28, 1)
    assert images.x_test.shape == (10000, 28, 28, 1)
    assert np.bincount(images.y_test).tolist() == [
        *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    ]
    assert images.x_train.mean() == pytest.approx(0.1307, abs=1e-4)


def test_summary_averages_seeds(tmp_path, capsys, monkeypatch):
    for seed, (error, ratio) in enumerate(((1.0, 80.0), (2.0, 100.0))):
        results = {
            "data": "mnist",
            "model": "lenet-300-100",
            "method": "sparse_vd",
            "seed": seed,
            "seconds": 60.0,
            "archive_bytes": 2000 + 1000 * seed,
            "recipe": {"epochs": 1},
            "errors_percent": {
                "trained": error,
                "pruned": error,
                "archived": error,
            },
            "frontier": [{"nonzero_ratio": ratio, "error_percent": error}] * 2,
            "sparsity": {
                "nonzero_ratio": ratio,
                "nonzero_ratio_with_biases": ratio,
                "n_active": [10 + 2 * seed],
                "rows": [{"memory_percent": 50.0}],
            },
        }
        (tmp_path / f"{seed}.json").write_text(json.dumps(results))
    files = [str(file) for file in tmp_path.glob("*.json")]
    picture = tmp_path / "frontier.png"
    monkeypatch.setattr("sys.argv", ["x", *files, "--out", str(picture)])
    summary.main()
    cells = capsys.readouterr().out.splitlines()[-1].split(" | ")
    # Oracle: mean and sample standard deviation by hand.
    assert "0, 1" in cells
    assert "1.50 ± 0.71" in cells
    assert "90.0 ± 14.1" in cells
    assert "11" in cells
    assert "2,500 ± 707, 1.50 ± 0.71" in cells
    assert picture.stat().st_size > 1000


def test_a_shorter_run_warms_up_in_the_same_share_of_it():
    arguments = mnist.parse_arguments(["--epochs", "30"])
    recipe = mnist.choose_recipe(arguments, 60000)
    usual = recipes.get("lenet-300-100", "sparse_vd", 60000)
    assert recipe.epochs == 30
    assert recipe.warmup_epochs == 30 * usual.warmup_epochs // usual.epochs
    # Oracle of the schedule: constant, then linear to 0, by hand.
    share = recipe.learning_rate_share(10)
    expected = [
        min(1, (10 - e) / (10 - 10 * recipe.constant_share)) for e in range(10)
    ]
    assert [share(epoch) for epoch in range(10)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("wish", "method", "shrinks"),
    [
        ({}, "log_normal", True),
        ({"parameters": 0.5}, "log_normal", True),
        ({"macs": 0.5}, "log_normal", True),
        ({"nonzero_ratio": 2.0}, "log_normal", False),
        ({"n_active": 0.5}, "log_normal", False),
        ({"budget": 0.1}, "log_normal", False),
        ({"n_active": 0.5}, "sparse_vd", True),
        ({"budget": 0.1}, "sparse_vd", False),
    ],
)
def test_gates_that_count_for_a_wish_are_not_removed(
    wish, method, shrinks, npz, monkeypatch
):
    # Oracle: what `KLTarget` says it counts.
    given = []
    monkeypatch.setattr(training, "fit", lambda *args: given.extend(args[-1]))
    training.train_variational(
        "mlp",
        data.load("digits", npz()),
        recipes.Recipe(shrink_every=2, wish=wish),
        method,
        None,
    )
    kinds = [type(callback).__name__ for callback in given]
    assert ("ShrinkWhileTraining" in kinds) == shrinks


def test_kl_schedule_of_a_recipe():
    # Oracle: by hand. Warm-up over 4 of 10 epochs, none in the last 20%.
    recipe = recipes.Recipe(epochs=10, warmup_epochs=4, free_share=0.2)
    shares = [recipe.kl_share(epoch) for epoch in range(10)]
    assert shares == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 0, 0]


def test_what_a_method_starts_from_is_changed_as_well():
    usual = recipes.get("mlp", "dependent_beta_bernoulli", 60000)
    recipe = usual.changed(epochs=3, pretrain_epochs=1)
    assert (recipe.epochs, recipe.first.epochs) == (3, 3)
    assert recipe.first.pretrain_epochs == 1
    assert usual.first.epochs > 3


@pytest.mark.integration
def test_gates_have_a_learning_rate_of_their_own(npz):
    """Oracle: Adam's first step is its rate, whatever the gradient."""
    images = data.load("digits", npz())
    recipe = recipes.Recipe(
        batch_size=60, gate_factor=10.0, weight_decay=0.0, warmup_epochs=0
    )
    model = models.build("mlp", "beta_bernoulli", (16, 16, 1), 3, recipe)
    for posterior in model.layers:
        if models.is_gate(posterior):
            posterior.kl_weight.assign(1 / 60)
    gate, dense = model.get_layer("gate_2"), model.layers[-1]
    before = [np.array(x) for x in (gate.a_unconstrained, dense.bias)]
    training.fit(model, images, 1, recipe, 1e-3)
    after = [np.array(x) for x in (gate.a_unconstrained, dense.bias)]
    steps = [np.abs(b - a) for b, a in zip(before, after, strict=True)]
    assert steps[0] == pytest.approx(1e-2, rel=1e-2)
    assert steps[1] == pytest.approx(1e-3, rel=1e-2)


def test_shifted_batches_are_shifted_images(npz):
    images = data.load("digits", npz())
    batches = data.ShiftedBatches(images, batch_size=25, shift=1, seed=0)
    assert len(batches) == 3
    seen, shifts = [], set()
    # Oracle: every image is one of nine shifted copies made by np.roll.
    padded = np.pad(images.x_train, [(0, 0), (1, 1), (1, 1), (0, 0)])
    for index in range(3):
        for image, label, source in zip(
            *batches[index], batches.order[25 * index :], strict=False
        ):
            assert label == images.y_train[source]
            matches = [
                (i, j)
                for i in (-1, 0, 1)
                for j in (-1, 0, 1)
                if (
                    np.roll(padded[source], (i, j), (0, 1))[1:-1, 1:-1] == image
                ).all()
            ]
            assert len(matches) == 1
            shifts.add(matches[0])
            seen.append(source)
    assert sorted(seen) == list(range(60))
    assert len(shifts) > 5
    order = batches.order.copy()
    batches.on_epoch_end()
    assert (order != batches.order).any()
