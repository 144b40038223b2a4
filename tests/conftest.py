"""What every test starts from: one seed, and no garbage of others."""

import gc
import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has its core, and so have the processes that it starts.
    for name in (
        "OMP_NUM_THREADS",
        "TF_NUM_INTRAOP_THREADS",
        "TF_NUM_INTEROP_THREADS",
    ):
        os.environ.setdefault(name, "1")

import keras
import pytest

# What fails in the shared tests says by how much.
pytest.register_assert_rewrite("tests.helpers.contract")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    # Before the fixtures: a test is the same alone, in the suite and tomorrow.
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="module")
def own_garbage():
    """Have collections look at what the module itself has made.

    The graphs of all modules before it are millions of objects, which never
    go: looking through them takes seconds.
    """
    gc.freeze()
    yield
    gc.collect()
