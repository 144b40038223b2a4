"""The classes of the reports that functions return, and of their rows."""

from keras_vd.calibration import CalibrationReport
from keras_vd.conversion.report import ConversionReport, ConversionRow
from keras_vd.deployment.report import ArtifactRow, DeploymentReport
from keras_vd.shrinking.report import LayerRow, ShrinkReport, ZeroedRow
from keras_vd.sparsity import GateRow, GroupRow, SparsityReport, WeightRow
from keras_vd.uncertainty import MonteCarloPrediction

__all__ = [
    "ArtifactRow",
    "CalibrationReport",
    "ConversionReport",
    "ConversionRow",
    "DeploymentReport",
    "GateRow",
    "GroupRow",
    "LayerRow",
    "MonteCarloPrediction",
    "ShrinkReport",
    "SparsityReport",
    "WeightRow",
    "ZeroedRow",
]
