"""Physically smaller models: read `graph`, `rule` and `analysis` first.

`graph` writes a model down as a list of nodes, `rule` says what a rule knows
about a layer, `analysis` finds what can go, `rebuild` makes the new model and
`shrink_model` is what users call. The other modules hold rules, one class per
kind of layer.
"""

# Importing them enters their rules into the table.
from keras_vd.shrinking import (
    attention,
    channelwise,
    embedding,
    linear,
    merging,
    recurrent,
    wrapping,
)
from keras_vd.shrinking.report import LayerRow, ShrinkReport
from keras_vd.shrinking.shrink_model import shrink

__all__ = [
    "LayerRow",
    "ShrinkReport",
    "attention",
    "channelwise",
    "embedding",
    "linear",
    "merging",
    "recurrent",
    "shrink",
    "wrapping",
]
