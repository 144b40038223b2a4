"""Solutions of the exercises; `tests/test_course.py` checks them."""

import itertools

import numpy as np


def noise_of_inverted_dropout(keep: float) -> tuple[float, float]:
    """Page 1: mean and variance of r, which is 1 / keep or 0."""
    mean = keep * (1 / keep) + (1 - keep) * 0
    mean_of_square = keep * (1 / keep) ** 2
    return mean, mean_of_square - mean**2


def drop_probability(alpha: float) -> float:
    """Page 2: the rate of binary dropout with noise of variance alpha."""
    return alpha / (1 + alpha)


def gaussian_kl(theta, sigma, prior_stddev):
    """Page 3: KL(N(theta, sigma^2) || N(0, prior_stddev^2)) in nats."""
    ratio = (sigma**2 + theta**2) / prior_stddev**2
    return 0.5 * (ratio - 1) - np.log(sigma / prior_stddev)


def gradient_variance(variance, covariance, examples, batch):
    """Page 4: variance of a minibatch estimate of a sum over all examples."""
    return examples**2 * (variance / batch + (batch - 1) / batch * covariance)


def log_uniform_kl(log_alpha: float, samples: int = 1_000_000) -> float:
    """Page 5: the KL to the log-uniform prior in nats, from samples."""
    noise = np.random.default_rng(0).normal(size=samples)
    factor = 1 + np.exp(0.5 * log_alpha) * noise
    constant = 0.5 * (np.euler_gamma + np.log(2))
    return constant - 0.5 * log_alpha + float(np.mean(np.log(np.abs(factor))))


def best_variance(theta: float) -> float:
    """Page 6: the variance at which the ARD objective of a weight is least.

    The objective is curvature / 2 * sigma2 + log(1 + theta^2 / sigma2) / 2
    for a curvature of 1 nat per squared unit.
    """
    # sigma2 (sigma2 + theta^2) = theta^2, from the derivative.
    return 0.5 * (-(theta**2) + abs(theta) * np.sqrt(theta**2 + 4))


def parameters_left(model) -> int:
    """Page 7: what shrink leaves of a dense network, without shrinking it.

    A hidden unit stays if a weight goes in and a weight goes out; an input
    stays. A unit without inputs is a constant, for the next bias.
    """
    kernels = [layer.get_weights()[0] for layer in model.layers]
    while True:
        before = sum(np.count_nonzero(kernel) for kernel in kernels)
        for first, second in itertools.pairwise(kernels):
            first[:, ~second.any(axis=1)] = 0
            second[~first.any(axis=0)] = 0
        if sum(np.count_nonzero(kernel) for kernel in kernels) == before:
            break
    widths = [kernel.any(axis=0).sum() for kernel in kernels[:-1]]
    sizes = [len(kernels[0]), *widths, kernels[-1].shape[1]]
    return int(sum((a + 1) * b for a, b in itertools.pairwise(sizes)))


def mass_of_log_uniform(smallest: float, largest: float) -> float:
    """Page 8: the integral of 1 / |w| over smallest < |w| < largest."""
    return float(2 * np.log(largest / smallest))
