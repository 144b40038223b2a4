"""Reports that can be read in a terminal, in a notebook and on a web page."""

from __future__ import annotations

import dataclasses
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

import rich.console
import rich.table
import rich.text

WIDTH = 110  # characters; wide enough for every report's columns

# Greys that are seen on white and on black, as a notebook may be either.
TABLE_STYLE = """
.keras-vd .scroll { overflow-x: auto; }
.keras-vd table {
  border-collapse: collapse; font-variant-numeric: tabular-nums;
}
.keras-vd caption { text-align: left; font-weight: 600; padding: .4em .6em; }
.keras-vd th, .keras-vd td {
  border: 0; border-bottom: 1px solid rgba(128, 128, 128, .3);
  padding: .35em .6em; text-align: left; vertical-align: top;
}
.keras-vd thead th { vertical-align: bottom; }
.keras-vd tbody th { font-weight: inherit; }
.keras-vd .figure { text-align: right; white-space: nowrap; }
.keras-vd tbody + tbody { border-top: 2px solid rgba(128, 128, 128, .6); }
.keras-vd .note { font-size: .9em; white-space: pre-line; }
"""


@dataclasses.dataclass(frozen=True)
class Headline:
    """A figure that a page shows in large letters.

    Attributes:
        label: What it is, in words.
        value: The figure, as text.
        before: What it was before, as text; empty if that is not known.
        share: Of a size: what is left, as a share of what was there; None
            where that says nothing.
    """

    label: str
    value: str
    before: str = ""
    share: float | None = None


class Report:
    """Mixin that shows a report as its table, in terminals and notebooks.

    Attributes:
        is_about_sizes: Whether its headlines are about the model as such, and
            stand at the top of a page.
    """

    is_about_sizes = False

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

    def headlines(self) -> tuple[Headline, ...]:
        """Return what a page about it shows in large letters."""
        return ()

    def lead(self) -> str:
        """Return what a page about it says first."""
        return ""

    def parts(self) -> dict[str, Report]:
        """Return the reports that a page about it shows, by their titles."""
        return {_plain(self.to_table().title): self}

    def _repr_html_(self) -> str:
        return (
            f'<div class="keras-vd"><style>{TABLE_STYLE}</style>\n'
            f"{html_table(self.to_table())}\n</div>"
        )

    def __str__(self) -> str:
        return table_text(self.to_table())


def table_text(table: rich.table.Table) -> str:
    """Return a table as `print` shows it."""
    text = io.StringIO()
    console = rich.console.Console(
        file=text,
        width=WIDTH,
        color_system=None,
        # Names of layers are no markup, and not what notebooks show apart
        # from what is printed.
        markup=False,
        emoji=False,
        force_jupyter=False,
    )
    console.print(table)
    return text.getvalue()


def as_lists(value: Any) -> Any:
    """Turn tuples, at any depth, into what JSON reads back in their place."""
    if isinstance(value, dict):
        return {key: as_lists(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [as_lists(x) for x in value]
    return value


def size_headline(
    label: str, before: int | None, after: int | None
) -> tuple[Headline, ...]:
    """Return the headline of a size, or none if it is not known."""
    if after is None:
        return ()
    if before is None:
        return (Headline(label, f"{after:,}"),)
    share = after / before if before else None
    return (Headline(label, f"{after:,}", f"{before:,}", share),)


def html_table(table: rich.table.Table, has_caption: bool = True) -> str:
    """Return a table as a part of a web page.

    Columns without any text are left out.

    Args:
        table: A table whose cells are text.
        has_caption: Whether its title is shown, too.
    """
    title = html.escape(_plain(table.title))
    columns = [
        (column, cells)
        for column in table.columns
        if any(cells := [_plain(cell) for cell in column.cells])
    ]
    kinds = [
        ' class="figure"' if column.justify == "right" else ""
        for column, _ in columns
    ]
    headers = [_plain(column.header) for column, _ in columns]
    head = "".join(
        f'<th scope="col"{kind}>{html.escape(header)}</th>'
        if header
        else f"<td{kind}></td>"
        for kind, header in zip(kinds, headers, strict=True)
    )
    bodies: list[list[str]] = [[]]
    rows = zip(*(cells for _, cells in columns), strict=True)
    for row, texts in zip(table.rows, rows, strict=True):
        bodies[-1].append(f"<tr>{_cells(texts, kinds)}</tr>")
        if row.end_section:
            bodies.append([])
    parts = [
        f'<div class="scroll" role="region" tabindex="0" aria-label="{title}">',
        "<table>",
        f"<caption>{title}</caption>" if has_caption and title else "",
        f"<thead><tr>{head}</tr></thead>",
        *("\n".join(["<tbody>", *x, "</tbody>"]) for x in bodies if x),
        "</table></div>",
        html_note(_plain(table.caption)),
    ]
    return "\n".join(part for part in parts if part)


def html_note(text: str) -> str:
    """Return text as a small paragraph that keeps its lines, or nothing."""
    return f'<p class="note">{html.escape(text)}</p>' if text else ""


def simple_table(
    title: str, headers: Sequence[str], rows: Iterable[Sequence[str]]
) -> rich.table.Table:
    """Return a table of figures with the names of its rows first."""
    table = rich.table.Table(title=title)
    for i, header in enumerate(headers):
        table.add_column(header, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _cells(cells: Sequence[str], kinds: Sequence[str]) -> str:
    """Return the cells of a row, whose first one names it unless empty."""
    parts = []
    for i, (text, kind) in enumerate(zip(cells, kinds, strict=True)):
        tag, scope = ("th", ' scope="row"') if text and i == 0 else ("td", "")
        parts.append(f"<{tag}{scope}{kind}>{html.escape(text)}</{tag}>")
    return "".join(parts)


def _plain(content: Any) -> str:
    """Return what `rich` shows of a title or cell, as text."""
    if content is None:
        return ""
    return content.plain if isinstance(content, rich.text.Text) else content
