"""Write the table of layers that the documentation shows.

    python -m tools.layer_table docs/layers.md

It is read from the tables of the package, where layers and rules enter
themselves: `tests/test_documentation.py` says when it is to be written anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import keras

from keras_vd.layers.base import COUNTERPARTS
from keras_vd.rules.rule import RULES, Rule

TEXT = """# Layers

What each layer of Keras can do here. *Variational form*: what `to_variational`
makes of it, and its `groups=`. *Bias*: whether `bias_posterior=` gives its bias
a posterior; in attention, those of the projections. *shrink*: whether it gets
smaller, or lets what is dead pass; layers that are not listed are kept whole.
*Factors*: whether `to_deterministic` can put the factors of a gate into its
weights, or let them pass on to the layers after it. *MACs*: whether its
multiplications are counted. This page is written by
`python -m tools.layer_table docs/layers.md`.

`PositionEmbedding` of KerasHub becomes `VDPositionEmbedding`, whose groups are
`"positions"` and `"features"`: it is there where KerasHub is installed.

"""
HEADER = (
    *("Keras layer", "variational form", "groups", "bias"),
    *("shrink", "factors", "MACs"),
)


def _exported_names() -> dict[type, str]:
    """Return the name under which Keras exports each of its layers.

    Of several it is that of the class, which is the one that people know; but
    `GroupQueryAttention`, for one, is exported under another name only.
    """
    found: dict[type, str] = {}
    for name, value in vars(keras.layers).items():
        if isinstance(value, type) and found.get(value) != value.__name__:
            found[value] = name
    return found


NAMES = _exported_names()


def row(cls: type) -> tuple[str, ...]:
    """Make the cells of one Keras layer."""
    form = COUNTERPARTS.get(cls)
    rule = RULES.get(cls)
    factors = ""
    if rule is not None:
        if _has(rule, "absorbed"):
            factors = "takes in"
        elif _has(rule, "passed_on"):
            factors = "lets pass"
    groups = form._available_groups if form is not None else ()
    return (
        f"`{NAMES[cls]}`",
        f"`{form.__name__}`" if form is not None else "",
        ", ".join(f'`"{group}"`' for group in groups),
        "yes" if form is not None and form._knows_biases else "",
        "yes" if rule is not None else "",
        factors,
        "yes" if rule is not None and _has(rule, "macs") else "",
    )


def _has(rule: type[Rule], name: str) -> bool:
    return getattr(rule, name).__func__ is not getattr(Rule, name).__func__


def page() -> str:
    """Return the whole page."""
    layers = [cls for cls in {*COUNTERPARTS, *RULES} if cls in NAMES]
    # Those with a variational form come first.
    layers.sort(key=lambda cls: (cls not in COUNTERPARTS, NAMES[cls]))
    lines = [HEADER, ["---"] * len(HEADER), *map(row, layers)]
    return TEXT + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.parse_args().file.write_text(page())


if __name__ == "__main__":
    main()
