"""Group variables of dense layers and convolutions.

The contract of their cases compares inference with Keras layers the kernels
of which are multiplied here, along axes that are written down by hand.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_vd
from keras_vd import layers, posteriors
from tests.helpers.arrays import to_numpy
from tests.helpers.contract import (
    MAX_Z,
    NUM_DRAWS,
    Case,
    LayerContract,
    MixedPrecisionContract,
    assert_close,
    assert_equal,
    assert_moments,
    check_shared_variances,
    draw,
    parametrize,
    sequential,
)
from tests.helpers.plain import plain_class, plain_linear
from tests.helpers.recurrent import rewound

BOTH = ("input", "output")


def make_case(name, layer, input_shape, arguments, shapes, core=False):
    """A case with both groups.

    Args:
        name: Name of the case.
        layer: Class of the layer.
        input_shape: Shape of one example.
        arguments: Arguments of the Keras layer.
        shapes: By weight and group, the shape of the group variables that
            multiplies the weight.
        core: Whether to run it on all backends.
    """

    def multiply(weights, scales):
        weights = dict(weights)
        for weight, groups in shapes.items():
            for group, shape in groups.items():
                weights[weight] = weights[weight] * scales[group].reshape(shape)
        return weights

    return Case(
        name,
        layer,
        input_shape,
        arguments,
        core,
        tuple(shapes),
        BOTH,
        multiply,
    )


CASES = [
    make_case(
        "dense",
        layers.VDDense,
        (5,),
        {"units": 3},
        {"kernel": {"input": (5, 1), "output": (1, 3)}},
        core=True,
    ),
    make_case(
        "einsum",
        layers.VDEinsumDense,
        (2, 4),
        {
            "equation": "abc,cde->abde",
            "output_shape": (None, 3, 2),
            "bias_axes": "de",
        },
        {"kernel": {"input": (4, 1, 1), "output": (1, 3, 2)}},
    ),
    make_case(
        "einsum_two_inputs",
        layers.VDEinsumDense,
        (2, 4),
        {"equation": "abc,cdb->ad", "output_shape": 3},
        {"kernel": {"input": (4, 1, 2), "output": (1, 3, 1)}},
    ),
    make_case(
        "conv1d_causal",
        layers.VDConv1D,
        (6, 2),
        {"filters": 3, "kernel_size": 2, "padding": "causal"},
        {"kernel": {"input": (1, 2, 1), "output": (1, 1, 3)}},
    ),
    make_case(
        "conv2d",
        layers.VDConv2D,
        (4, 4, 2),
        {"filters": 3, "kernel_size": (3, 2), "activation": "tanh"},
        {"kernel": {"input": (1, 1, 2, 1), "output": (1, 1, 1, 3)}},
        core=True,
    ),
    make_case(
        "conv2d_channels_first",
        layers.VDConv2D,
        (2, 5, 5),
        {"filters": 3, "kernel_size": 2, "data_format": "channels_first"},
        {"kernel": {"input": (1, 1, 2, 1), "output": (1, 1, 1, 3)}},
    ),
    make_case(
        "conv3d",
        layers.VDConv3D,
        (3, 3, 3, 2),
        {"filters": 3, "kernel_size": 2},
        {"kernel": {"input": (1, 1, 1, 2, 1), "output": (1, 1, 1, 1, 3)}},
    ),
    make_case(
        "conv1d_transpose",
        layers.VDConv1DTranspose,
        (4, 2),
        {"filters": 3, "kernel_size": 3, "strides": 2},
        {"kernel": {"input": (1, 1, 2), "output": (1, 3, 1)}},
    ),
    make_case(
        "conv2d_transpose",
        layers.VDConv2DTranspose,
        (3, 3, 2),
        {"filters": 3, "kernel_size": (3, 2), "use_bias": False},
        {"kernel": {"input": (1, 1, 1, 2), "output": (1, 1, 3, 1)}},
    ),
    make_case(
        "depthwise_conv2d",
        layers.VDDepthwiseConv2D,
        (4, 4, 3),
        {"kernel_size": 2, "depth_multiplier": 2},
        {"kernel": {"input": (1, 1, 3, 1), "output": (1, 1, 3, 2)}},
    ),
    make_case(
        "separable_conv1d",
        layers.VDSeparableConv1D,
        (6, 2),
        {"filters": 3, "kernel_size": 3, "depth_multiplier": 2},
        {
            "depthwise_kernel": {"input": (1, 2, 1)},
            "pointwise_kernel": {"output": (1, 1, 3)},
        },
    ),
    make_case(
        "separable_conv2d",
        layers.VDSeparableConv2D,
        (4, 4, 2),
        {"filters": 3, "kernel_size": 2, "activation": "tanh"},
        {
            "depthwise_kernel": {"input": (1, 1, 2, 1)},
            "pointwise_kernel": {"output": (1, 1, 1, 3)},
        },
        core=True,
    ),
]
DENSE = CASES[0]


@parametrize(CASES)
class TestContract(LayerContract):
    pass


@parametrize(case for case in CASES if case.core)
class TestMixedPrecision(MixedPrecisionContract):
    pass


def redraw_groups(layer):
    """Group variables that a rewound layer draws."""
    return {
        name: to_numpy(getattr(layer, f"{name}_group").draw({}))
        for name in layer.group_names
    }


@parametrize(case for case in CASES if len(case.weights) == 1)
def test_training_moments_for_given_group_variables(case):
    """Oracle: closed form; kernel and variance times the drawn variables.

    One draw for the whole batch, so all examples of a call know it.
    """
    keras.utils.set_random_seed(3)
    case = case.linear()
    layer, example = case.make(), case.inputs(1)
    with rewound(layer):
        outputs = draw(layer, example)
    scales = redraw_groups(layer)
    posterior = layer.kernel_posterior
    theta, sigma2 = posterior.theta, np.exp(to_numpy(posterior.log_sigma2))
    values = case.multiply({"kernel": to_numpy(theta)}, scales)
    squares = {name: value**2 for name, value in scales.items()}
    variances = case.multiply({"kernel": sigma2}, squares)
    linear = plain_class(case.layer), case.arguments
    mean = plain_linear(*linear, example, values["kernel"])
    if layer.bias is not None:
        zeros = np.zeros(theta.shape)
        ones = [np.ones(np.size(scales[name])) for name in BOTH]
        mean = mean + to_numpy(case.plain(layer, [zeros, *ones])(example))
    variance = plain_linear(*linear, example**2, variances["kernel"])
    assert_moments(outputs, mean[0], variance[0])


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_moments_of_a_product(estimator):
    """Oracle: y = z u in closed form, for independent normals z and u.

    Var(z u) = (mu^2 + tau) (m^2 + v) - mu^2 m^2; no kurtosis above 9, as
    E (z u - E)^4 = 3 s^2 + 18 s t + 9 t^2 with s = mu^2 v + m^2 tau, t = tau v.
    A call has one draw of z, so there are many calls. So much noise that
    leaving any of it out is seen.
    """
    keras.utils.set_random_seed(0)
    layer = layers.VDDense(
        3,
        use_bias=False,
        kl_weight=0.0,
        groups=("output",),
        posterior=posteriors.ARD(estimator=estimator),
    )
    layer.build((None, 2))
    theta = np.array([[0.5, -1.0, 1.0], [1.0, 0.5, -0.8]])
    layer.kernel.assign(theta)
    layer.kernel_posterior.log_sigma2.assign(np.full((2, 3), -1.0))
    m, v = np.array([1.0, -0.8, 0.9]), np.exp([-1.0, -1.5, -1.2])
    layer.output_group.weight.assign(m)
    layer.output_group.log_sigma2.assign(np.log(v))
    example = np.array([[1.0, 0.5]], "float32")
    outputs = np.stack(
        [to_numpy(layer(example, training=True))[0] for _ in range(300)]
    ).astype("float64")
    mu, tau = (
        (example @ theta)[0],
        (example**2 @ np.full((2, 3), np.exp(-1)))[0],
    )
    variance = (mu**2 + tau) * (m**2 + v) - (mu * m) ** 2
    assert_moments(outputs, mu * m, variance, 9.0)


@pytest.mark.core
def test_estimators_agree_on_the_group_variables():
    """Oracle: with next to no noise in the kernel, the drawn product.

    Also of `noise="input"`, where the group variables' noise is their own.
    """
    for posterior in (
        posteriors.ARD(log_sigma2_init=-60.0),
        posteriors.ARD(log_sigma2_init=-60.0, estimator="weight"),
        posteriors.VD(alpha_init=1e-12, noise="input"),
    ):
        layer = DENSE.layer(
            **DENSE.all_arguments, posterior=posterior, kl_weight=0.0
        )
        layer.build((None, 5))
        for name in BOTH:
            group = getattr(layer, f"{name}_group")
            if isinstance(posterior, posteriors.VD):
                group.shared_log_alpha.assign(np.zeros(group.theta.shape))
            else:
                group.log_sigma2.assign(np.full(group.theta.shape, -2.0))
        inputs = DENSE.inputs()
        with rewound(layer):
            outputs = layer(inputs, training=True)
        scales = redraw_groups(layer)
        assert min(np.abs(s - 1.0).max() for s in scales.values()) > 0.01
        kernel = DENSE.multiply({"kernel": to_numpy(layer.kernel)}, scales)
        # The floor of the variance is left: noise of 1e-4.
        assert_close(outputs, inputs @ kernel["kernel"], 1e-3)


@parametrize(CASES)
def test_shared_variances(case):
    """Oracle: the product of all variances, multiplied by the groups."""
    layer = case.make(posterior=posteriors.SparseVD(share="rank1"))
    check_shared_variances(layer, case.inputs())


@parametrize(CASES)
@pytest.mark.parametrize("training", [False, True])
def test_pruned_output_unit_is_its_activated_bias(case, training):
    """Oracle: the bias through the activation, in every position."""
    layer = case.make(activation="tanh")
    group = layer.output_group
    kept = np.arange(group.theta.shape[0]) != 1
    group.keep_mask.assign(kept)
    outputs = to_numpy(layer(case.inputs(), training=training))
    if case.arguments.get("data_format") == "channels_first":
        outputs = np.moveaxis(outputs, 1, -1)
    bias = np.zeros(kept.size)
    if layer.bias is not None:
        bias = to_numpy(layer.bias).reshape(-1)
    by_unit = outputs.reshape(-1, kept.size)
    # In training, the floor of the variance is left: noise of 1e-4.
    tolerance = 6e-4 if training else 1e-6
    gap = np.abs(by_unit - np.tanh(bias)).max(axis=0)
    assert gap[1] <= tolerance
    # Not of each: some saturate.
    assert np.median(gap[kept]) > 2e-3


@parametrize(case for case in CASES if case.name != "einsum_two_inputs")
@pytest.mark.parametrize("training", [False, True])
def test_pruned_input_unit_is_not_read(case, training):
    """Identity: whatever that unit or channel is."""
    layer, outputs = case.make(), []
    group = layer.input_group
    group.keep_mask.assign(np.arange(group.theta.shape[0]) != 1)
    is_first = case.arguments.get("data_format") == "channels_first"
    for value in (0.0, 5.0):
        inputs = case.inputs()
        np.moveaxis(inputs, 1 if is_first else -1, 0)[1] = value
        with rewound(layer):
            outputs.append(to_numpy(layer(inputs, training=training)))
    assert_close(*outputs)
    assert np.abs(outputs[0]).max() > 0.01


@pytest.mark.core
def test_kl_of_the_groups_is_in_the_losses_once():
    """Oracle: ARD's closed form in NumPy, for kernel and groups alike."""
    layer = DENSE.make(posterior="ard", kl_weight=0.2)
    for _ in range(2):
        layer(DENSE.inputs(), training=True)
        assert len(layer.losses) == 3
    expected = 0.0
    for posterior in DENSE.posteriors(layer):
        log_theta2 = np.log(to_numpy(posterior.theta) ** 2 + 1e-8)
        log_alpha = to_numpy(posterior.log_sigma2) - log_theta2
        expected += 0.5 * np.log1p(np.exp(-log_alpha)).sum()
    total = sum(float(to_numpy(loss)) for loss in layer.losses)
    assert total == pytest.approx(0.2 * expected, rel=1e-5)
    divergence = keras_vd.kl_divergence(layer)
    assert divergence == pytest.approx(expected, rel=1e-5)


@pytest.mark.core
def test_variables_of_groups():
    """Oracle: by hand; they start at 1, with a noise parameter each."""
    template = posteriors.ARD(share="layer", threshold=1.5)
    layer = layers.VDDense(3, posterior=template, groups=BOTH, name="dense")
    layer.build((None, 5))
    assert tuple(layer.kernel_posterior.log_sigma2.shape) == (1, 1)
    for name, size in (("input", 5), ("output", 3)):
        group = getattr(layer, f"{name}_group")
        assert group.is_group
        assert group.label == f"dense/{name}"
        assert_equal(group.theta, np.ones(size))
        assert tuple(group.log_sigma2.shape) == (size,)
        assert group.threshold == 1.5
        assert isinstance(group, posteriors.ARD)
    assert not layer.kernel_posterior.is_group
    assert not template.built


@pytest.mark.core
def test_groups_by_themselves_change_nothing_at_first():
    """Identity: the layer without groups, at the start."""
    inputs = DENSE.inputs()
    grouped, bare = DENSE.layer(3, groups=BOTH), DENSE.layer(3)
    for layer in (grouped, bare):
        layer.build((None, 5))
    grouped.kernel.assign(to_numpy(bare.kernel))
    assert_equal(grouped(inputs), bare(inputs))


@pytest.mark.integration
@pytest.mark.core
def test_sample_has_the_moments_of_the_products():
    """Oracle: w z in closed form, for both groups at once.

    The second moments multiply; a product of three has kurtosis of at most 27.
    """
    keras.utils.set_random_seed(0)
    layer = DENSE.make()
    posterior = layer.kernel_posterior
    means, seconds = to_numpy(posterior.theta), to_numpy(posterior.theta) ** 2
    seconds = seconds + np.exp(to_numpy(posterior.log_sigma2))
    for name, shape in (("input", (5, 1)), ("output", (1, 3))):
        group = getattr(layer, f"{name}_group")
        m = to_numpy(group.theta).reshape(shape)
        v = np.exp(to_numpy(group.log_sigma2)).reshape(shape)
        means, seconds = means * m, seconds * (m**2 + v)
    assert_close(posterior.mean(), means)
    samples = np.stack([to_numpy(posterior.sample()) for _ in range(250)])
    samples = samples.astype("float64")
    assert_moments(samples, means, seconds - means**2, 27.0)


@pytest.mark.core
@pytest.mark.parametrize("layer", [layers.VDConv1D, layers.VDConv2D])
def test_groups_of_a_convolution_have_two_meanings(layer):
    """Oracle: Keras' own argument is an integer, ours a tuple of names."""
    shape = (None, *[4] * layer(2, 2).rank, 4)
    keras_groups = layer(4, 2, groups=2)
    assert keras_groups.groups == 2
    assert keras_groups.group_names == ()
    assert keras_groups.get_config()["groups"] == 2
    keras_groups.build(shape)
    assert keras_groups.kernel.shape[-2] == 2
    names = layer(4, 2, groups=("output",))
    assert names.groups == 1
    assert names.group_names == ("output",)
    assert names.get_config()["groups"] == ["output"]
    for ours in (keras_groups, names):
        revived = layer.from_config(ours.get_config())
        assert revived.groups == ours.groups
        assert revived.group_names == ours.group_names


@pytest.mark.core
@pytest.mark.parametrize("layer", [layers.VDDense, layers.VDConv2DTranspose])
@pytest.mark.parametrize(
    "groups",
    [("vocabulary",), ("units",), "output", ("input", "input"), 2, None, [1]],
)
def test_bad_groups(layer, groups):
    """Errors name the argument, what is allowed and what came."""
    arguments = (3,) if layer is layers.VDDense else (3, 2)
    with pytest.raises(ValueError, match="Argument `groups`") as error:
        layer(*arguments, groups=groups)
    assert "['input', 'output']" in str(error.value)
    assert f"groups={groups!r}" in str(error.value)


@pytest.mark.core
def test_missing_kl_weight_of_a_group():
    """The message says which one."""
    layer = DENSE.make(kl_weight=None, name="mine")
    layer.kernel_posterior.kl_weight.assign(0.1)
    with pytest.raises(ValueError, match=r"'mine/input'.*KLAnnealing"):
        layer(DENSE.inputs(), training=True)


@pytest.mark.core
@pytest.mark.parametrize("name", ["dense", "conv2d", "separable_conv2d"])
def test_to_deterministic(name):
    """Oracle: the variational model's inference, with groups pruned."""
    case = next(case for case in CASES if case.name == name)
    layer = case.make()
    for group in BOTH:
        posterior = getattr(layer, f"{group}_group")
        posterior.keep_mask.assign(np.arange(posterior.theta.shape[0]) != 1)
    model = sequential(case, layer)
    plain = keras_vd.to_deterministic(model)
    assert_close(plain(case.inputs()), model(case.inputs()))
    assert type(plain.layers[0]) is plain_class(case.layer)
    assert len(plain.weights) == len(case.weights) + 1
    report = keras_vd.sparsity_report(model)
    nonzero = [np.count_nonzero(to_numpy(w)) for w in plain.weights[:-1]]
    assert [row.nonzero for row in report.rows] == nonzero
    assert [(x.name, x.groups - x.active) for x in report.groups] == [
        (f"{layer.name}/input", 1),
        (f"{layer.name}/output", 1),
    ]


@pytest.mark.core
def test_noise_of_examples_is_independent_only_given_the_groups():
    """Oracle: correlation 0 of examples of one call, whatever z is there."""
    keras.utils.set_random_seed(0)
    layer = DENSE.make()
    outputs = draw(layer, DENSE.inputs(1))
    pairs = np.concatenate([outputs[::2], outputs[1::2]], axis=1)
    correlation = np.corrcoef(pairs, rowvar=False)
    np.fill_diagonal(correlation, 0.0)
    assert np.abs(correlation).max() < MAX_Z / np.sqrt(NUM_DRAWS / 2)
