"""A CSV file as text cells with a header, its columns as numbers, and rows of two files joined by their runs.

Every fault names file, line and column.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from opmix_ray.errors import UserError

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "-", "--", "<na>", "#n/a"})
_SPACES = re.compile(r"(?<=\d)[ \u00a0\u2009\u202f'’](?=\d{3}(?!\d))")  # between thousands
_NUMBER = re.compile(r"^([+-]?)([\d.,]+)(e[+-]?\d+)?$", re.IGNORECASE)
_OPEN_COMMA = re.compile(r"^[1-9]\d{0,2},\d{3}$")  # 1,234: decimal or thousands
_THOUSANDS_COMMA = re.compile(r"^\d{1,3}(,\d{3})+(\.\d*)?$")
_THOUSANDS_POINT = re.compile(r"^\d{1,3}(\.\d{3})+(,\d*)?$")
_PERCENT = re.compile(r"\s*[%٪]\s*$")


@dataclass(frozen=True)
class Notation:
    """How a column or file writes numbers.

    Args:
        decimal_comma: 0,5 is a half; else a comma separates thousands.
        percent: some cells carry a per cent sign, and are read as parts of 1.
    """

    decimal_comma: bool = False
    percent: bool = False


def is_missing(cell: str) -> bool:
    """Whether a cell says that there is no value."""
    return cell.strip().lower() in MISSING


def number(cell: str, notation: Notation | None = None) -> float | None:
    """A cell as a number: NaN where it is missing, None where it is something else; `12 %` is 0.12."""
    if is_missing(cell):
        return math.nan
    plain = _PERCENT.sub("", cell)
    unit = 1.0 if plain == cell else 0.01
    plain = _SPACES.sub("", plain.strip().replace("\u2212", "-"))
    found = _NUMBER.match(plain)
    if found is None or not any(letter.isdigit() for letter in found[2]):
        try:
            value = float(plain)
        except ValueError:
            return None
        return value * unit if math.isinf(value) or math.isnan(value) else None
    sign, digits, exponent = found[1], found[2], found[3] or ""
    read = _digits(digits, notation or Notation(decimal_comma=_says(digits) == "decimal"))
    return None if read is None else float(f"{sign}{read}{exponent}") * unit


def _digits(digits: str, notation: Notation) -> str | None:
    """Digits with a decimal point and nothing else, or None where they are no number."""
    said = _says(digits)
    if said == "broken":
        return None
    comma = said == "decimal" or (said == "open" and notation.decimal_comma)
    if said == "point" and notation.decimal_comma and _THOUSANDS_POINT.match(digits) and digits[0] != "0":
        return digits.replace(".", "")  # 20.000 beside 0,0004
    return digits.replace(".", "").replace(",", ".") if comma else digits.replace(",", "")


def _says(digits: str) -> str:
    """What the marks in a cell are: `none`, `point`, `decimal` (comma), `thousands` (comma), `open` or `broken`."""
    commas, points = digits.count(","), digits.count(".")
    if commas == 0:
        if points <= 1:
            return "point" if points else "none"
        return "decimal" if _THOUSANDS_POINT.match(digits) else "broken"
    if points and digits.rfind(",") > digits.rfind("."):
        return "decimal" if commas == 1 and _THOUSANDS_POINT.match(digits) else "broken"
    if points or commas > 1:
        return "thousands" if points <= 1 and _THOUSANDS_COMMA.match(digits) else "broken"
    return "open" if _OPEN_COMMA.match(digits) else "decimal"


def read_notation(cells: Iterable[str], file: Notation | None = None) -> Notation:
    """How cells write numbers; `file` decides for a column whose own cells leave it open."""
    said: dict[str, int] = {}
    percent = False
    for cell in cells:
        plain = _PERCENT.sub("", cell)
        found = _NUMBER.match(_SPACES.sub("", plain.strip().replace("\u2212", "-")))
        if found is None:
            continue
        percent = percent or plain != cell
        kind = _says(found[2])
        said[kind] = said.get(kind, 0) + 1
    if said.get("decimal") or said.get("thousands"):
        comma = said.get("decimal", 0) > said.get("thousands", 0)
    elif file is not None:
        comma = file.decimal_comma and bool(said.get("open"))
    else:  # 1,234 and nothing else: thousands beside decimal points, decimals in a file without any
        comma = bool(said.get("open")) and not said.get("point")
    return Notation(comma, percent)


UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_COUNT = re.compile(r"^([\d.,]+(?:e[+-]?\d+)?)\s*([kmbgt])?(?:illion)?\s*(?:params?|parameters|tokens)?$")
_IN_NAME = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([kmbt])(?![a-z0-9])")


def read_count(text: str) -> float | None:
    """A number above 0: `70M`, `1.5B`, `410,000,000` or a name that holds one with its unit; None: it is none."""
    cell = text.strip().lower().replace("_", "" if text.replace("_", "").isdigit() else "-")
    found, inside = _COUNT.match(cell), [] if cell[:1] in "+-" else _IN_NAME.findall(cell)
    digits, unit = (found[1], found[2] or "") if found else inside[0] if len(inside) == 1 else ("", "")
    value = (number(digits) or 0.0) * UNITS[unit]
    return value if 0 < value < math.inf else None


def numbers(cells: Sequence[str], notation: Notation) -> list[float | None]:
    """Every cell of a column as a number, see `number`."""
    return [number(cell, notation) for cell in cells]


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

    def without(self, names: Sequence[str | None]) -> CsvTable:
        """The table without some columns."""
        kept = [place for place, name in enumerate(self.header) if name not in names]
        rows = [[row[place] for place in kept] for row in self.rows]
        return replace(self, header=[self.header[place] for place in kept], rows=rows)

    def renamed(self, name: str, ends: Sequence[str]) -> CsvTable:
        """The table with something put behind the cells of a column that names runs."""
        at, rows = self.header.index(name), []
        for row, end in zip(self.rows, ends, strict=True):
            rows.append([*row[:at], plain(row[at]) + end if row[at] else "", *row[at + 1 :]])
        return replace(self, rows=rows)

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


KEYS = (("run", "run_id"), ("index",), ("name",))  # what rows are joined by, the best first
_WITH_ZERO = re.compile(r"^-?\d+\.0+$")


def join_columns(ratios: CsvTable, metrics: CsvTable) -> tuple[str, str] | None:
    """The column of each file to join by: the first kind that both have and that names every row once.

    None where both are one file that names no runs: a line is a run.

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
    if one_file(ratios, metrics):
        return None
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


def run_names(table: CsvTable, key: str | None) -> list[str]:
    """The name of every row's run; none: its line."""
    return table.column(key) if key is not None else [f"line {line}" for line in table.lines]


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


def one_file(first: CsvTable, second: CsvTable) -> bool:
    """Whether two tables are the same file."""
    try:
        return first.path.samefile(second.path)
    except OSError:  # gone since it was read, or not a local one
        return first.path == second.path
