from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

from keras_vd import layers, posteriors, priors
from keras_vd.posteriors.sampling import sampling_at_inference
from tests.helpers.arrays import to_numpy
from tests.helpers.contract import (
    Case,
    assert_close,
    assert_equal,
    assert_moments,
    draw,
    randomize,
    sequential,
    training_gradients,
)

DENSE = Case("dense", layers.VDDense, (4,), {"units": 3})
CONV = Case("conv", layers.VDConv1D, (5, 2), {"filters": 2, "kernel_size": 2})
ALL = ["vd", "sparse_vd", "ard", "gaussian"]
ADDITIVE = [posteriors.SparseVD, posteriors.ARD, posteriors.Gaussian]


def make(posterior, **arguments):
    """A layer of random weights and its posterior."""
    layer = DENSE.make(posterior=posterior, **arguments)
    return layer, layer.kernel_posterior


def set_log_alpha(posterior, log_alpha):
    """Give the weights these log_alpha; theta must not be near zero."""
    theta = to_numpy(posterior.theta).astype("float64")
    posterior.log_sigma2.assign(log_alpha + np.log(theta**2 + 1e-8))


# From -1 to 10 in steps of 1: easy to put thresholds between.
LADDER = np.arange(-1.0, 11.0).reshape(4, 3)


@pytest.mark.parametrize(
    ("options", "error", "allowed"),
    [
        ({"prior": "cauchy"}, ValueError, "log_uniform"),
        ({"prior": 1.0}, ValueError, "log_uniform"),
        ({"share": "row"}, ValueError, "weight"),
        ({"estimator": "flipout"}, ValueError, "local"),
        ({"variance_dtype": "float16"}, ValueError, "bfloat16"),
        ({"threshold": "3"}, TypeError, "at least -20"),
        ({"threshold": True}, TypeError, "at least -20"),
        ({"threshold": 21.0}, ValueError, "at most 20"),
        ({"threshold": float("nan")}, ValueError, "at most 20"),
        ({"kl_scale": -1.0}, ValueError, "at least 0"),
        ({"kl_scale": None}, TypeError, "at least 0"),
        ({"kl_weight": -0.1}, ValueError, "at least 0"),
        ({"kl_weight": "1/N"}, TypeError, "at least 0"),
        ({"log_sigma2_init": float("inf")}, ValueError, "finite"),
        ({"log_sigma2_init": "small"}, TypeError, "finite"),
    ],
)
def test_bad_options(options, error, allowed):
    """Errors name the argument, what is allowed and what came."""
    ((name, value),) = options.items()
    with pytest.raises(error, match=f"Argument `{name}`") as caught:
        posteriors.SparseVD(**options)
    assert allowed in str(caught.value)
    assert f"{name}={value!r}" in str(caught.value)


def test_kl_weight_of_the_layer_is_checked():
    with pytest.raises(ValueError, match="Argument `kl_weight`"):
        layers.VDDense(3, kl_weight=-1.0)


@pytest.mark.parametrize("name", ALL)
def test_get(name):
    posterior = posteriors.get(name)
    config = posteriors.serialize(posterior)
    revived = posteriors.get(config)
    assert type(revived) is type(posterior)
    assert revived.get_config() == posterior.get_config()
    assert posteriors.get(posterior) is posterior


OFF_DEFAULT = {
    "prior": priors.Gaussian(0.5),
    "share": "unit",
    "threshold": 1.5,
    "train_clip": None,
    "estimator": "weight",
    "kl_scale": 0.5,
}


@pytest.mark.parametrize(
    ("posterior", "options"),
    [(kind, {"log_sigma2_init": -3.0}) for kind in ADDITIVE]
    + [
        (
            kind,
            {
                "log_sigma2_init": -3.0,
                "estimator": "local",
                "variance_dtype": "bfloat16",
            },
        )
        for kind in ADDITIVE
    ]
    + [
        (
            posteriors.VD,
            {"alpha_init": 0.5, "learn_alpha": False, "max_alpha": 2.0},
        ),
        (posteriors.VD, {"noise": "input", "estimator": "local"}),
    ],
)
def test_every_option_survives_the_config(posterior, options):
    """Oracle: the default config, from which everything must differ."""
    default = posterior().get_config()
    options = {**OFF_DEFAULT, **options}
    options["train_clip"] = not default["train_clip"]
    config = posterior(**options).get_config()
    revived = posteriors.deserialize(posteriors.serialize(posterior(**options)))
    assert type(revived) is posterior
    assert revived.get_config() == config
    assert set(options) <= set(config)
    unchanged = {name for name in config if config[name] == default[name]}
    # `criterion` has a test of its own: no threshold goes with the other one.
    exclusive = {"alpha_init", "learn_alpha", "max_alpha", "noise", "criterion"}
    estimators = {"estimator", "variance_dtype"}
    assert unchanged <= exclusive - set(options) | estimators
    assert unchanged != estimators
    if "noise" not in options:
        assert unchanged <= {"noise", "criterion", *estimators}


def test_deserialize_refuses_other_objects():
    config = keras.saving.serialize_keras_object(keras.layers.Dense(2))
    with pytest.raises(ValueError, match=r"object from `keras_vd.posteriors`"):
        posteriors.deserialize(config)


def test_objects_are_templates():
    """Each weight of each layer has a posterior of its own."""
    template = posteriors.SparseVD(threshold=1.0)
    layer = layers.VDSeparableConv1D(2, 2, posterior=template)
    layer.build((None, 4, 2))
    first = layer.depthwise_kernel_posterior
    second = layer.pointwise_kernel_posterior
    assert first is not template
    assert first is not second
    assert first.threshold == second.threshold == 1.0
    assert not template.built


def test_base_class_is_abstract():
    layer = layers.VDDense(3, posterior=posteriors.WeightPosterior())
    with pytest.raises(NotImplementedError, match="_log_variances"):
        layer(np.zeros((1, 4)))


@pytest.mark.core
def test_inference_threshold_without_pruning():
    """Oracle: theta where log_alpha < threshold, by hand."""
    layer, posterior = make("sparse_vd")
    set_log_alpha(posterior, LADDER + 0.5)
    theta = to_numpy(posterior.theta)
    assert_equal(posterior.mean(), np.where(LADDER + 0.5 < 3.0, theta, 0.0))
    assert posterior.sparsity() == pytest.approx(8 / 12)
    assert to_numpy(posterior.keep_mask).all()
    assert_equal(layer.kernel, theta)


@pytest.mark.core
@pytest.mark.parametrize(
    ("threshold", "num_pruned"), [(None, 8), (5.0, 6), (-20.0, 12), (20, 0)]
)
def test_prune(threshold, num_pruned):
    """Oracle: log_alpha of 12 weights, in steps of one."""
    _, posterior = make("sparse_vd")
    set_log_alpha(posterior, LADDER + 0.5)
    posterior.prune(threshold)
    assert np.sum(~to_numpy(posterior.keep_mask)) == num_pruned
    # log_alpha below the posterior's own threshold cannot bring them back
    set_log_alpha(posterior, np.full((4, 3), -5.0))
    assert posterior.sparsity() == pytest.approx(num_pruned / 12)
    assert np.sum(to_numpy(posterior.log_alpha) == 20.0) == num_pruned
    posterior.prune(20.0)
    assert np.sum(~to_numpy(posterior.keep_mask)) == num_pruned


def test_a_weight_at_the_threshold_goes():
    """Identity: `log_alpha >= threshold`; equality counts."""
    _, posterior = make("sparse_vd")
    set_log_alpha(posterior, LADDER)
    at = float(to_numpy(posterior.log_alpha)[2, 1])
    posterior.prune(at)
    expected = to_numpy(posterior.keep_mask)
    assert not expected[2, 1]
    assert expected[2, 0]


@pytest.mark.core
@pytest.mark.parametrize(
    ("threshold", "error"),
    [
        ("3", TypeError),
        ([3.0], TypeError),
        (True, TypeError),
        (20.5, ValueError),
        (-21, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
    ],
)
def test_bad_thresholds(threshold, error):
    _, posterior = make("sparse_vd")
    with pytest.raises(error, match="Argument `threshold`") as caught:
        posterior.prune(threshold)
    assert "at least -20 and at most 20" in str(caught.value)
    assert f"threshold={threshold!r}" in str(caught.value)
    assert to_numpy(posterior.keep_mask).all()


@pytest.mark.core
def test_no_threshold_never_prunes():
    """Identity: theta, whatever alpha, until a threshold is given."""
    layer, posterior = make("gaussian")
    posterior.log_sigma2.assign(np.full((4, 3), 8.0))
    posterior.prune()
    assert posterior.sparsity() == 0.0
    assert_equal(posterior.mean(), layer.kernel)
    posterior.prune(3.0)
    assert posterior.sparsity() == 1.0
    posterior.prune()
    assert posterior.sparsity() == 1.0


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("kind", ADDITIVE)
@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_pruned_weights_stay_zero_in_training(kind, estimator):
    """Oracle: by hand; neither mean, noise, KL nor gradient is left."""
    layer, posterior = make(kind(estimator=estimator))
    set_log_alpha(posterior, LADDER + 0.5)
    posterior.prune(2.0)
    pruned = ~to_numpy(posterior.keep_mask)
    assert 0 < pruned.sum() < pruned.size
    inputs = DENSE.inputs()
    gradients = training_gradients(layer, inputs)
    for path in ("kernel", "kernel_posterior/log_sigma2"):
        assert np.all(gradients[path][pruned] == 0.0)
        assert np.all(gradients[path][~pruned] != 0.0)
    model = sequential(DENSE, layer)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    before = to_numpy(posterior.mean())
    for _ in range(2):
        model.train_on_batch(inputs, np.ones((3, 3)))
    assert np.all(to_numpy(posterior.mean())[pruned] == 0.0)
    assert np.all(to_numpy(posterior.sample())[pruned] == 0.0)
    assert_equal(~to_numpy(posterior.keep_mask), pruned)
    assert np.any(to_numpy(posterior.mean()) != before)


@pytest.mark.core
@pytest.mark.parametrize("case", [DENSE, CONV], ids=str)
def test_variance_in_bfloat16(case):
    """Oracle: the same noise with exact variances; 8 bits in between."""
    outputs, gradients = [], []
    for variance_dtype in (None, "bfloat16"):
        posterior = posteriors.SparseVD(
            log_sigma2_init=-2.0, variance_dtype=variance_dtype
        )
        layer = case.make(posterior=posterior)
        inputs = case.inputs()
        case.call(layer, inputs)
        randomize(layer)
        layer.kernel_posterior.seed_generator.state.assign([1, 2])
        mean = to_numpy(case.call(layer, inputs))
        noisy = case.call(layer, inputs, training=True)
        assert keras.backend.standardize_dtype(noisy.dtype) == "float32"
        outputs.append(to_numpy(noisy) - mean)
        gradients.append(training_gradients(layer, inputs))
    exact, rounded = outputs
    # Half of the relative error of a variance is the noise's.
    np.testing.assert_allclose(rounded, exact, rtol=0.01, atol=1e-6)
    assert np.any(rounded != exact)
    for gradient in gradients[1].values():
        assert np.isfinite(gradient).all()
        assert np.any(gradient != 0.0)


def test_variance_in_bfloat16_needs_a_product():
    for options in ({"estimator": "weight"}, {"noise": "input"}):
        with pytest.raises(ValueError, match="variance_dtype"):
            posteriors.VD(variance_dtype="bfloat16", **options)


@pytest.mark.core
def test_pruned_weights_leave_the_training_outputs():
    """Oracle: a layer of which all weights are pruned knows its bias only."""
    layer, posterior = make("sparse_vd")
    posterior.prune(-20.0)
    outputs = to_numpy(layer(DENSE.inputs(), training=True))
    # the floor under the square root is what is left of the noise
    assert np.abs(outputs - to_numpy(layer.bias)).max() < 6e-4
    layer(DENSE.inputs(), training=True)
    assert to_numpy(layer.losses[0]) == 0.0


@pytest.mark.core
@pytest.mark.parametrize("kind", ADDITIVE)
@pytest.mark.parametrize("train_clip", [True, False])
def test_train_clip(kind, train_clip):
    """Oracle: closed form; the mean loses the weights, the noise does not."""
    keras.utils.set_random_seed(0)
    layer, posterior = make(
        kind(train_clip=train_clip, threshold=3.0), use_bias=False
    )
    set_log_alpha(posterior, np.where(LADDER % 2 == 0, 3.5, -1.0))
    theta = to_numpy(posterior.theta)
    sigma2 = np.exp(to_numpy(posterior.log_sigma2))
    kept = (LADDER % 2 != 0) | (not train_clip)
    example = DENSE.inputs(1)
    assert_moments(
        draw(layer, example),
        (example @ np.where(kept, theta, 0.0))[0],
        (example**2 @ sigma2)[0],
    )


def test_train_clip_defaults():
    """Oracle: on for the two methods whose authors released it so."""
    defaults = {name: posteriors.get(name).train_clip for name in ALL}
    assert defaults == {
        "vd": False,
        "sparse_vd": True,
        "ard": True,
        "gaussian": False,
    }


def test_train_clip_without_threshold_clips_nothing():
    _, posterior = make(posteriors.Gaussian(train_clip=True))
    posterior.log_sigma2.assign(np.full((4, 3), -100.0))
    assert_close(posterior.sample(), posterior.theta)


@pytest.mark.integration
@pytest.mark.core
def test_sample_has_the_posterior_moments():
    """Oracle: theta and sigma2 themselves."""
    keras.utils.set_random_seed(0)
    _, posterior = make("gaussian")
    samples = np.stack([to_numpy(posterior.sample()) for _ in range(500)])
    theta = to_numpy(posterior.theta)
    sigma2 = np.exp(to_numpy(posterior.log_sigma2))
    assert_moments(samples.astype("float64"), theta, sigma2)


@pytest.mark.core
@pytest.mark.parametrize("kl_scale", [0.0, 2.5])
def test_kl_scale_multiplies_the_loss_only(kl_scale):
    """Oracle: the loss of kl_scale=1, times it."""
    losses, divergences = [], []
    for scale in (1.0, kl_scale):
        layer, posterior = make(posteriors.SparseVD(kl_scale=scale))
        layer(DENSE.inputs(), training=True)
        losses.append(to_numpy(layer.losses[0]))
        divergences.append(to_numpy(posterior.kl_divergence()))
    assert_close(losses[1], kl_scale * losses[0])
    assert divergences[0] == divergences[1] > 0.0


@pytest.mark.core
def test_kl_counts_kept_weights_only():
    """Oracle: the same posterior's terms, summed by hand."""
    _, posterior = make("ard")
    set_log_alpha(posterior, LADDER + 0.5)
    terms = 0.5 * np.log1p(np.exp(-LADDER - 0.5))
    assert_close(posterior.kl_divergence(), terms.sum(), 1e-5)
    posterior.prune(2.0)
    kept = LADDER + 0.5 < 2.0
    assert_close(posterior.kl_divergence(), terms[kept].sum(), 1e-5)


@pytest.mark.core
@pytest.mark.parametrize("name", ALL)
def test_shapes_and_types(name):
    layer, posterior = make(name, dtype="mixed_bfloat16")
    for tensor in (
        posterior.theta,
        posterior.log_alpha,
        posterior.learned_log_alpha,
        posterior.mean(),
        posterior.sample(),
    ):
        assert tuple(tensor.shape) == (4, 3)
        assert keras.backend.standardize_dtype(tensor.dtype) == "float32"
    divergence = posterior.kl_divergence()
    assert tuple(divergence.shape) == ()
    assert keras.backend.standardize_dtype(divergence.dtype) == "float32"
    assert keras.backend.standardize_dtype(posterior.keep_mask.dtype) == "bool"
    assert layer(DENSE.inputs()).shape == (3, 3)


@pytest.mark.parametrize("share", ["weight", "unit", "layer"])
@pytest.mark.parametrize("name", ["vd", "sparse_vd"])
def test_shared_kl_counts_every_weight(name, share):
    """Oracle: the posterior of single weights that has the same alphas."""
    kind = type(posteriors.get(name))
    _, shared = make(kind(share=share))
    _, single = make(kind(share="weight"))
    if name == "vd":
        single.shared_log_alpha.assign(shared.log_alpha)
    else:
        log_sigma2 = np.broadcast_to(to_numpy(shared.log_sigma2), (4, 3))
        single.log_sigma2.assign(log_sigma2)
    assert_close(single.log_alpha, shared.log_alpha)
    assert_close(single.learned_log_alpha, shared.learned_log_alpha)
    assert_close(single.kl_divergence(), shared.kl_divergence(), 1e-5)


def test_variance_below_zero_is_taken_as_zero():
    """A fast convolution may round a variance to slightly below zero."""
    _, posterior = make("gaussian")

    def linear_op(inputs, weight):
        outputs = ops.matmul(inputs, weight)
        return ops.where(inputs[:, :1] > 1.0, outputs * 0.0 - 1e-6, outputs)

    inputs = np.full((2, 4), 2.0, "float32")
    outputs = posterior.project(
        linear_op, ops.convert_to_tensor(inputs), training=True
    )
    assert np.isfinite(to_numpy(outputs)).all()


@pytest.mark.core
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_noise_has_finite_gradients(policy):
    """Zero inputs: the floor of the variance must not underflow."""
    layer, _ = make("sparse_vd", dtype=policy)
    gradients = training_gradients(layer, DENSE.inputs() * 0.0)
    for value in gradients.values():
        assert np.isfinite(value).all()


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_gradients_are_finite_where_weights_are_pruned(estimator):
    """sqrt has no gradient at the zero variance of a pruned weight."""
    layer = layers.VDDense(
        3,
        posterior=posteriors.SparseVD(estimator=estimator),
        kl_weight=0.1,
    )
    layer.build((None, 4))
    posterior = layer.kernel_posterior
    mask = np.arange(12).reshape(4, 3) % 2 == 0
    posterior.keep_mask.assign(mask)
    inputs = np.ones((2, 4), "float32")
    optimizer = keras.optimizers.SGD(1.0)
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(optimizer, "mse")
    before = keras.ops.convert_to_numpy(layer.kernel)
    model.fit(inputs, np.zeros((2, 3)), epochs=1, verbose=0)
    for variable in model.trainable_variables:
        assert np.isfinite(keras.ops.convert_to_numpy(variable)).all()
    # Oracle: what does not enter the loss does not move, the rest does.
    moved = keras.ops.convert_to_numpy(layer.kernel) != before
    np.testing.assert_array_equal(moved, mask)


class CountingStore(dict):
    """Like a file of weights, which is read when an array is asked for."""

    def __init__(self, arrays):
        super().__init__(arrays)
        self.read = []

    def __getitem__(self, key):
        self.read.append(key)
        return super().__getitem__(key)


def stored(posterior):
    store = {}
    posterior.save_own_variables(store)
    return {key: keras.ops.convert_to_numpy(store[key]) for key in store}


@pytest.mark.core
@pytest.mark.parametrize("change", ["missing", "more", "seeds", "shape"])
def test_a_file_that_does_not_fit_is_an_error(change):
    layer = layers.VDDense(3, name="mine")
    layer.build((None, 4))
    posterior = layer.kernel_posterior
    arrays = stored(posterior)
    if change == "missing":
        del arrays["0"]
    elif change == "more":
        arrays["9"] = np.zeros(10**6)
    elif change == "seeds":
        del arrays["seed_state"]
    else:
        arrays["seed_state"] = np.zeros((2, 2), "uint32")
    before = stored(posterior)
    store = CountingStore(arrays)
    with pytest.raises(ValueError, match="does not fit 'mine'"):
        posterior.load_own_variables(store)
    # What does not belong there is not read: it may be of any size.
    assert change == "shape" or not store.read
    for key, value in stored(posterior).items():
        np.testing.assert_array_equal(value, before[key])


class Watch(keras.layers.Layer):
    """Notes in every call whether a posterior has added its KL."""

    def __init__(self, posterior):
        super().__init__()
        self.posterior, self.seen = posterior, []

    def call(self, inputs):
        self.seen.append(self.posterior.has_added_kl)
        return inputs


def test_whether_the_kl_was_added_in_this_pass():
    """Oracle: from the first call of a layer on to the end of the pass."""
    layer = layers.VDDense(4, kl_weight=1.0)
    layer.build((None, 4))
    watches = [Watch(layer.kernel_posterior) for _ in range(3)]
    inputs = keras.Input((4,))
    x = watches[0](inputs)
    x = watches[1](layer(x))
    outputs = watches[2](layer(x))
    model = keras.Model(inputs, outputs)
    for watch in watches:
        watch.seen.clear()
    data = np.ones((2, 4), "float32")
    for training in (True, True, False, True):
        model(data, training=training)
    assert watches[0].seen == [False, False, False, False]
    assert watches[1].seen == [True, True, False, True]
    assert watches[2].seen == [True, True, False, True]


def test_a_draw_that_fails_puts_its_seed_back():
    """Oracle: the seed before, as after a draw at inference that succeeds."""
    layer = layers.VDDense(4, kl_weight=1.0)
    layer.build((None, 3))
    posterior = layer.kernel_posterior
    generator = posterior.seed_generator
    before = to_numpy(generator.state)

    def fail():
        with posterior._one_draw():
            generator.next()
            raise ZeroDivisionError

    with sampling_at_inference(), pytest.raises(ZeroDivisionError):
        fail()
    np.testing.assert_array_equal(to_numpy(generator.state), before)


def test_keras_does_not_track_what_a_posterior_is_bound_to():
    """Oracle: the layers that own the weight and the groups."""
    layer = layers.VDDense(4, groups=("input",), kl_weight=1.0)
    layer.build((None, 3))
    posterior = layer.kernel_posterior
    assert posterior.weight is layer.kernel
    assert posterior.binding.groups["input"].posterior is layer.input_group
    own = {id(x) for x in posterior.variables}
    assert id(layer.kernel) not in own
    assert not own & {id(x) for x in layer.input_group.weights}
    with pytest.raises(dataclasses.FrozenInstanceError):
        posterior.binding.weight = None
