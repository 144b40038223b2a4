"""A layer of one's own, its variational form and its rule for `shrink`."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from keras_vd._backend.types import Tensor
from keras_vd.layers.base import LinearLayer
from keras_vd.posteriors.binding import Axes
from keras_vd.rules.rule import Rule, rule_for, to_numpy

register = keras.saving.register_keras_serializable(package="skeletons")


@register
class Bilinear(keras.layers.Layer):
    """A plain layer of two inputs: y_k = sum_ij a_i W_ijk b_j + bias_k."""

    # `LinearLayer` applies `self.activation` after `self.bias`, because Keras'
    # own linear layers have both; None stands for no activation.
    activation = None

    def __init__(self, units, **options):
        super().__init__(**options)
        self.units = units

    def build(self, input_shape):
        sizes = [shape[-1] for shape in input_shape]
        self.kernel = self.add_weight(
            name="kernel", shape=(*sizes, self.units), initializer="normal"
        )
        self.bias = self.add_weight(
            name="bias", shape=(self.units,), initializer="zeros"
        )

    def call(self, inputs):
        return self._linear_op(outer(inputs), self.kernel) + self.bias

    def _linear_op(self, inputs, kernel):
        return ops.einsum("bij,ijk->bk", inputs, kernel)

    def compute_output_shape(self, input_shape):
        return (input_shape[0][0], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def outer(inputs):
    """Products of all pairs, `(batch, i, j)`."""
    return ops.einsum("bi,bj->bij", *inputs)


@register
class VDBilinear(LinearLayer, Bilinear):
    """`Bilinear` with a posterior over its kernel."""

    _available_groups = ("output",)

    def _kernel_axes(self, weight: str) -> Axes:
        return Axes(inputs=(0, 1), outputs=(2,))

    def _linear_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        return ops.einsum("bij,ijk->bk", inputs, kernel)

    def call(self, inputs, training=None):
        return super().call(outer(inputs), training=training)


@rule_for(Bilinear)
class BilinearRule(Rule):
    """Outputs without weights are their bias; inputs go that nobody reads."""

    def __init__(self, layer, uses):
        super().__init__(layer, uses)
        self.kernel = to_numpy(layer.kernel)

    @classmethod
    def refusal(cls, layer, node):
        return None if len(node.inputs) == 2 else "it is called otherwise"

    @classmethod
    def macs(cls, layer, node):
        return int(np.prod(layer.kernel.shape))

    def find_constants(self, node):
        is_fixed = ~self.kernel.any(axis=(0, 1))
        bias = to_numpy(self.layer.bias)
        node.outputs[0].constant = np.where(is_fixed, bias, np.nan)

    def require(self, node):
        read = self.kernel[..., node.outputs[0].keep] != 0.0
        node.inputs[0].keep |= read.any(axis=(1, 2))
        node.inputs[1].keep |= read.any(axis=(0, 2))

    def shrunk(self):
        first, second = (tensor.keep for tensor in self.uses[0].inputs)
        kernel = self.kernel[first][:, second][..., self.output.keep]
        config = {**self.config, "units": kernel.shape[-1]}
        return config, [kernel, to_numpy(self.layer.bias)[self.output.keep]]
