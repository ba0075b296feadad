"""How commands print: tables and words for a person, JSON for a program."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Any

from opmix_ray.visible import visible

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """As wide as the terminal; lines are not folded where there is none."""
    from opmix_ray.commands.console import PlainConsole  # rich takes a third of a second to import

    if sys.stdout.isatty():
        return PlainConsole()
    return PlainConsole(width=1000, no_color=True, force_terminal=False)


def show(value: Any, words: Any, as_json: bool) -> None:
    """Print a result.

    Args:
        value: for a program.
        words: for a person: text, or a table as a list of rows or a mapping.
        as_json: which of the two.
    """
    if as_json:
        print(visible(json.dumps(plain(value), ensure_ascii=False, allow_nan=False)))
    elif isinstance(words, str):
        print(visible(words))
    else:
        from opmix_ray.commands.tables import print_table

        print_table(console(), words)


def plain(value: Any) -> Any:
    """A value that JSON can hold: there are no infinite numbers in it."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
