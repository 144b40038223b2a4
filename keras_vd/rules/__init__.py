"""Knowledge about Keras layers, one rule per kind of layer.

A rule says which parts of a layer `shrink` can remove (`rule.py` defines what a
rule is asked), how factors of a layer's inputs pass through it or end up in its
weights, and how many multiplications it does. `graph` writes a model down as a
list of nodes, `costs` counts multiplications, and `activations`, `factors` and
`sizes` serve the rules, which are in all other modules.
"""

# Importing them enters their rules into the table.
from keras_vd.rules import (
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
