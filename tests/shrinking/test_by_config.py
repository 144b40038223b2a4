"""Layers that stay whole, rebuilt with smaller numbers in their configs."""

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
    fill,
    shrink,
)
from tests.helpers.whole import (
    Attention,
    Broadcasting,
    Feedforward,
    Positions,
    Stack,
    Whole,
    model_of,
    registered,
)

WIDTH, LENGTH = 6, 5
INPUTS = random_inputs(4, LENGTH, WIDTH)


def feedforward_size(units, is_gated=False, use_bias=True):
    """Parameters, counted by hand."""
    inner = (WIDTH + use_bias) * units
    return inner * (1 + is_gated) + (units + 1) * WIDTH


def attention_size(heads, groups, dims):
    projections = (WIDTH + 1) * (heads + 2 * groups) * dims
    return projections + (heads * dims + 1) * WIDTH


def filled(*stack):
    model = model_of(*stack, width=WIDTH)
    fill(model)
    return model


def stays(model, words, **options):
    """Nothing goes, and the report says why."""
    smaller, report = checked(model, INPUTS, **options)
    assert report.is_unchanged
    assert smaller.count_params() == model.count_params()
    name = model.layers[-1].name
    assert words in report.kept_whole[name]
    return report


@pytest.mark.core
def test_hidden_units_go(tmp_path):
    """Oracle: parameters by hand, predictions, and a file without keras_vd."""
    model = filled(Feedforward(8, name="block"))
    block = model.get_layer("block")
    change(block.out.kernel, np.s_[:3])
    change(block.inner.kernel, np.s_[:, 4])
    change(block.inner.bias, np.s_[4])
    smaller, report = checked(model, INPUTS)
    assert smaller.count_params() == feedforward_size(4)
    new = smaller.get_layer("block")
    assert type(new) is Feedforward
    assert new.get_config() == {**block.get_config(), "units": 4}
    (row,) = report.rows
    assert row.kept_parameters == feedforward_size(4)
    assert report.kept_whole == {}
    assert "keras_vd" not in smaller.to_json()
    smaller.save(tmp_path / "smaller.keras")
    loaded = keras.models.load_model(tmp_path / "smaller.keras")
    assert_equal_predictions(smaller, loaded, INPUTS, rtol=1e-7)


def test_other_numbers_of_examples_and_steps():
    """Oracle: the model before."""
    model = filled(Feedforward(8), Attention(2, 1, 3))
    change(model.layers[1].out.kernel, np.s_[2:])
    change(model.layers[2].out.kernel, np.s_[:3])
    smaller, _ = shrink(model)
    assert smaller.count_params() < model.count_params()
    for shape in ((1, 2, WIDTH), (3, 11, WIDTH)):
        assert_equal_predictions(model, smaller, random_inputs(*shape))


@pytest.mark.parametrize("dims", [2, 6])
@pytest.mark.parametrize("groups", [2, 4])
def test_heads_go_by_groups(groups, dims):
    """Oracle: parameters by hand."""
    model = filled(Attention(4, groups, dims))
    layer = model.layers[1]
    change(layer.out.kernel, np.s_[: 2 * dims])
    smaller, _ = checked(model, INPUTS)
    assert smaller.count_params() == attention_size(2, groups // 2, dims)


def test_a_group_with_a_live_head_stays():
    model = filled(Attention(4, 2, 3))
    change(model.layers[1].out.kernel, np.s_[:3])
    stays(model, "no number in its config")


def test_a_head_whose_values_are_zero_is_dead():
    model = filled(Attention(3, 3, 2))
    value = model.layers[1].projections["value"]
    change(value.kernel, np.s_[:, 2:4])
    change(value.bias, np.s_[2:4])
    smaller, _ = checked(model, INPUTS)
    assert smaller.count_params() == attention_size(2, 2, 2)


@pytest.mark.parametrize("name", ["query", "key"])
def test_a_head_without_queries_or_keys_is_alive(name):
    """It adds the mean of its values."""
    model = filled(Attention(3, 3, 2))
    projection = model.layers[1].projections[name]
    change(projection.kernel, np.s_[:, 2:4])
    change(projection.bias, np.s_[2:4])
    stays(model, "no number in its config")


def test_heads_whose_size_depends_on_their_number_stay():
    model = filled(Attention(3, 3))
    change(model.layers[1].out.kernel, np.s_[:2])
    stays(model, "no number in its config")


def test_one_unit_stays():
    model = filled(Feedforward(8))
    change(model.layers[1].out.kernel, np.s_[:])
    smaller, _ = checked(model, INPUTS)
    assert smaller.count_params() == feedforward_size(1)


@pytest.mark.parametrize("activation", ["sigmoid", "relu", "gelu"])
def test_constant_units_go_into_the_bias(activation):
    """Oracle: parameters and predictions; numbers other than 0."""
    model = filled(Feedforward(8, activation))
    inner = model.layers[1].inner
    change(inner.kernel, np.s_[:, :3])
    change(inner.bias, np.s_[:2], value=0.5)
    change(inner.bias, np.s_[2], value=-0.7)
    smaller, _ = checked(model, INPUTS)
    assert smaller.count_params() == feedforward_size(5)
    assert (
        to_float64(smaller.layers[1].out.bias)
        != to_float64(model.layers[1].out.bias)
    ).all()


def test_constant_units_of_which_some_stay():
    """All are constant, one stays: it must not be in the bias, too."""
    model = filled(Feedforward(8, "sigmoid"))
    change(model.layers[1].inner.kernel, np.s_[:])
    smaller, _ = checked(model, INPUTS)
    assert smaller.count_params() == feedforward_size(1)
    smaller, _ = checked(model, INPUTS, round_to=3)
    assert smaller.count_params() == feedforward_size(3)


def test_constants_that_inputs_can_change_stay():
    """A gate may be closed for all inputs that are tried, but not for all."""
    model = filled(Feedforward(8, gate="relu"))
    layer = model.layers[1]
    change(layer.inner.kernel, np.s_[:, :3])
    change(layer.inner.bias, np.s_[:3], value=0.5)
    change(layer.gate.bias, np.s_[:3], value=-30.0)
    stays(model, "no number in its config")


def test_constants_without_a_bias_stay():
    model = filled(Feedforward(8, "sigmoid", ends_with_bias=False))
    change(model.layers[1].inner.kernel, np.s_[:, :3])
    stays(model, "no number in its config")


def test_zero_at_the_gate():
    """A unit is dead if one of its factors is zero, but not at a sigmoid."""
    model = filled(Feedforward(8, gate="sigmoid", use_bias=False))
    change(model.layers[1].inner.kernel, np.s_[:, 1])
    change(model.layers[1].gate.kernel, np.s_[:, 5:])
    smaller, _ = checked(model, INPUTS)
    assert smaller.count_params() == feedforward_size(7, True, False)


@pytest.mark.integration
@pytest.mark.parametrize("seed", range(4))
def test_random_units(seed):
    """Oracle: the numbers of units that were made dead."""
    generator = np.random.default_rng(seed)
    units, gate = int(generator.integers(2, 20)), ("sigmoid", None)[seed % 2]
    model = filled(*(Feedforward(units, "gelu", gate, name=n) for n in "abc"))
    expected = 0
    for name in "abc":
        layer = model.get_layer(name)
        dead = generator.random(units) < generator.random()
        for unit in np.flatnonzero(dead):
            if generator.random() < 0.5:
                change(layer.out.kernel, np.s_[unit])
            else:
                change(layer.inner.kernel, np.s_[:, unit])
                # Without a gate such a unit is constant.
                value = 0.0 if gate else generator.normal()
                change(layer.inner.bias, np.s_[unit], value=value)
        expected += feedforward_size(max(1, units - dead.sum()), bool(gate))
    smaller, _ = checked(model, INPUTS)
    assert smaller.count_params() == expected


@pytest.mark.integration
@pytest.mark.parametrize("seed", range(2))
def test_random_heads(seed):
    generator = np.random.default_rng(seed)
    model = filled(*(Attention(8, 4, 3, name=name) for name in "ab"))
    expected = 0
    for name in "ab":
        dead = generator.random(4) < 0.5
        for group in np.flatnonzero(dead):
            rows = np.s_[6 * group : 6 * (group + 1)]
            change(model.get_layer(name).out.kernel, rows)
        groups = 4 - dead.sum()
        # Where all are dead a single head of size 1 is left.
        kept = (2 * groups, groups, 3) if groups else (1, 1, 1)
        expected += attention_size(*kept)
    smaller, _ = checked(model, INPUTS)
    assert smaller.count_params() == expected


def test_rows_of_tables_stay():
    """Rows that the inputs that are tried do not reach are not dead."""
    model = filled(Positions(50))
    for table in model.layers[1].tables:
        change(table.embeddings, np.s_[10:40])
    stays(model, "no number in its config")
    inputs = random_inputs(2, 50, WIDTH)
    assert_equal_predictions(model, shrink(model)[0], inputs)


def test_rows_of_tables_stay_where_they_hardly_count():
    """One of the dead rows is reached, and few differences would be seen."""
    model = filled(Positions(30))
    for table in model.layers[1].tables:
        table.embeddings.assign(1e-3 * to_float64(table.embeddings))
    change(model.layers[1].tables[0].embeddings, np.s_[6], np.s_[10:])
    stays(model, "no number in its config")


def test_outputs_stay_that_would_be_broadcast():
    """A kernel makes them, and none reads them: they are no hidden units."""
    model = model_of(Broadcasting(2), width=2)
    fill(model)
    last = model.layers[1].last
    change(last.kernel, np.s_[:])
    change(last.bias, np.s_[:])
    _, report = checked(model, random_inputs(4, LENGTH, 2))
    assert report.is_unchanged
    assert "no number in its config" in report.kept_whole[model.layers[1].name]


def test_numbers_of_units_are_rounded_up():
    model = filled(Feedforward(16), Attention(4, 4, 3))
    change(model.layers[1].out.kernel, np.s_[:9])
    change(model.layers[2].out.kernel, np.s_[:6])
    smaller, _ = checked(model, INPUTS, round_to=4)
    # 7 units and 2 heads are left. 3 of 4 heads do not make a multiple of 4.
    expected = feedforward_size(8) + attention_size(4, 4, 3)
    assert smaller.count_params() == expected


def test_small_weights_count_as_zero():
    model = filled(Feedforward(8))
    change(model.layers[1].out.kernel, np.s_[:3], value=1e-9)
    stays(model, "unknown: Feedforward")
    smaller, report = shrink(model, tolerance=1e-6)
    assert smaller.count_params() == feedforward_size(5)
    assert [row.zeroed for row in report.zeroed] == [3 * WIDTH]


def test_frozen_parts_stay_frozen():
    model = filled(Feedforward(8))
    change(model.layers[1].out.kernel, np.s_[:3])
    model.layers[1].inner.trainable = False
    smaller, _ = checked(model, INPUTS)
    (layer,) = smaller.layers[1:]
    assert not layer.inner.trainable
    assert layer.out.trainable
    assert layer.inner.kernel.shape[-1] == 5


def test_a_layer_that_is_used_twice():
    layer = Feedforward(8)
    model = filled(layer, layers.ReLU(), layer)
    change(layer.out.kernel, np.s_[:3])
    smaller, _ = checked(model, INPUTS)
    assert smaller.count_params() == feedforward_size(5)


@registered
class Sharing(Whole):
    """Calls a block that it is given."""

    def __init__(self, block, **kwargs):
        super().__init__(**kwargs)
        if isinstance(block, dict):
            block = keras.saving.deserialize_keras_object(block)
        self.block = block

    def get_config(self):
        block = keras.saving.serialize_keras_object(self.block)
        return {**super().get_config(), "block": block}

    def call(self, x):
        return self.ones(x) + self.block(x)


def test_shared_weights_stay():
    block = Feedforward(8)
    model = filled(block, Sharing(block))
    change(block.out.kernel, np.s_[:3])
    report = stays(model, "shares weights")
    assert "shares weights" in report.kept_whole[block.name]


@registered
class Forgetful(Feedforward):
    """Its config leaves an argument out, which has another value then."""

    def get_config(self):
        config = super().get_config()
        del config["activation"]
        return config


def test_a_config_that_leaves_something_out_is_noticed():
    model = filled(Forgetful(8, "tanh"))
    change(model.layers[1].out.kernel, np.s_[:3])
    _, report = shrink(model)
    (reason,) = report.kept_whole.values()
    assert "it computes something else" in reason


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64"])
def test_other_types(policy):
    """Oracle: weights are the kept ones, and the policy is as before."""
    model = filled(Feedforward(8, dtype=policy))
    block = model.layers[1]
    change(block.out.kernel, np.s_[:3])
    smaller, _ = shrink(model)
    (new,) = smaller.layers[1:]
    assert new.dtype_policy.name == policy
    np.testing.assert_array_equal(
        to_float64(new.inner.kernel), to_float64(block.inner.kernel)[:, 3:]
    )


def stack(units=8):
    model = Stack(units)
    fill(model)
    return model


def test_a_model_whose_layers_cannot_be_rebuilt(tmp_path):
    """Oracle: parameters by hand; the fewest dead units of a layer count."""
    model = stack()
    for name, dead in (("block_0", np.s_[5:]), ("block_1", np.s_[1:6])):
        change(model.get_layer(name).out.kernel, dead)
    smaller, report = checked(model, INPUTS)
    assert type(smaller) is Stack
    assert smaller.arguments == {**model.arguments, "units": 5}
    assert smaller.count_params() == 2 * feedforward_size(5)
    assert [x.kept_parameters for x in report.rows] == [feedforward_size(5)] * 2
    assert report.kept_whole == {}
    smaller.save(tmp_path / "smaller.keras")
    loaded = keras.models.load_model(tmp_path / "smaller.keras")
    assert_equal_predictions(smaller, loaded, INPUTS, rtol=1e-7)


def test_such_a_model_with_nothing_dead_comes_back_as_a_copy():
    model = stack()
    smaller, report = checked(model, INPUTS)
    assert type(smaller) is Stack
    assert report.is_unchanged
    assert "layer 'block_0' cannot be rebuilt" in report.kept_whole["block_0"]
    change(smaller.get_layer("block_0").out.kernel, np.s_[:])
    assert to_float64(model.get_layer("block_0").out.kernel).all()


def test_small_weights_of_such_a_model_count_as_zero():
    model = stack()
    for name in ("block_0", "block_1"):
        change(model.get_layer(name).out.kernel, np.s_[:3], value=1e-9)
    smaller, report = shrink(model, tolerance=1e-6)
    assert smaller.count_params() == 2 * feedforward_size(5)
    assert [row.zeroed for row in report.zeroed] == [3 * WIDTH] * 2


def test_the_model_itself_does_not_change():
    """`shrink` of the helper compares; this counts what else could change."""
    model = filled(Feedforward(8))
    change(model.layers[1].out.kernel, np.s_[:3])
    before = len(model.layers[1].weights), dict(model.layers[1].arguments)
    keras_vd.shrink(model, verbose=0)
    assert before == (len(model.layers[1].weights), model.layers[1].arguments)
