"""Fine-tune plain models without losing the zeros in their weights."""

from __future__ import annotations

import base64
import contextlib
import math
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import (
    flatten_layers,
    functional_part,
    own_trainable_variables,
    running_average,
)
from keras_vd._backend.validation import check_built, check_model

# Variables that may be zero without having been pruned. They are told by name,
# because the biases of attention layers and GRUs are matrices.
_NO_WEIGHTS = ("bias", "alpha", "beta", "gamma")
# Layers that build several others from one constraint.
_SHARING = (
    keras.layers.Bidirectional,
    keras.layers.GroupQueryAttention,
    keras.layers.MultiHeadAttention,
)

# A weight, and the layers that hold its constraint.
_Member = tuple[keras.Variable, tuple[keras.layers.Layer, ...]]


def freeze_zeros(model: keras.Model) -> None:
    """Keep the zeros of a plain model's weights at zero in later training.

    For fine-tuning after `to_deterministic`: every zero entry of a weight of
    rank 2 or more gets a constraint that sets it back after each update, in
    the optimizer's moving average (`use_ema`) too. It holds with every
    optimizer, under weight decay, loss scaling and `SwapEMAWeights`.
    Constraints already there are applied first. Biases are left alone.

    The constraint is the layer's own, such as its `kernel_constraint`, and
    holds which entries are zero: models that are saved and loaded or cloned
    go on keeping them, and `shrink` keeps those that are left. Loading such a
    file needs `import keras_vd`; files written by `keras_vd.deployment` do not
    contain the constraint. Which entries are zero is read once, in this call:
    entries that become 0 later are not frozen, and a second call replaces the
    constraints of the first.

    A layer whose config has no place for the constraint, such as most custom
    layers, keeps its zeros in this model object only; a warning names its
    weights.

    Args:
        model: A built Keras model; changed in place.

    Raises:
        TypeError: if `model` is no Keras model.
        ValueError: if it is not built, or has LoRA or quantized weights, which
            are added to the zeros or stored otherwise.

    Example:
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> kernel = np.array([[0.0, 1.0], [2.0, 0.0], [0.0, 0.0]])
    >>> model.set_weights([kernel, np.zeros(2)])
    >>> keras_vd.freeze_zeros(model)
    >>> constraint = model.layers[0].kernel_constraint
    >>> int(np.count_nonzero(constraint(keras.ops.ones((3, 2)))))
    2
    """
    check_model(model)
    check_built(model)
    _check_supported(flatten_layers(model))
    _freeze(model, prunable_weights(model))
    # A training step that an earlier `fit` compiled lacks the constraints.
    model.train_function = None
    lost = _lost_by_config(model)
    if lost:
        warnings.warn(
            f"The zeros of {lost} stay zero in this model only: their layers' "
            "`get_config` keeps no constraint for them. Call `freeze_zeros` "
            "again on a model that was loaded or cloned.",
            stacklevel=2,
        )


def prunable_weights(model: keras.Model) -> list[keras.Variable]:
    """List the weights whose zeros `freeze_zeros` keeps."""
    return [
        variable
        for layer in flatten_layers(model)
        for variable in own_trainable_variables(layer)
        if len(variable.shape) > 1 and variable.name not in _NO_WEIGHTS
    ]


def refreeze_zeros(model: keras.Model) -> None:
    """Freeze the zeros of frozen weights anew, after their shapes changed."""
    frozen = [v for v in model.variables if _is_frozen(v)]
    if frozen:
        _freeze(model, frozen)


@contextlib.contextmanager
def without_frozen_zeros(model: keras.Model) -> Iterator[None]:
    """Undo `freeze_zeros` within a context; the old constraints are back."""
    slots = [
        (layer, name, value)
        for layer in flatten_layers(model)
        for name, value in vars(layer).items()
        if isinstance(value, FrozenZeros)
    ]
    for layer, name, value in slots:
        setattr(layer, name, value.constraint)
    try:
        yield
    finally:
        for layer, name, value in slots:
            setattr(layer, name, value)


def _is_frozen(variable: keras.Variable) -> bool:
    return isinstance(getattr(variable, "constraint", None), FrozenZeros)


def _check_supported(layers: Iterable[keras.layers.Layer]) -> None:
    for layer in layers:
        mode = getattr(layer, "quantization_mode", None)
        if getattr(layer, "lora_enabled", False) or mode is not None:
            raise ValueError(
                "Argument `model` must have neither LoRA nor quantized layers: "
                f"the zeros of '{layer.name}' are not those of a variable. "
                "Call `freeze_zeros` before, or train the whole kernel."
            )


def _freeze(model: keras.Model, weights: list[keras.Variable]) -> None:
    """Set the constraints of weights and of the layers that own them."""
    wanted = {id(variable) for variable in weights}
    groups: dict[tuple[int, str, int], dict[str, _Member]] = {}
    for root, layer in _with_roots(model):
        for variable in own_trainable_variables(layer):
            if id(variable) not in wanted:
                continue
            wanted.remove(id(variable))
            path, slots = _path_below(root, layer, variable), _slots(variable)
            slot = next((x for x in slots if x in vars(layer)), "")
            key = (id(root), slot, 0 if slot else id(variable))
            if path in groups.get(key, {}):
                # A config could not tell two weights of one name apart, so
                # the second gets a constraint that no layer's config holds.
                key = (id(root), "", id(variable))
            groups.setdefault(key, {})[path] = (variable, (layer, root))
    for (_, slot, _), members in groups.items():
        _constrain(slot, members)


def _constrain(slot: str, members: dict[str, _Member]) -> None:
    """Freeze the zeros of weights that share one constraint."""
    masks = {
        path: ops.convert_to_numpy(variable) != 0.0
        for path, (variable, _) in members.items()
    }
    constraint = next(iter(members.values()))[0].constraint
    if isinstance(constraint, FrozenZeros):
        constraint = constraint.constraint
    if not all(nonzero.all() for nonzero in masks.values()):
        constraint = FrozenZeros(masks, constraint)
    for variable, owners in members.values():
        variable.constraint = constraint
        for owner in owners:
            for name in (slot, f"_{slot}"):
                if name in vars(owner):
                    setattr(owner, name, constraint)


def _with_roots(
    model: keras.Model,
) -> Iterator[tuple[keras.layers.Layer, keras.layers.Layer]]:
    """Pair every layer with the one whose config holds its constraints.

    The latter comes first; for most layers it is the layer itself.
    """
    layers = flatten_layers(model)
    roots = {id(layer): layer for layer in layers}
    for layer in layers:
        if isinstance(layer, _SHARING):
            for below in flatten_layers(layer):
                roots[id(below)] = layer
    return ((roots[id(layer)], layer) for layer in layers)


def _slots(variable: keras.Variable) -> list[str]:
    """List the layer arguments that may hold the constraint of a variable."""
    name = str(variable.name)
    names = (name, name.removesuffix("_kernel"), "depthwise")
    return [f"{candidate}_constraint" for candidate in names]


def _path_below(
    root: keras.layers.Layer,
    layer: keras.layers.Layer,
    variable: keras.Variable,
) -> str:
    """Return the path of a variable from `root` down.

    It leaves out the models around `root`, so that it is the same in a copy of
    `root` that stands elsewhere.
    """
    if root is layer:
        return str(variable.name)
    return str(f"/{variable.path}".split(f"/{root.name}/")[-1].strip("/"))


def _lost_by_config(model: keras.Model) -> list[str]:
    """List paths of weights whose frozen zeros a rebuilt model would lose."""
    lost = []
    for layer in _restored_layers(model):
        frozen = [v for v in layer.variables if _is_frozen(v)]
        if frozen:
            copies = _copied_variables(layer)
            lost += [v.path for v in frozen if not _is_kept(v, copies)]
    return sorted(set(lost))


def _restored_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """List the layers that a config restores, each from its own config."""
    if functional_part(layer) is None:
        return [layer]
    return [x for below in layer.layers for x in _restored_layers(below)]


def _copied_variables(
    layer: keras.layers.Layer,
) -> dict[int, keras.Variable]:
    """Rebuild a layer from its config and return the new variables.

    They are keyed by the `id` of the original variable. The result is empty if
    the layer cannot be rebuilt.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            copy = type(layer).from_config(layer.get_config())
            copy.build_from_config(layer.get_build_config())
    # The constructor of a custom layer may raise anything.
    except Exception:
        return {}
    pairs = zip(layer.variables, copy.variables, strict=False)
    return {id(old): new for old, new in pairs}


def _is_kept(
    variable: keras.Variable, copies: Mapping[int, keras.Variable]
) -> bool:
    copy = copies.get(id(variable))
    if copy is None or not _is_frozen(copy):
        return False
    try:
        found = copy.constraint.mask_of(copy)
    except ValueError:
        return False
    return np.array_equal(found, variable.constraint.mask_of(variable))


@keras.saving.register_keras_serializable(package="keras_vd")
class FrozenZeros(keras.constraints.Constraint):
    """Constraint that keeps given entries of weights at zero.

    Args:
        masks: By the names of the weights, which entries are not zero: bool
            arrays of the weights' shapes, or these packed as in a config.
        constraint: Constraint that is applied first, as Keras takes it.
    """

    def __init__(self, masks: Mapping[str, Any], constraint: Any = None):
        self.masks = {
            name: _unpacked(mask) if isinstance(mask, dict) else mask
            for name, mask in masks.items()
        }
        self.constraint = keras.constraints.get(constraint)

    def mask_of(self, variable: Any) -> np.ndarray:
        """Return which entries of a variable are not zero, in its shape.

        Raises:
            ValueError: if it is not one of those that were frozen.
        """
        path = getattr(variable, "path", "")
        found = [x for x in self.masks if f"/{path}".endswith(f"/{x}")]
        if not path and len(self.masks) == 1:
            found = list(self.masks)
        mask = self.masks[max(found, key=len)] if found else np.zeros(0)
        if mask.shape != tuple(variable.shape):
            known = {name: x.shape for name, x in self.masks.items()}
            raise ValueError(
                f"The frozen zeros are those of weights of shapes {known}. "
                f"Received: '{path}' of shape {tuple(variable.shape)}. Call "
                "`keras_vd.freeze_zeros` on the model."
            )
        return mask

    def __call__(self, value: Any) -> Any:
        nonzero = self.mask_of(value)
        # Keras updates the moving average before it applies constraints, so
        # the zeros of the average have to be restored as well.
        average = running_average(value)
        if average is not None:
            average.assign(_masked(nonzero, average))
        if self.constraint is not None:
            value = self.constraint(value)
        return _masked(nonzero, value)

    def get_config(self) -> dict[str, Any]:
        return {
            "masks": {name: _packed(x) for name, x in self.masks.items()},
            "constraint": keras.constraints.serialize(self.constraint)
            if self.constraint is not None
            else None,
        }


def _masked(nonzero: np.ndarray, value: Any) -> Any:
    # Optimizers pass the variable itself, which JAX cannot trace here.
    value = ops.convert_to_tensor(value)
    return ops.where(nonzero, value, ops.zeros_like(value))


def _packed(mask: np.ndarray) -> dict[str, Any]:
    """Pack a mask for a config: one bit per entry, compressed, in base 64."""
    bits = zlib.compress(np.packbits(mask).tobytes(), 9)
    return {
        "shape": list(mask.shape),
        "nonzero": base64.b64encode(bits).decode("ascii"),
    }


def _unpacked(config: Mapping[str, Any]) -> np.ndarray:
    shape = tuple(config["shape"])
    size = math.prod(shape)
    # At most one byte more than expected is unpacked. That is enough to notice
    # a wrong size, and no text can expand to fill the memory.
    packed = zlib.decompressobj().decompress(
        base64.b64decode(config["nonzero"]), (size + 7) // 8 + 1
    )
    if len(packed) != (size + 7) // 8:
        raise ValueError(
            "The frozen zeros of a config must be a bit for each weight. "
            f"Received: another number of bits for a weight of shape {shape}."
        )
    bits = np.unpackbits(np.frombuffer(packed, "uint8"), count=size)
    return bits.astype(bool).reshape(shape)
