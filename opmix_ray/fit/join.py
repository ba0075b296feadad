"""Which lines of two files are the same run: by their names as they are written.

`1e3` and `1000`, `007` and `7` are different runs. Only `7.0`, as pandas writes an index with gaps, is `7`, and only
where nothing else is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from opmix_ray.errors import UserError
from opmix_ray.fit.csv_table import CsvTable

KEYS = (("run", "run_id"), ("index",), ("name",))  # what rows are joined by, the best first
_WITH_ZERO = re.compile(r"^-?\d+\.0+$")


def join_columns(ratios: CsvTable, metrics: CsvTable) -> tuple[str, str]:
    """The column of each file to join by: the first kind that both have and that names every row once.

    Raises:
        UserError: there is none.
    """
    doubled: UserError | None = None
    for group in KEYS:
        pair = [
            next((name for wanted in group for name in table.header if name.lower() == wanted), None)
            for table in (ratios, metrics)
        ]
        if pair[0] is None or pair[1] is None:
            continue
        faults = [_doubled(ratios, pair[0]), _doubled(metrics, pair[1])]
        if not any(faults):
            return pair[0], pair[1]
        doubled = doubled or next(fault for fault in faults if fault)
    if doubled:
        raise doubled
    raise UserError(
        f"shares no column with {metrics.path.name} to join runs by",
        file=ratios.path,
        remedy="give both files a column `run` (or `run_id`, `index`, `name`)",
    )


def partners(first: Sequence[str], second: Sequence[str]) -> list[int | None]:
    """For every run of the first list its place in the second, or None."""
    place_of = {run: place for place, run in enumerate(second)}
    found = [place_of.get(run) for run in first]
    open_first = [place for place, partner in enumerate(found) if partner is None]
    taken = set(found)
    open_second = [place for place in range(len(second)) if place not in taken]
    left, right = _by_plain(first, open_first), _by_plain(second, open_second)
    for name, places in left.items():
        there = right.get(name, [])
        if len(places) == 1 and len(there) == 1:
            found[places[0]] = there[0]
    return found


def _by_plain(runs: Sequence[str], places: Sequence[int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for place in places:
        found.setdefault(plain(runs[place]), []).append(place)
    return found


def plain(run: str) -> str:
    """A run's name without the `.0` that a table of numbers puts behind it."""
    return run.partition(".")[0] if _WITH_ZERO.match(run) else run


def _doubled(table: CsvTable, key: str) -> UserError | None:
    first: dict[str, int] = {}
    for line, run in zip(table.lines, table.column(key), strict=True):
        if not run:
            return UserError(f"line {line} names no run", file=table.path, key=key, remedy="fill it in")
        if run in first:
            return UserError(
                f"lines {first[run]} and {line} are the same run",
                file=table.path,
                key=key,
                value=run,
                remedy="keep one line per run",
            )
        first[run] = line
    return None
