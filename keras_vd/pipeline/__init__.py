"""The whole way from a plain Keras model to a small one, in one call.

`compressing` is the way, stage by stage; `data` and `compiling` are what it
trains on and how, `wishes` what it shall reach, `folder` how it goes on after
an interruption, `command` the command line.
"""

from keras_vd.pipeline.compressing import compress
from keras_vd.pipeline.report import CompressionReport, MetricRow, StageRow

__all__ = ["CompressionReport", "MetricRow", "StageRow", "compress"]
