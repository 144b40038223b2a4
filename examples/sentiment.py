"""Learn which words a sentiment model needs.

    python examples/sentiment.py

Texts are made up here: 500 words, of which 10 are good and 10 are bad, and the
label says which of them are more. For texts of your own make `x` of their token
ids, shape `(texts, words)`, with 0 for padding, `y` of 0 and 1, and `WORDS` of
the word of each id.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import keras_vd

GOOD = "superb moving charming witty clever gripping fresh warm bold perfect"
BAD = "awful boring clumsy silly stale wooden tedious lousy dull worst"
# The word of each token id: padding, those that matter, and all others.
WORDS = ["", *GOOD.split(), *BAD.split(), *(f"word{i}" for i in range(21, 500))]
LENGTH, EPOCHS = 20, 30


def make_texts(number, generator):
    """Make texts of which a fifth of the words matter, and their labels."""
    x = generator.integers(21, len(WORDS), (number, LENGTH))
    matters = generator.random(x.shape) < 0.2
    x[matters] = generator.integers(1, 21, matters.sum())
    good, bad = (x >= 1) & (x <= 10), (x >= 11) & (x <= 20)
    balance = good.sum(axis=1) - bad.sum(axis=1)
    return x[balance != 0], (balance[balance != 0] > 0).astype("float32")


def train(model, callbacks=()):
    """Train a model; return its accuracies on texts held out, by epoch."""
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy")],
    )
    history = model.fit(
        x_train,
        y_train,
        batch_size=64,
        epochs=EPOCHS,
        validation_data=(x_valid, y_valid),
        callbacks=list(callbacks),
        verbose=0,
    )
    return history.history["val_accuracy"]


def report(name, model):
    """Print the accuracy of a model on the test texts, and its size."""
    right = (model.predict(x_test, verbose=0)[:, 0] > 0) == y_test
    print(
        f"{name}: accuracy {100 * np.mean(right):.2f}%, "
        f"{model.count_params():,} parameters"
    )


keras.utils.set_random_seed(0)
generator = np.random.default_rng(0)
x_train, y_train = make_texts(4000, generator)
x_valid, y_valid = make_texts(1000, generator)
x_test, y_test = make_texts(1000, generator)

plain = keras.Sequential(
    [
        keras.Input((LENGTH,), dtype="int32"),
        keras.layers.Embedding(len(WORDS), 16),
        keras.layers.LSTM(16),
        keras.layers.Dense(1),
    ]
)
best = max(train(plain))
report("plain", plain)

# One multiplier for each word, which can take its whole vector away. The
# network gets as small as it can while it loses no more than a point.
model = keras_vd.to_variational(plain, groups=("vocabulary",), verbose=0)
target = keras_vd.callbacks.KLTarget(
    num_examples=len(x_train),
    budget=0.01,
    monitor="val_accuracy",
    reference=best,
    verbose=0,
)
train(model, [target])
print(keras_vd.prune(model))

# A word that is not needed has a vector of zeros.
table = keras.ops.convert_to_numpy(model.layers[0].embeddings_posterior.mean())
kept = np.flatnonzero(table.any(axis=1))
print(f"kept {len(kept)} of {len(WORDS)} words:", *(WORDS[i] for i in kept))

report("small", keras_vd.shrink(keras_vd.to_deterministic(model), verbose=0))
