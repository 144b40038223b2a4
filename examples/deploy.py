"""Write a small model for TensorFlow, LiteRT and ONNX Runtime.

    python examples/deploy.py
    python examples/deploy.py MODEL.keras

Without an argument a network is trained here on digits, pruned and shrunk, and
the runtimes are asked about digits that it has not seen. MODEL.keras is a plain
model of your own, such as `keras_vd.shrink` returns it. Every file is read back
and compared with the model, on inputs drawn at random, before it takes its
place. In what serves your model copy one of the functions `run_...`.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_vd
from keras_vd import deployment

FOLDER = Path("deployed")


def make_model(x, y):
    """Train a sparse network, and return what is left of it."""
    keras.utils.set_random_seed(0)
    dense = keras_vd.layers.VDDense
    layers = [keras.Input((64,)), dense(300, activation="relu"), dense(10)]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(5e-3), loss)
    annealing = keras_vd.callbacks.KLAnnealing(len(x), verbose=0)
    model.fit(x, y, epochs=20, callbacks=[annealing], verbose=0)
    keras_vd.prune(model)
    return keras_vd.shrink(keras_vd.to_deterministic(model), verbose=0)


def size_of(path):
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def run_keras(path, x):
    """Predict with Keras."""
    return keras.models.load_model(path).predict(x, verbose=0)


def run_tensorflow(path, x):
    """Predict with TensorFlow, without Keras."""
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    return loaded.serve(x).numpy()


def run_litert(path, x):
    """Predict with LiteRT, one example at a time."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    outputs = []
    for i in range(len(x)):
        index = interpreter.get_input_details()[0]["index"]
        interpreter.set_tensor(index, x[i : i + 1])
        interpreter.invoke()
        index = interpreter.get_output_details()[0]["index"]
        outputs.append(interpreter.get_tensor(index))
    return np.concatenate(outputs)


def run_onnx(path, x):
    """Predict with ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return session.run(None, {session.get_inputs()[0].name: x})[0]


x, y = load_digits(return_X_y=True)
x = (x / 16.0).astype("float32")
x_train, y_train, x_test = x[:1400], y[:1400], x[1400:]
if len(sys.argv) == 1:
    model = make_model(x_train, y_train)
elif Path(sys.argv[1]).is_file():
    model = keras.models.load_model(sys.argv[1])
else:
    raise SystemExit(f"error: there is no file {sys.argv[1]}")

formats = {
    "small.keras": (deployment.save_compressed, run_keras),
    "saved_model": (deployment.export_saved_model, run_tensorflow),
    "packed_model": (deployment.export_packed, run_tensorflow),
    "small.tflite": (deployment.export_litert, run_litert),
    "small.onnx": (deployment.export_onnx, run_onnx),
}
FOLDER.mkdir(exist_ok=True)
model.save(FOLDER / "model.keras")
print(f"model.keras: {size_of(FOLDER / 'model.keras'):,} bytes")
for name, (write, run) in formats.items():
    path = FOLDER / name
    try:
        write(model, path)
    # Not every backend has every writer, nor every computer every package.
    except (RuntimeError, ImportError) as error:
        print(f"{name}: not written. {error}")
        continue
    line = f"{name}: {size_of(path):,} bytes"
    if len(sys.argv) == 1:
        expected = model.predict(x_test, verbose=0)
        difference = np.abs(run(path, x_test) - expected).max()
        line += f", largest difference of an output {difference:.0e}"
    print(line)
print(f"written to {FOLDER}")
