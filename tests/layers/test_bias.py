"""Biases with a posterior: weights whose input is the constant 1."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from scipy import stats

import keras_vd
from keras_vd import layers, posteriors, priors
from tests.helpers.arrays import random_inputs, to_numpy
from tests.helpers.contract import assert_moments, draw, training_gradients

pytestmark = pytest.mark.core


NOISY = posteriors.Gaussian(log_sigma2_init=0.0)


def normals(posterior, stddev=1.0):
    """Divergence of normals, from SciPy's entropy and log density."""
    theta = to_numpy(posterior.theta).astype("float64")
    variance = np.exp(to_numpy(posterior.log_sigma2).astype("float64"))
    entropy = stats.norm(theta, np.sqrt(variance)).entropy()
    log_prior = stats.norm(0.0, stddev).logpdf(theta)
    return np.sum(-entropy - log_prior + 0.5 * variance / stddev**2)


def make_dense(**options):
    layer = layers.VDDense(
        3, **{"bias_posterior": "gaussian", "kl_weight": 0.1, **options}
    )
    model = keras.Sequential([keras.Input((4,)), layer])
    layer.bias.assign([0.5, -1.0, 2.0])
    return model, layer


@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_variance_of_outputs(estimator):
    """Oracle: x^2 @ sigma2 + sigma2 of the bias, at rows that are all equal."""
    options = {"log_sigma2_init": -4.0, "estimator": estimator}
    _, layer = make_dense(
        posterior=posteriors.Gaussian(**options),
        bias_posterior=posteriors.Gaussian(
            log_sigma2_init=0.0, estimator=estimator
        ),
    )
    x = np.repeat(random_inputs(1, 4), 4000, axis=0)
    if estimator == "local":
        drawn = to_numpy(layer(x, training=True))
    else:
        calls = [layer(x[:1], training=True) for _ in range(40)]
        drawn = np.concatenate([to_numpy(call) for call in calls])
    expected = np.exp(-4.0) * np.square(x[0]).sum() + 1.0
    error = 5.0 * np.sqrt(2.0 / len(drawn))
    np.testing.assert_allclose(drawn.var(0), expected, rtol=error)
    mean = x[0] @ to_numpy(layer.kernel) + to_numpy(layer.bias)
    bound = 5.0 * np.sqrt(expected / len(drawn))
    np.testing.assert_allclose(drawn.mean(0), mean, atol=bound)


def test_moments_of_a_convolution():
    """Oracle: x^2 * sigma2 over the window, by hand, and sigma2 of the bias.

    The kernel's noise is independent at each position; the bias is one draw.
    """
    kernel = posteriors.Gaussian(log_sigma2_init=-1.0)
    layer = layers.VDConv1D(3, 2, posterior=kernel, bias_posterior=NOISY)
    x = random_inputs(1, 3, 2)
    layer.build(x.shape)
    layer.kernel_posterior.kl_weight.assign(1.0)
    layer.bias_posterior.kl_weight.assign(1.0)
    layer.bias.assign([0.5, -1.0, 2.0])
    draws = draw(layer, x)
    squares = np.square(x[0]).sum(-1)
    noise = np.exp(-1.0) * (squares[:-1] + squares[1:])
    expected = np.repeat(noise[:, None] + 1.0, 3, axis=1)
    assert_moments(draws, to_numpy(layer(x))[0], expected)
    first, last = draws[:, 0], draws[:, 1]
    covariance = np.mean((first - first.mean(0)) * (last - last.mean(0)), 0)
    error = np.sqrt((expected[0] * expected[1] + 1.0) / len(draws))
    assert np.max(np.abs(covariance - 1.0) / error) < 5.0


CONVOLUTIONS = [
    (layers.VDConv2D, {"filters": 3, "kernel_size": 2}),
    (layers.VDConv2DTranspose, {"filters": 3, "kernel_size": 2}),
    (layers.VDDepthwiseConv2D, {"kernel_size": 2, "depth_multiplier": 2}),
    (layers.VDSeparableConv2D, {"filters": 3, "kernel_size": 2}),
]


def prune_kernels(layer):
    for name, posterior in layer._posteriors().items():
        if name != "bias":
            mask = np.zeros(posterior.keep_mask.shape, bool)
            posterior.keep_mask.assign(mask)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize(("kind", "options"), CONVOLUTIONS)
def test_bias_alone_of_a_convolution(kind, options, data_format):
    """Closed form: N(theta, sigma2) for each filter, equal at all positions."""
    is_first = data_format == "channels_first"
    if is_first and keras.backend.backend() == "tensorflow":
        pytest.skip("TensorFlow has no such convolutions on CPUs")
    layer = kind(
        **options, data_format=data_format, bias_posterior=NOISY, kl_weight=1.0
    )
    shape = (2, 4, 5) if is_first else (4, 5, 2)
    layer.build((None, *shape))
    size = layer.bias.shape[0]
    theta = np.linspace(-2.0, 3.0, size)
    layer.bias.assign(theta)
    layer.bias_posterior.log_sigma2.assign(np.linspace(-3.0, 1.0, size))
    prune_kernels(layer)
    draws = draw(layer, random_inputs(1, *shape), 4000)
    draws = np.moveaxis(draws, 1, -1) if is_first else draws
    draws = draws.reshape(len(draws), -1, size)
    # What is left of the kernel is the floor of its variance, 1e-8.
    np.testing.assert_allclose(draws[:, 0], draws[:, -1], atol=2e-3)
    assert_moments(draws[:, 0], theta, np.exp(np.linspace(-3.0, 1.0, size)))


def test_einsum_dense_whose_bias_differs_by_position():
    layer = layers.VDEinsumDense(
        "btd,de->bte",
        (5, 3),
        bias_axes="te",
        bias_posterior=NOISY,
        kl_weight=1.0,
    )
    layer.build((None, 5, 4))
    prune_kernels(layer)
    theta = np.linspace(-1.0, 1.0, 15).reshape(5, 3)
    layer.bias.assign(theta)
    draws = draw(layer, np.ones((1, 5, 4), "float32"), 4000)
    assert_moments(draws, theta, np.ones((5, 3)))
    both = np.corrcoef(draws[:, 0, 0], draws[:, 4, 0])
    assert abs(both[0, 1]) < 0.1


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (layers.VDMultiHeadAttention, {"num_heads": 2, "key_dim": 3}),
        (
            layers.VDGroupQueryAttention,
            {"num_query_heads": 2, "num_key_value_heads": 1, "head_dim": 3},
        ),
    ],
)
def test_moments_of_attention(kind, options):
    """Closed form: biases of values, through the output, and of the output.

    The kernels are frozen, and queries are 0, so that all tokens count alike.
    """
    layer = kind(
        **options,
        posterior="gaussian",
        bias_posterior=NOISY,
        kl_weight=1.0,
        name="attention",
    )
    x = random_inputs(1, 4, 3)
    layer.build(x.shape, x.shape)
    found = keras_vd.variational_weights(layer)
    biases = [weight for weight in found if weight.is_bias]
    assert len(biases) == 4
    for weight in found:
        if not weight.is_bias:
            assert f"{weight.label}/bias" in [bias.label for bias in biases]
            weight.trainable = False
    query = layer._query_dense
    query.kernel.assign(np.zeros(query.kernel.shape))
    query.bias_posterior.trainable = False
    value, output = layer._value_dense, layer._output_dense
    value.bias_posterior.log_sigma2.assign(
        np.full(value.bias.shape, np.log(0.3))
    )
    kernel = to_numpy(output.kernel)
    if kernel.shape[0] != value.bias.shape[0]:
        # Heads that share their values draw them together.
        kernel = kernel.sum(0, keepdims=True)
    expected = 0.3 * np.square(kernel).sum((0, 1)) + 1.0
    inputs = np.repeat(x, 4000, axis=0)
    draws = to_numpy(layer(inputs, inputs, training=True)).astype("float64")
    mean = to_numpy(layer(x, x))[0]
    assert_moments(draws, mean, np.tile(expected, (4, 1)))
    np.testing.assert_allclose(draws[:, 0], draws[:, 3], atol=1e-2)


def test_with_groups():
    """Closed form: a pruned output unit is its bias, which keeps its noise."""
    _, layer = make_dense(
        groups=("input", "output"), posterior="gaussian", bias_posterior=NOISY
    )
    layer.output_group.keep_mask.assign([False, True, True])
    draws = draw(layer, random_inputs(1, 4), 4000)
    assert_moments(draws[:, 0], 0.5, 1.0)
    labels = [x.label for x in keras_vd.variational_weights(layer)]
    names = ("", "/bias", "/input", "/output")
    assert labels == [f"{layer.name}{name}" for name in names]
    assert not layer.bias_posterior.binding.groups
    # The noise of the group reaches the kernel's outputs alone.
    expected = 0.1 * normals(layer.bias_posterior)
    found = to_numpy(layer.bias_posterior.losses[0])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", [layers.VDGRU, layers.VDLSTM])
def test_a_pruned_recurrent_unit_has_no_bias(kind):
    """Identities: its state is 0 in all draws; and `to_deterministic`."""
    layer = kind(3, groups=("units",), bias_posterior=NOISY, kl_weight=0.1)
    model = keras.Sequential([keras.Input((4, 2)), layer])
    layer.units_group.keep_mask.assign([True, False, True])
    x = random_inputs(2, 4, 2)
    drawn = to_numpy(layer(x, training=True))
    assert np.all(drawn[:, 1] == 0.0)
    assert np.all(np.abs(drawn[:, [0, 2]]) > 0.0)
    plain = keras_vd.to_deterministic(model)
    np.testing.assert_allclose(
        plain.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6
    )


@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"]
)
def test_lower_precision(policy):
    """Closed form, to the digits that the type has."""
    layer = layers.VDDense(3, bias_posterior=NOISY, kl_weight=0.1, dtype=policy)
    layer.build((None, 4))
    layer.bias.assign([0.5, -1.0, 2.0])
    prune_kernels(layer)
    x = np.ones((4000, 4), "float32")
    found = layer(x, training=True)
    dtype = keras.backend.standardize_dtype(found.dtype)
    assert dtype == policy.removeprefix("mixed_")
    draws = to_numpy(keras.ops.cast(found, "float32"))
    np.testing.assert_allclose(draws.mean(0), [0.5, -1.0, 2.0], atol=0.1)
    np.testing.assert_allclose(draws.var(0), 1.0, rtol=0.15)
    expected = 0.1 * normals(layer.bias_posterior)
    loss = layer.bias_posterior.losses[0]
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    np.testing.assert_allclose(to_numpy(loss), expected, rtol=1e-4)


@pytest.mark.parametrize("posterior", ["sparse_vd", "gaussian"])
def test_new_biases_learn_in_float16(posterior):
    """The least variances are 0 in float16, where sqrt has no gradient."""
    layer = layers.VDDense(
        3, bias_posterior=posterior, kl_weight=0.1, dtype="mixed_float16"
    )
    layer.build((None, 4))
    gradients = training_gradients(layer, random_inputs(8, 4))
    for name in ("bias", "bias_posterior/log_sigma2"):
        assert np.all(np.isfinite(gradients[name])), name
        assert np.all(gradients[name] != 0.0), name


def test_divergence_is_added_to_the_losses():
    """Oracle: SciPy's entropy and log density, times the KL weight."""
    prior = priors.Gaussian(0.5, scale="fan_in")
    _, layer = make_dense(bias_posterior=posteriors.Gaussian(prior=prior))
    layer(random_inputs(2, 4), training=True)
    expected = 0.1 * normals(layer.bias_posterior, 0.5)
    found = to_numpy(layer.bias_posterior.losses[0])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    total = sum(float(to_numpy(loss)) for loss in layer.losses)
    kernel = float(to_numpy(layer.kernel_posterior.losses[0]))
    np.testing.assert_allclose(total, kernel + expected, rtol=1e-5)


def test_pruned_biases_are_zero_and_counted_apart():
    """Identity: to_deterministic predicts the same."""
    model, layer = make_dense(bias_posterior="sparse_vd")
    layer.bias_posterior.log_sigma2.assign([-10.0, 4.0, -10.0])
    report = keras_vd.prune(model)
    assert (report.weights, report.biases, report.nonzero_biases) == (12, 3, 2)
    x = random_inputs(5, 4)
    expected = model.predict(x, verbose=0)
    plain = keras_vd.to_deterministic(model)
    assert to_numpy(plain.layers[-1].bias)[1] == 0.0
    np.testing.assert_allclose(plain.predict(x, verbose=0), expected, atol=1e-6)


@pytest.mark.parametrize("posterior", ["sparse_vd", "ard"])
def test_new_biases_are_kept(posterior):
    """Biases start at 0; the mean of a clipped one would get no gradient."""
    layer = layers.VDDense(3, bias_posterior=posterior)
    layer.build((None, 4))
    log_alpha = to_numpy(layer.bias_posterior.log_alpha)
    assert np.all(log_alpha < layer.bias_posterior.threshold)


def test_recurrent_bias_is_drawn_and_saved(tmp_path):
    layer = layers.VDGRU(3, bias_posterior="gaussian", kl_weight=0.1)
    model = keras.Sequential([keras.Input((5, 2)), layer])
    assert keras_vd.variational_weights(model)[-1].label == f"{layer.name}/bias"
    for posterior in (layer.kernel_posterior, layer.recurrent_kernel_posterior):
        posterior.keep_mask.assign(np.zeros(posterior.keep_mask.shape, bool))
    x = random_inputs(2, 5, 2)
    # Only the bias is left, so that both sequences are the same at all draws.
    first, again = (to_numpy(layer(x, training=True)) for _ in range(2))
    np.testing.assert_allclose(first[0], first[1], atol=1e-6)
    assert np.abs(first - again).max() > 1e-5
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[-1].bias_posterior.prior.stddev == 1.0
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6
    )


def test_conversion_keeps_predictions():
    plain = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, use_bias=False),
            keras.layers.Dense(2, bias_initializer="ones"),
        ]
    )
    model = keras_vd.to_variational(
        plain, bias_posterior="sparse_vd", kl_weight=0.1, verbose=0
    )
    assert [x.bias_posterior is None for x in model.layers] == [True, False]
    x = random_inputs(5, 4)
    np.testing.assert_allclose(
        model.predict(x, verbose=0), plain.predict(x, verbose=0), atol=1e-6
    )


def test_frozen_bias_has_no_noise():
    _, layer = make_dense()
    layer.trainable = False
    x = random_inputs(2, 4)
    found = to_numpy(layer(x, training=True))
    np.testing.assert_allclose(found, to_numpy(layer(x)), atol=1e-6)
    assert not layer.losses


@pytest.mark.parametrize(
    "make",
    [
        lambda **k: layers.VDDense(3, use_bias=False, **k),
        lambda **k: layers.VDEmbedding(3, 4, **k),
        lambda **k: layers.VDMultiHeadAttention(2, 4, use_bias=False, **k),
    ],
)
def test_layers_without_a_bias(make):
    with pytest.raises(ValueError, match="has no bias"):
        make(bias_posterior="gaussian")


@pytest.mark.parametrize(
    ("posterior", "message"),
    [
        (posteriors.VD(noise="input"), "noise='weight'"),
        (posteriors.SparseVD(share="rank1"), "share='weight'"),
        ("normal", "must be one of"),
    ],
)
def test_posteriors_that_no_bias_has(posterior, message):
    with pytest.raises(ValueError, match=message):
        layers.VDDense(3, bias_posterior=posterior)


def test_prior_scaled_by_fan_in():
    """Oracle: the same prior, of the width by hand."""
    for layer, shape, fan_in in (
        (layers.VDDense, (4,), 4),
        (layers.VDConv1D, (9, 2), 6),
        (layers.VDDepthwiseConv1D, (9, 2), 3),
    ):
        arguments = {
            layers.VDDense: {"units": 5},
            layers.VDConv1D: {"filters": 5, "kernel_size": 3},
            layers.VDDepthwiseConv1D: {"kernel_size": 3},
        }[layer]
        prior = priors.Gaussian(0.5, scale="fan_in")
        made = layer(**arguments, posterior=posteriors.Gaussian(prior=prior))
        made.build((None, *shape))
        weight = made.kernel_posterior
        scaled = to_numpy(weight.kl_divergence())
        weight.prior = priors.Gaussian(0.5 / fan_in**0.5)
        np.testing.assert_allclose(scaled, to_numpy(weight.kl_divergence()))
    mixture = priors.ScaleMixture(0.5, 1.0, 0.1, scale="fan_in").at_fan_in(4)
    assert (mixture.stddev_1, mixture.stddev_2) == (0.5, 0.05)
    with pytest.raises(ValueError, match="scale"):
        priors.Gaussian(scale="fan_out")


def test_a_posterior_that_would_keep_biases_at_zero():
    """Reduction drops what is 0, and training with it would have no slope."""
    with pytest.raises(ValueError, match="train_clip=True"):
        layers.VDDense(
            3,
            bias_posterior=posteriors.Gaussian(
                criterion="bmr", train_clip=True
            ),
        )


def test_one_kl_weight_for_a_layer():
    with pytest.raises(ValueError, match="kl_weight=None"):
        layers.VDDense(3, bias_posterior=posteriors.Gaussian(kl_weight=0.5))
    layer = layers.VDDense(
        3, posterior=posteriors.Gaussian(kl_weight=0.5), bias_posterior="ard"
    )
    layer.build((None, 4))
    assert float(to_numpy(layer.bias_posterior.kl_weight)) == 0.5


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda **k: layers.VDConv1D(3, 2, **k), (5, 2)),
        (lambda **k: layers.VDSeparableConv1D(3, 2, **k), (5, 2)),
        (
            lambda **k: layers.VDEinsumDense(
                "ab,bc->ac", 3, bias_axes="c", **k
            ),
            (2,),
        ),
        pytest.param(
            lambda **k: layers.VDMultiHeadAttention(2, 3, **k),
            (5, 2),
            marks=pytest.mark.integration,
        ),
    ],
)
def test_saving(tmp_path, make, shape):
    """Identity: the file, and its options, after the noise has changed."""
    layer = make(
        bias_posterior=posteriors.SparseVD(threshold=2.0), kl_weight=0.1
    )
    inputs = keras.Input(shape)
    arguments = (
        (inputs, inputs) if len(layer._variational_weights) == 0 else (inputs,)
    )
    model = keras.Model(inputs, layer(*arguments))
    biases = [x for x in keras_vd.variational_weights(model) if x.is_bias]
    for bias in biases:
        values = np.linspace(-9.0, -1.0, bias.log_sigma2.shape[-1])
        bias.log_sigma2.assign(np.broadcast_to(values, bias.log_sigma2.shape))
        bias.weight.assign(np.full(bias.weight.shape, 0.7))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    found = [x for x in keras_vd.variational_weights(loaded) if x.is_bias]
    assert [x.label for x in found] == [x.label for x in biases]
    for one, other in zip(found, biases, strict=True):
        assert one.get_config() == other.get_config()
        for a, b in zip(one.variables, other.variables, strict=True):
            np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
    x = random_inputs(2, *shape)
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6
    )


def test_elbo_and_logs_have_the_bias():
    """Oracle: SciPy's normals, of the kernel and of the bias."""
    model, layer = make_dense(posterior="gaussian", kl_weight=None)
    model.compile("sgd", "mse")
    x, y = random_inputs(8, 4), random_inputs(8, 3)
    found = keras_vd.elbo(model, x, y, noise_stddev=0.5, seed=0)
    parts = normals(layer.kernel_posterior), normals(layer.bias_posterior)
    np.testing.assert_allclose(found.kl, sum(parts), rtol=1e-5)
    annealing = keras_vd.callbacks.KLAnnealing(8, log_layer_kl=True)
    history = model.fit(x, y, callbacks=[annealing], verbose=0).history
    logs = {k: x[-1] for k, x in history.items() if k.startswith("kl/")}
    assert logs == {
        f"kl/{layer.name}": pytest.approx(normals(layer.kernel_posterior)),
        f"kl/{layer.name}/bias": pytest.approx(normals(layer.bias_posterior)),
    }
    assert float(to_numpy(layer.bias_posterior.kl_weight)) > 0.0
