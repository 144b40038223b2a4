"""What a variational model does not know: Monte Carlo predictions."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._validation import check_integer, check_model
from keras_vd.calibration import (
    CalibrationReport,
    are_probabilities,
    both_classes,
    calibration_report,
    check_labels,
)
from keras_vd.posteriors.sampling import sampling_at_inference
from keras_vd.report import required_posteriors


@dataclasses.dataclass(frozen=True, eq=False)
class MonteCarloPrediction:
    """Predictions of many draws of a model's weights, summed up.

    The two entropies are None where the outputs are no class probabilities.

    Attributes:
        mean: Mean prediction, of the shape of the model's outputs.
        standard_deviation: Standard deviation over the draws, of that shape.
        predictive_entropy: Nats, shape `(examples, ...)` without the classes:
            entropy of the mean class probabilities, all that is uncertain.
        mutual_information: Nats, of that shape: the part of it that comes
            from not knowing the weights, `predictive_entropy` minus the mean
            entropy of the draws (BALD, Houlsby et al. 2011, arXiv:1112.5745).
        calibration: Confidence and accuracy of `mean`; None without labels.
        num_samples: Number of draws.
    """

    mean: np.ndarray
    standard_deviation: np.ndarray
    predictive_entropy: np.ndarray | None
    mutual_information: np.ndarray | None
    calibration: CalibrationReport | None
    num_samples: int

    @property
    def expected_calibration_error(self) -> float | None:
        """Of the mean class probabilities; None without labels."""
        if self.calibration is None:
            return None
        return self.calibration.expected_error


def predict_mc(
    model: keras.Model,
    x: Any,
    num_samples: int = 50,
    batch_size: int = 32,
    labels: Any = None,
    from_logits: Any = False,
    seed: int | None = None,
) -> Any:
    """Predict with many draws of the weights instead of their means.

    Weights and gates are drawn as in training, anew for every batch and draw.
    All else is as in `predict`: no dropout, moving statistics in batch
    normalization. What `prune` has removed is 0. Weights that `predict` leaves
    out by their threshold alone keep their noise: for the uncertainty of the
    sparse model call `prune` first.

    The model stays as it was, seeds included. Memory does not grow with the
    number of draws.

    Args:
        model: A built model with variational layers.
        x: Array, or list, tuple or dict of arrays for several inputs.
        num_samples: Int >= 1: number of draws.
        batch_size: Int >= 1: examples per step.
        labels: Class numbers of shape `(examples, ...)`, for the calibration.
            For several outputs a structure like theirs, with None for others.
        from_logits: Bool: whether to turn outputs into probabilities by a
            softmax (one column: a sigmoid). A structure for several outputs.
        seed: Int >= 0 of the draws. None: one from Python's `random`.

    Returns:
        A `MonteCarloPrediction`; for several outputs a structure of them.
        Outputs count as class probabilities where they are within [0, 1] and
        sum to 1, or have one column within [0, 1], that of class 1 of two.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if the model is plain or not built, a number is too small,
            `x` has no examples, or `labels` do not go with the outputs.

    Example:
    >>> layer = keras_vd.layers.VDDense(3)
    >>> model = keras.Sequential([keras.Input((4,)), layer])
    >>> keras_vd.predict_mc(model, np.zeros((2, 4)), 10).mean.shape
    (2, 3)
    """
    check_model(model)
    required_posteriors(model)  # or an error
    num_samples = check_integer("num_samples", num_samples, 1)
    batch_size = check_integer("batch_size", batch_size, 1)
    if seed is not None:
        check_integer("seed", seed, 0)
    x = keras.tree.map_structure(_to_array, x)
    with _seeded(model, seed):
        draws = _Sampler(model).all_draws(x, num_samples, batch_size)
        return _summarize(draws, _count_examples(x), labels, from_logits)


class _Sampler(keras.Model):
    """A model whose predictions are draws, with a compiled function of its own.

    What the model itself has compiled for `predict` draws nothing.
    """

    def __init__(self, model: keras.Model) -> None:
        # The model itself casts its inputs.
        super().__init__(autocast=False, name="sampler")
        self.model = model
        self.run_eagerly = model.run_eagerly
        self.jit_compile = model.jit_compile
        self.built = True

    def call(self, inputs: Any) -> Any:
        with sampling_at_inference():
            return self.model(inputs, training=False)

    def all_draws(
        self, x: Any, num_samples: int, batch_size: int
    ) -> Iterator[tuple[slice, Iterator[Any]]]:
        """Batch by batch: which examples they are, and draws for them."""
        for start in range(0, _count_examples(x), batch_size):
            rows = slice(start, start + batch_size)
            yield rows, self._draws(x, rows, num_samples)

    def _draws(self, x: Any, rows: slice, num_samples: int) -> Iterator[Any]:
        batch = keras.tree.map_structure(lambda array: array[rows], x)
        for _ in range(num_samples):
            yield self.predict_on_batch(batch)


class _Summary:
    """Statistics of one output for one batch, updated draw by draw.

    Welford's algorithm (1962) for mean and variance.
    """

    def __init__(self, labels: np.ndarray | None, from_logits: bool) -> None:
        self.labels = labels
        self.from_logits = from_logits
        self.num_samples = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0
        self.entropy: Any = 0.0
        self.is_classification = True

    def add(self, outputs: np.ndarray) -> None:
        """Take in one more draw, of shape `(batch, ...)`."""
        values = np.asarray(outputs, "float64")
        if self.from_logits:
            values = _probabilities(values)
        self.is_classification &= are_probabilities(values)
        if self.labels is not None:
            self._check_labels(values)
        self.num_samples += 1
        deviation = values - self.mean
        self.mean = self.mean + deviation / self.num_samples
        self.squares = self.squares + deviation * (values - self.mean)
        if self.is_classification:
            self.entropy = self.entropy + _entropy(values)

    def _check_labels(self, values: np.ndarray) -> None:
        if not self.is_classification:
            raise ValueError(
                "Argument `labels` is for class probabilities, and these "
                "outputs are none. If they are logits, pass "
                f"`from_logits=True`. Received outputs of shape {values.shape} "
                f"from {values.min():g} to {values.max():g}."
            )
        if self.num_samples == 0:
            check_labels(self.labels, both_classes(values))

    @property
    def standard_deviation(self) -> np.ndarray:
        return np.sqrt(self.squares / self.num_samples)

    @property
    def predictive_entropy(self) -> np.ndarray:
        return _entropy(self.mean)

    @property
    def mutual_information(self) -> np.ndarray:
        # Never negative but for rounding.
        difference = self.predictive_entropy - self.entropy / self.num_samples
        return np.maximum(difference, 0.0)


def _summarize(
    batches: Iterator[tuple[slice, Iterator[Any]]],
    examples: int,
    labels: Any,
    from_logits: Any,
) -> Any:
    """A `MonteCarloPrediction` for each output, in the outputs' structure.

    Args:
        batches: Which examples, and draws of their predictions.
        examples: Number of all examples.
        labels: As the user passed them.
        from_logits: As the user passed it.
    """
    finished: list[list[_Summary]] = []
    for rows, draws in batches:
        summaries: list[_Summary] = []
        for outputs in draws:
            if not summaries:
                logits = _by_output("from_logits", from_logits, outputs)
                classes = _by_output("labels", labels, outputs)
                summaries = [
                    _Summary(_label_rows(y, rows, examples), is_logits)
                    for y, is_logits in zip(classes, logits, strict=True)
                ]
            leaves = keras.tree.flatten(outputs)
            for summary, leaf in zip(summaries, leaves, strict=True):
                summary.add(leaf)
        finished.append(summaries)
    predictions = map(_joined, zip(*finished, strict=True), classes)
    return keras.tree.pack_sequence_as(outputs, list(predictions))


def _joined(
    summaries: tuple[_Summary, ...], labels: Any
) -> MonteCarloPrediction:
    """All batches of one output."""

    def joined(name: str) -> np.ndarray:
        parts = [getattr(summary, name) for summary in summaries]
        return np.concatenate(parts).astype("float32")

    mean = joined("mean")
    is_classification = all(x.is_classification for x in summaries)
    return MonteCarloPrediction(
        mean=mean,
        standard_deviation=joined("standard_deviation"),
        predictive_entropy=(
            joined("predictive_entropy") if is_classification else None
        ),
        mutual_information=(
            joined("mutual_information") if is_classification else None
        ),
        calibration=(
            None if labels is None else calibration_report(mean, labels)
        ),
        num_samples=summaries[0].num_samples,
    )


def _by_output(argument: str, value: Any, outputs: Any) -> list[Any]:
    """One entry for each output of a model, in the order of its leaves."""
    leaves = keras.tree.flatten(outputs)
    if not keras.tree.is_nested(outputs):
        return [value]
    if value is None or isinstance(value, bool):
        return [value] * len(leaves)
    try:
        entries: list[Any] = []
        keras.tree.map_structure_up_to(
            outputs, lambda _, entry: entries.append(entry), outputs, value
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"Argument `{argument}` must have one entry for each output of the "
            f"model, structured like these. Received: {argument}={value!r}."
        ) from error
    return entries


def _label_rows(labels: Any, rows: slice, examples: int) -> np.ndarray | None:
    if labels is None:
        return None
    array = np.asarray(labels)
    if array.shape[:1] != (examples,):
        raise ValueError(
            f"Argument `labels` must have one entry for each of the {examples} "
            f"examples. Received: shape {array.shape}."
        )
    return array[rows]


def _to_array(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray) or ops.is_tensor(value):
        array = np.asarray(ops.convert_to_numpy(value))
        if array.ndim:
            return array
    raise TypeError(
        "Argument `x` must be an array, or a list, tuple or dict of arrays, "
        "with the examples along the first axis. Received: "
        f"{value!r} (of type {type(value).__name__})."
    )


def _count_examples(x: Any) -> int:
    sizes = {len(array) for array in keras.tree.flatten(x)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            "Argument `x` must have at least one example, and as many in each "
            f"of its arrays. Received arrays of {sorted(sizes)} examples."
        )
    return sizes.pop()


@contextlib.contextmanager
def _seeded(model: keras.Model, seed: int | None) -> Iterator[None]:
    """Context in which posteriors draw from a seed, and not from their own.

    All seeds of the model have their old states afterwards: Keras' recurrent
    layers, too, advance theirs at inference.
    """
    seed = random.randrange(2**31) if seed is None else seed
    weights = {id(variable) for variable in model.weights}
    others = [x for x in model.variables if id(x) not in weights]
    # Copies: a compiled step may free what it was given.
    kept = [np.array(ops.convert_to_numpy(variable)) for variable in others]
    posteriors = required_posteriors(model)
    # Below 2^31, so that every backend's type of seed holds them.
    new = np.random.SeedSequence(seed).generate_state(2 * len(posteriors)) >> 1
    try:
        for posterior, value in zip(
            posteriors, new.reshape(-1, 2), strict=True
        ):
            state = posterior.seed_generator.state
            state.assign(ops.cast(value, state.dtype))
        yield
    finally:
        for variable, value in zip(others, kept, strict=True):
            variable.assign(value)


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy in nats along the last axis, with 0 log 0 = 0."""
    values = np.clip(both_classes(probabilities), 0.0, 1.0)
    logs = np.log(np.where(values > 0.0, values, 1.0))
    return -np.sum(values * logs, axis=-1)


def _probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax along the last axis, or the sigmoid of a single column."""
    if logits.ndim < 2:
        raise ValueError(
            "Argument `from_logits` is for outputs of shape (examples, ..., "
            f"classes). Received outputs of shape {logits.shape}."
        )
    if logits.shape[-1] == 1:
        return 0.5 + 0.5 * np.tanh(0.5 * logits)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)
