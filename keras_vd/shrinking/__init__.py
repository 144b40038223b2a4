"""Physically smaller models: read `analysis` first.

`keras_vd.rules` knows layers; `analysis` finds what can go, `rebuild` makes the
new model, `reasons` and `report` say what became of each layer, and
`shrink_model` is what users call.
"""

from keras_vd.shrinking.report import LayerRow, ShrinkReport
from keras_vd.shrinking.shrink_model import shrink

__all__ = ["LayerRow", "ShrinkReport", "shrink"]
