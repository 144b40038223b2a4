"""The only module that uses private parts of Keras.

`tests/backend/test_keras_internals.py` pins what is used here, so that a Keras
release that changes it fails there and nowhere else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
import math
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
from keras import ops
from keras.src import backend
from keras.src.applications.convnext import LayerScale as LayerScale
from keras.src.applications.inception_resnet_v2 import (
    CustomScaleLayer as CustomScaleLayer,
)
from keras.src.backend.common import global_state
from keras.src.export.tf2onnx_lib import patch_tf2onnx as patch_tf2onnx
from keras.src.models.functional import (
    Functional,
    functional_like_constructor,
)
from keras.src.ops import core as core_operations
from keras.src.ops import nn as nn_operations
from keras.src.ops import numpy as numpy_operations
from keras.src.trainers import data_adapters
from keras.src.trainers.epoch_iterator import EpochIterator

# Classes of operations in the graph of a model, by name: there, `x + y` is an
# `Add`, and `keras.ops.relu(x)` a `Relu`.
BINARY_OPERATIONS: dict[str, type] = {
    name: getattr(numpy_operations, name)
    for name in (
        *("Add", "Subtract", "Multiply", "Maximum", "Minimum"),
        *("Divide", "TrueDivide", "Power"),
    )
}
# They map every entry by itself.
UNARY_OPERATIONS: dict[str, type] = {
    name: getattr(nn_operations, name)
    for name in (
        *("Relu", "Relu6", "Sigmoid", "Silu", "Gelu", "Elu", "LeakyRelu"),
        *("HardSigmoid", "HardSilu", "HardTanh", "Softplus", "Softsign"),
        *("Selu", "Celu", "LogSigmoid"),
    )
} | {
    name: getattr(numpy_operations, name)
    for name in (
        *("Tanh", "Negative", "Absolute", "Square", "Sqrt", "Exp"),
        *("Log", "Log1p", "Sin", "Cos", "Sign", "Reciprocal", "Clip"),
    )
}
# They compute one number of many, along the axes `axis`.
REDUCING_OPERATIONS: dict[str, type] = {
    name: getattr(numpy_operations, name)
    for name in ("Mean", "Max", "Min", "Sum")
}
# They give entries other places; see their rules for their attributes.
MOVING_OPERATIONS: dict[str, type] = {
    name: getattr(numpy_operations, name)
    for name in (
        *("Concatenate", "Stack", "Split", "GetItem", "Pad"),
        *("Reshape", "Transpose", "ExpandDims", "Squeeze", "Copy"),
    )
} | {name: getattr(core_operations, name) for name in ("Cast", "StopGradient")}
SOFTMAX_OPERATIONS: dict[str, type] = {
    name: getattr(nn_operations, name) for name in ("Softmax", "LogSoftmax")
}
# What `keras.ops.reshape` is in a graph; its `newshape` may hold None where the
# code that called it has read such a size.
RESHAPE: Any = numpy_operations.Reshape
# Operations that cast or rearrange values without computing new ones.
RESHAPING_OPERATIONS: tuple[type, ...] = (
    core_operations.Cast,
    RESHAPE,
    numpy_operations.Squeeze,
)


def full_precision_value(variable: keras.Variable) -> Any:
    """Return a float variable as float32, or as float64 if that is its type.

    Inside the call of a layer with a mixed policy, Keras casts variables to 16
    bits when they are read, but a KL divergence needs their full precision.
    """
    # Read here, because in the scope below the type would be None, which
    # stands for floatx.
    is_double = backend.standardize_dtype(variable.dtype) == "float64"
    with backend.AutocastScope(None):
        return ops.cast(
            ops.convert_to_tensor(variable),
            "float64" if is_double else "float32",
        )


def model_in_training_step() -> keras.Model | None:
    """Find the model whose training step does not tell this layer to train.

    That is a mistake: the outermost call has no argument `training`, or was
    given none. Such a call is the same in `fit` and in `predict`, and Keras
    keeps no other trace of it. So this searches the stack for that call, and
    for a `train_step` above it.

    Returns:
        The model; None if there is no such mistake.
    """
    context = global_state.get_global_attribute("current_call_ctx")
    entry = getattr(context, "entry_layer", None)
    frame: types.FrameType | None = sys._getframe(1)
    while entry is not None and frame is not None:
        # TensorFlow's autograph prefixes the names of what it rewrites.
        name = frame.f_code.co_name.removeprefix("tf__")
        if name == "__call__" and frame.f_locals.get("self") is entry:
            spec = frame.f_locals.get("call_spec")
            given = getattr(spec, "user_arguments_dict", {})
            if given.get("training") is not None:
                return None
        elif name == "train_step":
            model = frame.f_locals.get("self")
            if isinstance(model, keras.Model):
                return model
        frame = frame.f_back
    return None


def sublayers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """List the layers that `layer` owns directly, in order of creation."""
    return list(layer._layers)


def may_be_rematerialized(layer: keras.layers.Layer) -> bool:
    """Tell whether a `RematScope` repeats a layer's call for the gradient."""
    mode = layer._remat_mode
    if mode is None or mode.mode == "activations":
        return False
    return mode.mode != "list_of_layers" or layer.name in mode.layer_names


def flatten_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """List `layer` and all layers below it, each once, in order of creation.

    Keras' own traversal reverses the order within every nested layer.
    """
    found: dict[int, keras.layers.Layer] = {}
    pending = [layer]
    while pending:
        current = pending.pop()
        if id(current) not in found:
            found[id(current)] = current
            pending.extend(reversed(sublayers(current)))
    return list(found.values())


def mask_of(tensor: keras.KerasTensor) -> Any:
    """Return the mask that Keras attaches to a symbolic tensor, or None.

    The graph of a model shows the mask that a layer of one argument gets, as a
    keyword argument, but not those of layers with several, such as attention.
    """
    return backend.get_keras_mask(tensor)


def set_mask(tensor: Any, mask: Any) -> None:
    """Attach a mask to a symbolic tensor, as layers do to their outputs."""
    backend.set_keras_mask(tensor, mask)


def attention_projections(
    layer: keras.layers.Layer,
) -> dict[str, keras.layers.EinsumDense]:
    """Return the projections of a built attention layer, by what they project.

    They come in the order of their weights. Not every layer has a gate.
    """
    names = ("query", "key", "gate", "value", "output")
    found = {name: getattr(layer, f"_{name}_dense", None) for name in names}
    return {name: one for name, one in found.items() if one is not None}


def own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """List the variables of `layer` itself, without those of sublayers."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def own_trainable_variables(
    layer: keras.layers.Layer,
) -> list[keras.Variable]:
    """List those `own_variables` that train unless the layer is frozen."""
    return list(layer._trainable_variables)


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One use of a layer or an operation in the graph of a model.

    Attributes:
        operation: The layer, or the operation of `keras.ops`.
        args: Its positional arguments, symbolic tensors among them.
        kwargs: Its keyword arguments. Masks made by an earlier layer stand
            here, as symbolic tensors.
        outputs: The symbolic tensors that it returns, flattened.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[keras.KerasTensor, ...]


def functional_part(model: Any) -> keras.Model | None:
    """Return the Functional model whose graph is all that `model` computes.

    The attributes of the result are public: `inputs` and `outputs` are flat,
    `input` and `output` have the structure in which they are passed.

    Returns:
        `model` itself or, for a Sequential model, the one inside it. None if
        `model` is not built, has a `call` of its own, or is no model at all.
    """
    if isinstance(model, keras.Sequential):
        is_own_call = type(model).call is not keras.Sequential.call
        return None if is_own_call else model._functional
    if isinstance(model, Functional) and type(model).call is Functional.call:
        return model
    return None


@functools.cache
def refuses_unread_inputs() -> bool:
    """Tell whether each input of a Functional model has to be read, by trying.

    Keras 3.10 neither makes nor loads other models; newer releases do.
    """
    # Names are given so that those that Keras makes up stay what they are.
    one, other = (keras.Input((1,), name=name) for name in ("one", "other"))
    outputs = keras.layers.Identity(name="outputs")(one)
    try:
        keras.Model([one, other], outputs, name="model")
    except ValueError:
        return True
    return False


def graph_calls(functional: keras.Model) -> list[Call]:
    """List the calls in a Functional model, each after those that it reads.

    Input layers have no arguments, and a nested model is a single call.
    """
    by_depth = functional._nodes_by_depth
    return [
        _call_of(node)
        for depth in sorted(by_depth, reverse=True)
        for node in by_depth[depth]
    ]


def calls_to(tensors: Iterable[Any]) -> list[Call]:
    """List the calls that made symbolic tensors, each after those it reads.

    A tensor that no call has made, such as a new `keras.KerasTensor`, has no
    call in the list.
    """
    found: dict[int, Any] = {}
    pending = [(node, False) for node in map(_node_of, tensors)]
    pending.reverse()
    while pending:
        node, is_expanded = pending.pop()
        if node is None or id(node) in found:
            continue
        if is_expanded:
            found[id(node)] = node
        else:
            pending.append((node, True))
            read = map(_node_of, reversed(node.input_tensors))
            pending += [(x, False) for x in read]
    return [_call_of(node) for node in found.values()]


def _node_of(tensor: Any) -> Any:
    history = getattr(tensor, "_keras_history", None)
    if history is None or history.operation is None:
        return None
    return history.operation._inbound_nodes[history.node_index]


def _call_of(node: Any) -> Call:
    return Call(
        node.operation,
        tuple(node.arguments.args),
        dict(node.arguments.kwargs),
        tuple(node.outputs),
    )


def count_calls(operation: Any) -> int:
    """Count the calls of a layer or operation on symbolic tensors."""
    return len(operation._inbound_nodes)


def forget_calls_from_now(operations: Iterable[Any]) -> Callable[[], None]:
    """Return a function that makes operations forget their later calls.

    These are the calls on symbolic tensors between now and then.
    """
    nodes = [
        x for op in operations for x in (op._inbound_nodes, op._outbound_nodes)
    ]
    before = [len(x) for x in nodes]

    def forget() -> None:
        for known, number in zip(nodes, before, strict=True):
            del known[number:]

    return forget


def recorded_call(
    layer: keras.layers.Layer, args: Any, kwargs: dict[str, Any]
) -> Any:
    """Call a layer on symbolic tensors, and record what its `call` calls.

    Keras would record the layer as a whole. All else that it does around a
    `call`, such as casting inputs and passing on masks, it does here, too.

    Returns:
        The outputs, whose history leads to the parts of the layer.
    """
    made: list[tuple[Any, Any]] = []

    def compute_output_spec(*args: Any, **kwargs: Any) -> Any:
        outputs = layer.call(*args, **kwargs)
        for x in keras.tree.flatten(outputs):
            made.append((x, getattr(x, "_keras_history", None)))
        return outputs

    with replaced_methods(
        [(layer, "compute_output_spec", compute_output_spec)]
    ):
        outputs = layer(*args, **kwargs)
    for tensor, history in made:
        if history is not None:
            tensor._keras_history = history
        elif hasattr(tensor, "_keras_history"):
            del tensor._keras_history
    return outputs


@contextlib.contextmanager
def replaced_methods(
    methods: Iterable[tuple[Any, str, Callable[..., Any]]],
) -> Iterator[None]:
    """Replace methods of single objects within this context.

    Keras' own way of setting attributes, which tracks them, is not used.
    """
    missing = object()
    before = []
    for owner, name, function in methods:
        before.append((owner, name, vars(owner).get(name, missing)))
        vars(owner)[name] = function
    try:
        yield
    finally:
        for owner, name, function in reversed(before):
            if function is missing:
                del vars(owner)[name]
            else:
                vars(owner)[name] = function


def stateless_scope() -> Any:
    """Return the innermost `keras.StatelessScope` that is open, or None."""
    return backend.get_stateless_scope()


@contextlib.contextmanager
def no_outer_call() -> Iterator[None]:
    """Let layers called within this context know nothing of outer calls.

    They are not told whether an outer layer is training.
    """
    before = global_state.get_global_attribute("current_call_ctx")
    global_state.set_global_attribute("current_call_ctx", None)
    try:
        yield
    finally:
        global_state.set_global_attribute("current_call_ctx", before)


def set_own_trainable(layer: keras.layers.Layer, value: bool) -> None:
    """Set `trainable` of a layer, but not of the layers inside it."""
    layer._trainable = value


def rename_operation(tensor: keras.KerasTensor, name: str) -> None:
    """Give the operation that made a symbolic tensor a name of its own.

    Functions of `keras.ops` take no name, and the one that Keras makes up may
    already be in use in a model that was loaded from a file.
    """
    tensor._keras_history.operation.name = name


def copied_operation(operation: Any, name: str) -> Any:
    """Copy an operation of `keras.ops` under a name, without its uses.

    The copy is not made from a config, as arguments such as functions have
    none.
    """
    copy = object.__new__(type(operation))
    vars(copy).update(vars(operation))
    vars(copy).update(name=name, _inbound_nodes=[], _outbound_nodes=[])
    return copy


def is_made_from_graph(model: Any) -> bool:
    """Tell whether a model's class is made from inputs and outputs.

    It may still compute something else with them in a `call` of its own.
    """
    return isinstance(model, Functional) and bool(
        functional_like_constructor(type(model))
    )


def arguments_of_lambda(layer: keras.layers.Lambda) -> dict[str, Any]:
    """Return the arguments that only a Lambda layer takes, not serialized."""
    return {
        "function": layer.function,
        "output_shape": layer._output_shape,
        "mask": layer.mask,
        "arguments": layer.arguments,
    }


class _Known(dict[int, Any]):
    """Stand-in for both of Keras' tables of objects shared within a config."""

    def __init__(
        self, is_known: Callable[[int], bool], find: Callable[[int], Any]
    ) -> None:
        self.is_known = is_known
        self.find = find

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and self.is_known(number)

    def __getitem__(self, number: int) -> dict[str, Any]:
        # Keras asks for the first config of an object, to mark that one, too.
        return {}

    def __setitem__(self, number: int, value: Any) -> None:
        pass

    def get(self, number: int, default: Any = None) -> Any:
        return self.find(number)


@contextlib.contextmanager
def objects_by_identity(
    is_known: Callable[[int], bool], find: Callable[[int], Any]
) -> Iterator[None]:
    """Let configs refer to some objects by `id` within this context.

    Args:
        is_known: Tells whether configs refer to the object with an `id`.
        find: Returns the object that Keras is to use for an `id` when it reads
            such a config.
    """
    names = ("shared_objects/id_to_obj_map", "shared_objects/id_to_config_map")
    before = [global_state.get_global_attribute(name) for name in names]
    for name in names:
        global_state.set_global_attribute(name, _Known(is_known, find))
    try:
        yield
    finally:
        for name, value in zip(names, before, strict=True):
            global_state.set_global_attribute(name, value)


@contextlib.contextmanager
def no_references() -> Iterator[None]:
    """Let configs that are made within this context stand for themselves.

    A model's config refers to objects it has seen before by their `id`, and
    Python gives the `id` of an object that is gone to another one.
    """
    name = "shared_objects/id_to_config_map"
    before = global_state.get_global_attribute(name)
    global_state.set_global_attribute(name, None)
    try:
        yield
    finally:
        global_state.set_global_attribute(name, before)


def reference(item: Any) -> dict[str, Any]:
    """Return a config that stands for `item` within `objects_by_identity`."""
    return {
        "module": None,
        "class_name": type(item).__name__,
        "registered_name": None,
        "config": {},
        "shared_object_id": id(item),
    }


# Methods that a class may override, or take from a mixin, without changing what
# it computes.
_ADAPTED = {"__init__", "get_config", "from_config"}
# The only special methods whose override counts as a change.
_DECISIVE = {
    *("__call__", "__new__", "__getattr__", "__getattribute__"),
    "__setattr__",
}


def overridden(cls: type, base: type) -> list[str]:
    """List the names of what a class changes in a class that it extends.

    Constructors and configs do not count, nor do names that `base` lacks.
    """
    changed: set[str] = set()
    for one in cls.__mro__[: cls.__mro__.index(base)]:
        changed |= {
            name
            for name in vars(one)
            if hasattr(base, name)
            and name not in _ADAPTED
            and (name in _DECISIVE or not name.startswith("__"))
        }
    return sorted(changed)


def extended(cls: type, package: str) -> type:
    """Return the nearest class of a package that a class is or derives from.

    Return the class itself if there is none.
    """
    return next(
        (x for x in cls.__mro__ if x.__module__.split(".")[0] == package), cls
    )


def own_methods(cls: type) -> list[str]:
    """List the public methods and properties that Keras' class has not."""
    base = extended(cls, "keras")
    added = {
        name
        for one in cls.__mro__[: cls.__mro__.index(base)]
        for name in vars(one)
        if not hasattr(base, name) and not name.startswith("_")
    }
    return sorted(added | {x for x in overridden(cls, base) if x[0] != "_"})


def computing_class(cls: type) -> type:
    """Return the class whose code computes what a class computes.

    That is the class of Keras or KerasHub that it extends if it only adapts the
    constructor or the config of that one, and the class itself otherwise.
    """
    bases = (extended(cls, package) for package in ("keras", "keras_hub"))
    return next((base for base in bases if not overridden(cls, base)), cls)


def exclude_from_weight_decay(
    optimizer: keras.optimizers.Optimizer, variables: Iterable[keras.Variable]
) -> None:
    """Add to the variables that `optimizer` does not decay.

    The public method of the same name replaces the user's own exclusions and
    refuses a built optimizer. This function keeps them, and also works on a run
    that is resumed. For `LossScaleOptimizer` and `MultiOptimizer` it changes
    the optimizers inside.
    """
    for inner in _parts_of(optimizer):
        keys = {inner._var_key(variable) for variable in variables}
        excluded: set[Any] = getattr(inner, "_exclude_from_weight_decay", set())
        inner._exclude_from_weight_decay = excluded | keys
        inner._exclude_from_weight_decay_cache = {}


def _parts_of(optimizer: Any) -> list[Any]:
    """List the optimizers in a `LossScaleOptimizer` or `MultiOptimizer`."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return list(getattr(optimizer, "optimizers", [optimizer]))


def start_at_epoch(model: keras.Model, epoch: int) -> None:
    """Make the `fit` that is about to begin start at a given epoch."""
    model._initial_epoch = epoch


def running_average(variable: Any) -> keras.Variable | None:
    """Return a variable's moving average in the optimizer that updates it now.

    A constraint is not told which optimizer calls it, but an optimizer opens a
    name scope before the call. Return None without `use_ema`.
    """
    scopes = global_state.get_global_attribute("name_scope_stack") or [None]
    optimizer: Any = getattr(scopes[-1], "caller", None)
    if not getattr(optimizer, "use_ema", False):
        return None
    index = optimizer._get_variable_index(variable)
    return optimizer._model_variables_moving_average[index]


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """The call of `fit`, or of a loop like it, that has called a callback.

    Attributes:
        callbacks: All of its callbacks; None in a loop that keeps no list.
        iterator: What draws its batches; None outside of `fit`.
    """

    callbacks: keras.callbacks.CallbackList | None
    iterator: EpochIterator | None

    @property
    def is_one_pass(self) -> bool:
        """Whether an epoch is one pass over the data, as far as is known."""
        return self.iterator is not None and not self.iterator.steps_per_epoch

    @property
    def steps(self) -> int | None:
        """Batches of an epoch, if known."""
        return None if self.iterator is None else self.iterator.num_batches


def running_fit() -> Fit:
    """Find the call of `fit` that has called the callback that calls this.

    Keras tells a callback neither which other callbacks there are nor where
    the batches come from, so these are looked up among the local variables of
    the functions on the stack. What is not found is None.
    """
    found: dict[type, Any] = {}
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and EpochIterator not in found:
        for value in list(frame.f_locals.values()):
            for kind in (keras.callbacks.CallbackList, EpochIterator):
                if isinstance(value, kind):
                    found.setdefault(kind, value)
        frame = frame.f_back
    return Fit(
        found.get(keras.callbacks.CallbackList), found.get(EpochIterator)
    )


def build_for_fit(model: keras.Model, fit: Fit) -> None:
    """Create the variables of a model that `fit` is going to build.

    TensorFlow builds a model only within the first step. JAX and torch do so
    before the first callback, so this function does nothing there.
    """
    dataset = getattr(fit.iterator, "_distributed_dataset", None)
    if dataset is not None:
        model._symbolic_build(data_batch=dataset.element_spec)


def counted_examples(model: keras.Model) -> float | None:
    """Return how many examples the running epoch has seen so far.

    Keras weights the metric of the loss by batch sizes, so that its count is
    the number of examples. Return None where that does not hold: in a training
    step that is not Keras' own, or on several devices.
    """
    tracker = getattr(model, "_loss_tracker", None)
    is_keras = type(model).train_step is keras.Model.train_step
    if tracker is None or not is_keras or is_distributed(model):
        return None
    return float(backend.convert_to_numpy(tracker.count))


def loss_options(loss: keras.losses.Loss) -> dict[str, Any]:
    """Return the options of a loss object, such as `from_logits` and `axis`."""
    found = dict(getattr(loss, "_fn_kwargs", {}))
    if hasattr(loss, "from_logits"):
        found["from_logits"] = loss.from_logits
    return found


def labels_per_example(model: keras.Model) -> int | None:
    """Count the positions, such as words, of one example's output.

    Return None if a size is not known, or unless the model has one output.
    """
    # A model without symbolic tensors lacks the attribute, or has None.
    outputs = getattr(model, "outputs", None) or []
    if len(outputs) != 1:
        return None
    positions = tuple(outputs[0].shape[1:-1])
    return None if None in positions else math.prod(positions)


def uses_several_replicas() -> bool:
    """Tell whether variables made now are those of several replicas."""
    if backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return bool(tf.distribute.get_strategy().num_replicas_in_sync > 1)


def is_distributed(model: keras.Model) -> bool:
    """Tell whether a model is trained on several devices."""
    if keras.distribution.distribution() is not None:
        return True
    if backend.backend() == "tensorflow":
        return bool(model.distribute_strategy.num_replicas_in_sync > 1)
    if backend.backend() == "torch":
        import torch

        return bool(
            torch.distributed.is_available()
            and torch.distributed.is_initialized()
        )
    return False


@contextlib.contextmanager
def replaced_attributes(instance: Any, **values: Any) -> Iterator[None]:
    """Give attributes of a layer or cell other values within this context.

    This bypasses Keras' tracking, so that these values are neither saved nor
    trained.
    """
    attributes = vars(instance)
    kept = {name: attributes[name] for name in values if name in attributes}
    attributes.update(values)
    try:
        yield
    finally:
        for name in values:
            del attributes[name]
        attributes.update(kept)


@contextlib.contextmanager
def portable_operations() -> Iterator[None]:
    """Trace Keras' `argmax` and `argmin` without operations on bits.

    They tell -0 from 0 by the sign bit of a number, which a model in ONNX or
    LiteRT cannot read. The sign of the reciprocal tells them apart as well.
    """
    if backend.backend() != "tensorflow":
        yield
        return
    module = vars(backend.numpy)
    kept = module["signbit"]

    def signbit(x: Any) -> Any:
        x = backend.convert_to_tensor(x)
        is_float = backend.is_float_dtype(backend.standardize_dtype(x.dtype))
        return (x < 0) | (1 / x < 0) if is_float else kept(x)

    module["signbit"] = signbit
    try:
        yield
    finally:
        module["signbit"] = kept


def with_projections(method: Any, make: Callable[..., Any]) -> Any:
    """Return a bound method of Keras' attention that makes other projections.

    Attention makes its projections by the global name `EinsumDense`, and has no
    hook for another class. If they were replaced afterwards, the first ones
    would have drawn their weights in vain, and would stay among the layers that
    Keras tracks.

    Args:
        method: `build` or `_make_output_dense` of an attention layer.
        make: Makes a projection from the arguments of `EinsumDense`.
    """
    return _with_other_globals(method, EinsumDense=make)


def _with_other_globals(method: Any, **objects: Any) -> Any:
    """Return a bound method of Keras that finds other objects by some names.

    It is a copy of the function with globals of its own, as a change of the
    module itself, even for a while, would affect other threads.
    """
    function = method.__func__
    copy = types.FunctionType(
        function.__code__,
        {**function.__globals__, **objects},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return types.MethodType(copy, method.__self__)


def with_other_ops(method: Any, **functions: Callable[..., Any]) -> Any:
    """Return a bound method of Keras with other functions for some of `ops`.

    Recurrent cells multiply by their kernels with `ops.matmul`, and have no
    hook for kernels that differ from sequence to sequence.
    """
    known = vars(method.__func__.__globals__["ops"])
    return _with_other_globals(
        method, ops=types.SimpleNamespace(**{**known, **functions})
    )


def compilation(model: keras.Model) -> Any:
    """Return an object that each `compile` replaces; None before the first."""
    return getattr(model, "_compile_config", None)


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """The batches that `predict` would go through.

    Attributes:
        adapter: Keras' data adapter.
        steps: Largest number of batches; None: all.
    """

    adapter: Any
    steps: int | None

    @property
    def is_array(self) -> bool:
        """Whether batches are cut out of arrays."""
        return isinstance(self.adapter, data_adapters.ArrayDataAdapter)

    @property
    def num_batches(self) -> int | None:
        """Number of batches; None if that is not known."""
        known = (self.adapter.num_batches, self.steps)
        found: list[int] = [x for x in known if x is not None]
        return min(found, default=None)

    @property
    def num_examples(self) -> int | None:
        """Number of rows of arrays; None for all other data."""
        if not self.is_array:
            return None
        count: int = self.adapter._num_samples
        return count

    @property
    def is_endless(self) -> bool:
        """Whether there are more batches than can be counted."""
        if self.adapter.num_batches is not None:
            return False
        if isinstance(self.adapter, data_adapters.TFDatasetAdapter):
            return int(self.adapter._dataset.cardinality()) == -1
        return isinstance(self.adapter, data_adapters.PyDatasetAdapter)

    def __iter__(self) -> Iterator[Any]:
        """Yield the inputs of every batch, as NumPy arrays."""
        self.adapter.on_epoch_begin()
        try:
            iterator = iter(self.adapter.get_numpy_iterator())
            for batch in itertools.islice(iterator, self.num_batches):
                yield keras.utils.unpack_x_y_sample_weight(batch)[0]
        finally:
            self.adapter.on_epoch_end()


def input_batches(x: Any, batch_size: int | None, steps: int | None) -> Any:
    """Return the `Batches` of anything that `predict` takes, or else None.

    Args:
        x: Arrays, a data set, a generator and so on.
        batch_size: For arrays only; None lets Keras choose.
        steps: Number of batches; None: all.
    """
    leaves = [leaf for leaf in keras.tree.flatten(x) if leaf is not None]
    # Keras would look for the examples along an axis that scalars do not have.
    if not leaves or any(getattr(x, "shape", None) == () for x in leaves):
        return None
    try:
        adapter = data_adapters.get_data_adapter(
            x, batch_size=batch_size, steps_per_epoch=steps
        )
    except ValueError as error:
        if str(error).startswith("Unrecognized data type"):
            return None
        raise
    return Batches(adapter, steps)


def resize_variable(variable: keras.Variable, value: Any) -> None:
    """Give a variable a value of another shape.

    It stays the same object, so that layers and optimizers that refer to it
    need not be told. What holds its tensor does: see `known_to_optimizer`,
    `forget_functions` and `register_variables`.

    Args:
        variable: An initialized variable; not in a stateless scope.
        value: NumPy array of its dtype.
    """
    variable._shape = tuple(value.shape)
    variable._initialize(backend.convert_to_tensor(value, dtype=variable.dtype))


@contextlib.contextmanager
def change_class(layer: keras.layers.Layer, cls: type) -> Iterator[None]:
    """Make a built layer one of another class, in place.

    Within the context it may get new weights and layers.

    Args:
        layer: The layer, with the attributes that `cls` needs.
        cls: A class that takes the same calls.
    """
    layer.__class__ = cls
    # What the constructor of a Keras layer derives from its class.
    signature = inspect.signature(layer.call)
    layer._call_signature = signature
    layer.call_signature_parameters = list(signature.parameters)
    for name in layer._call_context_args:
        layer._call_has_context_arg[name] = name in signature.parameters
    layer._call_has_training_arg = "training" in signature.parameters
    layer._tracker.unlock()
    try:
        yield
    finally:
        layer._tracker.lock()


def register_variables(layer: keras.layers.Layer) -> None:
    """Tell torch which tensors the variables in and below a layer have now."""
    if backend.backend() == "torch":
        for below in flatten_layers(layer):
            below._track_variables()


# What a layer remembers of its sizes.
_SIZES = (
    *("units", "filters", "output_dim", "state_size", "output_size"),
    "_build_shapes_dict",
)


def adopt_sizes(layer: keras.layers.Layer, other: keras.layers.Layer) -> None:
    """Let a layer, and those inside it, remember the sizes of another one.

    Args:
        layer: A built layer.
        other: A built layer of the same class and other sizes.
    """
    pairs = zip(flatten_layers(layer), flatten_layers(other), strict=True)
    for old, new in pairs:
        old.input_spec = new.input_spec
        for name in _SIZES:
            if name in vars(new):
                setattr(old, name, vars(new)[name])


def refresh_shapes(functional: keras.Model) -> None:
    """Compute the shapes of the symbolic tensors of a model once more.

    This is for a model whose layers have other sizes than when they were
    called.
    """
    for call in graph_calls(functional):
        # A Sequential model to which layers were added one by one has called
        # them several times.
        for node in call.operation._inbound_nodes:
            _refresh_node(node)


def _refresh_node(node: Any) -> None:
    if node.is_input:
        return
    operation, arguments = node.operation, node.arguments
    made = operation.compute_output_spec(*arguments.args, **arguments.kwargs)
    for tensor, new in zip(node.outputs, keras.tree.flatten(made), strict=True):
        tensor._shape = tuple(new.shape)
    shapes = getattr(operation, "_build_shapes_dict", None)
    if shapes and len(shapes) == 1 and arguments.args:
        (name,) = shapes
        operation._build_shapes_dict = {
            name: keras.tree.map_structure(
                lambda x: tuple(x.shape), arguments.args[0]
            )
        }


def is_used_elsewhere(operation: Any, operations: Iterable[Any]) -> bool:
    """Tell whether the outputs of an operation are read by any but some."""
    known = {id(x) for x in operations}
    return any(id(x.operation) not in known for x in operation._outbound_nodes)


def forget_functions(model: keras.Model) -> None:
    """Make a compiled model trace its functions anew, also within `fit`."""
    model.test_function = model.predict_function = None
    model.make_train_function(force=True)


def optimizer_slots(
    optimizer: keras.optimizers.Optimizer,
) -> dict[int, list[keras.Variable]]:
    """Find what a built optimizer keeps for each entry of a variable.

    Returns:
        Variables of the shape of a trained variable, by the `id` of that one;
        nothing for one without any.

    Raises:
        ValueError: if the optimizer keeps something of another shape.
    """
    slots: dict[int, list[keras.Variable]] = {}
    for inner in _parts_of(optimizer):
        trained = inner._trainable_variables
        found = set()
        for name, entries in vars(inner).items():
            is_list = isinstance(entries, list) and len(entries) == len(trained)
            if not is_list or name in ("_variables", "_trainable_variables"):
                continue
            for variable, slot in zip(trained, entries, strict=True):
                if isinstance(slot, keras.Variable) and (
                    tuple(slot.shape) == tuple(variable.shape)
                ):
                    slots.setdefault(id(variable), []).append(slot)
                    found.add(id(slot))
        for variable in inner.variables:
            if len(variable.shape) and id(variable) not in found:
                raise ValueError(
                    f"The optimizer {type(inner).__name__} keeps "
                    f"'{variable.path}', of shape {tuple(variable.shape)}, "
                    "which does not belong to single weights and so cannot "
                    "shrink with them. Use one such as Adam or SGD."
                )
    return slots


@contextlib.contextmanager
def known_to_optimizer(
    optimizer: keras.optimizers.Optimizer,
) -> Iterator[None]:
    """Let a built optimizer know its variables after a change of their shapes.

    On TensorFlow it finds them by a key that changes with `resize_variable`.
    """
    outer = getattr(optimizer, "inner_optimizer", optimizer)
    parts = {id(x): x for x in (outer, *_parts_of(optimizer))}.values()
    before = [
        [(variable, part._var_key(variable)) for variable in trained]
        for part in parts
        for trained in [part._trainable_variables]
    ]
    yield
    for part, pairs in zip(parts, before, strict=True):
        keys = {key: part._var_key(variable) for variable, key in pairs}
        for name in ("_trainable_variables_indices", "_var_to_optimizer_idx"):
            if name in vars(part):
                found = vars(part)[name]
                known = {keys[key]: index for key, index in found.items()}
                setattr(part, name, known)
        excluded: set[Any] = getattr(part, "_exclude_from_weight_decay", set())
        part._exclude_from_weight_decay = {keys.get(x, x) for x in excluded}
        part._exclude_from_weight_decay_cache = {}


def is_better_when_larger(model: keras.Model, monitor: str) -> bool:
    """Tell whether a larger value of a logged metric is the better one.

    Args:
        model: A model that has been trained, so that its metrics are known.
        monitor: Name of the metric in the logs.

    Raises:
        ValueError: if Keras does not know.
    """
    stopping = keras.callbacks.EarlyStopping(monitor)
    stopping.set_model(model)
    try:
        stopping._set_monitor_op()
    except ValueError as error:
        raise ValueError(
            "Argument `monitor` must be a metric of which Keras knows whether "
            f"it shall be large or small. Received: monitor={monitor!r}."
        ) from error
    return bool(stopping.monitor_op(2.0, 1.0))


def without_values(make: Callable[[], Any]) -> Any:
    """Make layers whose variables have shapes, but neither values nor memory.

    Args:
        make: Makes and builds them.

    Returns:
        What it returns; good for counting alone.
    """
    # Keras would give these variables values at the end of any later scope.
    name = "uninitialized_variables"
    before = list(global_state.get_global_attribute(name) or [])
    with keras.StatelessScope(initialize_variables=False):
        try:
            return make()
        finally:
            global_state.set_global_attribute(name, before)
