"""Variational form of KerasHub's embedding of positions."""

from __future__ import annotations

from typing import Any

import keras

from keras_vd._backend.types import Tensor
from keras_vd.layers.embedding import TableLayer

try:
    import keras_hub
except ImportError as error:
    raise ImportError(
        "`VDPositionEmbedding` needs KerasHub: `pip install keras-vd[hub]`. "
        f"Python says: {error}"
    ) from error


@keras.saving.register_keras_serializable(package="keras_vd")
class VDPositionEmbedding(TableLayer, keras_hub.layers.PositionEmbedding):
    """`keras_hub.layers.PositionEmbedding` with a posterior over its vectors.

    Training draws one sample of all vectors at each call, for all examples of
    the batch, as `VDEmbedding` does.

    This needs KerasHub: `pip install keras-vd[hub]`. In a layer of one's own, a
    `VDEmbedding` of `keras.ops.arange(length)` does the same without it.

    Args:
        posterior: See `VDDense`.
        kl_weight: See `VDDense`.
        groups: Tuple of `"positions"` (one multiplier for each position) and
            `"features"` (one for each entry of the vectors).
        *args: Of `keras_hub.layers.PositionEmbedding`.
        **kwargs: Of `keras_hub.layers.PositionEmbedding`.

    Attributes:
        position_embeddings_posterior: `WeightPosterior` of the vectors.
        positions_group: `WeightPosterior` of the multipliers;
            `features_group` likewise.

    Call arguments:
        inputs: Tensor `(..., length, features)`, of which only the shape
            counts; `length` is at most `sequence_length`.
        start_index: Integer or integer tensor: the first position.
        positions: Integer tensor `(length,)` or `(batch, length)` of positions
            that take the place of those from `start_index` on; or None.

    Output shape:
        That of `inputs`.

    Losses:
        As of `VDEmbedding`.

    Raises:
        ValueError: as `VDEmbedding`.

    Example:
    >>> layer = keras_vd.layers.VDPositionEmbedding(10, groups=("positions",))
    >>> tuple(layer(np.zeros((2, 4, 8))).shape)
    (2, 4, 8)
    """

    _variational_weights = ("position_embeddings",)
    _available_groups = ("positions", "features")

    def call(
        self,
        inputs: Tensor,
        start_index: Any = 0,
        positions: Any = None,
        training: bool | None = None,
    ) -> Tensor:
        posterior = self.position_embeddings_posterior
        if posterior.is_sampling(training):
            vectors = posterior.draw(posterior.draw_groups())
        else:
            vectors = posterior.mean()
        # Which positions are asked for is up to KerasHub, whose serving has
        # ways of its own to tell them.
        with keras.StatelessScope([(self.position_embeddings, vectors)]):
            return super().call(inputs, start_index, positions)
