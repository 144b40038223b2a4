"""The data of a pipeline: what it trains on, and what it measures on."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from keras_vd._backend.keras_internals import input_batches
from keras_vd._backend.validation import check_integer, check_number

_BATCH_SIZE = 32


class Shuffled(keras.utils.PyDataset):
    """Batches of arrays, in an order that the seed and the epoch determine.

    The order of `fit` itself goes on from one epoch to the next, so that a run
    that is resumed would have another one.

    Args:
        arrays: A tuple of arrays, or of structures of them.
        batch_size: Examples of a batch.
        seed: Int.
    """

    def __init__(self, arrays: tuple[Any, ...], batch_size: int, seed: int):
        super().__init__()
        self.arrays, self._batch_size = arrays, batch_size
        self._seed = seed
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Take the order of an epoch, counted from 0."""
        generator = np.random.default_rng([self._seed, epoch])
        self._order = generator.permutation(count_rows(self.arrays))

    def __len__(self) -> int:
        return math.ceil(self._order.size / self._batch_size)

    def __getitem__(self, index: int) -> Any:
        start = index * self._batch_size
        rows = self._order[start : start + self._batch_size]
        return take(self.arrays, rows)


class Data:
    """Data to train on and to measure on.

    Args:
        x: As `fit` takes it, but for generators.
        y: Labels, if `x` is arrays.
        validation_data: As `fit` takes it, or None.
        validation_split: Share of arrays that is held out if there is none.
        batch_size: For arrays; None: 32.
        num_examples: Number of examples of a data set; None: they are counted
            in one pass.
        seed: Int.

    Attributes:
        batches: What to train on.
        num_examples: Number of examples in it.
        steps: Number of its batches.
        validation: Arguments of `evaluate`; None if there is nothing.
        measured_on: What the metrics of the report are measured on, in words.

    Raises:
        TypeError: if `x` is nothing that `fit` takes, or an argument is of the
            wrong type.
        ValueError: if an argument is out of range, `x` can be read only once,
            has no end or no examples, or arguments do not go together.
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        validation_data: Any,
        validation_split: float,
        batch_size: int | None,
        num_examples: int | None,
        seed: int,
    ) -> None:
        split = check_number("validation_split", validation_split, 0.0, 1.0)
        if split == 1.0:
            raise ValueError(
                "Argument `validation_split` must leave something to train "
                f"on. Received: validation_split={validation_split!r}."
            )
        if batch_size is not None:
            batch_size = check_integer("batch_size", batch_size, 1)
        if num_examples is not None:
            num_examples = check_integer("num_examples", num_examples, 1)
        self._read(
            *(x, y, split, batch_size, num_examples, seed),
            _as_arguments(validation_data),
        )

    def _read(
        self,
        x: Any,
        y: Any,
        split: float,
        batch_size: int | None,
        num_examples: int | None,
        seed: int,
        validation: tuple[Any, ...] | None,
    ) -> None:
        """Set the attributes, from arguments that are in range."""
        if arrays := [z for z in keras.tree.flatten(x) if _is_array(z)]:
            count_rows(arrays)
        found = input_batches(x, batch_size or _BATCH_SIZE, None)
        if found is None:
            raise TypeError(
                "Argument `x` must be data as `fit` takes it: arrays, a "
                "`tf.data.Dataset`, a `PyDataset`, a torch `DataLoader`. "
                f"Received: x of type {type(x).__name__}."
            )
        self.validation = validation
        is_given = validation is not None
        self.measured_on = f"{'validation' if is_given else 'training'} data"
        if found.is_array:
            self._take_arrays(x, y, split, batch_size or _BATCH_SIZE, seed)
            if num_examples not in (None, self.num_examples):
                raise ValueError(
                    "Argument `num_examples` is for data sets: arrays say it "
                    f"by themselves. Received: num_examples={num_examples!r}, "
                    f"and {self.num_examples} examples to train on."
                )
            return
        if y is not None or batch_size is not None:
            raise ValueError(
                "Arguments `y` and `batch_size` go with arrays only; a data "
                f"set has both. Received: x of type {type(x).__name__}, "
                f"{'`y`' if y is not None else f'batch_size={batch_size!r}'}."
            )
        self._take_data_set(x, found, num_examples)

    def _take_arrays(
        self, x: Any, y: Any, split: float, batch_size: int, seed: int
    ) -> None:
        arrays = keras.tree.map_structure(
            _as_array, (x,) if y is None else (x, y)
        )
        rows = count_rows(arrays)
        order = np.arange(rows)
        if self.validation is None and split:
            held_out = max(1, round(split * rows))
            order = np.random.default_rng(seed).permutation(rows)
            self.validation = take(arrays, np.sort(order[:held_out]))
            order = np.sort(order[held_out:])
            self.measured_on = f"{held_out:,} examples held out"
        if not order.size:
            raise ValueError(
                "Argument `x` must hold examples to train on, besides those "
                f"held out. Received: {rows}."
            )
        self.batches: Any = Shuffled(take(arrays, order), batch_size, seed)
        self.num_examples = int(order.size)
        self.steps = len(self.batches)

    def _take_data_set(
        self, x: Any, found: Any, num_examples: int | None
    ) -> None:
        if iter(x) is x if hasattr(x, "__iter__") else False:
            raise ValueError(
                "Argument `x` must be data that can be read again in each "
                "epoch, such as a `tf.data.Dataset` or a `PyDataset`. "
                f"Received: {type(x).__name__}, which can be read once."
            )
        if found.is_endless:
            raise ValueError(
                "Argument `x` must have an end, as an epoch is one pass over "
                "it: leave `repeat()` out. Received: an endless "
                f"{type(x).__name__}."
            )
        self.batches = x
        self.steps = found.num_batches or 0
        if num_examples is None or not self.steps:
            sizes = [count_rows(batch) for batch in found]
            num_examples, self.steps = num_examples or sum(sizes), len(sizes)
        if not num_examples:
            raise ValueError("Argument `x` must hold examples. Received: none.")
        self.num_examples = num_examples

    @property
    def validation_data(self) -> Any:
        """What `fit` takes as its validation data."""
        found = self.validation
        return found[0] if found and len(found) == 1 else found

    @property
    def for_metrics(self) -> tuple[Any, ...]:
        """Arguments of `evaluate` that measure what the report tells."""
        return (self.batches,) if self.validation is None else self.validation

    def describe(self) -> list[Any]:
        """Return what tells this data from other data: arrays and numbers."""
        arrays = getattr(self.batches, "arrays", ())
        found = keras.tree.flatten([arrays, self.validation])
        return [self.num_examples, self.steps, *filter(_is_array, found)]

    def some_inputs(self) -> Any:
        """Return the inputs of a batch, or of a few examples, as arrays."""
        first, *_ = self.for_metrics
        batches = input_batches(first, _BATCH_SIZE, 1)
        return next(iter(batches))


def take(arrays: Any, rows: np.ndarray) -> Any:
    """Return rows of arrays, in their structure."""
    return keras.tree.map_structure(lambda array: array[rows], arrays)


def count_rows(arrays: Any) -> int:
    """Return the length of arrays.

    Raises:
        ValueError: if they have several.
    """
    lengths = {len(array) for array in keras.tree.flatten(arrays)}
    if len(lengths) != 1:
        raise ValueError(
            "Arguments `x` and `y` must hold as many examples in all of their "
            f"arrays. Received: {sorted(lengths)}."
        )
    return int(lengths.pop())


def _as_array(value: Any) -> np.ndarray:
    """Return an array of the type that `fit` would make of it."""
    array = keras.ops.convert_to_numpy(value) if _is_tensor(value) else value
    array = np.asarray(array)
    if array.dtype.kind == "f":
        array = array.astype(keras.config.floatx(), copy=False)
    return array


def _is_array(value: Any) -> bool:
    return bool(getattr(value, "shape", ()))


def _is_tensor(value: Any) -> bool:
    return bool(keras.ops.is_tensor(value))


def _as_arguments(validation_data: Any) -> tuple[Any, ...] | None:
    if validation_data is None:
        return None
    if isinstance(validation_data, tuple | list):
        return tuple(validation_data)
    return (validation_data,)
