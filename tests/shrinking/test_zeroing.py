"""Small weights that count as zero, and widths that are rounded up."""

import json
import math

import keras
import numpy as np
import pytest
from keras import layers

import keras_vd
from tests.helpers.arrays import random_inputs, to_float64
from tests.helpers.comparing import (
    assert_equal_predictions,
    change,
    checked,
    sequential,
    shrink,
    weights_of,
)

WEIGHTS = ("kernel", "bias")


def mostly_tiny(tiny=1e-30):
    """A network of which 13 of 40 units in each layer have other weights."""
    model = sequential(
        (4,),
        layers.Dense(40, "relu", name="first"),
        layers.BatchNormalization(name="norm"),
        layers.Dense(40, "relu", name="second"),
        layers.Dense(40, "relu", name="third"),
        layers.Dense(2, name="last"),
    )
    dead = np.s_[13:]
    for name in ("first", "second", "third"):
        change(model.get_layer(name).kernel, np.s_[:, dead], value=tiny)
        change(model.get_layer(name).bias, dead, value=-tiny)
    for name in ("second", "third", "last"):
        change(model.get_layer(name).kernel, dead, value=tiny)
    return model


@pytest.mark.core
def test_tiny_weights_count_as_zero():
    """Oracle: the model itself, and the sizes of layers by hand."""
    model = mostly_tiny()
    weights = np.concatenate([to_float64(x).ravel() for x in model.weights])
    assert np.mean(np.abs(weights) < 1e-8) > 0.82
    assert checked(model)[1].is_unchanged
    smaller, report = shrink(model, tolerance=1e-8)
    assert_equal_predictions(model, smaller, random_inputs(8, 4), rtol=1e-6)
    assert [row.kept_outputs for row in report.rows] == [13, 13, 13, 13, 2]
    assert report.parameters > 6 * report.kept_parameters
    assert report.difference < 1e-6


@pytest.mark.core
def test_the_report_tells_what_was_zeroed():
    """Oracle: by hand. Statistics stay, and so does what is larger."""
    model = mostly_tiny(2e-9)
    change(model.get_layer("norm").moving_mean, 0, value=1e-9)
    change(model.get_layer("last").kernel, 0, value=-1e-8)
    change(model.get_layer("last").bias, 0, value=1.1e-8)
    smaller, report = shrink(model, tolerance=1e-8)
    rows = {row.name: row for row in report.zeroed}
    assert set(rows) == {
        *(f"{x}/{y}" for x in ("first", "second", "third") for y in WEIGHTS),
        "last/kernel",
    }
    first, last = rows["first/kernel"], rows["last/kernel"]
    assert (first.entries, first.zeroed) == (160, 108)
    assert first.largest == pytest.approx(2e-9)
    assert (last.entries, last.zeroed) == (80, 56)
    assert last.largest == pytest.approx(1e-8)
    assert report.tolerance == 1e-8
    found = weights_of(smaller, "last")[1][0]
    assert found != 0.0
    count = sum(row.zeroed for row in report.zeroed)
    assert f"{count:,} weights of at most 1.0e-08" in str(report)
    written = json.loads(json.dumps(report.to_dict()))
    assert written["zeroed"][0]["name"] == "first/kernel"


def test_the_difference_is_that_of_predictions():
    """Oracle: a model that is one weight times its input, by hand."""
    model = sequential((2,), layers.Dense(1, use_bias=False))
    change(model.layers[0].kernel, 0, value=1.0)
    change(model.layers[0].kernel, 1, value=0.1)
    inputs = np.array([[3.0, 3.0]])
    smaller, report = shrink(model, tolerance=0.125)
    difference = to_float64(model(inputs)) - to_float64(smaller(inputs))
    assert difference == pytest.approx(0.3)
    # Of normal inputs the share is another one, but not of another size.
    assert 0.001 < report.difference < 1.0


@pytest.mark.core
def test_nothing_is_zeroed_without_a_tolerance():
    _, report = shrink(mostly_tiny())
    assert (report.tolerance, report.zeroed) == (0.0, ())
    assert report.difference is None
    _, report = shrink(mostly_tiny(0.0), tolerance=1e-8)
    assert (report.zeroed, report.difference) == ((), None)


def test_what_is_kept_whole_is_zeroed_as_well():
    model = sequential((3,), layers.LayerNormalization(), layers.Dense(2))
    change(model.layers[0].beta, 1, value=1e-9)
    smaller, report = shrink(model, tolerance=1e-8)
    assert len(report.zeroed) == 1
    assert to_float64(smaller.layers[0].beta)[1] == 0.0


@pytest.mark.core
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"tolerance": -1e-9}, ValueError),
        ({"tolerance": math.nan}, ValueError),
        ({"tolerance": math.inf}, ValueError),
        ({"tolerance": "small"}, TypeError),
        ({"tolerance": None}, TypeError),
        ({"tolerance": True}, TypeError),
        ({"round_to": 0}, ValueError),
        ({"round_to": -8}, ValueError),
        ({"round_to": 8.0}, TypeError),
        ({"round_to": None}, TypeError),
    ],
)
def test_bad_arguments(options, error):
    (name,) = options
    with pytest.raises(error, match=f"Argument `{name}` must be .* Received"):
        keras_vd.shrink(mostly_tiny(), **options)


@pytest.mark.core
@pytest.mark.parametrize(
    ("round_to", "kept"), [(1, 13), (2, 14), (8, 16), (16, 16), (64, 40)]
)
def test_widths_are_rounded_up(round_to, kept):
    """Oracle: by hand. The last layer has 2 outputs, and no more."""
    model = mostly_tiny(0.0)
    smaller, report = checked(model, round_to=round_to)
    assert [row.kept_outputs for row in report.rows] == [kept] * 4 + [2]
    first, norm, *_, last = report.rows
    assert first.filled_outputs == norm.filled_outputs == kept - 13
    assert last.filled_outputs == 0
    assert report.round_to == round_to
    assert smaller.get_layer("second").kernel.shape == (kept, kept)
    text = f"multiples of {round_to}"
    assert (text in " ".join(str(report).split())) == (round_to > 1)
    if 1 < round_to < 40:
        assert f"40 to {kept} ({kept - 13} dead)" in str(report)


def test_branches_are_rounded_up_one_by_one():
    """Oracle: by hand. A sum keeps one set, a concatenation two."""
    inputs = keras.Input((3,))
    a, b = (layers.Dense(12, name=name)(inputs) for name in "ab")
    summed = layers.Dense(2)(layers.Add()([a, b]))
    c, d = (
        layers.Dense(n, name=name)(inputs) for n, name in ((12, "c"), (3, "d"))
    )
    joined = layers.Dense(2)(layers.Concatenate()([c, d]))
    model = keras.Model(inputs, [summed, joined])
    generator = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(generator.normal(size=weight.shape))
    for name, live in (("a", 2), ("b", 3), ("c", 5)):
        change(model.get_layer(name).kernel, np.s_[:, live:])
    _, report = checked(model, round_to=4)
    rows = {row.name: row for row in report.rows}
    assert [rows[x].kept_outputs for x in "abcd"] == [4, 4, 8, 3]
    assert [rows[x].filled_outputs for x in "abcd"] == [1, 1, 3, 0]


def test_recurrent_units_are_rounded_up():
    model = sequential(
        (4, 3), layers.LSTM(8, return_sequences=True), layers.Dense(2)
    )
    change(model.layers[1].kernel, np.s_[:5])
    cell = model.layers[0].cell
    change(cell.recurrent_kernel, np.s_[:5])
    _, report = checked(model, round_to=4)
    assert report.rows[0].kept_outputs == 4
    assert report.rows[0].filled_outputs == 1
