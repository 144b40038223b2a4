"""A gate: its variables, mean, draws, divergence and what it keeps."""

from __future__ import annotations

import keras
from keras import ops

from keras_vd.divergences import kl
from keras_vd.layers.structured import MIN_UNIFORM, StructuredGate

register = keras.saving.register_keras_serializable(package="skeletons")


@register
class GaussianGate(StructuredGate):
    """Each unit times z: posterior N(mu, sigma^2), prior N(0, 1).

    A unit is kept where |mu| / sigma exceeds the threshold.
    """

    def __init__(self, mu_init=1.0, log_sigma2_init=-6.0, **options):
        super().__init__(**{"threshold": 1.0, **options})
        self.mu_init = mu_init
        self.log_sigma2_init = log_sigma2_init

    def build(self, input_shape):
        super().build(input_shape)
        self.mu = self._add_parameter("mu", self.mu_init)
        self.log_sigma2 = self._add_parameter(
            "log_sigma2", self.log_sigma2_init
        )

    def gate_mean(self):
        return self._masked(ops.convert_to_tensor(self.mu))

    def snr(self):
        """Compute |mu| / sigma of each unit."""
        sigma = ops.exp(0.5 * ops.convert_to_tensor(self.log_sigma2))
        return self._masked(ops.abs(self.mu) / sigma)

    def margin(self):
        # `KLTarget` ranks by it: positive is kept, in logs of powers.
        least = max(self.threshold, MIN_UNIFORM)
        return 2.0 * ops.log(ops.maximum(self.snr(), MIN_UNIFORM) / least)

    def _is_above(self, threshold):
        return self.snr() > threshold

    def _kl_terms(self):
        mu, log_sigma2 = map(ops.convert_to_tensor, (self.mu, self.log_sigma2))
        return kl.gaussian(mu, log_sigma2, 1.0)

    def _draw(self, inputs, training):
        noise = keras.random.normal(
            (self.units,), dtype="float32", seed=self.seed_generator
        )
        return self.mu + ops.exp(0.5 * self.log_sigma2) * noise

    def get_config(self):
        return {
            **super().get_config(),
            "mu_init": self.mu_init,
            "log_sigma2_init": self.log_sigma2_init,
        }
