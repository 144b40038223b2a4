"""What tests of files share: a model worth packing, and sizes."""

import keras
import numpy as np
import pytest

from keras_vd.deployment import measuring

BACKEND = keras.backend.backend()


ON_TENSORFLOW = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="Written from TensorFlow."
)


def sparse(*shape, kept=0.03, seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < kept
    return (rng.standard_normal(shape) * mask).astype("float32")


def dense_model():
    """Wide enough to be worth packing; 97% of the kernels are zero."""
    model = keras.Sequential(
        [
            keras.Input((32,)),
            keras.layers.Dense(200, "relu"),
            keras.layers.Dense(100, "tanh"),
            keras.layers.Dense(3),
        ]
    )
    for i, variable in enumerate(model.weights):
        is_kernel = len(variable.shape) == 2
        kept = 0.03 if is_kernel else 1.0
        variable.assign(sparse(*variable.shape, kept=kept, seed=i))
    return model


def measure_quickly(monkeypatch):
    """Have reports time files for an instant: what is timed is the same."""
    monkeypatch.setattr(measuring, "BLOCKS", 2)
    monkeypatch.setattr(measuring, "SECONDS", 0.001)


def size(path):
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
