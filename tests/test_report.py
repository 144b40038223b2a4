import json
import math

import keras
import numpy as np
import pytest

import keras_vd
from keras_vd import layers, posteriors
from tests.helpers.arrays import random_inputs, to_float64
from tests.helpers.models import (
    ard_kl,
    classification_data,
    compile_quickly,
    inference_weight,
    log_alpha,
    mlp,
    nested,
    plain_mlp,
    randomize,
    set_kept,
)

# Layer, shape of one example, axes of the inputs and of the outputs (after
# the batch) that run over units or channels.
LAST = ((-1,), (-1,))
LAYERS = {
    "dense": (layers.VDDense(4), (5,), *LAST),
    "einsum, two outputs": (
        layers.VDEinsumDense("abc,cde->abde", (None, 2, 3)),
        (2, 4),
        (-1,),
        (-2, -1),
    ),
    "einsum, two inputs": (
        layers.VDEinsumDense("abc,bcd->ad", (3,)),
        (2, 4),
        (-2, -1),
        (-1,),
    ),
    "conv": (layers.VDConv2D(4, 2), (4, 4, 3), *LAST),
    "grouped conv": (layers.VDConv1D(6, 2, groups=3), (5, 6), *LAST),
    "transposed conv": (layers.VDConv1DTranspose(4, 2), (5, 3), *LAST),
    "depthwise conv": (
        layers.VDDepthwiseConv1D(2, depth_multiplier=2),
        (5, 3),
        *LAST,
    ),
}


def lay_out_zeros(posterior, seed=0):
    """Random zeros, with a dead slice of each of the last two axes."""
    shape = posterior.weight.shape
    kept = np.random.default_rng(seed).uniform(size=shape) < 0.6
    kept[..., 0, :2] = False
    kept[..., -1, -1] = False
    kept[..., :, 0] = False
    set_kept(posterior, kept)
    return kept


def active_units(layer, shape, input_axes, output_axes):
    """Numbers of inputs and outputs that matter, by trying each input.

    A slow and independent definition: an input unit is active if changing it
    changes an output, an output unit if some input changes it.
    """
    example = random_inputs(1, *shape)
    units = [shape[axis] for axis in input_axes]
    changed = []
    for unit in np.ndindex(*units):
        other = example.copy()
        index = [slice(None)] * example.ndim
        for axis, position in zip(input_axes, unit, strict=True):
            index[axis] = position
        other[tuple(index)] += 3.0
        changed.append(other)
    outputs = to_float64(layer(np.concatenate([example, *changed])))
    differs = np.abs(outputs[1:] - outputs[:1]) > 1e-4
    by_input = differs.reshape(len(changed), -1).any(axis=1)
    kept = tuple(axis % differs.ndim for axis in output_axes)
    others = tuple(i for i in range(differs.ndim) if i not in kept)
    by_output = differs.any(axis=others)
    return by_input.size, by_input.sum(), by_output.size, by_output.sum()


@pytest.mark.core
@pytest.mark.parametrize("name", LAYERS)
def test_row_of_one_layer(name):
    # Oracles: NumPy on the zeros laid out, and trying every input.
    layer, shape, input_axes, output_axes = LAYERS[name]
    model = keras.Sequential([keras.Input(shape), layer])
    randomize(model)
    kept = lay_out_zeros(layer.kernel_posterior)
    report = keras_vd.sparsity_report(model)
    (row,) = report.rows
    assert row.shape == kept.shape
    assert row.weights == kept.size
    assert row.nonzero == kept.sum()
    found = row.inputs, row.active_inputs, row.outputs, row.active_outputs
    expected = active_units(layer, shape, input_axes, output_axes)
    assert found == expected
    assert 0 < row.active_inputs
    assert 0 < row.active_outputs < row.outputs
    memory = 100 * row.active_inputs / row.inputs
    assert row.memory_percent == pytest.approx(memory)
    assert report.n_active == [row.active_inputs]


def test_grouped_convolution_counts_channels_not_kernel_rows():
    # By hand: row 0 of the kernel is input channel 0, 2 or 4 by the group.
    layer = layers.VDConv1D(6, 1, groups=3)
    model = keras.Sequential([keras.Input((4, 6)), layer])
    randomize(model)
    kept = np.ones((1, 2, 6), "bool")
    kept[0, 0, 2:4] = False
    set_kept(layer.kernel_posterior, kept)
    (row,) = keras_vd.sparsity_report(model).rows
    assert (row.inputs, row.active_inputs) == (6, 5)


@pytest.mark.core
def test_rows_of_a_separable_convolution():
    # Oracle: loops over the two kernels, by their documented shapes.
    layer = layers.VDSeparableConv2D(5, 2, depth_multiplier=2, name="conv")
    model = keras.Sequential([keras.Input((4, 4, 3)), layer])
    randomize(model)
    depthwise = lay_out_zeros(layer.depthwise_kernel_posterior)
    pointwise = lay_out_zeros(layer.pointwise_kernel_posterior)
    rows = keras_vd.sparsity_report(model).rows
    assert [row.name for row in rows] == [
        "conv/depthwise_kernel",
        "conv/pointwise_kernel",
    ]
    assert [(row.shape, row.nonzero) for row in rows] == [
        ((2, 2, 3, 2), depthwise.sum()),
        ((1, 1, 6, 5), pointwise.sum()),
    ]
    assert [(row.inputs, row.active_inputs) for row in rows] == [
        (3, sum(depthwise[:, :, i].any() for i in range(3))),
        (6, sum(pointwise[:, :, i].any() for i in range(6))),
    ]
    assert [(row.outputs, row.active_outputs) for row in rows] == [
        (6, sum(depthwise[:, :, i, j].any() for i, j in np.ndindex(3, 2))),
        (5, sum(pointwise[..., j].any() for j in range(5))),
    ]


@pytest.fixture(scope="module")
def mixed():
    """A model of 8*4 + 4*3 = 44 variational weights, 4 + 3 biases.

    Others: 10*8 of Embedding, 4*4 of BatchNormalization, 3*2 + 2 of Dense.
    """
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Embedding(10, 8),
            layers.VDDense(4, name="first"),
            keras.layers.BatchNormalization(),
            layers.VDDense(3, name="second"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(2),
        ]
    )
    randomize(model)
    model.layers[1].bias.assign([1.0, 0.0, 1.0, 0.0])
    embeddings = to_float64(model.layers[0].embeddings)
    embeddings[3] = 0.0
    model.layers[0].embeddings.assign(embeddings)
    return model


@pytest.mark.core
def test_totals(mixed):
    # Oracle: counts by hand, and NumPy for the zeros of the kernels.
    report = keras_vd.sparsity_report(mixed)
    nonzero = sum(
        np.count_nonzero(inference_weight(posterior))
        for posterior in keras_vd.variational_weights(mixed)
    )
    assert 0 < nonzero < 44
    assert (report.weights, report.nonzero) == (44, nonzero)
    assert (report.biases, report.nonzero_biases) == (7, 5)
    assert (report.others, report.nonzero_others) == (104, 96)
    assert report.sparsity == pytest.approx(1 - nonzero / 44)
    assert report.nonzero_ratio == pytest.approx(44 / nonzero)
    with_biases = 51 / (nonzero + 5)
    assert report.nonzero_ratio_with_biases == pytest.approx(with_biases)
    of_model = 155 / (nonzero + 101)
    assert report.nonzero_ratio_of_model == pytest.approx(of_model)
    # Nothing is forgotten: all parameters but the posteriors' own.
    own = sum(
        math.prod(variable.shape)
        for posterior in keras_vd.variational_weights(mixed)
        for variable in posterior.weights
    )
    assert mixed.count_params() - own == 155


@pytest.mark.core
def test_to_dict_is_plain_and_says_the_same(mixed):
    report = keras_vd.sparsity_report(mixed)
    values = report.to_dict()
    assert json.loads(json.dumps(values)) == values
    rows = values.pop("rows")
    assert values.pop("groups") == values.pop("gates") == []
    assert values == {name: getattr(report, name) for name in values}
    assert [row["name"] for row in rows] == ["first", "second"]
    for row, attributes in zip(rows, report.rows, strict=True):
        assert row.pop("shape") == list(attributes.shape)
        assert row == {name: getattr(attributes, name) for name in row}
        assert {"nonzero", "active_inputs", "memory_percent"} <= set(row)
    # "Compression" by which measure? See the names of the ratios.
    assert "compression" not in json.dumps(report.to_dict()).lower()


def test_table(mixed):
    report = keras_vd.sparsity_report(mixed)
    lines = str(report).splitlines()
    first = next(line for line in lines if "first" in line)
    for cell in (
        "8x4",
        " 32 ",
        f" {report.rows[0].nonzero} ",
        f"{report.rows[0].active_inputs} of 8",
        f"{report.rows[0].active_outputs} of 4",
        f"{report.rows[0].memory_percent:.2f}",
    ):
        assert cell in first
    for label, total in (
        ("variational weights", 44),
        ("with their biases", 51),
        ("whole model", 155),
    ):
        assert any(label in line and f" {total} " in line for line in lines)
    assert "compression" not in str(report).lower()


def submodel(kind, name):
    if kind == "functional":
        inputs = keras.Input((4,))
        outputs = layers.VDDense(3, name="same")(inputs)
        return keras.Model(inputs, outputs, name=name)
    layer = layers.VDDense(3, name="same")
    if kind == "built before":
        layer.build((None, 4))
    return keras.Sequential([keras.Input((4,)), layer], name=name)


@pytest.mark.parametrize("kind", ["sequential", "functional", "built before"])
def test_layers_of_one_name_get_rows_of_different_names(kind):
    inputs = keras.Input((4,))
    branches = [submodel(kind, name)(inputs) for name in ("a", "b", "c")]
    model = keras.Model(inputs, keras.layers.Add()(branches))
    names = [row.name for row in keras_vd.sparsity_report(model).rows]
    assert len(set(names)) == 3
    assert all("same" in name for name in names)


@pytest.mark.core
def test_what_is_left_of_an_earlier_report():
    # Oracle: the same weights, counted by hand in both networks.
    large, small = (
        keras.Sequential(
            [
                keras.Input((6,)),
                layers.VDDense(units, "relu", name="a", groups=["output"]),
                layers.VDDense(3, name="b"),
            ]
        )
        for units in (5, 4)
    )
    for model in (large, small):
        randomize(model)
    whole = keras_vd.sparsity_report(large)
    lay_out_zeros(keras_vd.variational_weights(small)[0])
    now = keras_vd.sparsity_report(small)
    left = now.relative_to(whole)
    for row, before, after in zip(left.rows, whole.rows, now.rows, strict=True):
        assert (row.shape, row.weights) == (before.shape, before.weights)
        assert (row.inputs, row.outputs) == (before.inputs, before.outputs)
        assert row.nonzero == after.nonzero
        assert row.active_inputs == after.active_inputs
        assert row.active_outputs == after.active_outputs
    assert left.nonzero_ratio == whole.weights / now.nonzero
    active = now.groups[0].active
    assert [(x.groups, x.active) for x in left.groups] == [(5, active)]
    assert left.biases == whole.biases > now.biases
    assert left.nonzero_biases == now.nonzero_biases
    assert now.relative_to(now) == now


def test_reports_of_other_layers_cannot_be_compared():
    reports = [
        keras_vd.sparsity_report(
            keras.Sequential([keras.Input((3,)), layers.VDDense(2, name=name)])
        )
        for name in "ab"
    ]
    with pytest.raises(ValueError, match=r"`earlier`.*\['a'\].*\['b'\]"):
        reports[1].relative_to(reports[0])


def test_fully_pruned_model():
    model = mlp()
    randomize(model)
    report = keras_vd.prune(model, -20.0)
    assert report.nonzero == 0
    assert report.sparsity == 1.0
    assert report.nonzero_ratio == math.inf
    assert report.n_active == [0, 0]
    assert report.nonzero_ratio_with_biases == pytest.approx(53 / 8)
    assert "inf" in str(report)
    # With no kernel left the outputs are the softmax of the last bias.
    exponentials = np.exp(to_float64(model.layers[1].bias))
    expected = exponentials / exponentials.sum()
    for row in to_float64(model(random_inputs(4, 6))):
        np.testing.assert_allclose(row, expected, rtol=1e-5)


@pytest.mark.core
def test_kl_divergence():
    """Oracle: closed form of "ard" by NumPy; no weight or scale applies."""
    model = nested()
    randomize(model)
    expected = sum(map(ard_kl, keras_vd.variational_weights(model)))
    assert keras_vd.kl_divergence(model) == pytest.approx(expected, rel=1e-5)
    parts = [p.kl_divergence() for p in keras_vd.variational_weights(model)]
    assert keras_vd.kl_divergence(model) == pytest.approx(
        sum(float(to_float64(part)) for part in parts)
    )
    for weight in (0.0, 7.0):
        for posterior in keras_vd.variational_weights(model):
            posterior.kl_weight.assign(weight)
        found = keras_vd.kl_divergence(model)
        assert found == pytest.approx(expected, rel=1e-5)


def keep_masks(model):
    return [
        to_float64(posterior.keep_mask) > 0
        for posterior in keras_vd.variational_weights(model)
    ]


def below(model, thresholds):
    found = keras_vd.variational_weights(model)
    return [
        log_alpha(posterior) < threshold
        for posterior, threshold in zip(found, thresholds, strict=True)
    ]


def spread(model):
    """log_alpha evenly over every weight, and on none of the thresholds."""
    for posterior in keras_vd.variational_weights(model):
        size = math.prod(posterior.weight.shape)
        values = np.linspace(-5.3, 15.1, size).reshape(posterior.weight.shape)
        log_theta2 = np.log(np.square(to_float64(posterior.weight)) + 1e-8)
        posterior.log_sigma2.assign(values + log_theta2)


@pytest.mark.core
@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(None, (1.0, 5.0)), (2.0, (2.0, 2.0)), (-3, (-3, -3))],
)
def test_prune_thresholds(threshold, expected):
    # Oracle: log_alpha by NumPy against each weight's threshold.
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.VDDense(5, posterior=posteriors.SparseVD(threshold=1.0)),
            layers.VDDense(3, posterior=posteriors.ARD(threshold=5.0)),
        ]
    )
    spread(model)
    wanted = below(model, expected)
    report = keras_vd.prune(model, threshold)
    for found, kept in zip(keep_masks(model), wanted, strict=True):
        np.testing.assert_array_equal(found, kept)
    at_inference = below(model, np.minimum(expected, (1.0, 5.0)))
    assert report.nonzero == sum(kept.sum() for kept in at_inference)


@pytest.mark.core
def test_pruned_stays_pruned_with_a_laxer_threshold():
    model = mlp()
    spread(model)
    strict = below(model, (1.0, 1.0))
    keras_vd.prune(model, 1.0)
    report = keras_vd.prune(model, 10.0)
    for found, kept in zip(keep_masks(model), strict, strict=True):
        np.testing.assert_array_equal(found, kept)
    assert report.nonzero == sum(kept.sum() for kept in strict)


@pytest.mark.core
def test_pruned_stays_pruned_in_training():
    model = mlp()
    spread(model)
    keras_vd.prune(model, 1.0)
    masks = keep_masks(model)
    compile_quickly(model, optimizer=keras.optimizers.SGD(0.5))
    model.fit(
        *classification_data(8),
        epochs=2,
        callbacks=[keras_vd.callbacks.KLAnnealing(8, 0, 0, verbose=0)],
        verbose=0,
    )
    for posterior, kept in zip(
        keras_vd.variational_weights(model), masks, strict=True
    ):
        assert 0 < kept.sum() < kept.size
        assert not to_float64(posterior.mean())[~kept].any()
        assert not to_float64(posterior.sample())[~kept].any()
        # Training did go on: kept weights draw noise and move.
        assert to_float64(posterior.sample())[kept].all()
        # However certain such a weight looks by its variables.
        posterior.log_sigma2.assign(np.full(posterior.weight.shape, -30.0))
        assert not to_float64(posterior.mean())[~kept].any()


def test_a_posterior_without_a_threshold_is_pruned_by_an_explicit_one():
    model = mlp("gaussian")
    spread(model)
    assert keras_vd.prune(model).sparsity == 0.0
    wanted = below(model, (3.0, 3.0))
    report = keras_vd.prune(model, 3.0)
    assert report.nonzero == sum(kept.sum() for kept in wanted)
    assert keras_vd.prune(model).nonzero == report.nonzero


NEED_VARIATIONAL = (
    keras_vd.prune,
    keras_vd.kl_divergence,
    keras_vd.sparsity_report,
)


@pytest.mark.parametrize("function", NEED_VARIATIONAL)
def test_plain_models_are_refused(function):
    with pytest.raises(ValueError, match=r"variational layer.*plain model"):
        function(plain_mlp())


@pytest.mark.parametrize(
    "function", [*NEED_VARIATIONAL, keras_vd.variational_weights]
)
def test_bad_models_are_refused(function):
    with pytest.raises(TypeError, match=r"`model` must be.*model='mlp'"):
        function("mlp")
    unbuilt = keras.Sequential([layers.VDDense(3)], name="unbuilt")
    with pytest.raises(ValueError, match="'unbuilt' is not: call it on data"):
        function(unbuilt)


@pytest.mark.parametrize(
    ("threshold", "error"),
    [("3", TypeError), (True, TypeError), (math.nan, ValueError)]
    + [(20.5, ValueError), (-21, ValueError)],
)
def test_bad_thresholds_are_refused(threshold, error):
    with pytest.raises(error, match=r"`threshold` must be a finite number"):
        keras_vd.prune(mlp(), threshold)


@pytest.mark.core
def test_variational_weights_in_the_order_of_the_layers():
    model = nested()
    found = keras_vd.variational_weights(model)
    assert [posterior.label for posterior in found] == [
        "first",
        "steps",
        "last",
    ]
    assert found[0] is model.get_layer("first").kernel_posterior
    assert keras_vd.variational_weights(plain_mlp()) == []
    (only,) = keras_vd.variational_weights(model.get_layer("first"))
    assert only is found[0]


def test_variational_weights_inside_submodels_are_in_order_too():
    # Keras' own walk over nested layers reverses every inner level.
    def block(name, *inner):
        dense = [layers.VDDense(4, name=f"{name}{i}") for i in (1, 2)]
        return keras.Sequential([dense[0], *inner, dense[1]], name=name)

    model = keras.Sequential([keras.Input((4,)), block("a", block("b"))])
    labels = [p.label for p in keras_vd.variational_weights(model)]
    assert labels == ["a1", "b1", "b2", "a2"]


def test_a_shared_layer_counts_once():
    shared = layers.VDDense(3)
    inputs = keras.Input((3,))
    model = keras.Model(inputs, shared(shared(inputs)))
    report = keras_vd.sparsity_report(model)
    assert (report.weights, report.biases, report.others) == (9, 3, 0)
    assert len(keras_vd.variational_weights(model)) == 1
