"""The one home of everything taken from Keras' private side.

`tests/backend/test_keras_internals.py` pins what is used here, so that a Keras
release that moves it fails there and nowhere else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
from keras import ops
from keras.src import backend
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

# What `x + y` and `keras.ops.relu(x)` are in the graph of a model, by name.
BINARY_OPERATIONS: dict[str, type] = {
    name: getattr(numpy_operations, name)
    for name in ("Add", "Subtract", "Multiply", "Maximum", "Minimum")
}
UNARY_OPERATIONS: dict[str, type] = {
    name: getattr(nn_operations, name)
    for name in ("Relu", "Sigmoid", "Silu", "Gelu", "Elu", "LeakyRelu")
} | {"Tanh": numpy_operations.Tanh}
SOFTMAX_OPERATIONS: dict[str, type] = {
    name: getattr(nn_operations, name) for name in ("Softmax", "LogSoftmax")
}
# They move values and change none.
RESHAPING_OPERATIONS: tuple[type, ...] = (
    core_operations.Cast,
    numpy_operations.Reshape,
    numpy_operations.Squeeze,
)


def full_precision_value(variable: keras.Variable) -> Any:
    """A float variable as a tensor in float32, or float64 if it is of that.

    Inside the call of a layer with a mixed policy Keras hands out variables
    cast to 16 bits; a KL divergence has to be computed from all their bits.
    """
    # In that scope it would be None, which stands for floatx.
    is_double = backend.standardize_dtype(variable.dtype) == "float64"
    with backend.AutocastScope(None):
        return ops.cast(
            ops.convert_to_tensor(variable),
            "float64" if is_double else "float32",
        )


def model_in_training_step() -> keras.Model | None:
    """The model whose training step calls the current layer by mistake.

    By mistake: the outermost call takes, or was given, no `training`. Keras has
    no other trace of it: such a call is the same in `fit` and in `predict`. So
    this looks on the stack for that call, and then for a `train_step`.
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
    """Layers that `layer` owns directly, in order of creation."""
    return list(layer._layers)


def may_be_rematerialized(layer: keras.layers.Layer) -> bool:
    """Whether a `RematScope` computes its call once more for the gradient."""
    mode = layer._remat_mode
    if mode is None or mode.mode == "activations":
        return False
    return mode.mode != "list_of_layers" or layer.name in mode.layer_names


def flatten_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """`layer` and all layers below it, each once, in order of creation.

    Keras' own walk reverses the order within every nested layer.
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
    """The mask that Keras hands on with a symbolic tensor, or None.

    It reaches layers of one argument as a keyword in the graph, but those of
    several, such as attention, without a trace.
    """
    return backend.get_keras_mask(tensor)


def attention_projections(
    layer: keras.layers.Layer,
) -> dict[str, keras.layers.EinsumDense]:
    """The projections of a built attention layer, by what they project.

    In the order of their weights; the gate is not always there.
    """
    names = ("query", "key", "gate", "value", "output")
    found = {name: getattr(layer, f"_{name}_dense", None) for name in names}
    return {name: one for name, one in found.items() if one is not None}


def own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Variables that belong to `layer` itself and to none of its sublayers."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def own_trainable_variables(
    layer: keras.layers.Layer,
) -> list[keras.Variable]:
    """As `own_variables`, those that train unless the layer is frozen."""
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
    """The Functional model whose graph is all that `model` computes.

    Its flat `inputs` and `outputs`, and these in the structure in which they
    are passed (`input`, `output`), are public.

    Returns:
        `model` itself or, for a Sequential model, the one inside it. None for
        a model that is not built, computes in a `call` of its own, or is no
        model at all.
    """
    if isinstance(model, keras.Sequential):
        is_own_call = type(model).call is not keras.Sequential.call
        return None if is_own_call else model._functional
    if isinstance(model, Functional) and type(model).call is Functional.call:
        return model
    return None


def graph_calls(functional: keras.Model) -> list[Call]:
    """Every call in a Functional model, each after those that it reads.

    Input layers come without arguments; nested models are one call.
    """
    by_depth = functional._nodes_by_depth
    return [
        Call(
            node.operation,
            tuple(node.arguments.args),
            dict(node.arguments.kwargs),
            tuple(node.outputs),
        )
        for depth in sorted(by_depth, reverse=True)
        for node in by_depth[depth]
    ]


def rename_operation(tensor: keras.KerasTensor, name: str) -> None:
    """Give the operation that made a symbolic tensor a name of its own.

    Functions of `keras.ops` take no name, and the one that Keras makes up may
    be in use in a model that comes from a file.
    """
    tensor._keras_history.operation.name = name


def copied_operation(operation: Any, name: str) -> Any:
    """The same operation of `keras.ops`, with a name, used nowhere yet.

    Not from its config: arguments such as functions have none.
    """
    copy = object.__new__(type(operation))
    vars(copy).update(vars(operation))
    vars(copy).update(name=name, _inbound_nodes=[], _outbound_nodes=[])
    return copy


def is_made_from_graph(model: Any) -> bool:
    """Whether a model's class takes inputs and outputs, as `keras.Model` does.

    It may compute something else with them in a `call` of its own.
    """
    return isinstance(model, Functional) and bool(
        functional_like_constructor(type(model))
    )


def arguments_of_lambda(layer: keras.layers.Lambda) -> dict[str, Any]:
    """What only a Lambda layer is told, the functions themselves."""
    return {
        "function": layer.function,
        "output_shape": layer._output_shape,
        "mask": layer.mask,
        "arguments": layer.arguments,
    }


class _Known(dict[int, Any]):
    """Both of Keras' tables of objects that a config holds more than once."""

    def __init__(
        self, is_known: Callable[[int], bool], find: Callable[[int], Any]
    ) -> None:
        self.is_known = is_known
        self.find = find

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and self.is_known(number)

    def __getitem__(self, number: int) -> dict[str, Any]:
        # The config before, which Keras marks too.
        return {}

    def __setitem__(self, number: int, value: Any) -> None:
        pass

    def get(self, number: int, default: Any = None) -> Any:
        return self.find(number)


@contextlib.contextmanager
def objects_by_identity(
    is_known: Callable[[int], bool], find: Callable[[int], Any]
) -> Iterator[None]:
    """Context in which configs refer to some objects instead of naming them.

    Args:
        is_known: Whether a config refers to the object with this `id`.
        find: Returns what Keras takes for it where it reads that config.
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


def reference(item: Any) -> dict[str, Any]:
    """A config that stands for `item` within `objects_by_identity`."""
    return {
        "module": None,
        "class_name": type(item).__name__,
        "registered_name": None,
        "config": {},
        "shared_object_id": id(item),
    }


# What a class may define, or take from a mixin, and compute the same.
_ADAPTED = {"__init__", "get_config", "from_config"}
_DECISIVE = {
    *("__call__", "__new__", "__getattr__", "__getattribute__"),
    "__setattr__",
}


def overridden(cls: type, base: type) -> list[str]:
    """What a class changes of one that it extends, by name.

    Constructors and configs do not count, nor does what `base` has not.
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
    """The nearest class of a package that a class is, or is derived from."""
    return next(
        (x for x in cls.__mro__ if x.__module__.split(".")[0] == package), cls
    )


def computed_class(cls: type) -> type:
    """The class of Keras whose code computes what a class computes.

    That is itself, unless it only adapts the constructor of another.
    """
    base = extended(cls, "keras")
    return cls if overridden(cls, base) else base


def exclude_from_weight_decay(
    optimizer: keras.optimizers.Optimizer, variables: Iterable[keras.Variable]
) -> None:
    """Add to the variables that `optimizer` does not decay.

    The public method of the same name replaces the user's own exclusions and
    refuses a built optimizer; this one keeps them and also works on a run that
    is resumed. `LossScaleOptimizer` and `MultiOptimizer` are looked through.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    keys = {optimizer._var_key(variable) for variable in variables}
    for inner in getattr(optimizer, "optimizers", [optimizer]):
        excluded: set[Any] = getattr(inner, "_exclude_from_weight_decay", set())
        inner._exclude_from_weight_decay = excluded | keys
        inner._exclude_from_weight_decay_cache = {}


def start_at_epoch(model: keras.Model, epoch: int) -> None:
    """Have the `fit` that is about to begin start at an epoch."""
    model._initial_epoch = epoch


def running_average(variable: Any) -> keras.Variable | None:
    """The moving average of a variable in the optimizer that updates it now.

    Constraints are not told who calls them, but an optimizer opens a name
    scope before it does. None without `use_ema`.
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
    """What is running above the callback that asks.

    Keras tells a callback neither which other callbacks there are nor where
    the batches come from; they are found among the local variables of the
    functions that have led here. What is not found is None.
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

    JAX and torch do that before the first callback, TensorFlow within the
    first step. Without a model's variables this does nothing there.
    """
    dataset = getattr(fit.iterator, "_distributed_dataset", None)
    if dataset is not None:
        model._symbolic_build(data_batch=dataset.element_spec)


def counted_examples(model: keras.Model) -> float | None:
    """Examples of the running epoch, by the metric of the loss.

    Keras weighs it by batch sizes. None where that is not so: in a training
    step that is not Keras' own, or on several devices.
    """
    tracker = getattr(model, "_loss_tracker", None)
    is_keras = type(model).train_step is keras.Model.train_step
    if tracker is None or not is_keras or _is_distributed(model):
        return None
    return float(backend.convert_to_numpy(tracker.count))


def loss_options(loss: keras.losses.Loss) -> dict[str, Any]:
    """What a loss object was given, such as `from_logits` and `axis`."""
    found = dict(getattr(loss, "_fn_kwargs", {}))
    if hasattr(loss, "from_logits"):
        found["from_logits"] = loss.from_logits
    return found


def labels_per_example(model: keras.Model) -> int | None:
    """Positions of a model's one output, such as words; None: not known."""
    try:
        outputs = model.outputs
    except AttributeError:  # a model without symbolic tensors
        return None
    (positions, *others) = (tuple(x.shape[1:-1]) for x in outputs)
    if others or None in positions:
        return None
    return math.prod(positions)


def _is_distributed(model: keras.Model) -> bool:
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
    """Attributes of a layer or cell that have other values for a while.

    Past Keras' tracking: what comes and goes is neither saved nor trained.
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

    They tell -0 from 0 by the bits of a number, which neither ONNX nor LiteRT
    lets a model read. Its reciprocal tells as well.
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
    """Return a bound method of Keras' attention that makes projections anew.

    Attention builds them by the global name `EinsumDense`, and has no hook for
    another class. Exchanged afterwards, the first ones would have drawn their
    weights in vain, and stay among the layers that Keras tracks.

    Args:
        method: `build` or `_make_output_dense` of an attention layer.
        make: Takes the arguments of `EinsumDense`.
    """
    return _with_other_globals(method, EinsumDense=make)


def _with_other_globals(method: Any, **objects: Any) -> Any:
    """A bound method of Keras that finds other objects under some names.

    A copy of the function with globals of its own: to put others into the
    module itself, even for a while, would change it for other threads.
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
    """An object that `compile` replaces each time; None before the first."""
    return getattr(model, "_compile_config", None)


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """What `predict` would go through.

    Attributes:
        adapter: Keras' own.
        steps: How many batches at most; None: all.
    """

    adapter: Any
    steps: int | None

    @property
    def is_array(self) -> bool:
        """Whether batches are cut out of arrays."""
        return isinstance(self.adapter, data_adapters.ArrayDataAdapter)

    @property
    def num_batches(self) -> int | None:
        """How many there are; None if that is not known."""
        known = (self.adapter.num_batches, self.steps)
        found: list[int] = [x for x in known if x is not None]
        return min(found, default=None)

    @property
    def num_examples(self) -> int | None:
        """How many rows arrays have; None for all else."""
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
        """The inputs of every batch, as NumPy arrays."""
        self.adapter.on_epoch_begin()
        try:
            iterator = iter(self.adapter.get_numpy_iterator())
            for batch in itertools.islice(iterator, self.num_batches):
                yield keras.utils.unpack_x_y_sample_weight(batch)[0]
        finally:
            self.adapter.on_epoch_end()


def input_batches(x: Any, batch_size: int | None, steps: int | None) -> Any:
    """`Batches` of anything that `predict` takes; None for all else.

    Args:
        x: Arrays, a data set, a generator and so on.
        batch_size: Of arrays; None is for Keras to choose.
        steps: Number of batches; None: all.
    """
    leaves = [leaf for leaf in keras.tree.flatten(x) if leaf is not None]
    # Keras would look for the examples along an axis that is not there.
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
