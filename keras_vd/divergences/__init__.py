"""Divergences, means and draws: pure functions, one per published equation.

`kl` is about weights, `log_normal` and `beta_bernoulli` are about gates.
"""

from keras_vd.divergences import beta_bernoulli, kl, log_normal

__all__ = ["beta_bernoulli", "kl", "log_normal"]
