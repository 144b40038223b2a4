"""Read the docstrings of the package, which are plain text, as reST.

They have single backticks around code, `theta**2` and `|w|` in sentences, and
formulas as indented lines.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

_CODE = re.compile(r"(``[^`]+``|`[^`]+`)")
_SECTION = re.compile(r"[A-Z][\w ]*:$")
# Text of properties, until napoleon has seen it.
_PROPERTIES: dict[str, list[str]] = {}
_MARKED = re.compile(r"\*\*([^\s*][^*\n]*[^\s*])\*\*(?![\w*])")


def _escaped(line: str) -> str:
    """Escape what is no markup in a line of a sentence."""
    parts = _CODE.split(line)
    # Every second part is code.
    parts[::2] = [re.sub(r"([*|\\])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def _plain(lines: list[str]) -> list[str]:
    """Return the lines of a docstring as reST."""
    result: list[str] = []
    is_text, is_example, is_formula = True, False, False
    is_shown = False
    for line in lines:
        if line == "Example:":
            # Its lines may be indented or not, and are no part of a paragraph.
            result += [".. rubric:: Example", ""]
            is_text, is_shown = False, True
            continue
        if _SECTION.match(line):
            is_shown = False
        if is_shown:
            line = line.removeprefix("    ")
        is_indented = line.startswith("    ")
        if _SECTION.match(line):
            is_text = False
        is_example = line.strip().startswith((">>>", "...")) or (
            is_example and bool(line.strip())
        )
        if is_text and is_indented:
            if not is_formula and not (result and result[-1]):
                result += ["::", ""]
                is_formula = True
            result.append(line if is_formula else _escaped(line))
            continue
        is_formula = is_formula and not line.strip()
        result.append(line if is_example else _escaped(line))
    return result


def _process(
    app: Sphinx,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    lines: list[str],
) -> None:
    if what == "module":
        # Pages have introductions of their own.
        del lines[:]
        return
    text = _MARKED.sub(r"\1", "\n".join(lines))
    lines[:] = _plain(text.split("\n"))
    if what in ("attribute", "property"):
        _PROPERTIES[name] = list(lines)


def _restore(
    app: Sphinx,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    lines: list[str],
) -> None:
    # Napoleon takes what stands before a colon for the type of a property.
    lines[:] = _PROPERTIES.pop(name, lines)


def setup(app: Sphinx) -> dict[str, Any]:
    """Process docstrings before napoleon does, whose priority is 500."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("autodoc-process-docstring", _restore, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
