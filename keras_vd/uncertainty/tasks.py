"""What a model's outputs are: classes, labels or numbers."""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any

import keras

from keras_vd._backend.validation import check_choice
from keras_vd.uncertainty.evidence import (
    PER_OUTPUT,
    Evidence,
    losses_of,
    read_evidence,
)
from keras_vd.uncertainty.noise import Noise, read_noise

TASKS = ("classification", "binary", "multi-label", "regression")

# Whether these activations return logits. A softmax of log probabilities gives
# the probabilities back.
_IS_LOGITS = {
    "linear": True,
    "log_softmax": True,
    "sigmoid": False,
    "softmax": False,
}


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What one output is.

    Attributes:
        task: One of `TASKS`.
        from_logits: Whether it is logits, to be turned into probabilities.
        noise: What is known of the noise of targets; None for classes.
    """

    task: str
    from_logits: bool
    noise: Noise = None


def meanings(
    model: keras.Model,
    outputs: Any,
    task: Any,
    from_logits: Any,
    noise: Any = None,
) -> list[Meaning]:
    """Find out what each output of a model is, in the order of the leaves.

    Args:
        model: Where to look for what the user has left open.
        outputs: Objects with a `shape`, in the structure of the outputs.
        task: As the user passed it.
        from_logits: As the user passed it.
        noise: As the user passed it.

    Raises:
        TypeError: if `noise` is of no type that is allowed.
        ValueError: if what an output is cannot be told, is not allowed or is
            contradictory.
    """
    found = zip(
        keras.tree.flatten(outputs),
        by_output("task", task, outputs),
        by_output("from_logits", from_logits, outputs),
        by_output("noise", noise, outputs),
        losses_of(model, outputs),
        strict=True,
    )
    results = []
    for i, (leaf, one_task, is_logits, stddev, loss) in enumerate(found):
        shape, evidence = tuple(leaf.shape), read_evidence(model, i, loss)
        if one_task is None and callable(stddev):
            one_task = "regression"
        try:
            meaning = _meaning(shape, one_task, is_logits, evidence)
            results.append(_with_noise(meaning, stddev, loss, shape))
        except ValueError as error:
            count = len(keras.tree.flatten(outputs))
            where = f"Output {i + 1} of {count}: " if count > 1 else ""
            raise ValueError(f"{where}{error}") from None
    return results


def by_output(argument: str, value: Any, outputs: Any) -> list[Any]:
    """List an argument's entries, one per output, in the order of the leaves.

    Args:
        argument: Name of the argument, for the message.
        value: What the user passed: one entry, which all outputs share, or a
            structure of them.
        outputs: The outputs, in their structure.

    Raises:
        ValueError: if the structure does not fit the outputs.
    """
    leaves = keras.tree.flatten(outputs)
    if not keras.tree.is_nested(outputs):
        return [value]
    is_one = isinstance(value, (bool, str, numbers.Real)) or callable(value)
    if value is None or is_one:
        return [value] * len(leaves)
    try:
        # An entry may be a list, which must not be flattened. The function is
        # not called in the order of the leaves.
        boxes = keras.tree.map_structure_up_to(
            outputs, lambda _, entry: lambda: entry, outputs, value
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"Argument `{argument}` must have one entry for each output of the "
            f"model, structured like these. Received: {argument}={value!r}."
        ) from error
    return [box() for box in keras.tree.flatten(boxes)]


def _meaning(
    shape: tuple[int, ...],
    task: str | None,
    from_logits: bool | None,
    evidence: Evidence,
) -> Meaning:
    if from_logits is not None and not isinstance(from_logits, bool):
        raise ValueError(
            "Argument `from_logits` must be True, False or None. Received: "
            f"from_logits={from_logits!r}."
        )
    columns = shape[-1] if len(shape) > 1 else 1
    if task is None:
        task = _task_of(evidence, columns)
    check_choice("task", task, TASKS)
    _check_task(task, evidence, columns)
    _check_shape(task, shape, columns)
    if task == "classification" and evidence.loss_axis is not None:
        if evidence.loss_axis % len(shape) != len(shape) - 1:
            raise ValueError(
                "Classes must be on the last axis of the outputs, which have "
                f"the shape {shape}. The compiled loss, "
                f"{_named(evidence.loss)}, has them on axis "
                f"{evidence.loss_axis}: move it to the end, as by "
                "`keras.layers.Permute`."
            )
    if task != "regression":
        return Meaning(task, _are_logits(task, from_logits, evidence))
    if from_logits:
        raise ValueError(
            "Argument `from_logits` is for probabilities, and these outputs "
            "are a regression. If they are not, pass `task=`, one of "
            f"{list(TASKS)}. Received: from_logits=True."
        )
    return Meaning(task, False)


def _with_noise(
    meaning: Meaning, noise: Any, loss: Any, shape: tuple[int, ...]
) -> Meaning:
    if meaning.task == "regression":
        found = read_noise(noise, loss, shape)
        return dataclasses.replace(meaning, noise=found)
    if noise is not None:
        raise ValueError(
            "Argument `noise` is for the targets of a regression, and the task "
            f"is {meaning.task!r}. Received: noise={noise!r}."
        )
    return meaning


def _task_of(evidence: Evidence, columns: int) -> str:
    """Return the task that a model's own activation or loss tells."""
    if evidence.activation in ("softmax", "log_softmax"):
        return "classification"
    task = evidence.loss_task
    # The loss first: a regression may end in a sigmoid, too.
    if task is None and evidence.loss is None:
        task = PER_OUTPUT if evidence.activation == "sigmoid" else None
    if task is None:
        raise ValueError(
            "Argument `task` must be given for this model, one of "
            f"{list(TASKS)}: neither its last activation "
            f"({evidence.activation or 'not known'}) nor its compiled loss "
            f"({_named(evidence.loss)}) tells what its outputs are."
        )
    return _by_columns(task, columns)


def _by_columns(task: str, columns: int) -> str:
    if task != PER_OUTPUT:
        return task
    return "binary" if columns == 1 else "multi-label"


def _check_task(task: str, evidence: Evidence, columns: int) -> None:
    """Raise a ValueError if the model contradicts a task."""
    activation, loss_task = evidence.activation, evidence.loss_task
    if task == "regression":
        return  # scores, or shares that sum to 1: any activation may be last
    # What contradicts the task, and the task that it stands for instead.
    problem = expected = None
    if activation in ("softmax", "log_softmax"):
        problem, expected = f"last activation, {activation!r}", "classification"
    elif activation == "sigmoid" and task == "classification" and columns > 1:
        problem, expected = "last activation, 'sigmoid'", "multi-label"
    elif loss_task not in (None, "regression"):
        problem = f"compiled loss, {_named(evidence.loss)}"
        expected = _by_columns(str(loss_task), columns)
    # One column may be a class of two, or the only label of a multi-label task.
    is_per_output = {expected, task} == {"binary", "multi-label"}
    if expected not in (None, task) and not is_per_output:
        raise ValueError(
            f"Task {task!r} does not go with the model's {problem}: that is "
            f"{expected!r}. Argument `task` must be one of {list(TASKS)} that "
            "does."
        )


def _check_shape(task: str, shape: tuple[int, ...], columns: int) -> None:
    if task == "classification" and columns == 1:
        raise ValueError(
            "Task 'classification' is for outputs of shape (examples, ..., "
            "classes) of two classes or more. For one column, the probability "
            "of class 1 of two, pass `task='binary'`. Received outputs of "
            f"shape {shape}."
        )
    if task == "binary" and columns != 1:
        raise ValueError(
            "Task 'binary' is for outputs of one column. For one label out of "
            "several pass `task='classification'`, for several independent "
            "ones `task='multi-label'`. Received outputs of shape "
            f"{shape}."
        )
    if task == "multi-label" and len(shape) < 2:
        raise ValueError(
            "Task 'multi-label' is for outputs of shape (examples, ..., "
            f"labels). Received outputs of shape {shape}."
        )


def _are_logits(
    task: str, from_logits: bool | None, evidence: Evidence
) -> bool:
    by_activation = _IS_LOGITS.get(evidence.activation or "")
    by_loss = evidence.loss_logits
    sources = (
        f"the last activation ({evidence.activation or 'not known'}) and the "
        f"compiled loss ({_named(evidence.loss)})"
    )
    if from_logits is None:
        if by_activation is None and by_loss is None:
            raise ValueError(
                "Argument `from_logits` must be given for this model, True or "
                f"False: {sources} do not tell whether its outputs are logits."
            )
        if by_activation is not None and by_loss not in (None, by_activation):
            raise ValueError(
                f"Argument `from_logits` must be given for this model: "
                f"{sources} contradict each other as to whether its outputs "
                "are logits."
            )
        return bool(by_loss if by_activation is None else by_activation)
    # A linear layer may return probabilities; a softmax never returns logits.
    is_refuted = by_activation is False and from_logits
    is_supported = by_activation is from_logits
    if is_refuted or (by_loss is (not from_logits) and not is_supported):
        raise ValueError(
            f"Argument `from_logits` is {from_logits}, which contradicts "
            f"{sources} of this model (task {task!r})."
        )
    return from_logits


def _named(loss: Any) -> str:
    if loss is None:
        return "none"
    name = getattr(loss, "__name__", None) or getattr(loss, "name", None)
    return repr(name or loss)
