"""Images for experiments.mnist: MNIST, scikit-learn's digits, or a file."""

from __future__ import annotations

import dataclasses
import math
import os
import socket
import urllib.request
import zipfile
from pathlib import Path

import keras
import numpy as np

from experiments.common import fail

DATASETS = ("mnist", "digits", "cifar10")
ARRAYS = ("x_train", "y_train", "x_test", "y_test")


@dataclasses.dataclass(frozen=True)
class Images:
    """Images `(n, height, width, channels)` in [0, 1], integer labels.

    `is_held_out` says that the test images are held-out training images.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    is_held_out: bool = False

    @property
    def classes(self) -> int:
        return int(max(self.y_train.max(), self.y_test.max())) + 1

    def limited(self, number: int) -> Images:
        """The first `number` training images and all test images."""
        if number > len(self.x_train):
            fail(
                f"--limit {number} is more than the {len(self.x_train)} "
                "training images there are"
            )
        return dataclasses.replace(
            self, x_train=self.x_train[:number], y_train=self.y_train[:number]
        )

    def scaled(self, white: float) -> Images:
        """The same images in [0, white]."""
        return dataclasses.replace(
            self,
            x_train=(self.x_train * white).astype("float32"),
            x_test=(self.x_test * white).astype("float32"),
        )

    def held_out(self, number: int) -> Images:
        """The last `number` training images take the place of the test set."""
        if number >= len(self.x_train):
            fail(
                f"--holdout {number} leaves none of the {len(self.x_train)} "
                "training images to train on"
            )
        return Images(
            self.x_train[:-number],
            self.y_train[:-number],
            self.x_train[-number:],
            self.y_train[-number:],
            is_held_out=True,
        )


class ShiftedBatches(keras.utils.PyDataset):
    """Shuffled training batches, each image shifted by a few pixels.

    Args:
        images: The images; what a shift leaves empty is black.
        batch_size: Images per batch.
        shift: Largest shift along each axis, in pixels.
        seed: Of the order and of the shifts.
    """

    def __init__(
        self, images: Images, batch_size: int, shift: int, seed: int
    ) -> None:
        super().__init__()
        margin = [(0, 0), (shift, shift), (shift, shift), (0, 0)]
        height, width = images.x_train.shape[1:3]
        # (n, 2 shift + 1, 2 shift + 1, channels, height, width), a view
        self.windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(images.x_train, margin), (height, width), axis=(1, 2)
        )
        self.labels = images.y_train
        self.batch_size = batch_size
        self.rng = np.random.default_rng(seed)
        self.on_epoch_end()

    def on_epoch_end(self) -> None:
        self.order = self.rng.permutation(len(self.labels))

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        start = index * self.batch_size
        chosen = self.order[start : start + self.batch_size]
        positions = self.windows.shape[1]
        rows, columns = self.rng.integers(0, positions, (2, len(chosen)))
        batch = self.windows[chosen, rows, columns]
        return np.moveaxis(batch, 1, -1), self.labels[chosen]


def load(dataset: str, file: Path | None) -> Images:
    """Load and check one of the data sets.

    Args:
        dataset: One of `DATASETS`; not used if `file` is given.
        file: `.npz` file with the arrays of `keras.datasets`.
    """
    if file is not None:
        return _checked(_read_npz(file), f"--data {file}")
    arrays = _digits() if dataset == "digits" else _from_tfds(dataset)
    return _checked(arrays, f"--dataset {dataset}")


def _from_tfds(name: str) -> dict[str, np.ndarray]:
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder(name)
        if not builder.is_prepared():
            _check_network("storage.googleapis.com")
            builder.download_and_prepare()
        # Whole arrays, in the order of the files.
        splits = tfds.as_numpy(
            builder.as_dataset(
                split=["train", "test"], batch_size=-1, as_supervised=True
            )
        )
    except Exception as error:  # TFDS raises whatever its downloader raises
        reason = str(error).strip().splitlines() or [type(error).__name__]
        fail(
            f"data set {name} is neither in TFDS_DATA_DIR="
            f"{os.environ.get('TFDS_DATA_DIR', '(not set)')} nor could it be "
            f"downloaded ({reason[0][:200]}); --dataset digits needs no "
            "download"
        )
    (x_train, y_train), (x_test, y_test) = splits
    return dict(zip(ARRAYS, (x_train, y_train, x_test, y_test), strict=True))


def _check_network(host: str) -> None:
    """Raise OSError at once where TFDS would retry for minutes."""
    if not urllib.request.getproxies():
        socket.create_connection((host, 443), timeout=10).close()


def _digits() -> dict[str, np.ndarray]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x_train, x_test, y_train, y_test = train_test_split(
        (digits.images / 16.0).astype("float32"),
        digits.target,
        test_size=360,
        random_state=0,
        stratify=digits.target,
    )
    return dict(zip(ARRAYS, (x_train, y_train, x_test, y_test), strict=True))


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as content:
            missing = [name for name in ARRAYS if name not in content]
            if missing:
                fail(
                    f"--data {file} must hold the arrays {', '.join(ARRAYS)}; "
                    f"missing: {', '.join(missing)}"
                )
            return {name: content[name] for name in ARRAYS}
    except (OSError, ValueError, zipfile.BadZipFile, TypeError) as error:
        fail(f"--data {file} cannot be read as an .npz file: {error}")


def _checked(arrays: dict[str, np.ndarray], source: str) -> Images:
    """Images in [0, 1] with a channel axis, or the end of the program."""
    for half in ("train", "test"):
        images, labels = arrays[f"x_{half}"], arrays[f"y_{half}"]
        if images.ndim not in (3, 4) or len(images) == 0:
            fail(
                f"{source}: x_{half} must have shape (n, height, width) or "
                f"(n, height, width, channels), n > 0; it has {images.shape}"
            )
        if labels.ndim == 2 and labels.shape[1] == 1:  # as in CIFAR
            labels = labels[:, 0]
        if labels.shape != (len(images),):
            fail(
                f"{source}: y_{half} must have shape ({len(images)},), one "
                f"label per image; it has {arrays[f'y_{half}'].shape}"
            )
        if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
            fail(f"{source}: y_{half} must hold integers 0, 1, 2, ...")
        if np.issubdtype(images.dtype, np.integer):
            images = images / np.float32(255)
        images = images.astype("float32")
        if not np.isfinite(images).all():
            fail(f"{source}: x_{half} holds values that are not finite")
        if images.ndim == 3:
            images = images[..., None]
        arrays[f"x_{half}"], arrays[f"y_{half}"] = (
            images,
            labels.astype("int32"),
        )
    if arrays["x_train"].shape[1:] != arrays["x_test"].shape[1:]:
        fail(
            f"{source}: training and test images differ in shape: "
            f"{arrays['x_train'].shape[1:]} and {arrays['x_test'].shape[1:]}"
        )
    return Images(**arrays)
