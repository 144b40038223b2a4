"""Embeddings: fewer columns, and one row for all words that share it."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vd._backend.keras_internals import rename_operation
from keras_vd._backend.names import Names
from keras_vd.rules.graph import Node
from keras_vd.rules.rule import Rule, rule_for, to_numpy

# The new ids are stored in an embedding of type float32, which does not have
# every integer above this number.
_MOST_ROWS = 2**24


@rule_for(keras.layers.Embedding)
class EmbeddingRule(Rule):
    """A table of `(vocabulary, columns)`."""

    def __init__(self, layer: Any, uses: list[Node]) -> None:
        super().__init__(layer, uses)
        self.table = to_numpy(layer.embeddings)
        self._places: keras.layers.Embedding | None = None

    def find_constants(self, node: Node) -> None:
        is_same = (self.table == self.table[0]).all(axis=0)
        node.outputs[0].constant = np.where(is_same, self.table[0], np.nan)

    def require(self, node: Node) -> None:
        # The last axis of the ids is not one of channels: it often holds the
        # steps of a sequence, all of which stay.
        node.inputs[0].keep[:] = True

    @property
    def added_parameters(self) -> int:  # type: ignore[override]
        places = self._rows[1]
        return 0 if places is None else places.size

    @property
    def is_reduced(self) -> bool:
        return super().is_reduced or self._rows[1] is not None

    @property
    def inputs_kept(self) -> tuple[int, int]:
        return self._rows[0].shape[0], self.table.shape[0]

    @functools.cached_property
    def _rows(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The rows to store, and the position of each word's row in them.

        The second is None where storing it would cost more than it saves.
        This is computed once, so it must not be read before it is settled
        which columns are kept.
        """
        table = self.table[:, self.output.keep] + 0.0  # turns -0 into 0
        first = int(self.layer.mask_zero)
        # Rows are viewed as single values, so that `unique` compares whole
        # rows, byte by byte.
        values = np.ascontiguousarray(table[first:])
        values = values.view(f"V{values.itemsize * values.shape[1]}").ravel()
        _, kept, places = np.unique(
            values, return_index=True, return_inverse=True
        )
        # Id 0 means "no word" to a layer that masks, so no other word may
        # share its row.
        rows = np.concatenate([np.arange(first), first + kept])
        places = np.concatenate([np.arange(first), first + places.ravel()])
        saved = (len(table) - len(rows)) * table.shape[1]
        if saved <= len(table) or len(table) > _MOST_ROWS:
            return table, None
        return table[rows], places

    def shrunk(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        rows, _ = self._rows
        config = self.config
        config["input_dim"], config["output_dim"] = rows.shape
        return config, [rows]

    def call(
        self, layer: Any, args: tuple[Any, ...], kwargs: Any, names: Names
    ) -> Any:
        _, places = self._rows
        if places is None:
            return super().call(layer, args, kwargs, names)
        if self._places is None:
            self._places = keras.layers.Embedding(
                len(places),
                1,
                embeddings_initializer="zeros",
                trainable=False,
                dtype="float32",
                name=names.unique(f"{layer.name}_rows"),
            )
            self._places.build()
            self._places.set_weights([places[:, None]])
        ids = ops.squeeze(self._places(args[0]), axis=-1)
        rename_operation(ids, names.unique(f"{layer.name}_row"))
        ids = ops.cast(ids, "int32")
        rename_operation(ids, names.unique(f"{layer.name}_id"))
        return layer(ids, *args[1:], **kwargs)
