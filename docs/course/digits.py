"""The data and the training that pages of the course share."""

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return images and classes for training, and for the test."""
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        (x / 16).astype("float32"), y, test_size=360, random_state=0, stratify=y
    )
    return x_train, y_train, x_test, y_test


def network(dense, *widths: int, **options) -> keras.Sequential:
    """Build a network of `Dense` or `VDDense` layers, compiled."""
    hidden = [dense(n, activation="relu", **options) for n in widths]
    model = keras.Sequential(
        [keras.Input((64,)), *hidden, dense(10, **options)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(5e-3), loss, metrics=["accuracy"])
    return model


def accuracy(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    """Return the share of right answers in percent."""
    return 100 * np.mean(model.predict(x, verbose=0).argmax(-1) == y)
