"""Names that no two parts of a model share."""

from __future__ import annotations

from collections.abc import Iterable


class Names:
    """Names of layers and operations, which must be unique in a model."""

    def __init__(self, taken: Iterable[str]) -> None:
        self.taken = set(taken)

    def unique(self, name: str) -> str:
        """Return a free name, numbered if `name` is taken, and reserve it."""
        number, found = 1, name
        while found in self.taken:
            number += 1
            found = f"{name}_{number}"
        self.taken.add(found)
        return found
