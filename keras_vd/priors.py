"""Priors over weights, and the KL divergence of a Gaussian posterior to them.

A prior turns the parameters of a factorized Gaussian posterior
q(w) = N(theta, sigma2) into one KL term per weight. It holds no variables, so
one object may serve any number of weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import keras

from keras_vd._backend.types import Tensor
from keras_vd._backend.validation import (
    check_choice,
    check_number,
    check_share,
    resolve,
)
from keras_vd.divergences import kl


class Prior:
    """Base of all priors.

    A subclass implements `kl_divergence` and, if it takes arguments,
    `get_config`; register it with
    `keras.saving.register_keras_serializable` to save models that use it.

    Example:
    >>> prior = keras_vd.priors.get("log_uniform")
    >>> isinstance(prior, keras_vd.priors.Prior)
    True
    """

    @property
    def is_scale_free(self) -> bool:
        """Whether the divergence depends on `log_alpha` alone."""
        return False

    @property
    def is_about_initial(self) -> bool:
        """Whether `kl_divergence` takes the weight that training began with.

        It is a fourth argument then, of the shape of `theta`, and the posterior
        keeps it.
        """
        return False

    @property
    def is_sampled(self) -> bool:
        """Whether `kl_divergence` is of one sample of each weight.

        Its fourth argument is then the standard normal noise of that sample, of
        the shape of `theta`.
        """
        return False

    def at_fan_in(self, fan_in: int) -> Prior:
        """Return the prior of weights of which so many add up to one output.

        Args:
            fan_in: Int >= 1. It is 1 for biases, group variables and tables of
                vectors.

        Returns:
            A prior that no longer depends on it: this one, unless it scales.
        """
        return self

    def kl_divergence(
        self, theta: Tensor, log_sigma2: Tensor, log_alpha: Tensor
    ) -> Tensor:
        """Compute KL(q || prior) of every weight on its own.

        Args:
            theta: Posterior means, float32, any shape.
            log_sigma2: Log variances, broadcastable to `theta`.
            log_alpha: log(sigma2 / theta^2), broadcastable to `theta`.

        Returns:
            Float32 tensor of nats, broadcastable to `theta`'s shape.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must implement `kl_divergence`."
        )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Prior:
        """Make the prior that `get_config` described."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_vd")
class LogUniform(Prior):
    """Improper log-uniform prior p(|w|) ~ 1/|w| of variational dropout.

    It asks for no particular scale of the weights and rewards noise alone,
    which is what makes weights disappear. Being improper it has no normalized
    density: the KL is defined up to a constant, chosen here so that a weight
    of infinite alpha costs nothing. Read it as a sparsity objective rather
    than as a Bayesian prior (Hron et al. 2018, arXiv:1807.01969).

    Args:
        kl: Which form of the divergence: `"molchanov"` (Molchanov et al. 2017,
            eq. 14; within 0.0094 nats of the exact one), `"exact"`,
            `"kingma"` (cubic, alpha <= 1) or `"lower_bound"` (alpha <= 1).
            `python -m benchmarks` measures what exactness costs.

    Raises:
        ValueError: if `kl` is none of these.

    Example:
    >>> prior = keras_vd.priors.LogUniform(kl="exact")
    >>> posterior = keras_vd.posteriors.SparseVD(prior=prior)
    """

    _forms: ClassVar[dict[str, Callable[[Any], Any]]] = {
        "exact": kl.log_uniform_exact,
        "molchanov": kl.log_uniform_molchanov,
        "kingma": kl.log_uniform_kingma,
        "lower_bound": kl.log_uniform_lower_bound,
    }

    def __init__(self, kl: str = "molchanov") -> None:
        self.kl = check_choice("kl", kl, self._forms)

    @property
    def is_scale_free(self) -> bool:
        return True

    def kl_divergence(
        self, theta: Tensor, log_sigma2: Tensor, log_alpha: Tensor
    ) -> Tensor:
        return self._forms[self.kl](log_alpha)

    def get_config(self) -> dict[str, Any]:
        return {"kl": self.kl}


@keras.saving.register_keras_serializable(package="keras_vd")
class ARD(Prior):
    """Automatic relevance determination: a Gaussian prior per weight.

    Its precision is set to the best value, 1 / (theta^2 + sigma2), which
    leaves KL = log(1 + 1/alpha) / 2 (Kharitonov et al. 2018,
    arXiv:1811.00596). Unlike the log-uniform prior it is proper.

    Example:
    >>> posterior = keras_vd.posteriors.SparseVD(prior=keras_vd.priors.ARD())
    """

    @property
    def is_scale_free(self) -> bool:
        return True

    def kl_divergence(
        self, theta: Tensor, log_sigma2: Tensor, log_alpha: Tensor
    ) -> Tensor:
        return kl.ard(log_alpha)


@keras.saving.register_keras_serializable(package="keras_vd")
class Gaussian(Prior):
    """Normal prior N(mean, stddev^2), with the closed-form divergence.

    With `mean="initial"` the prior of a weight is around the value that it had
    when training began (MOPED, Krishnan et al. 2020, arXiv:1906.05323): that of
    the trained model which `to_variational` was given, the initial value in a
    layer made anew, and 1 for a group variable. The posterior keeps it as
    `prior_mean`; its `start_from_weight` takes the present value instead.

    Args:
        stddev: Standard deviation, float > 0, in units of the weight.
        mean: `"zero"` or `"initial"`.
        scale: None, or `"fan_in"`: the standard deviation is
            stddev / sqrt(fan_in), fan_in being the number of weights that add
            up to one output. So the prior of a unit's sum does not grow with
            its inputs, however many (Neal 1996, section 2.1). With
            `stddev=math.sqrt(2)` it has the width of the initial weights of He
            et al. 2015 (arXiv:1502.01852), who make up for ReLU, which halves
            the mean square. Biases, group variables and vectors of embeddings
            have a fan-in of 1, and keep `stddev`.

    Raises:
        TypeError: if `stddev` is not a number.
        ValueError: if it is not positive and finite, or if `mean` or `scale`
            is not allowed.

    Example:
    >>> prior = keras_vd.priors.Gaussian(0.1, mean="initial")
    >>> posterior = keras_vd.posteriors.Gaussian(prior=prior)
    >>> layer = keras_vd.layers.VDDense(10, posterior=posterior)
    """

    def __init__(
        self,
        stddev: float = 1.0,
        mean: str = "zero",
        scale: str | None = None,
    ) -> None:
        self.stddev = check_number("stddev", stddev, 0.0, exclusive=True)
        self.mean = check_choice("mean", mean, ("zero", "initial"))
        self.scale = _check_scale(scale)

    @property
    def is_about_initial(self) -> bool:
        return self.mean == "initial"

    def at_fan_in(self, fan_in: int) -> Prior:
        if self.scale is None:
            return self
        return Gaussian(self.stddev / math.sqrt(fan_in), self.mean)

    def kl_divergence(
        self,
        theta: Tensor,
        log_sigma2: Tensor,
        log_alpha: Tensor,
        initial: Tensor | None = None,
    ) -> Tensor:
        change = theta if initial is None else theta - initial
        return kl.gaussian(change, log_sigma2, self.stddev)

    def get_config(self) -> dict[str, Any]:
        return {
            "stddev": self.stddev,
            "mean": self.mean,
            "scale": self.scale,
        }


@keras.saving.register_keras_serializable(package="keras_vd")
class ScaleMixture(Prior):
    """Mixture of two normals around zero, one wide and one narrow.

    p(w) = pi N(w; 0, stddev_1^2) + (1 - pi) N(w; 0, stddev_2^2) (Blundell et
    al. 2015, arXiv:1505.05424, eq. 7), with the authors' shape as default: most
    weights are near zero, and large ones cost little. The divergence has no
    closed form. Each training step estimates it by log q(w) - log p(w) at one
    sample w of every weight. The sample is not the one that the outputs are
    computed with; the estimate and its gradient are right on average all the
    same.

    Outside training, too, `kl_divergence` draws one sample of every weight at
    each call, so its values differ, and logging it advances the seeds of the
    noise. `keras_vd.elbo` takes the mean over its draws.

    Args:
        pi: Share of the wide normal, float in (0, 1).
        stddev_1: Standard deviation of the wide one, in units of the weight.
        stddev_2: That of the narrow one, float > 0 and below `stddev_1`.
        scale: None, or `"fan_in"`: both are divided by sqrt(fan_in), as in
            `Gaussian`.

    Raises:
        TypeError: if a number is expected and something else came.
        ValueError: if an argument is not in these bounds.

    Example:
    >>> prior = keras_vd.priors.ScaleMixture(pi=0.25, stddev_2=0.01)
    >>> posterior = keras_vd.posteriors.Gaussian(prior=prior)
    """

    def __init__(
        self,
        pi: float = 0.5,
        stddev_1: float = 1.0,
        stddev_2: float = math.exp(-6.0),
        scale: str | None = None,
    ) -> None:
        self.pi = check_share("pi", pi)
        self.stddev_1 = check_number("stddev_1", stddev_1, 0.0, exclusive=True)
        self.stddev_2 = check_number("stddev_2", stddev_2, 0.0, exclusive=True)
        if self.stddev_2 >= self.stddev_1:
            raise ValueError(
                "Argument `stddev_2` must be less than `stddev_1`. Received: "
                f"stddev_1={stddev_1!r}, stddev_2={stddev_2!r}."
            )
        self.scale = _check_scale(scale)

    @property
    def is_sampled(self) -> bool:
        return True

    def at_fan_in(self, fan_in: int) -> Prior:
        if self.scale is None:
            return self
        root = math.sqrt(fan_in)
        return ScaleMixture(self.pi, self.stddev_1 / root, self.stddev_2 / root)

    def kl_divergence(
        self,
        theta: Tensor,
        log_sigma2: Tensor,
        log_alpha: Tensor,
        noise: Tensor | None = None,
    ) -> Tensor:
        return kl.scale_mixture_sample(
            theta, log_sigma2, noise, self.pi, self.stddev_1, self.stddev_2
        )

    def get_config(self) -> dict[str, Any]:
        return {
            "pi": self.pi,
            "stddev_1": self.stddev_1,
            "stddev_2": self.stddev_2,
            "scale": self.scale,
        }


def _check_scale(scale: Any) -> str | None:
    if scale not in (None, "fan_in"):
        raise ValueError(
            "Argument `scale` must be None or 'fan_in'. Received: "
            f"scale={scale!r}."
        )
    return "fan_in" if scale else None


_NAMES: dict[str, type[Prior]] = {
    "log_uniform": LogUniform,
    "ard": ARD,
    "gaussian": Gaussian,
    "scale_mixture": ScaleMixture,
}


def get(identifier: Any) -> Prior:
    """Return the prior that a string, a config or a `Prior` stands for.

    Raises:
        ValueError: if `identifier` is none of these.

    Example:
    >>> prior = keras_vd.priors.get("ard")
    >>> isinstance(prior, keras_vd.priors.ARD)
    True
    """
    return resolve("prior", identifier, Prior, _NAMES)


def serialize(prior: Prior) -> dict[str, Any]:
    """Return a JSON-ready description of `prior`, which `get` understands.

    Example:
    >>> config = keras_vd.priors.serialize(keras_vd.priors.Gaussian(0.3))
    >>> config["class_name"]
    'Gaussian'
    """
    return keras.saving.serialize_keras_object(prior)


def deserialize(config: dict[str, Any]) -> Prior:
    """Make the prior that `serialize` described.

    Raises:
        ValueError: if `config` describes something else.

    Example:
    >>> config = keras_vd.priors.serialize(keras_vd.priors.ARD())
    >>> isinstance(keras_vd.priors.deserialize(config), keras_vd.priors.ARD)
    True
    """
    return get(config)
