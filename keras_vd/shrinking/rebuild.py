"""Build the new model, node by node."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import (
    computing_class,
    graph_calls,
    rename_operation,
)
from keras_vd._backend.names import Names
from keras_vd.conversion.cloning import Cloner
from keras_vd.rules.graph import GraphTensor, Node
from keras_vd.rules.rule import Inner, Rule
from keras_vd.shrinking.analysis import Plan


def rebuild(
    plan: Plan, model: keras.Model
) -> tuple[keras.Model, dict[int, Any]]:
    """Build the model that a plan for `model` describes, with its weights.

    Returns:
        The model, and its layers by the id of the layer that each replaces.
    """
    builder = _Builder(plan, model)
    with warnings.catch_warnings():
        # Keras gave this warning when the original was built.
        warnings.filterwarnings("ignore", ".*an input with a mask attached")
        smaller = builder.build(model.name)
        if isinstance(model, keras.Sequential):
            smaller = _as_sequential(smaller)
    # Only False is set: True would make all layers trainable.
    if not model.trainable:
        smaller.trainable = False
    builder.copy_values()
    return smaller, builder.cloner.clones


def _as_sequential(functional: keras.Model) -> keras.Model:
    """Return a Sequential model where each layer reads only the one before.

    Any other model is returned as it is, and so is one that uses a layer twice,
    because Keras loses the second use when it saves a Sequential model.
    """
    calls = graph_calls(functional)
    if len({id(call.operation) for call in calls}) < len(calls):
        return functional
    previous = calls[0].outputs
    for call in calls[1:]:
        is_layer = isinstance(call.operation, keras.layers.Layer)
        # A layer that merges may read a list of one tensor; a Sequential model
        # would pass it the tensor itself.
        reads_last = len(call.args) == 1 and call.args[0] is previous[0]
        options = [x for x in call.kwargs.values() if x is not None]
        if not is_layer or not reads_last or options:
            return functional
        previous = call.outputs
    chain = keras.Sequential(name=functional.name)
    for call in calls:
        chain.add(call.operation, rebuild=False)
    chain.build(functional.inputs[0].shape)
    return chain


class _Builder:
    """Builder of a model, which calls new layers on new tensors.

    Attributes:
        cloner: Holds the new layers and operations, by the id of the old ones.
        tensors: New symbolic tensors by the tensors of the plan.
    """

    def __init__(self, plan: Plan, model: keras.Model) -> None:
        self.plan = plan
        self.tensors: dict[GraphTensor, keras.KerasTensor] = {}
        self.names = Names(layer.name for layer in plan.graph.input_layers)
        # Names are given to outer layers first, so that a layer of a nested
        # model is the one to be renamed where two have the same name.
        rules = sorted(plan.rules.values(), key=lambda x: len(x.uses[0].path))
        self.layer_names = {
            id(rule.layer): self._new_name(rule) for rule in rules
        }
        self.cloner = Cloner(model, names=self.layer_names)
        shrunk = {
            key: rule.shrunk()
            for key, rule in plan.rules.items()
            if rule.is_reduced and not all(x.is_gone for x in rule.uses)
        }
        self._shrunk = {k: v for k, v in shrunk.items() if v is not None}

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
            new = self.cloner.clone(layer).output
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
        self, tensor: GraphTensor, symbolic: keras.KerasTensor, name: str
    ) -> keras.KerasTensor:
        if tensor not in self.plan.gathered:
            return symbolic
        kept = tensor.keep[self.plan.present(tensor)]
        if kept.all():
            return symbolic
        kept = np.flatnonzero(kept).astype("int32")
        taken = ops.take(symbolic, kept, axis=tensor.axis)
        rename_operation(taken, self.names.unique(f"{name}_kept"))
        return taken

    def _call(self, node: Node) -> None:
        rule = self.plan.rule_of(node)
        layer, weights = self._new_layer(rule)
        args, kwargs = keras.tree.map_structure(
            lambda x: self.tensors.get(x) if isinstance(x, GraphTensor) else x,
            (node.args, node.kwargs),
        )
        made = rule.call(layer, args, kwargs, self.names)
        for tensor, symbolic in zip(
            node.outputs, keras.tree.flatten(made), strict=True
        ):
            if symbolic is not None:
                self.tensors[tensor] = self._gathered(
                    tensor, symbolic, self.layer_names[id(rule.layer)]
                )
        if weights is not None:
            layer.set_weights(weights)

    def _new_layer(self, rule: Rule) -> tuple[Any, list[np.ndarray] | None]:
        """Return the new layer, and weights to set after its first call.

        They are None for a layer that exists already, or is a plain copy.
        """
        old, key = rule.layer, id(rule.layer)
        shrunk = self._shrunk.get(key)
        if shrunk is None or key in self.cloner.clones:
            return self.cloner.clone(old), None
        config, weights = shrunk
        new = self._reduced(old, config, self.layer_names[key])
        self.cloner.enter(old, new)
        return new, weights

    def _reduced(self, old: Any, config: dict[str, Any], name: str) -> Any:
        inner = {
            key: self._reduced(value.layer, value.config, value.layer.name)
            for key, value in config.items()
            if isinstance(value, Inner)
        }
        kind = computing_class(type(old))
        config = _any_shape({**config, **inner})
        return self.cloner.make(kind, config, old, name)

    def copy_values(self) -> None:
        """Copy the weights of layers that have not been shrunk."""
        for key, rule in self.plan.rules.items():
            is_layer = isinstance(rule.layer, keras.layers.Layer)
            if is_layer and key not in self._shrunk:
                if key in self.cloner.clones:
                    self.cloner.copy_values(rule.layer)


def _any_shape(config: dict[str, Any]) -> dict[str, Any]:
    """Replace initializers that only fit the old shape, in a config."""
    return {
        key: keras.initializers.Zeros()
        if key.endswith("_initializer") and not _fits_any_shape(value)
        else value
        for key, value in config.items()
    }


def _fits_any_shape(initializer: Any) -> bool:
    if not isinstance(initializer, dict):
        return True
    values = initializer["config"].get("value", 0.0)
    return initializer["module"] == "keras.initializers" and isinstance(
        values, (int, float)
    )
