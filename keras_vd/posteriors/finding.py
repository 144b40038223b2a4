"""Which posteriors a model has, and what they are called."""

from __future__ import annotations

from collections import Counter

import keras

from keras_vd._backend.keras_internals import flatten_layers
from keras_vd._backend.validation import NOT_BUILT
from keras_vd.posteriors.posterior import Posterior
from keras_vd.posteriors.weight import WeightPosterior


def variational_weights(model: keras.layers.Layer) -> list[WeightPosterior]:
    """List every `WeightPosterior` of a model, also those of nested layers.

    Gates such as `keras_vd.layers.LogNormalDropout` are layers of their own
    and not among them.

    Args:
        model: A Keras model or layer.

    Returns:
        List in the order of the layers; empty for a plain model.

    Raises:
        TypeError: if `model` is no Keras layer or model.
        ValueError: if it is not built, so that its weights do not exist.

    Example:
    >>> model = keras.Sequential([
    ...     keras.Input((3,)),
    ...     keras_vd.layers.VDDense(2),
    ... ])
    >>> [tuple(x.log_alpha.shape) for x in keras_vd.variational_weights(model)]
    [(3, 2)]
    """
    return [x for x in find_posteriors(model) if isinstance(x, WeightPosterior)]


def find_posteriors(model: keras.layers.Layer) -> list[Posterior]:
    """Find the posteriors of a model's weights and gates, in order.

    Raises:
        TypeError: if `model` is no Keras layer or model.
        ValueError: if it is not built.
    """
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(
            "Argument `model` must be a Keras model or layer. Received: "
            f"model={model!r} (of type {type(model).__name__})."
        )
    found = [x for x in flatten_layers(model) if isinstance(x, Posterior)]
    if not all(posterior.built for posterior in found):
        raise ValueError(NOT_BUILT.format(name=model.name))
    return found


def required_posteriors(model: keras.layers.Layer) -> list[Posterior]:
    """Find the posteriors of a model's weights and gates, at least one.

    Raises:
        TypeError: if `model` is no Keras layer or model.
        ValueError: if it is not built or has no variational layers.
    """
    found = find_posteriors(model)
    if not found:
        raise ValueError(
            "Argument `model` must have at least one variational layer, such "
            "as `keras_vd.layers.VDDense`. Received the plain model "
            f"'{model.name}', of type {type(model).__name__}: "
            "`keras_vd.to_variational(model)` makes its layers variational."
        )
    return found


def named_posteriors(model: keras.layers.Layer) -> list[tuple[str, Posterior]]:
    """Find the `required_posteriors` and the names that reports give them.

    The name is the label of a posterior, or its path if others have the same
    label. It is numbered if others have the same path, too.
    """
    posteriors = required_posteriors(model)
    labels = Counter(posterior.label for posterior in posteriors)
    uses: Counter[str] = Counter()
    names = []
    for posterior in posteriors:
        unique = labels[posterior.label] == 1
        name = posterior.label if unique else posterior.path
        uses[name] += 1
        names.append(name if uses[name] == 1 else f"{name}_{uses[name]}")
    return list(zip(names, posteriors, strict=True))
