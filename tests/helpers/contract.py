"""What every variational layer has to satisfy, and helpers for its tests.

A test module lists its `Case`s and subclasses a contract:

    @parametrize(CASES)
    class TestContract(LayerContract):
        pass

`LinearContract` has more for dense layers and convolutions.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops
from keras.src.testing import TestCase

from keras_vd import posteriors, variational_weights
from tests.helpers.arrays import to_numpy
from tests.helpers.gradients import gradient
from tests.helpers.plain import linear_moments, plain_class

KL_WEIGHT = 0.1
# Bound on a standard normal statistic; a two-sided 5e-7 for each element.
MAX_Z = 5.0
NUM_DRAWS = 4000
# One has all factors that a share can have, the other one none of them.
SHARES = ("rank1", pytest.param("layer", marks=pytest.mark.integration))
SHARED_OPS = ("_shared_op", "_pointwise_shared_op")
IS_JAX = keras.backend.backend() == "jax"
# Arguments of Keras layers for what variational layers do not offer.
REFUSED_ARGUMENTS = {
    "lora_rank",
    "lora_alpha",
    "gptq_unpacked_column_size",
    "quantization_config",
}
POSTERIOR_CONFIG = {"threshold": 2.5, "log_sigma2_init": -7.0}


@dataclasses.dataclass(frozen=True)
class Case:
    """One layer with one set of arguments.

    Attributes:
        name: Name of the case in the test report.
        layer: Class of the variational layer.
        input_shape: Shape of one example, without the batch.
        arguments: Arguments of the Keras layer.
        core: Whether to run the case on all backends.
        weights: Names of the weights that have a posterior.
        groups: Value of the argument `groups`.
        multiply: Slow and simple: multiplies a dict of weights (and bias) by
            a dict of group variables.
    """

    name: str
    layer: type
    input_shape: tuple[int, ...]
    arguments: dict[str, Any]
    core: bool = False
    weights: tuple[str, ...] = ("kernel",)
    groups: tuple[str, ...] = ()
    multiply: Callable[..., Any] | None = None

    def make(self, **arguments: Any) -> Any:
        """The variational layer, built, with random weights."""
        layer = self.layer(
            **{"kl_weight": KL_WEIGHT, **self.all_arguments, **arguments}
        )
        layer.build((None, *self.input_shape))
        randomize(layer)
        return layer

    @property
    def all_arguments(self) -> dict[str, Any]:
        """`arguments`, and `groups` where the case has some."""
        groups = {"groups": self.groups} if self.groups else {}
        return {**self.arguments, **groups}

    def linear(self) -> Case:
        """The same case without an activation."""
        arguments = {**self.arguments, "activation": None}
        return dataclasses.replace(self, arguments=arguments)

    def inputs(self, batch_size: int = 3, seed: int = 1) -> np.ndarray:
        """Random examples."""
        shape = (batch_size, *self.input_shape)
        inputs = np.random.default_rng(seed).normal(size=shape)
        return inputs.astype("float32")

    def call(self, layer: Any, inputs: Any, **options: Any) -> Any:
        """Use the layer, also on symbolic inputs."""
        return layer(inputs, **options)

    def model(self, layer: Any) -> keras.Model:
        """A model of that one layer."""
        return keras.Sequential([keras.Input(self.input_shape), layer])

    def owner(self, layer: Any) -> Any:
        """What has the weights: the layer, or its cell."""
        return layer

    def bias(self, layer: Any) -> Any:
        """Variable, or None where there is no bias."""
        return getattr(self.owner(layer), "bias", None)

    def posteriors(self, layer: Any) -> list[posteriors.WeightPosterior]:
        """Posteriors in the order of `weights`, then of `groups`."""
        return [
            *(getattr(layer, f"{name}_posterior") for name in self.weights),
            *(getattr(layer, f"{name}_group") for name in self.groups),
        ]

    def trainable_paths(self, layer: Any) -> list[str]:
        """Paths of means and log variances below the layer."""
        owner = self.owner(layer)
        prefix = "" if owner is layer else f"{owner.name}/"
        return [
            *(f"{prefix}{name}" for name in self.weights),
            *(f"{name}_posterior/log_sigma2" for name in self.weights),
            *(f"{name}_group/scales" for name in self.groups),
            *(f"{name}_group/log_sigma2" for name in self.groups),
        ]

    def plain(self, layer: Any, means: Iterable[Any]) -> Any:
        """The Keras layer with these kernels and the bias of `layer`.

        Args:
            layer: The variational layer.
            means: What its `posteriors` are at inference, in that order.
        """
        means = dict(zip(self.weights + self.groups, means, strict=True))
        values = {name: means[name] for name in self.weights}
        if self.bias(layer) is not None:
            values["bias"] = to_numpy(self.bias(layer))
        if self.groups:
            scales = {name: means[name] for name in self.groups}
            values = self.multiply(values, scales)
        plain = plain_class(self.layer)(**self.arguments)
        plain.build((None, *self.input_shape))
        for name, value in values.items():
            getattr(self.owner(plain), name).assign(value)
        return plain


def parametrize(cases: Iterable[Case]) -> pytest.MarkDecorator:
    """Run a test, or all tests of a class, on every case."""
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(case, id=case.name, marks=list(_marks(case)))
            for case in cases
        ],
    )


def _marks(case: Case) -> Iterator[pytest.MarkDecorator]:
    if case.core:
        yield pytest.mark.core
    if not is_possible_here(case):
        yield pytest.mark.skip(reason="Keras' layer does not run here, either")


def is_possible_here(case: Case) -> bool:
    """Whether TensorFlow has the convolution: CPUs without oneDNN lack some."""
    if case.arguments.get("data_format") != "channels_first":
        return True
    try:
        plain_class(case.layer)(**case.arguments)(case.inputs())
    except Exception as error:
        if type(error).__module__.startswith("tensorflow."):
            return False
        raise
    return True


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-6) -> None:
    """Equal up to `tolerance`, relative or absolute."""
    np.testing.assert_allclose(
        to_numpy(actual), to_numpy(expected), rtol=tolerance, atol=tolerance
    )


def assert_equal(actual: Any, expected: Any) -> None:
    """Equal bit by bit."""
    np.testing.assert_array_equal(to_numpy(actual), to_numpy(expected))


def randomize(layer: Any, seed: int = 0) -> None:
    """Give `layer` random weights that are far from being pruned.

    |theta| >= 0.1 and log_sigma2 <= -3, so log_alpha < 1.7.
    """
    generator = np.random.default_rng(seed)
    for variable in layer.trainable_variables:
        shape = tuple(variable.shape)
        if variable.name == "log_sigma2":
            value = generator.uniform(-5.0, -3.0, shape)
        elif variable.name == "log_alpha":
            value = generator.uniform(-2.0, 0.0, shape)
        else:
            sign = generator.choice([-1.0, 1.0], shape)
            value = sign * generator.uniform(0.1, 0.5, shape)
        variable.assign(value.astype("float32"))


def doom(posterior: Any, fraction: float = 0.4, seed: int = 11) -> np.ndarray:
    """Put a random part of the weights above the threshold.

    Returns:
        Bool array of the weight's shape; False is above.
    """
    shape = posterior.log_sigma2.shape
    kept = np.random.default_rng(seed).uniform(size=shape) >= fraction
    log_sigma2 = to_numpy(posterior.log_sigma2)
    posterior.log_sigma2.assign(np.where(kept, log_sigma2, 6.0))
    return np.broadcast_to(kept, posterior.theta.shape)


def draw(layer: Any, example: Any, num_draws: int = NUM_DRAWS) -> np.ndarray:
    """Independent training outputs for one example, of shape `(1, ...)`."""
    inputs = np.repeat(example, num_draws, axis=0)
    return to_numpy(layer(inputs, training=True)).astype("float64")


def assert_moments(
    draws: np.ndarray, mean: Any, variance: Any, kurtosis: float = 3.0
) -> None:
    """Compare the sample mean and variance of `draws` with their values.

    The sample mean of n draws has variance v / n; the sample variance has
    relative variance (kurtosis - 1) / n. Both must be within `MAX_Z` standard
    deviations.
    """
    num_draws = len(draws)
    mean, variance = np.asarray(mean), np.asarray(variance)
    z_mean = (draws.mean(0) - mean) / np.sqrt(variance / num_draws)
    assert np.max(np.abs(z_mean)) < MAX_Z
    error = draws.var(0, ddof=1) / variance - 1.0
    z_variance = error / np.sqrt((kurtosis - 1.0) / num_draws)
    assert np.max(np.abs(z_variance)) < MAX_Z


def training_gradients(
    layer: Any, inputs: Any, call: Callable[..., Any] = operator.call
) -> dict[str, np.ndarray]:
    """Gradients of sum(outputs^2) + losses by the variables' paths."""
    variables = layer.trainable_variables

    def objective(*values: Any) -> Any:
        state = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state, collect_losses=True):
            outputs = call(layer, inputs, training=True)
            losses = layer.losses
        return ops.sum(ops.square(ops.cast(outputs, "float32"))) + sum(losses)

    values = [to_numpy(variable) for variable in variables]
    gradients = gradient(objective, *values)
    paths = [
        variable.path.removeprefix(f"{layer.name}/") for variable in variables
    ]
    return dict(zip(paths, map(to_numpy, gradients), strict=True))


def sequential(case: Case, layer: Any) -> keras.Model:
    """A model of that one layer."""
    return case.model(layer)


def check_every_argument(
    layer_class: type,
    *variants: dict[str, Any],
    ignored_by_keras: Iterable[str] = (),
) -> None:
    """Check the config round trip with every argument off its default.

    Args:
        layer_class: Class of a variational layer.
        *variants: Arguments; several where some exclude each other.
        ignored_by_keras: Arguments that the Keras layer takes and drops.

    Oracle: the default layer's config, from which the variants have to
    differ in all that the constructor's signature names.
    """
    parameters = inspect.signature(layer_class).parameters
    required = {
        name: variants[0][name]
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    default = layer_class(**required).get_config()
    plain = plain_class(layer_class)
    forgotten_by_keras = set(inspect.signature(plain).parameters) - set(
        plain(**required).get_config()
    )
    unchanged = set(parameters) - set(required) - REFUSED_ARGUMENTS
    unchanged -= forgotten_by_keras.union(ignored_by_keras)
    ours: dict[str, Any] = {"posterior": "ard", "kl_weight": 0.25}
    variants = tuple({**arguments, **ours} for arguments in variants)
    if "bias_posterior" in parameters:
        # Some variants have no bias, and einsum layers none by default.
        axes = {k: v for k, v in variants[0].items() if k == "bias_axes"}
        biased = {**required, **axes, "bias_posterior": "gaussian"}
        variants = (*variants, biased)
    for arguments in variants:
        layer = layer_class(**arguments)
        config = layer.get_config()
        assert layer_class.from_config(config).get_config() == config
        unchanged -= {
            name for name in unchanged if config[name] != default.get(name)
        }
    assert unchanged == set(), unchanged


class LayerContract:
    """Tests that every variational layer has to pass."""

    @pytest.mark.integration
    def test_keras_own_layer_test(self, case: Case) -> None:
        """Oracle: Keras' harness, and counts worked out by hand.

        Trainable: each weight or group variable and its log_sigma2, and the
        bias. Others: each posterior's keep_mask and KL weight; a seed
        generator each, and those of the Keras layer.
        """
        num_weights = len(case.weights + case.groups)
        plain = plain_class(case.layer)(**case.arguments)
        plain.build((None, *case.input_shape))
        num_seeds = num_weights + len(plain.non_trainable_variables)
        has_bias = case.bias(plain) is not None
        TestCase().run_layer_test(
            case.layer,
            init_kwargs={**case.all_arguments, "kl_weight": KL_WEIGHT},
            input_shape=(2, *case.input_shape),
            input_dtype=case.inputs().dtype.name,
            call_kwargs={"training": True},
            expected_output_shape=plain.compute_output_shape(
                (2, *case.input_shape)
            ),
            expected_num_trainable_weights=2 * num_weights + has_bias,
            expected_num_non_trainable_weights=2 * num_weights,
            expected_num_non_trainable_variables=2 * num_weights + num_seeds,
            expected_num_seed_generators=num_seeds,
            expected_num_losses=num_weights,
            supports_masking=plain.supports_masking,
            # Compiling a step takes seconds on JAX.
            run_training_check=case.core or not IS_JAX,
            run_mixed_precision_check=case.core,
        )

    def test_inference_equals_keras_layer(self, case: Case) -> None:
        """Oracle: the Keras layer, also with pruned weights at zero."""
        layer, inputs = case.make(), case.inputs()
        found = case.posteriors(layer)
        thetas = [to_numpy(posterior.theta) for posterior in found]
        plain = case.plain(layer, thetas)
        assert_close(case.call(layer, inputs), case.call(plain, inputs))
        masked = [
            np.where(doom(posterior), theta, 0.0)
            for posterior, theta in zip(found, thetas, strict=True)
        ]
        expected = case.call(case.plain(layer, masked), inputs)
        assert_close(case.call(layer, inputs), expected)
        for posterior in found:
            posterior.prune()
            posterior.log_sigma2.assign(posterior.log_sigma2 * 0.0 - 9.0)
        assert_close(case.call(layer, inputs), expected)

    def test_save_and_load(self, case: Case, tmp_path: Any) -> None:
        """Oracle: the layer that was saved, pruned and annealed."""
        layer = case.make()
        model, inputs = sequential(case, layer), case.inputs()
        for posterior in case.posteriors(layer):
            doom(posterior)
            posterior.prune(2.0)
            posterior.kl_weight.assign(0.0123)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        # Compiled loops may round in other ways.
        assert_close(loaded(inputs), model(inputs))
        for ours, theirs in zip(model.weights, loaded.weights, strict=True):
            assert_equal(theirs, ours)
        revived_layer = loaded.get_layer(layer.name)
        assert revived_layer.get_config() == layer.get_config()
        revived = case.posteriors(revived_layer)
        for ours, theirs in zip(case.posteriors(layer), revived, strict=True):
            assert_equal(theirs.keep_mask, ours.keep_mask)
            assert not to_numpy(theirs.keep_mask).all()
            assert to_numpy(theirs.kl_weight) == np.float32(0.0123)
            assert theirs.kl_weight.is_set

    @pytest.mark.parametrize("form", ["string", "object", "config"])
    def test_config_round_trip(self, case: Case, form: str) -> None:
        """Identity: get_config describes what from_config made."""
        template = posteriors.ARD(**POSTERIOR_CONFIG)
        posterior = {
            "string": "ard",
            "object": template,
            "config": posteriors.serialize(template),
        }[form]
        layer = case.layer(
            **case.all_arguments, posterior=posterior, kl_weight=0.25
        )
        config = layer.get_config()
        revived = case.layer.from_config(config)
        assert revived.get_config() == config
        for found in case.posteriors(revived):
            assert type(found) is posteriors.ARD
            is_default = form == "string"
            assert found.threshold == (3.0 if is_default else 2.5)
            assert found.log_sigma2_init == (None if is_default else -7.0)
            assert found.initial_kl_weight == 0.25

    def test_called_twice(self, case: Case) -> None:
        """Oracle: one KL, of `kl_divergence`, however many calls."""
        layer = case.make()
        ends = [keras.Input(case.input_shape) for _ in range(2)]
        model = keras.Model(ends, [case.call(layer, end) for end in ends])
        model([case.inputs(3), case.inputs(3, seed=5)], training=True)
        assert len(model.losses) == len(case.weights + case.groups)
        divergences = [
            to_numpy(posterior.kl_divergence())
            for posterior in case.posteriors(layer)
        ]
        assert_close(
            sorted(to_numpy(loss) for loss in model.losses),
            KL_WEIGHT * np.sort(divergences),
        )

    def test_gradients(self, case: Case) -> None:
        """Every variational parameter learns, from the outputs alone."""
        layer = case.linear().make(kl_weight=0.0)
        gradients = training_gradients(layer, case.inputs(), case.call)
        for path in case.trainable_paths(layer):
            assert np.isfinite(gradients[path]).all()
            assert np.mean(gradients[path] != 0.0) > 0.9


class LinearContract(LayerContract):
    """Tests that every dense layer and convolution has to pass."""

    def test_training_moments(self, case: Case) -> None:
        """Oracle: closed form through Keras layers, see `linear_moments`."""
        keras.utils.set_random_seed(3)
        case = case.linear()
        layer, example = case.make(), case.inputs(1)
        found = case.posteriors(layer)
        mean, variance, kurtosis = linear_moments(
            plain_class(case.layer),
            case.arguments,
            example,
            [to_numpy(posterior.theta) for posterior in found],
            [np.exp(to_numpy(posterior.log_sigma2)) for posterior in found],
        )
        if layer.bias is not None:
            plain = case.plain(
                layer, [np.zeros(posterior.theta.shape) for posterior in found]
            )
            mean = mean + to_numpy(plain(example))
        assert_moments(draw(layer, example), mean[0], variance[0], kurtosis)

    def test_noise_and_estimator(self, case: Case) -> None:
        """Identity: equal rows in, equal rows out only for one weight."""
        inputs = np.repeat(case.inputs(1), 2, axis=0)
        for estimator, is_equal in (("local", False), ("weight", True)):
            layer = case.make(
                posterior=posteriors.SparseVD(estimator=estimator),
                activation=None,
            )
            first, second = (
                to_numpy(layer(inputs, training=True)) for _ in range(2)
            )
            spread = np.abs(first[0] - first[1]).max()
            assert (spread < 1e-5) == is_equal
            assert np.abs(first - second).max() > 1e-2
            assert_equal(layer(inputs), layer(inputs))

    @pytest.mark.parametrize("share", SHARES)
    def test_shared_variances(self, case: Case, share: str) -> None:
        """Oracle: the product of all variances, with the same noise."""
        layer = case.make(posterior=posteriors.SparseVD(share=share))
        check_shared_variances(layer, case.inputs())


def check_shared_variances(layer: Any, inputs: Any) -> None:
    """Compare outputs and gradients with those of a second product.

    Before weights are pruned and afterwards; a weight that is gone has no
    noise. Oracle: the same noise, and the autodiff of that product.
    """

    def outputs_and_gradients() -> dict[str, np.ndarray]:
        with keras.StatelessScope():
            outputs = to_numpy(layer(inputs, training=True))
        return {"": outputs, **training_gradients(layer, inputs)}

    shared_ops = [name for name in SHARED_OPS if hasattr(layer, name)]
    found, expected = [], []
    for is_pruned in (False, True):
        if is_pruned:
            for posterior in variational_weights(layer):
                kept = np.arange(math.prod(posterior.theta.shape)) % 5 > 0
                posterior.keep_mask.assign(kept.reshape(posterior.theta.shape))
        found.append(outputs_and_gradients())
        for name in shared_ops:
            setattr(layer, name, None)
        expected.append(outputs_and_gradients())
        for name in shared_ops:
            delattr(layer, name)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for path in theirs:
            size = np.abs(theirs[path]).max()
            np.testing.assert_allclose(
                ours[path], theirs[path], rtol=1e-4, atol=1e-4 * size
            )
    # Shared variances and the mask take part in what is compared.
    assert np.abs(found[0][""] - found[1][""]).max() > 1e-3


class MixedPrecisionContract:
    """Tests that some case of every kind of layer has to pass."""

    @pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
    def test_mixed_precision(self, case: Case, policy: str) -> None:
        """Oracle: the float32 layer's KL, bit by bit; finite elsewhere."""
        full = case.make()
        mixed = case.make(dtype=policy)
        inputs = case.inputs()
        outputs = case.call(mixed, inputs, training=True)
        case.call(full, inputs, training=True)
        dtype = keras.backend.standardize_dtype(outputs.dtype)
        assert dtype == policy.removeprefix("mixed_")
        assert np.isfinite(to_numpy(ops.cast(outputs, "float32"))).all()
        for ours, theirs in zip(full.losses, mixed.losses, strict=True):
            assert keras.backend.standardize_dtype(theirs.dtype) == "float32"
            assert to_numpy(ours) == to_numpy(theirs)
        for value in training_gradients(mixed, inputs, case.call).values():
            assert np.isfinite(value.astype("float32")).all()
