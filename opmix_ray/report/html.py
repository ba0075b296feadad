"""HTML in small pieces; whatever is given as text is escaped here and nowhere else."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

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
    """A table that scrolls inside its own box.

    Args:
        head: column titles.
        rows: cells as plain text; the first one names the row.
        caption: what it shows, with units.
        text_columns: columns from the left that hold words; the others are set as numbers.
        marked: class of each row, where it has one.
    """
    top = "".join(
        f'<th scope="col"{_class("t" if i < text_columns else "")}>{esc(cell)}</th>'
        for i, cell in enumerate(head)
    )
    body = []
    for number, row in enumerate(rows):
        cells = "".join(
            f"<td{_class('t' if i < text_columns else '')}>{code_marks(cell)}</td>"
            for i, cell in enumerate(row[1:], 1)
        )
        kind = marked[number] if number < len(marked) else ""
        first = f'<th scope="row" class="t" title="{esc(row[0])}">{esc(row[0])}</th>'
        body.append(f"<tr{_class(kind)}>{first}{cells}</tr>")
    return (
        f'<p class="caption">{esc(caption)}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{esc(caption)}"><table>'
        f"<thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def fold(title: str, content: str, *, opened: bool = False) -> str:
    """A part that opens on a click."""
    return f"<details{' open' if opened else ''}><summary>{esc(title)}</summary>{content}</details>"


def section(title: str, content: str, *, name: str = "", level: int = 2) -> str:
    """A heading and what belongs to it."""
    mark = f' id="{esc(name)}"' if name else ""
    return f"<section{mark}><h{level}>{esc(title)}</h{level}>{content}</section>"


def _class(kind: str) -> str:
    return f' class="{esc(kind)}"' if kind else ""
