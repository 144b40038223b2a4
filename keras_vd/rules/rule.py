"""The base class of rules about layers, and the table of rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import computing_class
from keras_vd._backend.names import Names
from keras_vd._backend.validation import reason_to_keep_weights
from keras_vd.rules.factors import Values
from keras_vd.rules.graph import GraphTensor, Node

RULES: dict[type, type[Rule]] = {}
# For each variational class, the Keras layer that has the same weights.
SAME_WEIGHTS: dict[type, type] = {}


def rule_for(*classes: type) -> Callable[[type[Rule]], type[Rule]]:
    """Return a class decorator that registers a rule for layer classes.

    The rule also applies to subclasses that only adapt the constructor, and to
    no others.
    """

    def register(rule: type[Rule]) -> type[Rule]:
        RULES.update(dict.fromkeys(classes, rule))
        return rule

    return register


@dataclasses.dataclass(frozen=True)
class Inner:
    """Placeholder in a wrapper's config for the new layer inside the wrapper.

    Attributes:
        layer: The layer before.
        config: The config of the new one.
    """

    layer: Any
    config: dict[str, Any]


class Rule:
    """One layer or operation, with all of its uses in the model.

    This base class is the rule of unknown layers: they are not changed, and
    all channels that they read and make are kept.

    `shrinking/analysis.py` asks, in this order:

    1. `channels_first` for each use, by which every tensor gets its axis of
       channels, and `refusal`; a reason makes this base class the layer's rule.
    2. `find_constants`, node by node forwards, until a pass finds no more. It
       sets `constant` of the outputs: the value that a channel has at every
       position, whatever the model's inputs are; NaN if there is no such value
       or it is not known.
    3. `require`, node by node backwards, until a pass adds no more. It reads
       `keep` of the outputs, False at first, and adds to `keep` of the inputs,
       or of the outputs, what these need. It only ever sets entries to True
       (`|=`), because it is asked again. Uses with `ties_uses` then get the
       same sets.
    4. `settle` once 3 has come to rest, for what no single use can see; 3 goes
       on with what it adds.
    5. `can_do_without` for each input of which nothing is kept.

    Then `keep` is final. `shrinking/rebuild.py` asks rules with `is_reduced`
    for `shrunk`, and calls the new layers by `call`. `macs`, `passed_on` and
    `absorbed` need no analysis; they are asked on their own.

    Attributes:
        layer: The layer, or an operation of `keras.ops`.
        uses: The nodes that call it.
        reason: Why the layer is kept whole, if it is.
        merges_constants: Whether `call` may append a channel to what it reads.
    """

    #: Why all outputs are kept, in a layer whose inputs need not be.
    outputs_reason: str | None = None
    #: Number of parameters of what is added to the model to use the layer.
    added_parameters = 0
    #: Whether all uses must keep the same channels because they share weights.
    ties_uses = True
    #: Whether it may stand in `TimeDistributed`.
    works_per_step = False
    #: Whether the channels that it makes are those that it reads.
    hands_on = False
    #: Whether kept outputs can be picked out behind it, while it stays whole.
    can_gather_outputs = False
    #: Whether `call` can return None for outputs of which nothing is kept.
    can_omit_outputs = False
    #: Whether `call` has to adapt what an operation is called with.
    has_fixed_size = False
    #: Whether a channel of ones can stand for the constants that it reads.
    can_merge_constants = False

    def __init__(
        self, layer: Any, uses: list[Node], reason: str | None = None
    ) -> None:
        self.layer = layer
        self.uses = uses
        self.reason = reason
        self.merges_constants = False

    @classmethod
    def of(cls, layer: Any) -> type[Rule]:
        """Return the rule of a layer of this rule's class: mostly this one."""
        return cls

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        """Return why the rule does not cover a use; None if it does."""
        if len(node.inputs) != 1 or len(node.outputs) != 1:
            return "it is called in an unusual way"
        return None

    @classmethod
    def channels_first(
        cls, layer: Any, node: Node
    ) -> tuple[bool | None, bool | None]:
        """Tell where the rule wants the channels of inputs, and of outputs.

        True stands for axis 1, False for the last axis, and None for any, but
        the same for all tensors of which it is said.
        """
        return False, False

    @classmethod
    def macs(cls, layer: Any, node: Node) -> int | None:
        """Count the multiply-accumulate operations of a use, for one example.

        None if a size is not known.
        """
        return 0

    @classmethod
    def passed_on(
        cls, layer: Any, factors: np.ndarray, shape: tuple[Any, ...]
    ) -> np.ndarray | None:
        """Return the factors of the outputs if those of the inputs just pass.

        Args:
            layer: The layer.
            factors: Not negative; broadcast to one example of the inputs.
            shape: Shape of that example.

        Returns:
            An array that broadcasts to one example of the outputs; None if
            the layer does something else with factors.
        """
        return None

    @classmethod
    def absorbed(cls, layer: Any, factors: np.ndarray) -> Values | None:
        """Return new values of weights that absorb the factors of the inputs.

        None if no weights can.
        """
        return None

    def sees_borders(self) -> bool:
        """Tell whether a constant other than 0 may change at the border."""
        return False

    def find_constants(self, node: Node) -> None:
        """Set `constant` of a node's outputs from the constants it reads."""

    def require(self, node: Node) -> None:
        """Keep what the kept channels of a node's tensors make necessary."""
        if not node.is_gone:
            for tensor in (*node.inputs, *node.outputs):
                tensor.keep[:] = True

    def can_do_without(self, node: Node, tensor: GraphTensor) -> bool:
        """Tell whether an input of which nothing is kept may be left out."""
        return node.is_gone

    def settle(self) -> None:
        """Keep what the layer as a whole needs, once its nodes are settled."""

    def shrunk(self) -> tuple[dict[str, Any], list[np.ndarray]] | None:
        """Return config and weights of the new layer; None for a plain copy.

        The new layer is of the Keras class that computes what the old one
        does, and the config is one of that class.
        """
        return None

    @property
    def config(self) -> dict[str, Any]:
        """The layer's config, as `config_of` returns it."""
        return config_of(self.layer)

    def call(
        self, layer: Any, args: tuple[Any, ...], kwargs: Any, names: Names
    ) -> Any:
        """Call the new layer on tensors of the new model."""
        return layer(*args, **kwargs)

    @property
    def input(self) -> GraphTensor:
        """The first tensor that the first use reads.

        Uses that share weights all keep the same channels.
        """
        return self.uses[0].inputs[0]

    @property
    def output(self) -> GraphTensor:
        """The first tensor that the first use makes."""
        return self.uses[0].outputs[0]

    @property
    def is_reduced(self) -> bool:
        """Whether the layer, or a tensor that it reads or makes, shrinks."""
        tensors = (x for node in self.uses for x in _data(node))
        return not all(tensor.keep.all() for tensor in tensors)

    @property
    def inputs_kept(self) -> tuple[int, int]:
        """Number of kept input channels, and of all of them."""
        return _counts(self.uses[0].inputs)

    @property
    def outputs_kept(self) -> tuple[int, int]:
        """Number of kept output channels, and of all of them."""
        return _counts(self.uses[0].outputs[:1])

    def constants_of(self, tensor: GraphTensor) -> np.ndarray:
        """Return the constants that the layer may rely on, `(width,)`.

        If uses share weights, a channel is constant only if it has the same
        value in all of them.
        """
        if not self.ties_uses or len(self.uses) == 1:
            return tensor.constant
        constants = np.stack([node.inputs[0].constant for node in self.uses])
        is_same = (constants == constants[0]).all(axis=0)
        return np.where(is_same, constants[0], np.nan)


def _counts(
    tensors: list[GraphTensor] | tuple[GraphTensor, ...],
) -> tuple[int, int]:
    kept = sum(int(np.count_nonzero(x.keep)) for x in tensors)
    return kept, sum(x.width for x in tensors)


def config_of(layer: Any) -> dict[str, Any]:
    """Return the config that Keras' own class makes of a layer."""
    kind: Any = computing_class(type(layer))
    return dict(kind.get_config(layer))


# Three functions look a layer's class up in RULES, each for its own purpose:
#
# `find_rule` (by `known_rule`): only classes that compute what a class with a
# rule computes, because the answer changes what the model computes.
# `absorbed_by`: variational layers as well, by the Keras layer that has the
# same weights, because gates are folded before a model becomes a plain one.
# `macs_of`: whatever extends a class with a rule, because for a figure in a
# report the count of that class is better than 0.


def known_rule(layer: Any) -> type[Rule] | None:
    """Return the class of the rule of a plain layer; None if it has none."""
    rule = RULES.get(computing_class(type(layer)))
    return None if rule is None else rule.of(layer)


def find_rule(layer: Any, uses: list[Node], reason: str | None = None) -> Rule:
    """Return the rule of a layer; `Rule` itself, with a reason, if unknown.

    Args:
        layer: The layer or operation.
        uses: The nodes that call it.
        reason: Why it is to be kept whole in any case.
    """
    rule = known_rule(layer)
    if rule is None:
        return Rule(layer, uses, reason or why_unknown(layer))
    reason = reason or reason_to_keep_weights(layer)
    for node in uses:
        reason = reason or _use_refusal(node) or rule.refusal(layer, node)
        reason = reason or _side_refusal(rule, layer, node)
    if reason:
        return Rule(layer, uses, reason)
    found = rule(layer, uses)
    if found.ties_uses and len({_widths(node) for node in uses}) > 1:
        return Rule(layer, uses, "it is shared by tensors of several widths")
    return found


def absorbed_by(layer: Any, factors: np.ndarray) -> Values | None:
    """Return what `Rule.absorbed` does, for variational layers as well."""
    if reason_to_keep_weights(layer):
        return None
    kinds = (SAME_WEIGHTS.get(cls) for cls in type(layer).__mro__)
    kind = next(filter(None, kinds), None)
    rule = known_rule(layer) if kind is None else RULES.get(kind)
    return None if rule is None else rule.absorbed(layer, factors)


def macs_of(layer: Any, node: Node) -> int | None:
    """Count the operations of a node, in `layer` or in the layer it wraps.

    This is `Rule.macs` of the layer; a subclass counts as what it extends, and
    a layer without a rule as 0.
    """
    for cls in type(layer).__mro__:
        if cls in RULES:
            return RULES[cls].macs(layer, node)
    return 0


def _data(node: Node) -> tuple[GraphTensor, ...]:
    return (*node.inputs, *node.outputs)


def _widths(node: Node) -> tuple[int, ...]:
    return tuple(tensor.width for tensor in _data(node))


def why_unknown(layer: Any) -> str:
    """Return the reason to keep a layer whole that has no rule."""
    if isinstance(layer, keras.layers.Lambda):
        return (
            "a Lambda may compute anything: call `keras.ops` on the tensors "
            "in its place"
        )
    return f"unknown: {type(layer).__name__}"


def _use_refusal(node: Node) -> str | None:
    if node.kwargs.get("training"):
        return "it is called with `training=True`"
    return None


def _side_refusal(rule: type[Rule], layer: Any, node: Node) -> str | None:
    sides = rule.channels_first(layer, node)
    for tensors, first in zip((node.inputs, node.outputs), sides, strict=True):
        if first and any(x.axis == -1 for x in tensors if len(x.shape) > 2):
            return "its channels come first, those around it last"
    return None


def to_numpy(variable: Any) -> np.ndarray:
    """Return a float64 copy of a weight."""
    return np.array(ops.convert_to_numpy(variable), np.float64)


def join(tensors: Iterable[GraphTensor]) -> None:
    """Keep in each tensor the channels that are kept in any of them."""
    tensors = list(tensors)
    keep = np.logical_or.reduce([tensor.keep for tensor in tensors])
    for tensor in tensors:
        tensor.keep |= keep


def finite(constants: np.ndarray) -> np.ndarray:
    """Replace infinite values by NaN, which stands for "not constant"."""
    return np.where(np.isfinite(constants), constants, np.nan)
