"""The inputs that a subclassed model has been called with."""

from __future__ import annotations

import inspect
from typing import Any

import keras

from keras_vd._backend.keras_internals import flatten_layers
from keras_vd._backend.names import Names
from keras_vd.conversion.tracing import Untraceable


def flat_shapes(model: keras.Model) -> list[Any]:
    """List the shapes that a model has been called with, if they are known."""
    shapes: list[Any] = []
    keras.tree.map_shape_structure(
        shapes.append, (model.get_build_config() or {}).get("input_shape", ())
    )
    return shapes


def symbolic_inputs(model: keras.Model, dtypes: tuple[str, ...]) -> Any:
    """Make the inputs of a subclassed model, as it has been called.

    Raises:
        Untraceable: if that is not known, or if it takes more than one
            argument.
    """
    if not dtypes:
        raise Untraceable(
            "the shapes of its inputs are not known: call it on data"
        )
    first, *others = inspect.signature(model.call).parameters.values()
    needed = [
        x.name
        for x in others
        if x.default is x.empty
        and x.kind in (x.POSITIONAL_OR_KEYWORD, x.KEYWORD_ONLY)
        and x.name not in ("training", "mask")
    ]
    if needed:
        raise Untraceable(
            f"its `call` takes several arguments, `{first.name}` and {needed}: "
            "take one list or dictionary of them"
        )
    config: Any = model.get_build_config()
    shapes = config["input_shape"]
    if isinstance(shapes, dict):
        # The inputs of a Functional model are named as in the dictionary.
        names = sorted(shapes)
    elif len(dtypes) == 1:
        names = [first.name]
    else:
        names = [f"{first.name}_{i}" for i in range(len(dtypes))]
    if not isinstance(shapes, dict):
        taken = Names(x.name for x in flatten_layers(model))
        names = [taken.unique(name) for name in names]
    described = zip(names, dtypes, strict=True)

    def make(shape: Any) -> Any:
        name, dtype = next(described)
        open_shape = (None, *tuple(shape)[1:])
        return keras.Input(batch_shape=open_shape, dtype=dtype, name=name)

    return keras.tree.map_shape_structure(make, shapes)
