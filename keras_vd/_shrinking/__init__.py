"""How `keras_vd.shrink` works: read `graph`, `rule` and `analysis` first.

`graph` writes a model down as a list of nodes, `rule` says what a rule knows
about a layer, `analysis` finds what can go and `rebuild` makes the new model.
The other modules hold rules, one class per kind of layer.
"""

# Importing them enters their rules into the table.
from keras_vd._shrinking import (
    attention,
    channelwise,
    embedding,
    linear,
    merging,
    recurrent,
    wrapping,
)

__all__ = [
    "attention",
    "channelwise",
    "embedding",
    "linear",
    "merging",
    "recurrent",
    "wrapping",
]
