"""Variational counterparts of Keras layers, named `VD` plus the Keras name."""

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

__all__ = [
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
    "VDSeparableConv1D",
    "VDSeparableConv2D",
]
