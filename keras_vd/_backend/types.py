"""Names for types that Python cannot tell apart."""

from __future__ import annotations

from typing import Any, TypeAlias

# A tensor of the running backend. Docstrings of functions give its shape.
Tensor: TypeAlias = Any
