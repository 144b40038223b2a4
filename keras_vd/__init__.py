"""Sparse, Bayesian Keras layers that learn which of their weights can go."""

from keras_vd import callbacks, kl, layers, posteriors, priors
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
from keras_vd.conversion import freeze_zeros, to_deterministic
from keras_vd.report import (
    kl_divergence,
    prune,
    sparsity_report,
    variational_weights,
)
from keras_vd.sparsity import SparsityReport
from keras_vd.version import __version__

__all__ = [
    "DeploymentReport",
    "ShrinkReport",
    "SparsityReport",
    "__version__",
    "callbacks",
    "deployment_report",
    "export_litert",
    "export_onnx",
    "export_packed",
    "export_saved_model",
    "freeze_zeros",
    "kl",
    "kl_divergence",
    "layers",
    "posteriors",
    "priors",
    "prune",
    "save_compressed",
    "shrink",
    "sparsity_report",
    "to_deterministic",
    "variational_weights",
]
