import keras
import pytest

# What fails in the shared tests says by how much.
pytest.register_assert_rewrite("tests.contract")

if keras.backend.backend() == "jax":
    import jax

    # Tests compile much and run little.
    jax.config.update("jax_disable_most_optimizations", True)
