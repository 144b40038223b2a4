"""What the networks learn, and what they meet instead."""

from __future__ import annotations

import dataclasses

import numpy as np

from experiments import rotated_digits
from experiments.common import fail
from experiments.mnist import data as mnist_data

# Images and texts that are held out to choose by.
HELD_OUT = {"digits": 237, "mnist": 5000}
ANGLES = (15.0, 60.0)  # degrees, to either side
VOCABULARY, LENGTH = 5000, 100
TEST_TEXTS = 5000
# Ids of `experiments.imdb.data`, which needs TensorFlow.
PADDING, FIRST_WORD = 0, 2
SEED = 0  # all networks meet the same data


@dataclasses.dataclass(frozen=True)
class Shift:
    """Test inputs that are no longer like those of the training.

    Attributes:
        x: Inputs, as many as test examples.
        has_labels: Whether the labels of the test examples still hold.
    """

    x: np.ndarray
    has_labels: bool


@dataclasses.dataclass(frozen=True)
class Problem:
    """Classification, and what becomes of the test inputs.

    Attributes:
        name: One of `DATASETS`.
        x_train, x_valid, x_test: Images `(n, height, width, channels)` in
            [0, 1], or texts `(n, words)` as int32 ids.
        y_train, y_valid, y_test: Integers of shape `(n,)`.
        classes: Number of classes.
        shifts: Shifted test inputs by name.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_valid: np.ndarray
    y_valid: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int
    shifts: dict[str, Shift]

    @property
    def is_text(self) -> bool:
        return self.x_train.ndim == 2


def load(name: str, limit: int | None = None) -> Problem:
    """Load one of `DATASETS`, with its shifts.

    Args:
        name: Which.
        limit: Number of training examples to use; None uses all.
    """
    problem = DATASETS[name]()
    if limit is None:
        return problem
    if limit > len(problem.x_train):
        fail(
            f"--limit {limit} is more than the {len(problem.x_train)} "
            f"training examples of {name}"
        )
    return dataclasses.replace(
        problem,
        x_train=problem.x_train[:limit],
        y_train=problem.y_train[:limit],
    )


def load_images(name: str) -> Problem:
    """Digits that are rotated, and noise."""
    images = mnist_data.load(name, None)
    held_out = HELD_OUT[name]
    train = images.held_out(held_out)
    rng = np.random.default_rng(SEED)
    angles = rng.uniform(*ANGLES, len(images.x_test))
    angles *= rng.choice((-1.0, 1.0), len(angles))
    noise = rng.random(images.x_test.shape, "float32")
    return Problem(
        name,
        train.x_train,
        train.y_train,
        train.x_test,
        train.y_test,
        images.x_test,
        images.y_test,
        images.classes,
        {
            "rotated": Shift(rotate(images.x_test, angles), True),
            "noise": Shift(noise, False),
        },
    )


def load_texts() -> Problem:
    """Movie reviews whose words are shuffled, or random."""
    from experiments.imdb import data as imdb_data

    texts = imdb_data.load("imdb", None, VOCABULARY, LENGTH, SEED)
    rng = np.random.default_rng(SEED)
    chosen = rng.permutation(len(texts.x_test))[:TEST_TEXTS]
    x = texts.x_test[chosen]
    return Problem(
        "imdb",
        texts.x_train,
        texts.y_train.astype("int32"),
        texts.x_valid,
        texts.y_valid.astype("int32"),
        x,
        texts.y_test[chosen].astype("int32"),
        2,
        {
            "shuffled": Shift(shuffle_words(x, rng), True),
            "random words": Shift(
                random_words(x, len(texts.words), rng), False
            ),
        },
    )


DATASETS = {
    "digits": lambda: load_images("digits"),
    "mnist": lambda: load_images("mnist"),
    "imdb": load_texts,
}


def rotate(images: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Images `(n, height, width, channels)`, each rotated by its degrees."""
    return np.concatenate(
        [
            rotated_digits.rotate(image[None], angle)
            for image, angle in zip(images, angles, strict=True)
        ]
    )


def shuffle_words(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Texts `(n, words)` of the same words in random order, padding last.

    Text by text the number of times that a word is there stays as it is, so a
    bag of words sees no difference.
    """
    shuffled = x.copy()
    for row in shuffled:
        rng.shuffle(row[: np.count_nonzero(row != PADDING)])
    return shuffled


def random_words(
    x: np.ndarray, vocabulary: int, rng: np.random.Generator
) -> np.ndarray:
    """Texts as long as those of `x`, each known word being as likely."""
    words = rng.integers(FIRST_WORD, vocabulary, x.shape, x.dtype)
    return np.where(x == PADDING, x, words)
