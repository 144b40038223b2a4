"""The KL divergence of a model, and the pruning of its weights and gates."""

from __future__ import annotations

import math

import keras
from keras import ops

from keras_vd._backend.validation import check_finite_model
from keras_vd.layers.structured import StructuredGate
from keras_vd.posteriors import WeightPosterior
from keras_vd.posteriors.finding import required_posteriors
from keras_vd.sparsity import SparsityReport, sparsity_report


def kl_divergence(model: keras.layers.Layer) -> float:
    """Compute the KL divergence of a model's posteriors to their priors.

    Each weight and gate counts once, without `kl_weight` and `kl_scale`. Under
    `priors.ScaleMixture` it is an estimate, another one at each call.

    Args:
        model: A built Keras model or layer with variational layers.

    Returns:
        Nats, summed over all weights and gates.

    Raises:
        TypeError: if `model` is no Keras layer or model.
        ValueError: if it is not built, has no variational weights, or has
            weights that are not finite.

    Example:
    >>> posterior = keras_vd.posteriors.Gaussian(log_sigma2_init=0.0)
    >>> layer = keras_vd.layers.VDDense(
    ...     2, posterior=posterior, kernel_initializer="zeros"
    ... )
    >>> model = keras.Sequential([keras.Input((3,)), layer])
    >>> float(keras_vd.kl_divergence(model))  # from N(0, 1) to N(0, 1)
    0.0
    """
    divergence = current_kl_divergence(model)
    if not math.isfinite(divergence):
        check_finite_model(model)
    return divergence


def current_kl_divergence(model: keras.layers.Layer) -> float:
    """Compute the KL divergence in nats even if the model has diverged.

    It is then NaN or infinite, where `kl_divergence` raises an error.
    """
    return float(
        sum(
            float(ops.convert_to_numpy(posterior.kl_divergence()))
            for posterior in required_posteriors(model)
        )
    )


def prune(
    model: keras.layers.Layer, threshold: float | None = None
) -> SparsityReport:
    """Fix which weights and gates of a model are zero from now on.

    Training may go on afterwards; what is pruned stays zero.

    Args:
        model: A built Keras model or layer with variational layers.
        threshold: Float: weights with `log_alpha >= threshold` go. By default
            each posterior's own threshold, which gates use in any case: their
            thresholds are in other units. Bayesian model reduction has none.

    Returns:
        The report of the pruned model.

    Raises:
        TypeError: if `threshold` is not a number or `model` no Keras layer.
        ValueError: if `threshold` is not within [-20, 20] or given for a
            model whose only posteriors are gates or with a posterior that
            knows none, or if `model` is not built, has no variational layers
            or has weights that are not finite.

    Example:
    >>> model = keras.Sequential([
    ...     keras.Input((3,)),
    ...     keras_vd.layers.VDDense(2),
    ... ])
    >>> report = keras_vd.prune(model, threshold=-20.0)  # all weights
    >>> report.sparsity
    1.0
    """
    posteriors = required_posteriors(model)
    check_finite_model(model)
    gates = [x for x in posteriors if isinstance(x, StructuredGate)]
    if threshold is not None and len(gates) == len(posteriors):
        raise ValueError(
            "Argument `threshold` is about the `log_alpha` of weights, and "
            f"'{model.name}' has gates only: pass thresholds to these, or to "
            f"their `prune` methods. Received: threshold={threshold!r}."
        )
    weights = [x for x in posteriors if isinstance(x, WeightPosterior)]
    for posterior in weights:
        posterior.limit(threshold)  # refuses what one of them does not take
    for posterior in weights:
        posterior.prune(threshold)
    for gate in gates:
        gate.prune()
    return sparsity_report(model)
