"""Write out what a model is made of: one attempt."""

from __future__ import annotations

import contextlib
import inspect
import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import (
    RESHAPE,
    calls_to,
    copied_operation,
    flatten_layers,
    forget_calls_from_now,
    functional_part,
    graph_calls,
    mask_of,
    own_variables,
    set_mask,
    set_own_trainable,
)
from keras_vd._backend.names import Names
from keras_vd.conversion.cloning import model_like
from keras_vd.conversion.inputs import Types, symbolic_inputs
from keras_vd.conversion.report import CompositeRow
from keras_vd.conversion.tracing import (
    Untraceable,
    is_composite,
    refusal,
    trace,
)


class Again(Exception):
    """What was written out already has to be treated in another way."""


class Writing:
    """One attempt to write out a model.

    Attributes:
        model: The model.
        reasons: Why composites stay whole, by their `id`; extended in place.
        inlined: The `id`s of nested models that are taken apart, because a
            mask comes with their inputs; extended in place.
        functional: The result.
        dissolved: Composites and nested models that are not in the result.
        undo: Makes layers forget the calls and names that the result needs.
    """

    def __init__(
        self, model: keras.Model, reasons: dict[int, str], inlined: set[int]
    ) -> None:
        self.model = model
        self.reasons = reasons
        self.inlined = inlined
        self.functional = model
        self.dissolved: dict[int, Any] = {}
        self.rows: dict[int, CompositeRow] = {}
        self.undo = contextlib.ExitStack()
        graph = _operations(model)
        self.undo.callback(forget_calls_from_now(graph))
        self.known = {id(x): x for x in graph}
        # Names of what operations and layers are in, by their `id`.
        self.places: dict[int, tuple[str, ...]] = {}
        self.rebuilt: dict[int, keras.Model] = {}
        self.carriers: dict[int, Any] = {}
        # Tensors whose masks an operation of `keras.ops` in the result, which
        # knows of no masks, will not hand on, by their `id`.
        self.unmasked: dict[int, keras.KerasTensor] = {}

    def run(self, dtypes: Types) -> None:
        model = self.model
        part = functional_part(model)
        if part is None:
            try:
                inputs = symbolic_inputs(model, dtypes)
                outputs = self._write(model, (inputs,), {}, ())
            except Untraceable as error:
                self._keep(model, str(error), ())
                return
        else:
            tensors = self._read(part, ())
            inputs, outputs = part.input, _mapped(tensors, part.output)
        is_same = part is model and _is_same(outputs, part.output)
        if is_same:
            return
        outputs = keras.tree.map_structure(self._carried, outputs)
        flat = keras.tree.flatten(outputs)
        self._check_shared(flat)
        self._give_names(flat, 0)
        if part is None or isinstance(model, keras.Sequential):
            made = keras.Model(inputs, outputs, name=model.name)
        else:
            made = model_like(model, inputs, outputs, model.name)
        set_own_trainable(made, model.trainable)
        self.functional = made

    def _read(
        self, functional: keras.Model, path: tuple[str, ...]
    ) -> dict[int, Any]:
        """Write out what is in a graph.

        What needs no change keeps its symbolic tensors.

        Returns:
            The new tensors by the `id` of the old ones.
        """
        tensors = {id(x): x for x in functional.inputs}
        for call in graph_calls(functional):
            self.places.setdefault(id(call.operation), path)
            if isinstance(call.operation, keras.layers.InputLayer):
                tensors |= {id(x): x for x in call.outputs}
                continue
            old = call.args, call.kwargs
            args, kwargs = _mapped(tensors, old)
            is_same = _is_same((args, kwargs), old)
            made = self._call(
                call.operation,
                args,
                kwargs,
                path,
                call.outputs if is_same else None,
            )
            flat = keras.tree.flatten(made)
            for tensor, new in zip(call.outputs, flat, strict=True):
                tensors[id(tensor)] = new
        return tensors

    def _call(
        self,
        operation: Any,
        args: Any,
        kwargs: dict[str, Any],
        path: tuple[str, ...],
        outputs: Any = None,
    ) -> Any:
        """Call a layer or operation, or its parts.

        Args:
            operation: The layer or operation.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            path: Names of what it is in.
            outputs: What it has returned for these arguments already.
        """
        if is_composite(operation) or id(operation) in self.inlined:
            reason = self.reasons.get(id(operation)) or refusal(operation)
            if kwargs.get("training"):
                reason = reason or "it is called with training=True"
            try:
                if reason is None:
                    return self._write(operation, args, kwargs, path)
            except Untraceable as error:
                reason = str(error)
            self._keep(operation, str(reason), path)
        elif isinstance(operation, keras.layers.Layer):
            if functional_part(operation) is not None:
                nested = self._nested(operation, path)
                if nested is not operation:
                    if _has_masks((args, kwargs)):
                        self.inlined.add(id(operation))
                        raise Again
                    operation, outputs = nested, None
            else:
                self._note_inside(operation, path)
        if outputs is not None:
            return outputs
        return self._called(operation, args, kwargs)

    def _write(
        self, layer: Any, args: Any, kwargs: Any, path: tuple[str, ...]
    ) -> Any:
        """Call the parts of a composite in its place.

        Raises:
            Untraceable: if they cannot stand in its place.
        """
        if layer is self.model:
            reason = self.reasons.get(id(layer)) or refusal(layer)
            if reason is not None:
                raise Untraceable(reason)
            inner: tuple[str, ...] = ()
        else:
            inner = (*path, layer.name)
        found = trace(layer, args, kwargs)
        self.dissolved[id(layer)] = layer
        self.rows.setdefault(id(layer), _row(layer, path, None))
        tensors = dict(found.tensors)
        (anchor, *_) = found.tensors.values()
        for key, value in found.constants.items():
            tensors[key] = self._constant(value, anchor, inner)
        for call in found.calls:
            operation = call.operation
            args, kwargs = _mapped(tensors, (call.args, call.kwargs))
            if not isinstance(operation, keras.layers.Layer):
                operation = _copied(operation, args, kwargs)
            self.places.setdefault(id(operation), inner)
            outputs = self._call(operation, args, kwargs, inner)
            made = keras.tree.flatten(outputs)
            for tensor, new in zip(call.outputs, made, strict=True):
                tensors[id(tensor)] = new
        outputs = _mapped(tensors, found.outputs)
        for new, mask in zip(
            keras.tree.flatten(outputs), found.masks, strict=True
        ):
            if mask is not None and mask_of(new) is None:
                set_mask(new, tensors[id(mask)])
                self.unmasked[id(new)] = new
        return outputs

    def _constant(
        self, value: np.ndarray, anchor: Any, path: tuple[str, ...]
    ) -> Any:
        """Return an array as a symbolic tensor, which reads another one.

        A graph has no constants of its own.
        """
        zero = ops.sum(ops.zeros_like(anchor, dtype="int32"))
        dtype = keras.backend.standardize_dtype(value.dtype)
        combine = ops.logical_or if dtype == "bool" else ops.add
        made = combine(ops.cast(zero, dtype), value)
        for call in calls_to([made]):
            self.places.setdefault(id(call.operation), path)
        return made

    def _nested(self, model: Any, path: tuple[str, ...]) -> Any:
        """Return a nested model with what is in it written out.

        This is the model itself if there is nothing to do.
        """
        if id(model) not in self.rebuilt:
            part: Any = functional_part(model)
            inner = (*path, model.name)
            tensors = self._read(part, inner)
            outputs = _mapped(tensors, part.output)
            made = model
            if not _is_same(outputs, part.output):
                outputs = keras.tree.map_structure(self._carried, outputs)
                self._give_names(keras.tree.flatten(outputs), len(inner))
                made = model_like(model, part.input, outputs, model.name)
                set_own_trainable(made, model.trainable)
                self.places[id(made)] = path
            self.rebuilt[id(model)] = made
        return self.rebuilt[id(model)]

    def _called(self, operation: Any, args: Any, kwargs: Any) -> Any:
        """Call what stays as it is; masks that get lost are handed over."""
        read = keras.tree.flatten((args, kwargs))
        if not any(id(x) in self.unmasked for x in read):
            return operation(*args, **kwargs)
        if isinstance(operation, keras.layers.Layer):
            if _looks_for_masks(operation):
                args, kwargs = keras.tree.map_structure(
                    self._carried, (args, kwargs)
                )
                return operation(*args, **kwargs)
            kwargs = {**kwargs, **_masks_of_arguments(operation, args, kwargs)}
            if isinstance(operation, keras.layers.MultiHeadAttention):
                kwargs = _with_mask_of_queries(kwargs)
        outputs = operation(*args, **kwargs)
        for tensor in keras.tree.flatten(outputs):
            if kwargs.get("mask") is None and mask_of(tensor) is not None:
                self.unmasked[id(tensor)] = tensor
        return outputs

    def _carried(self, tensor: Any) -> Any:
        """Return a tensor that has its mask when the result computes it.

        A model within the model attaches the mask: it is what Keras has that
        does this and nothing else.
        """
        if id(tensor) not in self.unmasked:
            return tensor
        if id(tensor) not in self.carriers:
            carrier = keras.Sequential(
                [
                    keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype),
                    keras.layers.Identity(),
                ],
                name="mask",
            )
            maker = tensor._keras_history.operation
            self.places[id(carrier)] = self.places.get(id(maker), ())
            self.carriers[id(tensor)] = carrier(tensor, mask=mask_of(tensor))
        return self.carriers[id(tensor)]

    def _keep(self, layer: Any, reason: str, path: tuple[str, ...]) -> None:
        self.reasons[id(layer)] = reason
        if id(layer) in self.dissolved:
            raise Again
        self.rows.setdefault(id(layer), _row(layer, path, reason))

    def _note_inside(self, layer: Any, path: tuple[str, ...]) -> None:
        """Note the composites in a layer of Keras, which calls them itself."""
        for below in flatten_layers(layer)[1:]:
            if is_composite(below):
                self._keep(
                    below,
                    f"'{layer.name}', of type {type(layer).__name__}, calls it",
                    (*path, layer.name),
                )

    def _check_shared(self, outputs: list[Any]) -> None:
        """Keep composites whole that share weights with what is whole.

        A file would hold such weights twice.
        """
        owners: dict[int, Any] = {}
        layers = {
            id(x.operation): x.operation
            for x in calls_to(outputs)
            if isinstance(x.operation, keras.layers.Layer)
        }
        for layer in layers.values():
            for below in flatten_layers(layer):
                other = owners.setdefault(id(below), layer)
                if other is layer or not own_variables(below):
                    continue
                sharing = [
                    x
                    for x in self.dissolved.values()
                    if any(y is below for y in flatten_layers(x))
                ]
                if sharing:
                    whole = layer if layer is not below else other
                    least = min(sharing, key=lambda x: len(flatten_layers(x)))
                    self._keep(
                        least,
                        f"'{below.name}' in it is a part of '{whole.name}', "
                        "too, which stays whole: give each a layer of its own",
                        (),
                    )

    def _give_names(self, outputs: list[Any], depth: int) -> None:
        """Give operations and layers of a graph different names.

        Args:
            outputs: The outputs of the graph.
            depth: Number of names in `places` that all of it has in common.
        """
        operations = {id(x.operation): x.operation for x in calls_to(outputs)}
        paths = {key: self.places.get(key, ())[depth:] for key in operations}
        named = {k: x for k, x in operations.items() if self._is_named(x)}
        counts = Counter(x.name for x in named.values())
        names = Names(
            x.name
            for key, x in named.items()
            if counts[x.name] == 1 or not paths[key]
        )
        outermost: set[str] = set()
        for key, x in named.items():
            if counts[x.name] == 1:
                continue
            if not paths[key] and x.name not in outermost:
                outermost.add(x.name)
                continue
            self._rename(x, names.unique("_".join((*paths[key], x.name))))
        for key, x in operations.items():
            if key not in named:
                kind = x.name if isinstance(x, keras.Sequential) else _kind(x)
                x.name = names.unique("_".join((*paths[key], kind)))

    def _is_named(self, operation: Any) -> bool:
        """Tell whether a layer or operation is not of this writing's making."""
        if isinstance(operation, keras.layers.InputLayer):
            return True
        made = [id(x) for x in self.rebuilt.values()]
        return id(operation) in self.known or id(operation) in made

    def _rename(self, layer: Any, name: str) -> None:
        self.undo.callback(setattr, layer, "name", layer.name)
        layer.name = name

    def types_read(self, dtypes: Types) -> Types:
        """Return types of the inputs: integers where embeddings read them."""
        found = list(dtypes)
        inputs = [id(x) for x in self.functional.inputs]
        for call in calls_to(self.functional.outputs):
            if isinstance(call.operation, keras.layers.Embedding):
                for x in keras.tree.flatten(call.args):
                    if id(x) in inputs:
                        found[inputs.index(id(x))] = "int32"
        return tuple(found)


def _operations(model: keras.Model) -> list[Any]:
    """List all layers of a model, and the operations in its graphs."""
    found = {id(x): x for x in flatten_layers(model)}
    for layer in list(found.values()):
        part = functional_part(layer)
        if part is not None:
            calls = graph_calls(part)
            found |= {id(x.operation): x.operation for x in calls}
    return list(found.values())


def _copied(operation: Any, args: Any, kwargs: Any) -> Any:
    """Copy an operation; one that reshapes to a size that is None, so it runs.

    As in `ops.reshape(x, (ops.shape(x)[0], -1, 4))`.

    Args:
        operation: The operation.
        args: What it is going to be called with.
        kwargs: Likewise.
    """
    (read, *_) = keras.tree.flatten((args, kwargs))
    shape = list(operation.newshape) if isinstance(operation, RESHAPE) else []
    is_clear = -1 not in shape or list(read.shape).count(None) == 1
    if shape.count(None) != 1 or not is_clear:
        return copied_operation(operation, operation.name)
    known = math.prod(x for x in shape if x not in (None, -1))
    whole = math.prod(x for x in read.shape if x is not None)
    sizes = {None: -1, -1: whole // known}
    return RESHAPE(tuple(sizes.get(x, x) for x in shape))


def _row(
    layer: keras.layers.Layer, path: Iterable[str], reason: str | None
) -> CompositeRow:
    return CompositeRow(
        "/".join((*path, layer.name)),
        type(layer).__name__,
        reason,
        layer.count_params(),
    )


def _mapped(tensors: dict[int, Any], structure: Any) -> Any:
    return keras.tree.map_structure(
        lambda x: tensors[id(x)] if isinstance(x, keras.KerasTensor) else x,
        structure,
    )


def _is_same(one: Any, other: Any) -> bool:
    """Tell whether two structures hold the same symbolic tensors."""
    pairs = zip(keras.tree.flatten(one), keras.tree.flatten(other), strict=True)
    return all(a is b for a, b in pairs if isinstance(b, keras.KerasTensor))


def _has_masks(structure: Any) -> bool:
    (args, kwargs) = structure
    tensors = keras.tree.flatten((args, kwargs.get("mask")))
    return kwargs.get("mask") is not None or any(
        mask_of(x) is not None
        for x in tensors
        if isinstance(x, keras.KerasTensor)
    )


def _masks_of_arguments(
    layer: keras.layers.Layer, args: Any, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Return the masks that Keras would find on arguments, by their names."""
    parameters = inspect.signature(layer.call).parameters
    options = {k: v for k, v in kwargs.items() if k in parameters}
    bound = inspect.signature(layer.call).bind_partial(*args, **options)
    given = {
        name: value
        for name, value in bound.arguments.items()
        if name != "mask"
        and any(
            isinstance(x, keras.KerasTensor) for x in keras.tree.flatten(value)
        )
    }
    found = {}
    for name, value in given.items():
        key = "mask" if len(given) == 1 else f"{name}_mask"
        mask = keras.tree.map_structure(mask_of, value)
        is_open = key in parameters and bound.arguments.get(key) is None
        if is_open and any(x is not None for x in keras.tree.flatten(mask)):
            found[key] = mask
    return found


def _looks_for_masks(layer: keras.layers.Layer) -> bool:
    """Tell whether a layer may look for masks on its inputs by itself."""
    package = type(layer).call.__module__.split(".")[0]
    merges = keras.layers.Multiply, keras.layers.Maximum, keras.layers.Minimum
    return package not in ("keras", "keras_vd") or isinstance(layer, merges)


def _with_mask_of_queries(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Pass the mask of queries in another way.

    Attention looks for it on the queries, whatever is passed.
    """
    mask, other = kwargs.get("query_mask"), kwargs.get("attention_mask")
    if mask is None:
        return kwargs
    mask = ops.expand_dims(mask, -1)
    if other is not None:
        mask = ops.logical_and(other, mask)
    return {**kwargs, "attention_mask": mask}


def _kind(operation: Any) -> str:
    """Return the name of a class as Keras makes names of it."""
    name = type(operation).__name__
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
