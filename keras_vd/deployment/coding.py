"""Sparse arrays as a stream of gaps and values.

All sparse weights of a model are laid end to end. Each entry that is not zero
is stored as the number of zeros before it, in 8 or 16 bits, and its value. The
largest number that fits stands for as many zeros without an entry after them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

FEWEST = 32  # entries; in fewer, the shape takes more space than the zeros
CHECK_PRIME = 65521  # a sum of 2**31 products of two residues fits 63 bits
LEVELS = 127  # of 8-bit weights, on either side of 0
# Bytes of the value of an entry, by the option `weights`.
VALUE_BYTES = {"float32": 4, "int8": 1}


@dataclasses.dataclass(frozen=True)
class Stream:
    """Sparse arrays, laid end to end.

    Attributes:
        positions: Indices of these arrays among all arrays of a model.
        shapes: Their shapes.
        gaps: Codes, uint8 or uint16.
        values: Entries that are not zero: float32, or int8 in units of
            `scales`; int16 where there are ids, which are not rounded.
        scales: The unit of each array; None for float32 values.
    """

    positions: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    gaps: np.ndarray
    values: np.ndarray
    scales: np.ndarray | None

    @property
    def skip(self) -> int:
        """The code that stands for zeros without an entry after them."""
        return int(np.iinfo(self.gaps.dtype).max)

    @property
    def sizes(self) -> list[int]:
        """Number of entries of each array, zeros included."""
        return [int(np.prod(shape)) for shape in self.shapes]

    def checksum(self) -> int:
        """Compute a checksum of the positions, values and scales."""
        is_entry = self.gaps != self.skip
        ends = np.cumsum(self.gaps.astype(np.int64) + is_entry)
        found = checksum(ends[is_entry] - 1, self.values)
        if self.scales is not None:
            found += checksum(np.arange(len(self.scales)), self.scales)
        return found


def checksum(positions: np.ndarray, values: np.ndarray) -> int:
    """Sum (position + 1) times value, with both reduced modulo a prime.

    The value of a float is the integer that has the same bits.
    """
    if values.dtype == np.float32:
        values = values.view(np.int32)
    factors = positions.astype(np.int64) % CHECK_PRIME + 1
    return int((factors * (values.astype(np.int64) % CHECK_PRIME)).sum())


def encode(arrays: Sequence[np.ndarray], weights: str) -> Stream | None:
    """Encode the arrays that are smaller as a stream than as they are.

    Args:
        arrays: A model's weights.
        weights: "float32" or "int8"; with 8 bits arrays that are not sparse
            are rounded too.

    Returns:
        The stream; None if there is no such array.
    """
    chosen = tuple(i for i, x in enumerate(arrays) if _is_worth(x, weights))
    if not chosen:
        return None
    rounded = [_round(arrays[i], weights) for i in chosen]
    flat = np.concatenate([values.ravel() for values, _ in rounded])
    scales = np.array([scale for _, scale in rounded], "float32")
    return Stream(
        chosen,
        tuple(arrays[i].shape for i in chosen),
        encode_gaps(np.flatnonzero(flat)),
        _narrow(flat[flat != 0], weights),
        scales if weights == "int8" else None,
    )


def encode_gaps(positions: np.ndarray) -> np.ndarray:
    """Encode increasing positions, in the type that takes fewer bytes."""
    zeros = np.diff(positions, prepend=-1) - 1
    coded = []
    for dtype in (np.uint8, np.uint16):
        skip = np.iinfo(dtype).max
        skips = zeros // skip
        codes = np.full(len(zeros) + skips.sum(), skip, dtype)
        codes[np.cumsum(skips + 1) - 1] = zeros % skip
        coded.append(codes)
    return min(coded, key=lambda codes: codes.nbytes)


def _is_worth(array: np.ndarray, weights: str) -> bool:
    if array.dtype != np.float32 or array.size < FEWEST:
        return False
    is_large = np.abs(array).max() > np.iinfo(np.int16).max
    if weights == "int8" and is_large and _is_whole(array):
        return False
    packed = np.count_nonzero(array) * (VALUE_BYTES[weights] + 1)
    return bool(packed + array.size // np.iinfo(np.uint8).max < array.nbytes)


def _is_whole(array: np.ndarray) -> bool:
    """Tell whether these may be ids, such as those of words after `shrink`."""
    return bool((array == np.rint(array)).all())


def _round(array: np.ndarray, weights: str) -> tuple[np.ndarray, float]:
    if weights == "float32":
        return array, 1.0
    scale = 1.0
    if not _is_whole(array):
        scale = float(np.abs(array).max()) / LEVELS
    return np.rint(array / scale).astype(np.int16), scale


def _narrow(values: np.ndarray, weights: str) -> np.ndarray:
    if weights == "float32" or np.abs(values).max(initial=0) > LEVELS:
        return values
    return values.astype(np.int8)
