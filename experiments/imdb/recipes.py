"""Training recipes of experiments.imdb, chosen on held-out training texts."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Stage:
    """Epochs of one kind.

    Values are those at the start, at the end and, if there are more, between,
    at equal distances; they change linearly from each to the next.

    Attributes:
        epochs: Number of epochs.
        length: Number of words that each text is cut to, or None for all.
        learning_rate: Of Adam.
        kl_weight: Of the KL; 1 is the variational bound.
        structure_scale: Factor of the KL of all but the embedding.
        shrink_every: Epochs between removals of what is dead; 0 is never.
    """

    epochs: int
    learning_rate: tuple[float, ...]
    kl_weight: tuple[float, ...] = (1.0, 1.0)
    length: int | None = None
    structure_scale: float = 1.0
    shrink_every: int = 0

    def at(self, values: tuple[float, ...], epoch: float) -> float:
        """Read values of the stage where an epoch of it begins."""
        places = np.linspace(0.0, self.epochs, len(values))
        return float(np.interp(epoch, places, values))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train one network with one method.

    Attributes:
        vocabulary, features, units: Size of the network to start from.
        length: Number of words of a text that the network reads.
        plain: Stages of the plain network; the only ones of plain methods.
        variational: Stages of the variational network.
        groups: Kinds of groups of the variational network.
        batch_size: Texts per step.
        log_sigma2_init: Initial log variance.
        share: Which weights share a variance, see `posteriors.SparseVD`.
        wish: Arguments of `KLTarget`, which then finds the KL weight.
    """

    vocabulary: int
    features: int
    units: int
    length: int
    plain: tuple[Stage, ...]
    variational: tuple[Stage, ...]
    groups: tuple[str, ...] = ()
    batch_size: int = 128
    log_sigma2_init: float = -8.0
    share: str = "weight"
    wish: dict[str, Any] = dataclasses.field(default_factory=dict)

    def for_wish(self, wish: dict[str, Any]) -> Recipe:
        """The recipe with a single variational stage, as `KLTarget` needs."""
        last = self.variational[-1]
        rates = [
            stage.at(stage.learning_rate, epoch)
            for stage in self.variational
            for epoch in range(stage.epochs)
        ]
        stage = Stage(
            len(rates),
            (*rates, last.learning_rate[-1]),
            length=last.length,
            structure_scale=last.structure_scale,
        )
        return dataclasses.replace(self, variational=(stage,), wish=wish)

    def with_epochs(self, method_is_plain: bool, epochs: int) -> Recipe:
        """The recipe stretched to that many epochs of the method itself."""
        name = "plain" if method_is_plain else "variational"
        stages = getattr(self, name)
        total = sum(stage.epochs for stage in stages)
        ends = [0]
        for stage in stages:
            ends.append(ends[-1] + stage.epochs)
        ends = [round(end * epochs / total) for end in ends]
        stretched = tuple(
            dataclasses.replace(stage, epochs=end - start)
            for stage, start, end in zip(stages, ends, ends[1:], strict=False)
            if end > start
        )
        return dataclasses.replace(self, **{name: stretched})


QUICK = Recipe(
    vocabulary=10_000,
    features=32,
    units=16,
    length=300,
    plain=(Stage(1, (3e-3, 3e-3), length=200),),
    variational=(
        Stage(4, (3e-3, 3e-3), (0.0, 1.0), length=200),
        Stage(8, (3e-3, 0.0), shrink_every=4),
    ),
)
# The next two start from the published network, of which few epochs leave
# little. More KL on all but the embedding rids it of units and gates that
# do the same thing, which is where the last non-zero weights are.
WEIGHTS = Recipe(
    vocabulary=20_000,
    features=300,
    units=128,
    length=300,
    plain=(Stage(1, (3e-3, 3e-3), length=150),),
    variational=(
        Stage(2, (4e-3, 1e-3), (0.2, 0.6), length=150, structure_scale=3.0),
        Stage(
            2,
            (4e-3, 2e-3),
            (0.4, 0.4),
            length=200,
            structure_scale=5.0,
            shrink_every=1,
        ),
        Stage(8, (3e-3, 0.0), (0.4, 0.4), structure_scale=3.0, shrink_every=4),
    ),
)
GROUPS = Recipe(
    vocabulary=20_000,
    features=300,
    units=128,
    length=300,
    plain=(),
    variational=(
        Stage(3, (4e-3, 2e-3), (0.0, 1.0), length=150, structure_scale=3.0),
        Stage(4, (4e-3, 4e-3), length=200, structure_scale=5.0, shrink_every=2),
        Stage(
            6, (5e-3, 5e-3), length=200, structure_scale=20.0, shrink_every=3
        ),
        Stage(
            16,
            (5e-3, 5e-3),
            (1.0, 1.5),
            length=200,
            structure_scale=10.0,
            shrink_every=8,
        ),
        Stage(
            30, (5e-3, 0.0), (4.0, 2.5), structure_scale=4.0, shrink_every=10
        ),
    ),
    groups=("vocabulary", "input", "units", "gates"),
)
PLAIN = Recipe(
    vocabulary=20_000,
    features=300,
    units=128,
    length=300,
    plain=(Stage(3, (1e-3, 0.0)),),
    variational=(),
)
SYNTHETIC = Recipe(
    vocabulary=502,
    features=16,
    units=8,
    length=32,
    plain=(Stage(5, (1e-2, 1e-2)),),
    variational=(
        Stage(30, (1e-2, 1e-2), (0.0, 1.0)),
        Stage(30, (1e-2, 0.0), shrink_every=10),
    ),
    batch_size=64,
)

RECIPES = {
    "quick": QUICK,
    "weights": WEIGHTS,
    "groups": GROUPS,
    "plain": PLAIN,
    "synthetic": SYNTHETIC,
}
NAMES = tuple(RECIPES)
