"""Seeds of the noise, of its own on every replica."""

from __future__ import annotations

from typing import Any

import keras

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf


# The name of the class is part of the names of variables: it is Keras' own.
class SeedGenerator(keras.random.SeedGenerator):
    """As in Keras, and no two replicas of a model get the same seeds.

    `tf.distribute` mirrors the state: all replicas read the same one. Each
    counts in steps of the number of replicas, from a start of its own. Outside
    replicas, and on other backends, where a program is about the whole batch,
    the seeds are those of Keras.
    """

    def next(self, ordered: bool = True) -> Any:
        seed = super().next(ordered)
        if keras.backend.backend() != "tensorflow":
            return seed
        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return seed
        replica = tf.cast(context.replica_id_in_sync_group, seed.dtype)
        own_count = seed[1] * context.num_replicas_in_sync + replica
        return tf.stack([seed[0], own_count])
