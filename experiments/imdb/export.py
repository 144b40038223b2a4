"""Export of experiments.imdb: a SavedModel that takes strings."""

from __future__ import annotations

import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from experiments.imdb.data import Encoder


class Classifier(tf.Module):
    """Texts in, probabilities of a good opinion out, in plain TensorFlow.

    Args:
        ids: The id of each word that the network knows.
        length: Number of words of a text that it reads, the last ones.
        network: The loaded SavedModel of the network, ids to probabilities.
    """

    def __init__(self, ids: dict[str, int], length: int, network: object):
        super().__init__()
        self.encoder = Encoder(ids, length)
        self.network = network

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, "texts")])
    def serve(self, texts: tf.Tensor) -> tf.Tensor:
        return self.network.serve(self.encoder(texts))


def export(
    model: keras.Model, ids: dict[str, int], length: int, folder: Path
) -> bool:
    """Write a SavedModel whose `serve` takes a batch of strings.

    Works for texts of any length; an empty text has no words, so its
    probability is that of the output's bias.

    Args:
        model: Plain Keras model from ids to probabilities.
        ids: The id of each word that it knows.
        length: Number of words of a text that it reads.
        folder: Where to write.

    Returns:
        Whether the backend can export.
    """
    if keras.backend.backend() == "torch":
        print("no SavedModel: Keras exports it from TensorFlow and JAX only")
        return False
    with tempfile.TemporaryDirectory() as network:
        # Keras' own exporter first: it also knows how to leave JAX.
        model.export(network, verbose=False)
        classifier = Classifier(ids, length, tf.saved_model.load(network))
        tf.saved_model.save(
            classifier,
            folder,
            {"serving_default": classifier.serve},
            # Those of a network from JAX cannot be saved twice.
            tf.saved_model.SaveOptions(experimental_custom_gradients=False),
        )
    return True


def predict_exported(folder: Path, texts: np.ndarray) -> np.ndarray:
    """Probabilities of a SavedModel, loaded with plain TensorFlow."""
    loaded = tf.saved_model.load(folder)
    batches = np.array_split(texts, max(1, len(texts) // 500))
    return np.concatenate([loaded.serve(batch).numpy() for batch in batches])
