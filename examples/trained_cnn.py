"""Make a convolutional network small that is trained already.

    python examples/trained_cnn.py

The network is trained here, on digits; put `keras.models.load_model(...)` in
its place, and your own images and classes in that of `x` and `y`. If too much
accuracy is lost, lower KL_STRENGTH.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_vd

KL_STRENGTH = 0.5  # 1 is the variational bound


def train(model, x, y, epochs, rate, callbacks=()):
    """Train with a learning rate that falls to 0."""
    steps = epochs * int(np.ceil(len(x) / 32))
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(schedule), loss)
    model.fit(x, y, epochs=epochs, callbacks=list(callbacks), verbose=0)


def accuracy(model, x, y):
    """Return the share of right answers in percent."""
    classes = model.predict(x, verbose=0).argmax(axis=-1)
    return 100.0 * np.mean(classes == y)


keras.utils.set_random_seed(0)
x, y = load_digits(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(
    (x / 16.0).astype("float32").reshape(-1, 8, 8, 1),
    y,
    test_size=360,
    random_state=0,
    stratify=y,
)

trained = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dense(10),
    ]
)
train(trained, x_train, y_train, epochs=10, rate=3e-3)

# Weights and predictions stay; each layer gets a posterior and a little noise.
model = keras_vd.to_variational(trained)
annealing = keras_vd.callbacks.KLAnnealing(
    num_examples=len(x_train),
    start_epoch=1,
    warmup_epochs=6,
    max_weight=KL_STRENGTH,
    verbose=0,
)
train(model, x_train, y_train, 16, 3e-3, [annealing])
print(keras_vd.prune(model))

# What is left is trained on without noise; what is zero stays zero.
plain = keras_vd.to_deterministic(model)
keras_vd.freeze_zeros(plain)
train(plain, x_train, y_train, epochs=5, rate=5e-4)
small = keras_vd.shrink(plain)
small.save("small_cnn.keras")
for name, one in {"trained": trained, "sparse": plain, "small": small}.items():
    print(
        f"{name}: accuracy {accuracy(one, x_test, y_test):.2f}%, "
        f"{one.count_params():,} parameters"
    )
