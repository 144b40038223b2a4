"""Knowledge about Keras layers, one rule per kind of layer.

A rule says which parts of a layer `shrink` can remove, how factors of a layer's
inputs pass through it or end up in its weights, and how many multiplications it
does. What a rule is asked, and when, is in the docstring of `rule.Rule`.
`graph` writes a model down as a list of nodes, `costs` counts multiplications,
and `activations`, `factors` and `sizes` serve the rules, which are in all other
modules.
"""

# Importing them enters their rules into the table.
from keras_vd.rules import (
    attention,
    channelwise,
    embedding,
    linear,
    merging,
    normalizing,
    operations,
    recurrent,
    wrapping,
)

__all__ = [
    "attention",
    "channelwise",
    "embedding",
    "linear",
    "merging",
    "normalizing",
    "operations",
    "recurrent",
    "wrapping",
]
