"""The inputs that a subclassed model has been called with."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import keras

from keras_vd._backend.keras_internals import flatten_layers
from keras_vd._backend.names import Names
from keras_vd.conversion.tracing import Untraceable

# The types of inputs, in the order of `keras.tree`.
Types = tuple[str, ...]


def possible_types(model: keras.Model) -> list[Types]:
    """List the types that the inputs of a subclassed model may have.

    Keras remembers shapes only. A model with a graph as well, beside a `call`
    of its own, knows them.
    """
    known = getattr(model, "inputs", None)
    if known:
        return [tuple(keras.backend.standardize_dtype(x.dtype) for x in known)]
    found: list[Any] = []
    keras.tree.map_shape_structure(found.append, _shapes(model))
    number, (real, whole) = len(found), (keras.backend.floatx(), "int32")
    if 1 < number < 4:
        mixed = list(itertools.product((real, whole), repeat=number))[1:-1]
    else:
        mixed = []
    return [(real,) * number, (whole,) * number, *mixed]


def symbolic_inputs(model: keras.Model, dtypes: Types) -> Any:
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
    if getattr(model, "inputs", None):
        return keras.tree.map_structure(
            lambda x: keras.Input(
                batch_shape=x.shape, dtype=x.dtype, name=x.name
            ),
            model.input,
        )
    shapes = _shapes(model)
    if isinstance(shapes, dict) and len(shapes) == len(dtypes):
        # The inputs of a Functional model are named as in the dictionary.
        names = sorted(shapes)
    else:
        taken = Names(x.name for x in flatten_layers(model))
        names = [f"{first.name}_{i}" for i in range(len(dtypes))]
        names = names if len(names) > 1 else [first.name]
        names = [taken.unique(name) for name in names]
    described = zip(names, dtypes, strict=True)

    def make(shape: Any) -> Any:
        name, dtype = next(described)
        open_shape = (None, *tuple(shape)[1:])
        return keras.Input(batch_shape=open_shape, dtype=dtype, name=name)

    return keras.tree.map_shape_structure(make, shapes)


def _shapes(model: keras.Model) -> Any:
    config: Any = model.get_build_config() or {}
    return _unwrapped(config.get("input_shape") or ())


def _unwrapped(structure: Any) -> Any:
    """Return a structure without what Keras wraps it in to notice changes."""
    if isinstance(structure, dict):
        return {key: _unwrapped(value) for key, value in structure.items()}
    if isinstance(structure, list):
        return [_unwrapped(value) for value in structure]
    return structure
