from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest

from keras_vd import layers, posteriors
from tests.helpers.arrays import to_numpy
from tests.helpers.contract import (
    KL_WEIGHT,
    MAX_Z,
    Case,
    LinearContract,
    MixedPrecisionContract,
    assert_close,
    check_every_argument,
    draw,
    parametrize,
    randomize,
)
from tests.helpers.plain import plain_linear

SEPARABLE = ("depthwise_kernel", "pointwise_kernel")

CASES = [
    Case(
        "conv1d_causal",
        layers.VDConv1D,
        (6, 2),
        {
            "filters": 3,
            "kernel_size": 2,
            "padding": "causal",
            "dilation_rate": 2,
        },
        core=True,
    ),
    Case(
        "conv1d_groups",
        layers.VDConv1D,
        (6, 4),
        {"filters": 2, "kernel_size": 3, "groups": 2, "strides": 2},
    ),
    Case(
        "conv2d_strides",
        layers.VDConv2D,
        (5, 4, 2),
        {
            "filters": 3,
            "kernel_size": (3, 2),
            "strides": (2, 1),
            "padding": "same",
            "activation": "relu",
        },
        core=True,
    ),
    Case(
        "conv2d_dilation",
        layers.VDConv2D,
        (5, 6, 2),
        {
            "filters": 2,
            "kernel_size": (2, 3),
            "dilation_rate": (1, 2),
            "use_bias": False,
        },
    ),
    Case(
        "conv2d_groups",
        layers.VDConv2D,
        (4, 4, 4),
        {"filters": 4, "kernel_size": (2, 3), "groups": 2, "padding": "same"},
    ),
    Case(
        "conv2d_channels_first",
        layers.VDConv2D,
        (2, 5, 4),
        {
            "filters": 3,
            "kernel_size": (3, 2),
            "data_format": "channels_first",
        },
    ),
    Case(
        "conv3d",
        layers.VDConv3D,
        (3, 4, 3, 2),
        {
            "filters": 2,
            "kernel_size": (2, 3, 1),
            "strides": (1, 2, 1),
            "padding": "same",
        },
        core=True,
    ),
    Case(
        "conv1d_transpose",
        layers.VDConv1DTranspose,
        (4, 2),
        {"filters": 3, "kernel_size": 3, "strides": 2, "padding": "same"},
    ),
    Case(
        "conv2d_transpose",
        layers.VDConv2DTranspose,
        (3, 3, 2),
        {
            "filters": 3,
            "kernel_size": (3, 2),
            "strides": (2, 1),
            "activation": "tanh",
        },
        core=True,
    ),
    Case(
        "conv2d_transpose_channels_first",
        layers.VDConv2DTranspose,
        (2, 3, 3),
        {
            "filters": 3,
            "kernel_size": 2,
            "strides": 2,
            "data_format": "channels_first",
        },
    ),
    Case(
        "conv2d_transpose_output_padding",
        layers.VDConv2DTranspose,
        (3, 3, 2),
        {
            "filters": 2,
            "kernel_size": 3,
            "strides": 2,
            "padding": "same",
            "output_padding": (0, 1),
            "use_bias": False,
        },
    ),
    Case(
        "conv3d_transpose",
        layers.VDConv3DTranspose,
        (2, 3, 2, 2),
        {"filters": 2, "kernel_size": (2, 1, 2), "strides": (2, 1, 1)},
    ),
    Case(
        "depthwise_conv1d",
        layers.VDDepthwiseConv1D,
        (6, 2),
        {"kernel_size": 3, "depth_multiplier": 2, "strides": 2},
    ),
    Case(
        "depthwise_conv2d",
        layers.VDDepthwiseConv2D,
        (5, 4, 2),
        {
            "kernel_size": (3, 2),
            "depth_multiplier": 2,
            "padding": "same",
            "use_bias": False,
        },
        core=True,
    ),
    Case(
        "depthwise_conv2d_channels_first",
        layers.VDDepthwiseConv2D,
        (2, 5, 4),
        {
            "kernel_size": (3, 2),
            "depth_multiplier": 2,
            "data_format": "channels_first",
        },
    ),
    Case(
        "separable_conv1d",
        layers.VDSeparableConv1D,
        (6, 2),
        {
            "filters": 3,
            "kernel_size": 3,
            "strides": 2,
            "depth_multiplier": 2,
            "activation": "relu",
        },
        weights=SEPARABLE,
    ),
    Case(
        "separable_conv2d",
        layers.VDSeparableConv2D,
        (5, 4, 2),
        {
            "filters": 3,
            "kernel_size": (3, 2),
            "padding": "same",
            "dilation_rate": (1, 2),
        },
        core=True,
        weights=SEPARABLE,
    ),
    Case(
        "separable_conv2d_channels_first",
        layers.VDSeparableConv2D,
        (2, 5, 4),
        {
            "filters": 3,
            "kernel_size": 2,
            "use_bias": False,
            "data_format": "channels_first",
        },
        weights=SEPARABLE,
    ),
]


@parametrize(CASES)
class TestContract(LinearContract):
    pass


@parametrize(case for case in CASES if case.core)
class TestMixedPrecision(MixedPrecisionContract):
    pass


@pytest.mark.core
@pytest.mark.parametrize("training", [False, True])
def test_causal_convolution_sees_no_future(training):
    """Identity: inputs after t change neither mean nor noise up to t."""
    case = CASES[0]
    layer, inputs = case.make(), case.inputs()
    changed = inputs.copy()
    changed[:, 4:] += 1.0
    outputs = []
    for values in (inputs, changed):
        layer.kernel_posterior.seed_generator.state.assign([1, 0])
        outputs.append(to_numpy(layer(values, training=training)))
    assert_close(outputs[0][:, :4], outputs[1][:, :4])
    assert np.abs(outputs[0][:, 4:] - outputs[1][:, 4:]).max() > 0.1


@pytest.mark.core
def test_outputs_have_the_moments_of_sampled_kernels():
    """Oracle: a Keras layer whose filters are samples of one kernel."""
    keras.utils.set_random_seed(0)
    num_samples = 4000
    layer = layers.VDConv2D(1, (2, 3), kl_weight=KL_WEIGHT)
    example = np.random.default_rng(1).normal(size=(1, 3, 4, 2))
    example = example.astype("float32")
    layer.build(example.shape)
    randomize(layer)
    theta = to_numpy(layer.kernel)
    sigma = np.exp(0.5 * to_numpy(layer.kernel_posterior.log_sigma2))
    noise = np.random.default_rng(2).normal(size=(2, 3, 2, num_samples))
    sampled = plain_linear(
        keras.layers.Conv2D,
        {"filters": num_samples, "kernel_size": (2, 3)},
        example,
        theta + sigma * noise,
    )[0] + to_numpy(layer.bias)
    drawn = draw(layer, example, num_samples)[..., 0]
    sampled = np.moveaxis(sampled, -1, 0)
    gap = sampled.mean(0) - drawn.mean(0)
    z_mean = gap / np.sqrt((sampled.var(0) + drawn.var(0)) / num_samples)
    assert np.abs(z_mean).max() < MAX_Z
    ratio = np.log(sampled.var(0) / drawn.var(0))
    assert np.abs(ratio).max() < MAX_Z * np.sqrt(4.0 / num_samples)


@pytest.mark.parametrize(
    ("name", "weight", "expected"),
    [
        ("conv1d_groups", "kernel", (1, 1, 2)),
        ("conv2d_strides", "kernel", (1, 1, 1, 3)),
        ("conv2d_groups", "kernel", (1, 1, 1, 4)),
        ("conv2d_channels_first", "kernel", (1, 1, 1, 3)),
        ("conv3d", "kernel", (1, 1, 1, 1, 2)),
        ("conv1d_transpose", "kernel", (1, 3, 1)),
        ("conv2d_transpose", "kernel", (1, 1, 3, 1)),
        ("conv3d_transpose", "kernel", (1, 1, 1, 2, 1)),
        ("depthwise_conv1d", "kernel", (1, 2, 2)),
        ("depthwise_conv2d", "kernel", (1, 1, 2, 2)),
        ("separable_conv1d", "depthwise_kernel", (1, 2, 2)),
        ("separable_conv1d", "pointwise_kernel", (1, 1, 3)),
        ("separable_conv2d", "pointwise_kernel", (1, 1, 1, 3)),
    ],
)
def test_shared_noise_parameters(name, weight, expected):
    """Oracle: by hand; one per output channel, or one in all."""
    case = next(case for case in CASES if case.name == name)
    for share, shape in (("unit", expected), ("layer", (1,) * len(expected))):
        layer = case.make(posterior=posteriors.SparseVD(share=share))
        posterior = getattr(layer, f"{weight}_posterior")
        assert tuple(posterior.log_sigma2.shape) == shape
        assert posterior.log_alpha.shape == posterior.theta.shape


@pytest.mark.parametrize("padding", ["valid", "same", "causal"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": 3},
        {"dilation_rate": 3},
        {"kernel_size": 1, "strides": 2},
        {"kernel_size": 4, "strides": 5},
        {"groups": 2, "strides": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [12, 13, 600])
def test_sums_over_windows(size, options, padding):
    # Oracle: the convolution itself, with a kernel of ones.
    groups = options.get("groups", 1)
    options = {"kernel_size": 3, "padding": padding, **options}
    layer = layers.VDConv1D(2, **options)
    layer.build((None, size, groups))
    totals = np.random.default_rng(0).uniform(size=(2, size, groups))
    totals = keras.ops.convert_to_tensor(totals, "float32")
    ones = keras.ops.ones((*layer.kernel_size, 1, groups))
    np.testing.assert_allclose(
        to_numpy(layer._window_sums(totals, groups)),
        to_numpy(layer._linear_op(totals, ones)),
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("layer", "kernels", "arguments"),
    [
        (layers.VDConv1D, ("kernel",), {"filters": 4, "groups": 2}),
        (layers.VDConv2D, ("kernel",), {"filters": 4, "groups": 2}),
        (layers.VDConv3D, ("kernel",), {"filters": 4, "groups": 2}),
        (layers.VDConv1DTranspose, ("kernel",), {"filters": 4}),
        (layers.VDConv2DTranspose, ("kernel",), {"filters": 4}),
        (layers.VDConv3DTranspose, ("kernel",), {"filters": 4}),
        (layers.VDDepthwiseConv1D, ("depthwise",), {"depth_multiplier": 2}),
        (layers.VDDepthwiseConv2D, ("depthwise",), {"depth_multiplier": 2}),
        (
            layers.VDSeparableConv1D,
            ("depthwise", "pointwise"),
            {"filters": 4, "depth_multiplier": 2},
        ),
        (
            layers.VDSeparableConv2D,
            ("depthwise", "pointwise"),
            {"filters": 4, "depth_multiplier": 2},
        ),
    ],
)
def test_every_argument_survives_the_config(layer, kernels, arguments):
    regularization = {
        "initializer": "ones",
        "regularizer": "l2",
        "constraint": "non_neg",
    }
    arguments = {
        **arguments,
        "kernel_size": 3,
        "padding": "same",
        "data_format": "channels_first",
        "activation": "relu",
        "use_bias": False,
        "activity_regularizer": "l2",
        **{
            f"{weight}_{kind}": value
            for weight in (*kernels, "bias")
            for kind, value in regularization.items()
        },
    }
    strided = {**arguments, "strides": 2}
    if "output_padding" in inspect.signature(layer).parameters:
        strided["output_padding"] = 1
    dilated = {**arguments, "dilation_rate": 2, "groups": ("output", "input")}
    check_every_argument(layer, strided, dilated)
