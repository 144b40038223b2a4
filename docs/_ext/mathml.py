"""Write formulas as MathML, which browsers draw without any script or font."""

from __future__ import annotations

import html
import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

# A function and its argument without parentheses, which TeX sets apart.
_APPLIED = re.compile(r"(<mi>(?:log|exp|max)</mi>)(?=<m(?:i|sup|sub|frac)\b)")


def _mathml(formula: str, display: str) -> str:
    return _APPLIED.sub(
        r'\1<mspace width="0.167em" />', convert(formula, display=display)
    )


def _inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(_mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(self: HTML5Translator, node: nodes.math_block) -> None:
    formula = _mathml(node.astext(), "block")
    # A formula that is wider than a phone scrolls by itself.
    label = html.escape(f"Formula: {node.astext().strip()}", quote=True)
    self.body.append(
        f'<div class="formula" tabindex="0" aria-label="{label}">'
        f"{formula}</div>\n"
    )
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Enter the renderer, which `html_math_renderer = "mathml"` chooses."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
