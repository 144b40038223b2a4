"""Predictions that say how sure they are: read `prediction` first.

`sampler` computes the draws, `evidence` and `tasks` find out what outputs
mean, and `summaries` computes statistics of the draws. `elbo` is how well the
draws explain data, less what the weights tell.
"""

from keras_vd.uncertainty.elbo import ElboReport, elbo
from keras_vd.uncertainty.prediction import MonteCarloPrediction, predict_mc

__all__ = ["ElboReport", "MonteCarloPrediction", "elbo", "predict_mc"]
