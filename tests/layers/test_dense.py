from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_vd import layers, posteriors
from tests.helpers.arrays import to_numpy
from tests.helpers.contract import (
    MAX_Z,
    NUM_DRAWS,
    Case,
    LinearContract,
    MixedPrecisionContract,
    assert_close,
    assert_moments,
    check_every_argument,
    draw,
    parametrize,
)

CASES = [
    Case("dense", layers.VDDense, (5,), {"units": 3}, core=True),
    Case(
        "dense_rank_3",
        layers.VDDense,
        (2, 5),
        {"units": 3, "use_bias": False, "activation": "relu"},
    ),
    Case(
        "einsum",
        layers.VDEinsumDense,
        (2, 4),
        {
            "equation": "abc,cde->abde",
            "output_shape": (None, 3, 2),
            "bias_axes": "de",
            "activation": "tanh",
        },
        core=True,
    ),
    Case(
        "einsum_ellipsis",
        layers.VDEinsumDense,
        (2, 4),
        {"equation": "...x,xy->...y", "output_shape": 3},
    ),
]


@parametrize(CASES)
class TestContract(LinearContract):
    pass


@parametrize(case for case in CASES if case.core)
class TestMixedPrecision(MixedPrecisionContract):
    pass


@pytest.mark.core
def test_outputs_have_the_moments_of_sampled_weights():
    """Oracle: 50,000 weights drawn with NumPy, no local reparameterization.

    The two sample means may differ by MAX_Z of their joint standard deviation,
    and so may the variances, with relative variance 2 / n each.
    """
    keras.utils.set_random_seed(0)
    case = CASES[0]
    layer, example = case.make(), case.inputs(1)
    generator = np.random.default_rng(4)
    theta = to_numpy(layer.kernel)
    sigma = np.exp(0.5 * to_numpy(layer.kernel_posterior.log_sigma2))
    num_samples = 50_000
    noise = generator.normal(size=(num_samples, *theta.shape))
    sampled = example[0] @ (theta + sigma * noise) + to_numpy(layer.bias)
    drawn = draw(layer, example, num_samples)
    gap = sampled.mean(0) - drawn.mean(0)
    z_mean = gap / np.sqrt((sampled.var(0) + drawn.var(0)) / num_samples)
    assert np.abs(z_mean).max() < MAX_Z
    z_variance = np.log(sampled.var(0) / drawn.var(0)) / np.sqrt(
        4.0 / num_samples
    )
    assert np.abs(z_variance).max() < MAX_Z


@pytest.mark.core
def test_noise_of_outputs_and_examples_is_independent():
    """Oracle: correlation 0 within 5 / sqrt(n), between all pairs."""
    keras.utils.set_random_seed(0)
    case = CASES[1]
    layer = case.make(activation=None)
    outputs = draw(layer, case.inputs(1)).reshape(NUM_DRAWS, -1)
    pairs = np.concatenate([outputs[::2], outputs[1::2]], axis=1)
    correlation = np.corrcoef(pairs, rowvar=False)
    np.fill_diagonal(correlation, 0.0)
    assert np.abs(correlation).max() < MAX_Z / np.sqrt(NUM_DRAWS / 2)


@pytest.mark.integration
@pytest.mark.core
def test_weight_estimator_draws_one_matrix():
    """Oracle: the outputs of the unit vectors are rows of theta + noise."""
    keras.utils.set_random_seed(0)
    layer = CASES[0].make(
        posterior=posteriors.SparseVD(estimator="weight"), use_bias=False
    )
    theta = to_numpy(layer.kernel)
    sigma = np.exp(0.5 * to_numpy(layer.kernel_posterior.log_sigma2))
    inputs = np.concatenate([np.eye(5), np.ones((1, 5))]).astype("float32")
    outputs = np.stack(
        [to_numpy(layer(inputs, training=True)) for _ in range(400)]
    )
    assert_close(outputs[:, :-1].sum(1), outputs[:, -1], 1e-5)
    assert_moments(outputs[:, :-1].astype("float64"), theta, sigma**2)


@pytest.mark.core
@pytest.mark.parametrize("equation", ["abc,cd->ad", "acb,cd->ad"])
def test_einsum_over_an_axis_of_the_inputs_alone(equation):
    """Oracle: one weight for the whole axis, (sum_b x_abc)^2 @ sigma2."""
    keras.utils.set_random_seed(0)
    arguments = {"equation": equation, "output_shape": 3}
    case = Case("einsum", layers.VDEinsumDense, (4, 4), arguments)
    layer, example = case.make(), case.inputs(1)
    summed = example.sum(1 + (equation[2] == "b"))
    posterior = layer.kernel_posterior
    assert_moments(
        draw(layer, example),
        (summed @ to_numpy(posterior.theta))[0],
        (summed**2 @ np.exp(to_numpy(posterior.log_sigma2)))[0],
    )


@pytest.mark.parametrize(
    ("equation", "output_shape", "shape", "expected"),
    [
        ("abc,cde->abde", (None, 3, 2), (2, 4), (1, 3, 2)),
        ("abc,dce->abde", (None, 3, 2), (2, 4), (3, 1, 2)),
        ("...x,xy->...y", 3, (2, 4), (1, 3)),
        ("abc,bcd->ad", 3, (2, 4), (1, 1, 3)),
    ],
)
def test_einsum_unit_axes(equation, output_shape, shape, expected):
    """Oracle: by hand; axes that are summed over get size 1."""
    layer = layers.VDEinsumDense(
        equation,
        output_shape,
        posterior=posteriors.SparseVD(share="unit"),
    )
    layer.build((None, *shape))
    assert tuple(layer.kernel_posterior.log_sigma2.shape) == expected


REGULARIZATION = {
    "activation": "relu",
    "kernel_initializer": "ones",
    "bias_initializer": "ones",
    "kernel_regularizer": "l2",
    "bias_regularizer": "l2",
    "activity_regularizer": "l2",
    "kernel_constraint": "non_neg",
    "bias_constraint": "non_neg",
    "groups": ("output", "input"),
}


@pytest.mark.parametrize(
    ("layer", "arguments"),
    [
        (
            layers.VDDense,
            {"units": 3, "use_bias": False, **REGULARIZATION},
        ),
        (
            layers.VDEinsumDense,
            {
                "equation": "ab,bc->ac",
                "output_shape": 3,
                "bias_axes": "c",
                **REGULARIZATION,
            },
        ),
    ],
)
def test_every_argument_survives_the_config(layer, arguments):
    check_every_argument(layer, arguments)
