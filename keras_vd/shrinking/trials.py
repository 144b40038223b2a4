"""Try a layer with other numbers in its config and with other weights."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import replaced_methods
from keras_vd.conversion.cloning import Cloner
from keras_vd.rules.graph import GraphTensor

# Sizes of open axes with which a layer is tried, in this order.
_SIZES = (7, 16, 3, 64, 1)
# Differences of this share of the largest output are rounding, be it that of
# GPUs, ...
ROUNDING = 1e-4
# ... but these where only terms change that are multiplied by zero.
NOTHING = 1e-7

Config = dict[str, Any]
Arrays = list[np.ndarray]
# Positional and keyword arguments of a call.
Arguments = tuple[Any, Any]


class StaysWholeError(Exception):
    """A layer cannot be rebuilt smaller; the message says why."""


class Trials:
    """A layer, with inputs that were drawn for it.

    Attributes:
        layer: The layer.
        generator: Draws the inputs, and what else is needed.
        config: Its config, but for a type in which differences show.
        values: The values of its weights.
        twin: Another layer of this config.
        expected: What it returns, flattened.
    """

    def __init__(self, layer: Any, kind: Any, calls: list[Arguments]) -> None:
        """Draw inputs, and rebuild the layer.

        Args:
            layer: A layer or model.
            kind: Its class, or one that it extends and that computes the same.
            calls: Arguments with which it is called, tensors of a graph in
                them.

        Raises:
            StaysWholeError: if it cannot be rebuilt, or be called on what was
                drawn.
        """
        self.layer = layer
        self._kind = kind
        self.generator = np.random.default_rng(0)
        self.values = [np.array(ops.convert_to_numpy(x)) for x in layer.weights]
        is_half = layer.compute_dtype in ("float16", "bfloat16")
        try:
            self.config = dict(kind.get_config(layer))
            if is_half:
                self.config["dtype"] = "float32"
            self._calls, found = self._called(calls)
            self.twin = self.made(self.config)
            self.expected = self.outputs(self.twin, self.values)
        # A user's code may raise anything.
        except Exception as error:
            text, *_ = str(error).strip().splitlines() or [""]
            raise StaysWholeError(
                "it cannot be rebuilt from its config and called on random "
                f"inputs ({type(error).__name__}: {text})"
            ) from error
        if not _alike(found, self.expected, 0.05 if is_half else ROUNDING):
            raise StaysWholeError(
                "it computes something else when it is rebuilt from its config"
            )

    def _called(self, calls: list[Arguments]) -> tuple[list[Arguments], Arrays]:
        """Return arguments for all calls, and what the layer returns."""
        for size in _SIZES:
            drawn = [
                keras.tree.map_structure(
                    lambda x, size=size: self._drawn(x, size), call
                )
                for call in calls
            ]
            try:
                with keras.StatelessScope():
                    return drawn, _call(self.layer, drawn)
            except Exception:
                if size == _SIZES[-1]:
                    raise
        raise AssertionError

    def _drawn(self, value: Any, size: int) -> Any:
        """Draw an array in place of a tensor of a graph."""
        if not isinstance(value, (GraphTensor, keras.KerasTensor)):
            return value
        sizes = [
            n or (size if axis else 2) for axis, n in enumerate(value.shape)
        ]
        is_real = keras.backend.is_float_dtype(value.dtype)
        drawn = (
            self.generator.standard_normal(sizes)
            if is_real
            else self.generator.integers(0, 2, sizes)
        )
        return ops.convert_to_tensor(drawn, dtype=value.dtype)

    def made(self, config: Config) -> Any:
        """Return a layer with another config, which may not be built yet."""
        cloner = Cloner(self.layer)
        return cloner.make(self._kind, config, self.layer, self.layer.name)

    def works(self, layer: Any) -> bool:
        """Tell whether a layer takes the inputs; that builds it."""
        try:
            made = _call(layer, self._calls)
        except Exception:
            return False
        # JAX looks up NaN where there is no such row.
        return all(np.isfinite(x).all() for x in made)

    def outputs(self, layer: Any, values: Arrays) -> Arrays:
        """Return what a layer returns with other weights, flattened."""
        if not layer.built or not layer.weights:
            _call(layer, self._calls)
        layer.set_weights(values)
        return _call(layer, self._calls)

    def differs(
        self,
        layer: Any,
        values: Arrays,
        tolerance: float = ROUNDING,
        expected: Arrays | None = None,
    ) -> bool:
        """Tell whether a layer returns something else with other weights.

        Args:
            layer: The layer.
            values: The weights.
            tolerance: Share of the largest output.
            expected: What to compare with; `expected` of these trials if None.
        """
        try:
            found = self.outputs(layer, values)
        except Exception:
            return True
        return not _alike(found, expected or self.expected, tolerance)

    def read_by(
        self, part: Any, layer: Any, weights: Iterable[Arrays]
    ) -> np.ndarray:
        """Return what a part of a layer reads, `(positions, channels)`.

        Args:
            part: A layer with a single input.
            layer: The layer that it is in.
            weights: Values of all weights of the layer, with each of which it
                is called.
        """
        original, read = part.call, []

        @functools.wraps(original)
        def call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            found = ops.convert_to_numpy(ops.cast(inputs, "float32"))
            read.append(found.reshape(-1, found.shape[-1]))
            return original(inputs, *args, **kwargs)

        with replaced_methods([(part, "call", call)]):
            for values in weights:
                self.outputs(layer, values)
        return np.concatenate(read)


def _call(layer: Any, calls: list[Arguments]) -> Arrays:
    """Return all outputs of all calls, flattened."""
    made = [layer(*args, **kwargs) for args, kwargs in calls]
    return [
        ops.convert_to_numpy(ops.cast(x, "float32"))
        for x in keras.tree.flatten(made)
    ]


def _alike(found: Arrays, expected: Arrays, tolerance: float) -> bool:
    return all(
        one.shape == other.shape
        and np.abs(one - other).max(initial=0.0)
        <= tolerance * np.abs(other).max(initial=0.0)
        for one, other in zip(found, expected, strict=True)
    )
