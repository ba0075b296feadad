"""A console for text from data and files of others, which prints what it is given as it stands; and tables on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from opmix_ray.harmless import visible


class PlainConsole(Console):
    """Rich's console, to which `[red]` is text and an escape sequence too."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See `Console.render`; control segments are rich's own."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def print_table(console: Console, value: Any) -> None:
    """A list of rows, or a mapping, as a table."""
    rows: Sequence[Mapping[str, Any]] = (
        [{"key": key, "value": entry} for key, entry in value.items()]
        if isinstance(value, Mapping)
        else value
    )
    if not rows:
        return
    table = Table(box=None, show_header=not isinstance(value, Mapping), pad_edge=False)
    for column in rows[0]:
        numeric = all(isinstance(row[column], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell(start) for start in row.values()))
    console.print(table)


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, Mapping):
        return "  ".join(f"{key} {cell(start)}" for key, start in value.items())
    return str(value)
