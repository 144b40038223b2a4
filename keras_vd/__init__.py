"""Sparse, Bayesian Keras layers that learn which of their weights can go."""

import importlib
from typing import TYPE_CHECKING, Any

from keras_vd import (
    callbacks,
    kl,
    layers,
    losses,
    optimizers,
    posteriors,
    priors,
)
from keras_vd.calibration import calibration_report
from keras_vd.conversion import (
    freeze_zeros,
    to_deterministic,
    to_functional,
    to_variational,
)
from keras_vd.decisions import out_of_distribution_auroc, risk_coverage
from keras_vd.html import html_report
from keras_vd.posteriors.finding import variational_weights
from keras_vd.precision import bit_widths
from keras_vd.pruning import kl_divergence, prune
from keras_vd.regression import regression_calibration
from keras_vd.shrinking import shrink
from keras_vd.sparsity import sparsity_report
from keras_vd.temperature import temperature_scaling
from keras_vd.uncertainty import elbo, predict_mc
from keras_vd.version import __version__

if TYPE_CHECKING:
    from keras_vd import deployment, plots, reports
    from keras_vd.pipeline import compress

__all__ = [
    "__version__",
    "bit_widths",
    "calibration_report",
    "callbacks",
    "compress",
    "deployment",
    "elbo",
    "freeze_zeros",
    "html_report",
    "kl",
    "kl_divergence",
    "layers",
    "losses",
    "optimizers",
    "out_of_distribution_auroc",
    "plots",
    "posteriors",
    "predict_mc",
    "priors",
    "prune",
    "regression_calibration",
    "reports",
    "risk_coverage",
    "shrink",
    "sparsity_report",
    "temperature_scaling",
    "to_deterministic",
    "to_functional",
    "to_variational",
    "variational_weights",
]

# Imported when they are first used: `plots` needs matplotlib, which is
# optional, and the others are needed only after training.
_LATER = ("deployment", "plots", "reports")


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return importlib.import_module(f"keras_vd.{name}")
    if name == "compress":
        return importlib.import_module("keras_vd.pipeline").compress
    raise AttributeError(f"module 'keras_vd' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, "compress"})
