"""Networks of experiments.imdb: embedding, recurrent layer, one output."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import layers, ops

import keras_vd
from experiments.imdb.data import PADDING, UNKNOWN

MODELS = ("lstm", "gru", "bilstm")
SPARSE = ("sparse_vd", "ard")
METHODS = ("none", "dropout", *SPARSE)
EMBEDDING_GROUPS = ("vocabulary", "features")
RECURRENT_GROUPS = ("input", "units", "gates")
GROUPS = (*EMBEDDING_GROUPS, *RECURRENT_GROUPS)
DROPOUT_RATE = 0.5


@dataclasses.dataclass(frozen=True)
class Network:
    """What to build.

    Attributes:
        model: One of `MODELS`.
        method: One of `METHODS`.
        vocabulary: Number of token ids.
        features: Length of the embedding vectors.
        units: Recurrent units of each direction.
        groups: Names out of `GROUPS`.
        log_sigma2_init: Initial log variance.
        structure_scale: Factor of the KL of all but the embedding.
        share: Which weights share a variance, see `posteriors.SparseVD`.
    """

    model: str
    method: str
    vocabulary: int
    features: int
    units: int
    groups: tuple[str, ...] = ()
    log_sigma2_init: float = -8.0
    structure_scale: float = 1.0
    share: str = "weight"

    def build(self) -> keras.Sequential:
        """The network; its output is a logit.

        Padding is masked, and unknown words have a vector of zeros.
        """
        embedding, recurrent, dense = self._classes()
        first = embedding(
            self.vocabulary,
            self.features,
            mask_zero=True,
            name="embedding",
            **self._options(EMBEDDING_GROUPS, 1.0),
        )
        options = self._options(RECURRENT_GROUPS, self.structure_scale)
        second = recurrent(self.units, name="recurrent", **options)
        if self.model == "bilstm":
            second = layers.Bidirectional(second, name="bidirectional")
        third = dense(
            1, name="classifier", **self._options((), self.structure_scale)
        )
        stack = [first, second, third]
        if self.method == "dropout":
            stack = [
                first,
                layers.Dropout(DROPOUT_RATE),
                second,
                layers.Dropout(DROPOUT_RATE),
                third,
            ]
        model = keras.Sequential([keras.Input((None,), dtype="int32"), *stack])
        if self.method in SPARSE:
            drop_words(model, [PADDING, UNKNOWN])
        return model

    def _classes(self) -> tuple[type, type, type]:
        cell = "GRU" if self.model == "gru" else "LSTM"
        if self.method not in SPARSE:
            return layers.Embedding, getattr(layers, cell), layers.Dense
        ours = keras_vd.layers
        return ours.VDEmbedding, getattr(ours, f"VD{cell}"), ours.VDDense

    def _options(
        self, available: tuple[str, ...], kl_scale: float
    ) -> dict[str, Any]:
        if self.method not in SPARSE:
            return {}
        posterior = {
            "sparse_vd": keras_vd.posteriors.SparseVD,
            "ard": keras_vd.posteriors.ARD,
        }[self.method]
        return {
            "posterior": posterior(
                log_sigma2_init=self.log_sigma2_init,
                kl_scale=kl_scale,
                share=self.share,
            ),
            "groups": [name for name in self.groups if name in available],
        }

    def plain(self) -> Network:
        """The same network of Keras layers."""
        return dataclasses.replace(self, method="none")


def with_probabilities(model: keras.Sequential) -> keras.Sequential:
    """The same plain network with a probability as its output."""
    config = model.get_config()
    config["layers"][-1]["config"]["activation"] = "sigmoid"
    new = keras.Sequential.from_config(config)
    new.set_weights(model.get_weights())
    return new


def drop_words(model: keras.Sequential, ids: list[int]) -> None:
    """Fix the vectors of some words at zero."""
    posterior = model.get_layer("embedding").embeddings_posterior
    kept = ops.convert_to_numpy(posterior.keep_mask).copy()
    kept[ids] = False
    posterior.keep_mask.assign(kept)


def recurrent_layers(model: keras.Sequential) -> list[keras.layers.Layer]:
    """The recurrent layer, or those of both directions."""
    for layer in model.layers:
        if isinstance(layer, layers.Bidirectional):
            return [layer.forward_layer, layer.backward_layer]
        if isinstance(layer, layers.RNN):
            return [layer]
    raise ValueError("the model has no recurrent layer")


def start_from(model: keras.Sequential, pretrained: keras.Sequential) -> None:
    """Copy the weights of the plain network of the same shape."""
    pairs = [
        (model.get_layer(name), pretrained.get_layer(name))
        for name in ("embedding", "classifier")
    ]
    cells = zip(
        recurrent_layers(model), recurrent_layers(pretrained), strict=True
    )
    pairs += [(ours.cell, theirs.cell) for ours, theirs in cells]
    for target, source in pairs:
        values = {v.name: ops.convert_to_numpy(v) for v in source.weights}
        for variable in target.weights:
            if variable.name in values:
                variable.assign(values[variable.name])


def nonzero_weights(model: keras.Sequential) -> dict[str, np.ndarray]:
    """Which weights are not zero at inference, by the names of a report."""
    return {
        posterior.label: ops.convert_to_numpy(posterior.mean()) != 0.0
        for posterior in keras_vd.variational_weights(model)
        if not posterior.is_group
    }


@dataclasses.dataclass(frozen=True)
class Alive:
    """What of a network has an effect on its output.

    Attributes:
        words: Token ids with a vector that is read.
        features: Entries of the vectors that are not zero and read.
        units: Units that are not constantly zero and read, by direction.
        gates: Number of gates that depend on anything.
    """

    words: np.ndarray
    features: np.ndarray
    units: tuple[np.ndarray, ...]
    gates: int


def find_alive(model: keras.Sequential) -> Alive:
    """Follow the non-zero weights from the words to the output and back."""
    nonzero = nonzero_weights(model)
    vectors, output = nonzero["embedding"], nonzero["classifier"]
    cells = []
    for layer in recurrent_layers(model):
        kernel = nonzero[f"{layer.name}/kernel"]
        recurrent = nonzero[f"{layer.name}/recurrent_kernel"]
        rows = output[: layer.units]
        output = output[layer.units :]
        candidates = _candidate_biases(layer) != 0.0
        cells.append((layer, kernel, recurrent, rows, candidates))
    features = vectors.any(0)
    units = [np.ones(len(rows), bool) for _, _, _, rows, _ in cells]
    while True:
        before = [features, *units]
        reads = np.zeros_like(features)
        for i, (layer, kernel, recurrent, rows, biases) in enumerate(cells):
            columns = np.tile(units[i], kernel.shape[1] // len(rows))
            is_read = rows.any(1) | (recurrent & columns).any(1)
            written = biases | _candidate(
                layer,
                (kernel & features[:, None]).any(0)
                | (recurrent & units[i][:, None]).any(0),
            )
            units[i] = units[i] & is_read & written
            reads = reads | (kernel & columns).any(1)
        features = features & reads
        if all(map(np.array_equal, before, [features, *units])):
            break
    gates = 0
    for alive, (_, kernel, recurrent, rows, _) in zip(
        units, cells, strict=True
    ):
        columns = np.tile(alive, kernel.shape[1] // len(rows))
        used = (kernel & features[:, None]).any(0)
        used |= (recurrent & alive[:, None]).any(0)
        gates += int((used & columns).sum())
    return Alive(
        words=np.flatnonzero((vectors & features).any(1)),
        features=np.flatnonzero(features),
        units=tuple(map(np.flatnonzero, units)),
        gates=gates,
    )


def _candidate(layer: keras.layers.Layer, columns: np.ndarray) -> np.ndarray:
    """The entries of all gates' columns that belong to the candidate."""
    return columns[..., 2 * layer.units : 3 * layer.units]


def _candidate_biases(layer: keras.layers.Layer) -> np.ndarray:
    """Sum of the absolute biases of each unit's candidate at inference."""
    values = {variable.name: v for variable, v in layer.inference_values()}
    bias = np.abs(np.atleast_2d(ops.convert_to_numpy(values["bias"])))
    return _candidate(layer, bias).sum(0)


def shrink(
    model: keras.Sequential, network: Network, words: list[str]
) -> tuple[keras.Sequential, Network, list[str], np.ndarray]:
    """The variational network of all that is alive; predictions are equal.

    Means, variances and biases are carried over. Words that are gone become
    unknown words.

    Args:
        model: A network with a variational method.
        network: Its description; the result's `log_sigma2_init` and
            `structure_scale` are those given here.
        words: Its words by id.

    Returns:
        The smaller network, its description, its words, and the new id of each
        old one.
    """
    alive = find_alive(model)
    # A layer needs a unit and a feature even if nothing is left to compute.
    features = alive.features if len(alive.features) else np.array([0])
    units = _equally_many(alive.units, network.units)
    ids = np.concatenate([[PADDING, UNKNOWN], alive.words])
    network = dataclasses.replace(
        network,
        vocabulary=len(ids),
        features=len(features),
        units=len(units[0]),
    )
    new = network.build()
    old_layer, new_layer = (x.get_layer("embedding") for x in (model, new))
    _copy_posteriors(
        old_layer,
        new_layer,
        {
            "embeddings_posterior": (ids, features),
            "vocabulary_group": (ids,),
            "features_group": (features,),
        },
    )
    drop_words(new, [PADDING, UNKNOWN])
    rows, offset = [], 0
    for old_layer, new_layer, kept in zip(
        recurrent_layers(model), recurrent_layers(new), units, strict=True
    ):
        gates = old_layer.cell.kernel.shape[1] // old_layer.units
        columns = np.concatenate(
            [kept + gate * old_layer.units for gate in range(gates)]
        )
        _copy_posteriors(
            old_layer,
            new_layer,
            {
                "kernel_posterior": (features, columns),
                "recurrent_kernel_posterior": (kept, columns),
                "input_group": (features,),
                "units_group": (kept,),
                "gates_group": (columns,),
            },
        )
        bias = ops.convert_to_numpy(old_layer.cell.bias)[..., columns]
        new_layer.cell.bias.assign(bias)
        rows.append(kept + offset)
        offset += old_layer.units
    old_layer, new_layer = (x.get_layer("classifier") for x in (model, new))
    _copy_posteriors(
        old_layer,
        new_layer,
        {"kernel_posterior": (np.concatenate(rows), np.array([0]))},
    )
    new_layer.bias.assign(ops.convert_to_numpy(old_layer.bias))
    new_ids = np.full(len(words), UNKNOWN, "int32")
    new_ids[ids] = np.arange(len(ids))
    return new, network, [words[i] for i in ids], new_ids


def _equally_many(
    units: tuple[np.ndarray, ...], total: int
) -> list[np.ndarray]:
    """The units of each direction, with dead ones where it has fewer."""
    size = max(1, *map(len, units))
    dead = [np.setdiff1d(np.arange(total), kept) for kept in units]
    return [
        np.sort(np.concatenate([kept, others[: size - len(kept)]]))
        for kept, others in zip(units, dead, strict=True)
    ]


def _copy_posteriors(
    source: keras.layers.Layer,
    target: keras.layers.Layer,
    indices: dict[str, tuple[np.ndarray, ...]],
) -> None:
    """Copy what a layer's posteriors know about a part of their weights.

    Args:
        source: A variational layer.
        target: The same layer, smaller.
        indices: What to take along each axis, by attribute of the posterior.
    """
    for name, axes in indices.items():
        if not hasattr(source, name):
            continue
        old, new = getattr(source, name), getattr(target, name)
        sizes = old.weight.shape
        for ours, theirs in zip(
            (new.weight, new.keep_mask, *new._noise_parameters()),
            (old.weight, old.keep_mask, *old._noise_parameters()),
            strict=True,
        ):
            values = ops.convert_to_numpy(theirs)
            for axis, kept in enumerate(axes):
                # Shared variances have one entry along some axes.
                if values.shape[axis] == sizes[axis]:
                    values = np.take(values, kept, axis)
            ours.assign(values)
