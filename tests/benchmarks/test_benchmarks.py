"""`python -m benchmarks`: what it measures, prints and writes.

Oracles: ratios by hand, a layer's definition in NumPy, a table's own cells.
"""

import dataclasses
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import keras_vd
from benchmarks import __main__ as command
from benchmarks import (
    deep,
    families,
    inference,
    networks,
    records,
    running,
    steps,
    training,
)
from benchmarks.running import plan
from benchmarks.settings import QUICK
from benchmarks.tables import failures, make_tables
from benchmarks.timing import ratio, time_steps
from tests.helpers.arrays import to_float64
from tests.helpers.models import REPOSITORY

BACKEND = keras.backend.backend()
SMALL = networks.Case("mlp", "6-5-3, batch 4", "dense", 4, (6, 5, 3))
KINDS = [
    SMALL,
    networks.Case("lenet-5", "LeNet-5", "lenet", 2, (4, 6, 8, 3)),
    networks.Case("lstm", "LSTM", "LSTM", 2, (3, 4, 6)),
    networks.Case("embedding", "embedding", "embedding", 2, (3, 7, 4)),
]


def recorded(measure, case):
    found = []
    recorder = records.Recorder(
        found.append, backend=BACKEND, library="keras_vd"
    )
    measure(case, QUICK, recorder)
    return found


def result(*found):
    return {
        "machine": {"cpu": "a processor", "cores": 2},
        "versions": {"keras": "3"},
        "records": [
            {"backend": BACKEND, "library": "keras_vd", **r} for r in found
        ],
    }


def test_ratio_by_hand():
    # Block by block 2, 3, 4, 1 and 5; not the ratio of the medians, 2.
    times, reference = [2.0, 6.0, 12.0, 8.0, 5.0], [1.0, 2.0, 3.0, 8.0, 1.0]
    assert ratio(np.array(times), np.array(reference)) == [2.0, 3.0, 4.0]


def test_times_are_per_step():
    calls = []
    times = time_steps(
        {"a": calls.append, "b": lambda steps: None},
        dataclasses.replace(QUICK, block_seconds=0.0),
    )
    # Two calls to see how long one takes, and a block that does not count.
    assert calls == [1] * (3 + QUICK.blocks)
    assert {name: len(ms) for name, ms in times.items()} == {"a": 3, "b": 3}


@pytest.mark.core
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_two_products(kind):
    family = families.TwoProducts()
    layer = (
        family.dense(3, "relu")
        if kind == "dense"
        else family.conv(3, 1, "relu", "valid")
    )
    x = np.random.default_rng(1).normal(size=(2, 5, 5, 4)).astype("float32")
    outputs = to_float64(layer(x))
    first = to_float64(layer.kernel).reshape(4, 3)
    second = to_float64(layer.second).reshape(4, 3)
    expected = np.maximum(x @ first + x**2 @ second, 0.0)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    assert len(layer.trainable_weights) == 3


@pytest.mark.core
def test_run_makes_the_steps_of_fit():
    training_of = families.Plain().start(SMALL)
    model = training_of.model
    model.optimizer.learning_rate = 0.1
    start = model.get_weights()
    training_of.first_step()
    after_one = model.get_weights()
    assert any((a != b).any() for a, b in zip(start, after_one, strict=True))
    x, y = SMALL.arrays(SMALL.batch_size)
    before = model.evaluate(x, y, verbose=0)
    training_of.make_run()(20)
    if BACKEND != "jax":  # where the steps have a state of their own
        assert model.evaluate(x, y, verbose=0) < before


@pytest.mark.core
def test_prediction_runs(monkeypatch):
    """Oracle: without compilation, one call of a layer per prediction."""
    calls, call = [], keras.layers.Dense.call

    def count(layer, inputs, training=None):
        calls.append(len(inputs))
        return call(layer, inputs)

    monkeypatch.setattr(keras.layers.Dense, "call", count)
    model = families.Plain().start(SMALL, run_eagerly=True).model
    x, _ = SMALL.arrays(3)
    run = steps.prediction_run(model, x)
    calls.clear()
    run(2)
    assert calls == [3, 3] * len(model.layers[1:])


@pytest.mark.parametrize("case", KINDS, ids=lambda case: case.kind)
def test_shrunk_networks_lose_half_of_their_units(case):
    smaller = inference.shrunk(case)
    x, _ = case.arrays(2)
    assert np.isfinite(smaller.predict(x, verbose=0)).all()
    if case is SMALL:
        shapes = [w.shape for w in smaller.weights]
        assert shapes == [(6, 2), (2,), (2, 3), (3,)]


@pytest.mark.integration
@pytest.mark.core
def test_training_and_parts():
    found = recorded(training.measure_training, SMALL)
    by_table = {}
    for record in found:
        by_table.setdefault(record["table"], {})[record["variant"]] = record
    assert list(by_table["training"]) == families.family_names(SMALL, False)
    for record in by_table["training"].values():
        assert len(record["ms"]) == QUICK.blocks
        assert min(record["ms"]) > 0
        low, median, high = record["ratios"]["plain"]
        assert 0 < low <= median <= high
    parts = by_table["parts"]
    floor = ("two products", "normal draws", "KL and gradient")
    np.testing.assert_allclose(
        parts["their sum"]["ms"], np.sum([parts[k]["ms"] for k in floor], 0)
    )
    assert all(r["seconds"] > 0 for r in by_table["first step"].values())


@pytest.mark.integration
def test_a_failing_variant_is_a_row(monkeypatch):
    def fail():
        raise RuntimeError("no such luck\nand more")

    monkeypatch.setitem(families.FAMILIES, "keras_vd, exact KL", fail)
    found = recorded(training.measure_training, SMALL)
    (failed,) = failures({"records": found})
    assert failed["variant"] == "keras_vd, exact KL"
    assert failed["error"] == "RuntimeError: no such luck"
    trained = [r["variant"] for r in found if r["table"] == "training"]
    assert {"plain", "two products", "keras_vd"} < set(trained)
    *_, table = make_tables(result(*found))
    assert (table.title, table.rows[0][-1]) == ("Not measured", failed["error"])


def test_a_backend_that_is_not_there_is_a_row(monkeypatch):
    monkeypatch.setattr(running.importlib.util, "find_spec", lambda name: None)
    job = running.Job("peers", "torch", "blitz", ("mlp",))
    (row,) = running._run_job(job, QUICK)
    assert row["missing"] == "not installed (torch)"
    assert not failures({"records": [row]})
    (table,) = make_tables(result(row))
    assert table.rows[0][-1] == "not installed (torch)"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One network, a library that is not there and one that is broken."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for library, error in (
        ("tensorflow_probability", "ModuleNotFoundError('No', name='tfp')"),
        ("edward2", "OSError('it is broken')"),
    ):
        (folder / f"{library}.py").write_text(f"raise {error}")
    path = os.pathsep.join([str(folder), str(REPOSITORY)])
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--markdown"]
        + ["--only", "1024-64", "--backends", BACKEND]
        + ["--peers", "tfp", "edward2", "--output", folder],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    written = json.loads((folder / "benchmarks.json").read_text())
    return SimpleNamespace(
        code=finished.returncode,
        printed=finished.stdout,
        errors=finished.stderr,
        folder=folder,
        written=written,
    )


@pytest.mark.integration
@pytest.mark.skipif(
    BACKEND != "tensorflow", reason="The peers of this test need TensorFlow."
)
class TestCommand:
    @pytest.mark.integration
    def test_what_is_written(self, run):
        assert run.written["command"].endswith(
            "--only 1024-64 --backends "
            f"{BACKEND} --peers tfp edward2 --output {run.folder}"
        )
        assert run.written["machine"]["cores"] == os.cpu_count()
        assert run.written["versions"]["keras"] == keras.__version__
        settings = run.written["settings"]
        assert settings["threads"]["OMP_NUM_THREADS"] == "1"
        assert settings["allocator"]["MALLOC_MMAP_MAX_"] == "0"
        assert min(run.written["seconds"].values()) > 0
        assert (run.folder / "benchmarks.png").read_bytes()[1:4] == b"PNG"

    def test_rows(self, run):
        rows = [
            line for line in run.printed.splitlines() if "1024x1024" in line
        ]
        # Training, parts and seconds until the first step.
        assert len(rows) == 3, run.errors
        for ratios in rows[:2]:
            cells = ratios.split("|")[2:-1]
            assert len(cells) in (3, 5)
            assert all(float(cell.split()[0]) > 0 for cell in cells)

    def test_a_library_that_is_not_there(self, run):
        (row,) = [r for r in run.written["records"] if "missing" in r]
        assert row["missing"] == "not installed (tfp)"
        assert "| not installed (tfp) |" in run.printed

    def test_a_library_that_is_broken(self, run):
        assert [r["error"] for r in failures(run.written)] == [
            "OSError: it is broken"
        ]
        assert "| OSError: it is broken |" in run.printed
        assert run.code == 1

    def test_read(self, run, monkeypatch, capsys):
        file = str(run.folder / "benchmarks.json")
        arguments = ["benchmarks", "--markdown", "--read", file]
        monkeypatch.setattr(sys, "argv", arguments)
        assert command.main() == 1
        assert capsys.readouterr().out == run.printed


@pytest.mark.integration
def test_a_process_that_dies_is_a_row():
    job = running.Job("no such job", BACKEND, "keras_vd", ("mlp",))
    (failed,) = failures(running.run([job], QUICK, print))
    assert failed["error"] == "the process ended with 1"


def test_plan():
    jobs = plan(["jax"], ["blitz"], ["mlp", "4096"])
    assert [(j.job, j.backend, j.library, j.variant) for j in jobs] == [
        ("backend", "jax", "keras_vd", ""),
        ("peers", "torch", "blitz", ""),
        ("memory", "jax", "keras_vd", "plain"),
        ("memory", "jax", "keras_vd", "two products"),
        ("memory", "jax", "keras_vd", "keras_vd"),
        ("memory", "jax", "keras_vd", "keras_vd, share unit"),
        ("memory", "torch", "blitz", "blitz"),
    ]
    assert not [j for j in plan(["jax"], [], ["mlp"]) if j.job == "memory"]


def test_deep_networks_have_processes_of_their_own():
    jobs = plan(["jax", "torch"], ["tfp"], ["dense-31", "resnet50"])
    assert [(j.job, j.backend, j.cases) for j in jobs] == [
        ("deep", backend, (name,))
        for backend in ("jax", "torch")
        for name in ("dense-31", "resnet50")
    ]


def test_what_is_measured_by_default(monkeypatch, tmp_path):
    """All but what takes minutes, also on backends that are not there."""
    planned = []
    monkeypatch.setattr(running, "_run_job", lambda job, _: [])
    monkeypatch.setattr(
        command, "plan", lambda *asked: planned.append(asked) or []
    )
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--output", str(tmp_path)])
    assert command.main() == 0
    ((backends, peers, cases),) = planned
    assert backends == ["tensorflow", "jax", "torch"]
    assert peers == ["tfp", "edward2", "bayesian-torch", "blitz"]
    every = {*networks.CASES, *networks.DEEP}
    assert every - set(cases) == {"resnet50"}


def test_every_network_has_both_kinds_of_variances():
    for case in networks.CASES.values():
        names = families.family_names(case, False)
        assert {"plain", "keras_vd", "keras_vd, share unit"} <= set(names)


def test_optimizer_of_a_network():
    small = dataclasses.replace(
        networks.CASES["embedding-adam"], sizes=(3, 7, 4)
    )
    model = small.build(families.Plain())
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert isinstance(
        SMALL.build(families.Plain()).optimizer, keras.optimizers.SGD
    )


@pytest.mark.parametrize("name", running.MEMORY_VARIANTS["keras_vd"])
def test_kernels_may_start_at_zero(name):
    """As they do where memory is measured."""
    family = families.FAMILIES[name](kernel_initializer="zeros")
    model = SMALL.build(family)
    assert not to_float64(model.layers[-1].kernel).any()
    if "unit" in name:
        (_, posterior) = keras_vd.variational_weights(model)
        assert posterior.share == "unit"


def test_tables_of_peers():
    """Ratios of peers are to their own plain layer, others to that of Keras."""
    found = [
        {
            "table": "peers",
            "library": library,
            "case": "mlp",
            "variant": variant,
            "ratios": {
                "own plain layer": [1.0, own, 9.0],
                "plain Keras": [1.0, other, 9.0],
            },
        }
        for library in ("bayesian-torch", "blitz")
        for variant, own, other in (
            ("torch.nn", 1.0, 0.5),
            (f"{library} a", 4.0, 2.0),
            ("plain", 2.0, 1.0),
            ("keras_vd", 6.0, 3.0),
            ("keras_vd, share unit", 5.0, 2.5),
        )
    ]
    tables = make_tables(result(*found))
    for table, library in zip(tables, ("bayesian-torch", "blitz"), strict=True):
        assert library in table.title
        assert list(table.headers) == [
            "network",
            "torch.nn",
            f"{library} a",
            "keras_vd",
            "keras_vd, share unit",
        ]
        assert [cell.split()[0] for cell in table.rows[0][1:]] == [
            "0.50",
            "4.00",
            "3.00",
            "2.50",
        ]


@pytest.mark.integration
def test_first_step_of_deep_networks(monkeypatch):
    monkeypatch.setattr(deep, "_DENSE", SMALL)
    found = []
    recorder = records.Recorder(
        found.append, backend=BACKEND, library="keras_vd"
    )
    deep.measure_first_step("dense-31", recorder)
    assert not failures({"records": found})
    assert [r["variant"] for r in found] == list(deep.VARIANTS)
    assert all(r["seconds"] > 0 for r in found)
    for record, seconds in zip(found, (0.5, 2.0, 1.25), strict=True):
        record["seconds"] = seconds
    (table,) = make_tables(result(*found))
    assert [row[2:] for row in table.rows] == [
        ["plain", "0.5", "1.0"],
        ["keras_vd", "2.0", "4.0"],
        ["keras_vd, share unit", "1.2", "2.5"],
    ]


@pytest.mark.integration
def test_resnet_is_converted(monkeypatch):
    """Oracle: its 53 convolutions and its dense layer."""
    monkeypatch.setattr(deep, "_IMAGES", (1, 32, 32, 3))
    model = deep._start_resnet("keras_vd, share unit").model
    posteriors = keras_vd.variational_weights(model)
    assert len(posteriors) == 54
    assert {p.share for p in posteriors} == {"unit"}


@pytest.mark.integration
def test_memory_of_a_plain_layer():
    """The gradient at least; with what updates the kernel, about two."""
    (job,) = [
        job
        for job in plan([BACKEND], [], ["4096"])
        if (job.job, job.variant) == ("memory", "plain")
    ]
    found = running.run([job], QUICK, print)
    assert not failures(found)
    (row,) = [r for r in found["records"] if r["table"] == "memory"]
    assert 0.9 < row["matrices"] < 3
    (table,) = make_tables(found)
    assert table.rows[0][1:3] == ["plain", f"{row['matrices']:.1f}"]
