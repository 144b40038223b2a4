"""Sparse, Bayesian Keras layers that learn which of their weights can go."""

from keras_vd import callbacks, kl, layers, posteriors, priors
from keras_vd.calibration import CalibrationReport, calibration_report
from keras_vd.compression import (
    DeploymentReport,
    ShrinkReport,
    deployment_report,
    export_litert,
    export_onnx,
    export_packed,
    export_saved_model,
    save_compressed,
    shrink,
)
from keras_vd.conversion import (
    ConversionReport,
    freeze_zeros,
    to_deterministic,
    to_variational,
)
from keras_vd.report import (
    kl_divergence,
    prune,
    sparsity_report,
    variational_weights,
)
from keras_vd.sparsity import SparsityReport
from keras_vd.uncertainty import MonteCarloPrediction, predict_mc
from keras_vd.version import __version__
from keras_vd.web import html_report

__all__ = [
    "CalibrationReport",
    "ConversionReport",
    "DeploymentReport",
    "MonteCarloPrediction",
    "ShrinkReport",
    "SparsityReport",
    "__version__",
    "calibration_report",
    "callbacks",
    "deployment_report",
    "export_litert",
    "export_onnx",
    "export_packed",
    "export_saved_model",
    "freeze_zeros",
    "html_report",
    "kl",
    "kl_divergence",
    "layers",
    "posteriors",
    "predict_mc",
    "priors",
    "prune",
    "save_compressed",
    "shrink",
    "sparsity_report",
    "to_deterministic",
    "to_variational",
    "variational_weights",
]
