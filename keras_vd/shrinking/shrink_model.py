"""Shrink a plain model physically without changing its predictions."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, overload

import keras

from keras_vd._backend.keras_internals import (
    flatten_layers,
    functional_part,
    graph_calls,
)
from keras_vd._backend.validation import (
    NOT_BUILT,
    check_integer,
    check_number,
    check_plain_model,
)
from keras_vd.conversion.cloning import NotRebuiltError, copy_model
from keras_vd.conversion.comparing import largest_difference
from keras_vd.conversion.fine_tuning import refreeze_zeros
from keras_vd.conversion.functional import Written, written_out
from keras_vd.conversion.in_place import keeps_class
from keras_vd.rules.costs import count_macs
from keras_vd.rules.graph import read_graph
from keras_vd.shrinking.analysis import Plan, make_plan
from keras_vd.shrinking.by_config import resize_unknown, resized
from keras_vd.shrinking.reasons import find_reasons, full_name
from keras_vd.shrinking.rebuild import rebuild
from keras_vd.shrinking.report import LayerRow, ShrinkReport, ZeroedRow
from keras_vd.shrinking.trials import StaysWholeError
from keras_vd.shrinking.zeroing import set_to_zero


@overload
def shrink(
    model: keras.Model,
    gather_inputs: bool | None = None,
    return_report: Literal[False] = False,
    verbose: int = 1,
    tolerance: float = 0.0,
    round_to: int = 1,
) -> keras.Model: ...
@overload
def shrink(
    model: keras.Model,
    gather_inputs: bool | None = None,
    *,
    return_report: Literal[True],
    verbose: int = 1,
    tolerance: float = 0.0,
    round_to: int = 1,
) -> tuple[keras.Model, ShrinkReport]: ...
def shrink(
    model: keras.Model,
    gather_inputs: bool | None = None,
    return_report: bool = False,
    verbose: int = 1,
    tolerance: float = 0.0,
    round_to: int = 1,
) -> keras.Model | tuple[keras.Model, ShrinkReport]:
    """Remove from a plain model what its predictions do not depend on.

    These are input features, units, channels, hidden units and columns of an
    embedding that are zero, constant or not read by anything, and rows of an
    embedding that are the same for several words. Constants end up in the
    biases of the layers that read them, or, in front of a padded convolution,
    in the kernel of one channel of ones. Predictions stay as they are, to 1e-5,
    and so do inputs and outputs. A layer for which there is no rule is kept
    whole; the report says which, and why.

    That may be a layer made of layers that cannot be written out, such as a
    block of GPT-2 in KerasHub, or one with weights of its own. It is rebuilt
    from its `get_config` with fewer hidden units, or groups of heads, if a
    number of its config counts just those and, called on random inputs, it
    then returns what it did before.

    Nested models are written out: their layers become layers of the result.
    A Sequential model that uses a layer twice, or gets a channel of ones,
    comes back as a Functional one. A model of a class of its own that has a
    layer that no config can describe is rebuilt as a whole, from the config
    of its class, with the numbers that suit all of its layers.
    A layer of a subclass that only adapts a constructor comes back, where it
    gets smaller, as the Keras layer that it extends. Keras 3.10 refuses inputs
    that nothing reads: there, a channel of each stays.

    Args:
        model: A built model of plain Keras layers; not changed. Subclassed
            models and layers made of layers are written out, see
            `to_functional`.
        gather_inputs: Whether to leave out dead input features, and dead
            entries of what a Flatten or LayerNormalization makes, at the cost
            of picking out the others. None: where at least half of them are
            dead.
        return_report: Whether to return the report as well.
        verbose: 1 to print the report, 0 not to.
        tolerance: Trained weights whose absolute value is at most this count
            as zero, and are zero in the result. With a tolerance above 0
            predictions change; the report tells which weights were not zero
            before, and how far predictions move for some random inputs.
        round_to: The number of outputs that a layer keeps is rounded up to a
            multiple of this, for hardware that prefers such numbers, but never
            above the number that it has. Dead outputs are kept to that end.

    Returns:
        A new model, not compiled, or with `return_report` the model and its
        `ShrinkReport`. A model with nothing to remove comes back as a copy.

    Raises:
        TypeError: if `model` is no Keras model, `tolerance` no number or
            `round_to` no integer.
        ValueError: if the model is not built, cannot be written out, or has
            layers of `keras_vd` or weights that are not finite; if `tolerance`
            is negative or not finite, or `round_to` less than 1.

    Example:
    >>> model = keras.Sequential([
    ...     keras.Input((3,)),
    ...     keras.layers.Dense(4, activation="relu"),
    ...     keras.layers.Dense(2),
    ... ])
    >>> kernel, bias, *others = model.get_weights()
    >>> kernel[:, 1:] = 0  # units that read nothing
    >>> model.set_weights([kernel, bias, *others])
    >>> small = keras_vd.shrink(model, verbose=0)
    >>> [layer.units for layer in small.layers]
    [1, 2]
    """
    tolerance = check_number("tolerance", tolerance, 0.0)
    round_to = check_integer("round_to", round_to, 1)
    check_plain_model(model)
    try:
        smaller, report = _shrunk(model, gather_inputs, tolerance, round_to)
    except NotRebuiltError as error:
        if not keeps_class(model):
            raise
        smaller, report = _shrunk_as_a_whole(
            model, tolerance, round_to, error.reason
        )
    if verbose:
        print(str(report))
    return (smaller, report) if return_report else smaller


def _shrunk(
    model: keras.Model,
    gather_inputs: bool | None,
    tolerance: float,
    round_to: int,
) -> tuple[keras.Model, ShrinkReport]:
    """Shrink a model layer by layer."""
    with written_out(model, flat=_shares_with_nested(model)) as written:
        original = _checked(written)
        sparser, zeroed = original, tuple[ZeroedRow, ...]()
        if tolerance:
            sparser = copy_model(original)
            zeroed = set_to_zero(sparser, tolerance)
        smaller, report = _removed(sparser, gather_inputs, round_to)
        return smaller, _with_zeroed(
            report, tolerance, zeroed, original, smaller
        )


def _shrunk_as_a_whole(
    model: keras.Model, tolerance: float, round_to: int, error: str
) -> tuple[keras.Model, ShrinkReport]:
    """Shrink a model by the numbers in its own config.

    Args:
        model: The model.
        tolerance: As in `shrink`.
        round_to: Likewise.
        error: Which layer cannot be rebuilt.
    """
    sparser = copy_model(model, keeps_class)
    zeroed = set_to_zero(sparser, tolerance) if tolerance else ()
    reason = f"the model is rebuilt by its own config, since {error}"
    try:
        smaller, layers = resized(sparser, round_to)
    except StaysWholeError as stays:
        smaller, layers = sparser, None
        reason = f"{reason}, and {stays}"
    graph = read_graph(functional_part(sparser))
    whole = {id(node.operation): reason for node in graph.nodes}
    plan = make_plan(graph, False, whole, round_to=round_to)
    report = _report(plan, sparser, smaller, layers)
    shrunk = {x.name for x in report.rows if x.kept_parameters < x.parameters}
    report = dataclasses.replace(
        report,
        kept_whole={
            k: v for k, v in report.kept_whole.items() if k not in shrunk
        },
    )
    return smaller, _with_zeroed(report, tolerance, zeroed, model, smaller)


def _with_zeroed(
    report: ShrinkReport,
    tolerance: float,
    zeroed: tuple[ZeroedRow, ...],
    original: keras.Model,
    smaller: keras.Model,
) -> ShrinkReport:
    return dataclasses.replace(
        report,
        tolerance=tolerance,
        zeroed=zeroed,
        difference=largest_difference(original, smaller) if zeroed else None,
    )


def _shares_with_nested(model: keras.Model) -> bool:
    """Tell whether a nested model has a layer that something else has, too.

    Keras would write the weights of such a layer once, and look for them twice.
    """
    graphs = {
        id(graph): graph
        for graph in map(functional_part, flatten_layers(model))
        if graph is not None
    }
    owned = [
        {
            id(call.operation)
            for call in graph_calls(graph)
            if getattr(call.operation, "weights", None)
        }
        for graph in graphs.values()
    ]
    return sum(map(len, owned)) > len(set[int]().union(*owned))


def _checked(written: Written) -> keras.Model:
    """Return the model to read, or raise an error with advice."""
    model = written.model
    if functional_part(model) is not None:
        return model
    if not model.built or isinstance(model, keras.Sequential):
        raise ValueError(NOT_BUILT.format(name=model.name))
    raise ValueError(
        "Argument `model` must be a model whose layers and connections are "
        f"known. '{model.name}' computes in a `call` of its own, that of "
        f"{type(model).__name__}, which cannot be written out: "
        f"{written.reasons[id(model)]}."
    )


def _removed(
    model: keras.Model, gather_inputs: bool | None, round_to: int
) -> tuple[keras.Model, ShrinkReport]:
    """Remove what has no effect at all."""
    graph = read_graph(functional_part(model))
    plan = make_plan(graph, gather_inputs, round_to=round_to)
    resize_unknown(plan)
    if plan.is_unchanged:
        smaller, layers = copy_model(model), None
    else:
        smaller, layers = rebuild(plan, model)
        refreeze_zeros(smaller)
    return smaller, _report(plan, model, smaller, layers)


def _report(
    plan: Plan,
    model: keras.Model,
    smaller: keras.Model,
    layers: dict[int, Any] | None,
) -> ShrinkReport:
    rows = []
    for key, rule in plan.rules.items():
        old = rule.layer
        if not isinstance(old, keras.layers.Layer) or not old.weights:
            continue
        new = old if layers is None else layers.get(key)
        after = new.count_params() + rule.added_parameters if new else 0
        (kept_inputs, inputs), (kept_outputs, outputs) = (
            rule.inputs_kept,
            rule.outputs_kept,
        )
        rows.append(
            LayerRow(
                full_name(rule),
                type(old).__name__,
                inputs=inputs,
                kept_inputs=kept_inputs,
                outputs=outputs,
                kept_outputs=kept_outputs,
                filled_outputs=plan.filled[rule.output],
                parameters=old.count_params(),
                kept_parameters=after,
            )
        )
    return ShrinkReport(
        rows=tuple(rows),
        kept_whole=find_reasons(plan),
        parameters=model.count_params(),
        kept_parameters=smaller.count_params(),
        macs=count_macs(model),
        kept_macs=count_macs(smaller),
        round_to=plan.round_to,
    )
