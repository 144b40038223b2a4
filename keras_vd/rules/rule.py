"""What a rule knows about a layer, and the table of rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import computed_class
from keras_vd._backend.validation import weights_refusal
from keras_vd.rules.factors import Values
from keras_vd.rules.graph import Node, Tensor

RULES: dict[type, type[Rule]] = {}
# By classes of this package, the Keras layers whose weights they have as well.
SAME_WEIGHTS: dict[type, type] = {}


def rule_for(*classes: type) -> Callable[[type[Rule]], type[Rule]]:
    """Class decorator: the rule of these classes.

    Also of subclasses that only adapt the constructor, of no others.
    """

    def register(rule: type[Rule]) -> type[Rule]:
        RULES.update(dict.fromkeys(classes, rule))
        return rule

    return register


@dataclasses.dataclass(frozen=True)
class Inner:
    """In a config: the layer that takes the place of one inside another.

    Attributes:
        layer: The layer before.
        config: The config of the new one.
    """

    layer: Any
    config: dict[str, Any]


class Names:
    """Names of layers and operations, each of which a model has but once."""

    def __init__(self, taken: Iterable[str]) -> None:
        self.taken = set(taken)

    def unique(self, name: str) -> str:
        """The name, numbered if it is taken; taken from now on."""
        number, found = 1, name
        while found in self.taken:
            number += 1
            found = f"{name}_{number}"
        self.taken.add(found)
        return found


class Rule:
    """One layer or operation, with all of its uses in the model.

    This class is the rule of what is unknown: nothing about it is touched,
    and all channels that it reads and makes are kept.

    Attributes:
        layer: The layer, or an operation of `keras.ops`.
        uses: The nodes that call it.
        reason: Why the layer is kept whole, if it is.
    """

    #: Why all outputs are kept, where that does not go for the inputs.
    outputs_reason: str | None = None
    #: Parameters of what is added to the model to use the layer.
    added_parameters = 0
    #: Whether all uses must keep the same channels, as they share weights.
    ties_uses = True
    #: Whether it may stand in `TimeDistributed`.
    works_per_step = False
    #: Whether the channels that it makes are those that it reads.
    hands_on = False

    def __init__(
        self, layer: Any, uses: list[Node], reason: str | None = None
    ) -> None:
        self.layer = layer
        self.uses = uses
        self.reason = reason

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        """Why this use of the layer is more than the rule understands."""
        if len(node.inputs) != 1 or len(node.outputs) != 1:
            return "it is called in an unusual way"
        return None

    @classmethod
    def macs(cls, layer: Any, node: Node) -> int | None:
        """Multiply-accumulate operations of one use, for one example.

        None if a size is not known.
        """
        return 0

    @classmethod
    def passed_on(
        cls, layer: Any, factors: np.ndarray, shape: tuple[Any, ...]
    ) -> np.ndarray | None:
        """Factors of the outputs, if those of the inputs simply pass.

        Args:
            layer: The layer.
            factors: Not negative; broadcast to one example of the inputs.
            shape: Shape of that example.
        """
        return None

    @classmethod
    def absorbed(cls, layer: Any, factors: np.ndarray) -> Values | None:
        """Weights that take the factors of the inputs in; None: none can."""
        return None

    def sees_borders(self) -> bool:
        """Whether a constant input, but 0, is not constant at the border."""
        return False

    def find_constants(self, node: Node) -> None:
        """Set `constant` of the node's outputs from those of its inputs."""

    def require(self, node: Node) -> None:
        """Extend what is kept around a node by what that makes necessary."""
        if not node.is_gone:
            for tensor in (*node.inputs, *node.outputs):
                tensor.keep[:] = True

    def can_do_without(self, node: Node, tensor: Tensor) -> bool:
        """Whether an input may vanish altogether, as nothing of it is kept."""
        return node.is_gone

    def settle(self) -> None:
        """Extend what is kept by what the layer can only do as a whole."""

    def shrunk(self) -> tuple[dict[str, Any], list[np.ndarray]] | None:
        """Config and weights of the new layer; None for a plain copy.

        The new layer is of Keras' own class, whose config it is.
        """
        return None

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that Keras' own class takes, as the layer has them."""
        return config_of(self.layer)

    def call(
        self, layer: Any, args: tuple[Any, ...], kwargs: Any, names: Names
    ) -> Any:
        """Use the new layer on the new model's tensors."""
        return layer(*args, **kwargs)

    @property
    def input(self) -> Tensor:
        """The tensor that it reads; in every use it keeps the same."""
        return self.uses[0].inputs[0]

    @property
    def output(self) -> Tensor:
        """The first tensor that it makes."""
        return self.uses[0].outputs[0]

    @property
    def is_reduced(self) -> bool:
        """Whether it gets smaller, or what it reads or makes does."""
        tensors = (x for node in self.uses for x in _data(node))
        return not all(tensor.keep.all() for tensor in tensors)

    @property
    def inputs_kept(self) -> tuple[int, int]:
        """Number of inputs kept, and of all."""
        return _counts(self.uses[0].inputs)

    @property
    def outputs_kept(self) -> tuple[int, int]:
        """Number of outputs kept, and of all."""
        return _counts(self.uses[0].outputs[:1])

    def constants_of(self, tensor: Tensor) -> np.ndarray:
        """The constants that this layer may rely on.

        In a layer with several uses these are the same in all of them.
        """
        if not self.ties_uses or len(self.uses) == 1:
            return tensor.constant
        constants = np.stack([node.inputs[0].constant for node in self.uses])
        is_same = (constants == constants[0]).all(axis=0)
        return np.where(is_same, constants[0], np.nan)


def _counts(tensors: list[Tensor] | tuple[Tensor, ...]) -> tuple[int, int]:
    kept = sum(int(np.count_nonzero(x.keep)) for x in tensors)
    return kept, sum(x.width for x in tensors)


def config_of(layer: Any) -> dict[str, Any]:
    """What the class of Keras that a layer is of calls its config."""
    kind: Any = computed_class(type(layer))
    return dict(kind.get_config(layer))


def macs_of(layer: Any, node: Node) -> int | None:
    """What `Rule.macs` says, of a layer or of one that another one wraps.

    A subclass counts as what it extends.
    """
    for cls in type(layer).__mro__:
        if cls in RULES:
            return RULES[cls].macs(layer, node)
    return 0


def absorbed_by(layer: Any, factors: np.ndarray) -> Values | None:
    """What `Rule.absorbed` says, of a variational layer as well."""
    if weights_refusal(layer):
        return None
    kinds = (SAME_WEIGHTS.get(cls) for cls in type(layer).__mro__)
    kind = next(filter(None, kinds), None) or computed_class(type(layer))
    rule = RULES.get(kind)
    return None if rule is None else rule.absorbed(layer, factors)


def find_rule(layer: Any, uses: list[Node], reason: str | None = None) -> Rule:
    """The rule of a layer, or the one of the unknown with the reason why.

    Args:
        layer: The layer or operation.
        uses: The nodes that call it.
        reason: Why it is to be kept whole in any case.
    """
    rule = RULES.get(computed_class(type(layer)))
    if rule is None:
        return Rule(layer, uses, f"unknown: {type(layer).__name__}")
    reason = reason or weights_refusal(layer)
    for node in uses:
        reason = reason or _use_refusal(node) or rule.refusal(layer, node)
    if reason:
        return Rule(layer, uses, reason)
    found = rule(layer, uses)
    if found.ties_uses and len({_widths(node) for node in uses}) > 1:
        return Rule(layer, uses, "it is shared by tensors of several widths")
    return found


def _data(node: Node) -> tuple[Tensor, ...]:
    return (*node.inputs, *node.outputs)


def _widths(node: Node) -> tuple[int, ...]:
    return tuple(tensor.width for tensor in _data(node))


def _use_refusal(node: Node) -> str | None:
    if node.kwargs.get("training"):
        return "it is called with `training=True`"
    return None


def to_numpy(variable: Any) -> np.ndarray:
    """Float64 copy of a weight."""
    return np.array(ops.convert_to_numpy(variable), np.float64)


def join(tensors: Iterable[Tensor]) -> None:
    """Keep in each what is kept in any of them."""
    tensors = list(tensors)
    keep = np.logical_or.reduce([tensor.keep for tensor in tensors])
    for tensor in tensors:
        tensor.keep |= keep


def finite(constants: np.ndarray) -> np.ndarray:
    """The same with NaN, not constant, in place of infinite values."""
    return np.where(np.isfinite(constants), constants, np.nan)
