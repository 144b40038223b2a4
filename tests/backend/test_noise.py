from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops
from scipy import stats

from keras_vd._backend.noise import rows_of_normals, standard_normal
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


def draw_rows(rows, size, seed=0):
    generator = keras.random.SeedGenerator(seed)
    rows = ops.convert_to_tensor(np.asarray(rows, "int32"))
    return to_numpy(rows_of_normals(rows, size, "float32", generator))


@pytest.mark.core
def test_distribution_of_rows():
    """Oracle: the Kolmogorov-Smirnov test of SciPy, and moments up to 4."""
    draws = draw_rows(np.arange(0, 30_000, 3), 15).ravel().astype("float64")
    assert stats.kstest(draws, "norm").pvalue > 1e-4
    for power, expected, variance in [(1, 0, 1), (2, 1, 2), (4, 3, 96)]:
        error = np.mean(draws**power) - expected
        assert abs(error) < MAX_Z * np.sqrt(variance / draws.size)


@pytest.mark.core
def test_rows_and_their_entries_are_independent():
    """Oracle: correlation 0 of values and of squares, over many rows.

    Of entries of a row, of neighbouring rows, of rows that differ in one bit,
    and of two draws.
    """
    rows = np.arange(20_000)
    draws = draw_rows(rows, 5).astype("float64")
    columns = [draws, np.roll(draws, 1, axis=0), draw_rows(rows, 5, seed=1)]
    columns += [draws[rows[:16384] ^ 2**bit] for bit in (1, 6, 13)]
    columns = np.concatenate([x[:16384] for x in columns], axis=1)
    bound = MAX_Z / np.sqrt(16384)
    for values in (columns, columns**2):
        correlation = np.corrcoef(values, rowvar=False)
        np.fill_diagonal(correlation, 0.0)
        assert np.abs(correlation).max() < bound


@pytest.mark.core
def test_a_row_is_the_same_wherever_it_occurs():
    """Identity: for each number, one row; a later call has others."""
    rows = np.array([[7, 3, 7], [900_000, 3, 0]])
    draws = draw_rows(rows, 7)
    assert draws.shape == (2, 3, 7)
    for row in np.unique(rows):
        found = draws[rows == row]
        assert_equal(found, found[:1].repeat(len(found), axis=0))
    assert len(np.unique(draws)) == 4 * 7
    shuffled = draw_rows(rows[::-1, ::-1], 7)
    assert_equal(shuffled[::-1, ::-1], draws)
    generator = keras.random.SeedGenerator(0)
    both = [
        to_numpy(rows_of_normals(ops.convert_to_tensor(rows), 7, "float32", g))
        for g in (generator, generator)
    ]
    assert np.all(both[0] != both[1])
