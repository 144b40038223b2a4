"""Variational counterparts of Keras layers, and gates for plain ones.

The former are named `VD` plus the Keras name.
"""

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
from keras_vd.layers.log_normal import LogNormalDropout
from keras_vd.layers.recurrent import VDGRU, VDLSTM, VDSimpleRNN

__all__ = [
    "VDGRU",
    "VDLSTM",
    "BetaBernoulliDropout",
    "DependentBetaBernoulliDropout",
    "HardConcreteDropout",
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
