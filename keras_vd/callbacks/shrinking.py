"""The callback that removes what is dead while a model is trained."""

from __future__ import annotations

from typing import Any

import keras

from keras_vd._backend.keras_internals import (
    build_for_fit,
    functional_part,
    is_distributed,
    optimizer_slots,
    running_fit,
)
from keras_vd._backend.validation import check_integer
from keras_vd.callbacks.backup import BackupAndRestore
from keras_vd.posteriors.finding import required_posteriors
from keras_vd.shrinking.variational import shrink_in_place

_BACKUPS = (keras.callbacks.BackupAndRestore, BackupAndRestore)


class ShrinkWhileTraining(keras.callbacks.Callback):
    """Callback that makes a model smaller between the epochs of `fit`.

    It removes the units, channels and features that the model's predictions do
    not depend on, as `keras_vd.shrink` does after training, so that the epochs
    that follow cost less. Predictions stay as they are, to 1e-5. The model,
    its layers, their names and their variables stay the same objects, and what
    the optimizer keeps for the weights that stay is kept. What is removed
    cannot come back: neither a weight whose log alpha has passed the threshold
    nor a unit that is constant.

    No layer is removed: a dead one keeps one unit. Layers of these kinds get
    smaller, variational ones too: dense, convolutions, embeddings (their
    vectors), recurrent layers, `BatchNormalization`, and gates that do not
    depend on the inputs. Others, and those in nested models, stay whole;
    `keras_vd.shrink` can do more when training is done.

    Each change has the training step compiled anew. Models that share layers
    with this one, other than those made from its own tensors, must not be used
    any more.

    Args:
        every: Number of epochs from one change to the next.
        start_epoch: Epoch from which epochs are counted, the first being 0.
            Changes come before the epochs `start_epoch + k * every`, k >= 1.
        verbose: 1 to print how many parameters there were and are, 0 not to.

    Logs:
        `parameters`: number of parameters of the model, including the noise
        parameters and masks of variational layers.

    Raises:
        TypeError: if an argument is no integer.
        ValueError: if an argument is too small. When training starts: if the
            model is not compiled, has no variational layers or computes in a
            `call` of its own; if it is trained on several devices; if the
            optimizer does not keep numbers for each weight (Adafactor); if
            another callback restores weights from before, as
            `EarlyStopping(restore_best_weights=True)` does.

    Example:
    >>> layers = keras_vd.layers
    >>> model = keras.Sequential([
    ...     keras.Input((20,)),
    ...     layers.VDDense(30, "relu", kl_weight=1e-3),
    ...     layers.VDDense(2, kl_weight=1e-3),
    ... ])
    >>> model.compile("adam", "mse")
    >>> is_read = np.arange(30)[:, None] < [5, 5]
    >>> _ = model.layers[1].kernel_posterior.keep_mask.assign(is_read)
    >>> x, y = np.ones((8, 20)), np.ones((8, 2))
    >>> shrinking = keras_vd.callbacks.ShrinkWhileTraining(verbose=0)
    >>> history = model.fit(x, y, epochs=2, verbose=0, callbacks=[shrinking])
    >>> model.layers[0].units
    5
    """

    def __init__(
        self, every: int = 1, start_epoch: int = 0, verbose: int = 1
    ) -> None:
        super().__init__()
        self.every = check_integer("every", every, 1)
        self.start_epoch = check_integer("start_epoch", start_epoch, 0)
        self.verbose = verbose

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        model = self.model
        if getattr(model, "optimizer", None) is None:
            raise ValueError(
                "ShrinkWhileTraining found no optimizer: its model must be "
                "compiled and trained by `fit`. Received: "
                f"model={model!r}."
            )
        fit = running_fit()
        if not model.built:
            build_for_fit(model, fit)
        required_posteriors(model)
        if functional_part(model) is None:
            raise ValueError(
                "ShrinkWhileTraining needs a Sequential or Functional model, "
                f"whose connections are known. '{model.name}' computes in a "
                f"`call` of its own, that of {type(model).__name__}."
            )
        if is_distributed(model):
            raise ValueError(
                "ShrinkWhileTraining works on a single device only. "
                f"'{model.name}' is trained on several."
            )
        others = () if fit.callbacks is None else fit.callbacks.callbacks
        for callback in others:
            _check_compatible(callback)
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        optimizer_slots(model.optimizer)

    def on_epoch_begin(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        passed = epoch - self.start_epoch
        if passed <= 0 or passed % self.every:
            return
        before = self.model.count_params()
        if shrink_in_place(self.model) and self.verbose:
            after = self.model.count_params()
            print(f"\nparameters: {before:,} -> {after:,}")

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if logs is not None:
            logs["parameters"] = self.model.count_params()


def _check_compatible(callback: keras.callbacks.Callback) -> None:
    """Raise a ValueError if a callback restores weights of other shapes."""
    restores = getattr(callback, "restore_best_weights", False)
    if restores or isinstance(callback, _BACKUPS):
        option = "(restore_best_weights=True)" if restores else ""
        raise ValueError(
            "ShrinkWhileTraining changes the shapes of weights, so the same "
            "`fit` can have no callback that restores earlier ones. Received: "
            f"{type(callback).__name__}{option}."
        )
