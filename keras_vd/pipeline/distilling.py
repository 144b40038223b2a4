"""Have a sparse model learn from the outputs of the plain one."""

from __future__ import annotations

from typing import Any

import keras

from keras_vd.pipeline.compiling import Recipe


def check_distiller(model: keras.Model) -> None:
    """Raise unless a model can teach by Keras' own Distiller.

    Raises:
        ImportError: if this Keras has none.
        ValueError: if the model has more than one output, or loss weights.
    """
    if not hasattr(keras, "distillation"):
        raise ImportError(
            "Argument `distill` needs `keras.distillation.Distiller`, of "
            f"Keras 3.12 or newer. This is Keras {keras.__version__}."
        )
    outputs = getattr(model, "outputs", None) or []
    if len(outputs) != 1:
        raise ValueError(
            "Argument `distill` must be False for a model that has not just "
            f"one output. '{model.name}' has {len(outputs) or 'unknown ones'}."
        )


def distiller(
    teacher: keras.Model, student: keras.Model, recipe: Recipe
) -> Any:
    """Return a compiled model that trains the student.

    Its loss is the student's, and the mean squared difference of outputs, half
    of each. That suits probabilities, logits and values alike.

    Args:
        teacher: The plain model; frozen.
        student: The sparse model, compiled.
        recipe: How it is compiled.
    """
    losses = keras.distillation.LogitsDistillation(
        temperature=1.0, loss="mean_squared_error"
    )
    result = keras.distillation.Distiller(teacher, student, losses)
    arguments = recipe.compile_arguments()
    names = ("optimizer", "loss", "metrics", "run_eagerly", "jit_compile")
    result.compile(**{name: arguments[name] for name in names})
    return result
