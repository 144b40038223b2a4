"""Ask a network how sure it is, also of images unlike any that it knows.

    python examples/uncertainty.py

Trained on digits, the network sees them upright, on their side, and noise. For
data of your own change `x` and `y` and the layers of the model. Entropy is how
unsure a prediction is; mutual information is the part of it that more training
data would remove, which is large for what the network has never seen.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_vd

keras.utils.set_random_seed(0)
x, y = load_digits(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(
    (x / 16.0).astype("float32"), y, test_size=360, random_state=0, stratify=y
)

# Posteriors with a normal prior: made to know what they do not know.
model = keras.Sequential(
    [
        keras.Input((64,)),
        keras_vd.layers.VDDense(100, activation="relu", posterior="gaussian"),
        keras_vd.layers.VDDense(100, activation="relu", posterior="gaussian"),
        keras_vd.layers.VDDense(10, posterior="gaussian"),
    ]
)
model.compile(
    keras.optimizers.Adam(3e-3),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
)
annealing = keras_vd.callbacks.KLAnnealing(
    num_examples=len(x_train), max_weight=0.1, verbose=0
)
model.fit(x_train, y_train, epochs=60, callbacks=[annealing], verbose=0)

images = x_test.reshape(-1, 8, 8)
noise = np.random.default_rng(0).random((360, 8, 8), "float32")
sights = {
    "upright": images,
    "on their side": np.rot90(images, axes=(1, 2)),
    "noise": noise,
}
print("images         accuracy  entropy  mutual information (nats)")
for name, seen in sights.items():
    seen = np.ascontiguousarray(seen).reshape(-1, 64)
    found = keras_vd.predict_mc(model, seen, num_samples=50, seed=0)
    right = np.mean(found.mean.argmax(axis=-1) == y_test)
    share = "        " if name == "noise" else f"{100 * right:7.2f}%"
    print(
        f"{name:14} {share}  {found.predictive_entropy.mean():7.3f}  "
        f"{found.mutual_information.mean():7.3f}"
    )

# How well the probabilities of upright digits fit what happens.
found = keras_vd.predict_mc(model, x_test, 50, labels=y_test, seed=0)
print(found.calibration)
