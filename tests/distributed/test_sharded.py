"""`keras.distribution`: `DataParallel` and `ModelParallel` on JAX."""

import keras
import pytest

from tests.helpers.distributed.steps import run_tests


@pytest.mark.core
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="an engine of JAX")
def test_four_devices_in_one_process():
    devices = "--xla_force_host_platform_device_count=4"
    status, printed = run_tests("sharded.py", XLA_FLAGS=devices)
    assert status == 0, printed
    assert " passed" in printed
