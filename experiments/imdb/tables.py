"""Tables of experiments.imdb."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import rich.console
import rich.table

import keras_vd
from experiments.imdb.models import Alive, Network

# Lobacheva et al. 2017, Chirkova et al. 2018: words, features, units.
PUBLISHED = (20_000, 300, 128)


def lstm_weights(vocabulary: int, features: int, units: int) -> int:
    """Weights of embedding, LSTM and output, biases not counted."""
    return vocabulary * features + 4 * units * (features + units) + units


def describe_sparsity(
    before: Network,
    start: keras_vd.reports.SparsityReport,
    end: keras_vd.reports.SparsityReport,
    alive: Alive,
) -> dict[str, Any]:
    """What is left, against what the training started from.

    Args:
        before: The network before training.
        start: Report of the network before training.
        end: Report of the network in the end, what is dead removed.
        alive: What has an effect in the end.
    """
    matrices = [
        {
            "name": first.name,
            "shape": list(first.shape),
            "weights": first.weights,
            "nonzero": last.nonzero,
        }
        for first, last in zip(start.rows, end.rows, strict=True)
    ]
    nonzero = max(1, end.nonzero)
    with_biases = max(1, end.nonzero + end.nonzero_biases)
    gates = sum(
        row.outputs for row in start.rows if row.name.endswith("t_kernel")
    )
    return {
        "matrices": matrices,
        "weights": start.weights,
        "nonzero": end.nonzero,
        "n_active": end.n_active,
        "ratio": start.weights / nonzero,
        "ratio_with_biases": (start.weights + start.biases) / with_biases,
        "ratio_to_published": lstm_weights(*PUBLISHED) / nonzero,
        "kept": {
            "words": [len(alive.words), before.vocabulary],
            "features": [len(alive.features), before.features],
            "units": [
                sum(map(len, alive.units)),
                before.units * len(alive.units),
            ],
            "gates": [alive.gates, gates],
        },
    }


def word_effects(
    model: keras.Sequential, words: list[str]
) -> list[tuple[str, float]]:
    """What each word does to the logit of a text that consists of it alone.

    Args:
        model: The network, with logits for outputs.
        words: Its words by id; the first two are no words.

    Returns:
        Words and changes against an empty text, largest first.
    """
    ids = np.zeros((len(words), 1), "int32")
    ids[2:, 0] = range(2, len(words))
    logits = model.predict(ids, batch_size=500, verbose=0)[:, 0]
    effects = [
        (word, float(effect))
        for word, effect in zip(words[2:], logits[2:] - logits[0], strict=True)
    ]
    return sorted(effects, key=lambda item: -item[1])


def print_summary(results: dict[str, Any]) -> None:
    """Print the tables of a run."""
    console = rich.console.Console(width=100)
    sparsity = results.get("sparsity")
    if sparsity:
        table = rich.table.Table(title="Non-zero weights")
        for header in ("matrix", "shape at start", "weights", "non-zero"):
            table.add_column(header, justify="right")
        for row in sparsity["matrices"]:
            shape = "x".join(map(str, row["shape"]))
            counts = (f"{row['weights']:,}", f"{row['nonzero']:,}")
            table.add_row(row["name"], shape, *counts)
        table.add_row(
            "all", "", f"{sparsity['weights']:,}", f"{sparsity['nonzero']:,}"
        )
        console.print(table)
        kept = ", ".join(
            f"{left} of {total} {name}"
            for name, (left, total) in sparsity["kept"].items()
        )
        console.print(f"kept: {kept}")
        console.print(
            f"weights per non-zero one: {sparsity['ratio']:.0f}, with biases: "
            f"{sparsity['ratio_with_biases']:.0f}"
        )
        if "ratio_to_published" in sparsity:
            console.print(
                "weights of the published network per non-zero one of this: "
                f"{sparsity['ratio_to_published']:.0f}"
            )
    table = rich.table.Table(title=f"{results['model']}, {results['method']}")
    table.add_column("model")
    table.add_column("accuracy %", justify="right")
    for stage, accuracy in results["accuracy_percent"].items():
        table.add_row(stage, f"{accuracy:.2f}")
    console.print(table)
    if "words" in results:
        _print_words(console, results)


def _print_words(
    console: rich.console.Console, results: dict[str, Any]
) -> None:
    effects = results["words"]
    for sign, chosen in (
        ("+", [x for x in effects if x[1] > 0]),
        ("-", [x for x in reversed(effects) if x[1] < 0]),
    ):
        shown = " ".join(word for word, _ in chosen[:40])
        more = " ..." if len(chosen) > 40 else ""
        console.print(f"{len(chosen)} words {sign}: {shown}{more}")
    if "words_that_matter" in results:
        known = set(results["words_that_matter"])
        found = {word for word, _ in effects}
        console.print(
            f"of {len(known)} words that matter {len(known & found)} were "
            f"kept, and {len(found - known)} others"
        )
