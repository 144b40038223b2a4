"""Does training stay finite, whatever the posterior, type and step size?

    python -m tools.training_stability --strength 3

Small models of every kind of layer are fitted for 200 steps. A case fails if a
variable is not finite afterwards and no error named its layer. Where a model of
plain Keras layers of the same shape is not finite either, the step size is at
fault: such cases are counted apart. All cases would be thousands: the design
covers every choice of `strength` factors at once.
"""

from __future__ import annotations

import argparse
import collections
import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import keras
import numpy as np

from keras_vd import callbacks, layers, posteriors
from tools.checking import Case, finish, run_cases

STEPS_PER_EPOCH = 20
EPOCHS = 10
BATCH = 8
EXAMPLES = STEPS_PER_EPOCH * BATCH
CLASSES = 3

FACTORS: dict[str, tuple[Any, ...]] = {
    "layer": (
        "dense",
        "conv",
        "depthwise",
        "separable",
        "transpose",
        "rnn",
        "lstm",
        "gru",
        "embedding",
        "attention",
        "log_normal",
        "beta_bernoulli",
        "dependent",
    ),
    "posterior": ("sparse_vd", "ard", "gaussian", "vd", "vd_unbounded"),
    "share": ("weight", "unit", "layer"),
    "policy": (
        "float32",
        "mixed_bfloat16",
        "mixed_float16",
        "bfloat16",
        "float64",
    ),
    "optimizer": ("Adam", "SGD"),
    "rate": (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
}
POSTERIORS: dict[str, type[posteriors.WeightPosterior]] = {
    "sparse_vd": posteriors.SparseVD,
    "ard": posteriors.ARD,
    "gaussian": posteriors.Gaussian,
    "vd": posteriors.VD,
    "vd_unbounded": posteriors.VD,
}
GATES: dict[str, type[keras.layers.Layer]] = {
    "log_normal": layers.LogNormalDropout,
    "beta_bernoulli": layers.BetaBernoulliDropout,
    "dependent": layers.DependentBetaBernoulliDropout,
}
# Shape of an example, name of the Keras layer, and its arguments.
SHAPES: dict[str, tuple[tuple[int, ...], str, dict[str, Any]]] = {
    "dense": ((6,), "Dense", {"units": 8, "activation": "relu"}),
    "conv": ((6, 6, 2), "Conv2D", {"filters": 4, "kernel_size": 3}),
    "depthwise": ((6, 6, 2), "DepthwiseConv2D", {"kernel_size": 3}),
    "separable": (
        (6, 6, 2),
        "SeparableConv2D",
        {"filters": 4, "kernel_size": 3},
    ),
    "transpose": (
        (4, 4, 2),
        "Conv2DTranspose",
        {"filters": 3, "kernel_size": 2},
    ),
    "rnn": ((5, 4), "SimpleRNN", {"units": 6}),
    "lstm": ((5, 4), "LSTM", {"units": 6}),
    "gru": ((5, 4), "GRU", {"units": 6}),
    "embedding": ((5,), "Embedding", {"input_dim": 20, "output_dim": 4}),
    "attention": ((5, 8), "MultiHeadAttention", {"num_heads": 2, "key_dim": 4}),
}

Row = dict[str, Any]


def design(strength: int, seed: int) -> list[Row]:
    """Rows that hold every combination of the levels of `strength` factors.

    Greedy: each row is the best of some that are drawn at random around a
    combination that is still missing.
    """
    generator = np.random.default_rng(seed)
    names = list(FACTORS)
    missing = {
        tuple(zip(chosen, levels, strict=True))
        for chosen in itertools.combinations(names, strength)
        for levels in itertools.product(*(FACTORS[name] for name in chosen))
    }
    rows = []
    while missing:
        needed = dict(min(missing, key=str))
        candidates = [
            {
                name: needed.get(name, levels[generator.integers(len(levels))])
                for name, levels in FACTORS.items()
            }
            for _ in range(30)
        ]
        covered = [
            missing.intersection(itertools.combinations(row.items(), strength))
            for row in candidates
        ]
        best = max(range(len(candidates)), key=lambda i: len(covered[i]))
        rows.append(candidates[best])
        missing -= covered[best]
    return rows


def make_model(row: Row, is_plain: bool = False) -> keras.Model:
    """A model of one layer of the kind to try, and a dense one."""
    options: dict[str, Any] = {}
    if not is_plain:
        bound = (
            {"max_alpha": None} if row["posterior"] == "vd_unbounded" else {}
        )
        posterior = POSTERIORS[row["posterior"]]
        options["posterior"] = posterior(share=row["share"], **bound)
    prefix = "" if is_plain else "VD"
    source = keras.layers if is_plain else layers
    shape, name, arguments = SHAPES.get(row["layer"], SHAPES["dense"])
    is_ids = row["layer"] == "embedding"
    inputs = keras.Input(shape, dtype="int32" if is_ids else None)
    tried = getattr(source, prefix + name)(**arguments, **options, name="tried")
    twice = row["layer"] == "attention"
    hidden = tried(inputs, inputs) if twice else tried(inputs)
    if row["layer"] in GATES and not is_plain:
        hidden = GATES[row["layer"]](name="gate")(hidden)
    if len(hidden.shape) > 2:
        hidden = keras.layers.Flatten()(hidden)
    dense = getattr(source, prefix + "Dense")
    outputs = dense(CLASSES, **options, name="last")(hidden)
    return keras.Model(inputs, outputs)


def make_data(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """Random inputs, and labels that depend on them."""
    generator = np.random.default_rng(1)
    shape, _, arguments = SHAPES.get(row["layer"], SHAPES["dense"])
    if row["layer"] == "embedding":
        x = generator.integers(0, arguments["input_dim"], (EXAMPLES, *shape))
        return x.astype("int32"), x[:, 0] % CLASSES
    x = generator.normal(size=(EXAMPLES, *shape))
    scores = x.reshape(EXAMPLES, -1) @ generator.normal(
        size=(int(np.prod(shape)), CLASSES)
    )
    return x.astype("float32"), scores.argmax(axis=1)


def fit(row: Row, is_plain: bool, *others: Any) -> keras.Model:
    """Fit the model of a row for 200 steps."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(row["policy"])
    try:
        keras.utils.set_random_seed(0)
        model = make_model(row, is_plain)
        optimizer = getattr(keras.optimizers, row["optimizer"])(row["rate"])
        model.compile(
            optimizer,
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        annealing = callbacks.KLAnnealing(EXAMPLES, 1, 2, verbose=0)
        model.fit(
            *make_data(row),
            batch_size=BATCH,
            epochs=EPOCHS,
            verbose=0,
            callbacks=[*([] if is_plain else [annealing]), *others],
        )
    finally:
        keras.config.set_dtype_policy(before)
    return model


def extremes(model: keras.Model) -> dict[str, tuple[float, float]]:
    """Least and largest value of each float variable, NaN if there is one."""
    found = {}
    for variable in model.variables:
        if keras.backend.is_float_dtype(variable.dtype):
            value = keras.ops.convert_to_numpy(variable).astype("float64")
            found[variable.path] = (float(value.min()), float(value.max()))
    return found


def non_finite(found: dict[str, tuple[float, float]]) -> list[str]:
    """Paths of variables that are not finite."""
    return [path for path, ends in found.items() if not np.isfinite(ends).all()]


class FirstFault(keras.callbacks.Callback):
    """Notes what was not finite first, and the values a step before."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.before: dict[str, tuple[float, float]] = {}
        self.told = ""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.told:
            return
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        found = extremes(self.model)
        if bad := non_finite(found):
            values = {
                path: tuple(float(f"{end:.4g}") for end in ends)
                for path, ends in self.before.items()
                if "seed" not in path and "keep_mask" not in path
            }
            self.told = (
                f"first not finite at step {self.steps}: {bad}; least and "
                f"largest values the step before: {values}"
            )
        self.steps += 1
        self.before = found


class Check:
    """The cases, and a count of how they end."""

    def __init__(self) -> None:
        self.outcomes: collections.Counter[str] = collections.Counter()
        self._plain: dict[tuple[Any, ...], str] = {}

    def __call__(self, row: Row) -> None:
        try:
            model = fit(row, False)
        except Exception as error:
            if any(x in str(error) for x in ("tried", "gate", "last")):
                self.outcomes["an error that names the layer"] += 1
                print(f"NAMED {row}: {error}", flush=True)
                return
            if self._plain_outcome(row) != type(error).__name__:
                raise
            self.outcomes["plain Keras raises the same"] += 1
            print(f"NOTED {row}: plain Keras raises it too: {error}")
            return
        if not non_finite(extremes(model)):
            self.outcomes["finite"] += 1
        elif self._plain_outcome(row) == "not finite":
            self.outcomes["plain Keras is not finite either"] += 1
            print(f"NOTED {row}: plain Keras is not finite", flush=True)
        else:
            fault = FirstFault()
            fit(row, False, fault)
            self.outcomes["not finite, silently"] += 1
            raise AssertionError(fault.told)

    def _plain_outcome(self, row: Row) -> str:
        """How a fit of plain Keras layers of the same shape ends."""
        names = ("layer", "policy", "optimizer", "rate")
        key = tuple(row[name] for name in names)
        if key not in self._plain:
            try:
                found = extremes(fit(row, is_plain=True))
            except Exception as error:
                self._plain[key] = type(error).__name__
            else:
                bad = non_finite(found)
                self._plain[key] = "not finite" if bad else "finite"
        return self._plain[key]


def cases(check: Check, rows: list[Row], only: int | None) -> Iterator[Case]:
    """A case per row; its label names the levels."""
    for i, row in enumerate(rows):
        if only is None or i == only:
            levels = " ".join(f"{level}" for level in row.values())
            yield f"--only {i} ({levels})", partial(check, row)
            keras.backend.clear_session()


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, run the cases, print the row of the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--strength", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--minutes", type=float)
    options = parser.parse_args(arguments)
    rows = design(options.strength, options.seed)
    check = Check()
    tally = run_cases(
        f"training stays finite ({keras.backend.backend()})",
        cases(check, rows, options.only),
        options.minutes,
    )
    for outcome, number in check.outcomes.items():
        print(f"{number:6,} {outcome}")
    finish(tally)


if __name__ == "__main__":
    main()
