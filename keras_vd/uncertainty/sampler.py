"""Draws of a model's predictions, by a function that is compiled once."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import time
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import (
    Batches,
    compilation,
    flatten_layers,
)
from keras_vd._backend.types import Tensor
from keras_vd.posteriors import Posterior
from keras_vd.posteriors.sampling import sampling_at_inference

# Seconds after which a progress bar appears by itself.
PROGRESS_AFTER = 10.0
# Attribute of a model that holds its sampler.
_ATTRIBUTE = "_keras_vd_sampler"


class Sampler(keras.Model):
    """A model whose predictions are draws, with a compiled function of its own.

    What the model itself has compiled for `predict` draws nothing, so it cannot
    be used.
    """

    def __init__(self, model: keras.Model) -> None:
        # The model itself casts its inputs.
        super().__init__(autocast=False, name="sampler")
        self.model = model
        self.run_eagerly = model.run_eagerly
        self.jit_compile = model.jit_compile
        self.generators = _SeedGenerators(_seed_states(model))
        self.seeds = self.add_weight(
            name="seeds",
            shape=(len(self.generators.states), 2),
            dtype="int32",
            initializer="zeros",
            trainable=False,
        )
        self.built = True

    def call(self, inputs: Tensor) -> Tensor:
        seeds = ops.convert_to_tensor(self.seeds)
        for i, state in enumerate(self.generators.states):
            state.assign(ops.cast(seeds[i], state.dtype))
        with sampling_at_inference():
            return self.model(inputs, training=False)

    @contextlib.contextmanager
    def seeded(self, seed: int | None) -> Iterator[_Seeds]:
        """Yield the seeds of draws, and restore those of the model afterwards.

        Args:
            seed: Int: seed of all draws. None: one from Python's `random`.
        """
        seed = random.randrange(2**31) if seed is None else seed
        # Copied, because a compiled step may free what it was given.
        states = self.generators.states
        kept = [np.array(ops.convert_to_numpy(x)) for x in states]
        try:
            yield _Seeds(seed, len(states))
        finally:
            for state, value in zip(states, kept, strict=True):
                state.assign(value)

    def draws(self, inputs: Any, seeds: Iterable[np.ndarray]) -> Iterator[Any]:
        """Yield one prediction for each draw, in the structure of the outputs.

        Args:
            inputs: One batch, as tensors or arrays.
            seeds: For each draw, those of all seed generators, of shape
                `(generators, 2)`.
        """
        for values in seeds:
            self.seeds.assign(values)
            yield self.predict_on_batch(inputs)


@dataclasses.dataclass(frozen=True, eq=False)
class _SeedGenerators:
    """The states of a model's seed generators.

    They belong to the model and not to the sampler, so they are in a dataclass:
    Keras does not track what that holds.
    """

    states: tuple[keras.Variable, ...]


@dataclasses.dataclass(frozen=True)
class _Seeds:
    """The seeds of each draw, the same for every batch.

    Attributes:
        seed: What the user chose.
        generators: Number of seed generators.
    """

    seed: int
    generators: int

    def of_draw(self, draw: int) -> np.ndarray:
        """Return the seeds of one draw: int32, shape `(generators, 2)`."""
        sequence = np.random.SeedSequence(self.seed, spawn_key=(draw,))
        state = sequence.generate_state(2 * self.generators)
        # Below 2^31, so that every backend's type of seed holds them.
        return (state >> 1).astype("int32").reshape(-1, 2)


def _seed_states(model: keras.Model) -> tuple[keras.Variable, ...]:
    """List the states of all seed generators, also those of other layers.

    Keras' recurrent layers, for example, advance theirs at inference.
    """
    weights = {id(variable) for variable in model.weights}
    return tuple(x for x in model.variables if id(x) not in weights)


@dataclasses.dataclass(frozen=True, eq=False)
class _Compiled:
    """A sampler, and what its compiled function depends on.

    This is a plain object, because a model saves no attribute that is neither a
    layer nor a variable nor a container of these.

    Attributes:
        sampler: The sampler of one model.
        parts: Layers and variables of that model, and its compilation.
        options: Python values that its layers read when they are traced.
    """

    sampler: Sampler
    parts: list[Any]
    options: list[Any]

    def fits(self, model: keras.Model) -> bool:
        parts, options = _dependencies(model)
        return (
            len(parts) == len(self.parts)
            and all(map(_is, parts, self.parts))
            and options == self.options
        )


def _is(one: Any, other: Any) -> bool:
    return one is other


def sampler_of(model: keras.Model) -> Sampler:
    """Return the sampler of a model, compiled for the model as it is now.

    The model itself keeps the sampler, which is freed together with it.
    """
    kept = vars(model).get(_ATTRIBUTE)
    if kept is None or not kept.fits(model):
        kept = _Compiled(Sampler(model), *_dependencies(model))
        setattr(model, _ATTRIBUTE, kept)
    return kept.sampler


def _dependencies(model: keras.Model) -> tuple[list[Any], list[Any]]:
    layers, variables = flatten_layers(model), model.variables
    options = [
        model.run_eagerly,
        model.jit_compile,
        [x.trainable for x in (*layers, *variables)],
        [x.get_config() for x in layers if isinstance(x, Posterior)],
    ]
    return [*layers, *variables, compilation(model)], options


class Padding:
    """Filler of batches that are smaller than one before, by repeated rows.

    Such a batch, usually the last, would need a compilation of its own.
    """

    def __init__(self, model: keras.Model) -> None:
        is_compiled = keras.backend.backend() != "torch"
        self.is_useful = is_compiled and not model.run_eagerly
        self.size = 0
        self.rest: Any = None

    def fill(self, batch: Any) -> Any:
        """Return the batch itself, or one of more rows that begins with it."""
        leaves = [x for x in keras.tree.flatten(batch) if x is not None]
        size = len(leaves[0])
        rest = [(leaf.shape[1:], leaf.dtype) for leaf in leaves]
        if not self.is_useful or size >= self.size or rest != self.rest:
            self.size, self.rest = size, rest
            return batch
        rows = np.arange(self.size) % size
        return keras.tree.map_structure(
            lambda leaf: None if leaf is None else leaf[rows], batch
        )


class Progress:
    """A progress bar that appears only when something takes long.

    Args:
        verbose: As the user passed it: "auto", 0 or 1.
        batches: The batches to come.
        num_samples: Number of draws for each of them.

    Raises:
        ValueError: if `verbose` is something else.
    """

    def __init__(self, verbose: Any, batches: Batches, num_samples: int):
        if verbose not in ("auto", 0, 1):
            raise ValueError(
                "Argument `verbose` must be 'auto', 0 or 1. Received: "
                f"verbose={verbose!r}."
            )
        total = batches.num_batches
        total = None if total is None else total * num_samples
        self.bar = keras.utils.Progbar(total, unit_name="draw")
        waiting = {"auto": PROGRESS_AFTER, 0: float("inf"), 1: 0.0}[verbose]
        self.begins = time.monotonic() + waiting
        self.done = 0
        self.is_shown = False

    def step(self) -> None:
        self.done += 1
        if time.monotonic() >= self.begins:
            self.is_shown = True
            self.bar.update(self.done)

    def close(self) -> None:
        if self.is_shown and self.bar.target is None:
            self.bar.update(self.done, finalize=True)
