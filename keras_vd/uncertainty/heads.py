"""Heads: functions that make distributions of targets of a model's outputs.

The distributions are objects of the user's own library, such as TensorFlow
Probability. What is asked of them goes by the names of their methods, so that
no such library is needed here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_vd.uncertainty.predictive import check_targets

# float32 has no more digits than so many halvings of a bracket tell.
_STEPS = 48


class Head:
    """Distributions of targets that a function makes of a model's outputs.

    Args:
        function: Takes outputs as a NumPy array of shape `(examples, ...)`,
            and returns a distribution whose mean has the shape of the targets.
    """

    def __init__(self, function: Callable[[np.ndarray], Any]) -> None:
        self.function = function

    def moments(self, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and variance of the targets, float64.

        Args:
            outputs: Those of one draw.

        Raises:
            ValueError: if the distribution lacks them, or they are not finite
                or not of one shape, with an entry for each example.
        """
        found = self.function(outputs)
        mean = _number(found, "mean")
        try:
            variance = _number(found, "variance")
        except ValueError:
            variance = np.square(_number(found, "stddev"))
        if mean.shape != variance.shape or mean.shape[:1] != outputs.shape[:1]:
            raise ValueError(
                "Argument `noise` must return a distribution whose mean and "
                f"variance are of one shape, ({len(outputs)}, ...), for "
                f"outputs of shape {outputs.shape}. Received: mean of shape "
                f"{mean.shape}, variance of shape {variance.shape}."
            )
        if not np.all(np.isfinite(mean)) or not np.all(np.isfinite(variance)):
            raise ValueError(
                "Argument `noise` must return a distribution of finite mean "
                f"and variance. Received: {found!r}, with values that are not."
            )
        return mean, variance

    def log_likelihood(
        self, outputs: np.ndarray, shape: tuple[int, ...], targets: object
    ) -> np.ndarray:
        """Compute the log density of targets under the mixture of all draws.

        Args:
            outputs: Those of all draws, shape `(draws, examples, ...)`.
            shape: That of the targets.
            targets: The targets.

        Returns:
            float64 nats, of the shape of the targets without the last axis,
            if they have more than one; columns that a distribution takes as
            independent are added up.

        Raises:
            ValueError: if targets are not of that shape or not finite numbers,
                or if the distribution has no log density of that shape.
        """
        y = check_targets(targets, shape)
        found = self._of_all(outputs)
        repeated = np.broadcast_to(y, (len(outputs), *shape))
        logs = _call(found, "log_prob", repeated.reshape(-1, *shape[1:]))
        logs = logs.reshape(len(outputs), -1, *logs.shape[1:])
        summed = shape[: max(1, len(shape) - 1)]
        if logs.shape[1:] == shape != summed:
            logs = logs.sum(axis=-1)
        if logs.shape[1:] != summed:
            raise ValueError(
                "Argument `noise` must return a distribution whose `log_prob` "
                f"of targets of shape {shape} has that shape or {summed}. "
                f"Received: shape {logs.shape[1:]}."
            )
        total: np.ndarray = np.logaddexp.reduce(logs, axis=0)
        return total - np.log(len(outputs))

    def quantile(
        self,
        outputs: np.ndarray,
        mean: np.ndarray,
        stddev: np.ndarray,
        probability: float,
    ) -> np.ndarray:
        """Compute what the mixture of all draws is below with a probability.

        By halving a bracket from Cantelli's inequality, which holds for each
        distribution of that mean and standard deviation.

        Args:
            outputs: Those of all draws, shape `(draws, examples, ...)`.
            mean: Mean of the mixture, float64 of the shape of the targets.
            stddev: Its standard deviation, likewise.
            probability: Within (0, 1).

        Returns:
            float64 of the shape of the targets: the least number at which the
            distribution function reaches `probability`, to the digits that
            float32 has, column by column.

        Raises:
            ValueError: if the distribution has no `cdf` of single columns.
        """
        found = self._of_all(outputs)
        odds = np.sqrt(probability / (1.0 - probability))
        # A little wider, as the moments are rounded.
        margin = 1e-4 * stddev + 1e-6 * np.abs(mean) + 1e-30
        low = mean - stddev / odds - margin
        high = mean + stddev * odds + margin
        for _ in range(_STEPS):
            middle = 0.5 * (low + high)
            values = np.broadcast_to(middle, (len(outputs), *mean.shape))
            shares = _call(found, "cdf", values.reshape(-1, *mean.shape[1:]))
            if shares.size != values.size:
                raise ValueError(
                    "Argument `noise` must return a distribution with a `cdf` "
                    f"of each column, of shape {mean.shape}, for quantiles. "
                    f"Received: {shares.size // len(outputs)} values."
                )
            is_enough = shares.reshape(values.shape).mean(0) >= probability
            high = np.where(is_enough, middle, high)
            low = np.where(is_enough, low, middle)
        return high

    def _of_all(self, outputs: np.ndarray) -> Any:
        """Return the distribution of all draws, one behind the other."""
        return self.function(outputs.reshape(-1, *outputs.shape[2:]))


def _member(distribution: Any, name: str) -> Any:
    found = getattr(distribution, name, None)
    if found is None:
        raise ValueError(
            "Argument `noise` must return a distribution with a `mean`, a "
            "`variance` or `stddev`, and `log_prob` and `cdf` for likelihoods "
            f"and quantiles. Received: {distribution!r}, which has no "
            f"`{name}`."
        )
    return found


def _number(distribution: Any, name: str) -> np.ndarray:
    """Return a statistic, a method or an attribute, as float64."""
    return _on_host(_value(distribution, name))


def _value(distribution: Any, name: str) -> Any:
    found = _member(distribution, name)
    return _tried(distribution, name) if callable(found) else found


def _call(distribution: Any, name: str, values: np.ndarray) -> np.ndarray:
    """Call a method with numbers, in the type of the distribution's mean."""
    mean = _value(distribution, "mean")
    if hasattr(mean, "new_tensor"):  # of PyTorch, whose methods take tensors
        argument = mean.new_tensor(values)
    else:
        argument = values.astype(np.asarray(mean).dtype)
    return _on_host(_tried(distribution, name, argument))


def _tried(distribution: Any, name: str, *arguments: Any) -> Any:
    try:
        return _member(distribution, name)(*arguments)
    except NotImplementedError as error:
        raise ValueError(
            "Argument `noise` must return a distribution that implements "
            f"`{name}`. Received: {distribution!r}, which does not: {error}"
        ) from error


def _on_host(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value).astype("float64")
