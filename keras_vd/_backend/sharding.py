"""Variables that are split over devices like the weight they belong to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras


@contextlib.contextmanager
def sharded_like(weight: keras.Variable) -> Iterator[None]:
    """Make new variables follow the layout of `weight` within this context.

    A variable of the weight's rank is split as the weight is, along each axis
    on which it has the weight's size. If the user's
    `keras.distribution.LayoutMap` splits the variable, that layout is kept.
    Other variables stay as they are, and nothing happens without a
    distribution.

    Args:
        weight: Variable that was made under the same distribution.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        yield
        return
    keras.distribution.set_distribution(_Following(distribution, weight))
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


class _Following:
    """Wrapper of a distribution that lays variables out like a weight."""

    def __init__(self, distribution: Any, weight: keras.Variable) -> None:
        self._distribution = distribution
        self._weight = weight

    def __getattr__(self, name: str) -> Any:
        return getattr(self._distribution, name)

    def get_variable_layout(self, variable: keras.Variable) -> Any:
        own = self._distribution.get_variable_layout(variable)
        shape = tuple(self._weight.shape)
        if any(own.axes) or len(variable.shape) != len(shape):
            return own
        layout = self._distribution.get_variable_layout(self._weight)
        sizes = zip(layout.axes, variable.shape, shape, strict=True)
        return keras.distribution.TensorLayout(
            [axis if own == size else None for axis, own, size in sizes],
            layout.device_mesh,
        )
