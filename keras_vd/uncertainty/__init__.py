"""Predictions that say how sure they are: read `prediction` first.

`sampler` computes the draws, `evidence` and `tasks` find out what outputs
mean, `noise` how far targets are from them, `summaries` computes statistics of
the draws, and `predictive` what the draws together predict. `elbo` is how well
they explain data, less what the weights tell.
"""

from keras_vd.uncertainty.elbo import ElboReport, elbo
from keras_vd.uncertainty.prediction import MonteCarloPrediction, predict_mc

__all__ = ["ElboReport", "MonteCarloPrediction", "elbo", "predict_mc"]
