"""Options for a size, or a quality, instead of a KL weight."""

from __future__ import annotations

import argparse
from typing import Any

import keras_vd
from experiments.common import fail
from keras_vd.callbacks.wishes import NAMES


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    for name in NAMES[:-1]:
        option = "--" + name.replace("_", "-")
        group.add_argument(option, type=_number, help="instead of a KL weight")
    group.add_argument(
        "--budget",
        type=float,
        help="points of accuracy to lose on held-out data, at most",
    )


def _number(text: str) -> float:
    """An int where it is written as one: a number and not a share."""
    return int(text) if text.isdecimal() else float(text)


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `KLTarget` for the wish, or nothing."""
    found = {
        name: getattr(arguments, name)
        for name in NAMES
        if getattr(arguments, name) is not None
    }
    if "budget" in found:
        return {
            "budget": found["budget"] / 100.0,
            "monitor": "val_accuracy",
        }
    return found


def check(arguments: argparse.Namespace, has_held_out: bool) -> None:
    """End the program if there is a wish that cannot be.

    Args:
        arguments: Of the command line.
        has_held_out: Whether training is judged on held-out data.
    """
    wish = given(arguments)
    if not wish:
        return
    if getattr(arguments, "kl_weight", None) is not None:
        fail("--kl-weight is what a wish for a size finds by itself")
    if "budget" in wish and not has_held_out:
        fail("--budget is one of held-out data: give --holdout, too")
    try:
        keras_vd.callbacks.KLTarget(1, **wish)
    except (TypeError, ValueError) as error:
        fail(str(error))
