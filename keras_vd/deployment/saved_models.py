"""Write TensorFlow SavedModels that hold every weight once."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_vd._backend.keras_internals import portable_operations
from keras_vd.deployment.drawing import flat_inputs
from keras_vd.deployment.interface import (
    has_nested_outputs,
    input_names,
    output_names,
    pack,
)
from keras_vd.deployment.readers import Arrays
from keras_vd.deployment.writer import Writer

# The backends from which TensorFlow can write a traced function.
BACKENDS = ("tensorflow", "jax")
TENSORFLOW = ("tensorflow", "tensorflow")


def export_saved_model(
    model: keras.Model,
    path: str | os.PathLike[str],
    jit_compile: bool = False,
    x: Any = None,
) -> None:
    """Write a plain model as a TensorFlow SavedModel.

    TensorFlow alone reads it: `tf.saved_model.load(path).serve(x)`, the
    signature `serving_default`, TensorFlow Serving, the C API. Each weight is
    in it once; `keras.Model.export` writes every weight twice from TensorFlow.

    Args:
        model: A built model of plain Keras layers; not changed. Subclassed
            models and layers made of layers are written out, see
            `keras_vd.to_functional`.
        path: Folder to write. An existing SavedModel or empty folder is
            replaced once the new one has been read back and its outputs are
            those of `model`.
        jit_compile: Whether XLA compiles what is served. A recurrent model is
            several times faster then at small batch sizes, where TensorFlow's
            loop costs more than its arithmetic. The first call takes about
            half a second longer, and so does the first call with any other
            batch size or number of time steps: pad inputs to a few sizes.
        x: Inputs for the check, as the model takes them; a few drawn at
            random by default.

    Raises:
        TypeError: if `model` is no Keras model.
        ValueError: if `model` is not built, has layers of `keras_vd`, stateful
            ones or weights that are not finite, if `x` has another shape, or
            `model` does not take the inputs drawn.
        ImportError: if TensorFlow is not installed.
        RuntimeError: if the backend is PyTorch, or if the outputs of what was
            written differ.
        OSError: if the folder cannot be written, or holds other things.

    Example:
        >>> import os, tempfile
        >>> from keras_vd import deployment
        >>> path = os.path.join(tempfile.mkdtemp(), "served")
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> deployment.export_saved_model(model, path)  # doctest: +SKIP
    """
    with WRITER.opened(model, path) as opened:
        arrays = flat_inputs(opened, x)
        WRITER.write(opened, path, arrays, jit_compile=jit_compile)


def _make(
    model: keras.Model, arrays: Arrays, jit_compile: bool
) -> Callable[[Path], None]:
    import tensorflow as tf

    module = tf.Module()
    module.tables = lookup_tables(model)
    module.weights = [
        tf.Variable(value, trainable=False) for value in weight_values(model)
    ]
    compute = computation(model)
    if jit_compile:
        compute = tf.function(compute, jit_compile=True, autograph=False)
    module.serve = served(
        model, lambda inputs: compute(list(module.weights), inputs)
    )
    module.flat = flattened(model, module.serve)
    return functools.partial(save_module, module)


def weight_values(model: keras.Model) -> list[np.ndarray]:
    """Return the values of all variables, the trainable ones first."""
    variables = model.trainable_variables + model.non_trainable_variables
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def lookup_tables(model: keras.Model) -> list[Any]:
    """List the look-up tables of TensorFlow in a model.

    They are not weights, so whatever serves the model must hold on to them.
    """
    import tensorflow as tf

    if keras.backend.backend() != "tensorflow":
        return []
    return [
        part
        for part in tf.train.TrackableView(model).descendants()
        if isinstance(part, tf.saved_model.experimental.TrackableResource)
    ]


def computation(model: keras.Model) -> Callable[[list[Any], list[Any]], Any]:
    """Return the model as a TensorFlow function of its weights and inputs.

    The weights are in the order of `weight_values`; the outputs have the
    structure of the model's.
    """
    trainable = len(model.trainable_variables)

    def call(weights: Sequence[Any], inputs: Sequence[Any]) -> Any:
        outputs, _ = model.stateless_call(
            list(weights[:trainable]),
            list(weights[trainable:]),
            pack(model, inputs),
            training=False,
        )
        return outputs

    if keras.backend.backend() == "tensorflow":
        return call
    from jax.experimental import jax2tf

    symbols = [
        ", ".join(
            str(n) if n else f"axis_{axis}" if axis else "batch"
            for axis, n in enumerate(tensor.shape)
        )
        for tensor in model.inputs
    ]
    return jax2tf.convert(
        call, polymorphic_shapes=[None, symbols], with_gradient=False
    )


def traced(model: keras.Model, batch_size: int | None = None) -> Any:
    """Trace the model as one concrete TensorFlow function without variables.

    The alphabetical order of the names of its inputs is the order of the
    inputs. It returns the outputs of the model, flattened.
    """
    import tensorflow as tf

    values = weight_values(model)
    compute = computation(model)

    # The weights are constants, because the loop with which LiteRT runs
    # recurrent layers cannot read variables.
    @tf.function(autograph=False)
    def call(*tensors: Any) -> Any:
        constants = [tf.constant(value) for value in values]
        return keras.tree.flatten(compute(constants, list(tensors)))

    names = [f"x_{i:03}" for i in range(len(model.inputs))]
    specs = _specs(model, names, batch_size)
    with portable_operations():
        return call.get_concrete_function(*specs)


def _specs(
    model: keras.Model, names: Sequence[str], batch_size: int | None = None
) -> list[Any]:
    """Make a `tf.TensorSpec` for each input."""
    import tensorflow as tf

    return [
        tf.TensorSpec(
            (tensor.shape[0] or batch_size, *tensor.shape[1:]),
            keras.backend.standardize_dtype(tensor.dtype),
            name,
        )
        for tensor, name in zip(model.inputs, names, strict=True)
    ]


def served(model: keras.Model, call: Callable[[list[Any]], Any]) -> Any:
    """Make a `tf.function` of the model's inputs that returns what `call` does.

    It is traced here, so that an error of the model is not taken for one of
    writing the file.
    """
    import tensorflow as tf

    specs = _specs(model, input_names(model))

    def serve(x: Any) -> Any:
        return call(keras.tree.flatten(x))

    function = tf.function(
        serve, input_signature=[pack(model, specs)], autograph=False
    )
    function.get_concrete_function()
    return function


def flattened(model: keras.Model, serve: Any) -> Any:
    """Return `serve`, or a function that returns its nested outputs by names.

    A signature cannot return a structure within a structure.
    """
    import tensorflow as tf

    if not has_nested_outputs(model):
        return serve
    names = output_names(model)

    def call(x: Any) -> dict[str, Any]:
        return dict(zip(names, keras.tree.flatten(serve(x)), strict=True))

    return tf.function(
        call, input_signature=serve.input_signature, autograph=False
    )


def save_module(module: Any, folder: Path) -> None:
    """Write a `tf.Module` with `serve`; its `flat` makes the signatures."""
    import tensorflow as tf

    options = tf.saved_model.SaveOptions(
        save_debug_info=False, experimental_custom_gradients=False
    )
    signatures = {"serve": module.flat, "serving_default": module.flat}
    tf.saved_model.save(module, str(folder), signatures, options)


WRITER = Writer(
    "export_saved_model",
    "TensorFlow",
    _make,
    backends=BACKENDS,
    packages=(TENSORFLOW,),
)
