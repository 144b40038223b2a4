from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops
from scipy import stats

from keras_vd._backend.noise import standard_normal
from tests.helpers.arrays import to_numpy
from tests.helpers.contract import MAX_Z, assert_equal

NUM_DRAWS = 40_000


def draw(shape, seed=0):
    generator = keras.random.SeedGenerator(seed)
    return to_numpy(standard_normal(shape, "float32", generator))


@pytest.mark.core
def test_distribution():
    """Oracle: moments 0, 1, 0, 3 with variances 1, 2, 15, 96 over n.

    And the Kolmogorov-Smirnov test of SciPy.
    """
    draws = draw((NUM_DRAWS // 4, 4)).ravel().astype("float64")
    for power, expected, variance in [
        (1, 0, 1),
        (2, 1, 2),
        (3, 0, 15),
        (4, 3, 96),
    ]:
        error = np.mean(draws**power) - expected
        assert abs(error) < MAX_Z * np.sqrt(variance / NUM_DRAWS)
    assert stats.kstest(draws, "norm").pvalue > 1e-4
    assert np.abs(draws).max() < 6.5


@pytest.mark.core
def test_tails():
    """Oracle: the normal distribution's survival function, 4 million draws."""
    draws = np.abs(draw((4000, 1000)))
    for bound in (1.0, 2.0, 3.0, 4.0, 4.5):
        expected = 2.0 * stats.norm.sf(bound) * draws.size
        error = np.sum(draws > bound) - expected
        assert abs(error) < MAX_Z * np.sqrt(expected)


@pytest.mark.core
def test_neighbours_are_independent():
    """Oracle: correlation 0 of values and of their squares, all pairs.

    Two normals made of one radius would share it if the angle were wrong.
    Columns i and i + 3 are such pairs.
    """
    draws = draw((NUM_DRAWS, 6)).astype("float64")
    bound = MAX_Z / np.sqrt(NUM_DRAWS)
    for values in (draws, draws**2, np.abs(draws)):
        correlation = np.corrcoef(values, rowvar=False)
        np.fill_diagonal(correlation, 0.0)
        assert np.abs(correlation).max() < bound


@pytest.mark.core
@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3), (3, 1), (2, 2, 7)])
def test_shapes(shape):
    """Odd sizes too: normals come in pairs on one of the backends."""
    draws = draw(shape)
    assert draws.shape == shape
    assert len(np.unique(draws)) == draws.size


@pytest.mark.core
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtype(dtype):
    generator = keras.random.SeedGenerator(0)
    draws = standard_normal((64, 3), dtype, generator)
    assert keras.backend.standardize_dtype(draws.dtype) == dtype
    assert np.isfinite(to_numpy(ops.cast(draws, "float32"))).all()


@pytest.mark.core
def test_seeds():
    """Identity: a seed decides, and moves on with every call."""
    assert_equal(draw((4, 3), seed=1), draw((4, 3), seed=1))
    assert np.all(draw((4, 3), seed=1) != draw((4, 3), seed=2))
    generator = keras.random.SeedGenerator(1)
    first, second = (
        to_numpy(standard_normal((4, 3), "float32", generator))
        for _ in range(2)
    )
    assert np.all(first != second)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="only TensorFlow's graphs have tensors for shapes",
)
def test_unknown_dimensions():
    """Oracle: the shape at run time, the last dimension included."""
    import tensorflow as tf

    generator = keras.random.SeedGenerator(0)

    @tf.function(input_signature=[tf.TensorSpec([None, None])])
    def like(inputs):
        return standard_normal(ops.shape(inputs), "float32", generator)

    for shape in [(2, 3), (5, 4)]:
        assert like(np.zeros(shape, "float32")).shape == shape
