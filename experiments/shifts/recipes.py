"""What to choose from, by the likelihood of held-out training data."""

from __future__ import annotations

import dataclasses
import itertools


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train one network.

    Attributes:
        epochs: Number of epochs.
        learning_rate: Of Adam at the start, from where it falls linearly to 0.
        batch_size: Examples per step.
        dropout_rate: Of Monte Carlo dropout.
        kl_weight: Final weight of the KL, after a linear warm-up over half of
            the epochs; 1 is the variational bound.
        prior_stddev: Of the Gaussian prior.
        log_sigma2_init: Initial log variance of a Gaussian posterior and of
            sparse variational dropout.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    dropout_rate: float = 0.0
    kl_weight: float = 1.0
    prior_stddev: float = 0.3
    log_sigma2_init: float = -8.0


def _variants(recipe: Recipe, **values: tuple) -> tuple[Recipe, ...]:
    """One recipe for each entry of the values, which are as many."""
    names = tuple(values)
    return tuple(
        dataclasses.replace(recipe, **dict(zip(names, row, strict=True)))
        for row in zip(*values.values(), strict=True)
    )


def _candidates(
    plain: tuple[Recipe, ...], variational: Recipe, sparse_rate: float
) -> dict[str, tuple[Recipe, ...]]:
    """Candidates by method.

    Args:
        plain: Those of the plain network; the longest also is dropout's.
        variational: What variational networks have in common.
        sparse_rate: Learning rate of sparse variational dropout.
    """
    longest = max(plain, key=lambda recipe: recipe.epochs)
    weights = {"kl_weight": (0.03, 0.1, 0.3)}
    sparse = dataclasses.replace(variational, learning_rate=sparse_rate)
    # Layers without a posterior overfit as those of the plain network do.
    lengths = {recipe.epochs for recipe in (plain[0], longest)}
    epochs, strengths = zip(
        *itertools.product(sorted(lengths), (0.1, 1.0)), strict=True
    )
    partial = _variants(variational, epochs=epochs, kl_weight=strengths)
    return {
        "plain": plain,
        "dropout": _variants(longest, dropout_rate=(0.1, 0.3, 0.5)),
        "gaussian": _variants(variational, **weights),
        "gaussian_first": partial,
        "gaussian_last": partial,
        "vd": _variants(variational, **weights),
        "sparse_vd": _variants(sparse, **weights),
    }


CANDIDATES = {
    "digits": _candidates(
        _variants(Recipe(20, 3e-3, 64), epochs=(20, 40, 80)),
        Recipe(80, 5e-3, 64),
        sparse_rate=5e-3,
    ),
    "mnist": _candidates(
        _variants(Recipe(5, 2e-3, 256), epochs=(5, 10, 15)),
        Recipe(15, 3e-3, 256),
        sparse_rate=5e-3,
    ),
    "imdb": _candidates(
        _variants(Recipe(2, 2e-3, 128), epochs=(2, 3, 5)),
        Recipe(6, 3e-3, 128),
        sparse_rate=3e-3,
    ),
}
