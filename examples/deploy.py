"""Write a small model for TensorFlow, LiteRT and ONNX Runtime.

    python examples/deploy.py
    python examples/deploy.py MODEL.keras

Without an argument a small network is made here, with nine in ten weights at
zero. MODEL.keras is a plain model, such as `keras_vd.shrink` returns it. Every
file is read back, and compared with the model, before it takes its place.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

from keras_vd import deployment

FOLDER = Path("deployed")


def make_model():
    """Make a network that looks like a pruned one."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(300, activation="relu"),
            keras.layers.Dense(100, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    generator = np.random.default_rng(0)
    for layer in model.layers:
        kernel = keras.ops.convert_to_numpy(layer.kernel)
        kept = generator.random(kernel.shape) < 0.1
        layer.kernel.assign(np.where(kept, kernel, 0.0))
    return model


def size_of(path):
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


if len(sys.argv) > 1:
    if not Path(sys.argv[1]).is_file():
        raise SystemExit(f"error: there is no file {sys.argv[1]}")
    model = keras.models.load_model(sys.argv[1])
else:
    model = make_model()
FOLDER.mkdir(exist_ok=True)
model.save(FOLDER / "dense.keras")

writers = {
    "small.keras": deployment.save_compressed,
    "saved_model": deployment.export_saved_model,
    "packed_model": deployment.export_packed,
    "small.tflite": deployment.export_litert,
    "small.onnx": deployment.export_onnx,
}
print(f"dense.keras: {size_of(FOLDER / 'dense.keras'):,} bytes")
for name, write in writers.items():
    try:
        write(model, FOLDER / name)
    # Not every backend has every writer, nor every computer every package.
    except (RuntimeError, ImportError) as error:
        print(f"{name}: not written. {error}")
    else:
        print(f"{name}: {size_of(FOLDER / name):,} bytes")
print(
    f"written to {FOLDER}; the outputs of each were compared with the model's"
)

# What whoever serves the model does, without Keras.
if keras.backend.backend() == "tensorflow" and len(sys.argv) == 1:
    import tensorflow as tf

    served = tf.saved_model.load(FOLDER / "packed_model")
    x = np.random.default_rng(1).normal(size=(100, 64)).astype("float32")
    difference = np.abs(served.serve(x).numpy() - model.predict(x, verbose=0))
    print(f"largest difference of packed_model: {difference.max():.1e}")
