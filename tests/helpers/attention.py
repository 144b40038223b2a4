"""What attention layers take, which is less in Keras 3.10 than in 3.15."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import pytest

_KNOWN = inspect.signature(keras.layers.MultiHeadAttention).parameters


def has(argument: str) -> bool:
    """Whether attention layers of this Keras take an argument."""
    return argument in _KNOWN


def needs(argument: str) -> Any:
    """A mark for what attention layers can only do with an argument."""
    return pytest.mark.skipif(
        not has(argument), reason=f"Attention of this Keras has no {argument}"
    )
