"""Variational attention: Keras' own, with variational projections.

Keras' `build` makes the projections and its `call` does the rest, so masks,
dropout and fused attention kernels are Keras'. Only the class of what `build`
makes differs.
"""

from __future__ import annotations

from typing import Any

import keras

from keras_vd import posteriors
from keras_vd._backend.keras_internals import (
    attention_projections,
    with_projections,
)
from keras_vd.layers.base import VariationalLayer, along_axes
from keras_vd.layers.dense import VDEinsumDense
from keras_vd.posteriors.binding import Group

_register = keras.saving.register_keras_serializable(package="keras_vd")


class _Attention(VariationalLayer):
    """Mixin of attention layers, whose weights belong to projections."""

    _variational_weights = ()
    _owns_bias = False
    _available_groups = ("heads",)

    def __init__(
        self,
        *args: Any,
        posterior: Any = "sparse_vd",
        kl_weight: float | None = None,
        bias_posterior: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args,
            posterior=posterior,
            kl_weight=kl_weight,
            bias_posterior=bias_posterior,
            **kwargs,
        )
        # Kept as a config: a posterior would be saved as a part of the layer.
        self._given = posteriors.layer_arguments(
            posteriors.instantiate(posterior, "template", kl_weight)
        )
        if bias_posterior is not None:
            bias_posterior = posteriors.serialize(
                posteriors.get_for_bias(bias_posterior)
            )
        self._given["bias_posterior"] = bias_posterior

    def _posterior_arguments(self) -> dict[str, Any]:
        return dict(self._given)

    def build(  # type: ignore[override]
        self, query_shape: Any, value_shape: Any, key_shape: Any = None
    ) -> None:
        # This skips the mixin's `build`, which takes a single input shape.
        build = with_projections(
            super(VariationalLayer, self).build, self._projection
        )
        build(query_shape, value_shape, key_shape)
        for projection in attention_projections(self).values():
            label = f"{self.name}/{projection.name}"
            projection.kernel_posterior.label = label
            if projection.bias_posterior is not None:
                projection.bias_posterior.label = f"{label}/bias"
        if "heads" in self.group_names:
            self._bind_heads()
        self._hand_on_trainable()

    def _projection(self, *args: Any, **kwargs: Any) -> VDEinsumDense:
        return VDEinsumDense(*args, **self._posterior_arguments(), **kwargs)

    def _bind_heads(self) -> None:
        """Make the heads' multipliers act on the outputs of the heads."""
        output = self._output_dense
        # (heads, value_dim, ...)
        num_heads, expand = along_axes(output.kernel.shape, (0,))
        self.heads_group.bind_group(num_heads, f"{self.name}/heads")
        output.kernel_posterior.multiply_by(
            "heads", Group(self.heads_group, expand)
        )


@_register
class VDMultiHeadAttention(_Attention, keras.layers.MultiHeadAttention):
    """`keras.layers.MultiHeadAttention` with posteriors over its kernels.

    The projections of query, key, value and output, and that of the gate
    where there is one, are `VDEinsumDense` layers: in training each adds noise
    that is independent for every token, and at inference uses the posterior
    mean with pruned weights at zero. Attention itself is Keras' (Vaswani et
    al. 2017, arXiv:1706.03762), and deterministic up to its dropout.

    Args:
        posterior: See `VDDense`; each projection has a posterior of its own.
        kl_weight: See `VDDense`.
        bias_posterior: See `VDDense`; of each projection.
        groups: Tuple of `"heads"`: whether each head has a multiplier of its
            outputs, with a posterior of its own, so that a whole head can be
            pruned. A pruned head adds 0 to every output; heads of
            `VDGroupQueryAttention` are those of the query.
        *args: Of `keras.layers.MultiHeadAttention`.
        **kwargs: Of `keras.layers.MultiHeadAttention`.

    Attributes:
        query_dense: `VDEinsumDense`, from the build on, whose
            `kernel_posterior` is the `WeightPosterior`; `key_dense`,
            `value_dense` and `output_dense` likewise.
        heads_group: `WeightPosterior` of the multipliers.

    Input shape:
        Query `(batch, T, dim)`, value `(batch, S, value_dim)` and, if it is
        not the value, key `(batch, S, key_dim)`.

    Output shape:
        As of `keras.layers.MultiHeadAttention`.

    Losses:
        One scalar in training, `kl_weight` times the KL divergence, for each
        projection and for the heads.

    Raises:
        ValueError: if an argument is not allowed; in training, if no KL
            weight was set.

    Example:
    >>> layer = keras_vd.layers.VDMultiHeadAttention(2, 4, kl_weight=1e-4)
    >>> x = np.zeros((2, 5, 8), "float32")
    >>> tuple(layer(x, x, training=True).shape)
    (2, 5, 8)
    """

    def _make_output_dense(self, *args: Any, **kwargs: Any) -> VDEinsumDense:
        make = with_projections(super()._make_output_dense, self._projection)
        made: VDEinsumDense = make(*args, **kwargs)
        return made


@_register
class VDGroupQueryAttention(_Attention, keras.layers.GroupQueryAttention):
    """`keras.layers.GroupQueryAttention` with posteriors over its kernels.

    Arguments, losses and errors as for `VDMultiHeadAttention`, attributes
    with an underscore in front: `_query_dense` and so on (Ainslie et al. 2023,
    arXiv:2305.13245).

    Example:
    >>> layer = keras_vd.layers.VDGroupQueryAttention(4, 6, 2)
    >>> x = np.zeros((2, 5, 8), "float32")
    >>> tuple(layer(x, x).shape)
    (2, 5, 8)
    """
