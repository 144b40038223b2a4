"""Variational counterparts of Keras layers, and gates for plain ones.

The former are named `VD` plus the Keras name.
"""

import importlib
from typing import Any

import keras

from keras_vd.layers.attention import (
    VDGroupQueryAttention,
    VDMultiHeadAttention,
)
from keras_vd.layers.beta_bernoulli import (
    BetaBernoulliDropout,
    DependentBetaBernoulliDropout,
)
from keras_vd.layers.conv import (
    VDConv1D,
    VDConv1DTranspose,
    VDConv2D,
    VDConv2DTranspose,
    VDConv3D,
    VDConv3DTranspose,
    VDDepthwiseConv1D,
    VDDepthwiseConv2D,
    VDSeparableConv1D,
    VDSeparableConv2D,
)
from keras_vd.layers.dense import VDDense, VDEinsumDense
from keras_vd.layers.embedding import VDEmbedding
from keras_vd.layers.hard_concrete import HardConcreteDropout
from keras_vd.layers.homoscedastic import HomoscedasticNoise
from keras_vd.layers.log_normal import LogNormalDropout
from keras_vd.layers.recurrent import VDGRU, VDLSTM, VDSimpleRNN

__all__ = [
    "VDGRU",
    "VDLSTM",
    "BetaBernoulliDropout",
    "DependentBetaBernoulliDropout",
    "HardConcreteDropout",
    "HomoscedasticNoise",
    "LogNormalDropout",
    "VDConv1D",
    "VDConv1DTranspose",
    "VDConv2D",
    "VDConv2DTranspose",
    "VDConv3D",
    "VDConv3DTranspose",
    "VDDense",
    "VDDepthwiseConv1D",
    "VDDepthwiseConv2D",
    "VDEinsumDense",
    "VDEmbedding",
    "VDGroupQueryAttention",
    "VDMultiHeadAttention",
    "VDSeparableConv1D",
    "VDSeparableConv2D",
    "VDSimpleRNN",
]

# Keras has it since 3.13.
if hasattr(keras.layers, "ReversibleEmbedding"):
    from keras_vd.layers.reversible_embedding import (
        VDReversibleEmbedding as VDReversibleEmbedding,
    )

    __all__ += ["VDReversibleEmbedding"]

# Imported when it is first named, which a star import does not: KerasHub is
# optional, and takes seconds.
_LATER = {"VDPositionEmbedding": "keras_vd.layers.position_embedding"}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'keras_vd.layers' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


class _VDPositionEmbeddingOfFiles:
    """What files find under the name of the layer, until that is imported."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return __getattr__("VDPositionEmbedding").from_config(config)


keras.saving.get_custom_objects().setdefault(
    "keras_vd>VDPositionEmbedding", _VDPositionEmbeddingOfFiles
)
