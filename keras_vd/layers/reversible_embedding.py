"""Variational embedding that also projects back to the vocabulary."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
from keras import ops

from keras_vd._backend.keras_internals import set_mask
from keras_vd._backend.types import Tensor
from keras_vd.layers.base import Expansion
from keras_vd.layers.embedding import VDEmbedding
from keras_vd.posteriors.binding import Axes


@keras.saving.register_keras_serializable(package="keras_vd")
class VDReversibleEmbedding(VDEmbedding, keras.layers.ReversibleEmbedding):
    """`keras.layers.ReversibleEmbedding` with a posterior over its vectors.

    With `tie_weights=True` one posterior serves both directions, and its KL
    counts once. Looking up draws one sample of the vectors, as `VDEmbedding`
    does; projecting back adds the noise to the logits (local
    reparameterization), with draws of their own.

    Args:
        posterior: See `VDDense`.
        kl_weight: See `VDDense`.
        groups: See `VDEmbedding`; the weights that project back have none if
            they are not tied.
        *args: Of `keras.layers.ReversibleEmbedding`.
        **kwargs: Of `keras.layers.ReversibleEmbedding`.

    Attributes:
        embeddings_posterior: `WeightPosterior` of the vectors.
        reverse_embeddings_posterior: That of the weights that project back,
            with `tie_weights=False`.

    Call arguments:
        inputs: Token ids `(batch, ...)`, or with `reverse=True` floats
            `(batch, ..., output_dim)`.
        reverse: Bool. Whether to project back.

    Output shape:
        `(batch, ..., output_dim)`, or `(batch, ..., input_dim)` with
        `reverse=True`.

    Losses:
        As of `VDEmbedding`.

    Raises:
        ValueError: as `VDEmbedding`.

    Example:
    >>> layer = keras_vd.layers.VDReversibleEmbedding(100, 8)
    >>> vectors = layer(np.array([[3, 14, 15]]))
    >>> tuple(layer(vectors, reverse=True).shape)
    (1, 3, 100)
    """

    def _kernels(self) -> tuple[str, ...]:
        if self.tie_weights:
            return ("embeddings",)
        return "embeddings", "reverse_embeddings"

    def _kernel_axes(self, weight: str) -> Axes:
        axes = super()._kernel_axes(weight)
        # The weights that only project back are a kernel.
        is_table = weight == "embeddings"
        return dataclasses.replace(axes, is_table=is_table)

    def _expansions(self, weight: str) -> dict[str, Expansion]:
        is_table = weight == "embeddings"
        return super()._expansions(weight) if is_table else {}

    def call(  # type: ignore[override]
        self,
        inputs: Tensor,
        reverse: bool = False,
        training: bool | None = None,
    ) -> Tensor:
        if not reverse:
            vectors = super().call(inputs, training)
            # Not by `compute_mask`, which is asked in both directions.
            mask = keras.layers.Embedding.compute_mask(self, inputs)
            if mask is not None:
                set_mask(vectors, mask)
            return vectors
        posterior = (
            self.embeddings_posterior
            if self.tie_weights
            else self.reverse_embeddings_posterior
        )
        logits = posterior.project(self._project_back, inputs, training)
        if self.logit_soft_cap is not None:
            logits = self.logit_soft_cap * ops.tanh(
                logits / self.logit_soft_cap
            )
        return logits

    def _project_back(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Multiply `(batch, ..., output_dim)` by the vectors of all words."""
        if self.tie_weights:
            weight = ops.transpose(weight)
        if self.reverse_dtype is not None:
            inputs = ops.cast(inputs, self.reverse_dtype)
            weight = ops.cast(weight, self.reverse_dtype)
        return ops.matmul(inputs, weight)

    def compute_output_spec(  # type: ignore[override]
        self,
        inputs: Any,
        reverse: bool = False,
        training: bool | None = None,
    ) -> Any:
        spec = keras.layers.ReversibleEmbedding.compute_output_spec
        return spec(self, inputs, reverse)
