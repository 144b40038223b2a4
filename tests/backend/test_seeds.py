"""Seeds of the noise; replicas are in `tests/distributed/`."""

import keras
import numpy as np
import pytest

from keras_vd._backend.seeds import SeedGenerator
from tests.helpers.arrays import to_float64

pytestmark = pytest.mark.core


def test_seeds_are_those_of_keras():
    ours, keras_own = SeedGenerator(3), keras.random.SeedGenerator(3)
    for _ in range(3):
        np.testing.assert_array_equal(
            to_float64(ours.next()), to_float64(keras_own.next())
        )
    np.testing.assert_array_equal(
        to_float64(ours.state), to_float64(keras_own.state)
    )


@pytest.mark.integration
def test_the_state_has_the_name_that_keras_gives():
    paths = []
    for generator in (SeedGenerator, keras.random.SeedGenerator):
        keras.backend.clear_session()
        paths.append([generator(3).state.path for _ in range(2)])
    assert paths[0] == paths[1]


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="replicas of TensorFlow"
)
def test_a_graph_for_one_device_has_no_more_operations():
    import tensorflow as tf

    def count(generator):
        traced = tf.function(generator.next).get_concrete_function()
        return len(traced.graph.get_operations())

    assert count(SeedGenerator(3)) == count(keras.random.SeedGenerator(3))
