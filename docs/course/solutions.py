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


def snr_of_log_normal(sigma: float) -> float:
    """Page 9: the mean of a log-normal variable over its deviation."""
    # Var / mean^2 = E z^2 / (E z)^2 - 1, in which mu cancels.
    return float(1 / np.sqrt(np.expm1(sigma**2)))


def accumulated_variance(inputs, sigma: float) -> tuple[float, float]:
    """Page 10: of a sum over steps, by one sample and by noise per step."""
    one = np.sum(inputs) ** 2 * sigma**2
    per_step = np.sum(np.square(inputs)) * sigma**2
    return float(one), float(per_step)


def slope_of_shared_kl(theta, log_sigma2: float) -> float:
    """Page 11: of the ARD divergence of a unit, by its log variance.

    It is between -n / 2 and 0: minus half the number of weights in use.
    """
    s = np.square(theta) * np.exp(-log_sigma2)
    return float(-0.5 * np.sum(s / (1 + s)))


def attention_parameters(dim: int, heads: int, size: int) -> tuple[int, int]:
    """Page 12: of an attention layer, and of one of its heads."""
    # Query, key and value with their biases, and rows of the output kernel.
    head = 3 * (dim + 1) * size + size * dim
    return heads * head + dim, head


def mutual_information(draws) -> np.ndarray:
    """Page 13: nats, from probabilities of shape (draws, examples, classes).

    It is 0 where all draws agree, and at most the log of the number of classes.
    """

    def entropy(p):
        return -np.sum(p * np.log(np.maximum(p, 1e-12)), axis=-1)

    return entropy(draws.mean(axis=0)) - entropy(draws).mean(axis=0)
