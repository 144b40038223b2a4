"""Attention: find heads, and dimensions of heads, that change nothing.

A head adds `softmax(q k') v o` to the output. Its weights sum to 1 along the
keys, so a value that is the same everywhere comes out as it went in, and a
term of `q k'` that is the same for all keys has no effect.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import keras
import numpy as np

from keras_vd._backend.keras_internals import attention_projections
from keras_vd.rules.graph import DATA_ARGUMENTS, GraphTensor, Node
from keras_vd.rules.rule import (
    Rule,
    config_of,
    finite,
    rule_for,
    to_numpy,
)
from keras_vd.rules.sizes import entries, product, total

_NAMES = ("query", "value", "key")
DATA_ARGUMENTS[keras.layers.MultiHeadAttention] = _NAMES
DATA_ARGUMENTS[keras.layers.GroupQueryAttention] = _NAMES


@dataclasses.dataclass
class Projection:
    """Weights with which attention projects one of its inputs, head by head.

    Heads of the query that share keys and values are a group; in multi-head
    attention each head is a group of its own.

    Attributes:
        kernel: `(inputs, groups, heads, dims)`, with a single head for keys
            and values.
        bias: `(groups, heads, dims)`, zero where there is none.
        position: Which of the layer's inputs is projected.
    """

    kernel: np.ndarray
    bias: np.ndarray
    position: int

    def fixed(self, constants: np.ndarray) -> np.ndarray:
        """Compute constant results, `(groups, heads, dims)`; NaN elsewhere."""
        known = ~np.isnan(constants)
        is_fixed = ~(self.kernel[~known] != 0.0).any(axis=0)
        values = np.tensordot(constants[known], self.kernel[known], axes=1)
        return np.where(is_fixed, self.bias + values, np.nan)

    def reads(self, live: np.ndarray) -> np.ndarray:
        """Return which inputs, `(inputs,)`, the live dimensions read.

        Args:
            live: `(groups, heads, dims)`: which dimensions matter.
        """
        return _any(self.kernel[:, self.own(live)] != 0.0, axis=1)

    def own(self, live: np.ndarray) -> np.ndarray:
        """Return which of its dimensions are live for a head that uses them."""
        if self.bias.shape[1] == live.shape[1]:
            return live
        return _any(live, axis=1)[:, None]


@dataclasses.dataclass
class Selection:
    """The groups, heads and dimensions that stay, the same number in each.

    Attributes:
        groups: `(kept groups,)`: their indices.
        heads: `(kept groups, kept heads)`: indices of heads in a group.
        key_dims: `(kept groups, kept dims)`: indices in queries and keys.
        value_dims: `(kept groups, kept dims)`: indices in values and gates.
    """

    groups: np.ndarray
    heads: np.ndarray
    key_dims: np.ndarray
    value_dims: np.ndarray

    def take(self, array: np.ndarray, dims: np.ndarray) -> np.ndarray:
        """Select what stays, and join the axes of groups and heads.

        Args:
            array: `(..., groups, heads, dims)`.
            dims: `(kept groups, kept dims)`: dimensions to select.

        Returns:
            An array `(..., kept heads, kept dims)`, with the heads of all kept
            groups on one axis.
        """
        array = array[..., self.groups, :, :]
        spread = (1,) * (array.ndim - 3)
        if array.shape[-2] > 1:
            heads = self.heads.reshape(*spread, *self.heads.shape, 1)
            array = np.take_along_axis(array, heads, axis=-2)
        dims = dims.reshape(*spread, len(dims), 1, -1)
        array = np.take_along_axis(array, dims, axis=-1)
        return array.reshape(*array.shape[:-3], -1, array.shape[-1])


def _any(live: np.ndarray, axis: int) -> np.ndarray:
    return np.asarray(live.any(axis=axis))


def _first(live: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of `count` entries of each row, live ones first."""
    return np.argsort(~live, axis=1, kind="stable")[:, :count]


def _most(live: np.ndarray) -> int:
    """Return the largest number of live entries in a row, but at least 1."""
    return max(1, int(live.sum(axis=1).max()))


@rule_for(keras.layers.MultiHeadAttention)
class AttentionRule(Rule):
    """Self-attention, or attention of one tensor to another.

    Attributes:
        projections: Of query, key, value and, where there is one, the gate.
        output_kernel: `(groups, heads, dims, outputs)`.
        output_bias: `(outputs,)`, zero where there is none.
    """

    def __init__(self, layer: Any, uses: list[Node]) -> None:
        super().__init__(layer, uses)
        found = attention_projections(layer)
        output = found.pop("output")
        self.use_bias = output.bias is not None
        kernel = to_numpy(output.kernel)
        groups = found["key"].kernel.shape[1]
        self.output_kernel = kernel.reshape(groups, -1, *kernel.shape[1:])
        self.output_bias = np.zeros(kernel.shape[-1])
        if self.use_bias:
            self.output_bias = to_numpy(output.bias)
        last = len(uses[0].inputs) - 1
        positions = {"query": 0, "gate": 0, "value": 1, "key": last}
        self.projections = {
            name: _projection(one, groups, positions[name])
            for name, one in found.items()
        }
        # Unless a query may have no key to attend to: its attention weights are
        # then all zero, or uniform.
        self.sums_to_one = _sliding_window(layer) is None and not any(
            _masks(x) or any(tensor.may_be_masked for tensor in x.inputs)
            for x in uses
        )

    @classmethod
    def refusal(cls, layer: Any, node: Node) -> str | None:
        if len(node.inputs) not in (2, 3):
            return "it is called in an unusual way"
        if len(node.outputs) > 1:
            return "it returns its attention scores"
        rank = len(node.inputs[0].shape)
        axes = getattr(layer, "attention_axes", (1,))
        if len(attention_projections(layer)["output"].kernel.shape) != 3:
            return "its outputs have several axes of channels"
        if not all(0 < axis < rank - 1 for axis in axes):
            return f"it attends along the axes {axes}"
        if any(_rank(x) >= rank + len(axes) for x in _masks(node)):
            return "its mask has an axis of heads"
        return None

    @classmethod
    def macs(cls, layer: Any, node: Node) -> int | None:
        """Count those of the projections, the scores and the weighted sums."""
        queries, keys = (x.shape[1:-1] for x in node.inputs[:2])
        found = attention_projections(layer)
        # (inputs, heads, dims) and (heads, dims, outputs)
        num_heads = found["output"].kernel.shape[0]
        dims = found["query"].kernel.shape[2] + found["output"].kernel.shape[1]
        sizes = {name: entries(one.kernel) for name, one in found.items()}
        from_keys = sizes.pop("key") + sizes.pop("value")
        # Axes that are not attended along are common to queries and keys.
        axes = getattr(layer, "attention_axes", (1,))
        if not all(0 < axis <= len(keys) for axis in axes):
            return None
        attended = [keys[axis - 1] for axis in axes]
        return total(
            (
                product((*queries, sum(sizes.values()))),
                product((*keys, from_keys)),
                product((*queries, *attended, num_heads * dims)),
            )
        )

    def _constants(self, position: int) -> np.ndarray:
        """Return the constants of an input that are the same in all uses.

        They are `(width,)`, NaN elsewhere.
        """
        rows = [node.inputs[position].constant for node in self.uses]
        is_same = (np.stack(rows) == rows[0]).all(axis=0)
        return np.where(is_same, rows[0], np.nan)

    def _constants_for_biases(self, position: int) -> np.ndarray:
        """Return the constants that the biases can take over; NaN elsewhere.

        Without biases, or where these must not change (see `_has_columns`),
        that is only 0.
        """
        constants = self._constants(position)
        if self.use_bias and not self._has_columns:
            return constants
        return np.where(constants == 0.0, constants, np.nan)

    @property
    def _has_columns(self) -> bool:
        """Whether a bias has the shape `(heads, 1)`.

        On TensorFlow, Keras adds such a bias along the steps if there are as
        many steps as heads. So a layer must not be shrunk to this shape, and
        biases that have it, and are 0, must stay 0.
        """
        shapes = [one.bias.shape for one in self.projections.values()]
        return any(math.prod(x[:2]) > 1 and x[2] == 1 for x in shapes)

    def _fixed(self, name: str) -> np.ndarray:
        one = self.projections[name]
        return one.fixed(self._constants_for_biases(one.position))

    def _contexts(self) -> np.ndarray:
        """Compute constant inputs of the output projection; NaN elsewhere.

        The result is `(groups, heads, dims)`.
        """
        values = self._fixed("value")
        if not self.sums_to_one:
            values = np.where(values == 0.0, 0.0, np.nan)
        if "gate" in self.projections:
            # The sigmoid, in a form that never overflows.
            gates = 0.5 + 0.5 * np.tanh(0.5 * self._fixed("gate"))
            values = np.where(values == 0.0, 0.0, values * gates)
        return np.broadcast_to(values, self.output_kernel.shape[:3])

    def _share(self) -> np.ndarray:
        """Compute what constants add to every output, `(outputs,)`."""
        contexts = np.nan_to_num(self._contexts())
        return np.tensordot(contexts, self.output_kernel, axes=3)

    def find_constants(self, node: Node) -> None:
        live = np.isnan(self._contexts())
        is_fixed = ~(self.output_kernel[live] != 0.0).any(axis=0)
        values = finite(self.output_bias + self._share())
        node.outputs[0].constant = np.where(is_fixed, values, np.nan)

    def _live_values(self, keep: np.ndarray) -> np.ndarray:
        """Return which dimensions of values matter, `(groups, heads, dims)`."""
        is_read = (self.output_kernel[..., keep] != 0.0).any(axis=-1)
        return is_read & np.isnan(self._contexts())

    def _live_pairs(self, live_values: np.ndarray) -> np.ndarray:
        """Return which dimensions of queries and keys matter, likewise."""
        key = self.projections["key"]
        varies = np.isnan(key.fixed(self._constants(key.position)))
        is_live = varies & (self._fixed("query") != 0.0)
        return is_live & live_values.any(axis=-1, keepdims=True)

    def _live(self, keep: np.ndarray) -> dict[str, np.ndarray]:
        """Return which `(groups, heads, dims)` of each projection matter."""
        values = self._live_values(keep)
        pairs = self._live_pairs(values)
        live = {"query": pairs, "key": pairs, "value": values, "gate": values}
        return {name: live[name] for name in self.projections}

    def require(self, node: Node) -> None:
        for name, live in self._live(node.outputs[0].keep).items():
            one = self.projections[name]
            varies = np.isnan(self._constants_for_biases(one.position))
            node.inputs[one.position].keep |= one.reads(live) & varies

    @functools.cached_property
    def _selection(self) -> Selection:
        """The groups, heads and dimensions that stay.

        They are computed once, so this must not be read before it is settled
        which outputs are kept.
        """
        live = self._live(self.output.keep)
        heads = _any(live["value"], axis=2)
        alive = np.flatnonzero(heads.any(axis=1))
        groups = alive if alive.size else np.arange(1)
        pairs = _any(live["query"][groups], axis=1)
        values = _any(live["value"][groups], axis=1)
        chosen = _first(heads[groups], _most(heads[groups]))
        # See `_has_columns`.
        least = 2 if self.use_bias and chosen.size > 1 else 1
        key_dim, value_dim = self._sizes(
            max(_most(pairs), min(least, pairs.shape[-1])),
            max(_most(values), min(least, values.shape[-1])),
        )
        return Selection(
            groups,
            heads=chosen,
            key_dims=_first(pairs, key_dim),
            value_dims=_first(values, value_dim),
        )

    def _sizes(self, key_dim: int, value_dim: int) -> tuple[int, int]:
        sizes = {x.bias.shape[-1] for x in self.projections.values()}
        is_fused = self.layer.dropout == 0.0 and len(self.output.shape) == 3
        # On JAX, fused attention requires values of the size of the keys, and
        # a model must still run on all backends that it ran on before.
        if is_fused and len(sizes) == 1:
            return (max(key_dim, value_dim),) * 2
        return key_dim, value_dim

    @property
    def is_reduced(self) -> bool:
        chosen = self._selection
        groups, heads, value_dim, _ = self.output_kernel.shape
        key_dim = self.projections["key"].bias.shape[-1]
        is_smaller = (
            *(chosen.heads.shape, chosen.key_dims.shape[1]),
            chosen.value_dims.shape[1],
        ) != ((groups, heads), key_dim, value_dim)
        return is_smaller or super().is_reduced

    @property
    def inputs_kept(self) -> tuple[int, int]:
        tensors = dict.fromkeys(self.uses[0].inputs)
        kept = sum(int(np.count_nonzero(x.keep)) for x in tensors)
        return kept, sum(x.width for x in tensors)

    def shrunk(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        chosen = self._selection
        weights = []
        for name, one in self.projections.items():
            source = self.uses[0].inputs[one.position]
            is_pair = name in ("query", "key")
            dims = chosen.key_dims if is_pair else chosen.value_dims
            kernel, bias = self._reduced(one, source)
            if name == "query":
                # Keras divides by the square root of the new size.
                factor = np.sqrt(dims.shape[1] / one.bias.shape[-1])
                kernel, bias = factor * kernel, factor * bias
            weights.append(chosen.take(kernel, dims))
            if self.use_bias:
                weights.append(chosen.take(bias, dims))
        # Dimensions that only fill a head up to the common size must not add
        # to the output.
        live = self._live_values(self.output.keep)
        kernel = np.where(live[..., None], self.output_kernel, 0.0)
        kernel = np.moveaxis(kernel[..., self.output.keep], -1, 0)
        kernel = chosen.take(kernel, chosen.value_dims)
        weights.append(np.moveaxis(kernel, 0, -1))
        if self.use_bias:
            bias = self.output_bias + self._share()
            weights.append(bias[self.output.keep])
        return self._config(chosen), weights

    def _reduced(
        self, one: Projection, source: GraphTensor
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the kernel of the kept inputs; the bias has the others."""
        constants = self._constants_for_biases(one.position)
        removed = ~source.keep & ~np.isnan(constants)
        share = np.tensordot(constants[removed], one.kernel[removed], axes=1)
        return one.kernel[source.keep], one.bias + share

    def _config(self, chosen: Selection) -> dict[str, Any]:
        return {
            **self.config,
            "num_heads": chosen.heads.size,
            "key_dim": chosen.key_dims.shape[1],
            "value_dim": chosen.value_dims.shape[1],
            "output_shape": (int(np.count_nonzero(self.output.keep)),),
        }


@rule_for(keras.layers.GroupQueryAttention)
class GroupedAttentionRule(AttentionRule):
    """Attention with heads in groups, and as many outputs as inputs.

    Keys and values have the same size. So do inputs and outputs, of which all
    channels stay.
    """

    def require(self, node: Node) -> None:
        if not node.is_gone:
            for tensor in (*node.inputs, *node.outputs):
                tensor.keep[:] = True

    def _sizes(self, key_dim: int, value_dim: int) -> tuple[int, int]:
        return (max(key_dim, value_dim),) * 2

    def _config(self, chosen: Selection) -> dict[str, Any]:
        return {
            **self.config,
            "head_dim": chosen.key_dims.shape[1],
            "num_query_heads": chosen.heads.size,
            "num_key_value_heads": len(chosen.groups),
        }


def _projection(
    layer: keras.layers.EinsumDense, groups: int, position: int
) -> Projection:
    # (inputs, heads, dims)
    kernel = to_numpy(layer.kernel)
    kernel = kernel.reshape(len(kernel), groups, -1, kernel.shape[-1])
    bias = np.zeros(kernel.shape[1:])
    if layer.bias is not None:
        bias = to_numpy(layer.bias).reshape(bias.shape)
    return Projection(kernel, bias, position)


def _masks(node: Node) -> list[Any]:
    """List the masks passed to a call; they need not be tensors of the model.

    A causal mask is not among them.
    """
    names = ("query_mask", "value_mask", "key_mask", "attention_mask")
    found = [*node.args[3:7], *(node.kwargs.get(name) for name in names)]
    return [x for x in found if x is not None]


def _rank(mask: Any) -> int:
    return len(mask.shape if hasattr(mask, "shape") else np.shape(mask))


def _sliding_window(layer: Any) -> int | None:
    """Return the width of a layer's sliding window; None without one.

    With such a window a query may have no key to attend to.
    """
    window = config_of(layer).get("sliding_window")
    return None if window is None else int(window)
