"""The layer contract for embeddings of positions, and which of them are used.

These need the package `keras-hub`.
"""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

import keras_vd
from keras_vd import layers, posteriors
from tests.helpers.arrays import to_numpy
from tests.helpers.contract import (
    Case,
    LayerContract,
    MixedPrecisionContract,
    assert_close,
    assert_equal,
    assert_moments,
    check_every_argument,
    parametrize,
)
from tests.helpers.models import run_python

keras_hub = pytest.importorskip("keras_hub", exc_type=ImportError)

LENGTH, WIDTH = 6, 3
NAME = "position_embeddings"
GROUPS = ("positions", "features")


class PositionCase(Case):
    """An embedding of six positions, all of which the inputs have."""

    def linear(self):
        return self

    def trainable_paths(self, layer):
        # Its variable has a name of its own.
        paths = super().trainable_paths(layer)
        return ["embeddings" if x == NAME else x for x in paths]


def multiply(weights, scales):
    """One row and one column of the vectors after the other."""
    vectors = np.array(weights[NAME])
    for position, value in enumerate(scales.get("positions", ())):
        vectors[position] *= value
    for entry, value in enumerate(scales.get("features", ())):
        vectors[:, entry] *= value
    return {NAME: vectors}


def make_case(name, core=False, groups=(), **arguments):
    return PositionCase(
        name,
        layers.VDPositionEmbedding,
        (LENGTH, WIDTH),
        {"sequence_length": LENGTH, **arguments},
        core,
        (NAME,),
        groups,
        multiply,
    )


PLAIN = make_case("plain", core=True)
SHORT = np.zeros((2, 4, WIDTH), "float32")
CASES = [
    PLAIN,
    make_case("initializer", initializer="uniform"),
    make_case("both", core=True, groups=("features", "positions")),
]


@parametrize(CASES)
class TestContract(LayerContract):
    pass


@parametrize(case for case in CASES if case.core)
class TestMixedPrecision(MixedPrecisionContract):
    pass


@pytest.mark.core
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"start_index": 2},
        {"start_index": np.array(1, "int32")},
        {"positions": np.array([5, 0, 0, 2])},
        {"positions": np.array([[5, 0, 0, 2], [1, 1, 3, 4]])},
    ],
    ids=["first", "later", "tensor", "of_all", "of_each"],
)
@pytest.mark.parametrize("training", [False, True])
def test_which_positions_are_used(options, training):
    """Oracle: rows of one table, picked by hand.

    In training the table is that draw: a position has the same vector wherever
    it occurs.
    """
    layer = PLAIN.make()
    found = to_numpy(layer(SHORT, training=training, **options))
    start = int(options.get("start_index", 0))
    rows = options.get("positions", np.arange(start, start + 4))
    rows = np.broadcast_to(rows, (2, 4))
    table = to_numpy(layer.position_embeddings)
    if training:
        drawn = np.full_like(table, np.nan)
        drawn[rows] = found
        assert np.nanmin(np.abs(drawn - table)) > 1e-6
        table = drawn
        again = to_numpy(layer(SHORT, training=True, **options))
        assert np.abs(again - found).min() > 1e-6
    assert_equal(found, table[rows])


@pytest.mark.integration
@pytest.mark.core
def test_vectors_have_the_posterior_moments():
    """Oracle: theta and sigma2."""
    keras.utils.set_random_seed(0)
    layer = PLAIN.make(posterior="ard")
    draws = np.stack(
        [to_numpy(layer(SHORT, training=True))[0] for _ in range(300)]
    )
    posterior = layer.position_embeddings_posterior
    assert_moments(
        draws.astype("float64"),
        to_numpy(posterior.theta)[:4],
        np.exp(to_numpy(posterior.log_sigma2))[:4],
    )


@pytest.mark.core
@pytest.mark.parametrize("training", [False, True])
def test_pruned_positions_and_features_are_zero(training):
    """Oracle: by hand; exactly zero, all else is not."""
    layer = make_case("both", groups=GROUPS).make()
    kept = np.ones(LENGTH, bool)
    kept[2] = kept[5] = False
    layer.positions_group.keep_mask.assign(kept)
    layer.features_group.keep_mask.assign([True, False, True])
    vectors = to_numpy(layer(SHORT, training=training))[0]
    assert_equal(vectors != 0.0, np.outer(kept[:4], [1, 0, 1]) == 1)
    model = keras.Sequential([keras.Input((4, WIDTH)), layer])
    report = keras_vd.sparsity_report(model)
    (row,) = report.rows
    assert (row.weights, row.nonzero) == (18, 8)
    assert (row.active_inputs, row.active_outputs) == (4, 2)
    assert [(x.groups, x.active) for x in report.groups] == [(6, 4), (3, 2)]


@pytest.mark.core
def test_bad_arguments():
    with pytest.raises(ValueError, match="Argument `groups`") as error:
        layers.VDPositionEmbedding(LENGTH, groups=("vocabulary",))
    assert "['positions', 'features']" in str(error.value)
    with pytest.raises(ValueError, match="`noise` must be 'weight'"):
        layers.VDPositionEmbedding(
            LENGTH, posterior=posteriors.VD(noise="input")
        )


def test_every_argument_survives_the_config():
    check_every_argument(
        layers.VDPositionEmbedding,
        {
            "sequence_length": LENGTH,
            "initializer": "ones",
            "groups": ("features", "positions"),
        },
    )


@pytest.mark.core
def test_there_and_back():
    """Identity of predictions; the layers are KerasHub's again."""
    inputs = keras.Input((4, WIDTH))
    outputs = keras_hub.layers.PositionEmbedding(LENGTH)(inputs, start_index=1)
    model = keras.Model(inputs, keras.layers.Add()([inputs, outputs]))
    variational = keras_vd.to_variational(
        model, groups=("positions",), verbose=0
    )
    layer = variational.layers[1]
    assert type(layer) is layers.VDPositionEmbedding
    layer.positions_group.keep_mask.assign([1, 0, 1, 1, 0, 1])
    x = np.ones((3, 4, WIDTH))
    moved = to_numpy(variational(x)) != to_numpy(model(x))
    assert moved.any(axis=(0, 2)).tolist() == [True, False, False, True]
    plain = keras_vd.to_deterministic(variational)
    assert type(plain.layers[1]) is keras_hub.layers.PositionEmbedding
    assert_close(plain(x), variational(x))


@pytest.mark.core
def test_a_subclass_that_only_adapts_the_constructor():
    """Oracle: the same layer of KerasHub."""

    class Short(keras_hub.layers.PositionEmbedding):
        def __init__(self, sequence_length=LENGTH, **kwargs):
            super().__init__(sequence_length, **kwargs)

    class Doubled(keras_hub.layers.PositionEmbedding):
        def call(self, inputs, start_index=0, positions=None):
            return 2.0 * super().call(inputs, start_index, positions)

    inputs = keras.Input((4, WIDTH))
    outputs = Doubled(LENGTH)(Short()(inputs))
    model = keras.Model(inputs, outputs)
    variational, report = keras_vd.to_variational(
        model, verbose=0, return_report=True
    )
    assert [x.converted_to for x in report.rows] == [
        "VDPositionEmbedding",
        None,
    ]
    assert report.rows[1].reason == (
        "a subclass of PositionEmbedding that overrides `call`"
    )
    x = np.ones((3, 4, WIDTH))
    assert_equal(variational(x), model(x))


@pytest.mark.integration
def test_files_load_where_nobody_has_named_it(tmp_path):
    """Oracle: what the layer computes here; the package alone imports less."""
    model = PLAIN.model(PLAIN.make())
    model.save(tmp_path / "model.keras")
    code = """
import json, sys
import keras, numpy as np
import keras_vd
from keras_vd.layers import *
assert "keras_hub" not in sys.modules
assert "VDPositionEmbedding" in dir(keras_vd.layers)
model = keras.models.load_model(sys.argv[1])
kind = type(model.layers[-1])
assert kind is keras_vd.layers.VDPositionEmbedding
(weight,) = keras_vd.variational_weights(model)
print(json.dumps(keras.ops.convert_to_numpy(weight.theta).tolist()))
"""
    result = run_python(code, str(tmp_path / "model.keras"))
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    (weight,) = keras_vd.variational_weights(model)
    assert_equal(np.array(found, "float32"), weight.theta)


@pytest.mark.integration
def test_files_without_kerashub(tmp_path):
    """The error says what is missing, and how to get it."""
    PLAIN.model(PLAIN.make()).save(tmp_path / "model.keras")
    code = """
import sys
import keras
import keras_vd
sys.modules["keras_hub"] = None
for attempt in (
    lambda: keras_vd.layers.VDPositionEmbedding,
    lambda: keras.models.load_model(sys.argv[1]),
):
    try:
        attempt()
    except ImportError as error:
        print(error)
"""
    result = run_python(code, str(tmp_path / "model.keras"))
    assert result.stdout.count("pip install keras-vd[hub]") == 2, result.stderr
