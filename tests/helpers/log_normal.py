"""Closed forms of truncated log-normal noise, with 80 digits."""

import mpmath

MP = mpmath.MPContext()
MP.dps = 80


def mass(low, high):
    """Phi(high) - Phi(low), by the tail that loses no digits."""
    if low > 0:
        low, high = -high, -low
    return (MP.erfc(-high / MP.sqrt(2)) - MP.erfc(-low / MP.sqrt(2))) / 2


def standardized(mu, log_sigma, bounds):
    sigma = MP.exp(log_sigma)
    return sigma, *((MP.mpf(x) - mu) / sigma for x in bounds)


def exact_kl(mu, log_sigma, bounds):
    """Neklyudov et al. 2017, eq. 12."""
    _, low, high = standardized(mu, log_sigma, bounds)
    z = mass(low, high)
    edges = low * MP.npdf(low) - high * MP.npdf(high)
    entropy = log_sigma + MP.log(z) + MP.log(2 * MP.pi * MP.e) / 2
    return MP.log(bounds[1] - bounds[0]) - entropy - edges / (2 * z)


def exact_moment(mu, log_sigma, bounds, power):
    """E theta^power, by completing the square."""
    sigma, low, high = standardized(mu, log_sigma, bounds)
    shift = power * sigma
    scale = MP.exp(power * mu + shift**2 / 2)
    return scale * mass(low - shift, high - shift) / mass(low, high)


def exact_mean(mu, log_sigma, bounds):
    return exact_moment(mu, log_sigma, bounds, 1)


def exact_snr(mu, log_sigma, bounds):
    mean, square = (exact_moment(mu, log_sigma, bounds, k) for k in (1, 2))
    return mean / MP.sqrt(square - mean**2)


def exact_log_density(mu, log_sigma, bounds, value):
    """Log of the density of log(theta)."""
    sigma, low, high = standardized(mu, log_sigma, bounds)
    density = MP.npdf((value - mu) / sigma) / sigma
    return MP.log(density) - MP.log(mass(low, high))
