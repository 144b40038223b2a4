"""Texts of experiments.imdb: IMDB, generated ones, or the user's own."""

from __future__ import annotations

import dataclasses
import os
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from experiments.common import fail

try:
    import tensorflow as tf
except ImportError as error:
    fail(f"texts become ids, and models SavedModels, in TensorFlow: {error}")
# Shrinking networks are compiled anew: that is no mistake to warn of.
tf.get_logger().setLevel("ERROR")

PADDING, UNKNOWN = 0, 1
VALIDATION_SHARE = 0.1

GOOD = (
    "superb", "wonderful", "touching", "hilarious", "gripping", "charming",
    "brilliant", "delightful", "moving", "perfect",
)  # fmt: skip
BAD = (
    "awful", "boring", "clumsy", "dreadful", "lousy", "pointless", "stupid",
    "tedious", "wooden", "worst",
)  # fmt: skip
NEUTRAL = tuple(f"word{i}" for i in range(480))


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts as token ids, and their labels.

    Attributes:
        x_train, x_valid, x_test: Int32 arrays of shape `(texts, length)`. 0 is
            padding at the end, 1 stands for words out of the vocabulary.
        y_train, y_valid, y_test: Float32 arrays of shape `(texts,)`, 0 or 1.
        words: The word of each id; `#7` where only ids are known.
        raw_test: The test texts as strings, or None.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_valid: np.ndarray
    y_valid: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    words: list[str]
    raw_test: np.ndarray | None

    def renumbered(self, new_ids: np.ndarray) -> Texts:
        """The same texts with another id for each word; `words` stay."""
        return dataclasses.replace(
            self,
            **{
                name: new_ids[getattr(self, name)]
                for name in ("x_train", "x_valid", "x_test")
            },
        )

    def limited(self, texts: int) -> Texts:
        """The first training texts only."""
        return dataclasses.replace(
            self, x_train=self.x_train[:texts], y_train=self.y_train[:texts]
        )


def load(
    dataset: str, data: Path | None, vocabulary: int, length: int, seed: int
) -> Texts:
    """Load texts and turn them into ids.

    Args:
        dataset: `"imdb"` or `"synthetic"`; ignored if `data` is given.
        data: A file with `x_train`, `y_train`, `x_test` and `y_test`.
        vocabulary: Number of ids, padding and unknown words included.
        length: Number of tokens to keep of each text, the last ones.
        seed: Seed of the synthetic texts and of the validation split.
    """
    if data is not None:
        splits = read_npz(data)
    elif dataset == "imdb":
        splits = read_imdb()
    else:
        splits = make_synthetic(seed)
    x_train, y_train, x_test, y_test = splits
    order = np.random.default_rng(seed).permutation(len(x_train))
    held_out = max(1, round(VALIDATION_SHARE * len(order)))
    valid, train = order[:held_out], order[held_out:]
    if x_train.dtype.kind == "i":
        raw_test = None
        words = [f"#{i}" for i in range(vocabulary)]
        encode = checked_ids(vocabulary, length)
    else:
        raw_test = x_test
        words = adapt(x_train[train], vocabulary)
        known = range(UNKNOWN + 1, len(words))
        encode = Encoder({words[i]: i for i in known}, length).encode
    return Texts(
        x_train=encode(x_train[train]),
        y_train=y_train[train],
        x_valid=encode(x_train[valid]),
        y_valid=y_train[valid],
        x_test=encode(x_test),
        y_test=y_test,
        words=words,
        raw_test=raw_test,
    )


Splits = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def read_imdb() -> Splits:
    """The 25,000 + 25,000 movie reviews of Maas et al. 2011."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        fail(f"--dataset imdb needs tensorflow-datasets: {error}")
    try:
        train, test = tfds.as_numpy(
            tfds.load(
                "imdb_reviews/plain_text",
                split=["train", "test"],
                batch_size=-1,
            )
        )
    except Exception as error:
        folder = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
        fail(
            f"cannot load imdb_reviews from {folder} or the network "
            f"({type(error).__name__}). Set TFDS_DATA_DIR, or try "
            "--dataset synthetic"
        )
    return (
        train["text"],
        train["label"].astype("float32"),
        test["text"],
        test["label"].astype("float32"),
    )


def make_synthetic(seed: int, texts: int = 6000) -> Splits:
    """Texts whose label is the sign of good words minus bad words.

    The other 480 words say nothing, so the words that a model has to keep are
    known: `GOOD` and `BAD`.
    """
    rng = np.random.default_rng(seed)
    found, labels = [], []
    while len(found) < texts:
        opinions = rng.integers(1, 6)
        good = rng.integers(0, opinions + 1)
        if 2 * good == opinions:
            continue
        words = [
            *rng.choice(GOOD, good),
            *rng.choice(BAD, opinions - good),
            *rng.choice(NEUTRAL, rng.integers(5, 20)),
        ]
        found.append(" ".join(rng.permutation(words)))
        labels.append(2 * good > opinions)
    x, y = np.array(found), np.array(labels, "float32")
    split = 2 * texts // 3
    return x[:split], y[:split], x[split:], y[split:]


def read_npz(path: Path) -> Splits:
    """Token ids (0 is padding) or strings of the user's own."""
    try:
        with np.load(path) as file:
            content = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        fail(f"cannot read --data {path}: {error}")
    needed = ("x_train", "y_train", "x_test", "y_test")
    missing = [name for name in needed if name not in content]
    if missing:
        fail(f"--data {path} lacks {missing}; it has {sorted(content)}")
    for split in ("train", "test"):
        x, y = content[f"x_{split}"], content[f"y_{split}"]
        is_text = x.dtype.kind in "US" and x.ndim == 1
        if not is_text and not (x.dtype.kind in "iu" and x.ndim == 2):
            fail(
                f"--data {path}: x_{split} must be strings of shape (texts,) "
                f"or integers of shape (texts, tokens), not {x.dtype} of "
                f"shape {x.shape}"
            )
        if y.shape != (len(x),) or not np.isin(y, (0, 1)).all():
            fail(
                f"--data {path}: y_{split} must be 0 or 1 for each of "
                f"{len(x)} texts; it has shape {y.shape} and values "
                f"{np.unique(y)[:5].tolist()}"
            )
        if not len(x):
            fail(f"--data {path}: x_{split} is empty")
        content[f"x_{split}"] = x if is_text else x.astype("int64")
        content[f"y_{split}"] = y.astype("float32")
    if content["x_train"].dtype.kind != content["x_test"].dtype.kind:
        fail(f"--data {path}: x_train and x_test must be of one kind")
    return tuple(content[name] for name in needed)


def checked_ids(vocabulary: int, length: int) -> Any:
    """A function that takes the last ids of each text."""

    def encode(ids: np.ndarray) -> np.ndarray:
        if ids.min() < 0 or ids.max() >= vocabulary:
            fail(
                f"token ids must be in [0, {vocabulary}), --vocabulary; these "
                f"are in [{ids.min()}, {ids.max()}]"
            )
        return tail(ids, length)

    return encode


def adapt(texts: np.ndarray, vocabulary: int) -> list[str]:
    """Words by id: the most frequent ones of `texts`."""
    vectorizer = keras.layers.TextVectorization(
        max_tokens=vocabulary, standardize=None
    )
    vectorizer.adapt(standardize(texts).numpy().astype(str))
    return [str(word) for word in vectorizer.get_vocabulary()]


def standardize(texts: Any) -> Any:
    """Lower case without punctuation; tags such as <br /> become spaces."""
    texts = tf.strings.lower(texts)
    texts = tf.strings.regex_replace(texts, "<[^>]*>", " ")
    return tf.strings.regex_replace(texts, r"[^\w\s]|_", "")


class Encoder(tf.Module):
    """Turns texts into the ids of their last words, in plain TensorFlow.

    Does what `TextVectorization` does, which works inside a `tf.function` only
    if TensorFlow is also the backend of Keras.

    Args:
        ids: The id of each known word; others are `UNKNOWN`.
        length: Number of words to keep.
    """

    def __init__(self, ids: dict[str, int], length: int) -> None:
        super().__init__()
        self.table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                list(ids), tf.constant(list(ids.values()), tf.int32)
            ),
            default_value=UNKNOWN,
        )
        self.length = length

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def __call__(self, texts: Any) -> Any:
        words = tf.strings.split(standardize(texts))[:, -self.length :]
        ids = self.table.lookup(words.values)
        return words.with_values(ids).to_tensor(shape=(None, self.length))

    def encode(self, texts: np.ndarray) -> np.ndarray:
        """Ids as an array, batch by batch."""
        batches = np.array_split(texts, max(1, len(texts) // 1000))
        return np.concatenate([self(batch).numpy() for batch in batches])


def tail(ids: np.ndarray, length: int) -> np.ndarray:
    """The last ids of each text that are no padding, padded at the end."""
    result = np.full((len(ids), length), PADDING, "int32")
    for row, tokens in zip(result, ids, strict=True):
        kept = tokens[tokens != PADDING][-length:]
        row[: len(kept)] = kept
    return result
