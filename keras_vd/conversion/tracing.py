"""Find the parts of composite layers, and record how these call them.

A composite is a layer that a user has made of other layers. Its `call` is run
on symbolic tensors, once as in training and once as at inference.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import random
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import (
    Call,
    CustomScaleLayer,
    calls_to,
    count_calls,
    extended,
    flatten_layers,
    forget_calls_from_now,
    functional_part,
    mask_of,
    no_outer_call,
    own_variables,
    recorded_call,
    replaced_methods,
    set_mask,
    stateless_scope,
    sublayers,
)
from keras_vd.layers.base import VariationalLayer
from keras_vd.layers.structured import StructuredGate
from keras_vd.posteriors.posterior import Posterior

_WHOLE = (VariationalLayer, StructuredGate, Posterior)
# What Keras' random functions keep, in layers and globally.
_SEED = "seed_generator_state"
_RANDOM = (
    "it draws random numbers: use layers such as `keras.layers.Dropout` for "
    "that"
)


class Untraceable(Exception):
    """The call of a layer cannot be written out; the message says why."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """What a composite calls.

    Attributes:
        tensors: Arguments and their masks, by the `id` of the symbolic tensors
            that stand for them in the calls.
        constants: Arrays, likewise, where a part is called on nothing but
            arrays.
        calls: The calls of parts and operations, without the value of
            `training` that the caller hands on.
        outputs: What the composite returns.
        masks: The masks that come with it, flattened.
    """

    tensors: dict[int, keras.KerasTensor]
    constants: dict[int, np.ndarray]
    calls: list[Call]
    outputs: Any
    masks: list[Any]


def is_composite(layer: Any) -> bool:
    """Tell whether a layer has parts, and a `call` of the user's for them.

    What Keras' own InceptionResNetV2 has for a sum is taken apart as well.
    """
    if type(layer) is CustomScaleLayer:
        return True
    if isinstance(layer, _WHOLE) or not isinstance(layer, keras.layers.Layer):
        return False
    cls = type(layer)
    base = extended(cls, "keras")
    maker = next(x for x in cls.__mro__ if "call" in vars(x))
    return (
        maker.__module__.split(".")[0] not in ("keras", "keras_vd")
        and (
            base in (keras.layers.Layer, keras.layers.Wrapper)
            or issubclass(base, keras.Model)
        )
        and functional_part(layer) is None
        and bool(sublayers(layer))
    )


def refusal(layer: keras.layers.Layer) -> str | None:
    """Return why a composite is not even traced; None if it may be."""
    own = [variable.name for variable in own_variables(layer)]
    if own:
        return (
            f"it has weights of its own, {own}: put them into a layer that it "
            "calls"
        )
    if layer.activity_regularizer is not None:
        return "it has an activity regularizer: give it to a layer inside"
    below = flatten_layers(layer)[1:]
    if not layer.trainable and any(x.trainable and x.weights for x in below):
        return "it is frozen, and layers inside it are not: freeze those"
    if type(layer).__call__ is not keras.layers.Layer.__call__:
        return "its class overrides `__call__`: override `call`"
    return None


def trace(layer: keras.layers.Layer, args: Any, kwargs: Any) -> Trace:
    """Record what a composite calls for symbolic arguments.

    The layers in it forget these calls again.

    Raises:
        Untraceable: if a Functional model of its parts would differ from it.
    """
    stand_ins: dict[int, keras.KerasTensor] = {}
    tensors: dict[int, keras.KerasTensor] = {}

    def stand_in(value: Any) -> Any:
        if not isinstance(value, keras.KerasTensor):
            return value
        if id(value) not in stand_ins:
            new = keras.KerasTensor(value.shape, value.dtype, value.sparse)
            stand_ins[id(value)] = new
            tensors[id(new)] = value
            if mask_of(value) is not None:
                set_mask(new, stand_in(mask_of(value)))
        return stand_ins[id(value)]

    args, kwargs = keras.tree.map_structure(stand_in, (args, kwargs))
    kwargs.pop("training", None)
    watched = [
        _Recorder(layer).record(args, {**kwargs, "training": training})
        for training in (False, True)
    ]
    calls = _calls_in_both(*watched)
    (constants, _, outputs, masks), _ = watched
    return Trace(tensors, constants, calls, outputs, masks)


# Constants, calls, outputs and masks of one recording.
_Recording = tuple[dict[int, Any], list[Call], Any, list[Any]]


class _Scope(keras.StatelessScope):
    """Notices each variable that code reads or sets outside of its parts.

    Keras computes the shapes of what a part returns in a scope of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.touched: dict[int, Any] = {}

    def get_current_value(self, variable: Any) -> Any:
        self.touched[id(variable)] = variable
        return super().get_current_value(variable)


class _Recorder:
    """One run of a composite on symbolic tensors."""

    def __init__(self, layer: keras.layers.Layer) -> None:
        self.layer = layer
        self.scope = _Scope()
        self.below = flatten_layers(layer)[1:]
        self.constants: dict[int, Any] = {}
        self.kept_alive: list[Any] = []

    def record(self, args: Any, kwargs: dict[str, Any]) -> _Recording:
        numbers = [count_calls(x) for x in self.below]
        weights = len(self.layer.variables)
        states = _random_states()
        forget = forget_calls_from_now([self.layer, *self.below])
        try:
            with self._patched(), self.scope, no_outer_call():
                outputs = self._outputs(args, kwargs)
            flat = keras.tree.flatten(outputs)
            masks = [mask_of(x) for x in flat]
            calls = calls_to([*flat, *(x for x in masks if x is not None)])
            made = [
                count_calls(x) - number
                for x, number in zip(self.below, numbers, strict=True)
            ]
        finally:
            forget()
        self._check_variables()
        self._check_calls(calls, made)
        if len(self.layer.variables) != weights:
            raise Untraceable("its `call` makes layers: make them in `build`")
        if not _equal(states, _random_states()):
            raise Untraceable(_RANDOM)
        return self.constants, calls, outputs, masks

    def _outputs(self, args: Any, kwargs: dict[str, Any]) -> Any:
        try:
            with _plain_errors():
                outputs = recorded_call(self.layer, args, kwargs)
        except Untraceable:
            raise
        # A user's code may raise anything.
        except Exception as error:
            self._check_variables()
            text, *_ = str(error).strip().splitlines() or [""]
            raise Untraceable(
                "its `call` does not work on symbolic tensors "
                f"({type(error).__name__}: {text}): use `keras.ops` only, "
                "layers for random numbers, and -1 for a size that is None"
            ) from error
        return outputs

    @contextlib.contextmanager
    def _patched(self) -> Iterator[None]:
        methods: list[tuple[Any, str, Callable[..., Any]]] = [
            (self.layer, "add_loss", _refuse_loss)
        ]
        for layer in self.below:
            methods.append((layer, "call", self._symbolic(layer)))
            methods.append(
                (layer, "compute_output_spec", self._at_inference(layer))
            )
        with replaced_methods(methods):
            yield

    def _symbolic(self, layer: keras.layers.Layer) -> Callable[..., Any]:
        """Return a `call` of a part that is recorded for arrays, too."""
        original = layer.call

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if stateless_scope() is not self.scope:
                return original(*args, **kwargs)
            args, kwargs = keras.tree.map_structure(
                self._constant, (args, kwargs)
            )
            flat = keras.tree.flatten((args, kwargs))
            if not any(isinstance(x, keras.KerasTensor) for x in flat):
                return original(*args, **kwargs)
            return layer(*args, **kwargs)

        return call

    def _constant(self, value: Any) -> Any:
        is_array = isinstance(value, np.ndarray) or ops.is_tensor(value)
        if not is_array or isinstance(value, keras.KerasTensor):
            return value
        dtype = keras.backend.standardize_dtype(value.dtype)
        symbolic = keras.KerasTensor(tuple(value.shape), dtype)
        self.constants[id(symbolic)] = ops.convert_to_numpy(value)
        self.kept_alive.append(symbolic)
        return symbolic

    def _at_inference(self, layer: keras.layers.Layer) -> Callable[..., Any]:
        """Return a method that computes shapes as at inference.

        A part may refuse to train, if only for want of a KL weight.
        """
        original = layer.compute_output_spec

        @functools.wraps(original)
        def compute_output_spec(*args: Any, **kwargs: Any) -> Any:
            if stateless_scope() is not self.scope:
                return original(*args, **kwargs)
            if kwargs.get("training"):
                kwargs["training"] = False
            with no_outer_call():
                return original(*args, **kwargs)

        return compute_output_spec

    def _check_variables(self) -> None:
        _check_variables(self.layer, list(self.scope.touched.values()))

    def _check_calls(self, calls: list[Call], made: list[int]) -> None:
        known = {id(x) for x in self.below}
        for call in calls:
            operation = call.operation
            if isinstance(operation, keras.layers.Layer):
                if id(operation) not in known and operation.weights:
                    raise Untraceable(
                        f"its `call` makes '{operation.name}': make it in "
                        "`__init__`"
                    )
                _check_default(operation)
                hidden: list[Any] = []
            else:
                hidden = list(vars(operation).values())
            hidden += keras.tree.flatten((call.args, call.kwargs))
            variables = [x for x in hidden if isinstance(x, keras.Variable)]
            _check_variables(self.layer, variables)
            if any(inspect.isroutine(x) for x in hidden):
                raise Untraceable(
                    f"it passes a function to '{operation.name}', which hides "
                    "what that calls: write it without such operations"
                )
        for layer, number in zip(self.below, made, strict=True):
            used = sum(call.operation is layer for call in calls)
            if used < number:
                raise Untraceable(
                    f"it calls '{layer.name}' without using what that returns"
                )
        _check_default(self.layer)


def _random_states() -> Any:
    """Return the states of the random numbers that Python and NumPy share."""
    # Users' code may draw from this generator.
    return random.getstate(), np.random.get_state()  # noqa: NPY002


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Have Keras hand on the errors of a `call` as they are."""
    if not keras.config.is_traceback_filtering_enabled():
        yield
        return
    keras.config.disable_traceback_filtering()
    try:
        yield
    finally:
        keras.config.enable_traceback_filtering()


def _refuse_loss(loss: Any) -> None:
    raise Untraceable("it adds a loss: add it in a layer without parts")


def _check_default(layer: keras.layers.Layer) -> None:
    parameters = inspect.signature(layer.call).parameters
    if "training" in parameters and parameters["training"].default is True:
        raise Untraceable(
            f"'{layer.name}' trains by default: write `training=None`"
        )


def _check_variables(layer: keras.layers.Layer, variables: list[Any]) -> None:
    """Raise if a composite itself reads variables."""
    owners = {
        id(x): below.name
        for below in flatten_layers(layer)
        for x in own_variables(below)
    }
    for variable in variables:
        if variable.name == _SEED:
            raise Untraceable(_RANDOM)
        if id(variable) in owners:
            raise Untraceable(
                f"it reads '{variable.name}' of '{owners[id(variable)]}' "
                "instead of calling that layer"
            )
        raise Untraceable(
            f"it reads the variable '{variable.path}', which is in no layer "
            "that it calls"
        )


def _calls_in_both(one: _Recording, other: _Recording) -> list[Call]:
    """Return the calls of two recordings, without the value of `training`.

    Args:
        one: The recording at inference.
        other: The recording in training.

    Raises:
        Untraceable: if they differ in anything else.
    """
    differs = Untraceable(
        "it does other things in training than at inference, or in one call "
        "than in the next: let layers such as `keras.layers.Dropout` make the "
        "difference"
    )
    if len(one[1]) != len(other[1]):
        raise differs
    calls = []
    for call, same in zip(one[1], other[1], strict=True):
        if not _same_operation(call.operation, same.operation):
            raise differs
        modes = call.kwargs.get("training"), same.kwargs.get("training")
        if modes not in ((None, None), (False, True)):
            raise Untraceable(
                f"it calls '{call.operation.name}' with training={modes[0]} "
                "whatever it is called with itself: use `trainable=False` in "
                "place of that"
            )
        kwargs = {k: v for k, v in call.kwargs.items() if k != "training"}
        calls.append(dataclasses.replace(call, kwargs=kwargs))
    if not _equal(_described(one), _described(other)):
        raise differs
    return calls


def _described(recording: _Recording) -> Any:
    """Describe a recording, in values that can be compared."""
    constants, calls, outputs, masks = recording
    places: dict[int, Any] = {
        id(tensor): (i, j)
        for i, call in enumerate(calls)
        for j, tensor in enumerate(call.outputs)
    }

    def token(value: Any) -> Any:
        if not isinstance(value, keras.KerasTensor):
            return ("value", value)
        if id(value) in constants:
            return ("value", constants[id(value)])
        return ("tensor", places.get(id(value), id(value)))

    structure = [
        (call.args, {k: v for k, v in call.kwargs.items() if k != "training"})
        for call in calls
    ]
    return keras.tree.map_structure(token, (structure, outputs, masks))


def _same_operation(one: Any, other: Any) -> bool:
    """Tell whether two operations compute the same.

    Operations, and layers that a `call` makes, are new ones in each call.
    """
    if one is other or type(one) is not type(other):
        return one is other
    if isinstance(one, keras.layers.Layer):
        options = one.get_config(), other.get_config()
    else:
        options = vars(one), vars(other)
    public = [
        {k: v for k, v in x.items() if k[0] != "_" and k != "name"}
        for x in options
    ]
    return _equal(*public)


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            _equal(value, other[key]) for key, value in one.items()
        )
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray) or ops.is_tensor(one):
        one, other = ops.convert_to_numpy(one), ops.convert_to_numpy(other)
        return np.array_equal(one, other)
    return bool(one == other)
