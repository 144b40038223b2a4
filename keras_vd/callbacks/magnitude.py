"""The callback that prunes plain models by the size of their weights."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import (
    build_for_fit,
    forget_functions,
    running_fit,
)
from keras_vd._backend.validation import (
    check_choice,
    check_integer,
    check_number,
    check_plain_model,
)
from keras_vd.conversion.fine_tuning import freeze_zeros, prunable_weights


class MagnitudePruning(keras.callbacks.Callback):
    """Callback that prunes the smallest weights of a plain Keras model.

    Before each epoch of the schedule the weights of smallest magnitude are set
    to zero, and `keras_vd.freeze_zeros` keeps them there. The share of zeros
    grows from `initial_sparsity` to `final_sparsity`, fast at first, by the
    cube of the time that is left (Zhu and Gupta 2017, arXiv:1710.01878, eq. 1):

        s(t) = s_f + (s_i - s_f) (1 - t)^3,  0 <= t <= 1

    It is the usual baseline for variational methods, on the same models,
    reports and files. Pruned are trainable weights of rank 2 or more; biases
    are not. Each change has the training step compiled anew. After `fit`,
    `keras_vd.shrink` removes what is dead.

    A run that is resumed with `initial_epoch` goes on as if it had not been
    interrupted.

    Args:
        final_sparsity: Float in [0, 1): share of zeros at the end.
        initial_sparsity: Float in [0, 1): share of zeros at `start_epoch`, at
            most `final_sparsity`.
        start_epoch: Int >= 0: epoch before which weights first go, the first
            being 0.
        end_epoch: Int > `start_epoch` or None: epoch before which the last
            ones go. By default three quarters of the epochs of `fit`, rounded
            down, so that the last quarter trains what is left.
        every: Int >= 1: number of epochs from one change to the next.
        scope: `"layer"`: every weight tensor has that share of zeros.
            `"global"`: all together have, so that layers of small weights lose
            more of them.
        verbose: 1 to print the share of zeros at each change, 0 not to.

    Logs:
        `sparsity`: share of zeros in the weights that are pruned.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if an argument is out of range. When training starts: if
            the model is not compiled, has variational layers or nothing to
            prune; if the schedule has no room in the epochs of `fit`; see
            `freeze_zeros`.

    Example:
    >>> model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(10)])
    >>> model.compile("adam", "mse")
    >>> pruning = keras_vd.callbacks.MagnitudePruning(0.9, verbose=0)
    >>> x, y = np.ones((8, 20)), np.ones((8, 10))
    >>> history = model.fit(x, y, epochs=8, verbose=0, callbacks=[pruning])
    >>> int(np.count_nonzero(model.layers[0].get_weights()[0]))
    20
    """

    def __init__(
        self,
        final_sparsity: float,
        initial_sparsity: float = 0.0,
        start_epoch: int = 0,
        end_epoch: int | None = None,
        every: int = 1,
        scope: str = "layer",
        verbose: int = 1,
    ) -> None:
        super().__init__()
        self.final_sparsity = _check_share("final_sparsity", final_sparsity)
        self.initial_sparsity = _check_share(
            "initial_sparsity", initial_sparsity
        )
        if self.initial_sparsity > self.final_sparsity:
            raise ValueError(
                "Argument `initial_sparsity` must be at most `final_sparsity`. "
                f"Received: initial_sparsity={initial_sparsity}, "
                f"final_sparsity={final_sparsity}."
            )
        self.start_epoch = check_integer("start_epoch", start_epoch, 0)
        if end_epoch is not None:
            end_epoch = check_integer("end_epoch", end_epoch, start_epoch + 1)
        self.end_epoch = end_epoch
        self.every = check_integer("every", every, 1)
        self.scope = check_choice("scope", scope, ("layer", "global"))
        self.verbose = verbose
        self._end = 0
        self._is_first = True

    def sparsity_at(self, epoch: int, end_epoch: int) -> float:
        """Return the share of zeros in an epoch; epochs count from 0.

        Args:
            epoch: Int >= 0.
            end_epoch: Int: epoch before which the last weights go.
        """
        if epoch < self.start_epoch:
            return 0.0
        passed = min(epoch, end_epoch) - self.start_epoch
        if epoch < end_epoch:
            passed -= passed % self.every
        left = 1.0 - passed / (end_epoch - self.start_epoch)
        return self.final_sparsity + left**3 * (
            self.initial_sparsity - self.final_sparsity
        )

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        model = self.model
        if getattr(model, "optimizer", None) is None:
            raise ValueError(
                "MagnitudePruning found no optimizer: its model must be "
                "compiled and trained by `fit`. Received: "
                f"model={model!r}."
            )
        if not model.built:
            build_for_fit(model, running_fit())
        check_plain_model(model)
        if not prunable_weights(model):
            raise ValueError(
                "MagnitudePruning found nothing to prune: "
                f"'{model.name}' has no trainable weights of rank 2 or more."
            )
        epochs = (self.params or {}).get("epochs") or 0
        self._end = self.end_epoch or 3 * epochs // 4
        if not self.start_epoch < self._end < epochs:
            raise ValueError(
                "MagnitudePruning must end after `start_epoch` and before the "
                f"last epoch of `fit` has begun. Received: start_epoch="
                f"{self.start_epoch}, end_epoch={self.end_epoch} (here "
                f"{self._end}), and a `fit` of {epochs} epochs."
            )
        self._is_first = True

    def on_epoch_begin(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        share = self.sparsity_at(epoch, self._end)
        before = self.sparsity_at(epoch - 1, self._end) if epoch else 0.0
        # What was pruned before a run was interrupted has to be frozen again.
        if share > before or (self._is_first and share):
            self._prune(share)
            if self.verbose:
                print(f"\nsparsity: {self._sparsity():.4f}")
        self._is_first = False

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if logs is not None:
            logs["sparsity"] = self._sparsity()

    def _prune(self, share: float) -> None:
        weights = prunable_weights(self.model)
        values = [ops.convert_to_numpy(weight) for weight in weights]
        groups = [values] if self.scope == "global" else [[x] for x in values]
        kept = [mask for group in groups for mask in _largest(group, share)]
        for weight, value, mask in zip(weights, values, kept, strict=True):
            weight.assign(np.where(mask, value, 0.0))
        freeze_zeros(self.model)
        forget_functions(self.model)

    def _sparsity(self) -> float:
        weights = map(ops.convert_to_numpy, prunable_weights(self.model))
        zeros, total = 0, 0
        for weight in weights:
            zeros += weight.size - int(np.count_nonzero(weight))
            total += weight.size
        return zeros / total


def _check_share(argument: str, value: object) -> float:
    share = check_number(argument, value, 0.0, 1.0)
    if share == 1.0:
        raise ValueError(
            f"Argument `{argument}` must be less than 1. Received: "
            f"{argument}={value!r}."
        )
    return share


def _largest(values: list[np.ndarray], share: float) -> list[np.ndarray]:
    """Tell which entries stay if a share of all goes, the smallest first.

    Args:
        values: Arrays of any shapes.
        share: Share of all of their entries.

    Returns:
        Bool arrays of these shapes.
    """
    sizes = np.abs(np.concatenate([value.ravel() for value in values]))
    kept = np.ones(sizes.size, bool)
    number = round(share * sizes.size)
    kept[np.argsort(sizes, kind="stable")[:number]] = False
    ends = np.cumsum([value.size for value in values])[:-1]
    parts = np.split(kept, ends)
    return [x.reshape(v.shape) for x, v in zip(parts, values, strict=True)]
