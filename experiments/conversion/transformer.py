"""A small Transformer for the sentiment of texts, made sparse and shrunk.

    python -m experiments.conversion.transformer --dataset synthetic
    python -m experiments.conversion.transformer --dataset imdb
    python -m experiments.conversion.transformer --network guide

Trains a plain Keras Transformer, converts it with `keras_vd.to_variational`,
trains it on with noise, prunes it, trains what is left, shrinks it (attention
heads, units of the feed-forward layers, words) and writes it for TensorFlow,
LiteRT and ONNX Runtime. The table says what each stage costs and brings.
`--network guide` is the one of the Keras guide on text classification with a
Transformer, made of layers of its own.
Writes to --out: results.json, the models and a picture.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from keras import layers, ops

from experiments import common
from experiments.conversion import stages
from experiments.imdb import data as imdb_data
from experiments.models import own

SIZES: dict[str, dict[str, int]] = {
    "small": {"words": 10_000, "length": 128, "heads": 4, "units": 64},
    "guide": {"words": 20_000, "length": 200, "heads": 2, "units": 32},
}
SYNTHETIC_LENGTH = 25
GROUPS = ("vocabulary", "features", "heads", "input", "output")
RECIPE = stages.Recipe(
    epochs=2,
    variational_epochs=8,
    finetune_epochs=0,
    batch_size=128,
    variational_learning_rate=5e-3,
    kl_weight=1.0,
    warmup_share=0.0,
    threshold=-0.5,
)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", choices=("imdb", "synthetic"), default="imdb")
    add("--network", choices=("small", "guide"), default="small")
    add("--data", type=Path, metavar="FILE.npz", help="texts of your own")
    add("--length", type=int, help="last tokens to read; default: of the data")
    add("--width", type=int, default=32, help="of the embedding")
    add("--heads", type=int, help="of the attention; default: 4, or 2")
    add("--blocks", type=int, default=1, help="of attention and feed-forward")
    add("--units", type=int, help="of the feed-forward layers; default: 64, 32")
    stages.add_arguments(parser, "gaussian", GROUPS)
    add("--holdout", action="store_true", help="report on held-out texts")
    parsed = parser.parse_args(arguments)
    defaults = SIZES[parsed.network]
    for name in ("heads", "units"):
        if getattr(parsed, name) is None:
            setattr(parsed, name, defaults[name])
    stages.check_arguments(parsed)
    sizes = ("length", "width", "heads", "blocks", "units")
    common.check_minima(parsed, dict.fromkeys(sizes, 1))
    if parsed.network == "guide" and parsed.blocks != 1:
        common.fail(f"--network guide has one block, not {parsed.blocks}")
    if parsed.network == "small" and parsed.width % parsed.heads:
        common.fail(
            f"--width must be a multiple of --heads, not {parsed.width} for "
            f"{parsed.heads} heads"
        )
    return parsed


def build(
    words: int, length: int, width: int, heads: int, blocks: int, units: int
) -> keras.Model:
    """An untrained Transformer encoder, which returns a logit for each text.

    Args:
        words: Number of token ids; 0 is padding.
        length: Number of tokens of a text.
        width: Number of features of a token.
        heads: Number of attention heads.
        blocks: Number of blocks of attention and feed-forward layers.
        units: Number of hidden units of the feed-forward layers.
    """
    ids = keras.Input((length,), dtype="int32", name="ids")
    # Counted from 1; padding has position 0, so that both masks are the same.
    is_word = ops.cast(ops.not_equal(ids, 0), "int32")
    positions = is_word * ops.cumsum(is_word, axis=1)
    hidden = layers.Add()(
        [
            layers.Embedding(number, width, mask_zero=True, name=name)(tokens)
            for name, number, tokens in (
                ("words", words, ids),
                ("positions", length + 1, positions),
            )
        ]
    )
    for block in range(blocks):
        attention = layers.MultiHeadAttention(
            heads, width // heads, name=f"attention_{block}"
        )
        normalized = layers.LayerNormalization()(hidden)
        hidden = layers.Add()([hidden, attention(normalized, normalized)])
        inner = layers.Dense(units, "relu", name=f"inner_{block}")
        outer = layers.Dense(width, name=f"outer_{block}")
        normalized = layers.LayerNormalization()(hidden)
        hidden = layers.Add()([hidden, outer(inner(normalized))])
    pooled = layers.GlobalAveragePooling1D()(hidden)
    return keras.Model(ids, layers.Dense(1, name="opinion")(pooled))


def make_task(
    texts: imdb_data.Texts, batch_size: int, is_held_out: bool
) -> stages.Task:
    test = (texts.x_test, texts.y_test)
    return stages.Task(
        {"x": texts.x_train, "y": texts.y_train, "batch_size": batch_size},
        len(texts.x_train),
        *((texts.x_valid, texts.y_valid) if is_held_out else test),
        keras.losses.BinaryCrossentropy(from_logits=True),
        lambda: keras.metrics.BinaryAccuracy("accuracy", threshold=0.0),
        is_held_out,
    )


def describe_heads(file: Path, names: list[str], heads: int) -> list[str]:
    """What a shrunk Transformer has left of its attention layers."""
    model = keras.saving.load_model(file)
    left = {
        layer.name: layer
        for layer in model.layers
        if isinstance(layer, layers.MultiHeadAttention)
    }
    found = []
    for name in names:
        if name in left:
            config = left[name].get_config()
            found.append(
                f"{name}: {config['num_heads']} of {heads} heads, keys of "
                f"{config['key_dim']}, values of {config['value_dim']}"
            )
        else:
            found.append(f"{name}: gone")
    return found


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    data = arguments.data.stem if arguments.data else arguments.dataset
    out = common.prepare_folder(
        arguments.out
        or Path("runs") / f"transformer-{data}-seed{arguments.seed}"
    )
    keras.utils.set_random_seed(arguments.seed)
    defaults = SIZES[arguments.network]
    is_imdb = arguments.dataset == "imdb"
    length = arguments.length or (
        defaults["length"] if is_imdb else SYNTHETIC_LENGTH
    )
    texts = imdb_data.load(
        arguments.dataset,
        arguments.data,
        defaults["words"],
        length,
        arguments.seed,
    )
    if arguments.limit:
        texts = texts.limited(arguments.limit)
    recipe = stages.choose_recipe(RECIPE, arguments, len(texts.x_train))
    task = make_task(texts, recipe.batch_size, arguments.holdout)
    sizes = {
        name: getattr(arguments, name)
        for name in ("width", "heads", "blocks", "units")
    }
    if arguments.network == "guide":
        options = {k: x for k, x in sizes.items() if k != "blocks"}
        dense = own.guide_transformer(
            words=len(texts.words), length=length, **options
        )
    else:
        dense = build(len(texts.words), length, **sizes)
    task.fit(dense, recipe.epochs, recipe.learning_rate)
    results = stages.run(
        dense,
        task,
        recipe,
        arguments.posterior,
        out,
        arguments.deploy,
        {
            "data": data,
            "model": "transformer",
            "network": arguments.network,
            "seed": arguments.seed,
            "holdout": arguments.holdout,
            "length": length,
            **sizes,
        },
    )
    names = [f"attention_{block}" for block in range(arguments.blocks)]
    if arguments.network == "guide":
        names = ["attention"]
    file = out / "shrunk.keras"
    for line in describe_heads(file, names, arguments.heads):
        print(line)
    return results


if __name__ == "__main__":
    run(parse_arguments())
