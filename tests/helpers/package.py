"""The modules of the package that can be imported here."""

import importlib
import pkgutil

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
