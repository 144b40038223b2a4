"""Reports that can be read in a terminal and in a notebook."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from typing import Any

import rich.console
import rich.table

WIDTH = 110  # characters; wide enough for every report's columns
# `rich` fills in the table.
_FRAGMENT = '<pre style="font-family:monospace">{code}</pre>'

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font-family: sans-serif; margin: 2em; }}
img {{ max-width: 100%; }}
pre {{ overflow-x: auto; }}
</style>
</head>
<body>
<h1>{title}</h1>
{sections}
</body>
</html>
"""


class Report:
    """Mixin that shows a report as its table, in terminals and notebooks."""

    def to_table(self) -> rich.table.Table:
        """Return the report as a table to print with `rich`."""
        raise NotImplementedError(
            f"{type(self).__name__} must implement `to_table`."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all of the report as plain Python values, ready for JSON."""
        raise NotImplementedError(
            f"{type(self).__name__} must implement `to_dict`."
        )

    def _repr_html_(self) -> str:
        return html_fragment(self)

    def __str__(self) -> str:
        text = io.StringIO()
        console = rich.console.Console(
            file=text, width=WIDTH, color_system=None
        )
        console.print(self.to_table())
        return text.getvalue()


def as_lists(value: Any) -> Any:
    """Turn tuples, at any depth, into what JSON reads back in their place."""
    if isinstance(value, dict):
        return {key: as_lists(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [as_lists(x) for x in value]
    return value


def html_fragment(report: Report) -> str:
    """Return the table of a report as a part of a web page."""
    console = rich.console.Console(file=io.StringIO(), width=WIDTH, record=True)
    console.print(report.to_table())
    return console.export_html(inline_styles=True, code_format=_FRAGMENT)


def html_page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return a web page that needs nothing else.

    Args:
        title: Its title, as text.
        sections: Titles and contents of its sections, as HTML.
    """
    return _PAGE.format(
        title=html.escape(title),
        sections="\n".join(
            f"<h2>{heading}</h2>\n{content}" for heading, content in sections
        ),
    )
