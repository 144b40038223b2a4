"""Warnings about common habits that do not suit a loss with a KL divergence."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import keras

# The figures that KLAnnealing logs. A callback may monitor them, because none
# of them is better in epochs in which the KL counts less.
_OWN_FIGURES = ("kl", "kl_weight", "sparsity", "nonzero_ratio", "n_active")
# Reductions that do not divide by the number of examples.
_SUMS = ("sum", "none", None)


def warn(message: str, name: str = "KLAnnealing") -> None:
    """Issue a warning in the name of a callback."""
    warnings.warn(f"{name}: {message}", stacklevel=2)


def warn_about_reduction(model: keras.Model, name: str) -> bool:
    """Warn if a compiled loss is not a mean over examples; tell whether so.

    Args:
        model: The model.
        name: Name of the callback.
    """
    is_told = False
    for loss in _leaves(getattr(model, "loss", None)):
        reduction = getattr(loss, "reduction", "mean")
        if reduction in _SUMS:
            is_told = True
            warn(
                f"the loss '{getattr(loss, 'name', loss)}' has "
                f"reduction={reduction!r}. The KL weight belongs to a mean "
                "over examples; with a sum over the batch the KL counts too "
                "little, by a factor of the batch size. Use the default "
                'reduction, "sum_over_batch_size".',
                name,
            )
    return is_told


def _leaves(loss: Any) -> Iterator[Any]:
    """Yield the losses of a compiled model, of one output or of several."""
    if isinstance(loss, (dict, list, tuple)):
        values = loss.values() if isinstance(loss, dict) else loss
        for value in values:
            yield from _leaves(value)
    elif loss is not None:
        yield loss


def warn_about_end(event: str, share: float, full: int) -> None:
    """Warn that a run ends in the warm-up.

    Args:
        event: What ends, as the beginning of the sentence.
        share: Share of the full weight in the last epoch.
        full: First epoch at full strength; epochs count from 0.
    """
    warn(
        f"{event} with the KL at {share:.0%} of its full weight, which the "
        f"schedule has from epoch {full} on (counted from 0). Train longer or "
        "pass a smaller `start_epoch` and `warmup_epochs`; left out, they are "
        "a twelfth and a quarter of the epochs."
    )


def warn_about_zeros(first: int, epochs: int) -> None:
    """Warn that a callable schedule is 0 in all epochs of a fit.

    Args:
        first: First epoch of the fit; epochs count from 0.
        epochs: Epoch before which the fit ends.
    """
    warn(
        "this fit ends with the KL at 0% of its full weight: `schedule` is 0 "
        f"from epoch {first} to {epochs - 1}. Pass max_weight=0 to train "
        "without the KL on purpose."
    )


def warn_about_unknown_end(full: int) -> None:
    """Warn that the KL does not count yet in a loop of unknown length.

    Args:
        full: First epoch at full strength; epochs count from 0.
    """
    warn(
        "the KL has no weight in this epoch, and its full weight from epoch "
        f"{full} on (counted from 0), as for a long run. Pass `set_weight` the "
        "number of `epochs` of the loop, or this callback `start_epoch` and "
        "`warmup_epochs`."
    )


def warn_about_fall(
    before: float, after: float, first: int, epochs: int
) -> None:
    """Warn that a continued run has a smaller KL weight than before.

    Args:
        before: Weight before the fit.
        after: Weight in its first epoch.
        first: First epoch of the fit; epochs count from 0.
        epochs: Number of epochs for which the schedule is made.
    """
    warn(
        f"the KL weight falls from {before:.3g} to {after:.3g} in epoch "
        f"{first}, as the schedule is that of a run of {epochs} epochs. Pass "
        "`start_epoch` and `warmup_epochs` as they were in the run that is "
        "continued."
    )


def warn_about_callbacks(callbacks: Iterable[Any], full: int) -> None:
    """Warn about callbacks that prefer epochs of the warm-up.

    Args:
        callbacks: All callbacks of the fit.
        full: First epoch at full strength; epochs count from 0.
    """
    for callback in callbacks:
        name = type(callback).__name__
        monitor = str(getattr(callback, "monitor", "")).split("/")[0]
        if monitor in _OWN_FIGURES:
            continue
        what = f"{name}(monitor={monitor!r}) compares epochs of the warm-up"
        start = getattr(callback, "start_from_epoch", 0)
        if isinstance(callback, keras.callbacks.EarlyStopping):
            if start < full:
                warn(
                    f"{what}, in which the KL counts less, with those after "
                    "it, and may stop in the warm-up or restore an epoch of "
                    f"it. Pass it start_from_epoch={full}, which is "
                    "`annealing.full_strength_epoch(epochs)`."
                )
        elif isinstance(callback, keras.callbacks.ModelCheckpoint):
            if callback.save_best_only and full > 0:
                warn(
                    f"{what}, in which the KL counts less, with those after "
                    "it, and may save only one of those as the best. Give it "
                    f"to a second `fit` with initial_epoch={full}, or save "
                    "every epoch (save_best_only=False)."
                )


def warn_about_examples(
    num_examples: int,
    seen: float,
    steps: int | None,
    is_whole: bool,
    positions: int | None,
    name: str = "KLAnnealing",
) -> bool:
    """Warn if an epoch showed another number of examples than was passed.

    Args:
        num_examples: The number that the user passed.
        seen: Number of examples in the epoch.
        steps: Number of batches in the epoch, if known.
        is_whole: Whether the epoch is one pass over the data. Otherwise it may
            show any part of them, or all of them several times.
        positions: Number of labels of an example, such as one for each word or
            pixel; None if that is not known.
        name: Name of the callback.

    Returns:
        Whether it warned.
    """
    batch = seen / steps if steps else 1.0
    most = max(1.01 * seen, seen + batch - 1)
    if positions != 1:
        most = math.inf  # The loss may be a mean over all labels.
    if steps and abs(num_examples - steps) <= 1 and seen > 1.5 * num_examples:
        warn(
            f"num_examples={num_examples} is the number of batches: the first "
            f"epoch showed {seen:.0f} examples in {steps} batches, so the KL "
            f"counts {seen / num_examples:.3g} times too much. Pass the number "
            "of training examples.",
            name,
        )
        return True
    # A last batch that is dropped makes an epoch shorter.
    if is_whole and not 0.99 * seen <= num_examples <= most:
        warn(
            f"num_examples={num_examples}, but the first epoch showed "
            f"{seen:.0f} examples, so the KL counts "
            f"{seen / num_examples:.3g} times as much as in the variational "
            f"bound. Pass num_examples={seen:.0f}, without those of the "
            "validation, unless an epoch shows copies of examples or only a "
            "part of them on purpose.",
            name,
        )
        return True
    return False


def warn_about_nonfinite(paths: list[str], name: str) -> None:
    """Warn that a model has diverged, and where.

    Args:
        paths: Paths of the variables with values that are not finite.
        name: Name of the callback.
    """
    warn(
        f"training is stopped: not finite are {', '.join(paths)}. It has "
        "diverged; go back to a checkpoint, or train again with a smaller "
        "learning rate.",
        name,
    )
