"""The modules of the package that can be imported here."""

import importlib.util
import pkgutil

import keras

import keras_vd

_IS_POSSIBLE = {
    "keras_vd.layers.reversible_embedding": hasattr(
        keras.layers, "ReversibleEmbedding"
    ),
    "keras_vd.layers.position_embedding": bool(
        importlib.util.find_spec("keras_hub")
    ),
}

MODULES = [
    module.name
    for module in pkgutil.walk_packages(keras_vd.__path__, "keras_vd.")
    if _IS_POSSIBLE.get(module.name, True)
]
