"""The callback that finds the KL weight for a size, or for a quality."""

from __future__ import annotations

import os
from typing import Any

from keras_vd._backend.validation import check_number
from keras_vd.callbacks import advice
from keras_vd.callbacks.base import KLWeightCallback
from keras_vd.callbacks.budgets import BudgetCourse
from keras_vd.callbacks.shrinking import ShrinkWhileTraining
from keras_vd.callbacks.sizes import SizeCourse, cut_epoch
from keras_vd.callbacks.wishes import NAMES, Wish
from keras_vd.layers.structured import StructuredGate
from keras_vd.posteriors.finding import required_posteriors


class KLTarget(KLWeightCallback):
    """Callback that finds the KL weight for a size, or for a quality.

    It takes the place of `KLAnnealing`, with exactly one wish. After `fit` the
    model has it within 5%, or it warns and says why not.

    **A size.** For the first 70% of the epochs of `fit` the KL weight has the
    warm-up of `KLAnnealing`, less where the model gets small faster than a plan
    that ends somewhat short of the wish, and up to twice as much where it is
    behind that plan late. Then what is left is ranked by its signal-to-noise
    ratio: as much as the wish allows stays, with less noise where it would not
    count otherwise, and all else is pruned for good. What stays is trained on
    without a KL, and its variances are no posterior any more: for uncertainties
    train on with `KLAnnealing`. Where less than a tenth of what is left may
    stay, it warns, as the KL may have had too few steps.
    Of each weight, group and gate layer one entry stays at least. For
    `n_active`, `parameters` and `macs` whole input units are ranked, by the
    sum of what their weights say.

    **A quality.** For `budget` the KL weight grows while the metric is within
    the budget and falls while it is not, in proportion (a dual ascent, as in
    GECO, Rezende and Viola 2018, arXiv:1810.00597; Gallego-Posada et al. 2022,
    arXiv:2208.04425). After 70% of the epochs what is zero is pruned for good
    and the KL is left out; from then on 10% of what is left goes, lowest first,
    after each epoch that is within the budget, or more where few epochs are
    left. At the end the model gets the weights of the smallest state that was
    (by `nonzero_ratio`), which are kept in memory meanwhile.
    The metric of the validation is that of the pruned model. A model that is
    out of the budget there, but better on the training data than the plain
    network was in its best epoch, overfits: the weight grows up to 1 / N then.

    What `ShrinkWhileTraining` removes cannot come back: with `parameters` or
    `macs` start it at `cut_epoch(epochs)`. The other sizes also count weights
    that nothing reads, which it removes.

    Warm-up, logs, printed lines, TensorBoard and warnings are those of
    `KLAnnealing`. A run that is resumed, as with `BackupAndRestore`, goes on as
    if it had not been interrupted; with `budget` list this callback before
    others that save the model, and note that states from before are forgotten,
    and whether the model overfits, unless `recall` gives back `memory`.

    Args:
        num_examples: Int >= 1: as of `KLAnnealing`.
        nonzero_ratio: Float > 1: variational weights per non-zero one, or
            units per active one where there are gates only, as in the logs.
        parameters: Parameters of the model that
            `shrink(to_deterministic(model))` returns: an int >= 1 or, as a
            share of those before, a float in (0, 1).
        macs: Multiply-accumulate operations of that model for one example: an
            int or a share.
        n_active: Sum of `n_active` as it is printed: an int or a share.
        budget: Float >= 0: how much worse than `reference` the metric may be,
            in its own units.
        monitor: With `budget`: name of the metric in the logs. By default
            `val_loss` or, without validation data, the training loss without
            the KL. Keras has to know whether it shall be large or small.
        reference: With `budget`: value of the metric for the plain network.
            By default the best one of the first quarter of the epochs, which
            train without a KL; that needs a run from its first epoch.
        verbose: 0 or 1: whether to print.
        tensorboard: As of `KLAnnealing`.
        log_layers: As of `KLAnnealing`.

    Logs:
        `target`: the wish; with `budget`, the limit of the metric.
        `target_state`: what the model has of it.

    Raises:
        TypeError: if an argument is of the wrong type.
        ImportError: if `tensorboard` is given and not installed.
        ValueError: if there is not exactly one wish, or an argument is out of
            range. When training starts: as `KLAnnealing`, and if no posterior
            prunes, `fit` has a single epoch, or the wish is more than the model
            has or less than its outputs need; if a size cannot be counted (see
            `shrink`); with `budget`, if the run is continued without a
            `reference`, or the model shrinks while it is trained. After the
            first epoch: if `monitor` is not logged or has no direction.

    Example:
    >>> model = keras.Sequential([
    ...     keras.Input((20,)),
    ...     keras_vd.layers.VDDense(30, "relu"),
    ...     keras_vd.layers.VDDense(2),
    ... ])
    >>> model.compile("adam", "mse")
    >>> x, y = np.ones((8, 20)), np.ones((8, 2))
    >>> target = keras_vd.callbacks.KLTarget(8, nonzero_ratio=4.0, verbose=0)
    >>> history = model.fit(x, y, epochs=10, verbose=0, callbacks=[target])
    >>> round(keras_vd.sparsity_report(model).nonzero_ratio, 1)
    4.0
    """

    def __init__(
        self,
        num_examples: int,
        nonzero_ratio: float | None = None,
        parameters: float | None = None,
        macs: float | None = None,
        n_active: float | None = None,
        budget: float | None = None,
        monitor: str | None = None,
        reference: float | None = None,
        verbose: int = 1,
        tensorboard: str | os.PathLike[str] | None = None,
        log_layers: bool = True,
    ) -> None:
        super().__init__(num_examples, verbose, tensorboard, log_layers)
        values = (nonzero_ratio, parameters, macs, n_active, budget)
        wishes = zip(NAMES, values, strict=True)
        given = {k: v for k, v in wishes if v is not None}
        if len(given) != 1:
            raise ValueError(
                f"KLTarget takes exactly one wish, one of {list(NAMES)}. "
                f"Received: {given or 'none'}."
            )
        ((name, value),) = given.items()
        self._course: SizeCourse | BudgetCourse
        if name == "budget":
            if reference is not None:
                reference = check_number("reference", reference)
            self._course = BudgetCourse(
                check_number("budget", value, 0.0),
                monitor,
                reference,
                self.num_examples,
            )
            return
        if monitor is not None or reference is not None:
            raise ValueError(
                "Arguments `monitor` and `reference` go with `budget` only. "
                f"Received: {name}={value!r}, monitor={monitor!r}, "
                f"reference={reference!r}."
            )
        self._course = SizeCourse(Wish(name, value))

    def cut_epoch(self, epochs: int) -> int:
        """Return the epoch before which the model is pruned for good.

        For `EarlyStopping(start_from_epoch=...)`; epochs count from 0.

        Args:
            epochs: Int >= 2: number of epochs of the run.
        """
        return cut_epoch(epochs)

    def memory(self) -> dict[str, Any]:
        """Return what a resumed run needs that the model does not hold.

        Arrays by their names, at the end of an epoch: with `budget` the best
        state so far, otherwise nothing.
        """
        if isinstance(self._course, BudgetCourse):
            return self._course.memory()
        return {}

    def recall(self, memory: dict[str, Any]) -> None:
        """Go on with what `memory` returned before the run was interrupted.

        Args:
            memory: That; to be given back after the first epoch of the new
                run has begun.
        """
        if isinstance(self._course, BudgetCourse) and memory:
            self._course.recall(memory)

    def _begin_run(self, first: int) -> None:
        epochs = (self.params or {}).get("epochs") or 0
        if epochs < 2:
            raise ValueError(
                "KLTarget needs a `fit` of at least 2 epochs, as what is left "
                f"is trained on after it is pruned. Received: {epochs} epochs."
            )
        posteriors = required_posteriors(self.model)
        if not any(x.trainable and _prunes(x) for x in posteriors):
            raise ValueError(
                "KLTarget found nothing to prune: no posterior of "
                f"'{self.model.name}' that is trained has a threshold or "
                "Bayesian model reduction."
            )
        others = self._fit.callbacks
        if isinstance(self._course, BudgetCourse) and others is not None:
            if any(
                isinstance(x, ShrinkWhileTraining) for x in others.callbacks
            ):
                raise ValueError(
                    "KLTarget(budget=...) goes back to earlier weights, whose "
                    "shapes ShrinkWhileTraining changes: the same `fit` can "
                    "have only one of these callbacks."
                )
        self._course.begin(self.model, first, epochs)

    def _weight_of(self, epoch: int) -> float:
        return self._course.weight_of(epoch) / self.num_examples

    def _judge(self, epoch: int, logs: dict[str, Any]) -> dict[str, Any]:
        target, state = self._course.judge(epoch, logs)
        return {"target": target, "target_state": state}

    def _close_run(self, last: int) -> None:
        problem = self._course.close(last)
        if problem is not None:
            advice.warn(problem, "KLTarget")


def _prunes(posterior: Any) -> bool:
    """Tell whether a posterior makes entries zero by itself."""
    is_gate = isinstance(posterior, StructuredGate)
    return is_gate or posterior.limit() is not None
