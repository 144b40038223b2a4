"""A posterior: its variables, and the log variances that follow from them."""

from __future__ import annotations

import keras
from keras import ops

from keras_vd import posteriors
from keras_vd.posteriors.moments import THETA2_FLOOR

register = keras.saving.register_keras_serializable(package="skeletons")


@register
class SoftplusGaussian(posteriors.WeightPosterior):
    """Posterior N(theta, sigma2) with sigma = log(1 + exp(rho)).

    This is the parameterization of Blundell et al. 2015 (arXiv:1505.05424,
    section 3.2), with their prior N(0, 1) and without pruning by default.
    """

    # The variables of others need a bound: see `AdditiveGaussian`.
    _shares = ("weight",)

    def __init__(self, rho_init=-3.0, **options):
        super().__init__(**{"prior": "gaussian", "threshold": None, **options})
        self.rho_init = rho_init

    def build(self, input_shape):
        super().build(input_shape)
        self.rho = self.add_weight(
            name="rho",
            shape=input_shape,
            initializer=keras.initializers.Constant(self.rho_init),
            # Variances are not for 16 bits, whatever the layer computes in.
            dtype="float32",
            autocast=False,
        )

    def _noise_parameters(self):
        return (self.rho,)

    def _log_variances(self, theta, rho):
        log_sigma2 = 2.0 * ops.log(ops.softplus(rho))
        return log_sigma2, log_sigma2 - ops.log(theta**2 + THETA2_FLOOR)

    def get_config(self):
        return {"rho_init": self.rho_init, **super().get_config()}
