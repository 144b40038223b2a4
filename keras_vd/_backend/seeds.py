"""Seeds of the noise that differ from replica to replica."""

from __future__ import annotations

from typing import Any

import keras

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf


# Named as in Keras, because the name of the class is part of variable names.
class SeedGenerator(keras.random.SeedGenerator):
    """Keras' seed generator, with different seeds on all replicas of a model.

    `tf.distribute` mirrors the state, so that all replicas read the same one.
    Therefore each replica counts in steps of the number of replicas, from a
    start of its own. Outside of replicas the seeds are those of Keras. So they
    are on other backends, where one program computes the whole batch.
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
