"""Arithmetic of sizes, some of which may not be known."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import keras

from keras_vd.rules.graph import GraphTensor


def product(sizes: Iterable[int | None]) -> int | None:
    """Multiply sizes; None if one is not known."""
    known = _known(sizes)
    return None if known is None else math.prod(known)


def total(sizes: Iterable[int | None]) -> int | None:
    """Add sizes up; None if one is not known."""
    known = _known(sizes)
    return None if known is None else sum(known)


def _known(sizes: Iterable[int | None]) -> list[int] | None:
    sizes = list(sizes)
    known = [size for size in sizes if size is not None]
    return known if len(known) == len(sizes) else None


def entries(*weights: keras.Variable) -> int:
    """Count the entries of some weights."""
    return sum(math.prod(weight.shape) for weight in weights)


def macs_at(
    positions: Iterable[int | None], *weights: keras.Variable
) -> int | None:
    """Multiply the number of positions by the entries used at each of them."""
    return product((*positions, entries(*weights)))


def positions(layer: Any, tensor: GraphTensor) -> tuple[int | None, ...]:
    """Return the sizes of all axes but those of the batch and the channels."""
    is_first = getattr(layer, "data_format", None) == "channels_first"
    return tensor.shape[2:] if is_first else tensor.shape[1:-1]
