"""The callback that raises the KL weight during training."""

from __future__ import annotations

import os
from collections.abc import Callable

import keras
from keras import ops

from keras_vd._backend.validation import check_integer, check_number
from keras_vd.callbacks import advice
from keras_vd.callbacks.base import KLWeightCallback
from keras_vd.callbacks.schedules import Schedule
from keras_vd.posteriors.finding import required_posteriors


class KLAnnealing(KLWeightCallback):
    """Callback that sets the KL weight of all posteriors before each epoch.

    The loss of a variational model is the mean negative log likelihood per
    example plus w(epoch) / num_examples times the KL divergence in nats. w is
    0 before `start_epoch`, `max_weight` from `start_epoch + warmup_epochs` on,
    and follows the schedule in between; epochs count from 0. By default there
    are 5 epochs at 0 and 15 of warm-up, or a twelfth and a quarter of the
    epochs of `fit` where that is less, rounded down: a `fit` of up to 3 epochs
    has the full weight from the first.

    As w depends on the epoch alone, a resumed run continues where it was; pass
    it the same `epochs`, or both `start_epoch` and `warmup_epochs`. A `fit`
    with `initial_epoch` continues the schedule that this object began with.
    After `fit` the KL weights are those of its last epoch, also where
    `EarlyStopping` has restored another one.

    Epochs of the warm-up have less KL in the loss, so the best `val_loss` is
    often among them. `EarlyStopping` waits with
    `start_from_epoch=annealing.full_strength_epoch(epochs)`; a
    `ModelCheckpoint(save_best_only=True)` belongs into a second `fit` with
    that `initial_epoch`. `BackupAndRestore`, `CSVLogger`, `TensorBoard` and
    schedules of the learning rate can be used together with this callback.

    Each epoch ends, after the progress bar, with a line such as
    `n_active: [374, 198, 159]`, the number of input units that each weight
    still reads or that each gate lets through, and adds `kl` (nats),
    `kl_weight` (w / num_examples), `sparsity`, `nonzero_ratio` (both of the
    weights that were there when `fit` began, also if `ShrinkWhileTraining`
    removes some) and `n_active/<layer>` to the logs. Callbacks listed after
    this one see them, as does `History`; the progress bar shows `n_active_min`
    and `n_active_sum` in place of the layers.

    The noise parameters are kept out of the optimizer's weight decay, which
    would pull log variances towards a variance of 1, and so are the variables
    of groups and gates.

    It warns, each object at most once of each: if a `fit` ends before the full
    weight; if callbacks prefer epochs of the warm-up; if the first epoch shows
    another number of examples (with `steps_per_epoch`, only if `num_examples`
    is the number of batches; not on several devices or with a `train_step` of
    your own); if a loss is a sum over the batch. It stops the training, with a
    warning, after an epoch with weights that are not finite.

    Args:
        num_examples: Int >= 1: number N of what the loss is the mean of: the
            training examples, times the labels of one (words of a text, pixels
            of an image) where the loss is a mean over these too.
        start_epoch: Int >= 0 or None: first epoch of the warm-up.
        warmup_epochs: Int >= 0 or None: length of the warm-up; 0 starts at
            full weight.
        max_weight: Float >= 0: final w. 1 is the variational bound; large
            networks often need less (Gale et al. 2019, arXiv:1902.09574).
        schedule: `"linear"` (as in Molchanov et al. 2017's released code),
            `"cosine"`, `"step"` (all at once when the warm-up is over) or a
            callable `epoch -> share of max_weight`, which replaces
            `start_epoch` and `warmup_epochs`.
        verbose: 0 or 1: whether to print.
        tensorboard: Path or None: folder for TensorBoard, which gets the same
            figures and a histogram of each weight's `log_alpha` and each
            gate's mean, with the epoch as the step. It needs the package
            tensorboard, and no TensorFlow.
        log_layers: Bool: whether logs and TensorBoard get `n_active/<layer>`.
        log_layer_kl: Bool: whether they get `kl/<layer>`, nats, which sum to
            `kl` where the priors' divergences have a closed form.

    Raises:
        TypeError: if an argument is of the wrong type.
        ImportError: if `tensorboard` is given and not installed.
        ValueError: if an argument is out of range; when training starts, if
            the model has no variational layers or is not compiled; after the
            first batch, if no variational layer drew any noise; when an epoch
            starts, if a callable schedule returns a negative or
            non-finite number.

    Example:
    >>> annealing = keras_vd.callbacks.KLAnnealing(num_examples=60000)
    >>> annealing.weight_at(10) * 60000
    0.3333333333333333
    >>> annealing.full_strength_epoch(epochs=12)
    4
    """

    def __init__(
        self,
        num_examples: int,
        start_epoch: int | None = None,
        warmup_epochs: int | None = None,
        max_weight: float = 1.0,
        schedule: str | Callable[[int], float] = "linear",
        verbose: int = 1,
        tensorboard: str | os.PathLike[str] | None = None,
        log_layers: bool = True,
        log_layer_kl: bool = False,
    ) -> None:
        super().__init__(
            num_examples, verbose, tensorboard, log_layers, log_layer_kl
        )
        self.schedule = Schedule(start_epoch, warmup_epochs, schedule)
        self.max_weight = check_number("max_weight", max_weight, 0.0)
        # Epochs of the run that the default schedule is made for.
        self._run_epochs: int | None = None

    @property
    def _advice_on_loops(self) -> str:
        return (
            " In a loop of your own leave its other methods alone and call "
            "`annealing.set_weight(model, epoch)` before each epoch "
            "(docs/custom_loops.md)."
        )

    def weight_at(self, epoch: int, epochs: int | None = None) -> float:
        """Return the KL weight w(epoch) / num_examples; epochs count from 0.

        Args:
            epoch: Int >= 0.
            epochs: Int >= 1: number of epochs of the run, on which the default
                schedule depends. By default that of the last `fit` or, before
                any, as many as the longest schedule takes.

        Raises:
            TypeError: if a callable schedule returns no number.
            ValueError: if it returns a negative or non-finite one.
        """
        share = self.schedule.share(epoch, self._epochs(epochs))
        return self.max_weight * share / self.num_examples

    def full_strength_epoch(self, epochs: int | None = None) -> int:
        """Return the first epoch from which on the KL weight is constant.

        For `EarlyStopping(start_from_epoch=...)`; epochs count from 0.

        Args:
            epochs: Int >= 1: number of epochs of the run, see `weight_at`.

        Raises:
            ValueError: if the schedule is a callable and neither `epochs` is
                given nor was there a `fit`.
        """
        return self.schedule.full_epoch(self._epochs(epochs))

    def _epochs(self, epochs: int | None) -> int | None:
        if epochs is None:
            return self._run_epochs
        return check_integer("epochs", epochs, 1)

    def set_weight(
        self, model: keras.layers.Layer, epoch: int, epochs: int | None = None
    ) -> float:
        """Set the KL weight of every posterior of a model, without `fit`.

        For training loops of your own, before each epoch; no other method of
        the callback is needed there. See `docs/custom_loops.md`.

        Args:
            model: A built Keras model or layer with variational layers.
            epoch: Int >= 0: epoch that begins.
            epochs: Int >= 1: number of epochs of the loop, see `weight_at`.

        Returns:
            The weight, w(epoch) / num_examples.

        Raises:
            TypeError: if `model` is no Keras layer or model.
            ValueError: if it is not built or has no variational layers.
        """
        weight = self.weight_at(check_integer("epoch", epoch, 0), epochs)
        is_guess = self._epochs(epochs) is None and self.schedule.is_scaled
        is_off = weight == 0.0 < self.max_weight
        if is_guess and is_off and self._is_news("end"):
            advice.warn_about_unknown_end(self.full_strength_epoch())
        self._assign(model, weight)
        return weight

    def _weight_of(self, epoch: int) -> float:
        return self.weight_at(epoch)

    def _begin_run(self, first: int) -> None:
        """Settle the schedule of a run, and warn about what does not fit it."""
        epochs = (self.params or {}).get("epochs")
        if not epochs:
            return
        # A continued run keeps the schedule that it began with.
        is_new = self._run_epochs is None
        if first == 0 or is_new:
            self._run_epochs = epochs
        full = self.full_strength_epoch()
        if full >= epochs:
            self._warn_about_end(epochs - 1, full, "this fit ends")
        elif not any(map(self.weight_at, range(first, epochs))):
            if self.max_weight and self._is_news("end"):
                advice.warn_about_zeros(first, epochs)
        if first > 0 and is_new and self.schedule.is_scaled:
            before, after = self._largest_weight(), self.weight_at(first)
            if before > 1.001 * after and self._is_news("fall"):
                advice.warn_about_fall(before, after, first, epochs)
        callbacks = self._fit.callbacks
        if full > first and callbacks is not None:
            if self._is_news("callbacks"):
                advice.warn_about_callbacks(callbacks.callbacks, full)

    def _largest_weight(self) -> float:
        posteriors = required_posteriors(self.model)
        return max(float(ops.convert_to_numpy(x.kl_weight)) for x in posteriors)

    def _warn_about_end(self, last: int, full: int, event: str) -> None:
        if self.max_weight and self._is_news("end"):
            share = self.weight_at(last) * self.num_examples / self.max_weight
            advice.warn_about_end(event, share, full)

    def _close_run(self, last: int) -> None:
        unknown = None if self.schedule.is_scaled else last + 1
        full = self.schedule.full_epoch(self._run_epochs or unknown)
        if last < full:
            self._warn_about_end(last, full, "training has stopped")
        # This run ended at full strength or has been warned about, so further
        # runs with this object need no advice about their end.
        self._told.add("end")
