"""Variances that weights share; layers' products are in `LinearContract`."""

import keras
import numpy as np
import pytest

from keras_vd import layers, posteriors, predict_mc, prune
from keras_vd._backend.branching import either
from keras_vd.callbacks import KLAnnealing
from keras_vd.divergences import kl
from keras_vd.posteriors.binding import Axes
from keras_vd.posteriors.sharing import SharedVariance, outer_product
from tests.helpers.arrays import random_inputs, to_float64, to_numpy
from tests.helpers.contract import assert_close, assert_moments, randomize
from tests.helpers.gradients import gradient
from tests.helpers.models import compile_quickly

SHARES = ("weight", "unit", "input", "rank1", "layer")


def build(share, kind=posteriors.SparseVD, **options):
    layer = layers.VDDense(
        3, posterior=kind(share=share, **options), kl_weight=0.1
    )
    layer.build((None, 4))
    return layer


def variances(posterior):
    """The variance of every weight, by NumPy, from the variables alone."""
    total = to_float64(posterior.log_sigma2)
    if posterior.share == "rank1":
        total = total + to_float64(posterior.log_sigma2_input)
    return np.broadcast_to(np.exp(total), posterior.theta.shape)


SHAPES = {
    "weight": [(4, 3)],
    "unit": [(1, 3)],
    "input": [(4, 1)],
    "rank1": [(1, 3), (4, 1)],
    "layer": [(1, 1)],
}


@pytest.mark.parametrize("share", SHARES)
def test_initial_parameters(share):
    posterior = build(share, log_sigma2_init=-7.5).kernel_posterior
    found = [v for v in posterior.variables if "log_sigma2" in v.name]
    assert [tuple(v.shape) for v in found] == SHAPES[share]
    np.testing.assert_allclose(variances(posterior), np.exp(-7.5), rtol=1e-6)


@pytest.mark.core
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", ["SparseVD", "ARD", "Gaussian"])
def test_kl_divergence(share, name):
    """Oracle: the sum over weights of a divergence by variances."""
    layer = build(share, getattr(posteriors, name))
    randomize(layer)
    posterior = layer.kernel_posterior
    theta, sigma2 = to_float64(posterior.theta), variances(posterior)
    log_alpha = np.log(sigma2 / (theta**2 + 1e-8))
    if name == "Gaussian":
        terms = (sigma2 + theta**2 - 1.0 - np.log(sigma2)) / 2
    elif name == "ARD":
        terms = 0.5 * np.log1p(np.exp(-log_alpha))
    else:
        terms = to_numpy(kl.log_uniform_molchanov(log_alpha.astype("float32")))
    assert_close(posterior.log_alpha, log_alpha, 1e-5)
    assert_close(posterior.kl_divergence(), terms.sum(), 1e-5)


@pytest.mark.core
@pytest.mark.parametrize("share", SHARES)
def test_samples(share):
    """Oracle: independent normals; a weight that is pruned has no noise."""
    layer = build(share)
    randomize(layer)
    posterior = layer.kernel_posterior
    kept = np.arange(12).reshape(4, 3) % 4 > 0
    posterior.keep_mask.assign(kept)
    draws = np.stack([to_float64(posterior.sample()) for _ in range(300)])
    theta = to_float64(posterior.theta)
    assert_moments(draws[:, kept], theta[kept], variances(posterior)[kept])
    np.testing.assert_array_equal(draws[:, ~kept], 0.0)


@pytest.mark.integration
def test_recurrent_layers_and_embeddings():
    """A step is finite, and every shared parameter has a gradient."""
    for share in SHARES:
        model = keras.Sequential(
            [
                keras.Input((5,), dtype="int32"),
                layers.VDEmbedding(9, 4, posterior=posteriors.ARD(share=share)),
                layers.VDLSTM(3, posterior=posteriors.ARD(share=share)),
                layers.VDDense(2, posterior=posteriors.ARD(share=share)),
            ]
        )
        compile_quickly(model, optimizer=keras.optimizers.Adam(0.1), loss="mse")
        parameters = [v for v in model.weights if "log_sigma2" in v.name]
        before = [to_float64(variable) for variable in parameters]
        history = model.fit(
            np.arange(40).reshape(8, 5) % 9,
            random_inputs(8, 2),
            verbose=0,
            callbacks=[KLAnnealing(8, 0, 0, verbose=0)],
        ).history
        assert np.isfinite(history["loss"][0])
        for variable, start in zip(parameters, before, strict=True):
            assert (to_float64(variable) != start).any(), variable.path


@pytest.mark.core
@pytest.mark.parametrize("share", ["unit", "rank1"])
def test_what_prune_drops_has_no_noise_in_the_next_epoch(share):
    """No compilation in between. Oracle: the draws of `predict_mc`."""
    model = keras.Sequential([keras.Input((4,)), build(share)])
    layer = model.layers[0]
    randomize(layer)
    inputs = np.eye(4, dtype="float32")
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(inputs, np.zeros((4, 3)), verbose=0)
    step = model.train_function
    # One input unit has no weight left: its output is the bias.
    layer.kernel.assign(np.where([[1], [0], [0], [0]], 1e-3, layer.kernel))
    prune(model, threshold=3.0)
    assert not to_numpy(layer.kernel_posterior.keep_mask)[0].any()
    spread = predict_mc(model, inputs, 50, task="regression")
    np.testing.assert_array_equal(spread.standard_deviation[0], 0.0)
    losses = [
        model.fit(inputs[:1], to_numpy(layer.bias)[None], verbose=0).history[
            "loss"
        ][0]
        - float(sum(to_numpy(x) for x in _kl_losses(layer)))
        for _ in range(3)
    ]
    # The floor of the variance is left: noise of 1e-4.
    assert np.max(losses) < 1e-5
    if keras.backend.backend() != "torch":
        assert model.train_function is step


def _kl_losses(layer):
    posterior = layer.kernel_posterior
    yield posterior.kl_weight.value * posterior.kl_divergence()


def test_variances_are_bounded():
    """Oracle: exp(10) (mean(theta^2) + 1), whatever the parameter."""
    layer = build("unit")
    randomize(layer)
    posterior = layer.kernel_posterior
    posterior.log_sigma2.assign([[500.0, -3.0, 11.0]])
    theta2 = np.square(to_float64(posterior.theta)).mean()
    largest = np.exp(10.0) * (1.0 + theta2)
    draws = np.stack([to_float64(posterior.sample()) for _ in range(200)])
    expected = np.broadcast_to([largest, np.exp(-3.0), largest], (4, 3))
    assert np.exp(11.0) > largest
    assert_moments(draws, to_float64(posterior.theta), expected)
    assert np.isfinite(to_numpy(layer(np.ones((2, 4)), training=True))).all()


def test_float16_does_not_overflow():
    # A sum of 3,000 squares of 8 is beyond its largest number, 65,504.
    layer = layers.VDDense(
        2,
        posterior=posteriors.ARD(share="layer", log_sigma2_init=-12.0),
        kl_weight=0.1,
        dtype="mixed_float16",
    )
    layer.build((None, 3000))
    layer.kernel.assign(np.zeros((3000, 2)))
    outputs = to_float64(layer(np.full((64, 3000), 8.0), training=True))
    stddev = np.sqrt(3000 * 64 * np.exp(-12.0))
    np.testing.assert_allclose(outputs.std(), stddev, rtol=0.3)


@pytest.mark.core
def test_variance_dtype_rounds_the_product_alone():
    """Identity: no rounding before weights are pruned, that of all after."""

    def outputs(variance_dtype, is_pruned, has_shared_op=True):
        options = {"variance_dtype": variance_dtype, "log_sigma2_init": 0.0}
        layer = build("unit", **options)
        randomize(layer)
        posterior = layer.kernel_posterior
        posterior.log_sigma2.assign([[0.1, 0.2, 0.3]])
        if is_pruned:
            posterior.keep_mask.assign(np.arange(12).reshape(4, 3) % 4 > 0)
        if not has_shared_op:
            layer._shared_op = None
        state = posterior.seed_generator.state
        state.assign(np.arange(1, 3).astype(to_numpy(state).dtype))
        return to_numpy(layer(random_inputs(50, 4), training=True))

    exact, rounded = outputs(None, False), outputs("bfloat16", False)
    np.testing.assert_array_equal(exact, rounded)
    assert np.abs(outputs(None, True) - outputs("bfloat16", True)).max() > 1e-4
    # What XLA compiles as a whole may skip rounding, and keep more digits.
    is_jax = keras.backend.backend() == "jax"
    np.testing.assert_allclose(
        outputs("bfloat16", True),
        outputs("bfloat16", True, False),
        atol=2e-2 if is_jax else 1e-6,
    )


def test_factors_that_are_no_outer_product():
    """Oracle: the product of all factors."""
    axes = Axes(inputs=(1,), outputs=(2,))
    factors = [random_inputs(*s) ** 2 for s in ((1, 1, 3), (1, 4, 1))]
    own = random_inputs(2, 1, 1) ** 2  # of an axis that is neither
    keep_mask = np.arange(24).reshape(2, 4, 3) % 5 > 0
    mask = keras.ops.convert_to_tensor(keep_mask)
    tensors = [keras.ops.convert_to_tensor(x) for x in (*factors, own)]
    shared = outer_product(tensors[:2], mask, axes, None)
    assert isinstance(shared, SharedVariance)
    np.testing.assert_array_equal(to_numpy(shared.units), factors[0])
    np.testing.assert_array_equal(to_numpy(shared.inputs), factors[1])
    found = outer_product(tensors, mask, axes, None)
    expected = np.where(keep_mask, factors[0] * factors[1] * own, 0.0)
    np.testing.assert_allclose(to_numpy(found), expected, rtol=1e-6)


def test_values_of_share():
    with pytest.raises(ValueError, match=r"`share`.*'rank1'.*'row'"):
        posteriors.SparseVD(share="row")
    with pytest.raises(ValueError, match="'rank1'"):
        posteriors.VD(share="rank1")
    alpha = layers.VDDense(3, posterior=posteriors.VD(share="input"))
    alpha.build((None, 4))
    assert tuple(alpha.kernel_posterior.shared_log_alpha.shape) == (4, 1)


@pytest.mark.core
@pytest.mark.parametrize("chosen", [True, False])
def test_either(chosen):
    """Oracle: x^2 y or x y^2, and their derivatives."""
    x, y = np.float32([1.0, 2.0]), np.float32([3.0, 5.0])

    def call(x, y):
        return either(
            keras.ops.convert_to_tensor(chosen),
            lambda x, y, scale: scale * x * x * y,
            lambda x, y, scale: scale * x * y * y,
            [x, y],
            [keras.ops.convert_to_tensor(np.float32(2.0))],
        )

    value = 2 * (x * x * y if chosen else x * y * y)
    slopes = (4 * x * y, 2 * x * x) if chosen else (2 * y * y, 4 * x * y)
    tensors = map(keras.ops.convert_to_tensor, (x, y))
    np.testing.assert_allclose(to_numpy(call(*tensors)), value, rtol=1e-6)
    for found, expected in zip(gradient(call, x, y), slopes, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.core
# Of the compiler itself.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="Others always compile steps."
)
def test_a_compiled_step_sees_what_has_been_pruned():
    """Identity: no noise but the floor's where all weights are pruned."""
    import torch

    layer = build("unit", log_sigma2_init=0.0)
    step = torch.compile(lambda x: layer(x, training=True), backend="eager")
    inputs = np.ones((5, 4), "float32")
    for is_kept in (True, False, True):
        layer.kernel_posterior.keep_mask.assign(np.full((4, 3), is_kept))
        difference = np.abs(to_numpy(step(inputs)) - to_numpy(step(inputs)))
        assert np.all(difference > 1e-3 if is_kept else difference < 1e-3)
