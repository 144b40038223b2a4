"""Find which groups of weights each layer is to have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras

from keras_vd._backend.validation import check_choices
from keras_vd.layers.base import variational_form

# Names of groups for all layers, or a function that returns those of a layer.
Groups: TypeAlias = (
    Sequence[str] | Callable[[keras.layers.Layer], Sequence[str]]
)


def find_groups(
    groups: Groups, layers: list[keras.layers.Layer]
) -> dict[int, tuple[str, ...]]:
    """Return the names of the groups of each layer, by its `id`.

    Args:
        groups: As in `to_variational`.
        layers: The layers that become variational.

    Raises:
        TypeError: if `groups` is neither a tuple, a list nor a function.
        ValueError: if no layer knows a name, or if the layer does not for
            which a function has returned it.
    """
    if callable(groups):
        return {
            id(layer): check_choices("groups", groups(layer), _known(layer))
            for layer in layers
        }
    if not isinstance(groups, (list, tuple)):
        raise TypeError(
            "Argument `groups` must be a tuple of names or a function of a "
            f"layer. Received: groups={groups!r} (of type "
            f"{type(groups).__name__})."
        )
    known = {id(layer): _known(layer) for layer in layers}
    every = sorted({name for names in known.values() for name in names})
    check_choices("groups", groups, every)
    return {
        key: tuple(name for name in groups if name in names)
        for key, names in known.items()
    }


def _known(layer: Any) -> tuple[str, ...]:
    """Return the names of the groups that a layer's variational form has."""
    # The form of a grouped convolution has no names for groups of weights: its
    # argument `groups` is taken.
    if getattr(layer, "groups", 1) != 1:
        return ()
    form: Any = variational_form(layer)
    return tuple(form._available_groups)
