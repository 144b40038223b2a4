"""What every test starts from: one seed."""

import keras
import pytest

# What fails in the shared tests says by how much.
pytest.register_assert_rewrite("tests.helpers.contract")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    # Before the fixtures: a test is the same alone, in the suite and tomorrow.
    keras.utils.set_random_seed(0)
