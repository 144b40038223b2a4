"""The new model, node by node."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._keras_internals import (
    flatten_layers,
    graph_calls,
    own_variables,
    rename_operation,
)
from keras_vd._shrinking.analysis import Plan
from keras_vd._shrinking.graph import Node, Tensor
from keras_vd._shrinking.rule import Names, Rule

_ZEROS: dict[str, Any] = {
    "module": "keras.initializers",
    "class_name": "Zeros",
    "config": {},
    "registered_name": None,
}
_OBJECTS = (
    keras.initializers.Initializer,
    keras.regularizers.Regularizer,
    keras.constraints.Constraint,
)


def rebuild(
    plan: Plan, model: keras.Model
) -> tuple[keras.Model, dict[int, Any]]:
    """Build the model that a plan for `model` describes, with its weights.

    Returns:
        The model, and its layers by the id of the layer that each replaces.
    """
    builder = _Builder(plan)
    with warnings.catch_warnings():
        # What Keras has to say, it said when the model was first built.
        warnings.filterwarnings("ignore", ".*an input with a mask attached")
        smaller = builder.build(model.name)
        if isinstance(model, keras.Sequential):
            smaller = _as_sequential(smaller)
    # Setting it to True would set it for all layers.
    if not model.trainable:
        smaller.trainable = False
    return smaller, builder.layers


def _as_sequential(functional: keras.Model) -> keras.Model:
    """The same as a Sequential model, where each layer reads the last one."""
    calls = graph_calls(functional)
    previous = calls[0].outputs
    for call in calls[1:]:
        is_layer = isinstance(call.operation, keras.layers.Layer)
        tensors = keras.tree.flatten((call.args, call.kwargs))
        tensors = [x for x in tensors if isinstance(x, keras.KerasTensor)]
        if not is_layer or [id(x) for x in tensors] != [id(previous[0])]:
            return functional
        previous = call.outputs
    chain = keras.Sequential(name=functional.name)
    for call in calls:
        chain.add(call.operation, rebuild=False)
    chain.build(functional.inputs[0].shape)
    return chain


class _Builder:
    """Calls new layers on new tensors.

    Attributes:
        layers: New layers and operations by the id of the old ones.
        tensors: New symbolic tensors by those of the plan.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.layers: dict[int, Any] = {}
        self.tensors: dict[Tensor, keras.KerasTensor] = {}
        self.names = Names(layer.name for layer in plan.graph.input_layers)
        # Layers of nested models make way for those outside.
        rules = sorted(plan.rules.values(), key=lambda x: len(x.uses[0].path))
        self.layer_names = {
            id(rule.layer): self._new_name(rule) for rule in rules
        }

    def _new_name(self, rule: Rule) -> str:
        name = rule.layer.name
        if name in self.names.taken:
            name = "_".join((*rule.uses[0].path, name))
        return self.names.unique(name)

    def build(self, name: str) -> keras.Model:
        graph, functional = self.plan.graph, self.plan.graph.functional
        inputs = {}
        for tensor, symbolic, layer in zip(
            graph.inputs, functional.inputs, graph.input_layers, strict=True
        ):
            config = {**layer.get_config(), "optional": layer.optional}
            new = type(layer).from_config(config).output
            inputs[id(symbolic)] = new
            if tensor.keep.any():
                self.tensors[tensor] = self._gathered(tensor, new, layer.name)
        for node in graph.nodes:
            if not node.is_gone:
                self._call(node)
        outputs = {
            id(symbolic): self.tensors[tensor]
            for symbolic, tensor in zip(
                functional.outputs, graph.outputs, strict=True
            )
        }
        return keras.Model(
            keras.tree.map_structure(lambda x: inputs[id(x)], functional.input),
            keras.tree.map_structure(
                lambda x: outputs[id(x)], functional.output
            ),
            name=name,
        )

    def _gathered(
        self, tensor: Tensor, symbolic: keras.KerasTensor, name: str
    ) -> keras.KerasTensor:
        if tensor not in self.plan.gathered:
            return symbolic
        kept = tensor.keep[self.plan.present(tensor)]
        if kept.all():
            return symbolic
        kept = np.flatnonzero(kept).astype("int32")
        taken = ops.take(symbolic, kept, axis=-1)
        rename_operation(taken, self.names.unique(f"{name}_kept"))
        return taken

    def _call(self, node: Node) -> None:
        rule = self.plan.rule_of(node)
        key = id(node.operation)
        is_new = key not in self.layers
        if is_new:
            self.layers[key] = self._new_layer(rule)
        args, kwargs = keras.tree.map_structure(
            lambda x: self.tensors.get(x) if isinstance(x, Tensor) else x,
            (node.args, node.kwargs),
        )
        made = rule.call(self.layers[key], args, kwargs, self.names)
        for tensor, symbolic in zip(
            node.outputs, keras.tree.flatten(made), strict=True
        ):
            self.tensors[tensor] = self._gathered(
                tensor, symbolic, self.layer_names[key]
            )
        if is_new and isinstance(node.operation, keras.layers.Layer):
            _set_weights(rule, self.layers[key])

    def _new_layer(self, rule: Rule) -> Any:
        old, name = rule.layer, self.layer_names[id(rule.layer)]
        if not isinstance(old, keras.layers.Layer):
            new = type(old).from_config(old.get_config())
            new.name = name
            return new
        with keras.saving.custom_object_scope(_custom_objects(old)):
            shrunk = rule.shrunk() if rule.is_reduced else None
            if shrunk is None:
                config = keras.saving.serialize_keras_object(old)
                config["config"]["name"] = name
                return keras.saving.deserialize_keras_object(
                    config, safe_mode=False
                )
            config = {**_any_shape(shrunk[0]), "name": name}
            # A function that was never registered has no config to go by.
            for key in ("activation", "recurrent_activation"):
                if key in config:
                    config[key] = getattr(old, key)
            return type(old).from_config(config)


def _set_weights(rule: Rule, new: keras.layers.Layer) -> None:
    shrunk = rule.shrunk() if rule.is_reduced else None
    if shrunk is not None:
        new.set_weights(shrunk[1])
        return
    _copy_variables(rule.layer, new)


def _copy_variables(
    source: keras.layers.Layer, target: keras.layers.Layer
) -> None:
    layers = zip(flatten_layers(source), flatten_layers(target), strict=True)
    for old_layer, new_layer in layers:
        for old, new in zip(
            own_variables(old_layer), own_variables(new_layer), strict=True
        ):
            # Through NumPy: two JAX variables must not share one buffer.
            new.assign(ops.convert_to_numpy(old))


def _any_shape(config: Any) -> Any:
    """A config in which nothing insists on the old shape."""
    if not isinstance(config, dict):
        return config
    return {
        key: _ZEROS
        if key.endswith("_initializer") and not _fits_any_shape(value)
        else _any_shape(value)
        for key, value in config.items()
        if key != "build_config"
    }


def _fits_any_shape(initializer: Any) -> bool:
    if not isinstance(initializer, dict):
        return True
    values = initializer["config"].get("value", 0.0)
    return initializer["module"] == "keras.initializers" and isinstance(
        values, (int, float)
    )


def _custom_objects(layer: keras.layers.Layer) -> dict[str, Any]:
    """Classes and functions below a layer that are not of Keras, by name."""
    found: list[Any] = []
    for below in flatten_layers(layer):
        found.append(type(below))
        for value in vars(below).values():
            if isinstance(value, _OBJECTS):
                found.append(type(value))
            elif inspect.isfunction(value):
                found.append(value)
    return {
        item.__name__: item
        for item in found
        if item.__module__.split(".")[0] != "keras"
    }


def copy_model(model: keras.Model) -> keras.Model:
    """An equal model that shares nothing with `model`, not compiled."""
    config = _without_compilation(keras.saving.serialize_keras_object(model))
    with keras.saving.custom_object_scope(_custom_objects(model)):
        copy = keras.saving.deserialize_keras_object(config, safe_mode=False)
    _copy_variables(model, copy)
    return copy


def _without_compilation(config: Any) -> Any:
    if isinstance(config, (list, tuple)):
        return type(config)(_without_compilation(item) for item in config)
    if not isinstance(config, dict):
        return config
    return {
        key: _without_compilation(value)
        for key, value in config.items()
        if key != "compile_config"
    }
