"""`tf.distribute.MirroredStrategy`: two replicas on virtual CPUs."""

import keras
import pytest

from tests.helpers.distributed.steps import run_tests


@pytest.mark.integration
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="a strategy of TensorFlow"
)
def test_two_replicas_in_one_process():
    status, printed = run_tests("mirrored.py")
    assert status == 0, printed
    assert " passed" in printed
