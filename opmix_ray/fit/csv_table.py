"""A CSV file as text cells with a header, and its columns as numbers; every fault names file, line and column."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, field
from pathlib import Path

from opmix_ray.errors import UserError
from opmix_ray.fit.notation import Notation, is_missing, numbers, read_notation

DELIMITERS = ",;\t|"
_SEPARATOR_LINE = re.compile(r"^\s*\"?sep=(.)\"?\s*$", re.IGNORECASE)  # a spreadsheet's first line


@dataclass(frozen=True)
class CsvTable:
    """Cells of a file.

    Args:
        path: of the file.
        header: column names, each once.
        rows: cells, as many as the header has.
        lines: line of every row in the file, from 1.
        notation: how the file writes numbers where a column leaves it open.
    """

    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    notation: Notation = field(default_factory=Notation)

    def column(self, name: str) -> list[str]:
        """Cells of one column."""
        place = self.header.index(name)
        return [row[place] for row in self.rows]

    def notation_of(self, name: str) -> Notation:
        """How one column writes numbers."""
        return read_notation(self.column(name), self.notation)

    def numbers(self, name: str) -> list[float | None]:
        """One column as numbers: NaN where a cell is missing, None where it is something else."""
        return numbers(self.column(name), self.notation_of(name))

    def is_text(self, name: str) -> bool:
        """Whether a column holds words: something in it, and no number at all."""
        cells = self.column(name)
        return any(not is_missing(cell) for cell in cells) and all(
            value is None
            for cell, value in zip(cells, self.numbers(name), strict=True)
            if not is_missing(cell)
        )


def read_csv(path: str | Path) -> CsvTable:
    """Read a file with a header line; comma, semicolon, tab or bar separate its cells.

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
    lines = text.splitlines(keepends=True)
    said = _SEPARATOR_LINE.match(lines[0]) if lines else None
    skipped = 1 if said else 0
    try:
        delimiter = said[1] if said else _delimiter(lines)
        filled = _cells(lines[skipped:], delimiter, skipped)
    except csv.Error as error:
        raise UserError(f"is not CSV: {error}", file=path, remedy="mend it") from None
    if len(filled) < 2:
        problem = "has a header and no rows" if filled else "is empty"
        raise UserError(problem, file=path, remedy="give a header line and one line per run")
    header = filled[0][1]
    for name in header:
        if header.count(name) > 1:
            raise UserError("this column stands twice", file=path, key=name, remedy="rename or remove one")
    for line, cells in filled[1:]:
        if len(cells) != len(header):
            commas = delimiter == "," and len(cells) > len(header)
            raise UserError(
                f"line {line} has {len(cells)} cells, the header {len(header)}",
                file=path,
                remedy="mend the line; quote cells that hold the separator"
                + (", or separate by semicolons where numbers have decimal commas" if commas else ""),
            )
    rows = [cells for _, cells in filled[1:]]
    notation = read_notation(cell for cells in rows for cell in cells)
    return CsvTable(path, header, rows, [line for line, _ in filled[1:]], notation)


def _cells(lines: list[str], delimiter: str, before: int = 0) -> list[tuple[int, list[str]]]:
    """Line number and cells of every line that is not empty."""
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    stripped = ((before + reader.line_num, [cell.strip() for cell in cells]) for cells in reader)
    return [(line, cells) for line, cells in stripped if any(cells)]


def _delimiter(lines: list[str]) -> str:
    """What cuts the header into several cells and leaves the fewest lines with another number of them."""
    found = []
    for place, delimiter in enumerate(DELIMITERS):
        cells = [each for _, each in _cells(lines, delimiter)]
        if cells and len(cells[0]) > 1:
            ragged = sum(len(each) != len(cells[0]) for each in cells)
            found.append((ragged, -len(cells[0]), place, delimiter))
    return min(found)[-1] if found else ","
