"""The callback that raises the KL weight during training and logs figures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
from keras import ops

from keras_vd._backend.keras_internals import (
    Fit,
    build_for_fit,
    counted_examples,
    exclude_from_weight_decay,
    flatten_layers,
    labels_per_example,
    running_fit,
)
from keras_vd._backend.tensorboard import EventWriter, check_tensorboard
from keras_vd._backend.validation import check_integer, check_number
from keras_vd.callbacks import advice
from keras_vd.callbacks.figures import Figures, ShortBar
from keras_vd.callbacks.schedules import Schedule
from keras_vd.layers.structured import StructuredGate
from keras_vd.posteriors import Posterior, WeightPosterior
from keras_vd.posteriors.finding import named_posteriors, required_posteriors
from keras_vd.sparsity import sparsity_report


class KLAnnealing(keras.callbacks.Callback):
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
    ) -> None:
        super().__init__()
        self.num_examples = check_integer("num_examples", num_examples, 1)
        self.schedule = Schedule(start_epoch, warmup_epochs, schedule)
        self.max_weight = check_number("max_weight", max_weight, 0.0)
        self.verbose = verbose
        if tensorboard is not None:
            check_tensorboard()
            tensorboard = Path(tensorboard)
        self.tensorboard = tensorboard
        self.log_layers = bool(log_layers)
        self._events: EventWriter | None = None
        # Epochs of the run that the default schedule is made for.
        self._run_epochs: int | None = None
        self._told: set[str] = set()
        self._forget_fit()

    def _forget_fit(self) -> None:
        self._fit = Fit(None, None)
        self._first_epoch: int | None = None
        self._last_epoch: int | None = None
        self._figures: Figures | None = None
        self._line: str | None = None
        self._bars: list[ShortBar] = []
        self._is_counted = False
        self._is_noise_checked = False

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

    @staticmethod
    def _assign(model: keras.layers.Layer, weight: float) -> None:
        for posterior in required_posteriors(model):
            posterior.kl_weight.assign(weight)

    def _is_news(self, subject: str) -> bool:
        """Tell whether a subject comes up for the first time; remember it."""
        is_news = subject not in self._told
        self._told.add(subject)
        return is_news

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._forget_fit()
        if getattr(self.model, "optimizer", None) is None:
            raise ValueError(
                "KLAnnealing found no optimizer: its model must be compiled "
                "and trained by `fit`. In a loop of your own leave its other "
                "methods alone and call `annealing.set_weight(model, epoch)` "
                "before each epoch (docs/custom_loops.md). Received: "
                f"model={self.model!r}."
            )
        self._fit = running_fit()
        posteriors = [
            x for x in flatten_layers(self.model) if isinstance(x, Posterior)
        ]
        if not self.model.built or not all(x.built for x in posteriors):
            build_for_fit(self.model, self._fit)
        noise_parameters = [
            variable
            for posterior in required_posteriors(self.model)
            for variable in posterior.trainable_variables
        ]
        exclude_from_weight_decay(self.model.optimizer, noise_parameters)
        if "reduction" not in self._told:
            if advice.warn_about_reduction(self.model):
                self._told.add("reduction")
        self._join_callbacks()
        if self.tensorboard is not None:
            self._events = EventWriter(self.tensorboard)

    def _join_callbacks(self) -> None:
        """Add a callback that runs after all others, and shorten the bar."""
        callbacks = self._fit.callbacks
        if callbacks is None or self not in callbacks.callbacks:
            return
        if not self._is_joined():
            callbacks.callbacks.append(_Afterwards(self))
        self._bars = [
            ShortBar(callback, lambda: self._figures)
            for callback in callbacks.callbacks
            if isinstance(callback, keras.callbacks.ProgbarLogger)
        ]

    def _is_joined(self) -> bool:
        callbacks = self._fit.callbacks
        return callbacks is not None and any(
            map(self._is_ours, callbacks.callbacks)
        )

    def _is_ours(self, callback: keras.callbacks.Callback) -> bool:
        return isinstance(callback, _Afterwards) and callback.annealing is self

    def on_epoch_begin(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if self._first_epoch is None:
            self._begin_run(epoch)
        self._last_epoch, self._figures = epoch, None
        self._assign(self.model, self.weight_at(epoch))

    def _begin_run(self, first: int) -> None:
        """Settle the schedule of a run, and warn about what does not fit it."""
        self._first_epoch = first
        self._whole = sparsity_report(self.model)
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

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if not self._is_noise_checked:
            self._check_noise()
        steps = self._fit.steps
        # Examples are counted after the last batch, because the validation
        # that follows resets the count.
        if not self._is_counted and steps and batch + 1 >= steps:
            self._count_examples()

    def _check_noise(self) -> None:
        """Raise a ValueError if no noise was drawn in the first batch."""
        self._is_noise_checked = True
        trained = [x for x in required_posteriors(self.model) if x.trainable]
        if trained and not any(posterior.has_drawn for posterior in trained):
            raise ValueError(
                f"Training drew no noise: all variational layers of "
                f"'{self.model.name}' were called as for inference, so that "
                "nothing adds a KL divergence to the losses. Have the `call` "
                "of the model take `training=None` and hand it on, and pass "
                "no `training=False` to the layers inside; layers that shall "
                "stay as they are need `trainable=False`."
            )

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._first_epoch is not None:
            self._count_examples()

    def _count_examples(self) -> None:
        """Compare the examples of the first epoch with `num_examples`."""
        if self._is_counted:
            return
        self._is_counted = True
        seen = counted_examples(self.model)
        if not seen or self.model.stop_training or "examples" in self._told:
            return
        if advice.warn_about_examples(
            self.num_examples,
            seen,
            self._fit.steps,
            self._fit.is_one_pass,
            labels_per_example(self.model),
        ):
            self._told.add("examples")

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        self._count_examples()
        weight = self.weight_at(epoch)
        self._figures = Figures(self.model, weight, self._whole)
        if self._figures.nonfinite:
            advice.warn_about_nonfinite(self._figures.nonfinite)
            self.model.stop_training = True
        figures = dict(self._figures.totals)
        if self.log_layers:
            figures |= self._figures.layers
        if logs is not None:
            logs.update(figures)
        if self._events is not None:
            self._events.write(epoch, figures, self._histograms())
        if not self._is_joined():
            self._end_epoch()

    def _end_epoch(self) -> None:
        """Print the figures, after the progress bar has ended its line."""
        if self.verbose and self._figures and self._last_epoch is not None:
            print(self._figures.line(self._last_epoch))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None
        if not self._is_joined():
            self._end_run()

    def _end_run(self) -> None:
        """Set the KL weights of the last epoch again, and undo all changes.

        A callback such as `EarlyStopping` may have restored those of another
        epoch.
        """
        last = self._last_epoch
        if last is not None:
            self._assign(self.model, self.weight_at(last))
            unknown = None if self.schedule.is_scaled else last + 1
            full = self.schedule.full_epoch(self._run_epochs or unknown)
            if last < full:
                self._warn_about_end(last, full, "training has stopped")
            # This run ended at full strength or has been warned about, so
            # further runs with this object need no advice about their end.
            self._told.add("end")
        for bar in self._bars:
            bar.undo()
        callbacks = self._fit.callbacks
        if callbacks is not None:
            callbacks.callbacks = [
                x for x in callbacks.callbacks if not self._is_ours(x)
            ]
        self._forget_fit()

    def _histograms(self) -> dict[str, Any]:
        """Return what decides which weights and gates are kept, by tag."""
        found = {}
        for name, posterior in named_posteriors(self.model):
            if isinstance(posterior, WeightPosterior):
                found[f"log_alpha/{name}"] = posterior.log_alpha
            elif isinstance(posterior, StructuredGate):
                found[f"gate_mean/{name}"] = posterior.gate_mean()
        return {tag: ops.convert_to_numpy(x) for tag, x in found.items()}


class _Afterwards(keras.callbacks.Callback):
    """Callback that ends epochs and runs of KLAnnealing after all others."""

    def __init__(self, annealing: KLAnnealing) -> None:
        super().__init__()
        self.annealing = annealing

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        self.annealing._end_epoch()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.annealing._end_run()
