"""Posteriors of weights. Start reading at `weight.py`.

| string | class | paper |
|---|---|---|
| `"vd"` | `VD` | Kingma et al. 2015, arXiv:1506.02557 |
| `"sparse_vd"` | `SparseVD` | Molchanov et al. 2017, arXiv:1701.05369 |
| `"ard"` | `ARD` | Kharitonov et al. 2018, arXiv:1811.00596 |
| `"gaussian"` | `Gaussian` | Kingma and Welling 2014, arXiv:1312.6114 |
"""

from __future__ import annotations

from typing import Any

import keras

from keras_vd._backend.keras_internals import no_references
from keras_vd._backend.validation import resolve
from keras_vd.posteriors.additive import (
    ARD,
    AdditiveGaussian,
    Gaussian,
    SparseVD,
)
from keras_vd.posteriors.multiplicative import VD
from keras_vd.posteriors.posterior import Posterior
from keras_vd.posteriors.weight import WeightPosterior

__all__ = [
    "ARD",
    "VD",
    "AdditiveGaussian",
    "Gaussian",
    "Posterior",
    "SparseVD",
    "WeightPosterior",
    "deserialize",
    "get",
    "instantiate",
    "serialize",
]

_NAMES: dict[str, type[WeightPosterior]] = {
    "vd": VD,
    "sparse_vd": SparseVD,
    "ard": ARD,
    "gaussian": Gaussian,
}


def get(identifier: Any) -> WeightPosterior:
    """Return the posterior that a string, a config or an object stands for.

    Raises:
        ValueError: if `identifier` is none of these.

    Example:
    >>> keras_vd.posteriors.get("ard").threshold
    3.0
    """
    return resolve("posterior", identifier, WeightPosterior, _NAMES)


def instantiate(
    identifier: Any,
    name: str,
    kl_weight: float | None = None,
    is_group: bool = False,
) -> WeightPosterior:
    """Make a new, unbuilt posterior for one weight of one layer.

    Args:
        identifier: Whatever `get` takes; an object serves as a template.
        name: Name of the new sub-layer.
        kl_weight: Initial KL weight; None leaves the template's.
        is_group: Whether it is for group variables rather than a weight.

    Example:
    >>> template = keras_vd.posteriors.SparseVD(threshold=2.0)
    >>> posterior = keras_vd.posteriors.instantiate(template, "mine")
    >>> posterior is template, posterior.threshold
    (False, 2.0)
    """
    template = get(identifier)
    if kl_weight is None:
        kl_weight = template.initial_kl_weight
    config = template.get_group_config() if is_group else template.get_config()
    return type(template)(**config, kl_weight=kl_weight, name=name)


def get_for_bias(identifier: Any) -> WeightPosterior:
    """Return the posterior that `get` finds, if a bias may have it.

    Raises:
        ValueError: if `identifier` is no posterior, one whose noise is that of
            inputs, which a bias has none of, one that would keep new biases at
            0, or one with a KL weight.
    """
    template = resolve(
        "bias_posterior", identifier, WeightPosterior, _NAMES, "posteriors"
    )
    noise = getattr(template, "noise", "weight")
    if noise != "weight":
        raise ValueError(
            "Argument `bias_posterior` must have noise='weight', as a bias has "
            f"no input to put it on. Received: noise={noise!r}."
        )
    if template.share in ("input", "rank1"):
        raise ValueError(
            "Argument `bias_posterior` must have share='weight', 'unit' or "
            "'layer', as a bias has no inputs. Received: "
            f"share={template.share!r}."
        )
    if template.train_clip and getattr(template, "criterion", "snr") == "bmr":
        raise ValueError(
            "Argument `bias_posterior` must not have criterion='bmr' with "
            "train_clip=True: Bayesian model reduction drops a bias of 0, as "
            "most are at first, and training could not bring it back."
        )
    if template.initial_kl_weight is not None:
        raise ValueError(
            "Argument `bias_posterior` must have kl_weight=None, as a layer "
            "has one KL weight for all that it has. Received: "
            f"kl_weight={template.initial_kl_weight!r}."
        )
    return template


def layer_arguments(posterior: WeightPosterior) -> dict[str, Any]:
    """Return a layer's arguments `posterior` and `kl_weight`, JSON-ready."""
    return {
        "posterior": serialize(posterior),
        "kl_weight": posterior.initial_kl_weight,
    }


def serialize(posterior: WeightPosterior) -> dict[str, Any]:
    """Return a JSON-ready description of its options, for `get` to read.

    Example:
    >>> config = keras_vd.posteriors.serialize(keras_vd.posteriors.VD())
    >>> config["class_name"]
    'VD'
    """
    with no_references():
        config = keras.saving.serialize_keras_object(posterior)
    # The description is for a template, which has no shape of its own.
    config.pop("build_config", None)
    return config


def deserialize(config: dict[str, Any]) -> WeightPosterior:
    """Make the posterior that `serialize` described.

    Raises:
        ValueError: if `config` describes something else.

    Example:
    >>> config = keras_vd.posteriors.serialize(
    ...     keras_vd.posteriors.VD(alpha_init=0.5)
    ... )
    >>> keras_vd.posteriors.deserialize(config).alpha_init
    0.5
    """
    return get(config)
