"""Seeds of the noise; replicas are in `tests/distributed/`."""

import keras
import numpy as np
import pytest

from keras_vd._seeds import SeedGenerator
from keras_vd.layers import VDDense
from tests.models import to_numpy

pytestmark = pytest.mark.core


def test_seeds_are_those_of_keras():
    ours, keras_own = SeedGenerator(3), keras.random.SeedGenerator(3)
    for _ in range(3):
        np.testing.assert_array_equal(
            to_numpy(ours.next()), to_numpy(keras_own.next())
        )
    np.testing.assert_array_equal(
        to_numpy(ours.state), to_numpy(keras_own.state)
    )


def test_variables_have_the_names_of_keras():
    keras.backend.clear_session()
    layer = VDDense(2)
    layer.build((None, 3))
    path = layer.kernel_posterior.seed_generator.state.path
    assert path == "seed_generator/seed_generator_state"
    keras.backend.clear_session()
    assert keras.random.SeedGenerator().state.path == path


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="replicas of TensorFlow"
)
def test_a_graph_for_one_device_has_no_more_operations():
    import tensorflow as tf

    def count(generator):
        traced = tf.function(generator.next).get_concrete_function()
        return len(traced.graph.get_operations())

    assert count(SeedGenerator(3)) == count(keras.random.SeedGenerator(3))
