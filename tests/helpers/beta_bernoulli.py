"""Closed forms of Beta-Bernoulli noise, with 40 digits."""

import mpmath

MP = mpmath.MPContext()
MP.dps = 40


def softplus(x):
    return MP.log1p(MP.exp(x))


def exact_kl(x, y, alpha):
    """Nalisnick and Smyth 2017, with b instead of 1 + b."""
    a, b, alpha = softplus(x), softplus(y), MP.mpf(alpha)
    harmonic = -MP.euler - MP.digamma(b) - 1 / b
    return (1 - alpha / a) * harmonic + MP.log(a * b / alpha) - (b - 1) / b


def exact_mean(x, y):
    """b B(1 + 1 / a, b) (Kumaraswamy's first moment)."""
    a, b = softplus(x), softplus(y)
    return b * MP.beta(1 + 1 / a, b)
