"""The experiments that convert trained models, shrunk to seconds."""

import functools
import json

import keras
import numpy as np
import pytest

from experiments.conversion import pretrained, stages, transformer
from experiments.imdb import data as imdb_data
from tests.helpers.deployment import measure_quickly

IS_TENSORFLOW = keras.backend.backend() == "tensorflow"
QUICK = ("--epochs", 1, "--variational-epochs", 2, "--finetune-epochs", 1)
STAGES = [
    "dense",
    "converted",
    "trained with noise",
    "pruned",
    "fine-tuned",
    "shrunk",
]


def run(experiment, *arguments):
    parsed = experiment.parse_arguments([str(x) for x in arguments])
    return experiment.run(parsed)


def check(results, out):
    """Oracles: the files, and what conversion and shrinking must not change."""
    written = json.loads((out / "results.json").read_text())
    assert written == json.loads(json.dumps(results))
    found = {row["stage"]: row for row in results["stages"]}
    assert list(found) == STAGES
    for one, other in (("dense", "converted"), ("fine-tuned", "shrunk")):
        accuracies = [found[x]["accuracy_percent"] for x in (one, other)]
        assert accuracies[0] == accuracies[1]
    assert results["shrinking_difference"] < 1e-5
    for file, stage in (
        ("dense.keras", "dense"),
        ("pruned.keras", "fine-tuned"),
        ("shrunk.keras", "shrunk"),
    ):
        model = keras.models.load_model(out / file)
        assert model.count_params() == found[stage]["parameters"]
        weights = map(np.asarray, model.get_weights())
        nonzero = sum(np.count_nonzero(x) for x in weights)
        assert nonzero == found[stage]["nonzero"]
    assert (out / "log_alpha.png").stat().st_size > 1000
    return found


@pytest.mark.integration
def test_a_cnn_goes_through_all_stages(tmp_path, capsys):
    results = run(
        pretrained,
        *("--dataset", "digits", "--limit", 64, "--out", tmp_path),
        *(*QUICK, "--no-deploy"),
    )
    check(results, tmp_path)
    assert "fine-tuned" in capsys.readouterr().out
    assert len(results["history"]["loss"]) == 2
    converted = [row for row in results["conversion"]["rows"]]
    assert [row["converted_to"] for row in converted] == [
        *("VDConv2D", None, "VDConv2D", None, "VDDense", None, "VDDense")
    ]


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")  # of the converters
def test_a_model_from_a_file_is_not_trained_first(
    tmp_path, capsys, monkeypatch
):
    """And the result is written in all formats, where a backend has them."""
    measure_quickly(monkeypatch)
    model = pretrained.build("course", (8, 8, 1), 10)
    model.save(tmp_path / "mine.keras")
    results = run(
        pretrained,
        *("--model", tmp_path / "mine.keras", "--out", tmp_path / "out"),
        *("--dataset", "digits", "--limit", 64, *QUICK),
        "--deploy" if IS_TENSORFLOW else "--no-deploy",
    )
    check(results, tmp_path / "out")
    dense = keras.models.load_model(tmp_path / "out" / "dense.keras")
    for one, other in zip(
        model.get_weights(), dense.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert results["model"] == "mine"
    if IS_TENSORFLOW:
        rows = results["deployment"]["rows"]
        assert {row["runtime"] for row in rows} == {
            *("Keras", "TensorFlow", "LiteRT", "ONNX Runtime")
        }
        assert not any(row["error"] for row in rows)
        assert "Deployment" in capsys.readouterr().out


def test_the_courses_network_has_its_parameters():
    # Oracle: the counts that the course prints for 32x32x3.
    model = pretrained.build("course", (32, 32, 3), 10)
    counts = [
        sum(int(np.prod(w.shape)) for w in layer.trainable_weights)
        for layer in model.layers
        if layer.weights
    ]
    assert counts == [448, 32, 2320, 10250]


@pytest.mark.integration
def test_a_transformer_goes_through_all_stages(tmp_path, monkeypatch):
    few = functools.partial(imdb_data.make_synthetic, texts=150)
    monkeypatch.setattr(imdb_data, "make_synthetic", few)
    results = run(
        transformer,
        *("--dataset", "synthetic", "--limit", 64, "--out", tmp_path),
        *("--width", 8, "--heads", 2, "--units", 6, "--blocks", 2),
        *(*QUICK, "--no-deploy"),
    )
    check(results, tmp_path)
    kinds = {
        row["name"]: row["converted_to"]
        for row in results["conversion"]["rows"]
    }
    assert kinds["words"] == kinds["positions"] == "VDEmbedding"
    assert (
        kinds["attention_0"] == kinds["attention_1"] == "VDMultiHeadAttention"
    )
    assert kinds["inner_1"] == kinds["outer_1"] == kinds["opinion"] == "VDDense"


@pytest.mark.integration
def test_the_network_of_the_guide(tmp_path, monkeypatch):
    """Its layers are those of a composite, which is written out."""
    few = functools.partial(imdb_data.make_synthetic, texts=150)
    monkeypatch.setattr(imdb_data, "make_synthetic", few)
    results = run(
        transformer,
        *("--dataset", "synthetic", "--limit", 64, "--out", tmp_path),
        *("--network", "guide", "--width", 8, "--units", 6),
        *(*QUICK, "--no-deploy", "--groups", "vocabulary"),
    )
    check(results, tmp_path)
    assert [x["groups"] for x in results["sparsity"]["groups"]] == [439, 25]
    kinds = {
        row["name"].rpartition("/")[2]: row["converted_to"]
        for row in results["conversion"]["rows"]
    }
    assert kinds["words"] == kinds["places"] == "VDEmbedding"
    assert kinds["attention"] == "VDMultiHeadAttention"
    assert kinds["inner"] == kinds["outer"] == kinds["hidden"] == "VDDense"


def test_padding_does_not_change_an_opinion():
    # Oracle: the same network built for shorter texts.
    sizes = {"width": 8, "heads": 2, "blocks": 1, "units": 6}
    long, short = (transformer.build(20, length, **sizes) for length in (6, 4))
    for one, other in zip(short.weights, long.weights, strict=True):
        one.assign(np.asarray(other)[: one.shape[0]])
    ids = np.array([[5, 7, 2, 9], [4, 4, 13, 19]], "int32")
    padded = np.pad(ids, [(0, 0), (0, 2)])
    np.testing.assert_allclose(
        np.asarray(keras.ops.convert_to_numpy(short(ids))),
        np.asarray(keras.ops.convert_to_numpy(long(padded))),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.integration
def test_a_size_instead_of_a_kl_weight(tmp_path):
    """Oracle: the wish, which `KLTarget` meets within 5%."""
    results = run(
        transformer,
        *("--dataset", "synthetic", "--limit", 256, "--out", tmp_path),
        *("--posterior", "sparse_vd", "--nonzero-ratio", 8, "--no-deploy"),
        *("--epochs", 1, "--variational-epochs", 4),
    )
    assert results["recipe"]["wish"] == {"nonzero_ratio": 8.0}
    assert results["sparsity"]["nonzero_ratio"] == pytest.approx(8, rel=0.05)


@pytest.mark.parametrize(
    ("experiment", "arguments", "message"),
    [
        (pretrained, ("--variational-epochs", 0), "must be at least 1"),
        (pretrained, ("--model", "no.keras"), "is no model for these"),
        (pretrained, ("--kl-weight", -1), "--kl-weight must be at"),
        (transformer, ("--variational-learning-rate", 0), "must be above 0"),
        (transformer, ("--nonzero-ratio", 0.5), "`nonzero_ratio` must be"),
        (transformer, ("--parameters", 3, "--kl-weight", 1), "finds by itself"),
        (transformer, ("--heads", 3), "a multiple of --heads"),
        (transformer, ("--threshold", 0), "goes with --posterior sparse_vd"),
        (transformer, ("--length", 0), "--length must be at least"),
    ],
)
def test_impossible_wishes_end_with_one_line_and_code_2(
    experiment, arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    dataset = "digits" if experiment is pretrained else "synthetic"
    with pytest.raises(SystemExit) as exit_info:
        run(experiment, "--dataset", dataset, *arguments)
    assert exit_info.value.code == 2
    stderr = capsys.readouterr().err.strip().splitlines()
    assert stderr[-1].startswith("error: ")
    assert message in stderr[-1]


def test_recipes_follow_the_command_line_and_the_size_of_the_data():
    parsed = pretrained.parse_arguments(["--kl-weight", "0.25"])
    recipe = pretrained.RECIPES["small"]
    large, small = (
        stages.choose_recipe(recipe, parsed, n) for n in (60_000, 1_000)
    )
    assert large.kl_weight == small.kl_weight == 0.25
    assert large.batch_size == recipe.batch_size > small.batch_size
    assert small.variational_epochs > recipe.variational_epochs
