"""Train a sparse network on digits and get a small, ordinary Keras model.

    python examples/train_and_prune.py

The network starts with 300 and 100 units, and learns which of its weights it
can do without. For data of your own change `x` and `y` (inputs as an array,
classes as integers) and the layers of `build`. If too much accuracy is lost,
lower MAX_WEIGHT; if too many weights stay, train for more EPOCHS.
"""

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_vd

EPOCHS = 60
MAX_WEIGHT = 0.3  # strength of the KL; 1 is the variational bound
FILE = "small_digits.keras"


def build(dense):
    """Build the network, of `Dense` or `VDDense` layers."""
    return keras.Sequential(
        [
            keras.Input((64,)),
            dense(300, activation="relu"),
            dense(100, activation="relu"),
            dense(10),
        ]
    )


def train(model, x, y, callbacks=()):
    """Train with Adam, whose learning rate falls to 0."""
    batch_size = 32
    steps = EPOCHS * -(-len(x) // batch_size)
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(5e-3, steps)
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(
        x,
        y,
        batch_size=batch_size,
        epochs=EPOCHS,
        callbacks=list(callbacks),
        verbose=0,
    )


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
    num_examples=len(x_train), max_weight=MAX_WEIGHT, verbose=0
)
train(model, x_train, y_train, [annealing])
print(f"{accuracy(dense, x_test, y_test):.2f}, {accuracy(model, x_test, y_test):.2f}")

print(keras_vd.prune(model))
plain = keras_vd.to_deterministic(model)
small = keras_vd.shrink(plain)
small.save(FILE)
for m in (dense, plain, small):
    print(accuracy(m, x_test, y_test), m.count_params())
