"""The evidence lower bound of a data set, by draws of the weights."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import keras
import numpy as np
import rich.table
from keras import ops

from keras_vd._backend.keras_internals import (
    Batches,
    input_batches,
    loss_options,
)
from keras_vd._backend.tables import Headline, Report
from keras_vd._backend.validation import (
    check_finite_model,
    check_integer,
    check_model,
    check_number,
)
from keras_vd.losses import LOG_2_PI, GaussianNLL
from keras_vd.posteriors.finding import (
    required_posteriors,
    variational_weights,
)
from keras_vd.pruning import kl_divergence
from keras_vd.uncertainty.prediction import refuse_states, to_tensor
from keras_vd.uncertainty.sampler import Padding, sampler_of

Likelihood: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]

# Losses that are negative log likelihoods: their classes and functions.
_LOSSES = (
    ("sparse", "SparseCategoricalCrossentropy"),
    ("categorical", "CategoricalCrossentropy"),
    ("binary", "BinaryCrossentropy"),
    ("normal", "MeanSquaredError"),
)
_FUNCTIONS = {
    "sparse": keras.losses.sparse_categorical_crossentropy,
    "categorical": keras.losses.categorical_crossentropy,
    "binary": keras.losses.binary_crossentropy,
    "normal": keras.losses.mean_squared_error,
}
# Options with which a loss is no log likelihood unless they have these values.
_NEUTRAL = {"label_smoothing": 0.0, "ignore_class": None, "axis": -1}


@dataclasses.dataclass(frozen=True)
class ElboReport(Report):
    """Evidence lower bound of a data set, in nats, and its parts.

    Attributes:
        log_likelihood: Sum over all examples of the mean over the draws of
            log p(y | x, w).
        standard_error: Standard error of `log_likelihood`, from the spread of
            the draws; None with one draw.
        kl: KL divergence of all posteriors to their priors; the mean over
            `num_samples` estimates where a prior has no closed form.
        examples: Number of examples.
        num_samples: Number of draws.
    """

    log_likelihood: float
    standard_error: float | None
    kl: float
    examples: int
    num_samples: int

    @property
    def elbo(self) -> float:
        """`log_likelihood - kl`: a bound below the log evidence."""
        return self.log_likelihood - self.kl

    @property
    def elbo_per_example(self) -> float:
        """`elbo` over the number of examples."""
        return self.elbo / self.examples

    def to_dict(self) -> dict[str, Any]:
        bounds = ("elbo", "elbo_per_example")
        return {
            **{name: getattr(self, name) for name in bounds},
            **dataclasses.asdict(self),
        }

    def headlines(self) -> tuple[Headline, ...]:
        return (
            Headline("bound, nats per example", f"{self.elbo_per_example:.4g}"),
        )

    def to_table(self) -> rich.table.Table:
        table = rich.table.Table(title="Evidence lower bound")
        table.add_column("")
        for header in ("nats", "per example", "standard error"):
            table.add_column(header, justify="right")
        error = self.standard_error
        shown = "" if error is None else f"{error:,.2f}"
        for name, value, spread in (
            ("log likelihood", self.log_likelihood, shown),
            ("KL divergence", self.kl, ""),
            ("bound", self.elbo, shown),
        ):
            each = f"{value / self.examples:.4f}"
            table.add_row(name, f"{value:,.2f}", each, spread)
        return table


def elbo(
    model: keras.Model,
    x: Any,
    y: Any,
    num_samples: int = 50,
    batch_size: int = 32,
    seed: int | None = None,
    noise_stddev: float | None = None,
) -> ElboReport:
    """Estimate the evidence lower bound of a data set.

    It is E_q[log p(y | x, w)], summed over all examples, minus the whole KL
    divergence, whatever `kl_weight` and `kl_scale` are: what training
    maximizes, in nats, and below log p(y | x). The compiled loss tells the
    likelihood: a crossentropy, whose probabilities it clips as in training, or
    a normal one for `keras_vd.losses.GaussianNLL` and the mean squared error.
    Regularizers, and weights of losses and examples, are no part of it, and
    masked positions count like others.

    A draw is as in `predict_mc`. The log-uniform prior has no evidence: under
    it, compare values of models of one size alone. The bound is that of all
    weights with noise, so that means which `train_clip` leaves out are missing
    in the draws, and not in the KL.

    Args:
        model: A built and compiled model with variational layers, of one
            output.
        x: Array, or list, tuple or dict of arrays: the inputs.
        y: Array of the targets, as in `fit`: class numbers, one-hot vectors,
            zeros and ones, or numbers.
        num_samples: Int >= 1: number of draws.
        batch_size: Int >= 1: a matter of speed.
        seed: Int >= 0 of the draws. None: one from Python's `random`.
        noise_stddev: Float > 0, for the mean squared error alone, which needs
            it: standard deviation of the noise of the targets, in their units.

    Returns:
        A report: `.elbo`, `.log_likelihood` with `.standard_error`, and `.kl`.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if a value is not allowed, `y` does not fit, or the compiled
            loss is no likelihood.

    Example:
    >>> layer = keras_vd.layers.VDDense(1, posterior="gaussian")
    >>> model = keras.Sequential([keras.Input((2,)), layer])
    >>> model.compile(loss="mse")
    >>> report = keras_vd.elbo(
    ...     model, np.ones((8, 2)), np.zeros(8), noise_stddev=0.5
    ... )
    >>> report.elbo == report.log_likelihood - report.kl
    True
    """
    check_model(model)
    required_posteriors(model)  # raises an error if there are none
    check_finite_model(model)
    refuse_states(model)
    num_samples = check_integer("num_samples", num_samples, 1)
    batch_size = check_integer("batch_size", batch_size, 1)
    seed = None if seed is None else check_integer("seed", seed, 0)
    likelihood = _likelihood_of(model, noise_stddev)
    batches = _array_batches(x, batch_size)
    examples = batches.num_examples
    targets = np.asarray(ops.convert_to_numpy(y) if ops.is_tensor(y) else y)
    if targets.shape[:1] != (examples,) or not examples:
        raise ValueError(
            "Argument `y` must have one entry for each of the "
            f"{examples} examples, at least one. Received: shape "
            f"{targets.shape}."
        )
    totals = np.zeros(num_samples)
    sampler, padding = sampler_of(model), Padding(model)
    with sampler.seeded(seed) as seeds:
        start = 0
        for batch in batches:
            rows = targets[start : start + batch_size]
            start += len(rows)
            tensors = keras.tree.map_structure(to_tensor, padding.fill(batch))
            states = (seeds.of_draw(i) for i in range(num_samples))
            for i, outputs in enumerate(sampler.draws(tensors, states)):
                totals[i] += _total(likelihood, rows, outputs)
        divergence = _mean_kl_divergence(model, num_samples)
    error = None
    if num_samples > 1:
        error = float(np.std(totals, ddof=1) / math.sqrt(num_samples))
    return ElboReport(
        log_likelihood=float(np.mean(totals)),
        standard_error=error,
        kl=divergence,
        examples=examples,
        num_samples=num_samples,
    )


def _mean_kl_divergence(model: keras.Model, num_samples: int) -> float:
    is_sampled = any(x.prior.is_sampled for x in variational_weights(model))
    count = num_samples if is_sampled else 1
    return sum(kl_divergence(model) for _ in range(count)) / count


def _array_batches(x: Any, batch_size: int | None) -> Batches:
    batches = input_batches(x, batch_size, None)
    if batches is None or not batches.is_array:
        raise TypeError(
            "Argument `x` must be an array, or a list, tuple or dict of "
            f"arrays. Received: {x!r} (of type {type(x).__name__})."
        )
    return batches


def _likelihood_of(model: keras.Model, noise_stddev: Any) -> Likelihood:
    """Return the log likelihood that the compiled loss stands for."""
    loss = getattr(model, "loss", None)
    if isinstance(loss, GaussianNLL):
        _check_noise(noise_stddev, loss, is_needed=False)
        return functools.partial(_gaussian_log_likelihood, loss)
    kind, from_logits = _read_loss(loss)
    _check_noise(noise_stddev, loss, is_needed=kind == "normal")
    return functools.partial(_log_likelihood, kind, from_logits, noise_stddev)


def _read_loss(loss: Any) -> tuple[str, bool]:
    """Read which likelihood was compiled, and whether it takes logits."""
    options: dict[str, Any] = {}
    found = keras.losses.get(loss) if isinstance(loss, str) else loss
    if isinstance(found, keras.losses.Loss):
        options = loss_options(found)
    kind = next(
        (
            kind
            for kind, name in _LOSSES
            if type(found) is getattr(keras.losses, name)
            or found is _FUNCTIONS[kind]
        ),
        None,
    )
    if kind is None:
        raise ValueError(
            "Argument `model` must be compiled with a loss that is a negative "
            f"log likelihood, one of {[name for _, name in _LOSSES]} of "
            "`keras.losses` or `keras_vd.losses.GaussianNLL`. Compile the "
            "model with the one that its outputs are for. Received: "
            f"loss={loss!r}."
        )
    for name, value in _NEUTRAL.items():
        if options.get(name, value) != value:
            raise ValueError(
                "Argument `model` must be compiled with a loss that is a "
                f"negative log likelihood, with {name}={value!r}. Received: "
                f"{name}={options[name]!r}."
            )
    return kind, bool(options.get("from_logits", False))


def _check_noise(noise_stddev: Any, loss: Any, is_needed: bool) -> None:
    if noise_stddev is not None:
        check_number("noise_stddev", noise_stddev, 0.0, exclusive=True)
    if (noise_stddev is None) is is_needed:
        raise ValueError(
            "Argument `noise_stddev` must be given with a mean squared error, "
            "and only then: it is the standard deviation of the noise of the "
            f"targets. Received: noise_stddev={noise_stddev!r} with "
            f"loss={loss!r}."
        )


def _total(
    likelihood: Likelihood,
    targets: np.ndarray,
    outputs: Any,
) -> float:
    """Sum the log likelihood of a batch, without the rows that fill it."""
    if keras.tree.is_nested(outputs):
        raise ValueError(
            "Argument `model` must have one output. Received one with outputs "
            f"in the structure of {type(outputs).__name__}."
        )
    array = np.asarray(outputs)
    if array.shape[:1] < targets.shape[:1]:
        raise ValueError(
            "Argument `model` must return one row for each of "
            f"{len(targets)} examples. Received: shape {array.shape}."
        )
    terms = likelihood(targets, array[: len(targets)])
    return float(np.sum(terms, dtype="float64"))


def _log_likelihood(
    kind: str,
    from_logits: bool,
    noise_stddev: float | None,
    targets: np.ndarray,
    outputs: np.ndarray,
) -> np.ndarray:
    """Compute log p(y | x, w) of all examples and positions."""
    targets = _fitting(kind, targets, outputs.shape)
    if noise_stddev is not None:
        scaled = (targets - outputs.astype("float64")) / noise_stddev
        constant = math.log(noise_stddev) + 0.5 * LOG_2_PI
        return -0.5 * np.square(scaled) - constant
    tensors = [
        ops.convert_to_tensor(x) for x in (targets, outputs.astype("float32"))
    ]
    losses = _FUNCTIONS[kind](*tensors, from_logits=from_logits)
    terms = -ops.convert_to_numpy(losses)
    # Keras takes the mean over the labels of an example, not their sum.
    return terms * outputs.shape[-1] if kind == "binary" else terms


def _gaussian_log_likelihood(
    loss: GaussianNLL, targets: np.ndarray, outputs: np.ndarray
) -> np.ndarray:
    """Compute log p(y | x, w) of all examples and positions."""
    tensors = [
        ops.convert_to_tensor(x.astype("float32")) for x in (targets, outputs)
    ]
    return -ops.convert_to_numpy(loss.call(*tensors))


def _fitting(
    kind: str, targets: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Return targets in the shape that goes with outputs of a shape.

    Raises:
        ValueError: if they have another one, or values that are not allowed.
    """
    classes = shape[-1]
    wanted = shape[:-1] if kind == "sparse" else shape
    values = {
        "sparse": f"class numbers 0, 1, ..., {classes - 1}",
        "normal": "numbers",
    }.get(kind, "zeros and ones")
    # As Keras' losses allow, one of both may end in an axis of size 1.
    is_fitting = _stem(targets.shape) == _stem(wanted)
    if is_fitting and targets.dtype.kind in "biuf":
        largest = classes - 1 if kind == "sparse" else 1
        is_whole = targets == np.round(targets)
        is_class = is_whole & (targets >= 0) & (targets <= largest)
        if kind == "normal" or np.all(is_class):
            dtype = "int32" if kind == "sparse" else "float32"
            return targets.reshape(wanted).astype(dtype)
    raise ValueError(
        f"Argument `y` must be {values}, for outputs of shape {shape} of the "
        f"shape {wanted}. Received: shape {targets.shape} of type "
        f"{targets.dtype}, in the range of {targets.min()} to {targets.max()}."
    )


def _stem(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:-1] if shape[1:] and shape[-1] == 1 else shape
