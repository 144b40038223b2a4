"""Arrays of integers, most of them zero, in few bits.

Every number becomes a few decisions between 0 and 1, and a range coder
(`constriction`) stores each in -log2(p) bits, where p is the probability that
was expected of what it turned out to be. What is expected is learnt from what
came before, which a reader knows too. So reading and writing are the same
functions, which take either the numbers or None, and return the numbers.

Probabilities are made of exactly rounded operations alone (+, -, *, / and
square roots), so that every machine expects the same.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np

from keras_vd.deployment.requirements import require

# No decision has a smaller probability, so that none takes fewer bits than
# `FEWEST_BITS`: a file of so many bytes holds no more than so many numbers.
LEAST = 2.0**-10
FEWEST_BITS = -math.log2(1.0 - LEAST)
MAX_EXPONENT = 24  # numbers below 2**25 in size; float32 holds 2**24 of them
ROW_MEMORY = 1.0 - 1.0 / 8.0  # of the density of rows, per row
COLUMN_MEMORY = 1.0 - 1.0 / 16.0  # of the densities of columns, per row
WORD = np.dtype(">u4")


class Coder:
    """Writes decisions, or reads them.

    Args:
        content: What `to_bytes` has returned; None to write.

    Raises:
        ValueError: if it is damaged, also later while it is read.
    """

    def __init__(self, content: bytes | None = None) -> None:
        stream = require("constriction", "archive").stream
        self._model = stream.model.Bernoulli(perfect=False)
        self._encoder: Any = None
        self._decoder: Any = None
        if content is None:
            self._encoder = stream.queue.RangeEncoder()
        else:
            if len(content) % WORD.itemsize:
                raise ValueError("The numbers in it are cut short.")
            words = np.frombuffer(content, WORD).astype(np.uint32)
            self._decoder = stream.queue.RangeDecoder(words)
        # How often each kind of decision was 0 and 1.
        self.counts: defaultdict[Any, list[int]] = defaultdict(lambda: [0, 0])

    def code(self, p: np.ndarray, bits: Any) -> np.ndarray:
        """Write or read decisions.

        Args:
            p: Probabilities of 1, float64 of shape `(n,)`.
            bits: What to write, bool of shape `(n,)`; None to read.

        Returns:
            The decisions, bool of shape `(n,)`.
        """
        if self._decoder is not None:
            try:
                return self._decoder.decode(self._model, p).astype(bool)
            # What `constriction` raises where no decisions give these bytes.
            except AssertionError as error:
                message = "The numbers in it are damaged."
                raise ValueError(message) from error
        self._encoder.encode(bits.astype(np.int32), self._model, p)
        return bits

    def code_evenly(self, n: int, bits: np.ndarray | None) -> np.ndarray:
        """Write or read `n` decisions in a bit each."""
        return self.code(np.full(n, 0.5), bits)

    def code_alike(
        self, kind: Any, n: int, bits: np.ndarray | None
    ) -> np.ndarray:
        """Write or read `n` decisions of a kind, whose probability is learnt.

        Args:
            kind: Name of the kind.
            n: Number of decisions.
            bits: See `code`.
        """
        counts = self.counts[kind]
        parts, start = [np.empty(0, bool)], 0
        while start < n:
            # Parts as long as the probability hardly changes.
            stop = min(n, start + 1 + sum(counts) // 16)
            p = (counts[1] + 0.4) / (sum(counts) + 0.8)
            part = self.code(
                np.full(stop - start, min(max(p, LEAST), 1.0 - LEAST)),
                None if bits is None else bits[start:stop],
            )
            ones = int(part.sum())
            counts[0] += len(part) - ones
            counts[1] += ones
            parts.append(part)
            start = stop
        return np.concatenate(parts)

    def forget(self) -> None:
        """Give what was learnt so far less weight than what follows."""
        for counts in self.counts.values():
            scale = max(1, -(-sum(counts) // 32))
            counts[:] = [-(-count // scale) for count in counts]

    def to_bytes(self) -> bytes:
        """Return all that was written."""
        words = self._encoder.get_compressed()
        return words.astype(WORD).tobytes()


def code_integers(
    coder: Coder, shape: tuple[int, int], values: np.ndarray | None, kind: str
) -> np.ndarray:
    """Write or read a matrix of integers.

    Args:
        coder: What writes or reads.
        shape: Shape of the matrix.
        values: What to write, int64; None to read.
        kind: Matrices of the same kind are expected to be alike.

    Returns:
        The matrix.

    Raises:
        ValueError: if a value to write is 2**25 or larger.
    """
    mask = _code_mask(coder, shape, None if values is None else values != 0)
    found = np.zeros(shape, np.int64)
    chosen = None if values is None else values[mask]
    found[mask] = _code_nonzero(coder, int(mask.sum()), chosen, kind)
    return found


def _code_mask(
    coder: Coder, shape: tuple[int, int], mask: np.ndarray | None
) -> np.ndarray:
    """Write or read which entries are not zero, row by row.

    The odds of an entry are the geometric mean of those in the last rows, and
    of those in the last entries of its column.
    """
    rows, columns = shape
    found = np.empty(shape, bool)
    if not columns:
        return found
    # Two entries of a half, as nothing is known before the first row.
    row_density = 0.5
    ones, seen = np.zeros(columns), 0.0
    total = 1.0
    for i in range(rows):
        density = _bounded(total / (i * columns + 2.0))
        by_column = _bounded((ones + 2.0 * density) / (seen + 2.0))
        by_row = _bounded(row_density if i else density)
        odds = np.sqrt(_odds(by_column) * _odds(by_row))
        p = _bounded(odds / (1.0 + odds))
        row = coder.code(p, None if mask is None else mask[i])
        found[i] = row
        count = int(row.sum())
        total += count
        ones = COLUMN_MEMORY * ones + row
        seen = COLUMN_MEMORY * seen + 1.0
        memory = ROW_MEMORY if i else 0.5
        row_density = memory * by_row + (1.0 - memory) * (count / columns)
    return found


def _bounded(p: Any) -> Any:
    return np.minimum(np.maximum(p, LEAST), 1.0 - LEAST)


def _odds(p: Any) -> Any:
    return p / (1.0 - p)


def _code_nonzero(
    coder: Coder, n: int, values: np.ndarray | None, kind: str
) -> np.ndarray:
    """Write or read integers that are not zero: sign, exponent and digits.

    The first two digits below the leading one are learnt; others are as
    likely 0 as 1.
    """
    sizes = None if values is None else np.abs(values)
    if sizes is not None and sizes.max(initial=0) >= 2 ** (MAX_EXPONENT + 1):
        raise ValueError(f"Integers must be below 2**{MAX_EXPONENT + 1}.")
    is_negative = coder.code_alike(
        (kind, "sign"), n, None if values is None else values < 0
    )
    exponents = np.zeros(n, np.int64)
    for exponent in range(MAX_EXPONENT):
        reached = exponents == exponent
        is_larger = coder.code_alike(
            (kind, exponent),
            int(reached.sum()),
            None if sizes is None else sizes[reached] >= 2 << exponent,
        )
        if not is_larger.any():
            break
        exponents[reached] += is_larger
    found = np.ones(n, np.int64)
    for exponent in range(1, int(exponents.max(initial=0)) + 1):
        reached = np.flatnonzero(exponents == exponent)
        for digit in range(exponent - 1, -1, -1):
            is_learnt = digit >= exponent - 2
            # Those that are alike so far; all of them where nothing is learnt.
            prefixes = found[reached] if is_learnt else np.zeros(len(reached))
            for prefix in np.unique(prefixes):
                chosen = reached[prefixes == prefix]
                bits = None
                if sizes is not None:
                    bits = (sizes[chosen] >> digit & 1).astype(bool)
                if is_learnt:
                    key = (kind, exponent, int(prefix))
                    bits = coder.code_alike(key, len(chosen), bits)
                else:
                    bits = coder.code_evenly(len(chosen), bits)
                found[chosen] = 2 * found[chosen] + bits
    return np.where(is_negative, -found, found)
