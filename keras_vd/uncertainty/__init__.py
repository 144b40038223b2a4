"""Predictions that say how sure they are: read `prediction` first.

`sampler` computes the draws, `evidence` and `tasks` find out what outputs
mean, and `summaries` computes statistics of the draws.
"""

from keras_vd.uncertainty.prediction import MonteCarloPrediction, predict_mc

__all__ = ["MonteCarloPrediction", "predict_mc"]
