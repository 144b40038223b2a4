"""Rebuild models so that every layer is cloned once, found by its identity.

Keras' own configs refer to layers and classes by name. They lose the fact that
a layer is used twice in a Sequential model, or in two nested models, and they
confuse classes that have the same name.
"""

from __future__ import annotations

import functools
import inspect
import tempfile
import warnings
from collections.abc import Callable, Container, Mapping
from typing import Any, TypeAlias

import keras
from keras import ops

from keras_vd._backend.keras_internals import (
    Call,
    arguments_of_lambda,
    copied_operation,
    flatten_layers,
    functional_part,
    graph_calls,
    is_made_from_graph,
    objects_by_identity,
    own_variables,
    reference,
    sublayers,
)
from keras_vd.layers.homoscedastic import HomoscedasticNoise
from keras_vd.layers.structured import StructuredGate
from keras_vd.posteriors import WeightPosterior

Config = dict[str, Any]
# What replaces a layer: the class and config of a new one, or a layer itself.
# Without a config it is what the class says of the layer that is replaced.
Replacement: TypeAlias = tuple[type, Config | None] | keras.layers.Layer

# A tensor of a graph and a call that reads it: see `read_by`.
Read: TypeAlias = tuple[int, int]

_OBJECTS = (
    keras.initializers.Initializer,
    keras.regularizers.Regularizer,
    keras.constraints.Constraint,
)
# Endings of arguments that layers pass to functions of Keras such as
# `keras.initializers.get`, which accept objects as well as names.
_TAKE_OBJECTS = ("activation", "_initializer", "_regularizer", "_constraint")
_OF_THE_GRAPH = {"name", "trainable", "layers", "input_layers", "output_layers"}


def read_by(call: Call, tensor: Any) -> Read:
    """Return what identifies a tensor as it is read by a call in a graph."""
    return id(tensor), id(call.outputs[0])


class NotRebuiltError(ValueError):
    """A layer cannot be made from its config.

    Attributes:
        reason: Which one, in short.
    """

    def __init__(self, layer: Any, cls: type, error: Exception) -> None:
        self.reason = f"layer '{layer.name}' cannot be rebuilt by its own"
        super().__init__(
            f"Layer '{layer.name}' cannot be rebuilt. Its class, "
            f"{cls.__name__}, needs a `get_config` that returns all arguments "
            f"of its constructor. Keras says: {error}"
        )


class Cloner:
    """Clones of the layers and operations of a model, one of each.

    A clone has fresh weights until `copy_values`. A Sequential model that uses
    a layer twice becomes a Functional one, because Keras loses the second use
    when it saves the Sequential one. Any other model that has a graph, but
    whose class does not take inputs and outputs, becomes a Functional one too.

    Attributes:
        clones: Clones of layers and operations by the `id` of the originals.
        counterparts: By the `id` of an original layer, the layer to which its
            values have been copied.
    """

    def __init__(
        self,
        model: keras.layers.Layer,
        replace: Callable[[Any], Replacement | None] = lambda layer: None,
        left_out: Container[Any] = (),
        names: Mapping[int, str] | None = None,
        keeps_class: Callable[[Any], bool] = lambda model: False,
        inserted: Mapping[Read, keras.layers.Layer] | None = None,
    ) -> None:
        """Prepare to clone a model or parts of it.

        Args:
            model: The model.
            replace: Returns what takes the place of a layer; None for a clone.
            left_out: Layers that the clones do without: what reads such a
                layer reads the input of that layer instead.
            names: New names by the `id` of layers and operations.
            keeps_class: Whether a model with a graph is made from its config,
                with its class, in place of its graph.
            inserted: New layers, by what of a graph is to read their outputs
                in place of their inputs.
        """
        self.replace = replace
        self.left_out = left_out
        self.names = names or {}
        self.keeps_class = keeps_class
        self.inserted = inserted or {}
        self.clones: dict[int, Any] = {}
        self.counterparts: dict[int, keras.layers.Layer] = {}
        # Posteriors are not cloned by identity: a layer serializes one of them
        # as a template from which it makes all the others.
        self._originals = {
            id(x): x
            for x in flatten_layers(model)
            if not isinstance(x, WeightPosterior)
        }
        self._made: dict[int, Any] = {}
        self._written_out: set[int] = set()
        self._copied: set[tuple[int, int]] = set()

    def clone(self, operation: Any) -> Any:
        """Return the clone of a layer or operation, made at the first call."""
        key = id(operation)
        if key not in self.clones:
            with warnings.catch_warnings():
                # Keras gave these warnings when the original was built.
                warnings.filterwarnings("ignore", ".*input with a mask attach")
                warnings.filterwarnings("ignore", ".*includes a `lambda`")
                # Layers without a `build` are built by the calls to come.
                warnings.filterwarnings("ignore", "`build\\(\\)` was called on")
                made = self._clone(operation)
            self.enter(operation, made)
        return self.clones[key]

    def enter(self, operation: Any, made: Any) -> None:
        """Register `made` as the clone of a layer or operation."""
        self.clones[id(operation)] = made
        self._made[id(made)] = made

    def _clone(self, operation: Any) -> Any:
        name = self.names.get(id(operation), operation.name)
        if not isinstance(operation, keras.layers.Layer):
            return copied_operation(operation, name)
        if not self.keeps_class(operation):
            if _is_chain(operation):
                self._written_out.add(id(operation))
                return self._clone_chain(operation, name)
            if is_made_from_graph(operation) or functional_part(operation):
                self._written_out.add(id(operation))
                return self._clone_graph(operation, operation, name)
        replacement = self.replace(operation)
        if isinstance(replacement, keras.layers.Layer):
            return replacement
        cls, config = replacement or (type(operation), None)
        made = self.make(cls, config, operation, name)
        build_config = operation.get_build_config()
        if build_config and not made.built:
            made.build_from_config(build_config)
            made.built = True
        return made

    def owner_of(self, layer: Any) -> Any:
        """Return the clone whose config makes the clone of a layer with it.

        None if there is no such clone: what a graph holds is cloned by itself.
        """
        owners = [
            x
            for key, x in self._originals.items()
            if key in self.clones
            and key not in self._written_out
            and any(below is layer for below in flatten_layers(x))
        ]
        if not owners:
            return None
        innermost = min(owners, key=lambda x: len(flatten_layers(x)))
        return self.clones[id(innermost)]

    def make(
        self, cls: type, config: Config | None, source: Any, name: str
    ) -> Any:
        """Make a layer from a config; clones replace the originals in it.

        Args:
            cls: Class of the layer.
            config: Its config, which may hold layers in place of their
                configs; None for what `cls` says of `source`.
            source: The layer that it is made from.
            name: Its name.
        """
        found = {x.__name__: x for x in _custom_objects(source)}
        scope = keras.saving.custom_object_scope(found)
        with objects_by_identity(self._is_known, self._find), scope:
            try:
                if config is None:
                    config = _config(cls, source)
                config = {k: self._object(v) for k, v in config.items()}
                config |= self._objects_of(source, config)
                if "name" in config:
                    config["name"] = name
                made = _from_config(cls, config)
            except (AttributeError, NotImplementedError, TypeError) as error:
                raise NotRebuiltError(source, cls, error) from error
        made.name = name
        return made

    def _is_known(self, number: int) -> bool:
        return number in self._originals or number in self._made

    def _find(self, number: int) -> Any:
        if number in self._originals:
            return self.clone(self._originals[number])
        return self._made.get(number)

    def _object(self, value: Any) -> Any:
        """Return a value of a config; a layer becomes a reference to it."""
        if not isinstance(value, keras.layers.Layer):
            return value
        self._made.setdefault(id(value), value)
        return reference(value)

    def _objects_of(self, source: Any, config: Config) -> Config:
        """Return the callables of `source` that its config may only name.

        A layer among them is cloned.
        """
        found = {}
        for key in config:
            value = getattr(source, key, None)
            if not key.endswith(_TAKE_OBJECTS) or value is None:
                continue
            if isinstance(value, keras.layers.Layer):
                found[key] = self.clone(value)
            elif inspect.isfunction(value) or not _is_of_keras(type(value)):
                found[key] = value
        return found

    def _clone_chain(self, model: Any, name: str) -> keras.Model:
        layers = [x for x in sublayers(model) if x not in self.left_out]
        functional = functional_part(model)
        if functional and len(set(map(id, layers))) < len(layers):
            return self._clone_graph(model, functional, name)
        is_plain = type(model).__init__ is keras.Sequential.__init__
        chain = (type(model) if is_plain else keras.Sequential)(name=name)
        inserted = self._inserted_before(functional) if functional else {}
        for layer in layers:
            if id(layer) in inserted:
                chain.add(inserted[id(layer)], rebuild=False)
            chain.add(self.clone(layer), rebuild=False)
        if functional:
            chain.build(model.input_shape)
        return chain

    def _inserted_before(self, functional: Any) -> dict[int, Any]:
        """Return the layers that are inserted into a chain.

        They are keyed by the `id` of the layer after each.
        """
        return {
            id(call.operation): self.inserted[read_by(call, tensor)]
            for call in graph_calls(functional)
            for tensor in call.args
            if read_by(call, tensor) in self.inserted
        }

    def _clone_graph(
        self, model: Any, functional: Any, name: str
    ) -> keras.Model:
        tensors: dict[int, Any] = {}
        passed: dict[tuple[int, int], Any] = {}

        def new(value: Any) -> Any:
            is_tensor = isinstance(value, keras.KerasTensor)
            return tensors[id(value)] if is_tensor else value

        def read(value: Any, call: Call) -> Any:
            layer = self.inserted.get(read_by(call, value))
            if layer is None:
                return new(value)
            key = id(value), id(layer)
            if key not in passed:
                passed[key] = layer(new(value))
            return passed[key]

        for call in graph_calls(functional):
            args, kwargs = keras.tree.map_structure(
                functools.partial(read, call=call), (call.args, call.kwargs)
            )
            if isinstance(call.operation, keras.layers.InputLayer):
                made = self.clone(call.operation).output
            elif call.operation in self.left_out:
                made = keras.tree.flatten((args, kwargs))[0]
            else:
                made = self.clone(call.operation)(*args, **kwargs)
            for old, one in zip(
                call.outputs, keras.tree.flatten(made), strict=True
            ):
                tensors[id(old)] = one
        inputs, outputs = keras.tree.map_structure(
            new, (functional.input, functional.output)
        )
        return model_like(model, inputs, outputs, name)

    def copy_values(
        self, layer: Any, values: Mapping[int, Any] | None = None
    ) -> None:
        """Copy weights and settings from a layer, and all in it, to its clone.

        Posteriors that only one of the two layers has are skipped.

        Args:
            layer: A layer that has been cloned.
            values: Other values for some variables, by their `id`.

        Raises:
            ValueError: if the clone has other weights, or weights of its own
                where the original shares them.
        """
        pending = [(layer, self.clones[id(layer)])]
        pairs = []
        while pending:
            old, new = pending.pop()
            known = self.counterparts.setdefault(id(old), new)
            if known is not new and old.variables:
                raise ValueError(
                    f"Layer '{old.name}' is used in several places, of which "
                    "at least one makes a layer of its own when it is rebuilt "
                    "from its config: the weights would not be shared any "
                    "more. Build the model anew with a layer for each, or "
                    "return the shared one in `get_config`, serialized."
                )
            if (id(old), id(new)) in self._copied:
                continue
            self._copied.add((id(old), id(new)))
            pairs.append((old, new))
            if isinstance(old, MAKING_PLAIN) and type(old) is not type(new):
                old.copy_to(new)
                continue
            _copy_variables(old, new, values or {})
            if type(old) is type(new):
                _copy_what_was_adapted(old, new)
            pending += self._pairs_below(old, new)
        copy_trainable(pairs)

    def _pairs_below(self, old: Any, new: Any) -> list[tuple[Any, Any]]:
        """Pair the layers that `old` owns with their counterparts in `new`."""
        children = sublayers(old)
        if id(old) in self._written_out and self.clones[id(old)] is new:
            # Layers that the graph does not use are not in the clone.
            return [
                (x, self.clones[id(x)])
                for x in children
                if id(x) in self.clones and x not in self.left_out
            ]
        others = sublayers(new)
        if not (_posteriors(children) and _posteriors(others)):
            children, others = (
                [x for x in below if not isinstance(x, WeightPosterior)]
                for below in (children, others)
            )
        if len(children) != len(others):
            raise ValueError(_DIFFERS.format(name=old.name, what="layers"))
        return list(zip(children, others, strict=True))


# Layers that say what does the same in a plain model.
MAKING_PLAIN = (StructuredGate, HomoscedasticNoise)

_DIFFERS = (
    "Layer '{name}' has other {what} when it is rebuilt from its config. Its "
    "`get_config` must return all arguments of its constructor, and its "
    "`build` must make what the layer has."
)


def model_like(model: Any, inputs: Any, outputs: Any, name: str) -> keras.Model:
    """Make a model from a graph, of the class of `model` if that allows it."""
    if not is_made_from_graph(model):
        return keras.Model(inputs, outputs, name=name)
    config = {}
    if not _is_of_keras(type(model).get_config):
        config = model.get_config()
    added = {k: v for k, v in config.items() if k not in _OF_THE_GRAPH}
    made: keras.Model = type(model)(
        inputs=inputs, outputs=outputs, name=name, **added
    )
    return made


def copy_model(
    model: keras.Model, keeps_class: Callable[[Any], bool] = lambda model: False
) -> keras.Model:
    """Return an equal model that shares nothing with `model`, not compiled.

    Args:
        model: The model.
        keeps_class: As of `Cloner`.
    """
    cloner = Cloner(model, keeps_class=keeps_class)
    copy: keras.Model = cloner.clone(model)
    cloner.copy_values(model)
    return copy


def _is_chain(operation: Any) -> bool:
    is_sequential = isinstance(operation, keras.Sequential)
    return is_sequential and type(operation).call is keras.Sequential.call


def _config(cls: Any, layer: Any) -> Config:
    if cls is keras.layers.Lambda:
        # Keras would store the function as bytecode, which loses the globals
        # that the function refers to.
        base = keras.layers.Layer.get_config(layer)
        return {**base, **arguments_of_lambda(layer)}
    return dict(cls.get_config(layer))


def _from_config(cls: Any, config: Config) -> Any:
    if cls is keras.layers.Lambda:
        return keras.Operation.from_config.__func__(cls, config)
    return cls.from_config(config)


def _is_of_keras(item: Any) -> bool:
    return bool(item.__module__.split(".")[0] == "keras")


def _custom_objects(layer: keras.layers.Layer) -> list[Any]:
    """List classes and functions in and below a layer that are not Keras'."""
    found: list[Any] = []
    for below in flatten_layers(layer):
        found.append(type(below))
        for value in vars(below).values():
            if isinstance(value, _OBJECTS):
                found.append(type(value))
            elif inspect.isfunction(value):
                found.append(value)
    return [item for item in found if not _is_of_keras(item)]


def _copy_variables(old: Any, new: Any, values: Mapping[int, Any]) -> None:
    variables, copies = own_variables(old), own_variables(new)
    shapes, others = ([tuple(v.shape) for v in x] for x in (variables, copies))
    if shapes != others:
        raise ValueError(_DIFFERS.format(name=old.name, what="weights"))
    for variable, copy in zip(variables, copies, strict=True):
        # The copy goes through NumPy because two JAX variables must not share
        # one buffer.
        value = values.get(id(variable), variable)
        copy.assign(ops.convert_to_numpy(value))


def _copy_what_was_adapted(old: Any, new: Any) -> None:
    """Copy statistics and vocabularies that are not held in variables.

    They are written and read as Keras does it for a file.
    """
    if hasattr(old, "finalize_state"):
        store: dict[str, Any] = {}
        old.save_own_variables(store)
        new.load_own_variables(
            {key: ops.convert_to_numpy(value) for key, value in store.items()}
        )
    if hasattr(old, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)


def copy_trainable(pairs: list[tuple[Any, Any]]) -> None:
    """Copy `trainable` until every pair of layers agrees.

    Several passes may be needed: setting it on a layer also sets it on all
    layers inside, some of which may differ from that layer.
    """
    while differing := [(a, b) for a, b in pairs if a.trainable != b.trainable]:
        for old, new in differing:
            new.trainable = old.trainable


def _posteriors(layers: list[Any]) -> list[WeightPosterior]:
    return [x for x in layers if isinstance(x, WeightPosterior)]
