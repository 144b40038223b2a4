"""A model as a flat list of nodes, nested models written out in place."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_vd._backend.keras_internals import (
    Call,
    functional_part,
    graph_calls,
    mask_of,
)

# For layers that take several tensors of data, the names of these arguments;
# the modules with their rules add them.
DATA_ARGUMENTS: dict[type, tuple[str, ...]] = {}


@dataclasses.dataclass(eq=False)
class GraphTensor:
    """A tensor between two nodes, and what is known about its channels.

    Channels are the indices along its last axis, or along axis 1 where they
    come first. A tensor of which that axis has no known size, or that has only
    a batch axis, counts as one channel, which stays.

    Attributes:
        shape: Its shape, the batch axis first.
        dtype: Name of its type.
        may_be_masked: Whether a mask may come with it.
        mask: The symbolic mask that comes with it. None if there is none, or
            if it cannot be seen because the tensor is in a nested model.
        axis: That of channels, counted from the last one: -1, or less than
            that where channels come first.
        constant: `(width,)`, float64: the value that a channel has everywhere,
            whatever the model's inputs are, or NaN.
        keep: `(width,)`: which channels the shrunk model still has.
    """

    shape: tuple[int | None, ...]
    dtype: str
    may_be_masked: bool = False
    mask: Any = None
    axis: int = dataclasses.field(init=False, default=-1)
    constant: np.ndarray = dataclasses.field(init=False)
    keep: np.ndarray = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self.constant = np.full(self.width, np.nan)
        self.keep = np.zeros(self.width, bool)

    def put_channels_first(self) -> None:
        """Take axis 1 as that of channels, of which nothing is known yet."""
        self.axis = 1 - len(self.shape)
        self._forget()

    @property
    def has_channels(self) -> bool:
        """Whether there is an axis of channels and it has a known size."""
        return len(self.shape) > 1 and self.shape[self.axis] is not None

    @property
    def width(self) -> int:
        """Number of channels."""
        return int(self.shape[self.axis] or 0) if self.has_channels else 1


@dataclasses.dataclass(eq=False)
class Node:
    """One use of a layer or operation.

    Attributes:
        operation: The layer or operation.
        args: Positional arguments, with `GraphTensor`s in them.
        kwargs: Keyword arguments, with `GraphTensor`s in them.
        outputs: What it returns, flattened.
        path: Names of the nested models that it stands in, from outside.
        call: The call in the model, or in the nested one.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[GraphTensor, ...]
    path: tuple[str, ...]
    call: Call

    @property
    def inputs(self) -> list[GraphTensor]:
        """The tensors of data, without masks: a layer's first argument.

        For attention these are query, value and, where it is passed, key, in
        this order.
        """
        names = self._data_names
        named = [self.kwargs[name] for name in names if name in self.kwargs]
        return tensors_in((self.args[: self._data_arguments], named))

    @property
    def others(self) -> list[GraphTensor]:
        """Tensors in all further arguments, such as masks and states."""
        names = self._data_names
        rest = {k: v for k, v in self.kwargs.items() if k not in names}
        return tensors_in((self.args[self._data_arguments :], rest))

    @property
    def _data_names(self) -> tuple[str, ...]:
        found = (DATA_ARGUMENTS.get(x) for x in type(self.operation).__mro__)
        return next((names for names in found if names), ())

    @property
    def _data_arguments(self) -> int:
        is_layer = isinstance(self.operation, keras.layers.Layer)
        return max(1, len(self._data_names)) if is_layer else len(self.args)

    @property
    def is_gone(self) -> bool:
        """Whether nothing that it makes is kept."""
        return not any(tensor.keep.any() for tensor in self.outputs)


@dataclasses.dataclass(eq=False)
class Graph:
    """A model as a list of nodes.

    Attributes:
        functional: The Functional model that it comes from.
        nodes: Every node after those that it reads, input layers excluded.
        inputs: The model's inputs, flattened.
        input_layers: The layers that these come from.
        outputs: The model's outputs, flattened.
    """

    functional: keras.Model
    nodes: list[Node]
    inputs: list[GraphTensor]
    input_layers: list[keras.layers.InputLayer]
    outputs: list[GraphTensor]

    @property
    def tensors(self) -> list[GraphTensor]:
        """All tensors, in the order in which they are made."""
        made = [tensor for node in self.nodes for tensor in node.outputs]
        return [*self.inputs, *made]


def tensors_in(structure: Any) -> list[GraphTensor]:
    """List all tensors in nested arguments, in the order of `keras.tree`."""
    leaves = keras.tree.flatten(structure)
    return [leaf for leaf in leaves if isinstance(leaf, GraphTensor)]


def read_graph(functional: keras.Model) -> Graph:
    """Read a Functional model; the models nested in it are written out."""
    inputs = [_tensor(x) for x in functional.inputs]
    nodes: list[Node] = []
    outputs = _append_calls(nodes, functional, inputs, (), {})
    makers = {id(x.outputs[0]): x.operation for x in graph_calls(functional)}
    layers = [makers[id(symbolic)] for symbolic in functional.inputs]
    return Graph(functional, nodes, inputs, layers, outputs)


def _tensor(symbolic: keras.KerasTensor) -> GraphTensor:
    dtype = keras.backend.standardize_dtype(symbolic.dtype)
    mask = mask_of(symbolic)
    return GraphTensor(tuple(symbolic.shape), dtype, mask is not None, mask)


def _append_calls(
    nodes: list[Node],
    functional: keras.Model,
    inputs: list[GraphTensor],
    path: tuple[str, ...],
    context: dict[str, Any],
) -> list[GraphTensor]:
    """Append the calls of a model to `nodes`; return the model's outputs."""
    known = {
        id(symbolic): tensor
        for symbolic, tensor in zip(functional.inputs, inputs, strict=True)
    }

    def replaced(value: Any) -> Any:
        is_tensor = isinstance(value, keras.KerasTensor)
        return known[id(value)] if is_tensor else value

    for call in graph_calls(functional):
        if id(call.outputs[0]) in known:  # An input layer.
            continue
        args = keras.tree.map_structure(replaced, call.args)
        kwargs = keras.tree.map_structure(replaced, call.kwargs)
        kwargs |= _accepted(call.operation, context)
        if _can_be_written_out(call, args, kwargs):
            made: Iterable[GraphTensor] = _append_calls(
                nodes,
                functional_part(call.operation),
                tensors_in(args),
                (*path, call.operation.name),
                _fixed_training(kwargs),
            )
        else:
            made = tuple(_tensor(x) for x in call.outputs)
            nodes.append(Node(call.operation, args, kwargs, made, path, call))
            # Not every mask is seen from inside a nested model.
            if any(x.may_be_masked for x in tensors_in((args, kwargs))):
                for tensor in made:
                    tensor.may_be_masked = True
        known |= {
            id(symbolic): tensor
            for symbolic, tensor in zip(call.outputs, made, strict=True)
        }
    return [known[id(symbolic)] for symbolic in functional.outputs]


def _fixed_training(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return `training` as keyword arguments, if a call gives it a value."""
    training = kwargs.get("training")
    return {} if training is None else {"training": training}


def _accepted(operation: Any, context: dict[str, Any]) -> dict[str, Any]:
    """Return what a nested model's caller has fixed, if a layer takes it."""
    if not context:
        return {}
    parameters = inspect.signature(operation.call).parameters
    return {k: v for k, v in context.items() if k in parameters}


def _can_be_written_out(
    call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Tell whether the calls inside a nested model can stand for its call."""
    functional = functional_part(call.operation)
    if functional is None or len(args) != 1:
        return False
    # A mask that is passed to a nested model is not among the arguments of the
    # calls inside, which would lose it.
    options = {k: v for k, v in kwargs.items() if k != "training"}
    if any(x is not None for x in keras.tree.flatten(options)):
        return False
    tensors = tensors_in(args)
    wanted = functional.inputs
    if len(tensors) > 1:
        try:
            keras.tree.assert_same_structure(args[0], functional.input)
        except ValueError:
            return False
    # Keras would cast, squeeze or expand an input that does not fit, which no
    # node stands for.
    return len(tensors) == len(wanted) and all(
        len(tensor.shape) == len(symbolic.shape)
        and tensor.dtype == keras.backend.standardize_dtype(symbolic.dtype)
        for tensor, symbolic in zip(tensors, wanted, strict=True)
    )
