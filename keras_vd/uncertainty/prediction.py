"""Monte Carlo predictions, which tell what a variational model does not know.

A draw is one sample of all weights and gates, the same for all examples, time
steps and positions, whatever the `estimator` in training. So a draw is a
function: its predictions of several examples belong together, and the batch
size does not change them. With `noise="input"` a draw has one factor per input
unit.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import (
    Batches,
    flatten_layers,
    functional_part,
    input_batches,
)
from keras_vd._backend.tables import simple_table, table_text
from keras_vd._backend.validation import (
    check_finite_model,
    check_integer,
    check_model,
    check_share,
)
from keras_vd.calibration import CalibrationReport
from keras_vd.posteriors.finding import required_posteriors
from keras_vd.regression import mixture_quantile
from keras_vd.uncertainty.heads import Head
from keras_vd.uncertainty.noise import HETEROSCEDASTIC
from keras_vd.uncertainty.predictive import (
    class_log_likelihood,
    gaussian_log_likelihood,
)
from keras_vd.uncertainty.sampler import Padding, Progress, sampler_of
from keras_vd.uncertainty.summaries import Summary, with_classes
from keras_vd.uncertainty.tasks import Meaning, by_output, meanings


@dataclasses.dataclass(frozen=True, eq=False)
class MonteCarloPrediction:
    """Predictions of many draws of a model's weights, summed up.

    What is about classes is None where `task` is `"regression"`. Entropies
    have the shape of the outputs without the axis of the classes. Outputs of
    `"multi-label"` have no such axis, as each label is a prediction of its own.

    Attributes:
        mean: Mean prediction, of the shape of the model's outputs;
            probabilities but for a regression.
        standard_deviation: Standard deviation over the draws, of that shape.
        predictive_entropy: Nats: entropy of the mean class probabilities, the
            whole uncertainty.
        mutual_information: Nats, of that shape: the part of the uncertainty
            that comes from not knowing the weights, `predictive_entropy` minus
            the mean entropy of the draws (BALD, Houlsby et al. 2011,
            arXiv:1112.5745).
        calibration: Confidence and accuracy of `mean`; None without labels.
        num_samples: Number of draws.
        task: `"classification"`, `"binary"`, `"multi-label"` or
            `"regression"`.
        samples: The predictions of all draws, float32, of shape
            `(num_samples, examples, ...)`; None without `return_samples`.
        aleatoric_variance: Of a regression whose noise is known: the mean
            variance of the noise, of the shape of `mean`; more data does not
            make it smaller. None otherwise.
        noise: Standard deviation of the noise of a regression, which broadcasts
            against `samples`, if it is known. None otherwise, where it
            differs by draw but was not kept, and with a head.
    """

    mean: np.ndarray
    standard_deviation: np.ndarray
    predictive_entropy: np.ndarray | None
    mutual_information: np.ndarray | None
    calibration: CalibrationReport | None
    num_samples: int
    task: str
    samples: np.ndarray | None = None
    aleatoric_variance: np.ndarray | None = None
    noise: np.ndarray | None = None
    # What makes distributions of targets, and of which outputs.
    _head: Head | None = dataclasses.field(default=None, repr=False)
    _outputs: np.ndarray | None = dataclasses.field(default=None, repr=False)
    # In 64 bits: in 32 a probability of 1e-8 is 0 after it is taken from 1.
    _class_mean: np.ndarray | None = dataclasses.field(default=None, repr=False)

    def __str__(self) -> str:
        """Return a table of the statistics over all examples and columns."""
        found = {
            "mean": self.mean,
            "standard deviation": self.standard_deviation,
            "aleatoric variance": self.aleatoric_variance,
            "epistemic variance": self.epistemic_variance,
            "predictive entropy, nats": self.predictive_entropy,
            "mutual information, nats": self.mutual_information,
        }
        shape = "x".join(map(str, self.mean.shape))
        table = simple_table(
            f"{self.task}, {shape}, {self.num_samples} draws",
            ("over all entries", "smallest", "mean", "largest"),
            [
                (name, *(f"{f(x):.4g}" for f in (np.min, np.mean, np.max)))
                for name, x in found.items()
                if x is not None and x.size
            ],
        )
        text = table_text(table)
        return text if self.calibration is None else f"{text}{self.calibration}"

    @property
    def epistemic_variance(self) -> np.ndarray | None:
        """Variance of a regression that comes from not knowing the weights.

        It is that of the draws. With `aleatoric_variance` it adds up to the
        variance of targets. None for classes.
        """
        if self.task != "regression":
            return None
        return np.square(self.standard_deviation)

    @property
    def expected_entropy(self) -> np.ndarray | None:
        """Mean entropy of the draws, in nats: the aleatoric part for classes.

        It is `predictive_entropy` minus `mutual_information`. None for a
        regression.
        """
        if self.predictive_entropy is None or self.mutual_information is None:
            return None
        return self.predictive_entropy - self.mutual_information

    def log_likelihood(self, labels: Any) -> np.ndarray:
        """Compute the log predictive density of labels or targets.

        It is the log of the mean over the draws of their likelihood; the mean
        over the examples is the score by which to compare models. For classes
        it is -inf where the mean probability is 0, as rounding makes of very
        small ones. Several labels of `"multi-label"` count as independent.
        Several columns of a regression do not: the draws make them covary.

        Args:
            labels: As for `predict_mc`: class numbers of shape
                `(examples, ...)`, or 0 and 1 in the shape of the outputs for
                `"multi-label"`. For a regression the targets, of the shape of
                `mean`.

        Returns:
            Nats, float64, summed over the last axis of labels of
            `"multi-label"` and of targets: shape `(examples,)`, or
            `(examples, steps)` for sequences, each step for itself.

        Raises:
            ValueError: if labels do not fit the outputs, or, for a regression,
                if draws were not kept (`return_samples`) or the noise is not
                known (`noise`).
        """
        if self.task != "regression":
            mean = self.mean if self._class_mean is None else self._class_mean
            logs = class_log_likelihood(with_classes(mean, self.task), labels)
            return logs.sum(axis=-1) if self.task == "multi-label" else logs
        samples = self._kept_samples()
        if self._head is not None and self._outputs is not None:
            return self._head.log_likelihood(
                self._outputs, samples.shape[1:], labels
            )
        if self.noise is None:
            raise ValueError(
                "Targets of a regression have a likelihood only with noise. "
                "Call `predict_mc` with `noise=`, a standard deviation or "
                "'heteroscedastic' or a head, or compile the model with "
                "`keras_vd.losses.GaussianNLL`."
            )
        return gaussian_log_likelihood(samples, self.noise, labels)

    def quantile(self, q: float | Sequence[float]) -> np.ndarray:
        """Compute quantiles of the predictive distribution.

        For a regression whose noise is known these are quantiles of targets:
        the distribution is the mixture of the distributions of all draws,
        normal but for a head, column by column. Without noise, and for the
        probabilities of classes, they are the empirical ones of the draws,
        which say only what the weights leave open.

        Args:
            q: Float in (0, 1), or a sequence of such.

        Returns:
            float64 of the shape of `mean`; for a sequence with its length as
            another first axis.

        Raises:
            TypeError: if `q` is not made of numbers.
            ValueError: if a number is not in (0, 1), or draws were not kept
                (`return_samples`).
        """
        if isinstance(q, (list, tuple, np.ndarray)) and np.ndim(q) > 0:
            levels = [check_share("q", x) for x in q]
            if not levels:
                raise ValueError(
                    "Argument `q` must have at least one entry. Received: "
                    f"q={q!r}."
                )
            return np.stack([self._quantile(x) for x in levels])
        return self._quantile(check_share("q", q))

    def interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Compute the interval between two quantiles, of equal tails.

        Args:
            level: Float in (0, 1): share of the predictive distribution that
                is inside; see `quantile` for what that distribution is.

        Returns:
            Lower and upper end, float64 of the shape of `mean`.

        Raises:
            TypeError: if `level` is no number.
            ValueError: if it is not in (0, 1), or draws were not kept
                (`return_samples`).
        """
        tail = 0.5 * (1.0 - check_share("level", level))
        return self._quantile(tail), self._quantile(1.0 - tail)

    def _quantile(self, q: float) -> np.ndarray:
        samples = self._kept_samples()
        if self._head is not None and self._outputs is not None:
            variance = np.square(self.standard_deviation, dtype="float64")
            variance = variance + np.asarray(self.aleatoric_variance)
            return self._head.quantile(
                self._outputs, self.mean.astype("float64"), variance**0.5, q
            )
        if self.noise is None:
            return np.quantile(samples, q, axis=0).astype("float64")
        noise = np.broadcast_to(self.noise, samples.shape)
        return mixture_quantile(samples.astype("float64"), noise, q)

    def _kept_samples(self) -> np.ndarray:
        if self.samples is None:
            raise ValueError(
                "This needs all draws: call `predict_mc` with "
                "`return_samples=True`."
            )
        return self.samples

    @property
    def expected_calibration_error(self) -> float | None:
        """Calibration error of the mean predictions; None without labels."""
        if self.calibration is None:
            return None
        return self.calibration.expected_error


# One prediction, or one for each of several outputs, in their structure.
Predictions: TypeAlias = (
    "MonteCarloPrediction | dict[str, Any] | list[Any] | tuple[Any, ...]"
)


def predict_mc(
    model: keras.Model,
    x: Any,
    num_samples: int = 50,
    batch_size: int | None = None,
    labels: Any = None,
    from_logits: Any = None,
    seed: int | None = None,
    task: Any = None,
    steps: int | None = None,
    verbose: Any = "auto",
    return_samples: bool = False,
    noise: Any = None,
) -> Predictions:
    """Predict with many draws of the weights instead of their means.

    A draw is one sample of all weights and gates for all examples; all else is
    as in `predict`. What `prune` has removed is 0, but what a threshold alone
    leaves out keeps its noise: to know a sparse model's uncertainty, prune it
    first. The model stays as it was, and keeps the compiled function for the
    next call.

    Args:
        model: A built model with variational layers.
        x: All that `predict` takes. Targets in its batches are left alone.
        num_samples: Int >= 1: number of draws; memory grows with it only if
            `return_samples`.
        batch_size: Int >= 1 or None (32), for arrays only: a matter of speed.
        labels: For the calibration, one per prediction: class numbers of shape
            `(examples, ...)`; for `"multi-label"`, 0 and 1 in the shape of the
            outputs.
        from_logits: Bool: whether the outputs are logits, to be turned into
            probabilities. None: what the last activation or the compiled loss
            says.
        seed: Int >= 0 of the draws. None: one from Python's `random`.
        task: `"classification"` (classes along the last axis), `"binary"` (one
            column: class 1), `"multi-label"` (columns that need not sum to 1)
            or `"regression"`. None: a last softmax, else the compiled loss,
            else a last sigmoid tells.
        steps: Int >= 1 or None (all): number of batches.
        verbose: `"auto"` (a bar after 10 s), 1 (at once) or 0 (none).
        return_samples: Bool: whether to keep the predictions of all draws as
            `samples`, 4 bytes for each draw of each number (12 with
            heteroscedastic noise), and twice that while they are put together.
        noise: For a regression, how far targets are from what a draw predicts:
            the standard deviation of Gaussian noise, a float > 0 or one for
            each column; or `"heteroscedastic"`, if outputs hold k means and
            then k log variances along the last axis, so that all statistics
            are those of the means. Or a head: a function that takes the
            outputs of a draw as a NumPy array and returns their
            `tfp.distributions.Distribution`, or another object with `mean`,
            `variance` or `stddev`, and for likelihoods and quantiles `log_prob`
            and `cdf`; statistics are those of its means. None: what a compiled
            `keras_vd.losses.GaussianNLL` says; with other losses it is unknown.

    Returns:
        A `MonteCarloPrediction`; for several outputs a structure of them, and
        `labels`, `from_logits`, `task` and `noise` may be such structures, too.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if a value is not allowed, arguments and model contradict
            each other, or `task` or `from_logits` cannot be told.

    Example:
    >>> model = keras.Sequential([
    ...     keras.Input((3,)),
    ...     keras_vd.layers.VDDense(2),
    ... ])
    >>> prediction = keras_vd.predict_mc(
    ...     model, np.ones((4, 3)), task="regression", num_samples=5, seed=0
    ... )
    >>> prediction.mean.shape
    (4, 2)
    """
    check_model(model)
    required_posteriors(model)  # raises an error if there are none
    check_finite_model(model)
    refuse_states(model)
    seed = None if seed is None else check_integer("seed", seed, 0)
    num_samples = check_integer("num_samples", num_samples, 1)
    if not isinstance(return_samples, bool):
        raise TypeError(
            "Argument `return_samples` must be True or False. Received: "
            f"return_samples={return_samples!r}."
        )
    batches = _batches(x, batch_size, steps)
    progress = Progress(verbose, batches, num_samples)
    reader = _Reader(model, task, from_logits, noise, labels, return_samples)
    _read_all(model, batches, reader, num_samples, seed, progress)
    return reader.result()


def _read_all(
    model: keras.Model,
    batches: Batches,
    reader: _Reader,
    num_samples: int,
    seed: int | None,
    progress: Progress,
) -> None:
    """Let `reader` read all draws of all batches."""
    reader.read_graph(batches.num_examples)
    sampler, padding = sampler_of(model), Padding(model)
    with sampler.seeded(seed) as seeds:
        for batch in batches:
            size = _count_examples(batch)
            tensors = keras.tree.map_structure(to_tensor, padding.fill(batch))
            states = (seeds.of_draw(i) for i in range(num_samples))
            reader.start_batch(size)
            for outputs in sampler.draws(tensors, states):
                reader.add(outputs)
                progress.step()
    progress.close()
    count = len(reader.batches)
    if batches.steps is not None and count < batches.steps:
        warnings.warn(
            f"Argument `steps` is {batches.steps}, and `x` has ended after "
            f"{count} batches.",
            stacklevel=3,
        )


class _Reader:
    """Reader of outputs, batch by batch and draw by draw.

    Args:
        model: Where the outputs come from.
        task: As the user passed it.
        from_logits: As the user passed it.
        noise: As the user passed it.
        labels: As the user passed them.
        is_keeping: Whether to keep all draws.
    """

    def __init__(
        self,
        model: keras.Model,
        task: Any,
        from_logits: Any,
        noise: Any,
        labels: Any,
        is_keeping: bool,
    ) -> None:
        self.model = model
        self.task, self.from_logits, self.noise = task, from_logits, noise
        self.labels = labels
        self.is_keeping = is_keeping
        self.meanings: list[Meaning] | None = None
        self.examples = 0
        self.batches: list[list[Summary]] = []

    def read_graph(self, examples: int | None) -> None:
        """Find out what the outputs are before anything is computed.

        Args:
            examples: Number of examples, if it is known.
        """
        functional = functional_part(self.model)
        if functional is None:
            return
        if all(x.shape[-1] is not None for x in functional.outputs):
            self._read_structure(functional.output)
            if examples is not None:
                self._check_labels(examples)

    def _read_structure(self, outputs: Any) -> None:
        self.meanings = meanings(
            self.model, outputs, self.task, self.from_logits, self.noise
        )
        self.labels = [
            None if y is None else np.asarray(_on_host(y))
            for y in by_output("labels", self.labels, outputs)
        ]
        for meaning, y in zip(self.meanings, self.labels, strict=True):
            if y is not None and meaning.task == "regression":
                raise ValueError(
                    "Argument `labels` is for the calibration of class "
                    "probabilities, and these outputs are a regression: "
                    "`log_likelihood` of the prediction compares it with the "
                    "targets. If they are not, pass `task=`."
                )

    def _check_labels(self, examples: int) -> None:
        for labels in self.labels:
            if labels is not None and labels.shape[:1] != (examples,):
                raise ValueError(
                    "Argument `labels` must have one entry for each of the "
                    f"{examples} examples. Received: shape {labels.shape}."
                )

    def start_batch(self, size: int) -> None:
        self.examples += size
        self.size = size
        self.batches.append([])

    def add(self, outputs: Any) -> None:
        """Take in one more draw of the last batch."""
        if self.meanings is None:
            self._read_structure(outputs)
        self.structure = outputs
        summaries = self.batches[-1]
        if not summaries:
            summaries += [
                Summary(meaning, self.is_keeping)
                for meaning in self.meanings or ()
            ]
        leaves = keras.tree.flatten(outputs)
        for summary, leaf, labels in zip(
            summaries, leaves, self.labels, strict=True
        ):
            array = np.asarray(leaf)
            if array.shape[:1] < (self.size,):
                raise ValueError(
                    "Argument `model` must return one row for each of "
                    f"{self.size} examples. Received: shape {array.shape}."
                )
            summary.add(array[: self.size])
            if summary.num_samples == 1 and labels is not None:
                rows = slice(self.examples - self.size, self.examples)
                summary.check_labels(labels[rows])

    def result(self) -> Predictions:
        """Return a `MonteCarloPrediction` per output, in their structure."""
        if not self.examples:
            raise ValueError(
                "Argument `x` must have at least one example. Received none."
            )
        self._check_labels(self.examples)
        parts = zip(*self.batches, strict=True)
        predictions = list(map(_joined, parts, self.labels))
        return keras.tree.pack_sequence_as(self.structure, predictions)


def _joined(
    summaries: tuple[Summary, ...], labels: Any
) -> MonteCarloPrediction:
    """Join all batches of one output."""

    def joined(name: str, dtype: str = "float32") -> np.ndarray:
        parts = [getattr(summary, name) for summary in summaries]
        return np.concatenate(parts).astype(dtype)

    first, mean = summaries[0], joined("mean")
    is_noisy = first.meaning.noise is not None
    entropies = {
        name: None if first.is_regression else joined(name)
        for name in ("predictive_entropy", "mutual_information")
    }
    return MonteCarloPrediction(
        mean=mean,
        standard_deviation=joined("standard_deviation"),
        **entropies,
        calibration=(
            None if labels is None else first.calibration(mean, labels)
        ),
        num_samples=first.num_samples,
        task=first.meaning.task,
        samples=_joined_draws([summary.samples for summary in summaries]),
        aleatoric_variance=joined("aleatoric_variance") if is_noisy else None,
        noise=_joined_noise(summaries),
        _head=first.head,
        _outputs=_joined_draws([summary.outputs for summary in summaries]),
        _class_mean=None if first.is_regression else joined("mean", "float64"),
    )


def _joined_noise(summaries: tuple[Summary, ...]) -> np.ndarray | None:
    noise = summaries[0].meaning.noise
    if noise == HETEROSCEDASTIC:
        return _joined_draws([summary.stddevs for summary in summaries])
    if noise is None or callable(noise):
        return None
    return np.asarray(noise, "float64")


def _joined_draws(batches: list[list[np.ndarray]]) -> np.ndarray | None:
    """Join the kept draws of all batches; None if none were kept."""
    draws = list(zip(*batches, strict=True))
    if not draws:
        return None
    examples = sum(map(len, draws[0]))
    first = draws[0][0]
    joined = np.empty((len(draws), examples, *first.shape[1:]), first.dtype)
    for parts, rows in zip(draws, joined, strict=True):
        np.concatenate(parts, out=rows)
    return joined


def _batches(x: Any, batch_size: int | None, steps: int | None) -> Batches:
    if batch_size is not None:
        batch_size = check_integer("batch_size", batch_size, 1)
    if steps is not None:
        steps = check_integer("steps", steps, 1)
    batches = input_batches(x, batch_size, steps)
    if batches is None:
        raise TypeError(
            "Argument `x` must be what `predict` takes: an array, or a list, "
            "tuple or dict of arrays, with the examples along the first axis; "
            "a data frame; a data set; a generator. Received: "
            f"{x!r} (of type {type(x).__name__})."
        )
    if batch_size is not None and not batches.is_array:
        raise ValueError(
            "Argument `batch_size` is for arrays, and `x` comes in batches of "
            f"its own. Received: batch_size={batch_size} with `x` of type "
            f"{type(x).__name__}."
        )
    if batches.is_endless and steps is None:
        raise ValueError(
            "Argument `steps` must be given, as `x` has no end. Received: "
            f"steps=None with `x` of type {type(x).__name__}."
        )
    return batches


def refuse_states(model: keras.Model) -> None:
    """Raise a ValueError if a layer goes on where the last batch ended."""
    for layer in flatten_layers(model):
        if isinstance(layer, keras.layers.RNN) and layer.stateful:
            raise ValueError(
                "Argument `model` must not carry states from one batch to the "
                f"next, which would pass from draw to draw. Layer "
                f"'{layer.name}' has `stateful=True`."
            )


def _on_host(value: Any) -> Any:
    return ops.convert_to_numpy(value) if ops.is_tensor(value) else value


def to_tensor(value: Any) -> Any:
    """Return an input of a batch as a tensor; None stays."""
    return None if value is None else ops.convert_to_tensor(value)


def _count_examples(batch: Any) -> int:
    leaves = [x for x in keras.tree.flatten(batch) if x is not None]
    sizes = {len(leaf) if leaf.ndim else None for leaf in leaves}
    if len(sizes) != 1 or sizes & {0, None}:
        raise ValueError(
            "Argument `x` must have at least one example, and as many in each "
            "of its arrays. Received arrays of shapes "
            f"{[leaf.shape for leaf in leaves]}."
        )
    return len(leaves[0])
