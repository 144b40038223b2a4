"""Make models physically smaller; `analysis` is the module to read first.

`keras_vd.rules` knows layers, `analysis` finds what can be removed, `rebuild`
makes the new model, `by_config` shrinks layers that `keras_vd.rules` does not
know, `reasons` and `report` tell what was removed from each
layer or why not, and `shrink_model` has the function that users call.
"""

from keras_vd.shrinking.report import LayerRow, ShrinkReport, ZeroedRow
from keras_vd.shrinking.shrink_model import shrink

__all__ = ["LayerRow", "ShrinkReport", "ZeroedRow", "shrink"]
