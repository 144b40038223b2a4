"""Models built anew from their configs, with other layers in some places."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any

import keras
from keras import ops

from keras_vd._keras_internals import flatten_layers, own_variables, sublayers
from keras_vd.layers.structured import StructuredGate
from keras_vd.posteriors import WeightPosterior

Config = dict[str, Any]
Path = tuple[str, ...]


def layer_classes(model: keras.Model) -> dict[str, type]:
    """Classes of a model's layers by name, also those never registered."""
    return {type(x).__name__: type(x) for x in flatten_layers(model)}


def rewritten(
    config: Any, rewrite: Callable[[Config, Path], Config], path: Path = ()
) -> Any:
    """A model's config with the descriptions of some layers replaced.

    Args:
        config: What Keras serializes a model to, or a part of it.
        rewrite: Returns the new description of a layer, given the old one and
            the names of the layers it is in, its own last.
        path: Names of the layers that `config` is in.
    """
    if isinstance(config, (list, tuple)):
        return type(config)(rewritten(x, rewrite, path) for x in config)
    if not isinstance(config, dict):
        return config
    name = _name(config)
    if name is not None:
        path = (*path, name)
    config = {
        key: rewritten(value, rewrite, path)
        for key, value in config.items()
        if key != "compile_config"
    }
    return config if name is None else rewrite(config, path)


def _name(config: Config) -> str | None:
    """Name of the layer that a config describes, if it does describe one."""
    arguments = config.get("config")
    return arguments.get("name") if isinstance(arguments, dict) else None


def rebuilt(config: Config, classes: Mapping[str, type]) -> keras.Model:
    """The model that a config describes, with fresh weights."""
    # The code in it, such as that of a Lambda layer, is the model's own.
    return keras.saving.deserialize_keras_object(
        config, custom_objects=dict(classes), safe_mode=False
    )


def copy_weights(
    source: keras.layers.Layer,
    target: keras.layers.Layer,
    replaced: Mapping[int, Any],
    left_out: Container[keras.layers.Layer] = (),
) -> dict[int, keras.layers.Layer]:
    """Copy values from a tree of layers to one with the same layers.

    Posteriors that only one of a pair has are passed over.

    Args:
        source: Where the values are.
        target: Where they go.
        replaced: Other values for some variables of `source`, by their `id`.
        left_out: Layers in `source` that have no counterpart.

    Returns:
        The layers in `target`, by the `id` of those in `source`.
    """
    counterparts: dict[int, keras.layers.Layer] = {}
    pending = [(source, target)]
    while pending:
        old, new = pending.pop()
        counterparts[id(old)] = new
        if isinstance(old, StructuredGate) and type(old) is not type(new):
            old.copy_to(new)
            continue
        for variable, copy in zip(
            own_variables(old), own_variables(new), strict=True
        ):
            # Through NumPy: two JAX variables must not share one buffer.
            value = replaced.get(id(variable), variable)
            copy.assign(ops.convert_to_numpy(value))
        children = [x for x in sublayers(old) if x not in left_out]
        others = sublayers(new)
        if not (_posteriors(children) and _posteriors(others)):
            children = [
                x for x in children if not isinstance(x, WeightPosterior)
            ]
            others = [x for x in others if not isinstance(x, WeightPosterior)]
        pending.extend(zip(children, others, strict=True))
    return counterparts


def _posteriors(layers: list[keras.layers.Layer]) -> list[WeightPosterior]:
    return [x for x in layers if isinstance(x, WeightPosterior)]
