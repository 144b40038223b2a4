"""The modules of the package that can be imported here."""

import importlib
import pkgutil
from collections.abc import Iterator

import keras

import keras_vd


def _has_keras_hub() -> bool:
    try:
        importlib.import_module("keras_hub")
    # It may be there and need a newer Keras.
    except ImportError:
        return False
    return True


_IS_POSSIBLE = {
    "keras_vd.layers.reversible_embedding": hasattr(
        keras.layers, "ReversibleEmbedding"
    ),
    "keras_vd.layers.position_embedding": _has_keras_hub(),
}

MODULES = [
    module.name
    for module in pkgutil.walk_packages(keras_vd.__path__, "keras_vd.")
    if _IS_POSSIBLE.get(module.name, True)
]

# From the top down; an import may only point down, or stay on its line.
LAYERS_OF_THE_PACKAGE = (
    ("keras_vd", "__main__"),
    ("reports", "html"),
    ("pipeline",),
    ("deployment", "shrinking", "callbacks", "optimizers", "plots"),
    ("uncertainty",),
    ("drawing",),
    ("conversion", "precision", "pruning"),
    ("decisions", "temperature", "regression"),
    ("calibration",),
    ("sparsity",),
    ("layers", "rules"),
    ("posteriors",),
    ("priors",),
    ("kl", "losses"),
    ("divergences",),
    ("_backend", "version"),
)

# The modules of the reference.
PUBLIC = (
    *("layers", "posteriors", "priors", "kl", "losses"),
    *("callbacks", "optimizers", "reports", "plots", "deployment"),
)


def public_names() -> Iterator[str]:
    """Every public name, as it is imported."""
    yield from (f"keras_vd.{name}" for name in keras_vd.__all__)
    yield from (f"keras_vd.layers.{name}" for name in keras_vd.layers._LATER)
    for part in PUBLIC:
        module = importlib.import_module(f"keras_vd.{part}")
        defined = [
            name
            for name, value in vars(module).items()
            if getattr(value, "__module__", None) == module.__name__
            and not name.startswith("_")
            and callable(value)
        ]
        for name in getattr(module, "__all__", defined):
            yield f"keras_vd.{part}.{name}"
