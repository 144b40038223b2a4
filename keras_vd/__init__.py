"""keras_vd"""
from keras_vd import kl, layers, posteriors, priors
