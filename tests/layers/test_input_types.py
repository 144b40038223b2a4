"""Oracle: the Keras layer of the same name, with the same weights."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from keras_vd import layers, posteriors
from tests.helpers.arrays import to_numpy
from tests.helpers.contract import KL_WEIGHT
from tests.helpers.plain import plain_class

TYPES = (
    *("bool", "int8", "uint8", "int64", "float16", "float64"),
    # Everything is compiled anew for every type, which takes JAX long.
    pytest.param("int32", marks=pytest.mark.core),
)
IMAGES = (5, 6, 4)
SEQUENCES = (5, 4)
CASES = {
    "dense": (layers.VDDense, {"units": 3}, (4,)),
    "einsum": (
        layers.VDEinsumDense,
        {"equation": "abc,cd->abd", "output_shape": (None, 3)},
        SEQUENCES,
    ),
    # Sums of 8 bits overflow.
    "einsum_summing": (
        layers.VDEinsumDense,
        {"equation": "abc,cd->ad", "output_shape": (3,)},
        SEQUENCES,
    ),
    "conv1d": (
        layers.VDConv1D,
        {"filters": 3, "kernel_size": 2, "padding": "causal"},
        SEQUENCES,
    ),
    "conv2d": (layers.VDConv2D, {"filters": 3, "kernel_size": 2}, IMAGES),
    "conv2d_transpose": (
        layers.VDConv2DTranspose,
        {"filters": 3, "kernel_size": 2},
        IMAGES,
    ),
    "depthwise": (layers.VDDepthwiseConv2D, {"kernel_size": 2}, IMAGES),
    "separable": (
        layers.VDSeparableConv2D,
        {"filters": 3, "kernel_size": 2},
        IMAGES,
    ),
    "embedding": (
        layers.VDEmbedding,
        {"input_dim": 150, "output_dim": 3},
        (4,),
    ),
    "simple_rnn": (layers.VDSimpleRNN, {"units": 3}, SEQUENCES),
    "lstm": (layers.VDLSTM, {"units": 3}, SEQUENCES),
    "gru": (layers.VDGRU, {"units": 3}, SEQUENCES),
    "attention": (
        layers.VDMultiHeadAttention,
        {"num_heads": 2, "key_dim": 3},
        SEQUENCES,
    ),
    "grouped_attention": (
        layers.VDGroupQueryAttention,
        {"head_dim": 3, "num_query_heads": 4, "num_key_value_heads": 2},
        SEQUENCES,
    ),
}


def random_values(case, dtype):
    """Values that squares and sums of 8 bits have no room for."""
    cls, _, shape = CASES[case]
    values = np.random.default_rng(3).integers(0, 120, (2, *shape))
    if issubclass(cls, keras.layers.RNN):
        values %= 3  # Gates saturate.
    return (values > values.mean() if dtype == "bool" else values).astype(dtype)


def call(layer, inputs, **options):
    is_attention = "Attention" in type(layer).__name__
    arguments = (inputs, inputs) if is_attention else (inputs,)
    return layer(*arguments, **options)


def answer(layer, inputs):
    """The outputs, or the type of the error."""
    try:
        return call(layer, inputs)
    except Exception as error:
        return type(error)


def make_pair(case, policy="float32", **options):
    """A variational layer and a plain one with its weights."""
    cls, arguments, _ = CASES[case]
    options = {
        "kl_weight": KL_WEIGHT,
        # No weight counts as zero.
        "posterior": posteriors.SparseVD(log_sigma2_init=-30.0),
        **options,
    }
    variational = cls(**arguments, **options, dtype=policy)
    plain = plain_class(cls)(**arguments, dtype=policy)
    # Keras casts floats, so these build the layers in any case.
    example = random_values(case, "float32")
    call(variational, example)
    call(plain, example)
    means = [
        x for x in variational.trainable_variables if "posterior" not in x.path
    ]
    for mean, weight in zip(means, plain.trainable_variables, strict=True):
        weight.assign(to_numpy(mean))
    return variational, plain


def assert_same_answer(variational, plain, inputs, tolerance):
    expected, actual = answer(plain, inputs), answer(variational, inputs)
    if isinstance(expected, type):
        # Keras has no answer: none, or the one for the same numbers.
        if isinstance(actual, type):
            return
        expected = answer(plain, ops.cast(inputs, actual.dtype))
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(
        to_numpy(actual).astype("float64"),
        to_numpy(expected).astype("float64"),
        rtol=tolerance,
        atol=tolerance * np.abs(to_numpy(expected)).max(),
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", CASES)
def test_inference_is_that_of_keras(case, dtype):
    variational, plain = make_pair(case)
    inputs = ops.convert_to_tensor(random_values(case, dtype))
    assert_same_answer(variational, plain, inputs, 1e-5)


@pytest.mark.parametrize("dtype", ["int32", "float16"])
@pytest.mark.parametrize("case", ["dense", "einsum_summing", "lstm"])
def test_inference_in_mixed_precision(case, dtype):
    variational, plain = make_pair(case, "mixed_bfloat16")
    inputs = ops.convert_to_tensor(random_values(case, dtype))
    assert_same_answer(variational, plain, inputs, 1e-2)


@pytest.mark.integration
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"estimator": "weight"},
        {"noise": "input"},
        {"variance_dtype": "bfloat16"},
        {"weight_samples": "sequence"},
    ],
    ids=lambda options: "-".join(options.values()) or "default",
)
def test_training_is_that_of_the_same_numbers_as_floats(case, dtype, options):
    cls, *_ = CASES[case]
    is_recurrent = issubclass(cls, keras.layers.RNN)
    arguments = {"posterior": posteriors.SparseVD(log_sigma2_init=-4.0)}
    if options.get("weight_samples") == "sequence":
        if not is_recurrent:
            pytest.skip("of recurrent layers alone")
        arguments |= options
    elif "noise" in options:
        if is_recurrent or case == "embedding":
            pytest.skip("has no noise on its inputs")
        arguments["posterior"] = posteriors.VD(**options)
    else:
        if is_recurrent or case == "embedding":
            if options:
                pytest.skip("draws its weights in any case")
        arguments["posterior"] = posteriors.SparseVD(
            log_sigma2_init=-4.0, **options
        )
    variational, plain = make_pair(case, **arguments)
    inputs = random_values(case, dtype)
    if isinstance(answer(plain, ops.convert_to_tensor(inputs)), type):
        pytest.skip("Keras has no answer")
    states = [
        x
        for x in variational.variables
        if x.path.endswith("seed_generator_state")
    ]
    before = [to_numpy(state) for state in states]
    outputs = []
    for numbers in (inputs, inputs.astype("float32")):
        for state, value in zip(states, before, strict=True):
            state.assign(value)
        noisy = call(variational, ops.convert_to_tensor(numbers), training=True)
        outputs.append(to_numpy(noisy))
    np.testing.assert_allclose(
        *outputs, rtol=1e-5, atol=1e-5 * np.abs(outputs[1]).max()
    )
    assert not np.allclose(outputs[0], to_numpy(call(variational, inputs)))


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32"])
def test_symbolic_types_are_those_of_keras(dtype):
    inputs = keras.Input((4,), dtype=dtype)
    expected = keras.layers.Dense(3)(inputs)
    actual = layers.VDDense(3)(inputs)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
