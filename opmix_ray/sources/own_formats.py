"""File formats that other packages bring along: a function from a file's path or URI to rows.

    # in the package, registered under [project.entry-points."opmix_ray.sources"]
    def read(path: str) -> Iterator[Mapping[str, Any]]:
        yield {"text": "..."}

A domain with `format: <name>` is read with it. Rows become documents by the same columns as those of other formats,
and prepared data are found again by the files' content, so the same bytes must give the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from opmix_ray import plugins
from opmix_ray.config.data import BuiltInFormat
from opmix_ray.errors import UserError
from opmix_ray.sources import plain, readers
from opmix_ray.sources.files import reading

Read = Callable[[str], Iterator[Mapping[str, Any]]]


def check_format(name: str, key: str) -> None:
    """Refuse a format that nobody reads.

    Args:
        name: as configured.
        key: configuration key of the source, for the error.

    Raises:
        UserError: names the formats there are.
    """
    known = [*get_args(BuiltInFormat), *plugins.names("sources")]
    if name not in known:
        raise UserError(
            "no such format", key=f"{key}.format", value=name, remedy=f"known: {', '.join(known)}"
        )


def reader(name: str) -> Callable[[str, dict[str, str], str], Iterator[readers.Row]]:
    """What reads the rows of a file format, built in or brought along."""
    found = (readers.READERS | plain.READERS).get(name)
    if found is not None:
        return found
    read: Read = plugins.find("sources", name)

    def rows(file: str, columns: dict[str, str], key: str) -> Iterator[readers.Row]:
        seen: set[str] = set()
        with reading(file, f"{key}.path"):
            for number, row in enumerate(read(file), start=1):
                for option, column in columns.items():
                    if column not in seen and column not in row and option not in readers.OPTIONAL:
                        raise readers.missing_column(file, f"{key}.{option}", column, row)
                    seen.add(column)
                yield readers.Row([row.get(column) for column in columns.values()], f"row {number}")

    return rows
