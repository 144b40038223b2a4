"""Models whose every weight has 64 bits."""

import keras
import numpy as np
import pytest

import keras_vd
from keras_vd import layers
from tests.helpers.arrays import to_numpy
from tests.helpers.models import compile_quickly

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(
        keras.backend.standardize_dtype(
            keras.ops.convert_to_tensor(np.zeros(1)).dtype
        )
        != "float64",
        reason="JAX has 64 bits only where it is told so at its start",
    ),
]
SHAPES = {
    "vector": (6,),
    "image": (6, 6, 2),
    "sequence": (5, 4),
    "words": (5,),
}
CASES = {
    "dense": ("vector", lambda **o: layers.VDDense(4, **o)),
    "input noise": (
        "vector",
        lambda **o: layers.VDDense(
            4, posterior=keras_vd.posteriors.VD(noise="input"), **o
        ),
    ),
    "weight sample": (
        "vector",
        lambda **o: layers.VDDense(
            4, posterior=keras_vd.posteriors.SparseVD(estimator="weight"), **o
        ),
    ),
    "groups": (
        "vector",
        lambda **o: layers.VDDense(4, groups=("input", "output"), **o),
    ),
    "conv": ("image", lambda **o: layers.VDConv2D(3, 3, **o)),
    "separable": ("image", lambda **o: layers.VDSeparableConv2D(3, 3, **o)),
    "lstm": ("sequence", lambda **o: layers.VDLSTM(3, groups=("units",), **o)),
    "gru": (
        "sequence",
        lambda **o: layers.VDGRU(3, weight_samples="sequence", **o),
    ),
    "embedding": (
        "words",
        lambda **o: layers.VDEmbedding(9, 3, groups=("vocabulary",), **o),
    ),
    "attention": (
        "sequence",
        lambda **o: layers.VDMultiHeadAttention(2, 3, groups=("heads",), **o),
    ),
    "log-normal": ("vector", lambda **o: layers.LogNormalDropout(**o)),
    "beta-Bernoulli": ("vector", lambda **o: layers.BetaBernoulliDropout(**o)),
}


@pytest.fixture
def floatx():
    policy = keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    # As it is where nothing has asked for the policy before.
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy(policy)


@pytest.mark.integration
@pytest.mark.parametrize("name", CASES)
def test_policy(name):
    check(name, dtype="float64")


@pytest.mark.integration
@pytest.mark.parametrize("name", ["dense", "input noise", "gru", "attention"])
def test_floatx(name, floatx):
    check(name)


def check(name, **options):
    """Oracle: its own predictions, which 32 bits would miss by 1e-8."""
    keras.utils.set_random_seed(0)
    kind, make = CASES[name]
    generator = np.random.default_rng(0)
    x = generator.integers(0, 9, (8, *SHAPES[kind]))
    inputs = keras.Input(SHAPES[kind], dtype="int32")
    if kind != "words":
        x = generator.normal(size=x.shape)
        inputs = keras.Input(SHAPES[kind], dtype="float64")
    layer = make(kl_weight=0.01, **options)
    hidden = layer(inputs, inputs) if name == "attention" else layer(inputs)
    hidden = keras.layers.Flatten(**options)(hidden)
    model = keras.Model(inputs, keras.layers.Dense(1, **options)(hidden))
    compile_quickly(model, optimizer="adam", loss="mse", jit_compile=False)
    history = model.fit(x, np.ones((8, 1)), epochs=2, batch_size=4, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    for posterior in keras_vd.variational_weights(layer):
        if posterior.weight.dtype != "float64":
            continue  # Of a group: one number per unit, as gates are.
        theta = to_numpy(posterior.weight)
        np.testing.assert_array_equal(to_numpy(posterior.theta), theta)
        mean = to_numpy(posterior.mean())
        if not posterior.binding.groups:
            assert np.isin(mean, np.append(theta, 0.0)).all()
        assert to_numpy(posterior.sample()).dtype == mean.dtype == "float64"
    expected = to_numpy(model(x, training=False))
    assert expected.dtype == "float64"
    plain = keras_vd.to_deterministic(model)
    # Gates have 32 bits, and Keras multiplies matrices with 32 on PyTorch.
    tolerance = 1e-6 if name in ("log-normal", "beta-Bernoulli") else 1e-12
    np.testing.assert_allclose(
        to_numpy(plain(x, training=False)),
        expected,
        rtol=tolerance,
        atol=tolerance,
    )
    noisy = to_numpy(model(x, training=True))
    assert np.abs(noisy - expected).max() > 1e-7
    # Some of the noise's own bits are beyond those of 32.
    assert (noisy != noisy.astype("float32")).any()
    assert np.isfinite(float(keras_vd.kl_divergence(model)))
    keras_vd.prune(model)
    prediction = keras_vd.predict_mc(model, x, 2, task="regression", verbose=0)
    assert np.isfinite(prediction.mean).all()
