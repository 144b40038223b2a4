"""KL divergences of weights, in nats: see `keras_vd.divergences.kl`."""

from keras_vd.divergences.kl import (
    LOG_UNIFORM_CONSTANT,
    ard,
    gaussian,
    log_uniform_exact,
    log_uniform_kingma,
    log_uniform_lower_bound,
    log_uniform_molchanov,
)

__all__ = [
    "LOG_UNIFORM_CONSTANT",
    "ard",
    "gaussian",
    "log_uniform_exact",
    "log_uniform_kingma",
    "log_uniform_lower_bound",
    "log_uniform_molchanov",
]
