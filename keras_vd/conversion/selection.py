"""Find the layers of a model that `include` and `exclude` refer to."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

# The names of the models and wrappers around a layer, outermost first, and its
# own name.
Path = tuple[str, ...]
Selector = str | type | Callable[[keras.layers.Layer], bool]
Selectors = Selector | Sequence[Selector]


def select(
    argument: str,
    selectors: Selectors,
    places: Mapping[Path, keras.layers.Layer],
) -> set[Path]:
    """Return the paths of the layers that a user refers to.

    Args:
        argument: Name of the argument, for messages.
        selectors: What the user passed, one or several of: the name of a
            layer, or of a model or wrapper around it, a layer class, or a
            function of a layer.
        places: The layers to choose from, by their paths.

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
        # The first name is that of the whole model, which cannot be chosen.
        return selector in (*path[1:], "/".join(path[1:]))
    if inspect.isclass(selector):
        return isinstance(layer, selector)
    return bool(selector(layer))
