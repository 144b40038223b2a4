"""Normalizations: what of their channels can go, and what need not be read."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_vd._backend.keras_internals import LayerScale
from tests.helpers.arrays import random_inputs, to_float64
from tests.helpers.comparing import (
    change,
    checked,
    fill,
    sequential,
    weights_of,
)


def around(layer, width=8, activation="relu"):
    model = sequential(
        (4, 3),
        layers.Dense(width, activation, name="first"),
        layer,
        layers.Dense(2, name="last"),
    )
    return model


def kept(report):
    return {row.name: row.kept_outputs for row in report.rows}


@pytest.mark.core
@pytest.mark.parametrize("dead", [1, 3, 7])
def test_channels_of_zeros_leave_rms_normalization(dead):
    """Oracle: the model; and by hand, the factor of gain and epsilon."""
    layer = layers.RMSNormalization(epsilon=0.1, name="norm")
    model = around(layer)
    change(model.layers[0].kernel, np.s_[:, :dead])
    change(model.layers[0].bias, np.s_[:dead], value=-1.0)
    smaller, report = checked(model)
    assert kept(report) == {"first": 8 - dead, "norm": 8 - dead, "last": 2}
    new, ratio = smaller.get_layer("norm"), 8 / (8 - dead)
    assert new.epsilon == pytest.approx(0.1 * ratio)
    expected = to_float64(layer.scale)[dead:] * np.sqrt(ratio)
    np.testing.assert_allclose(to_float64(new.scale), expected, rtol=1e-6)


def test_other_constants_stay_in_rms_normalization():
    """Oracle: by hand. They add to the mean, read or not."""
    model = around(layers.RMSNormalization(name="norm"))
    change(model.layers[0].kernel, np.s_[:, :2])
    change(model.layers[0].bias, np.s_[:2], value=1.0)
    change(model.get_layer("norm").scale, 2)
    change(model.get_layer("last").kernel, 3)
    assert kept(checked(model)[1])["first"] == 8


@pytest.mark.core
def test_whole_groups_leave_group_normalization():
    """Oracle: by hand. Of four groups, one is read by nobody.

    Another has no gain, so that nothing of it changes.
    """
    model = around(layers.GroupNormalization(4, epsilon=0.1, name="norm"))
    change(model.get_layer("last").kernel, np.s_[:2])
    change(model.get_layer("norm").gamma, np.s_[4:6])
    smaller, report = checked(model)
    assert kept(report) == {"first": 4, "norm": 4, "last": 2}
    assert smaller.get_layer("norm").groups == 2
    # One channel of a group that is needed is not enough.
    change(model.get_layer("norm").gamma, 2)
    assert kept(checked(model)[1])["first"] == 4


@pytest.mark.parametrize("groups", [1, 8, -1])
def test_groups_of_all_sizes(groups):
    model = around(layers.GroupNormalization(groups, epsilon=0.1, name="norm"))
    change(model.get_layer("last").kernel, np.s_[:5])
    assert kept(checked(model)[1])["first"] == (8 if groups == 1 else 3)


@pytest.mark.core
@pytest.mark.parametrize(("dead", "read"), [(3, 8), (4, 4), (6, 2)])
def test_dead_outputs_of_layer_normalization(dead, read):
    """Oracle: by hand. They are picked out where half of them are dead."""
    model = around(layers.LayerNormalization(name="norm", epsilon=0.1))
    change(model.get_layer("norm").gamma, np.s_[:dead])
    change(model.get_layer("norm").beta, np.s_[: dead - 1])
    smaller, report = checked(model)
    rows = {row.name: row for row in report.rows}
    assert rows["last"].kept_inputs == read
    assert rows["first"].kept_outputs == 8
    assert smaller.get_layer("norm").gamma.shape == (8,)
    # Asked for, they are picked out in any case, and never without.
    report = checked(model, gather_inputs=True)[1]
    assert report.rows[-1].kept_inputs == 8 - dead
    report = checked(model, gather_inputs=False)[1]
    assert report.rows[-1].kept_inputs == 8


NORMALIZATIONS = {
    "given": lambda: layers.Normalization(
        mean=[0.5, 1.0, -0.5, 0.25], variance=[1.0, 2.0, 3.0, 4.0]
    ),
    "one": lambda: layers.Normalization(mean=0.5, variance=2.0),
    "one, no axes": lambda: layers.Normalization(
        axis=None, mean=0.5, variance=2.0
    ),
    "two axes": lambda: layers.Normalization(
        axis=(1, 2),
        mean=np.tile([0.5, 1.0, -0.5, 0.25], (4, 1)).tolist(),
        variance=np.tile([1.0, 2.0, 3.0, 4.0], (4, 1)).tolist(),
    ),
    "inverse": lambda: layers.Normalization(
        mean=[0.5, 1.0, -0.5, 0.25],
        variance=[1.0, 2.0, 3.0, 4.0],
        invert=True,
    ),
    "scale": lambda: LayerScale(0.5, 4),
    "rescaling": lambda: layers.Rescaling([[0.5], [0.5], [0.5], [0.5]], 1.0),
    "rescaling, both": lambda: layers.Rescaling(
        np.tile([2.0, 0.5, 0.25, 3.0], (4, 1)).tolist(), [0.0, 1.0, 2.0, 3.0]
    ),
}


@pytest.mark.core
@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_numbers_of_dead_channels_go(name):
    """Oracle: by hand. Channel 0 is constant, channel 1 is not read."""
    model = around(NORMALIZATIONS[name](), 4)
    change(model.layers[0].kernel, np.s_[:, 0])
    change(model.get_layer("last").kernel, 1)
    assert kept(checked(model)[1])["first"] == 2


@pytest.mark.core
def test_a_normalization_of_data_gets_its_numbers_as_arguments():
    """Oracle: the statistics of the data, by hand."""
    layer = layers.Normalization(name="norm")
    data = np.random.default_rng(0).normal(2.0, 3.0, (50, 4, 5))
    layer.adapt(data.astype("float32"))
    model = keras.Sequential(
        [
            keras.Input((4, 3)),
            layers.Dense(5, name="first"),
            layer,
            layers.Dense(2, name="last"),
        ]
    )
    for one in (model.layers[0], model.layers[2]):
        fill(one)
    change(model.get_layer("last").kernel, np.s_[:2])
    smaller, report = checked(model)
    assert kept(report)["first"] == 3
    expected = data.mean(axis=(0, 1))[2:]
    found = smaller.get_layer("norm").input_mean
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert not weights_of(smaller, "norm")


def test_means_of_positions_are_no_constants():
    """Oracle: by hand. What is constant before them is not behind."""
    layer = layers.Normalization(axis=1, name="norm")
    layer.adapt(random_inputs(50, 4, 4) * np.arange(1.0, 5.0)[:, None])
    model = keras.Sequential(
        [
            keras.Input((4, 3)),
            layers.Dense(4, name="first"),
            layer,
            layers.Dense(2, name="last"),
        ]
    )
    for one in (model.layers[0], model.layers[2]):
        fill(one)
    change(model.layers[0].kernel, np.s_[:, 0])
    change(model.get_layer("last").kernel, 1)
    smaller, report = checked(model)
    assert kept(report)["first"] == 3
    assert smaller.get_layer("norm").adapt_mean.shape == (4,)


def test_numbers_of_positions_are_no_constants():
    """Oracle: by hand. Channel 0 of zeros stays zero under a scale alone."""
    numbers = [[1.0], [2.0], [3.0], [4.0]]
    for scale, offset, expected in (
        (numbers, 0.0, 3),
        (2.0, numbers, 4),
        (numbers, numbers, 4),
    ):
        model = around(layers.Rescaling(scale, offset), 4)
        change(model.layers[0].kernel, np.s_[:, 0])
        change(model.layers[0].bias, 0, value=-1.0)
        assert kept(checked(model)[1])["first"] == expected


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: layers.LayerNormalization(axis=1), "come first"),
        (lambda: layers.LayerNormalization(axis=[1, 2]), "several axes"),
        (lambda: layers.GroupNormalization(2, axis=1), "come first"),
        (lambda: layers.RMSNormalization(axis=1), "come first"),
    ],
)
def test_other_axes_are_kept_whole(layer, reason):
    model = around(layer(), 4)
    change(model.layers[0].kernel, np.s_[:, 0])
    _, report = checked(model)
    assert kept(report)["first"] == 4
    assert reason in report.kept_whole[model.layers[1].name]
