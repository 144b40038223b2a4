"""Compiled kernels compute what the operations one by one compute.

Oracle of all tests: the same function without compilation.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from keras_vd import layers, posteriors, priors
from keras_vd._backend import fusing
from tests.helpers.arrays import to_numpy

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="other backends compile whole steps, or nothing",
)

NEVER = 2**60


@keras.saving.register_keras_serializable(package="tests")
class Cauchy(priors.Prior):
    """A user's own: log(1 + theta^2 + sigma2), with autodiff's gradient."""

    def kl_divergence(self, theta, log_sigma2, log_alpha):
        return ops.log1p(ops.square(theta) + ops.exp(log_sigma2))


SPARSE = posteriors.SparseVD
POSTERIORS = {
    **{
        form: SPARSE(prior=priors.LogUniform(form))
        for form in ("exact", "molchanov", "kingma", "lower_bound")
    },
    "user's prior": SPARSE(prior=Cauchy()),
    "unit": SPARSE(share="unit"),
    "layer": SPARSE(share="layer"),
    "draw": SPARSE(estimator="weight"),
    "bfloat16": SPARSE(variance_dtype="bfloat16"),
    "ard": "ard",
    "gaussian": "gaussian",
    "vd": "vd",
    "vd, units": posteriors.VD(share="unit"),
    "vd, inputs": posteriors.VD(noise="input"),
    "fixed": posteriors.VD(learn_alpha=False, alpha_init=0.5),
}
LAYERS = {
    "groups": lambda: layers.VDDense(
        5, groups=("input", "output"), kl_weight=0.01
    ),
    "mixed_bfloat16": lambda: layers.VDDense(
        5, kl_weight=0.01, dtype="mixed_bfloat16"
    ),
    "mixed_float16": lambda: layers.VDDense(
        5, kl_weight=0.01, dtype="mixed_float16"
    ),
    "conv": lambda: layers.VDConv1D(3, 2, kl_weight=0.01),
    "lstm": lambda: layers.VDLSTM(3, groups=("gates",), kl_weight=0.01),
    "sequence": lambda: layers.VDGRU(
        3, weight_samples="sequence", kl_weight=0.01
    ),
    "embedding": lambda: layers.VDEmbedding(
        7, 3, groups=("vocabulary",), kl_weight=0.01
    ),
}


def two_steps(make):
    """Loss, variables and predictions after two steps and a pruning."""
    keras.utils.set_random_seed(0)
    layer = make()
    is_table = isinstance(layer, keras.layers.Embedding)
    is_dense = isinstance(layer, keras.layers.Dense)
    shape = (4,) if is_table or is_dense else (4, 6)
    model = keras.Sequential(
        [keras.Input(shape, dtype="int32" if is_table else "float32"), layer]
    )
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 7, (8, *shape))
    if not is_table:
        inputs = rng.standard_normal((8, *shape), "float32")
    for variable in model.trainable_variables:
        if "log_" in variable.path:
            values = rng.uniform(-6.0, 1.0, variable.shape)
            variable.assign(np.minimum(values, variable.numpy() + 7.0))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    targets = rng.standard_normal((8, *model.output_shape[1:]))
    losses = [model.train_on_batch(inputs, targets)]
    for posterior in posteriors_of(layer):
        posterior.prune(2.0)
    losses.append(model.train_on_batch(inputs, targets))
    predictions = model.predict(inputs, verbose=0)
    return losses, list(map(to_numpy, model.variables)), predictions


def posteriors_of(layer):
    return [
        part
        for part in layer._flatten_layers()
        if isinstance(part, posteriors.WeightPosterior)
    ]


def compare(make, monkeypatch, tolerance):
    kernels = []
    kernel = fusing._kernel
    monkeypatch.setattr(
        fusing, "_kernel", lambda *x: kernels.append(x) or kernel(*x)
    )
    monkeypatch.setattr(fusing, "MIN_SIZE", NEVER)
    expected = two_steps(make)
    assert not kernels
    monkeypatch.setattr(fusing, "MIN_SIZE", 1)
    compiled = two_steps(make)
    assert kernels
    for ours, theirs in zip(compiled, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, tolerance, tolerance)


class Doubled(posteriors.SparseVD):
    """One whose config does not tell all."""

    factor = 1.0

    def _log_variances(self, theta, *parameters):
        log_sigma2, _ = super()._log_variances(theta, *parameters)
        return log_sigma2 + self.factor, None


class Sharing:
    """Layers of one shape, of which few compute the same."""

    def __init__(self):
        self.found = [
            posteriors.SparseVD(),
            posteriors.SparseVD(),
            posteriors.SparseVD(threshold=0.0),
            posteriors.ARD(),
            posteriors.SparseVD(prior="ard"),
            posteriors.SparseVD(share="unit"),
            posteriors.SparseVD(share="input"),
            posteriors.SparseVD(estimator="weight"),
            Doubled(),
            Doubled(),
        ]

    def __call__(self):
        made = [
            layers.VDDense(6, posterior=posterior, kl_weight=0.01)
            for posterior in self.found
        ]
        made[-1].kernel_posterior.factor = 2.0
        made[1].kernel_posterior.train_clip = False
        return keras.Sequential(made)


@pytest.mark.integration
def test_layers_that_differ_share_no_kernel(monkeypatch):
    """Oracle: what TensorFlow computes without compiled kernels."""
    compare(Sharing(), monkeypatch, 1e-3)


def count_functions(make):
    """Count the functions of TensorFlow that a step shares between layers."""
    fusing._FUNCTIONS.clear()
    two_steps(make)
    return sum(map(len, fusing._FUNCTIONS.values()))


@pytest.mark.integration
@pytest.mark.parametrize("share", ["weight", "unit"])
def test_equal_layers_share_kernels(share, monkeypatch):
    """As many functions for four layers as for one."""
    monkeypatch.setattr(fusing, "MIN_SIZE", 1)

    def count(num_layers):
        return count_functions(
            lambda: keras.Sequential(
                [
                    layers.VDDense(
                        6,
                        posterior=posteriors.SparseVD(share=share),
                        kl_weight=0.01,
                        name=f"layer_{i}",
                    )
                    for i in range(num_layers)
                ]
            )
        )

    assert count(4) == count(1) > 0


class Halved(layers.VDConv1D):
    """A convolution of the user's, whose config does not tell all."""

    def _linear_op(self, inputs, kernel):
        return super()._linear_op(0.5 * inputs, kernel)


def test_convolutions_that_differ_share_no_products():
    """Oracle: each layer's own variances, of outputs with no mean."""
    options = [
        {},
        {"dilation_rate": 2},
        {"strides": 2},
        {"padding": "causal"},
        {"groups": 2},
    ]

    def make_layers():
        kinds = [layers.VDConv1D] * len(options) + [Halved]
        return [
            kind(
                4,
                3,
                posterior=posteriors.SparseVD(share="unit"),
                kernel_initializer="zeros",
                kl_weight=0.01,
                **{"padding": "same", **option},
            )
            for kind, option in zip(kinds, [*options, {}], strict=True)
        ]

    inputs = keras.Input((12, 4))
    together = make_layers()
    model = keras.Model(inputs, [layer(inputs) for layer in together])
    alone = make_layers()
    x = np.random.default_rng(0).uniform(1.0, 2.0, (400, 12, 4))

    import tensorflow as tf

    call = tf.function(lambda x: model(x, training=True))
    for layer, outputs in zip(alone, call(x.astype("float32")), strict=True):
        expected = to_numpy(layer(x, training=True)).std(axis=(0, 2))
        found = to_numpy(outputs).std(axis=(0, 2))
        np.testing.assert_allclose(found, expected, rtol=0.15)


@pytest.mark.integration
@pytest.mark.parametrize("name", POSTERIORS)
def test_posteriors(name, monkeypatch):
    compare(
        lambda: layers.VDDense(
            5, posterior=POSTERIORS[name], kl_weight=0.01, activation="tanh"
        ),
        monkeypatch,
        1e-5 if name != "bfloat16" else 0.02,
    )


@pytest.mark.integration
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, monkeypatch):
    compare(LAYERS[name], monkeypatch, 0.02 if "mixed" in name else 1e-5)


def test_sizes():
    """Unknown lengths would be compiled one by one; batch sizes are few."""
    import tensorflow as tf

    for shape, size in {
        (3, 4): 12,
        (): 1,
        (None, 4): 4 * fusing.USUAL_BATCH_SIZE,
        (None, None, 4): 0,
        (2, None): 0,
    }.items():
        spec = tf.TensorSpec(shape)
        assert fusing.usual_size(spec) == size


def test_not_outside_graphs():
    import tensorflow as tf

    large = tf.zeros((fusing.MIN_SIZE,))
    assert not fusing._is_worth_a_kernel([large])
    found = []

    @tf.function
    def inside():
        found.append(fusing._is_worth_a_kernel([large]))

    inside()
    assert found == [True]


def test_second_derivatives():
    """Oracle: 6 x for x^3."""
    import tensorflow as tf

    large = tf.linspace(-1.0, 1.0, fusing.MIN_SIZE)

    @tf.function
    def second():
        with tf.GradientTape() as outer:
            outer.watch(large)
            with tf.GradientTape() as inner:
                inner.watch(large)
                (cubes,) = fusing.recomputed(
                    lambda variables: (variables[0] ** 3,), [large], []
                )
            slopes = inner.gradient(cubes, large)
        return outer.gradient(slopes, large)

    np.testing.assert_allclose(second(), 6.0 * large, 1e-5, 1e-6)
