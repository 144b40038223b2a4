"""Training callback: raises the weight of the KL divergence, and reports."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
from keras import ops

from keras_vd._backup import BackupAndRestore
from keras_vd._keras_internals import exclude_from_weight_decay
from keras_vd._tensorboard import EventWriter, check_tensorboard
from keras_vd._validation import check_choice, check_integer, check_number
from keras_vd.layers.structured import StructuredGate
from keras_vd.posteriors import WeightPosterior
from keras_vd.report import (
    kl_divergence,
    named_posteriors,
    required_posteriors,
    sparsity_report,
)

__all__ = ["BackupAndRestore", "KLAnnealing"]

# Share of the full weight after a fraction t of the warm-up, 0 <= t <= 1.
_SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "cosine": lambda t: 0.5 - 0.5 * math.cos(math.pi * t),
    "step": math.floor,
}


class KLAnnealing(keras.callbacks.Callback):
    """Sets the KL weight of every posterior at the start of each epoch.

    The loss of a variational model is the mean negative log likelihood per
    example plus w(epoch) / num_examples times the KL divergence in nats. w is
    0 before `start_epoch`, `max_weight` from `start_epoch + warmup_epochs` on,
    and follows the schedule in between; epochs count from 0. As w depends on
    the epoch alone, a resumed run continues where it was.

    Each epoch ends with a line such as `n_active: [374, 198, 159]`, the number
    of input units that each weight still reads or that each gate lets through,
    and adds `kl` (nats),
    `kl_weight` (w / num_examples), `sparsity`, `nonzero_ratio` and
    `n_active/<layer>` to the logs. Callbacks listed after this one see them,
    as do `History` and the progress bar.

    The noise parameters are kept out of the optimizer's weight decay, which
    would pull log variances towards a variance of 1, and so are the variables
    of groups and gates.

    Args:
        num_examples: Int >= 1: number of training examples N.
        start_epoch: Int >= 0: first epoch of the warm-up.
        warmup_epochs: Int >= 0: length of the warm-up; 0 starts at full
            weight.
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

    Raises:
        TypeError: if an argument is of the wrong type.
        ImportError: if `tensorboard` is given and not installed.
        ValueError: if an argument is out of range; when training starts, if
            the model has no variational layers; when an epoch starts, if a
            callable schedule returns a negative or non-finite number.

    Example:
    >>> annealing = keras_vd.callbacks.KLAnnealing(num_examples=60000)
    >>> annealing.weight_at(10) * 60000
    0.3333333333333333
    """

    def __init__(
        self,
        num_examples: int,
        start_epoch: int = 5,
        warmup_epochs: int = 15,
        max_weight: float = 1.0,
        schedule: str | Callable[[int], float] = "linear",
        verbose: int = 1,
        tensorboard: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        self.num_examples = check_integer("num_examples", num_examples, 1)
        self.start_epoch = check_integer("start_epoch", start_epoch, 0)
        self.warmup_epochs = check_integer("warmup_epochs", warmup_epochs, 0)
        self.max_weight = check_number("max_weight", max_weight, 0.0)
        if not callable(schedule):
            check_choice("schedule", schedule, _SCHEDULES)
        self.schedule = schedule
        self.verbose = verbose
        if tensorboard is not None:
            check_tensorboard()
            tensorboard = Path(tensorboard)
        self.tensorboard = tensorboard
        self._events: EventWriter | None = None

    def weight_at(self, epoch: int) -> float:
        """KL weight w(epoch) / num_examples, epochs counted from 0."""
        if callable(self.schedule):
            share = check_number("schedule(epoch)", self.schedule(epoch), 0.0)
        elif epoch < self.start_epoch:
            share = 0.0
        elif epoch >= self.start_epoch + self.warmup_epochs:
            share = 1.0
        else:
            progress = (epoch - self.start_epoch) / self.warmup_epochs
            share = _SCHEDULES[self.schedule](progress)
        return self.max_weight * share / self.num_examples

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        noise_parameters = [
            variable
            for posterior in required_posteriors(self.model)
            for variable in posterior.trainable_variables
        ]
        exclude_from_weight_decay(self.model.optimizer, noise_parameters)
        if self.tensorboard is not None:
            self._events = EventWriter(self.tensorboard)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None

    def on_epoch_begin(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        weight = self.weight_at(epoch)
        for posterior in required_posteriors(self.model):
            posterior.kl_weight.assign(weight)

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        report = sparsity_report(self.model)
        figures = {
            "kl": kl_divergence(self.model),
            "kl_weight": self.weight_at(epoch),
            "sparsity": report.sparsity,
            "nonzero_ratio": report.nonzero_ratio,
        }
        for row in report.rows:
            figures[f"n_active/{row.name}"] = row.active_inputs
        for group in report.groups:
            figures[f"n_active/{group.name}"] = group.active
        for gate in report.gates:
            figures[f"n_active/{gate.name}"] = gate.active
        if logs is not None:
            logs.update(figures)
        if self._events is not None:
            self._events.write(epoch, figures, self._histograms())
        if self.verbose:
            # Starts on a new line: the progress bar has not ended its own.
            print(
                f"\nEpoch {epoch + 1}: n_active: {report.n_active}, "
                f"nonzero_ratio: {report.nonzero_ratio:.1f}, "
                f"kl: {figures['kl']:.1f} nats, "
                f"kl_weight: {figures['kl_weight']:.3g}"
            )

    def _histograms(self) -> dict[str, Any]:
        """What decides which weights and gates are kept, by tag."""
        found = {}
        for name, posterior in named_posteriors(self.model):
            if isinstance(posterior, WeightPosterior):
                found[f"log_alpha/{name}"] = posterior.log_alpha
            elif isinstance(posterior, StructuredGate):
                found[f"gate_mean/{name}"] = posterior.gate_mean()
        return {tag: ops.convert_to_numpy(x) for tag, x in found.items()}
