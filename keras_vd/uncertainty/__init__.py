"""Predictions that say how sure they are: read `prediction` first.

`sampler` computes the draws, `evidence` and `tasks` find out what outputs
mean, `noise` how far targets are from them, `summaries` computes statistics of
the draws, and `predictive` what the draws together predict.
"""

from keras_vd.uncertainty.prediction import MonteCarloPrediction, predict_mc

__all__ = ["MonteCarloPrediction", "predict_mc"]
