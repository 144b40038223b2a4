"""From a variational model to a plain Keras model."""

from __future__ import annotations

import inspect
from typing import Any

import keras

from keras_vd._folding import absorb, find_folds
from keras_vd._keras_internals import flatten_layers
from keras_vd._validation import check_finite_model, check_model
from keras_vd.conversion.copying import (
    Config,
    copy_weights,
    layer_classes,
    rebuilt,
    rewritten,
)
from keras_vd.layers.base import VariationalLayer, keras_class
from keras_vd.layers.structured import StructuredGate
from keras_vd.report import required_posteriors


def to_deterministic(model: keras.Model) -> keras.Model:
    """Replace variational layers by plain Keras layers of the same shape.

    Kernels become the posterior means, with pruned weights at zero;
    predictions equal the variational model's inference. A gate goes into the
    kernel of the layers that read it, also past activations, pooling, Flatten
    and the like where that is exact. Otherwise it becomes a
    `keras.layers.Rescaling` or, where it depends on the input, a small nested
    model of the same name. Everything else is copied as it is. The result is
    not compiled, and `model` is not changed.

    Args:
        model: A built Sequential or Functional model, or a subclassed one
            whose `get_config` rebuilds it.

    Returns:
        A model without any class of `keras_vd`.

    Raises:
        TypeError: if `model` is no Keras model.
        ValueError: if it is not built, has no variational layers, has weights
            that are not finite or a variational layer with a `call` of its
            own, or is a subclassed model that creates variational layers by
            itself.
    """
    check_model(model)
    required_posteriors(model)
    check_finite_model(model)
    classes = layer_classes(model)
    for cls in classes.values():
        _check_call(cls)
    folds = find_folds(model)
    config = keras.saving.serialize_keras_object(model)
    config = rewritten(
        _without_layers(config, {gate.name for gate in folds}),
        lambda layer, path: _plain_config(
            layer, classes.get(layer["class_name"])
        ),
    )
    plain = rebuilt(config, classes)
    remaining = [
        layer.name
        for layer in flatten_layers(plain)
        if isinstance(layer, (VariationalLayer, StructuredGate))
    ]
    if remaining:
        raise ValueError(
            "Argument `model` must describe its variational layers in "
            "`get_config`, so that plain ones can take their place. "
            f"'{model.name}' creates some by itself: {remaining}."
        )
    values = {
        id(variable): value
        for layer in flatten_layers(model)
        if isinstance(layer, VariationalLayer)
        for variable, value in layer.inference_values()
    }
    counterparts = copy_weights(model, plain, values, left_out=folds)
    for targets in folds.values():
        for layer, factors in targets:
            absorb(counterparts[id(layer)], factors)
    return plain


def _check_call(cls: Any) -> None:
    is_ours = issubclass(cls, (VariationalLayer, StructuredGate))
    if is_ours and cls.call.__module__.split(".")[0] not in (
        "keras_vd",
        "keras",
    ):
        raise ValueError(
            "Argument `model` must compute what layers of keras_vd and Keras "
            f"compute. '{cls.__name__}' overrides `call`, which no plain layer "
            "knows."
        )


def _plain_config(config: Config, cls: type | None) -> Config:
    """The config of a layer, described as its Keras layer if it is ours."""
    if cls is None or not issubclass(cls, (VariationalLayer, StructuredGate)):
        return config
    if issubclass(cls, StructuredGate):
        gate = cls.from_config(config["config"])
        gate.build_from_config(config["build_config"])
        layer = gate.plain_layer(config["build_config"]["input_shape"])
        return {**config, **keras.saving.serialize_keras_object(layer)}
    added = _added_arguments(cls)
    arguments = {
        name: value
        for name, value in config["config"].items()
        if name not in added
    }
    # Names of group variables, where Keras has an integer of its own.
    if isinstance(arguments.get("groups"), list):
        del arguments["groups"]
    return {
        **config,
        "module": "keras.layers",
        "class_name": _public_name(keras_class(cls)),
        "registered_name": None,
        "config": arguments,
    }


def _public_name(cls: type) -> str:
    """The name under which `keras.layers` has a class, often its own."""
    names = (k for k, v in vars(keras.layers).items() if v is cls)
    return next(names, cls.__name__)


def _without_layers(config: Any, names: set[str]) -> Any:
    """The config of a model, in which what read a layer reads its input."""
    if isinstance(config, (list, tuple)):
        return type(config)(_without_layers(item, names) for item in config)
    if not isinstance(config, dict):
        return config
    config = {k: _without_layers(v, names) for k, v in config.items()}
    listed = config.get("layers")
    if not isinstance(listed, list):
        return config
    gone = [
        x
        for x in listed
        if isinstance(x, dict) and x.get("config", {}).get("name") in names
    ]
    # In a Sequential model the order says it all.
    sources = {
        x["name"]: _histories(x["inbound_nodes"])[0]
        for x in gone
        if "inbound_nodes" in x
    }
    kept = [x for x in listed if x not in gone]
    return _reconnected({**config, "layers": kept}, sources)


def _histories(config: Any) -> list[list[Any]]:
    """Where the tensors in a config come from: layer, call, output."""
    if isinstance(config, dict):
        if "keras_history" in config:
            return [config["keras_history"]]
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        return [found for item in config for found in _histories(item)]
    return []


def _reconnected(config: Any, sources: dict[str, list[Any]]) -> Any:
    if isinstance(config, (list, tuple)):
        return type(config)(_reconnected(item, sources) for item in config)
    if not isinstance(config, dict):
        return config
    config = {k: _reconnected(v, sources) for k, v in config.items()}
    while config.get("keras_history", [None])[0] in sources:
        config["keras_history"] = sources[config["keras_history"][0]]
    return config


def _added_arguments(cls: type) -> set[str]:
    """Arguments of a variational layer that its Keras layer does not have."""
    added: set[str] = set()
    known: set[str] = set()
    for base in cls.__mro__:
        is_variational = issubclass(base, VariationalLayer)
        (added if is_variational else known).update(
            inspect.signature(vars(base).get("__init__", object)).parameters
        )
    return added - known
