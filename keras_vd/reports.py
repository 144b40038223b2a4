"""The classes of the reports that functions return, and of their rows."""

from keras_vd.calibration import CalibrationReport
from keras_vd.conversion.report import (
    CompositeRow,
    ConversionReport,
    ConversionRow,
    FunctionalReport,
    StreamRow,
)
from keras_vd.decisions import OutOfDistributionReport, RiskCoverageReport
from keras_vd.deployment.report import ArtifactRow, DeploymentReport
from keras_vd.pipeline.report import CompressionReport, MetricRow, StageRow
from keras_vd.regression import RegressionCalibrationReport
from keras_vd.shrinking.report import LayerRow, ShrinkReport, ZeroedRow
from keras_vd.sparsity import GateRow, GroupRow, SparsityReport, WeightRow
from keras_vd.temperature import TemperatureReport
from keras_vd.uncertainty import ElboReport, MonteCarloPrediction

__all__ = [
    "ArtifactRow",
    "CalibrationReport",
    "CompositeRow",
    "CompressionReport",
    "ConversionReport",
    "ConversionRow",
    "DeploymentReport",
    "ElboReport",
    "FunctionalReport",
    "GateRow",
    "GroupRow",
    "LayerRow",
    "MetricRow",
    "MonteCarloPrediction",
    "OutOfDistributionReport",
    "RegressionCalibrationReport",
    "RiskCoverageReport",
    "ShrinkReport",
    "SparsityReport",
    "StageRow",
    "StreamRow",
    "TemperatureReport",
    "WeightRow",
    "ZeroedRow",
]
