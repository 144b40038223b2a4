"""Train a sparse network on digits and get a small, ordinary Keras model.

    python examples/train_and_prune.py

For data of your own change `x` and `y` (inputs as an array, classes as
integers) and the layers of `build`. If too much accuracy is lost, lower
KL_STRENGTH; if too many weights stay, raise it or train for more EPOCHS.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_vd

EPOCHS = 40
KL_STRENGTH = 0.5  # 1 is the variational bound


def build(dense):
    """Build the network, of `Dense` or of `VDDense` layers."""
    return keras.Sequential(
        [
            keras.Input((64,)),
            dense(300, activation="relu"),
            dense(100, activation="relu"),
            dense(10),
        ]
    )


def train(model, x, y, callbacks=()):
    """Train with a learning rate that falls to 0."""
    steps = EPOCHS * int(np.ceil(len(x) / 32))
    rate = keras.optimizers.schedules.CosineDecay(5e-3, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss)
    model.fit(x, y, epochs=EPOCHS, callbacks=list(callbacks), verbose=0)


def accuracy(model, x, y):
    """Return the share of right answers in percent."""
    classes = model.predict(x, verbose=0).argmax(axis=-1)
    return 100.0 * np.mean(classes == y)


keras.utils.set_random_seed(0)
x, y = load_digits(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(
    (x / 16.0).astype("float32"), y, test_size=360, random_state=0, stratify=y
)

dense = build(keras.layers.Dense)
train(dense, x_train, y_train)

model = build(keras_vd.layers.VDDense)
annealing = keras_vd.callbacks.KLAnnealing(
    num_examples=len(x_train), max_weight=KL_STRENGTH, verbose=0
)
train(model, x_train, y_train, [annealing])
print(keras_vd.prune(model))

small = keras_vd.shrink(keras_vd.to_deterministic(model))
small.save("small_digits.keras")
for name, one in {"dense": dense, "sparse": model, "small": small}.items():
    parameters = "" if one is model else f", {one.count_params():,} parameters"
    print(f"{name}: accuracy {accuracy(one, x_test, y_test):.2f}%{parameters}")
print("written to small_digits.keras, which needs Keras alone")
