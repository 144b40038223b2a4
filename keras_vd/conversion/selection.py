"""Which layers of a model a user means by `include` and `exclude`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

# Names of what a layer is in, from outside, and its own.
Path = tuple[str, ...]
Selector = str | type | Callable[[keras.layers.Layer], bool]
Selectors = Selector | Sequence[Selector]


def select(
    argument: str,
    selectors: Selectors,
    places: Mapping[Path, keras.layers.Layer],
) -> set[Path]:
    """Where the layers are that a user means.

    Args:
        argument: Name of the argument, for messages.
        selectors: What the user passed: names of layers, or of what they are
            in, layer classes, functions of a layer; one or several.
        places: The layers to choose from, by where they are.

    Raises:
        TypeError: if something else was passed.
        ValueError: if one of them fits no layer.
    """
    is_several = isinstance(selectors, (list, tuple))
    several: Any = selectors if is_several else [selectors]
    chosen: set[Path] = set()
    for selector in several:
        if not isinstance(selector, str) and not callable(selector):
            raise TypeError(
                f"Argument `{argument}` must consist of names, layer classes "
                "and functions of a layer. Received: "
                f"{selector!r} (of type {type(selector).__name__})."
            )
        found = {p for p, layer in places.items() if _fits(selector, p, layer)}
        if not found:
            names = ["/".join(path[1:]) for path in places]
            raise ValueError(
                f"Every part of argument `{argument}` must fit a layer with "
                f"weights, that is one of {names}. Received: {selector!r}, "
                "which fits none."
            )
        chosen |= found
    return chosen


def _fits(selector: Selector, path: Path, layer: keras.layers.Layer) -> bool:
    if isinstance(selector, str):
        # Past the name of the whole model, which is not a choice.
        return selector in (*path[1:], "/".join(path[1:]))
    if inspect.isclass(selector):
        return isinstance(layer, selector)
    return bool(selector(layer))
