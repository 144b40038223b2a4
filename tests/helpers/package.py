"""The modules of the package that can be imported with this Keras."""

import pkgutil

import keras

import keras_vd

_NEEDS = {"keras_vd.layers.reversible_embedding": "ReversibleEmbedding"}

MODULES = [
    module.name
    for module in pkgutil.walk_packages(keras_vd.__path__, "keras_vd.")
    if hasattr(keras.layers, _NEEDS.get(module.name, "Layer"))
]
