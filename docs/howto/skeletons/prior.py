"""A prior: its divergence from a Gaussian, weight by weight."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from keras_vd import priors

register = keras.saving.register_keras_serializable(package="skeletons")


@register
class Laplace(priors.Prior):
    """p(w) = exp(-|w| / scale) / (2 scale)."""

    def __init__(self, scale=1.0):
        self.scale = scale

    def kl_divergence(self, theta, log_sigma2, log_alpha):
        sigma = ops.exp(0.5 * log_sigma2)
        z = theta / sigma
        # E|w| under the posterior.
        size = sigma * np.sqrt(2.0 / np.pi) * ops.exp(-0.5 * z * z)
        size = size + theta * ops.erf(z * np.sqrt(0.5))
        entropy = 0.5 * (np.log(2.0 * np.pi * np.e) + log_sigma2)
        return size / self.scale + np.log(2.0 * self.scale) - entropy

    def get_config(self):
        return {"scale": self.scale}
