"""Training recipes of experiments.mnist, chosen on held-out training images.

`--holdout 5000` repeats the choice: it trains on the first 55,000 images and
reports on the last 5,000 instead of the test set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

import keras_vd
from experiments.mnist.models import SPARSE


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train one network with one method.

    Attributes:
        pretrain_epochs: Epochs of the plain network whose weights the
            variational one starts from.
        epochs: Epochs of the method itself.
        finetune_epochs: Epochs of the pruned plain network, zeros frozen.
        batch_size: Images per step.
        learning_rate: Of Adam, at the start.
        plain_learning_rate: The same for plain networks, that of
            pre-training included.
        finetune_learning_rate: The same for fine-tuning.
        constant_share: Share of the epochs before the learning rate begins
            its linear way to 0.
        warmup_epochs: Length of the linear KL warm-up from epoch 0.
        kl_weight: Final weight of the KL; 1 is the variational bound.
        free_share: Share of the epochs, at the end, without KL.
        clip_threshold: log_alpha at which a weight's mean is left out while
            training.
        threshold: log_alpha at which a weight is pruned at the end.
        log_sigma2_init: Initial log variance.
        share: Which weights share a variance, see `posteriors.SparseVD`.
        weight_decay: Factor of |kernel|^2 / 2 in the loss of plain networks.
        shift: Largest random shift of a training image, in pixels.
        gate_factor: Learning rate of gates relative to that of weights.
        kl_scales: Factor of each gate's KL; empty for 1 each.
        a_init: Initial `a_unconstrained` of Beta-Bernoulli gates.
        sigma_init: Initial `sigma_unconstrained` of dependent ones.
        shrink_every: Epochs between removals of what is dead; 0 is never.
        wish: Arguments of `KLTarget`, which then takes the place of
            `kl_weight`, `warmup_epochs` and `free_share`.
        prune_steps: Number of times that weights are removed by their score.
        first: How to train the Beta-Bernoulli network that a dependent one
            starts from.
    """

    pretrain_epochs: int = 0
    epochs: int = 15
    finetune_epochs: int = 0
    batch_size: int = 100
    learning_rate: float = 1e-3
    plain_learning_rate: float = 1e-3
    finetune_learning_rate: float = 1e-3
    constant_share: float = 0.5
    warmup_epochs: int = 10
    kl_weight: float = 1.0
    free_share: float = 0.0
    clip_threshold: float = 3.0
    threshold: float = 3.0
    log_sigma2_init: float = -8.0
    share: str = "weight"
    weight_decay: float = 1e-4
    shift: int = 0
    gate_factor: float = 1.0
    kl_scales: tuple[float, ...] = ()
    a_init: float = 2.0
    sigma_init: float = -3.0
    shrink_every: int = 0
    wish: dict[str, Any] = dataclasses.field(default_factory=dict)
    prune_steps: int = 10
    first: Recipe | None = None

    def posterior(self, method: str) -> keras_vd.posteriors.WeightPosterior:
        """Template of the posterior of every weight."""
        if method == "vd":
            return keras_vd.posteriors.VD(share="unit")
        if method == "gaussian":
            return keras_vd.posteriors.Gaussian(
                log_sigma2_init=self.log_sigma2_init,
                prior=keras_vd.priors.Gaussian(0.1),
            )
        sparse = {
            "sparse_vd": keras_vd.posteriors.SparseVD,
            "ard": keras_vd.posteriors.ARD,
        }[method]
        return sparse(
            log_sigma2_init=self.log_sigma2_init,
            threshold=self.clip_threshold,
            share=self.share,
            prior=self.prior(method),
        )

    def prior(self, method: str) -> keras_vd.priors.Prior:
        """What the KL of a sparse method is measured to."""
        if method == "ard":
            return keras_vd.priors.ARD()
        return keras_vd.priors.LogUniform(kl="exact")

    def changed(self, **wishes: Any) -> Recipe:
        """The recipe with other values, for what it starts from as well."""
        first = self.first and self.first.changed(**wishes)
        # A shorter run warms up in the same share of its epochs.
        share = self.warmup_epochs / self.epochs
        changed = dataclasses.replace(self, first=first, **wishes)
        warmup_epochs = round(share * changed.epochs)
        return dataclasses.replace(changed, warmup_epochs=warmup_epochs)

    def prune_threshold(self, method: str) -> float | None:
        """What to prune at; None leaves it to the method's posterior."""
        is_ours = method in SPARSE and not self.wish
        return self.threshold if is_ours else None

    def kl_share(self, epoch: int) -> float:
        """Share of the KL weight by epoch: linear warm-up, 0 at the end."""
        if epoch >= round(self.epochs * (1.0 - self.free_share)):
            return 0.0
        if epoch >= self.warmup_epochs:
            return 1.0
        return epoch / self.warmup_epochs

    def annealing(self, num_examples: int) -> keras.callbacks.Callback:
        """The callback that sets the KL weight."""
        if self.wish:
            return keras_vd.callbacks.KLTarget(num_examples, **self.wish)
        return keras_vd.callbacks.KLAnnealing(
            num_examples, max_weight=self.kl_weight, schedule=self.kl_share
        )

    def learning_rate_share(self, epochs: int) -> Callable[[int], float]:
        """Share of the learning rate by epoch: constant, then linear to 0."""
        decay = max(1.0, epochs * (1.0 - self.constant_share))
        return lambda epoch: min(1.0, (epochs - epoch) / decay)


PLAIN = Recipe()
SPARSE_DENSE = Recipe(
    epochs=60,
    finetune_epochs=8,
    learning_rate=5e-3,
    constant_share=0.0,
    warmup_epochs=14,
    threshold=0.0,
)
SPARSE_MLP = dataclasses.replace(
    SPARSE_DENSE, epochs=40, finetune_epochs=20, warmup_epochs=10, shift=1
)
SPARSE_LENET_300_100 = dataclasses.replace(
    SPARSE_DENSE,
    epochs=75,
    finetune_epochs=15,
    warmup_epochs=18,
    kl_weight=1.5,
    share="unit",
    shift=1,
    shrink_every=25,
)
SPARSE_LENET_5 = Recipe(
    pretrain_epochs=5,
    epochs=70,
    finetune_epochs=20,
    batch_size=200,
    learning_rate=2e-3,
    plain_learning_rate=2e-3,
    finetune_learning_rate=2e-3,
    constant_share=0.4,
    warmup_epochs=70,
    kl_weight=2.5,
    clip_threshold=1.0,
    threshold=0.0,
    shift=1,
)

PLAIN_MLP = Recipe(epochs=40, shift=1)
PRUNED_MLP = Recipe(pretrain_epochs=30, epochs=40, shift=1)
LOG_NORMAL_MLP = Recipe(
    pretrain_epochs=30,
    epochs=30,
    finetune_epochs=30,
    learning_rate=3e-3,
    finetune_learning_rate=2e-3,
    warmup_epochs=5,
    shift=1,
    kl_scales=(9.0, 9.0, 11.0),
)
BETA_BERNOULLI_MLP = dataclasses.replace(
    LOG_NORMAL_MLP,
    learning_rate=1e-3,
    gate_factor=30.0,
    kl_scales=(11.5, 15.5, 9.0),
)
DEPENDENT_MLP = dataclasses.replace(
    BETA_BERNOULLI_MLP,
    epochs=40,
    finetune_epochs=0,
    warmup_epochs=0,
    gate_factor=20.0,
    kl_scales=(2.3, 4.8, 5.5),
    free_share=0.2,
    first=BETA_BERNOULLI_MLP,
)
HARD_CONCRETE_MLP = dataclasses.replace(
    LOG_NORMAL_MLP, gate_factor=10.0, kl_scales=(60.0, 120.0, 60.0)
)

PLAIN_LENET_5 = Recipe(
    epochs=40, batch_size=200, plain_learning_rate=2e-3, shift=1
)
PRUNED_LENET_5 = dataclasses.replace(
    PLAIN_LENET_5, pretrain_epochs=8, finetune_learning_rate=2e-3
)
# A network of so few channels learns slowly, and cheaply.
LOG_NORMAL_LENET_5 = dataclasses.replace(
    LOG_NORMAL_MLP,
    pretrain_epochs=8,
    finetune_epochs=80,
    batch_size=200,
    plain_learning_rate=2e-3,
    kl_scales=(600.0, 100.0, 8.0, 8.0),
    shrink_every=5,
)
HARD_CONCRETE_LENET_5 = dataclasses.replace(
    LOG_NORMAL_LENET_5, gate_factor=10.0, kl_scales=(4000.0, 700.0, 60.0, 60.0)
)

RECIPES: dict[tuple[str, str], Recipe] = {
    **{
        ("mlp", method): PLAIN_MLP
        for method in ("none", "dropout", "gaussian_dropout", "vd", "gaussian")
    },
    ("mlp", "magnitude"): PRUNED_MLP,
    ("mlp", "sensitivity"): PRUNED_MLP,
    ("mlp", "log_normal"): LOG_NORMAL_MLP,
    ("mlp", "beta_bernoulli"): BETA_BERNOULLI_MLP,
    ("mlp", "dependent_beta_bernoulli"): DEPENDENT_MLP,
    ("mlp", "hard_concrete"): HARD_CONCRETE_MLP,
    ("lenet-300-100", "sparse_vd"): SPARSE_LENET_300_100,
    ("lenet-300-100", "ard"): SPARSE_LENET_300_100,
    ("mlp", "sparse_vd"): SPARSE_MLP,
    ("mlp", "ard"): SPARSE_MLP,
    **{
        ("lenet-5", method): PLAIN_LENET_5
        for method in ("none", "dropout", "gaussian_dropout")
    },
    ("lenet-5", "magnitude"): PRUNED_LENET_5,
    ("lenet-5", "sensitivity"): PRUNED_LENET_5,
    ("lenet-5", "log_normal"): LOG_NORMAL_LENET_5,
    ("lenet-5", "hard_concrete"): HARD_CONCRETE_LENET_5,
    ("lenet-5", "sparse_vd"): SPARSE_LENET_5,
    ("lenet-5", "ard"): SPARSE_LENET_5,
}


def get(model: str, method: str, images: int) -> Recipe:
    """The recipe of a network and method, for that many training images."""
    recipe = RECIPES.get((model, method), PLAIN)
    return _for_small_sets(recipe) if images < 10_000 else recipe


def _for_small_sets(recipe: Recipe) -> Recipe:
    # Few steps make an epoch: take more epochs. Little is known about each
    # weight, so that full KL costs accuracy, and a pixel is much of a small
    # image.
    return dataclasses.replace(
        recipe,
        pretrain_epochs=min(40, 2 * recipe.pretrain_epochs),
        epochs=80 if recipe.epochs >= 60 else 40,
        finetune_epochs=20 if recipe.finetune_epochs else 0,
        warmup_epochs=20,
        batch_size=32,
        kl_weight=0.3,
        shift=0,
        # Compiling anew takes longer than the epochs that it makes cheaper.
        shrink_every=0,
        prune_steps=5,
        first=recipe.first and _for_small_sets(recipe.first),
    )
