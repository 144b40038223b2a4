"""What a model tells of its outputs: last activations and compiled losses."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import keras

from keras_vd._backend.keras_internals import (
    RESHAPING_OPERATIONS,
    SOFTMAX_OPERATIONS,
    UNARY_OPERATIONS,
    Call,
    functional_part,
    graph_calls,
    loss_options,
)
from keras_vd.losses import GaussianNLL

# Of losses that take one probability per output: binary or multi-label.
PER_OUTPUT = "per output"

_TASK_OF_LOSS = {
    "GaussianNLL": "regression",
    "BinaryCrossentropy": PER_OUTPUT,
    "BinaryFocalCrossentropy": PER_OUTPUT,
    "CategoricalCrossentropy": "classification",
    "CategoricalFocalCrossentropy": "classification",
    "CategoricalGeneralizedCrossEntropy": "classification",
    "SparseCategoricalCrossentropy": "classification",
    "MeanSquaredError": "regression",
    "MeanAbsoluteError": "regression",
    "MeanAbsolutePercentageError": "regression",
    "MeanSquaredLogarithmicError": "regression",
    "LogCosh": "regression",
    "Huber": "regression",
    "Poisson": "regression",
}
_TASK_OF_FUNCTION = {
    "binary_crossentropy": PER_OUTPUT,
    "binary_focal_crossentropy": PER_OUTPUT,
    "categorical_crossentropy": "classification",
    "categorical_focal_crossentropy": "classification",
    "categorical_generalized_cross_entropy": "classification",
    "sparse_categorical_crossentropy": "classification",
    "mean_squared_error": "regression",
    "mean_absolute_error": "regression",
    "mean_absolute_percentage_error": "regression",
    "mean_squared_logarithmic_error": "regression",
    "log_cosh": "regression",
    "huber": "regression",
    "poisson": "regression",
}

# Layers whose outputs are those of their `activation`.
_ACTIVATED = (
    keras.layers.Activation,
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)
# Layers and operations that change no value at inference.
_NEUTRAL = (
    keras.layers.ActivityRegularization,
    keras.layers.AlphaDropout,
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.Identity,
    keras.layers.Reshape,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    *RESHAPING_OPERATIONS,
)
_WRAPPERS = (keras.layers.SpectralNormalization, keras.layers.TimeDistributed)
_ACTIVATIONS = {
    function: name
    for name in ("linear", "sigmoid", "softmax", "log_softmax")
    for module in (keras.activations, keras.ops)
    if (function := getattr(module, name, None)) is not None
}
_SOFTMAX = {
    keras.layers.Softmax: "softmax",
    SOFTMAX_OPERATIONS["Softmax"]: "softmax",
    SOFTMAX_OPERATIONS["LogSoftmax"]: "log_softmax",
}


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What a model tells of one output; each entry may be None.

    Attributes:
        activation: "linear", "sigmoid", "softmax" or "log_softmax".
        loss_task: A task, or `PER_OUTPUT`.
        loss_logits: Whether the loss takes logits.
        loss_axis: The axis of the classes that the loss reads.
        loss: What was compiled, for messages.
    """

    activation: str | None
    loss_task: str | None
    loss_logits: bool | None
    loss_axis: int | None
    loss: Any


def read_evidence(model: keras.Model, index: int, loss: Any) -> Evidence:
    """Collect what a model tells of an output.

    Args:
        model: The model, whose last activations are looked at.
        index: Index of the output among the leaves.
        loss: What was compiled for it.
    """
    activation = _last_activation(model, index)
    return Evidence(activation, *_read_loss(loss), loss)


def losses_of(model: keras.Model, outputs: Any) -> list[Any]:
    """List the loss that was compiled for each output, in the order of leaves.

    A loss is whatever `compile` was given: an object, a function or a name.
    """
    loss = getattr(model, "loss", None)
    paths = keras.tree.flatten_with_path(outputs)
    if not keras.tree.is_nested(loss):
        return [loss] * len(paths)
    if isinstance(loss, dict) and not isinstance(outputs, dict):
        names = getattr(model, "output_names", None) or list(loss)
        loss = [loss.get(name) for name in names]
    if isinstance(loss, (list, tuple)) and len(loss) == len(paths):
        return list(loss)
    return [functools.reduce(_entry, path, loss) for path, _ in paths]


def _entry(losses: Any, key: Any) -> Any:
    if not keras.tree.is_nested(losses):
        return losses
    try:
        return losses[key]
    except (KeyError, IndexError, TypeError):
        return None


def _read_loss(loss: Any) -> tuple[str | None, bool | None, int | None]:
    """Read the task of a loss, whether it takes logits, and its class axis.

    What the loss does not tell is None.
    """
    options: dict[str, Any] = {}
    if isinstance(loss, str):
        loss = _known_loss(loss)
    if isinstance(loss, functools.partial):
        loss, options = loss.func, loss.keywords
    if isinstance(loss, keras.losses.Loss):
        names = [
            base.__name__
            for base in type(loss).__mro__
            if base is GaussianNLL
            or getattr(keras.losses, base.__name__, None) is base
        ]
        tasks = [_TASK_OF_LOSS[name] for name in names if name in _TASK_OF_LOSS]
        task = tasks[0] if tasks else None
        options = loss_options(loss)
    else:
        task = next(
            (
                task
                for name, task in _TASK_OF_FUNCTION.items()
                if getattr(keras.losses, name, None) is loss
            ),
            None,
        )
    if task is None:
        return None, None, None
    is_logits = bool(options.get("from_logits", False))
    return task, is_logits, options.get("axis")


def _known_loss(name: str) -> Any:
    try:
        return keras.losses.get(name)
    except ValueError:  # a name of an object scope that has been left
        return None


def _last_activation(model: keras.Model, index: int) -> str | None:
    """Find the last activation of an output; None if it cannot be told."""
    functional = functional_part(model)
    if functional is None:
        return None
    makers = {
        id(tensor): (call, i)
        for call in graph_calls(functional)
        for i, tensor in enumerate(call.outputs)
    }
    return _activation_before(functional.outputs[index], makers)


def _activation_before(
    tensor: keras.KerasTensor, makers: dict[int, tuple[Call, int]]
) -> str | None:
    """Find the last activation of a symbolic tensor, or None.

    Args:
        tensor: A tensor in the graph of a Functional model.
        makers: By id of a tensor, the call that returns it and the index of the
            tensor among the outputs of that call.
    """
    call, index = makers[id(tensor)]
    operation = call.operation
    if isinstance(operation, _WRAPPERS):
        operation = operation.layer
    if isinstance(operation, keras.Model):
        return _last_activation(operation, index)
    found = _activation_of(operation, len(tensor.shape))
    if not _is_neutral(operation, found):
        return found
    leaves = keras.tree.flatten((call.args, call.kwargs))
    sources = [x for x in leaves if isinstance(x, keras.KerasTensor)]
    if len(sources) != 1:  # for example, a tensor and its mask
        return None
    found = _activation_before(sources[0], makers)
    is_whole = sources[0].shape[-1:] == tensor.shape[-1:]
    # If the last axis has changed, the axis of a softmax may be another one, or
    # may have been split.
    return found if is_whole or found in ("linear", "sigmoid") else None


def _is_neutral(operation: Any, activation: str | None) -> bool:
    """Tell whether an operation returns the values that it gets."""
    is_identity = isinstance(operation, keras.layers.Activation)
    return isinstance(operation, _NEUTRAL) or (
        is_identity and activation == "linear"
    )


def _activation_of(operation: Any, rank: int) -> str | None:
    """Return the activation that a layer or an operation ends in, if known.

    Args:
        operation: A layer or an operation in the graph of a model.
        rank: Number of axes of its output.
    """
    if isinstance(operation, UNARY_OPERATIONS["Sigmoid"]):
        return "sigmoid"
    for kind, name in _SOFTMAX.items():
        if isinstance(operation, kind):
            return name if operation.axis in (-1, rank - 1) else None
    # A subclass may do anything in a `call` of its own.
    is_ours = type(operation).__module__.split(".")[0] in ("keras", "keras_vd")
    if not is_ours or not isinstance(operation, _ACTIVATED):
        return None
    activation = operation.activation
    return "linear" if activation is None else _ACTIVATIONS.get(activation)
