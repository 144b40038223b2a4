"""Seeds of the noise that differ from replica to replica."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import keras

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
if keras.backend.backend() == "torch":
    import torch


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


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Have what has no seed of its own draw from one, within this context.

    Keras chooses the seeds of layers that have none by Python's generator, and
    Dropout of Keras on torch draws from torch's. Both are as they were
    afterwards.
    """
    state = random.getstate()
    drawn = None
    if keras.backend.backend() == "torch":
        drawn = torch.get_rng_state()
    reseed(seed)
    try:
        yield
    finally:
        random.setstate(state)
        if drawn is not None:
            torch.set_rng_state(drawn)


def reseed(seed: int) -> None:
    """Begin the draws of `seeded` anew, from another seed."""
    random.seed(seed)
    if keras.backend.backend() == "torch":
        torch.manual_seed(seed % 2**63)
