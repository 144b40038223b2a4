"""Variational embedding."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_vd._backend.types import Tensor
from keras_vd.layers.base import Expansion, VariationalLayer, along_axes
from keras_vd.posteriors.binding import Axes


class TableLayer(VariationalLayer):
    """Mixin of layers with a table of vectors, which are drawn once per call.

    The first kind of groups has a multiplier for each vector, the second one
    for each entry of the vectors.
    """

    _knows_biases = False

    def _add_posteriors(self, *arguments: Any) -> None:
        super()._add_posteriors(*arguments)
        self._refuse_input_noise()

    def _kernel_axes(self, weight: str) -> Axes:
        return Axes(inputs=(0,), outputs=(1,), is_table=True)

    def _expansions(self, weight: str) -> dict[str, Expansion]:
        shape = getattr(self, weight).shape
        return {
            group: along_axes(shape, (self._available_groups.index(group),))
            for group in self.group_names
        }


@keras.saving.register_keras_serializable(package="keras_vd")
class VDEmbedding(TableLayer, keras.layers.Embedding):
    """`keras.layers.Embedding` with a posterior over its vectors.

    Training looks up one sample of all vectors, drawn at each call: a token
    has the same noise wherever it occurs in the batch (Chirkova et al. 2018,
    arXiv:1810.10927). `estimator` of the posterior has no effect.

    Args:
        posterior: See `VDDense`.
        kl_weight: See `VDDense`.
        groups: Tuple of `"vocabulary"` (one multiplier for each token, so that
            whole tokens can be pruned) and `"features"` (one for each entry of
            the vectors).
        *args: Of `keras.layers.Embedding`.
        **kwargs: Of `keras.layers.Embedding`.

    Attributes:
        embeddings_posterior: `WeightPosterior` of the vectors.
        vocabulary_group: `WeightPosterior` of the multipliers;
            `features_group` likewise.

    Input shape:
        `(batch, ...)` of token ids in `[0, input_dim)`. As in Keras, ids out
        of range are an error on TensorFlow (CPU) and PyTorch, while JAX
        returns NaN.

    Output shape:
        `(batch, ..., output_dim)`

    Losses:
        One scalar in training, `kl_weight` times the KL divergence, for the
        vectors and for each kind of groups.

    Raises:
        ValueError: if an argument is not allowed; in training, if no KL
            weight was set.

    Example:
    >>> layer = keras_vd.layers.VDEmbedding(100, 8, groups=("vocabulary",))
    >>> tuple(layer(np.array([[3, 14, 15]])).shape)
    (1, 3, 8)
    """

    _variational_weights = ("embeddings",)
    _available_groups = ("vocabulary", "features")

    def __init__(self, *args: Any, weights: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Keras would build the layer at once, before its posterior exists.
        if weights is not None:
            self.build()
            is_listed = isinstance(weights, list) and len(weights) == 1
            self.embeddings.assign(weights[0] if is_listed else weights)

    def build(self, input_shape: Any = None) -> None:
        if not self.built:
            super().build(input_shape)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        inputs = ops.convert_to_tensor(inputs)
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if dtype not in ("int32", "int64"):
            inputs = ops.cast(inputs, "int32")
        posterior = self.embeddings_posterior
        if posterior.is_sampling(training):
            vectors = posterior.draw_rows(inputs, posterior.draw_groups())
            return ops.cast(vectors, self.compute_dtype)
        embeddings = ops.cast(posterior.mean(), self.compute_dtype)
        return ops.take(embeddings, inputs, axis=0)

    def compute_output_spec(
        self, inputs: Any, training: bool | None = None
    ) -> Any:
        return super().compute_output_spec(inputs)
