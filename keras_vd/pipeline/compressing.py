"""Make a small plain model of a compiled plain one, in one call."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import rich
import rich.progress

from keras_vd._backend.seeds import seeded
from keras_vd._backend.validation import (
    check_built,
    check_integer,
    check_plain_model,
)
from keras_vd.conversion.cloning import copy_model
from keras_vd.conversion.deterministic import to_deterministic
from keras_vd.conversion.fine_tuning import (
    freeze_zeros,
    prunable_weights,
    without_frozen_zeros,
)
from keras_vd.conversion.functional import written_out
from keras_vd.conversion.in_place import keeps_class
from keras_vd.conversion.report import ConversionReport
from keras_vd.conversion.variational import to_variational
from keras_vd.deployment.comparison import keras_files
from keras_vd.deployment.interface import difference
from keras_vd.deployment.report import ArtifactRow
from keras_vd.pipeline.compiling import Recipe
from keras_vd.pipeline.data import Data, Shuffled
from keras_vd.pipeline.distilling import check_distiller, distiller
from keras_vd.pipeline.folder import (
    WorkFolder,
    fingerprint,
    fingerprint_of_model,
)
from keras_vd.pipeline.keeping import KeepBest, Ordered, Progress
from keras_vd.pipeline.report import CompressionReport, MetricRow, StageRow
from keras_vd.pipeline.wishes import Goal, find_goal, find_wish
from keras_vd.pruning import prune
from keras_vd.shrinking.shrink_model import shrink

# Steps that the trainings have together by default, and their fewest and most
# epochs. A log variance moves by the learning rate in each step of Adam, and
# has some ten to go.
STEPS, FEWEST, MOST = 8000, 20, 250
# Shares of the epochs that train the plain network, and that fine-tune.
_FIRST, _LAST = 0.15, 0.1
# Differences of predictions that shrinking may make, relative to the largest.
_ROUNDING = 1e-4


def compress(
    model: keras.Model,
    x: Any,
    y: Any = None,
    validation_data: Any = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    *,
    nonzero_ratio: float | None = None,
    parameters: float | None = None,
    macs: float | None = None,
    n_active: float | None = None,
    budget: float | None = None,
    monitor: str | None = None,
    validation_split: float = 0.2,
    num_examples: int | None = None,
    learning_rate: float | None = None,
    posterior: Any = "sparse_vd",
    include: Any = None,
    exclude: Any = None,
    groups: Any = (),
    gates: Any = "auto",
    distill: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] | None = None,
    work_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    verbose: int = 1,
) -> tuple[keras.Model, CompressionReport]:
    """Make a small plain model of a compiled plain one, in one call.

    Stages: the model is trained on as it is, which also trains one that has
    not been trained yet; becomes variational (`to_variational`); is trained to
    one wish (`KLTarget`); is pruned; is fine-tuned with its zeros frozen
    (`freeze_zeros`), at a learning rate that falls to 0; is shrunk (`shrink`),
    and it is checked that this has changed no prediction. Where there is
    validation data, the first and the last training end with their best epoch.

    All is done with copies: `model`, its optimizer and its metrics stay as they
    are. Optimizer, loss and metrics are those that it is compiled with; an
    optimizer starts anew in each training, and in place of a schedule of its
    learning rate it has the largest rate of that.

    Args:
        model: A built and compiled model of plain Keras layers.
        x: What to train on, as `fit` takes it: arrays or structures of them, or
            a data set that has an end and can be read several times.
        y: Labels, if `x` is arrays.
        validation_data: As `fit` takes it. By default a share of arrays is
            held out, chosen at random by `seed`. If `model` was trained on
            them, its metric says too much: then pass others.
        epochs: Int >= 4: of all trainings together, of which the first has 15%
            and the last 10%. By default as many as have 8,000 steps in
            all, but 20 at least and 250 at most: the fewer examples, the more
            epochs.
        batch_size: Of arrays; 32 by default.
        nonzero_ratio: The wish, one of five: see `KLTarget`.
        parameters: Likewise; an int or a share of those of `model`.
        macs: Likewise.
        n_active: Likewise.
        budget: Likewise: how much worse than that of the plain network the
            metric may be. This is the wish if none is given: 0.01, or 5% of
            the value of a metric that shall be small.
        monitor: Name of that metric, by which best epochs are found, too. By
            default the first one, by name, of the compiled metrics of which
            Keras knows whether they shall be large or small, else the loss.
        validation_split: Float in [0, 1): share of arrays that is held out if
            there is no `validation_data`.
        num_examples: Number of examples of a data set. By default they are
            counted, in one pass over it.
        learning_rate: Float > 0: in place of that of the optimizer.
        posterior: As of `to_variational`, and so are the next four.
        include: Which layers become variational.
        exclude: Which do not.
        groups: Names of groups of weights.
        gates: `"auto"`: log-normal ones for `parameters` and `macs`, if there
            are channels that can have them, otherwise none.
        distill: Whether the fine-tuning learns from the outputs of the plain
            network as well, by `keras.distillation.Distiller`.
        callbacks: Callbacks of your own, for each of the three trainings.
        work_dir: Folder that keeps what is done, for this call alone. If the
            same call was interrupted, it goes on with the epoch in which it
            was. Callbacks of your own start over.
        seed: Int >= 0: of the noise, the order of arrays and what is held out.
        verbose: 0: silent. 1: a line for each stage, and the report. 2: also
            one for each epoch.

    Returns:
        The small model, compiled like `model` and without any class of
        `keras_vd`, and a `CompressionReport`: `str()` makes a table,
        `.to_json()` and `.to_html()` what the names say.

    Raises:
        TypeError: if an argument is of the wrong type.
        ImportError: if `distill` is asked for and this Keras has no Distiller.
        FileExistsError: if `work_dir` is the folder of another call.
        ValueError: before any training, if the model is not built or compiled
            or trains in a way of its own; if there are several wishes, or the
            model cannot have what is wished for; if an argument is out of
            range or does not go with the data; if there is a budget and no
            validation data; if nothing of the model can become variational.
        RuntimeError: if the small model predicts otherwise than the pruned one.

    Example:
    >>> model = keras.Sequential([
    ...     keras.Input((20,)),
    ...     keras.layers.Dense(30, "relu"),
    ...     keras.layers.Dense(2),
    ... ])
    >>> model.compile("adam", "mse")
    >>> x, y = np.random.rand(64, 20), np.random.rand(64, 2)
    >>> small, report = keras_vd.compress(
    ...     model, x, y, nonzero_ratio=4.0
    ... )  # doctest: +SKIP
    >>> print(report)  # doctest: +SKIP
    """
    wish = find_wish(nonzero_ratio, parameters, macs, n_active, budget)
    check_plain_model(model)
    check_built(model)
    recipe = Recipe(model, learning_rate)
    seed = check_integer("seed", seed, 0)
    data = Data(
        *(x, y, validation_data, validation_split, batch_size),
        *(num_examples, seed),
    )
    _check_measurable(data, wish)
    return _Compression(
        model=model,
        recipe=recipe,
        data=data,
        wish=wish,
        monitor=monitor,
        epochs=_split(_epochs(epochs, data.steps)),
        options={
            "posterior": posterior,
            "include": include,
            "exclude": exclude,
            "groups": groups,
        },
        gates=gates,
        distill=distill,
        callbacks=list(callbacks or ()),
        seed=seed,
        verbose=verbose,
        folder=partial(WorkFolder, work_dir),
    ).run()


def _check_measurable(data: Data, wish: tuple[str, float | None]) -> None:
    """Raise a ValueError for a budget without data to measure on."""
    if wish[0] == "budget" and data.validation is None:
        raise ValueError(
            "Argument `validation_data` must be given with a `budget`, which "
            "is the wish if there is no other one: the metric is one of "
            "examples that are not trained on, of which arrays have some with "
            f"`validation_split` above 0. Received: budget={wish[1]}, "
            "validation_data=None."
        )


def _epochs(epochs: int | None, steps: int) -> int:
    """Return the number of epochs, by default for steps of an epoch."""
    if epochs is not None:
        return check_integer("epochs", epochs, 4)
    return min(MOST, max(FEWEST, math.ceil(STEPS / steps)))


def _split(epochs: int) -> tuple[int, int, int]:
    """Divide epochs among the three trainings."""
    first, last = (max(1, round(x * epochs)) for x in (_FIRST, _LAST))
    return first, epochs - first - last, last


@dataclasses.dataclass
class _Compression:
    """The way of one model; see `compress`."""

    model: keras.Model
    recipe: Recipe
    data: Data
    wish: tuple[str, float | None]
    monitor: str | None
    epochs: tuple[int, int, int]
    options: dict[str, Any]
    gates: Any
    distill: bool
    callbacks: list[keras.callbacks.Callback]
    seed: int
    verbose: int
    folder: Any

    def run(self) -> tuple[keras.Model, CompressionReport]:
        self._stages: list[StageRow] = []
        plain, given = self._begin()
        with self._stage("train the plain network", self.epochs[0]):
            self._train_plain(plain, given)
        trained = self._evaluate(plain)
        with self._stage(f"train to {self._wished()}", self.epochs[1]):
            variational, pruned = self._train_to_wish(plain, trained)
        with self._stage("fine-tune what is left", self.epochs[2]):
            sparse = self._fine_tune(variational, plain)
        with self._stage("shrink and measure", 0):
            with without_frozen_zeros(sparse):
                small, shrunk = shrink(sparse, return_report=True, verbose=0)
            moved = self._check(small, sparse)
            self.recipe.compile(small)
            after = self._evaluate(small)
            files = self._files(small)
        wish, reached, is_met = self._goal.outcome(
            trained[self._goal.monitor],
            after[self._goal.monitor],
            pruned,
            shrunk,
        )
        kernels = prunable_weights(self.model)
        report = CompressionReport(
            wish=wish,
            reached=reached,
            is_met=is_met,
            metrics=tuple(
                MetricRow(name, given[name], trained[name], after[name])
                for name in given
            ),
            measured_on=self.data.measured_on,
            weights=sum(math.prod(x.shape) for x in kernels),
            nonzero=min(map(_count_nonzero, (sparse, small))),
            parameters=self.model.count_params(),
            kept_parameters=small.count_params(),
            macs=shrunk.macs,
            kept_macs=shrunk.kept_macs,
            files=files,
            difference=moved,
            stages=tuple(self._stages),
            conversion=self._conversion,
            sparsity=pruned,
            shrinking=shrunk,
        )
        if self.verbose:
            print(str(report))
        return small, report

    def _begin(self) -> tuple[keras.Model, dict[str, float]]:
        """Check what can be checked before training.

        Returns:
            A copy of the model, compiled, and its metrics.
        """
        if self.distill:
            check_distiller(self.model)
        with seeded(self.seed):
            plain = _copied(self.model)
        self._conversion: ConversionReport
        variational = self._converted(plain)
        sparse = to_deterministic(variational)
        for model in (plain, variational, sparse):
            self.recipe.check(model)
        # What cannot be shrunk is told here, and not after hours.
        shrink(sparse, verbose=0)
        self.recipe.compile(plain)
        given = self._evaluate(plain)
        self._goal: Goal = find_goal(plain, given, self.monitor, self.wish)
        self._goal.check(variational)
        self._folder: WorkFolder = self.folder(self._call())
        return plain, given

    def _call(self) -> dict[str, Any]:
        """Return what tells this call from others, as plain values."""
        return {
            "model": fingerprint_of_model(self.model, self.recipe.describe),
            "data": fingerprint(self.data.describe()),
            "wish": [*self.wish, self._goal.monitor],
            "epochs": list(self.epochs),
            "options": {
                name: _described(value)
                for name, value in {**self.options, "gates": self.gates}.items()
            },
            "distill": self.distill,
            "seed": self.seed,
            "backend": keras.backend.backend(),
        }

    def _wished(self) -> str:
        name, value = self.wish
        if value is None:
            return f"the default budget of {self._goal.monitor}"
        return f"{name}={value:g}"

    def _converted(self, plain: keras.Model) -> keras.Model:
        """Return the variational form of a plain model, not compiled."""
        convert = partial(
            to_variational,
            plain,
            **self.options,
            return_report=True,
            verbose=0,
        )
        gates = self.gates
        with seeded(self.seed + 1):
            if gates == "auto":
                gates = "log_normal" if self._is_structural else None
                if gates is not None:
                    try:
                        result, self._conversion = convert(gates=gates)
                        return result
                    # No channels can have one, or nothing can be converted,
                    # which shows again.
                    except ValueError:
                        gates = None
            result, self._conversion = convert(gates=gates)
            return result

    @property
    def _is_structural(self) -> bool:
        return self.wish[0] in ("parameters", "macs")

    def _train_plain(
        self, plain: keras.Model, given: Mapping[str, float]
    ) -> None:
        if self._folder.load("trained", plain):
            return
        self._fit("trained", plain, self._best(given), self.epochs[0])
        self._folder.save("trained", plain)

    def _train_to_wish(
        self, plain: keras.Model, trained: Mapping[str, float]
    ) -> tuple[keras.Model, Any]:
        variational = self._converted(plain)
        self.recipe.compile(variational)
        if self._folder.load("pruned", variational):
            return variational, prune(variational)
        target = self._goal.callback(
            self.data.num_examples,
            trained[self._goal.monitor],
            int(self.verbose > 1),
        )
        self._fit("pruned", variational, {"target": target}, self.epochs[1])
        pruned = prune(variational)
        self._folder.save("pruned", variational)
        return variational, pruned

    def _fine_tune(
        self, variational: keras.Model, plain: keras.Model
    ) -> keras.Model:
        with seeded(self.seed + 2):
            sparse = to_deterministic(variational)
        self.recipe.compile(sparse)
        before = self._evaluate(sparse)
        with warnings.catch_warnings():
            # That zeros of some layers are not saved does not matter here.
            warnings.filterwarnings("ignore", "The zeros of")
            freeze_zeros(sparse)
        if self._folder.load("tuned", sparse):
            return sparse
        epochs = self.epochs[2]
        fitted = sparse
        if self.distill:
            fitted = distiller(plain, sparse, self.recipe)
        rate = self.recipe.learning_rate
        # Distillation changes what the loss is.
        is_other = self.distill and self._goal.monitor == "loss"
        added: dict[str, Any] = {} if is_other else self._best(before)
        if rate is not None:
            added["rate"] = keras.callbacks.LearningRateScheduler(
                lambda epoch: (
                    0.5 * rate * (1 + math.cos(math.pi * epoch / epochs))
                )
            )
        self._fit("tuned", fitted, added, epochs)
        self._folder.save("tuned", sparse)
        return sparse

    def _best(self, before: Mapping[str, float]) -> dict[str, Any]:
        """Return the callback that keeps the best epoch, if that is known."""
        goal = self._goal
        if self.data.validation is None:
            return {}
        value = before[goal.monitor]
        return {"best": KeepBest(goal.logged, goal.is_larger_better, value)}

    def _fit(
        self,
        stage: str,
        model: keras.Model,
        added: Mapping[str, Any],
        epochs: int,
    ) -> None:
        """Train a model, from the epoch in which it was interrupted.

        Args:
            stage: Name of the stage in the folder.
            model: A compiled model.
            added: Callbacks before those of the user, by names.
            epochs: Number of epochs.
        """
        keepers = {k: x for k, x in added.items() if hasattr(x, "memory")}
        console = rich.get_console()
        # Elsewhere a bar would leave nothing but empty lines.
        is_shown = console.is_terminal or console.is_jupyter
        bar = rich.progress.Progress(
            transient=True, disable=self.verbose != 1 or not is_shown
        )
        with bar, seeded(self.seed):
            model.fit(
                self.data.batches,
                validation_data=self.data.validation_data,
                epochs=epochs,
                # Keras would shuffle these once more, in an order of its own.
                shuffle=not isinstance(self.data.batches, Shuffled),
                verbose=2 if self.verbose > 1 else 0,
                callbacks=[
                    Ordered(self.data.batches, self.seed),
                    *added.values(),
                    *self.callbacks,
                    Progress(bar),
                    *self._folder.backup(stage, keepers),
                ],
            )

    def _evaluate(self, model: keras.Model) -> dict[str, float]:
        found = model.evaluate(
            *self.data.for_metrics, verbose=0, return_dict=True
        )
        return {name: float(value) for name, value in found.items()}

    def _check(self, small: keras.Model, sparse: keras.Model) -> float:
        """Compare predictions of the small model and of the pruned one."""
        x = self.data.some_inputs()
        found, expected = (
            keras.tree.flatten(model.predict_on_batch(x))
            for model in (small, sparse)
        )
        moved = difference(found, expected)
        if not moved <= _ROUNDING:
            raise RuntimeError(
                "The small model was checked and predicts otherwise than the "
                f"pruned one: predictions differ by {moved:.1e} of the "
                f"largest, and {_ROUNDING:g} is allowed."
            )
        return moved

    def _files(self, small: keras.Model) -> tuple[ArtifactRow, ...]:
        try:
            return tuple(
                keras_files(small, self.model, self.data.some_inputs())
            )
        # A model that has no file can still be used in this process.
        except ValueError as error:
            reason = str(error)
            return tuple(
                ArtifactRow(name, "Keras", error=reason)
                for name in ("dense", "compressed")
            )

    @contextlib.contextmanager
    def _stage(self, name: str, epochs: int) -> Iterator[None]:
        number = len(self._stages) + 1
        if self.verbose:
            trained = f", {epochs} epochs" if epochs else ""
            print(f"{number}/4: {name}{trained}", flush=True)
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self._stages.append(StageRow(name, epochs, seconds))


def _copied(model: keras.Model) -> keras.Model:
    """Return a copy as `to_variational` would read the model."""
    if keeps_class(model):
        return copy_model(model, keeps_class)
    with written_out(model) as written:
        return copy_model(written.model)


def _count_nonzero(model: keras.Model) -> int:
    return sum(
        int(np.count_nonzero(keras.ops.convert_to_numpy(weight)))
        for weight in prunable_weights(model)
    )


def _described(value: Any) -> Any:
    """Return an option as text that is the same in another process."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return [_described(x) for x in value]
    if hasattr(value, "get_config"):
        return [type(value).__name__, str(value.get_config())]
    return getattr(value, "__qualname__", type(value).__name__)
