import keras

if keras.backend.backend() == "jax":
    import jax

    # Tests compile much and run little, in the processes that they start too.
    jax.config.update("jax_disable_most_optimizations", True)
