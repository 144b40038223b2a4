"""Write subclassed models and composite layers out as Functional models."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import warnings
from collections.abc import Iterator
from typing import Literal, overload

import keras

from keras_vd._backend.keras_internals import (
    extended,
    flatten_layers,
    functional_part,
    overridden,
    own_variables,
)
from keras_vd._backend.validation import check_built, check_model
from keras_vd.conversion.comparing import predict_the_same, trains_otherwise
from keras_vd.conversion.inputs import Types, possible_types
from keras_vd.conversion.report import FunctionalReport
from keras_vd.conversion.writing import Again, Writing

# What a class may override without doing anything that a Functional model of
# its layers does not do.
_IMMATERIAL = {
    *("call", "build", "compute_mask", "compute_output_shape"),
    *("compute_output_spec", "get_build_config", "build_from_config"),
    *("get_compile_config", "compile_from_config", "summary"),
}

_NOT_COMPARED = (
    "Predictions differ from call to call, so they could not be compared."
)


@overload
def to_functional(
    model: keras.Model,
    return_report: Literal[False] = False,
    verbose: int = 1,
) -> keras.Model: ...
@overload
def to_functional(
    model: keras.Model, return_report: Literal[True], verbose: int = 1
) -> tuple[keras.Model, FunctionalReport]: ...
def to_functional(
    model: keras.Model, return_report: bool = False, verbose: int = 1
) -> keras.Model | tuple[keras.Model, FunctionalReport]:
    """Write a model out as a Functional model of the same layers.

    Subclassed models, and layers that a user has made of other layers, at any
    depth, become the calls of their parts. Layers of Keras stay as they are.
    The layers are the same objects, so they share their weights with `model`,
    and predictions are equal to the last bit: they are compared, unless they
    differ from call to call anyway. What cannot be written out stays whole,
    such as a layer with weights of its own; the report says why and what to do.

    `to_variational`, `to_deterministic`, `shrink` and the writers of
    `keras_vd.deployment` do this by themselves.

    Names of layers stay. Where layers of several composites have one name, the
    names of what they are in come first, as in `block_1_dense`; `model` has
    these new names, too. A subclassed model must have been called on data or
    built: the result takes inputs of that shape, but for the number of
    examples. Integer inputs are told by an `Embedding` that reads them.

    Args:
        model: A built Keras model.
        return_report: Whether to return the report as well.
        verbose: 1 to print the report, 0 not to.

    Returns:
        A Functional model, not compiled, or with `return_report` the model and
        its `FunctionalReport`. A Functional model in which there is nothing to
        write out is returned itself.

    Raises:
        TypeError: if `model` is no Keras model.
        ValueError: if it is not built, or is a subclassed model that cannot be
            written out.

    Example:
    >>> class Block(keras.layers.Layer):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.dense = keras.layers.Dense(4)
    ...     def call(self, inputs):
    ...         return inputs + self.dense(inputs)
    >>> model = keras.Sequential([keras.Input((4,)), Block()])
    >>> functional = keras_vd.to_functional(model, verbose=0)
    >>> [type(layer).__name__ for layer in functional.layers]
    ['InputLayer', 'Dense']
    """
    check_model(model)
    check_built(model)
    written = _write(model)
    # The model needs the calls and names from now on.
    written.undo.pop_all()
    reason = written.reasons.get(id(model))
    if reason:
        raise ValueError(
            "Argument `model` must have a `call` that can be written out. "
            f"'{model.name}', of type {type(model).__name__}, cannot: {reason}."
        )
    if verbose:
        print(str(written.report))
    if return_report:
        return written.model, written.report
    return written.model


@dataclasses.dataclass(frozen=True, eq=False)
class Written:
    """A model that was written out.

    Attributes:
        model: The Functional model; the original one if that stays whole, or
            if there was nothing to write out.
        report: What was written out.
        reasons: Why composites stay whole, by their `id`.
        undo: Makes layers forget the calls and names that `model` needs.
    """

    model: keras.Model
    report: FunctionalReport
    reasons: dict[int, str]
    undo: contextlib.ExitStack


@contextlib.contextmanager
def written_out(model: keras.Model, flat: bool = False) -> Iterator[Written]:
    """Write a model out, where that loses nothing, within a context.

    After the context the layers are as they were before. A subclassed model
    with a training step of its own stays, as it would lose that.

    Args:
        model: The model.
        flat: Whether to take nested models apart, too.
    """
    nothing = FunctionalReport(())
    if not model.built:
        yield Written(model, nothing, {}, contextlib.ExitStack())
        return
    written = _write(model, flat)
    with written.undo:
        lost = _left_behind(model) if functional_part(model) is None else []
        if lost and id(model) not in written.reasons:
            names = ", ".join(f"`{name}`" for name in lost)
            reason = (
                f"its class overrides {names}, which a Functional model would "
                "not have: if that does not matter, pass "
                "`keras_vd.to_functional(model)`"
            )
            yield Written(model, nothing, {id(model): reason}, written.undo)
        elif written.report.written_out:
            yield written
        else:
            yield dataclasses.replace(written, model=model)


def _left_behind(model: keras.Model) -> list[str]:
    """List what the class of a model does beyond calling its layers."""
    cls = type(model)
    changed = overridden(cls, extended(cls, "keras"))
    return [x for x in changed if x[0] != "_" and x not in _IMMATERIAL]


def _write(model: keras.Model, flat: bool = False) -> Written:
    """Write a model out; what computes something else then stays whole."""
    nested = set(_nested(model)) if flat else set[int]()
    with warnings.catch_warnings():
        # Keras gives this warning whenever the model is called.
        warnings.filterwarnings("ignore", ".*input with a mask attach")
        writing = _written_with_types(model, {}, nested)
        differences = []
        if not _is_equal(model, writing):
            # What is drawn may be the same by chance.
            if all(predict_the_same(model, model) for _ in range(8)):
                writing = _written_as_far_as_equal(model, writing, nested)
            else:
                differences.append(_NOT_COMPARED)
        differences += _differences(model, writing)
    report = FunctionalReport(tuple(writing.rows.values()), tuple(differences))
    return Written(writing.functional, report, writing.reasons, writing.undo)


def _nested(model: keras.Model) -> list[int]:
    """List the `id`s of the models with a graph that are inside a model."""
    below = flatten_layers(model)[1:]
    own = functional_part(model)
    return [
        id(x) for x in below if x is not own and functional_part(x) is not None
    ]


def _written_as_far_as_equal(
    model: keras.Model, writing: Writing, inlined: set[int]
) -> Writing:
    """Write out composites of those classes only that this does not change.

    Args:
        model: The model.
        writing: What is not equal to it.
        inlined: As of `Writing`.
    """
    found = writing.dissolved
    reason = (
        "its parts, called one by one, compute something else: it depends on "
        "values, on sizes that are None, or on masks that a nested model or "
        "attention changes"
    )
    reasons = dict.fromkeys(found, reason)
    for kind in dict.fromkeys(map(type, found.values())):
        tried = {k: v for k, v in reasons.items() if type(found[k]) is not kind}
        writing.undo.close()
        writing = _written_with_types(model, tried, inlined)
        if _is_equal(model, writing):
            reasons = tried
    writing.undo.close()
    return _written_with_types(model, reasons, inlined)


def _is_equal(model: keras.Model, writing: Writing) -> bool:
    return not writing.dissolved or predict_the_same(model, writing.functional)


def _differences(model: keras.Model, writing: Writing) -> list[str]:
    """List what a subclassed model does in another way than the result."""
    if id(model) not in writing.dissolved:
        return []
    kind = type(model).__name__
    found = [f"`{x}` of {kind} is left behind." for x in _left_behind(model)]
    used = {id(x) for x in writing.functional.variables}
    unused = [
        x.name
        for x in flatten_layers(model)
        if any(id(variable) not in used for variable in own_variables(x))
    ]
    if unused:
        found.append(f"Layers that `call` does not use are gone: {unused}.")
    is_told = "training" in inspect.signature(model.call).parameters
    if not is_told and trains_otherwise(writing.functional):
        found.append(
            f"In `fit`, layers are told that they train. The `call` of {kind} "
            "has no argument `training`, so there they were told not."
        )
    return found


def _written_with_types(
    model: keras.Model, reasons: dict[int, str], inlined: set[int]
) -> Writing:
    """Write a model out, and find out the types of its inputs."""
    if functional_part(model) is not None:
        return _settled(model, reasons, inlined, ())
    choices = possible_types(model)
    for dtypes in choices:
        writing = _settled(model, reasons, inlined, dtypes)
        if id(model) not in writing.reasons:
            found = writing.types_read(dtypes)
            if found == dtypes:
                return writing
            choices = [found]
            break
        writing.undo.close()
    writing.undo.close()
    return _settled(model, reasons, inlined, choices[0])


def _settled(
    model: keras.Model,
    reasons: dict[int, str],
    inlined: set[int],
    dtypes: Types,
) -> Writing:
    """Write a model out, again and again until no more has to stay whole."""
    reasons, inlined = dict(reasons), set(inlined)
    while True:
        writing = Writing(model, reasons, inlined)
        try:
            writing.run(dtypes)
            return writing
        except Again:
            writing.undo.close()
