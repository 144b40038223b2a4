"""The comparison of methods, shrunk to seconds."""

import dataclasses
import json
import subprocess

import keras
import numpy as np
import pytest

from experiments import compare_methods, compare_tables, pruning_baselines
from experiments.mnist import data as mnist_data
from experiments.mnist import models as mnist_models
from experiments.mnist import recipes as mnist_recipes
from tests.helpers.arrays import to_float64

IS_TENSORFLOW = keras.backend.backend() == "tensorflow"


@pytest.fixture(scope="module")
def images():
    return mnist_data.load("digits", None).limited(200)


def small_network():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(12, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    keras.utils.set_random_seed(1)
    for kernel in pruning_baselines.kernels(model):
        kernel.assign(keras.random.normal(kernel.shape) * 0.3)
    return model


@pytest.mark.integration
def test_one_command_makes_the_table(tmp_path, capsys, monkeypatch):
    start = subprocess.run
    quick = ("--blocks", "2", "--seconds", "0.001")
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, **options: start([*command, *quick], **options),
    )
    methods = ["none", "sparse_vd", "log_normal", "magnitude"]
    compare_methods.main(
        compare_methods.parse_arguments(
            [
                *("--dataset", "digits", "--limit", "64", "--epochs", "1"),
                *("--out", str(tmp_path), "--methods", *methods),
            ]
        )
    )
    printed = capsys.readouterr().out
    table = (tmp_path / "table.md").read_text()
    assert table in printed
    lines = table.splitlines()[2:]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == methods
    assert (tmp_path / "accuracy_against_memory.png").stat().st_size > 1000
    runs = {
        method: json.loads(
            (tmp_path / "seed0" / method / "results.json").read_text()
        )
        for method in methods
    }
    # Oracle: what is on disk, counted again.
    for method, run in runs.items():
        folder = tmp_path / "seed0" / method
        pruned = keras.models.load_model(folder / "pruned.keras")
        shrunk = keras.models.load_model(folder / "shrunk.keras")
        kernels = [np.array(x) for x in pruning_baselines.kernels(pruned)]
        rows = [int((kernel != 0).any(axis=1).sum()) for kernel in kernels]
        assert run["n_active"] == rows
        assert run["units"] == [64, 500, 300]
        assert run["memory_percent"] == pytest.approx(
            [100 * a / n for a, n in zip(rows, (64, 500, 300), strict=True)]
        )
        assert run["shrunk"]["kept_parameters"] == shrunk.count_params()
        assert run["shrinking_difference"] < 1e-5
    # As many weights as sparse_vd keeps, counted before shrinking.
    kept = [
        compare_methods.count_nonzero(
            keras.models.load_model(tmp_path / "seed0" / name / "pruned.keras")
        )
        for name in ("sparse_vd", "magnitude")
    ]
    assert kept[0] == kept[1]
    if IS_TENSORFLOW:
        assert [x["speedup"] for x in runs["none"]["latency"]] == [1.0, 1.0]
        assert [x["batch"] for x in runs["magnitude"]["latency"]] == [1, 64]


@pytest.mark.integration
def test_sensitivity_is_the_mean_of_weight_times_gradient(images):
    """Oracle: derivatives by finite differences of the loss."""
    images = images.limited(100)  # one image per batch
    model = small_network()
    scores = pruning_baselines.sensitivity(model, images)
    kernel = pruning_baselines.kernels(model)[1]
    values = np.array(kernel)
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction=None
    )

    def losses(new):
        kernel.assign(new)
        return to_float64(loss(images.y_train, model(images.x_train)))

    step = 1e-2
    for index in ((0, 3), (5, 7), (11, 0)):
        moved = np.zeros_like(values)
        moved[index] = step
        slopes = (losses(values + moved) - losses(values - moved)) / (2 * step)
        expected = np.mean(np.abs(values[index] * slopes))
        assert scores[1][index] == pytest.approx(expected, rel=2e-2)


@pytest.mark.integration
@pytest.mark.parametrize("method", pruning_baselines.METHODS)
def test_gradual_pruning_ends_with_as_many_weights_as_told(method, images):
    recipe = mnist_recipes.Recipe(epochs=2, prune_steps=2, batch_size=100)
    model = small_network()
    before = [np.array(x) for x in model.get_weights()]
    prune = pruning_baselines.METHODS[method]
    pruned = prune(model, images, recipe, kept=100)
    assert compare_methods.count_nonzero(pruned) == 100
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.integration
def test_magnitude_keeps_the_largest(images):
    """Oracle: sorting. A rate of 0 leaves the weights as they are."""
    recipe = mnist_recipes.Recipe(
        epochs=1, prune_steps=1, finetune_learning_rate=0.0
    )
    model = small_network()
    pruned = pruning_baselines.by_magnitude(model, images, recipe, 50)
    old, new = (
        np.concatenate([np.array(x).ravel() for x in kernels])
        for kernels in map(pruning_baselines.kernels, (model, pruned))
    )
    largest = np.sort(np.abs(old))[-50:]
    np.testing.assert_array_equal(np.sort(np.abs(new[new != 0])), largest)


def test_dependent_gates_count_what_is_on_for_an_image(images):
    """Oracle: gates whose normalization says +5 or -5, whatever the input."""
    recipe = mnist_recipes.Recipe()
    model = mnist_models.build(
        "mlp", "dependent_beta_bernoulli", (8, 8, 1), 10, recipe
    )
    gates = [layer for layer in model.layers if mnist_models.is_gate(layer)]
    for gate in gates:
        beta = np.where(np.arange(gate.units) % 4 == 0, 5.0, -5.0)
        gate.normalization.beta.assign(beta)
        gate.normalization.gamma.assign(np.zeros(gate.units))
    figures = compare_methods.gate_figures(model, images)
    assert figures["n_active"] == [64, 500, 300]
    assert figures["active_per_example"] == [16.0, 125.0, 75.0]


def test_what_training_has_removed_counts_as_removed(images, tmp_path):
    """Oracle: a network that lost all but 12 and 4 units, counted by hand."""
    arguments = compare_methods.parse_arguments(["--dataset", "digits"])
    comparison = compare_methods.Comparison(arguments, images, seed=0)
    keras.utils.set_random_seed(1)
    final = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(12, activation="relu"),
            keras.layers.Dense(4, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    results = {}
    compare_methods.measure(final, comparison, results, tmp_path)
    assert results["units"] == [64, 500, 300]
    assert results["n_active"] == [64, 12, 4]
    assert results["weights"] == 64 * 500 + 500 * 300 + 300 * 10
    left = 64 * 12 + 12 * 4 + 4 * 10
    assert results["nonzero_ratio"] == results["weights"] / left


@pytest.mark.integration
def test_lenet_5_has_a_row_for_each_method(images, tmp_path, monkeypatch):
    """Oracle: sizes of LeNet-5's kernels for images of 16x16, by hand."""
    double = np.ones((1, 2, 2, 1))
    large = dataclasses.replace(
        images,
        x_train=np.kron(images.x_train, double).astype("float32"),
        x_test=np.kron(images.x_test, double).astype("float32"),
    )
    monkeypatch.setattr(mnist_data, "load", lambda *_: large)
    methods = [
        name
        for network, name in mnist_recipes.RECIPES
        if network == "lenet-5" and name != "none"
    ]
    options = ["--network", "lenet-5", "--limit", "32", "--epochs", "1"]
    compare_methods.main(
        compare_methods.parse_arguments(
            [*options, "--out", str(tmp_path), "--methods", *methods]
        )
    )
    for method in methods:
        file = tmp_path / "seed0" / method / "results.json"
        run = json.loads(file.read_text())
        assert run["units"] == [1, 20, 50, 500]
        assert run["weights"] == 25 * (20 + 20 * 50) + 50 * 500 + 500 * 10


def test_table_averages_seeds():
    run = {
        "method": "log_normal",
        "accuracy": 98.0,
        "n_active": [100, 50, 20],
        "memory_percent": [12.5, 10.0, 50 / 3],
        "nonzero_ratio": 10.0,
        "shrunk": {"kept_parameters": 1000, "kept_macs": 900},
        "latency": [{"speedup": 2.0}, {"speedup": 4.0}],
        "seconds": 10.0,
    }
    other = {**run, "accuracy": 99.0, "n_active": [110, 50, 20]}
    runs = [{**run, "seed": 0}, {**other, "seed": 1}]
    cells = compare_tables.row(runs)
    # Oracle: mean and sample standard deviation by hand.
    assert cells[:5] == [
        *("log_normal", "0, 1", "98.50 ± 0.71", "105-50-20"),
        "12.50 / 10.00 / 16.67",
    ]
    assert cells[8:10] == ["2.00 ± 0.00", "4.00 ± 0.00"]
    # Oracle: Keras' own count for 784-500-300-10.
    assert compare_tables.dense_parameters((784, 500, 300)) == 545_810


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "none", "magnitude"), "add sparse_vd"),
        (("--seeds", "-1"), "--seeds must be at least 0"),
        (("--epochs", "0"), "--epochs must be at least 1"),
        (("--read", "no_such_file.json"), "is no results.json"),
    ],
)
def test_impossible_wishes_end_with_one_line(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        compare_methods.main(compare_methods.parse_arguments(list(arguments)))
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
