"""Web pages that need nothing else: no network, no script."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable, Sequence

from keras_vd._backend.tables import (
    TABLE_STYLE,
    Headline,
    Report,
    html_note,
    html_table,
)
from keras_vd.version import __version__

# The colours of a page, in light and in dark. Pictures use the same names.
_LIGHT = {
    "page": "#ffffff",
    "card": "#f2f4f7",
    "ink": "#1b1f24",
    "quiet": "#57606a",
    "faint": "#c3c9d1",
    "blue": "#1668b3",
    "red": "#c4302b",
    "orange": "#b85c00",
    "green": "#1c7c3c",
    "purple": "#7a4fb5",
    "brown": "#7f5044",
    "pink": "#b8418f",
    "olive": "#7a7b12",
    "cyan": "#0f7f8c",
}
_DARK = {
    "page": "#14171b",
    "card": "#20252b",
    "ink": "#e4e8ed",
    "quiet": "#9aa5b1",
    "faint": "#525b66",
    "blue": "#6db3f2",
    "red": "#ff7b72",
    "orange": "#f0a04b",
    "green": "#66c783",
    "purple": "#bc9af2",
    "brown": "#c99c8e",
    "pink": "#f08cc8",
    "olive": "#cfd060",
    "cyan": "#5cccd9",
}


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {x};" for name, x in colours.items())


_STYLE = (
    f"""
:root {{ color-scheme: light dark; {_variables(_LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(_DARK)} }} }}
@media print {{ :root {{ {_variables(_LIGHT)} }} }}
"""
    + TABLE_STYLE
    + """
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 72rem; margin: 0 auto; padding: 1rem 1rem 3rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .6rem 0 .3rem; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 2.4rem 0 .8rem; }
h1, h2, figcaption, dt { overflow-wrap: anywhere; }
.note, footer, figcaption, dt, dd small { color: var(--quiet); }
.note { margin: .4rem 0; overflow-wrap: anywhere; }
.cards {
  display: grid; gap: .8rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 11rem), 1fr));
}
.cards > div {
  background: var(--card); border-radius: .6rem; padding: .7rem .9rem;
}
dt { font-size: .9rem; line-height: 1.3; }
dd { margin: 0; overflow-wrap: anywhere; }
dd b { display: block; font-size: 1.75rem; line-height: 1.25; }
dd small { display: block; font-size: .85rem; line-height: 1.4; }
.bar { height: .4rem; border-radius: .2rem; background: var(--faint); }
.bar { display: block; margin: .3rem 0; overflow: hidden; }
.bar span { display: block; height: 100%; background: var(--blue); }
.pictures {
  display: grid; gap: 1.2rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr));
}
figure { margin: 0; min-width: 0; }
figcaption { font-size: .95rem; margin-bottom: .2rem; }
svg { display: block; width: 100%; height: auto; max-width: 32rem; }
svg { fill: currentColor; }
svg * { stroke-linecap: butt; stroke-linejoin: round; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", sans-serif; }
.key { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
.key { font-size: .85rem; padding: 0; margin: .2rem 0 0; }
.key span {
  display: inline-block; width: 1rem; height: .25rem; margin-right: .4rem;
  vertical-align: middle;
}
.key li { overflow-wrap: anywhere; }
details { margin: 1rem 0; }
summary { cursor: pointer; padding: .3rem 0; }
/* A wide table scrolls below the names of its rows. */
.scroll { position: relative; }
.scroll tbody th, .scroll thead > tr > :first-child {
  position: sticky; left: 0; background: var(--page);
}
.scroll tbody th { min-width: 7rem; max-width: 42vw; overflow-wrap: anywhere; }
.scroll td:not(.figure) { min-width: 9rem; max-width: 30rem; }
footer { margin-top: 3rem; font-size: .85rem; }
@media (max-width: 40rem) {
  .cards { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .6rem; }
  dd b { font-size: 1.4rem; }
  .scroll { font-size: .9rem; }
}
"""
)

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body class="keras-vd">
<main>
<h1>{title}</h1>
{content}
<footer>keras_vd {version}</footer>
</main>
</body>
</html>
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page with a title.

    Attributes:
        title: Its title, as text.
        content: What it holds, as HTML.
    """

    title: str
    content: str


def html_page(
    title: str,
    lead: str,
    headlines: Iterable[Headline],
    sections: Iterable[Section],
) -> str:
    """Return a web page that needs nothing else.

    Args:
        title: Its title, as text.
        lead: What it is about, as text.
        headlines: What is shown in large letters.
        sections: What follows.
    """
    content = [
        html_note(lead),
        html_headlines(headlines),
        *(
            f"<section>\n<h2>{html.escape(section.title)}</h2>\n"
            f"{section.content}\n</section>"
            for section in sections
        ),
    ]
    return _PAGE.format(
        title=html.escape(title),
        style=_STYLE,
        content="\n".join(part for part in content if part),
        version=__version__,
    )


def html_headlines(headlines: Iterable[Headline]) -> str:
    """Return figures in large letters as a part of a page."""
    cards = [
        f"<div><dt>{html.escape(x.label)}</dt><dd><b>{html.escape(x.value)}</b>"
        f"{_comparison(x)}</dd></div>"
        for x in headlines
    ]
    if not cards:
        return ""
    return "\n".join(['<dl class="cards">', *cards, "</dl>"])


def _comparison(headline: Headline) -> str:
    """Return what a figure was before, as text and as a bar."""
    if not headline.before:
        return ""
    words = f"before: {headline.before}"
    bar = ""
    if headline.share is not None:
        percent = 100.0 * headline.share
        words += f" ({percent:.3g}% left)"
        width = f"{min(percent, 100.0):.2f}%"
        bar = f'<span class="bar"><span style="width: {width}"></span></span>'
    return f"{bar}<small>{html.escape(words)}</small>"


def report_section(title: str, report: Report, extra: str = "") -> Section:
    """Return the section of a report.

    Args:
        title: Title of the section, in place of that of the table.
        report: The report.
        extra: What stands above its table, as HTML.
    """
    table = html_table(report.to_table(), has_caption=False)
    return Section(title, "\n".join(x for x in (extra, table) if x))


def html_pictures(pictures: Sequence[str]) -> str:
    """Return pictures side by side, or below each other on a phone."""
    return "\n".join(['<div class="pictures">', *pictures, "</div>"])


def html_picture(
    caption: str, picture: str, key: Sequence[tuple[str, str]] = ()
) -> str:
    """Return a picture with what it shows.

    Args:
        caption: What it shows, as text.
        picture: The picture, as HTML.
        key: Names of lines, as text, and the names of their colours.
    """
    entries = [
        f'<li><span style="background: var(--{colour})"></span>'
        f"{html.escape(name)}</li>"
        for name, colour in key
    ]
    listed = f'<ul class="key">{"".join(entries)}</ul>\n' if entries else ""
    return (
        f"<figure>\n<figcaption>{html.escape(caption)}</figcaption>\n"
        f"{picture}\n{listed}</figure>"
    )
