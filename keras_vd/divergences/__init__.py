"""Divergences, means and draws: pure functions, one per published equation.

`kl` is about weights; `log_normal`, `beta_bernoulli` and `hard_concrete` are
about gates.
"""

from keras_vd.divergences import beta_bernoulli, hard_concrete, kl, log_normal

__all__ = ["beta_bernoulli", "hard_concrete", "kl", "log_normal"]
