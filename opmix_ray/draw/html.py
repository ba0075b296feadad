"""HTML in small pieces, escaped here and nowhere else; and the page around a body: styles, a script for tables."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files

from opmix_ray.draw.numbers import parsed
from opmix_ray.draw.panel import css

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def esc(text: object) -> str:
    """Text made safe for content and attributes; control characters become a replacement mark."""
    return html.escape(_CONTROL.sub("\ufffd", str(text)), quote=True)


def paragraph(*parts: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p{_class(kind)}>{esc(' '.join(parts))}</p>"


def items(texts: Iterable[object]) -> str:
    """A list of plain texts; text in backticks becomes code."""
    lines = "".join(f"<li>{code_marks(text)}</li>" for text in texts)
    return f"<ul>{lines}</ul>" if lines else ""


def code_marks(text: object) -> str:
    """Escaped text in which what stands in backticks is set as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", esc(text))


def table(
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    caption: str,
    text_columns: int = 1,
    marked: Sequence[str] = (),
) -> str:
    """A table that scrolls inside its own box and is sorted by a click on a heading.

    Args:
        head: column titles.
        rows: cells as plain text; the first one names the row.
        caption: what it shows, with units.
        text_columns: columns from the left that hold words; the others are set as numbers.
        marked: classes of each row, where it has any; `foot`: it stays at the bottom.
    """
    top = "".join(
        f'<th scope="col"{_class("t" if i < text_columns else "")}><button type="button">{esc(cell)}</button></th>'
        for i, cell in enumerate(head)
    )
    body = []
    for number, row in enumerate(rows):
        cells = "".join(
            f'<td class="t">{code_marks(cell)}</td>'
            if i < text_columns
            else f'<td data-value="{parsed(cell)}">{code_marks(cell)}</td>'
            for i, cell in enumerate(row[1:], 1)
        )
        kind = marked[number] if number < len(marked) else ""
        first = f'<th scope="row" class="t">{esc(row[0])}</th>'
        body.append(f"<tr{_class(kind)}>{first}{cells}</tr>")
    return (
        f'<p class="caption">{esc(caption)}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{esc(caption)}"><table>'
        f"<thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def contents(entries: Iterable[tuple[str, str]]) -> str:
    """Links to sections of the page: their names and titles."""
    lines = "".join(f'<li><a href="#{esc(name)}">{esc(title)}</a></li>' for name, title in entries)
    return f'<nav aria-label="contents"><ul>{lines}</ul></nav>' if lines else ""


def tiles(entries: Iterable[tuple[str, str]]) -> str:
    """Numbers with a label each, in boxes."""
    boxes = "".join(f"<div><b>{esc(value)}</b><span>{esc(label)}</span></div>" for value, label in entries)
    return f'<div class="tiles">{boxes}</div>'


def lines_of(text: str, most: int) -> list[str]:
    """A name in lines of at most so many characters; nothing of it is lost but spaces at the breaks."""
    lines = []
    while len(text) > most:
        at = max(text.rfind(mark, 1, most) for mark in " _-/.") + 1
        at = at if at > most // 3 else most
        lines.append(text[:at].rstrip())
        text = text[at:].lstrip()
    return [*lines, text]


def fold(title: str, content: str, *, opened: bool = False) -> str:
    """A part that opens on a click."""
    return f"<details{' open' if opened else ''}><summary>{esc(title)}</summary>{content}</details>"


def section(title: str, content: str, *, name: str = "", level: int = 2) -> str:
    """A heading and what belongs to it."""
    mark = f' id="{esc(name)}"' if name else ""
    return f"<section{mark}><h{level}>{esc(title)}</h{level}>{content}</section>"


def _class(kind: str) -> str:
    return f' class="{esc(kind)}"' if kind else ""


def shell(
    title: str, body: str, *, footer: str = "", style: str = "", script: str = "", live: bool = False
) -> str:
    """A whole page as one HTML text, whose browser runs no script but ours.

    Args:
        title: plain text.
        body: HTML of everything above the footer.
        footer: plain text.
        style: rules beside the common ones.
        script: beside the one that sorts tables.
        live: whether the page may ask its own server for news.
    """
    ours = resource("sort.js") + script
    digest = base64.b64encode(hashlib.sha256(ours.encode()).digest()).decode()
    allowed = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    allowed += "; connect-src 'self'" if live else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{allowed}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{esc(title)}</title><style>{css()}{resource('style.css')}{style}</style></head>\n"
        f"<body>{body}\n<footer>{esc(footer)}</footer>\n<script>{ours}</script></body></html>\n"
    )


def resource(name: str) -> str:
    """A style sheet or script that ships."""
    return files("opmix_ray.draw").joinpath(name).read_text(encoding="utf-8")
