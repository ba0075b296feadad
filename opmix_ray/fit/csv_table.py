"""A CSV file as text cells with a header, and cells as numbers; every fault names file, line and column."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from opmix_ray.errors import UserError

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "-", "<na>"})
DELIMITERS = ",;\t"


@dataclass(frozen=True)
class CsvTable:
    """Cells of a file.

    Args:
        path: of the file.
        header: column names, each once.
        rows: cells, as many as the header has.
        lines: line of every row in the file, from 1.
    """

    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]

    def column(self, name: str) -> list[str]:
        """Cells of one column."""
        place = self.header.index(name)
        return [row[place] for row in self.rows]


def read_csv(path: str | Path) -> CsvTable:
    """Read a file with a header line; comma, semicolon or tab separate its cells.

    Raises:
        UserError: it is missing, not text, or has no rows; a line has more or fewer cells than the header; a
            column name stands twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError("no such file", file=path, remedy="check the path") from None
    except IsADirectoryError:
        raise UserError("is a directory", file=path, remedy="name a CSV file") from None
    except UnicodeDecodeError:
        raise UserError("is not text", file=path, remedy="name a CSV file in UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", file=path, remedy="check the path") from None
    first = text.lstrip().partition("\n")[0]
    delimiter = max(DELIMITERS, key=first.count)
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, skipinitialspace=True)
    try:
        stripped = ((reader.line_num, [cell.strip() for cell in cells]) for cells in reader)
        filled = [(line, cells) for line, cells in stripped if any(cells)]
    except csv.Error as error:
        raise UserError(
            f"is not CSV in line {reader.line_num}: {error}", file=path, remedy="mend it"
        ) from None
    if len(filled) < 2:
        problem = "has a header and no rows" if filled else "is empty"
        raise UserError(problem, file=path, remedy="give a header line and one line per run")
    header = filled[0][1]
    for name in header:
        if header.count(name) > 1:
            raise UserError("this column stands twice", file=path, key=name, remedy="rename or remove one")
    for line, cells in filled[1:]:
        if len(cells) != len(header):
            raise UserError(
                f"line {line} has {len(cells)} cells, the header {len(header)}",
                file=path,
                remedy="mend the line; quote cells that hold the separator",
            )
    return CsvTable(path, header, [cells for _, cells in filled[1:]], [line for line, _ in filled[1:]])


def is_missing(cell: str) -> bool:
    """Whether a cell says that there is no value."""
    return cell.lower() in MISSING


def number(cell: str) -> float | None:
    """A cell as a number: NaN where it is missing, None where it is something else."""
    if is_missing(cell):
        return math.nan
    try:
        return float(cell)
    except ValueError:
        return None


def is_text(cells: Sequence[str]) -> bool:
    """Whether a column holds words: something in it, and no number at all."""
    return any(not is_missing(cell) for cell in cells) and all(
        is_missing(cell) or number(cell) is None for cell in cells
    )
