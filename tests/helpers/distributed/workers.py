"""What each process of a run does; `test_workers.py` starts them.

Arguments: the folder of the process, then "quiet" for a run next to no noise
before the one with noise, and "killed" for a process that dies in that one.
"""

import os
import pathlib
import sys

import keras
import numpy as np

from tests.helpers.distributed.steps import (
    dense,
    documented,
    make,
    noisy,
    quiet,
    run_and_save,
)

KILLED_IN = 2


def under_two_workers(directory):
    """The scope of a strategy; also saves noise of this worker."""
    import tensorflow as tf

    names = {}
    exec(documented("Several machines, TensorFlow")[0], names)
    strategy = names["Workers"]()
    with strategy.scope():
        layer = make(dense, noisy()).layers[0]

    @tf.function
    def draw():
        return strategy.run(lambda: layer(tf.ones((1, 6)), training=True))

    np.save(directory / "noise.npy", np.array(draw()))
    return strategy.scope()


def under_two_devices():
    devices = keras.distribution.list_devices("cpu")[:2]
    return keras.distribution.DataParallel(devices=devices).scope()


if __name__ == "__main__":
    directory = pathlib.Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    is_worker = "TF_CONFIG" in os.environ
    with under_two_workers(directory) if is_worker else under_two_devices():
        quiet_model = make(dense, quiet(), gates=False)
        noisy_model = make(dense, noisy())
        if "quiet" in sys.argv[2:]:
            run_and_save(quiet_model, directory / "quiet")
        killed_in = KILLED_IN if "killed" in sys.argv[2:] else -1
        run_and_save(noisy_model, directory / "noisy", killed_in)
