"""SavedModels that hold only what is not zero."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_vd.deployment.coding import CHECK_PRIME, Stream, encode
from keras_vd.deployment.drawing import flat_inputs
from keras_vd.deployment.interface import TOLERANCES
from keras_vd.deployment.readers import Arrays
from keras_vd.deployment.saved_models import (
    BACKENDS,
    TENSORFLOW,
    computation,
    flattened,
    lookup_tables,
    save_module,
    served,
    weight_values,
)
from keras_vd.deployment.stripping import strip_saved_model
from keras_vd.deployment.writer import Writer

DAMAGED = "The file is damaged: its sparse weights are not those written."


def export_packed(
    model: keras.Model,
    path: str | os.PathLike[str],
    weights: str = "float32",
    x: Any = None,
) -> None:
    """Write a plain model as a SavedModel that holds only what is not zero.

    TensorFlow alone reads it, by the same calls as any SavedModel. It unpacks
    the weights once, when the model is loaded, and then computes as fast as
    with dense weights. For inference only: the weights are no variables.

    Args:
        model: A built model of plain Keras layers; not changed. Subclassed
            models and layers made of layers are written out, see
            `keras_vd.to_functional`.
        path: Folder to write. An existing SavedModel or empty folder is
            replaced once the new one has been read back and its outputs are
            those of `model`.
        weights: "float32", or "int8" for sparse weights in 8 bits, in
            steps of 1/127 of the largest weight of each array. Outputs may
            then differ by 5% of the largest one before it is an error.
        x: Inputs for the check, as the model takes them; a few drawn at
            random by default.

    Raises:
        TypeError: if `model` is no Keras model.
        ValueError: if `model` is not built, has layers of `keras_vd`, stateful
            ones or weights that are not finite, if `weights` is neither, `x`
            has another shape, or `model` does not take the inputs drawn.
        ImportError: if TensorFlow is not installed.
        RuntimeError: if the backend is PyTorch, or if the outputs of what was
            written differ.
        OSError: if the folder cannot be written, or holds other things.

    Example:
        >>> import os, tempfile
        >>> from keras_vd import deployment
        >>> path = os.path.join(tempfile.mkdtemp(), "served")
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> deployment.export_packed(model, path)  # doctest: +SKIP
    """
    with WRITER.opened(model, path, weights) as opened:
        WRITER.write(opened, path, flat_inputs(opened, x), weights=weights)


def _make(
    model: keras.Model, arrays: Arrays, weights: str
) -> Callable[[Path], None]:
    module = _module(model, weights)
    module.flat = flattened(model, module.serve)

    def write(new: Path) -> None:
        save_module(module, new)
        strip_saved_model(new)

    return write


def _module(model: keras.Model, weights: str) -> Any:
    """Build the `tf.Module` to save."""
    import tensorflow as tf

    values = weight_values(model)
    stream = encode(values, weights)
    module = tf.Module()
    module.tables = lookup_tables(model)
    if stream:
        module.packed = _resource(stream)
    compute = computation(model)

    def call(inputs: Sequence[Any]) -> Any:
        unpacked: dict[int, Any] = {}
        if stream:
            unpacked = dict(
                zip(stream.positions, module.packed.read(), strict=True)
            )
        tensors = [
            unpacked[i] if i in unpacked else tf.constant(value)
            for i, value in enumerate(values)
        ]
        return compute(tensors, list(inputs))

    module.serve = served(model, call)
    return module


def _resource(stream: Stream) -> Any:
    """Return a resource that TensorFlow makes and fills on loading the file."""
    import tensorflow as tf

    raw = tf.raw_ops
    # Random, so that the resources of several models in a process differ.
    prefix = uuid.uuid4().hex[:16]

    class Packed(tf.saved_model.experimental.TrackableResource):
        """Dense arrays in variables that no checkpoint holds."""

        def _handle(self, i: int) -> Any:
            return raw.VarHandleOp(
                dtype=tf.float32,
                shape=stream.shapes[i],
                shared_name=f"{prefix}{i}",
            )

        def _create_resource(self) -> Any:
            return self._handle(0)

        def _initialize(self) -> None:
            for i, value in enumerate(unpack(stream)):
                raw.AssignVariableOp(resource=self._handle(i), value=value)

        def _destroy_resource(self) -> None:
            for i in range(len(stream.shapes)):
                raw.DestroyResourceOp(resource=self._handle(i))

        def read(self) -> list[Any]:
            """Return the dense arrays."""
            return [
                tf.ensure_shape(
                    raw.ReadVariableOp(
                        resource=self._handle(i), dtype=tf.float32
                    ),
                    shape,
                )
                for i, shape in enumerate(stream.shapes)
            ]

    return Packed()


def unpack(stream: Stream) -> list[Any]:
    """Compute the dense arrays of a stream, by few TensorFlow operations."""
    import tensorflow as tf

    raw = tf.raw_ops
    size = sum(stream.sizes)
    dtype = np.int32 if size < 2**31 else np.int64
    gaps = tf.cast(tf.constant(stream.gaps), dtype)
    is_entry = raw.NotEqual(x=gaps, y=tf.constant(stream.skip, dtype))
    steps = raw.AddV2(x=gaps, y=tf.cast(is_entry, dtype))
    # An entry after `n` values is at position `n`, one less than the sum.
    ends = raw.Cumsum(x=steps, axis=tf.constant(0))
    indices = raw.GatherNd(params=ends, indices=raw.Where(condition=is_entry))
    values = tf.constant(stream.values)
    positions = raw.Sub(x=indices, y=tf.constant(1, dtype))
    scales = tf.constant([] if stream.scales is None else stream.scales)
    _assert_undamaged(stream, positions, values, scales)
    flat = raw.ScatterNd(
        indices=raw.ExpandDims(
            input=positions,
            axis=tf.constant(1),
        ),
        updates=tf.cast(values, tf.float32),
        shape=tf.constant([size], dtype),
    )
    parts = raw.SplitV(
        value=flat,
        size_splits=tf.constant(stream.sizes, tf.int64),
        axis=tf.constant(0),
        num_split=len(stream.sizes),
    )
    if stream.scales is not None:
        parts = [
            raw.Mul(x=part, y=scale)
            for part, scale in zip(
                parts,
                raw.Unpack(value=scales, num=len(parts), axis=0),
                strict=True,
            )
        ]
    return [
        raw.Reshape(tensor=part, shape=tf.constant(shape, tf.int32))
        for part, shape in zip(parts, stream.shapes, strict=True)
    ]


def _assert_undamaged(
    stream: Stream, positions: Any, values: Any, scales: Any
) -> None:
    """Fail to load if the sparse weights are not those that were written.

    TensorFlow checks what is in checkpoints, but nothing in a graph.
    """
    import tensorflow as tf

    raw = tf.raw_ops
    found = _checksum(positions, values)
    if stream.scales is not None:
        arrays = tf.range(len(stream.scales))
        found = raw.AddV2(x=found, y=_checksum(arrays, scales))
    expected = tf.constant(stream.checksum(), tf.int64)
    raw.Assert(condition=raw.Equal(x=found, y=expected), data=[DAMAGED])


def _checksum(positions: Any, values: Any) -> Any:
    """Compute `coding.checksum` by operations of TensorFlow."""
    import tensorflow as tf

    raw = tf.raw_ops
    if values.dtype == tf.float32:
        values = raw.Bitcast(input=values, type=tf.int32)
    prime, one = tf.constant(CHECK_PRIME, tf.int64), tf.constant(1, tf.int64)
    factors, terms = (
        raw.FloorMod(x=tf.cast(x, tf.int64), y=prime)
        for x in (positions, values)
    )
    products = raw.Mul(x=raw.AddV2(x=factors, y=one), y=terms)
    return raw.Sum(input=products, axis=tf.constant(0))


WRITER = Writer(
    "export_packed",
    "TensorFlow",
    _make,
    backends=BACKENDS,
    packages=(TENSORFLOW,),
    tolerances=TOLERANCES,
)
