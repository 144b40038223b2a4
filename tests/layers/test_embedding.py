"""The layer contract for embeddings, and where their noise enters."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops
from scipy import stats

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
from tests.helpers.gradients import gradient

BACKEND = keras.backend.backend()


class EmbeddingCase(Case):
    """An embedding of four tokens, all of which occur in the inputs."""

    def inputs(self, batch_size=3, seed=1):
        ids = np.arange(batch_size * self.input_shape[0]) % 4
        ids = np.random.default_rng(seed).permutation(ids)
        return ids.reshape(batch_size, *self.input_shape).astype("int32")

    def linear(self):
        return self


def multiply(weights, scales):
    """One row and one column of the vectors after the other."""
    embeddings = np.array(weights["embeddings"])
    for token, value in enumerate(scales.get("vocabulary", ())):
        embeddings[token] *= value
    for entry, value in enumerate(scales.get("features", ())):
        embeddings[:, entry] *= value
    return {"embeddings": embeddings}


def make_case(name, core=False, groups=(), **arguments):
    return EmbeddingCase(
        name,
        layers.VDEmbedding,
        (5,),
        {"input_dim": 4, "output_dim": 3, **arguments},
        core,
        ("embeddings",),
        groups,
        multiply,
    )


PLAIN = make_case("plain", core=True)
GROUPS = ("vocabulary", "features")
CASES = [
    PLAIN,
    make_case("mask_zero", mask_zero=True),
    make_case("vocabulary", groups=("vocabulary",)),
    make_case("both", core=True, groups=("features", "vocabulary")),
]


@parametrize(CASES)
class TestContract(LayerContract):
    pass


@parametrize(case for case in CASES if case.core)
class TestMixedPrecision(MixedPrecisionContract):
    pass


@pytest.mark.core
@pytest.mark.parametrize("groups", [(), GROUPS])
def test_one_sample_for_the_whole_call(groups):
    """Identity: a token's vector is the same wherever it occurs in a call."""
    layer, ids = make_case("grouped", groups=groups).make(), PLAIN.inputs()
    first, second = (to_numpy(layer(ids, training=True)) for _ in range(2))
    for token in range(4):
        vectors = first[ids == token]
        assert len(vectors) > 1
        assert_equal(vectors, vectors[:1].repeat(len(vectors), axis=0))
        assert np.abs(vectors - second[ids == token]).min() > 1e-6
    assert_equal(layer(ids), layer(ids))


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize(
    "options", [{}, {"estimator": "weight"}, {"share": "unit"}]
)
def test_vectors_have_the_posterior_moments(options):
    """Oracle: theta and sigma2; the posterior's estimator plays no part."""
    keras.utils.set_random_seed(0)
    layer = PLAIN.make(posterior=posteriors.ARD(**options))
    ids = np.array([[2, 0, 3]])
    draws = np.stack(
        [to_numpy(layer(ids, training=True))[0] for _ in range(300)]
    )
    posterior = layer.embeddings_posterior
    assert_moments(
        draws.astype("float64"),
        to_numpy(posterior.theta)[ids[0]],
        np.exp(np.broadcast_to(to_numpy(posterior.log_sigma2), (4, 3)))[ids[0]],
    )


def big_layer(share, **options):
    """500 words, of which a batch has few, with noise of different sizes."""
    layer = layers.VDEmbedding(
        500,
        6,
        posterior=posteriors.SparseVD(share=share, threshold=None),
        kl_weight=0.1,
        **options,
    )
    layer.build((None, 5))
    posterior = layer.embeddings_posterior
    for variable in posterior._noise_parameters():
        values = np.random.default_rng(1).normal(-3.0, 0.5, variable.shape)
        variable.assign(values)
    return layer


def whole_table(layer):
    """A draw of the layer's path for batches of more words than it has."""
    posterior = layer.embeddings_posterior
    return to_numpy(posterior.draw(posterior.draw_groups()))


@pytest.mark.core
@pytest.mark.parametrize("share", ["unit", "input", "rank1", "layer"])
def test_noise_for_the_words_of_a_batch(share):
    """Identity: standardized deviations are N(0, 1), in both paths.

    A pruned weight has no noise and is 0.
    """
    keras.utils.set_random_seed(0)
    layer = big_layer(share)
    posterior = layer.embeddings_posterior
    keep_mask = np.random.default_rng(2).random((500, 6)) < 0.7
    posterior.keep_mask.assign(keep_mask)
    theta = to_numpy(posterior.theta)
    sigma2 = sum(to_numpy(x) for x in posterior._noise_parameters())
    stddev = np.exp(0.5 * np.broadcast_to(sigma2, theta.shape))
    ids = np.random.default_rng(3).choice(500, (80, 5), replace=False)
    found = to_numpy(layer(ids, training=True))
    assert np.all(found[~keep_mask[ids]] == 0.0)
    standardized = ((found - theta[ids]) / stddev[ids])[keep_mask[ids]]
    assert stats.kstest(standardized, "norm").pvalue > 1e-3
    table = whole_table(layer)
    assert np.all(table[~keep_mask] == 0.0)
    standardized = ((table - theta) / stddev)[keep_mask]
    assert stats.kstest(standardized, "norm").pvalue > 1e-3


@pytest.mark.core
@pytest.mark.parametrize("share", ["unit", "rank1"])
def test_gradients_through_the_noise_of_words(share):
    """Oracle: w = theta + sigma noise, with the noise that was drawn.

    The sum of c w has the gradients sum(c) by theta, and c (w - theta) / 2
    summed by log sigma2.
    """
    layer = big_layer(share)
    ids = np.array([[4, 9, 4], [499, 0, 9]])
    c = np.random.default_rng(4).normal(size=(2, 3, 6)).astype("float32")
    variables = layer.trainable_variables
    state = [to_numpy(x) for x in layer.non_trainable_variables]

    def output(*values):
        return layer.stateless_call(values, state, ids, training=True)[0]

    values = [to_numpy(x) for x in variables]
    deviation = to_numpy(output(*values)) - values[0][ids]
    theirs = np.zeros((2, 500, 6))
    for table, terms in zip(theirs, (c, c * deviation / 2), strict=True):
        np.add.at(table, ids, terms)
    ours = gradient(lambda *x: ops.multiply(c, output(*x)), *values)
    assert variables[0] is layer.embeddings
    assert_close(ours[0], theirs[0])
    for found in ours[1:]:
        axes = tuple(i for i in (0, 1) if found.shape[i] == 1)
        expected = theirs[1].sum(axis=axes, keepdims=True)
        assert_close(found, expected, 1e-5)


@pytest.mark.integration
@pytest.mark.core
def test_moments_with_groups():
    """Oracle: products of independent normals, in closed form.

    E(w z) = theta m and Var(w z) = (theta^2 + sigma2) (m^2 + v) - theta^2 m^2
    for group variables z of mean m and variance v. Each centered factor turns
    into a sum of odd moments, which vanish, and terms of kurtosis at most 9.
    The group variables are given so much noise that leaving it out is seen.
    """
    keras.utils.set_random_seed(0)
    layer = make_case("vocabulary", groups=("vocabulary",)).make(
        posterior="ard"
    )
    group, posterior = layer.vocabulary_group, layer.embeddings_posterior
    theta = to_numpy(posterior.theta)
    theta = theta + 0.5 * np.sign(theta)
    posterior.weight.assign(theta)
    group.weight.assign([0.5, -0.6, 0.4, 0.7])
    group.log_sigma2.assign([-1.5, -1.0, -2.0, -1.2])
    ids = np.arange(4)[None]
    draws = np.stack(
        [to_numpy(layer(ids, training=True))[0] for _ in range(400)]
    ).astype("float64")
    sigma2 = np.exp(to_numpy(posterior.log_sigma2))
    m = to_numpy(group.theta)[:, None]
    v = np.exp(to_numpy(group.log_sigma2))[:, None]
    variance = (theta**2 + sigma2) * (m**2 + v) - (theta * m) ** 2
    assert np.all(variance > 3.0 * sigma2 * m**2)
    assert_moments(draws, theta * m, variance, 9.0)
    # One draw for all entries of a token's vector, and one for each token.
    noise = draws - theta * m
    signs = noise * np.sign(theta)
    correlation = np.corrcoef(signs.reshape(400, -1), rowvar=False)
    within = correlation.reshape(4, 3, 4, 3)
    for token in range(4):
        assert within[token, :, token].min() > 0.3
        others = np.delete(within[token], token, axis=1)
        assert np.abs(others).max() < 5.0 * np.sqrt(9.0 / 400)


@pytest.mark.core
@pytest.mark.parametrize("training", [False, True])
def test_pruned_tokens_and_features_are_zero(training):
    """Oracle: by hand; exactly zero, all else is not."""
    layer = make_case("both", groups=GROUPS).make()
    layer.vocabulary_group.keep_mask.assign([True, True, False, True])
    layer.features_group.keep_mask.assign([True, False, True])
    vectors = to_numpy(layer(np.arange(4)[None], training=training))[0]
    kept = np.outer([1, 1, 0, 1], [1, 0, 1])
    assert_equal(vectors != 0.0, kept == 1)
    model = keras.Sequential([keras.Input((5,)), layer])
    report = keras_vd.sparsity_report(model)
    (row,) = report.rows
    assert (row.weights, row.nonzero) == (12, 6)
    assert (row.active_inputs, row.active_outputs) == (3, 2)
    assert [(x.groups, x.active) for x in report.groups] == [(4, 3), (3, 2)]
    assert (report.biases, report.others) == (0, 0)


@pytest.mark.core
@pytest.mark.parametrize("is_listed", [False, True])
def test_weights_argument(is_listed):
    """Oracle: the Keras layer with the same argument."""
    values = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    weights = [values] if is_listed else values
    layer = layers.VDEmbedding(4, 3, weights=weights, groups=GROUPS)
    plain = keras.layers.Embedding(4, 3, weights=weights)
    assert layer.built
    assert_equal(layer.embeddings, values)
    assert_close(layer(PLAIN.inputs()), plain(PLAIN.inputs()))
    revived = layers.VDEmbedding.from_config(layer.get_config())
    assert revived.get_config() == layer.get_config()


@pytest.mark.core
def test_mask_zero():
    """Oracle: the ids that are not 0; only where it was asked for."""
    ids = PLAIN.inputs()
    layer = make_case("mask", mask_zero=True).make()
    assert_equal(layer.compute_mask(ids), ids != 0)
    assert PLAIN.make().compute_mask(ids) is None
    model = keras.Sequential(
        [keras.Input((5,)), layer, keras.layers.GlobalAveragePooling1D()]
    )
    vectors = to_numpy(layer(ids))
    kept = (ids != 0)[..., None]
    expected = (vectors * kept).sum(1) / kept.sum(1)
    assert_close(model(ids), expected)


@pytest.mark.core
@pytest.mark.parametrize("training", [False, True])
def test_ids_out_of_range(training):
    """Oracle: the documentation, and Keras' own layer."""
    layer = PLAIN.make()
    ids = np.array([[1, 4]])
    for function in (
        lambda: layer(ids, training=training),
        lambda: keras.layers.Embedding(4, 3)(ids),
    ):
        if BACKEND == "jax":
            outputs = to_numpy(function())
            assert np.isnan(outputs[0, 1]).all()
            assert np.isfinite(outputs[0, 0]).all()
        else:
            with pytest.raises(Exception, match=r"range|not in \["):
                function()


@pytest.mark.core
@pytest.mark.parametrize("dtype", ["int64", "uint8", "float32"])
def test_types_of_ids(dtype):
    """Oracle: 32-bit ids."""
    layer, ids = PLAIN.make(), PLAIN.inputs()
    assert_equal(layer(ids.astype(dtype)), layer(ids))


@pytest.mark.core
def test_missing_kl_weight():
    layer = make_case("grouped", groups=("features",)).make(
        kl_weight=None, name="mine"
    )
    layer(PLAIN.inputs())
    with pytest.raises(ValueError, match=r"'mine.*KLAnnealing"):
        layer(PLAIN.inputs(), training=True)


@pytest.mark.core
@pytest.mark.parametrize(
    "groups", [("units",), ("input",), "features", ("features", "features"), 1]
)
def test_bad_groups(groups):
    """Errors name the argument, what is allowed and what came."""
    with pytest.raises(ValueError, match="Argument `groups`") as error:
        layers.VDEmbedding(4, 3, groups=groups)
    assert "['vocabulary', 'features']" in str(error.value)
    assert f"groups={groups!r}" in str(error.value)


@pytest.mark.core
def test_input_noise_is_refused():
    """Noise on inputs means nothing where the inputs are ids."""
    with pytest.raises(ValueError, match="`noise` must be 'weight'"):
        layers.VDEmbedding(4, 3, posterior=posteriors.VD(noise="input"))


def test_lora_and_quantization_are_refused():
    with pytest.raises(ValueError, match="to_deterministic"):
        layers.VDEmbedding(4, 3, lora_rank=2)
    for method, argument in (("enable_lora", 2), ("quantize", "int8")):
        with pytest.raises(ValueError, match="to_deterministic"):
            getattr(PLAIN.make(), method)(argument)


def test_every_argument_survives_the_config():
    check_every_argument(
        layers.VDEmbedding,
        {
            "input_dim": 4,
            "output_dim": 3,
            "embeddings_initializer": "ones",
            "embeddings_regularizer": "l2",
            "embeddings_constraint": "non_neg",
            "mask_zero": True,
            "groups": ("features", "vocabulary"),
        },
    )


@pytest.mark.integration
@pytest.mark.core
def test_training_with_fit():
    """Oracle: only rows that occur move by the data, all by the KL."""
    layer = PLAIN.make(kl_weight=0.0)
    model = keras.Sequential([keras.Input((2,)), layer])
    before = np.array(to_numpy(layer.embeddings))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    ids = np.array([[1, 3]])
    model.fit(ids, np.zeros((1, 2, 3)), epochs=2, verbose=0)
    moved = (to_numpy(layer.embeddings) != before).any(axis=1)
    assert moved.tolist() == [False, True, False, True]
    for posterior in keras_vd.variational_weights(model):
        posterior.kl_weight.assign(0.1)
    model.fit(ids, np.zeros((1, 2, 3)), epochs=1, verbose=0)
    assert (to_numpy(layer.embeddings) != before).all()
