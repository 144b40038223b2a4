"""Names for types that Python cannot tell apart."""

from __future__ import annotations

from typing import Any, TypeAlias

# Of the running backend. Its shape is in the docstring of what takes it.
Tensor: TypeAlias = Any
