"""What is known about layers of Keras, one rule per kind of layer.

A rule says what of a layer can go when `shrink` asks (`rule.py` tells what it
is asked), how factors of a layer's inputs pass it or end in its weights, and
how many multiplications it does. `graph` writes a model down as a list of
nodes; all other modules hold rules.
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
