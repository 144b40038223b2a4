from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
from keras import ops

from keras_vd import layers, posteriors, priors
from tests.helpers.arrays import to_numpy
from tests.helpers.contract import (
    KL_WEIGHT,
    Case,
    assert_close,
    assert_equal,
    draw,
    plain_class,
    sequential,
    training_gradients,
)

DENSE = Case("dense", layers.VDDense, (4,), {"units": 3})
CONV = Case("conv", layers.VDConv1D, (5, 2), {"filters": 2, "kernel_size": 2})
# Standard deviation of a float32 output whose variance is zero.
FLOOR = 1e-4
# The largest normal that 24 random bits can make is below 6.
MAX_NOISE = 6.0 * FLOOR
VARIATIONAL_LAYERS = [x for x in layers.__all__ if x.startswith("VD")]


@pytest.mark.parametrize("name", VARIATIONAL_LAYERS)
def test_signature_is_the_keras_layers_and_ours(name):
    """Oracle: the signature of the Keras layer."""
    layer = getattr(layers, name)
    ours = dict(inspect.signature(layer).parameters)
    theirs = dict(inspect.signature(plain_class(layer)).parameters)
    assert ours.pop("posterior").default == "sparse_vd"
    assert ours.pop("kl_weight").default is None
    if "groups" not in theirs:
        assert ours.pop("groups").default == ()
    if {"use_bias", "bias_axes"} & set(theirs):
        assert ours.pop("bias_posterior").default is None
    if "weight_samples" in ours:
        assert ours.pop("weight_samples").default == "batch"
    assert set(ours) == set(theirs)
    assert [name for name in ours if name in theirs] == list(theirs)
    for argument, parameter in theirs.items():
        assert ours[argument].default == parameter.default


@pytest.mark.core
@pytest.mark.parametrize("layer", [DENSE, CONV], ids=lambda case: case.name)
def test_pure_float16_is_refused(layer):
    with pytest.raises(ValueError, match="mixed_float16") as error:
        layer.layer(**layer.arguments, dtype="float16")
    assert "dtype='float16'" in str(error.value)
    assert "'mixed_bfloat16'" in str(error.value)


def test_pure_bfloat16_is_finite():
    layer = DENSE.make(dtype="bfloat16")
    outputs = ops.cast(layer(DENSE.inputs(), training=True), "float32")
    assert np.isfinite(to_numpy(outputs)).all()
    assert layer.kernel_posterior.log_sigma2.dtype == "float32"
    assert keras.backend.standardize_dtype(layer.losses[0].dtype) == "float32"


@pytest.mark.parametrize(
    "use",
    [
        lambda: layers.VDDense(3, lora_rank=2),
        lambda: DENSE.make().enable_lora(2),
        lambda: DENSE.make().quantize("int8"),
        lambda: CONV.make().quantize("int8"),
        lambda: layers.VDDense(3, dtype="int8_from_float32"),
    ],
)
def test_lora_and_quantization_are_refused(use):
    with pytest.raises(ValueError, match="to_deterministic"):
        use()


@pytest.mark.core
@pytest.mark.parametrize("posterior", ["sparse", None, 3, [], SyntaxError])
def test_unknown_posterior(posterior):
    with pytest.raises(ValueError, match="Argument `posterior`") as error:
        layers.VDDense(3, posterior=posterior)
    for name in ("vd", "sparse_vd", "ard", "gaussian"):
        assert f"'{name}'" in str(error.value)
    assert f"posterior={posterior!r}" in str(error.value)


def test_config_of_something_else_as_posterior():
    config = keras.saving.serialize_keras_object(priors.ARD())
    with pytest.raises(ValueError, match=r"object from `keras_vd.posteriors`"):
        layers.VDDense(3, posterior=config)


@pytest.mark.core
def test_missing_kl_weight_names_both_remedies():
    layer = DENSE.make(kl_weight=None)
    layer(DENSE.inputs())
    with pytest.raises(ValueError, match=r"kl_weight=1 / N") as error:
        layer(DENSE.inputs(), training=True)
    assert "KLAnnealing(num_examples=N)" in str(error.value)
    assert layer.name in str(error.value)


def test_missing_kl_weight_stops_fit():
    model = sequential(DENSE, DENSE.make(kl_weight=None))
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="KLAnnealing"):
        model.train_on_batch(DENSE.inputs(), np.zeros((3, 3)))


@pytest.mark.core
@pytest.mark.parametrize("value", [0.0, 0.25])
def test_ways_to_set_the_kl_weight(value, tmp_path):
    """Oracle: the loss is the KL weight times `kl_divergence`."""
    built, assigned = DENSE.make(kl_weight=value), DENSE.make(kl_weight=None)
    template = DENSE.make(
        kl_weight=None, posterior=posteriors.SparseVD(kl_weight=value)
    )
    assigned.kernel_posterior.kl_weight.assign(value)
    model = sequential(DENSE, DENSE.make(kl_weight=None))
    model.save_weights(tmp_path / "unset.weights.h5")
    sequential(DENSE, built).save_weights(tmp_path / "set.weights.h5")
    model.load_weights(tmp_path / "set.weights.h5")
    for layer in (built, template, assigned, model.layers[0]):
        layer(DENSE.inputs(), training=True)
        divergence = to_numpy(layer.kernel_posterior.kl_divergence())
        assert_close(layer.losses[0], value * divergence)
    model.load_weights(tmp_path / "unset.weights.h5")
    with pytest.raises(ValueError, match="KL weight"):
        model(DENSE.inputs(), training=True)


@pytest.mark.core
def test_unset_kl_weight_stays_unset_in_files(tmp_path):
    sequential(DENSE, DENSE.make(kl_weight=None)).save(tmp_path / "m.keras")
    model = keras.saving.load_model(tmp_path / "m.keras")
    posterior = model.layers[0].kernel_posterior
    assert not posterior.kl_weight.is_set
    with pytest.raises(ValueError, match="KLAnnealing"):
        model(DENSE.inputs(), training=True)
    posterior.kl_weight.assign(0.5)
    model(DENSE.inputs(), training=True)
    assert_close(model.losses[0], 0.5 * to_numpy(posterior.kl_divergence()))


@pytest.mark.parametrize("value", [float("nan"), -0.5])
def test_assigning_no_weight_counts_as_unset(value):
    layer = DENSE.make()
    layer.kernel_posterior.kl_weight.assign(value)
    with pytest.raises(ValueError, match="KL weight"):
        layer(DENSE.inputs(), training=True)


@pytest.mark.core
def test_bias_has_no_noise():
    """Oracle: zero inputs give the bias, up to the floor of the variance."""
    layer = DENSE.make()
    layer.kernel_posterior.log_sigma2.assign(np.zeros((4, 3)))
    layer.bias.assign([100.0, -3.0, 0.5])
    noise = draw(layer, np.zeros((1, 4), "float32"), 1000)
    noise = noise - to_numpy(layer.bias)
    # 100 + 1e-4 is rounded to multiples of 8e-6
    assert np.abs(noise).max() < MAX_NOISE + 1e-5
    assert noise.std() == pytest.approx(FLOOR, rel=0.1)


@pytest.mark.core
@pytest.mark.parametrize("case", [DENSE, CONV], ids=lambda case: case.name)
def test_tiny_variance_is_deterministic(case):
    """Oracle: the inference output, up to the floor of the variance."""
    layer, inputs = case.make(), case.inputs()
    posterior = layer.kernel_posterior
    posterior.log_sigma2.assign(np.full(posterior.theta.shape, -1e2))
    difference = to_numpy(layer(inputs, training=True)) - to_numpy(
        layer(inputs)
    )
    assert np.abs(difference).max() < MAX_NOISE


@pytest.mark.core
@pytest.mark.parametrize("name", ["sparse_vd", "ard", "gaussian", "vd"])
def test_finite_gradients_at_zero(name):
    """Zero inputs and zero weights: no sqrt or log of zero may leak."""
    layer, inputs = DENSE.make(posterior=name), DENSE.inputs()
    theta = to_numpy(layer.kernel).copy()
    theta[0] = 0.0
    layer.kernel.assign(theta)
    inputs[1] = 0.0
    for value in training_gradients(layer, inputs).values():
        assert np.isfinite(value).all()
    for value in training_gradients(layer, inputs * 0.0).values():
        assert np.isfinite(value).all()


@pytest.mark.core
@pytest.mark.parametrize("case", [DENSE, CONV], ids=lambda case: case.name)
def test_kl_loss_does_not_know_the_batch(case):
    """Identity: same loss for every batch size and number of positions."""
    layer, losses = case.make(), []
    for shape in [(1, *case.input_shape), (7, *case.input_shape)]:
        layer(np.ones(shape, "float32"), training=True)
        losses.append(to_numpy(layer.losses[0]))
    if case is CONV:
        layer(np.ones((2, 9, 2), "float32"), training=True)
        losses.append(to_numpy(layer.losses[0]))
    assert len(set(map(float, losses))) == 1
    assert losses[0] > 0.0


def test_only_training_has_losses():
    layer = DENSE.make()
    layer(DENSE.inputs(), training=True)
    assert len(layer.losses) == 1
    layer(DENSE.inputs())
    assert layer.losses == []


@pytest.mark.core
def test_weights_belong_to_one_place():
    """Oracle: counted by hand; the kernel is the layer's, not ours."""
    layer = DENSE.make()
    posterior = layer.kernel_posterior
    names = [weight.path.split("/", 1)[1] for weight in layer.weights]
    assert sorted(names) == [
        "bias",
        "kernel",
        "kernel_posterior/keep_mask",
        "kernel_posterior/kl_weight",
        "kernel_posterior/log_sigma2",
    ]
    assert len({id(weight) for weight in layer.weights}) == 5
    assert len({id(variable) for variable in layer.variables}) == 6
    assert all(weight is not layer.kernel for weight in posterior.weights)
    assert posterior.label == layer.name
    separable = layers.VDSeparableConv1D(2, 2, name="separable")
    separable.build((None, 4, 2))
    labels = [
        separable.depthwise_kernel_posterior.label,
        separable.pointwise_kernel_posterior.label,
    ]
    assert labels == [
        "separable/depthwise_kernel",
        "separable/pointwise_kernel",
    ]


@pytest.mark.core
def test_time_distributed_counts_the_kl_once():
    """Oracle: one KL; each step equals the layer on its own."""
    layer = DENSE.make()
    model = keras.Sequential(
        [keras.Input((6, 4)), keras.layers.TimeDistributed(layer)]
    )
    inputs = np.random.default_rng(0).normal(size=(2, 6, 4)).astype("float32")
    outputs = to_numpy(model(inputs, training=True))
    assert len(model.losses) == 1
    divergence = to_numpy(layer.kernel_posterior.kl_divergence())
    assert_close(model.losses[0], KL_WEIGHT * divergence)
    same = to_numpy(model(np.ones((1, 6, 4), "float32"), training=True))
    assert len(np.unique(same[0, :, 0])) == 6
    assert outputs.shape == (2, 6, 3)
    expected = [to_numpy(layer(inputs[:, step])) for step in range(6)]
    assert_close(model(inputs), np.stack(expected, axis=1))


@pytest.mark.core
def test_random_seed_makes_training_reproducible():
    """Identity: same seed, same weights after training; else not."""
    results = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        layer = layers.VDDense(3, kl_weight=KL_WEIGHT)
        layer.build((None, 4))
        layer.kernel.assign(np.ones((4, 3)))
        layer.kernel_posterior.log_sigma2.assign(np.zeros((4, 3)))
        model = sequential(DENSE, layer)
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        for _ in range(2):
            model.train_on_batch(DENSE.inputs(), np.zeros((3, 3)))
        results.append(to_numpy(layer.kernel))
    assert_equal(results[0], results[1])
    assert np.abs(results[0] - results[2]).max() > 1e-3


@pytest.mark.integration
@pytest.mark.core
@pytest.mark.parametrize("jit_compile", [True, False])
def test_compiled_training_loss(jit_compile):
    """Oracle: mean squared error of the inference output, plus the KL."""
    if jit_compile and keras.backend.backend() == "torch":
        pytest.skip("torch compiles the added losses anew at every step")
    layer = DENSE.make()
    posterior = layer.kernel_posterior
    posterior.log_sigma2.assign(np.full((4, 3), -30.0))
    model, inputs = sequential(DENSE, layer), DENSE.inputs()
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=jit_compile)
    targets = np.zeros((3, 3), "float32")
    error = float(np.mean(to_numpy(layer(inputs)) ** 2))
    expected = error + KL_WEIGHT * to_numpy(posterior.kl_divergence())
    # noise of 1e-4 on nine outputs of about 1
    for _ in range(2):
        loss = model.train_on_batch(inputs, targets)
        assert loss == pytest.approx(expected, abs=5e-4)
    loss = model.evaluate(inputs, targets, verbose=0)
    assert loss == pytest.approx(error, rel=1e-5)


@keras.saving.register_keras_serializable(package="tests")
class LaplacePrior(priors.Prior):
    """Not a real divergence: something to recognize."""

    def kl_divergence(self, theta, log_sigma2, log_alpha):
        return ops.abs(theta) + 2.0 * ops.exp(log_sigma2)


@keras.saving.register_keras_serializable(package="tests")
class FixedNoise(posteriors.WeightPosterior):
    """Noise of one variance that nobody learns."""

    def __init__(self, sigma2=0.25, **options):
        super().__init__(**{"prior": LaplacePrior(), **options})
        self.sigma2 = sigma2

    def _log_variances(self, theta):
        log_sigma2 = ops.log(ops.ones_like(theta) * self.sigma2)
        return log_sigma2, log_sigma2 - ops.log(ops.square(theta) + 1e-8)

    def get_config(self):
        return {"sigma2": self.sigma2, **super().get_config()}


@pytest.mark.core
def test_user_defined_posterior_and_prior(tmp_path):
    """Oracle: the formulas above, in NumPy."""
    layer = DENSE.make(posterior=FixedNoise(0.5, kl_scale=2.0))
    model, inputs = sequential(DENSE, layer), DENSE.inputs()
    theta = to_numpy(layer.kernel)
    divergence = np.sum(np.abs(theta) + 1.0)
    posterior = layer.kernel_posterior
    assert_close(posterior.kl_divergence(), divergence)
    model(inputs, training=True)
    assert_close(model.losses[0], 2.0 * KL_WEIGHT * divergence)
    assert len(layer.trainable_weights) == 2
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_equal(loaded(inputs), model(inputs))
    assert type(loaded.layers[0].kernel_posterior) is FixedNoise
    assert loaded.layers[0].get_config() == layer.get_config()


@pytest.mark.parametrize("name", ["sparse_vd", "ard", "gaussian", "vd"])
def test_every_posterior_is_saved_and_loaded(name, tmp_path):
    """A posterior and a prior of one name must not be mixed up in files."""
    layer = DENSE.make(posterior=name)
    model = sequential(DENSE, layer)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").layers[0]
    ours, theirs = layer.kernel_posterior, loaded.kernel_posterior
    assert type(theirs) is type(ours)
    assert type(theirs.prior) is type(ours.prior)
    assert loaded.get_config() == layer.get_config()
    assert_close(theirs.kl_divergence(), ours.kl_divergence())


def test_zero_weights_give_zero_mean():
    """Oracle: symmetry; mean 0 and variance sigma2 * sum(x^2)."""
    keras.utils.set_random_seed(0)
    layer = layers.VDDense(
        3,
        kernel_initializer="zeros",
        posterior=posteriors.Gaussian(log_sigma2_init=0.0),
        kl_weight=0.0,
    )
    outputs = draw(layer, np.full((1, 4), 0.5, "float32"), 10_000)
    assert np.abs(outputs.mean(0)).max() < 5.0 / np.sqrt(10_000)
    assert np.abs(outputs.var(0) - 1.0).max() < 5.0 * np.sqrt(2.0 / 10_000)


def test_activation_comes_after_the_noise():
    """Oracle: relu's range, reached on both sides."""
    layer = DENSE.make(activation="relu")
    layer.kernel_posterior.log_sigma2.assign(np.zeros((4, 3)))
    outputs = draw(layer, DENSE.inputs(1), 200)
    assert outputs.min() == 0.0
    assert outputs.max() > 0.0
    assert 0.0 < np.mean(outputs == 0.0) < 1.0
