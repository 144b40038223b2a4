"""Multiplications and additions that a plain model does for one example."""

from __future__ import annotations

from collections.abc import Iterable

import keras

from keras_vd._backend.keras_internals import functional_part
from keras_vd.rules.graph import Node, read_graph
from keras_vd.rules.rule import macs_of
from keras_vd.rules.sizes import total


def count_macs(model: keras.Model) -> int | None:
    """Count the multiply-accumulate operations of one example.

    Dense, einsum, convolution, recurrent and attention layers count; all other
    layers count as nothing.

    Args:
        model: A built Sequential or Functional model of plain Keras layers.

    Returns:
        Their number; None where a spatial size or the number of time steps is
        not known.
    """
    functional = functional_part(model)
    if functional is None:
        return None
    return total_macs(read_graph(functional).nodes)


def total_macs(nodes: Iterable[Node]) -> int | None:
    """Add up the operations of some nodes; None if one is not known."""
    return total(macs_of(node.operation, node) for node in nodes)
