"""Shrink a variational model in place, so that it can be trained on."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Container
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import (
    Call,
    adopt_sizes,
    forget_functions,
    functional_part,
    graph_calls,
    is_used_elsewhere,
    known_to_optimizer,
    optimizer_slots,
    own_variables,
    refresh_shapes,
    register_variables,
    resize_variable,
)
from keras_vd.conversion.deterministic import to_deterministic
from keras_vd.layers.base import VariationalLayer
from keras_vd.layers.structured import StructuredGate
from keras_vd.posteriors.clipping import Clipped
from keras_vd.rules.embedding import EmbeddingRule
from keras_vd.rules.graph import read_graph
from keras_vd.rules.recurrent import GATES, RecurrentRule
from keras_vd.rules.rule import Rule
from keras_vd.shrinking.analysis import Plan, make_plan

# What runs along the axes of weights, counted from the last axis; None is what
# never shrinks. "gates" are the units, once for each gate.
Axes = dict[str, tuple[str | None, ...]]
_CONV: Axes = {"kernel": ("input", "output"), "bias": ("output",)}
_TRANSPOSED: Axes = {"kernel": ("output", "input"), "bias": ("output",)}
_DEPTHWISE: Axes = {"kernel": ("input", None), "bias": ("output",)}
_SEPARABLE: Axes = {
    "depthwise_kernel": ("input", None),
    "pointwise_kernel": ("products", "output"),
    "bias": ("output",),
}
_RECURRENT: Axes = {
    "kernel": ("input", "gates"),
    "recurrent_kernel": ("output", "gates"),
    "bias": ("gates",),
}
_NORMALIZATION: Axes = {
    name: ("input",)
    for name in ("gamma", "beta", "moving_mean", "moving_variance")
}
_WEIGHTS: dict[type, Axes] = {
    keras.layers.Dense: _CONV,
    keras.layers.Conv1D: _CONV,
    keras.layers.Conv2D: _CONV,
    keras.layers.Conv3D: _CONV,
    keras.layers.Conv1DTranspose: _TRANSPOSED,
    keras.layers.Conv2DTranspose: _TRANSPOSED,
    keras.layers.Conv3DTranspose: _TRANSPOSED,
    keras.layers.DepthwiseConv1D: _DEPTHWISE,
    keras.layers.DepthwiseConv2D: _DEPTHWISE,
    keras.layers.SeparableConv1D: _SEPARABLE,
    keras.layers.SeparableConv2D: _SEPARABLE,
    keras.layers.Embedding: {"embeddings": (None, "output")},
    keras.layers.BatchNormalization: _NORMALIZATION,
    **dict.fromkeys(GATES, _RECURRENT),
}
# Indices that are taken of a variable, by axes.
Taken = dict[int, np.ndarray]
# What group variables run over, where it has another name.
_GROUPS = {"units": "output", "features": "output", "vocabulary": None}
# Arguments that are the number of outputs.
_OUTPUTS = ("units", "filters", "output_dim")


@dataclasses.dataclass(frozen=True, eq=False)
class Resize:
    """What is to become of one layer.

    Attributes:
        layer: The layer.
        rule: The rule of its plain counterpart.
        indices: What stays, by what it is called in the table of axes.
        bias_shift: What constant inputs that go add to the bias, of the new
            bias's shape; None if there are none.
    """

    layer: Any
    rule: Rule
    indices: dict[str, np.ndarray]
    bias_shift: np.ndarray | None


def shrink_in_place(model: keras.Model) -> bool:
    """Remove from a variational model what its predictions do not depend on.

    Layers, their order and the model itself stay the same objects. Layers that
    `shrink` would leave out keep one unit. What the optimizer keeps for the
    weights that stay is kept.

    Args:
        model: A compiled Sequential or Functional model.

    Returns:
        Whether something was removed; nothing at all is changed otherwise.

    Raises:
        TypeError: if `model` is no Keras model.
        ValueError: see `to_deterministic`; if the optimizer keeps more than
            numbers for each weight.
    """
    resizes = _find_resizes(model)
    if not resizes:
        return False
    slots = optimizer_slots(model.optimizer)
    with known_to_optimizer(model.optimizer):
        for resize in resizes:
            _apply(resize, slots)
    register_variables(model)
    refresh_shapes(functional_part(model))
    forget_functions(model)
    return True


def _find_resizes(model: keras.Model) -> list[Resize]:
    plain = functional_part(to_deterministic(model))
    calls = graph_calls(functional_part(model))
    layers = {call.operation.name: call.operation for call in calls}
    counterparts = {x.operation.name: x.operation for x in graph_calls(plain)}
    kept_whole = _unsupported(plain, layers)
    gates = _read_by_gates(calls, counterparts)
    for gate, read in gates.items():
        if not _can_shrink(gate, calls, [layers[name] for name, _ in read]):
            kept_whole |= _reasons_of(read, counterparts)
    while True:
        plan = make_plan(read_graph(plain), False, kept_whole, True)
        kept = {
            gate: _kept_by(gate, read, plan, counterparts)
            for gate, read in gates.items()
        }
        failed = _failed(plan, {gate.name for gate in gates})
        for gate, keep in kept.items():
            if keep is None:
                failed |= _reasons_of(gates[gate], counterparts)
        if not failed:
            break
        kept_whole |= failed
    resizes = [
        _resize(layers[rule.layer.name], rule)
        for rule in plan.rules.values()
        if _shrinks(rule) and getattr(rule.layer, "weights", None)
    ]
    for gate, keep in kept.items():
        if keep is not None and not keep.all():
            indices = {"output": np.flatnonzero(keep)}
            rule = plan.rules[id(counterparts[gates[gate][0][0]])]
            resizes.append(Resize(gate, rule, indices, None))
    return resizes


# The name of a layer, and which of its outputs is meant.
_Read = tuple[str, int]


def _read_by_gates(
    calls: list[Call], counterparts: Container[str]
) -> dict[StructuredGate, list[_Read]]:
    """Find what each gate reads, at each of its uses.

    Args:
        calls: Those of the variational model.
        counterparts: Names in the plain model, where gates that were folded
            into other layers are missing.
    """
    makers = {
        id(tensor): (call, position)
        for call in calls
        for position, tensor in enumerate(call.outputs)
    }
    found: dict[StructuredGate, list[_Read]] = {}
    for call in calls:
        if isinstance(call.operation, StructuredGate):
            maker, position = makers[id(call.args[0])]
            while maker.operation.name not in counterparts:
                maker, position = makers[id(maker.args[0])]
            read = maker.operation.name, position
            found.setdefault(call.operation, []).append(read)
    return found


def _reasons_of(
    read: list[_Read], counterparts: dict[str, Any]
) -> dict[int, str]:
    """Return why what a gate reads is kept whole, by the `id` of layers."""
    return {id(counterparts[name]): "a gate reads it" for name, _ in read}


def _kept_by(
    gate: StructuredGate,
    read: list[_Read],
    plan: Plan,
    counterparts: dict[str, Any],
) -> np.ndarray | None:
    """Return which units of a gate stay, `(units,)`.

    None if its uses read tensors that keep different ones.
    """
    found = []
    for name, position in read:
        rule = plan.rules.get(id(counterparts[name]))
        keep = np.ones(gate.units, bool)
        if rule is not None and _shrinks(rule):
            tensor = rule.uses[0].outputs[position]
            # Gates multiply along the last axis.
            keep = tensor.keep if tensor.axis == -1 else keep
        found.append(keep)
    first = found[0]
    is_same = all(np.array_equal(first, x) for x in found)
    return first if is_same and first.size == gate.units else None


def _can_shrink(
    gate: StructuredGate, calls: list[Call], makers: list[Any]
) -> bool:
    uses = Counter(id(call.operation) for call in calls)
    shapes = {tuple(variable.shape) for variable in own_variables(gate)}
    return (
        all(uses[id(maker)] == 1 for maker in makers)
        and gate.is_along_channels
        and shapes <= {(), (gate.units,)}
        and type(gate).__module__.split(".")[0] == "keras_vd"
    )


def _unsupported(plain: keras.Model, layers: dict[str, Any]) -> dict[int, str]:
    """Return why layers of the plain model are kept whole, by their `id`."""
    reasons = {}
    for node in read_graph(plain).nodes:
        layer = node.operation
        original = layers.get(layer.name)
        if node.path or original is None:
            reasons[id(layer)] = "it is in a nested model"
        elif isinstance(layer, keras.layers.Layer) and layer.weights:
            if type(layer) not in _WEIGHTS or not _is_known(original):
                reasons[id(layer)] = "its weights cannot shrink in training"
        if original is not None and is_used_elsewhere(
            original, layers.values()
        ):
            reasons[id(layer)] = "another model reads it"
    return reasons


def _is_known(layer: Any) -> bool:
    if type(layer).__module__.split(".")[0] not in ("keras", "keras_vd"):
        return False
    # The inputs of a kernel would be those of a group.
    if getattr(layer, "groups", 1) != 1 and hasattr(layer, "kernel_size"):
        return False
    weights = _WEIGHTS.get(_plain_class(layer))
    if weights is None or not all(map(_fits_any_shape, layer.variables)):
        return False
    if not isinstance(layer, VariationalLayer):
        return True
    # A posterior of one's own may have variables of any shape.
    for weight, posterior in layer._posteriors().items():
        rank = len(getattr(_owner(layer), weight).shape)
        ranks = {len(x.shape) for x in own_variables(posterior)}
        if not ranks <= {0, rank}:
            return False
    return True


def _fits_any_shape(variable: keras.Variable) -> bool:
    """Tell whether nothing that acts on a variable may hold an array."""
    actors = (variable.constraint, variable.regularizer)
    return all(
        x is None or isinstance(x, Clipped) or _is_of_keras(x) for x in actors
    )


def _is_of_keras(item: Any) -> bool:
    return type(item).__module__.split(".")[0] == "keras"


def _plain_class(layer: Any) -> Any:
    return next((x for x in type(layer).__mro__ if x in _WEIGHTS), None)


def _owner(layer: Any) -> Any:
    """Return what has the weights of a layer: itself, or its cell."""
    return getattr(layer, "cell", layer)


def _shrinks(rule: Rule) -> bool:
    tensors = [x for node in rule.uses for x in (*node.inputs, *node.outputs)]
    return not all(tensor.keep.all() for tensor in tensors)


def _failed(plan: Plan, gates: Container[str]) -> dict[int, str]:
    """Return why planned changes are not possible, by the `id` of layers.

    Args:
        plan: The plan.
        gates: Names of layers whose counterparts are gates.
    """
    failed = {}
    for key, rule in plan.rules.items():
        layer = rule.layer
        if not _shrinks(rule):
            continue
        if rule.has_fixed_size:
            failed[key] = "it has a fixed size"
        if not isinstance(layer, keras.layers.Layer):
            continue
        if isinstance(rule, EmbeddingRule) or layer.name in gates:
            continue
        config, weights = rule.shrunk() or (rule.config, [])
        if not layer.weights and config != rule.config:
            failed[key] = "it has a fixed size"
        elif layer.weights and len(weights) != len(layer.weights):
            failed[key] = "it would need a bias"
    return failed


def _resize(layer: Any, rule: Rule) -> Resize:
    inputs = np.flatnonzero(rule.input.keep)
    outputs = np.flatnonzero(rule.output.keep)
    indices: dict[str, np.ndarray] = {
        "input": inputs,
        "output": outputs,
    }
    weights = _WEIGHTS[_plain_class(layer)]
    if isinstance(rule, RecurrentRule):
        outputs = np.flatnonzero(rule.units.keep)
        gates, _ = GATES[_plain_class(layer)]
        starts = rule.units.keep.size * np.arange(gates)[:, None]
        indices |= {"output": outputs, "gates": (starts + outputs).ravel()}
    if weights is _SEPARABLE:
        multiplier = rule.layer.depthwise_kernel.shape[-1]
        starts = multiplier * inputs[:, None]
        indices["products"] = (starts + np.arange(multiplier)).ravel()
    shift = None
    along_bias = "gates" if "gates" in indices else "output"
    bias = getattr(_owner(rule.layer), "bias", None)
    if bias is not None:
        _, arrays = rule.shrunk() or ({}, [])
        before = ops.convert_to_numpy(bias)
        shift = arrays[-1] - np.take(before, indices[along_bias], -1)
        shift = shift if shift.any() else None
    return Resize(layer, rule, indices, shift)


def _apply(resize: Resize, slots: dict[int, list[keras.Variable]]) -> None:
    for variable, along in _taken(resize):
        for one in (variable, *slots.get(id(variable), ())):
            _take(one, along)
    if resize.bias_shift is not None:
        _shift_bias(resize.layer, resize.bias_shift)
    if isinstance(resize.layer, StructuredGate):
        resize.layer.set_units(len(resize.indices["output"]))
    else:
        _adopt(resize)


def _shift_bias(layer: Any, shift: np.ndarray) -> None:
    """Add constants to what the bias of a layer is at inference.

    A prior that is about the initial bias moves with it: what training has
    changed stays the same, and so does the KL.
    """
    bias = _owner(layer).bias
    value = ops.convert_to_numpy(bias)
    posterior = getattr(layer, "bias_posterior", None)
    if posterior is None:
        bias.assign(value + shift)
        return
    # An entry that is zero is so no longer.
    is_shifted = shift != 0.0
    mean = ops.convert_to_numpy(posterior.mean())
    bias.assign(np.where(is_shifted, mean, value) + shift)
    mask = ops.convert_to_numpy(posterior.keep_mask)
    posterior.keep_mask.assign(mask | is_shifted)
    if posterior.prior.is_about_initial:
        posterior.prior_mean.assign(
            ops.convert_to_numpy(posterior.prior_mean) + shift
        )
    posterior.revive(is_shifted)


def _taken(resize: Resize) -> list[tuple[keras.Variable, Taken]]:
    """List the variables of a layer with what is taken of each."""
    layer, owner = resize.layer, _owner(resize.layer)
    taken: list[tuple[keras.Variable, Taken]] = []
    if isinstance(layer, StructuredGate):
        along = {0: resize.indices["output"]}
        variables = own_variables(layer)
        return [(x, along) for x in variables if len(x.shape)]
    posteriors = {}
    if isinstance(layer, VariationalLayer):
        posteriors = layer._posteriors()
        for group in layer.group_names:
            name = _GROUPS.get(group, group)
            if name is not None:
                variables = own_variables(getattr(layer, f"{group}_group"))
                size = variables[0].shape
                along = {0: resize.indices[name]}
                taken += [(x, _not_shared(x, along, size)) for x in variables]
    for name, axes in _WEIGHTS[_plain_class(layer)].items():
        weight = getattr(owner, name, None)
        if weight is None:
            continue
        first = len(weight.shape) - len(axes)
        along = {
            first + i: resize.indices[axis]
            for i, axis in enumerate(axes)
            if axis is not None
        }
        taken.append((weight, along))
        if name in posteriors:
            variables = own_variables(posteriors[name])
            taken += [
                (x, _not_shared(x, along, weight.shape)) for x in variables
            ]
    return taken


def _not_shared(variable: keras.Variable, along: Taken, sizes: Any) -> Taken:
    """Return the axes along which a variable of a posterior has entries.

    Args:
        variable: The variable; a scalar, or of the weight's rank.
        along: What is taken of the weight.
        sizes: Shape of the weight.
    """
    return {
        axis: indices
        for axis, indices in along.items()
        if len(variable.shape) and variable.shape[axis] == sizes[axis]
    }


def _take(variable: keras.Variable, along: Taken) -> None:
    value = ops.convert_to_numpy(variable)
    for axis, indices in along.items():
        value = np.take(value, indices, axis)
    if value.shape != tuple(variable.shape):
        resize_variable(variable, value)


def _adopt(resize: Resize) -> None:
    """Let a layer know the sizes that its variables have now."""
    layer, rule = resize.layer, resize.rule
    config = layer.get_config()
    # Its values are not used, and this kind takes no time.
    for name in config:
        if name.endswith("_initializer"):
            config[name] = "zeros"
    for name in _OUTPUTS:
        if name in config:
            config[name] = len(resize.indices["output"])
    twin = type(layer).from_config(config)
    shape = rule.input.shape
    if not isinstance(rule, EmbeddingRule):
        sizes = list(shape)
        sizes[rule.input.axis] = len(resize.indices["input"])
        shape = tuple(sizes)
    twin.build(shape)
    adopt_sizes(layer, twin)
    if isinstance(layer, VariationalLayer):
        layer.rebind_groups()
