"""A table as text cells with a header, and its columns as numbers.

Every fault names file, line and column.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from opmix_ray.errors import UserError, first_line

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
WESTERN = "cp1252"  # what Windows wrote before UTF-8
MOST = 1 << 30  # bytes of a table
Rows = list[tuple[int, list[str]]]  # cells, each line with its number
_PACKED: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open, b"\x28\xb5\x2f\xfd": zstandard.open,
}  # fmt: skip
_NO_TEXT = {
    b"PK\x03\x04": "an Excel workbook or a zip archive", b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"ARROW1": "Arrow", b"%PDF": "a PDF", b"<!": "HTML", b"<html": "HTML", b"<?xml": "XML",
}  # fmt: skip
_CONTROL = re.compile(r"[\0-\x08\x0e-\x1b]")
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
        notes: what was done to read it, in words.
    """

    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    notation: Notation = field(default_factory=Notation)
    notes: list[str] = field(default_factory=list)
    _read: dict[str, list[float | None]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def without(self, names: Sequence[str | None]) -> CsvTable:
        """The table without some columns."""
        kept = [place for place, name in enumerate(self.header) if name not in names]
        rows = [[row[place] for place in kept] for row in self.rows]
        return replace(self, header=[self.header[place] for place in kept], rows=rows)

    def called(self, name: str, other: str) -> CsvTable:
        """The table with another name for a column."""
        return replace(self, header=[other if each == name else each for each in self.header])

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
        if name not in self._read:
            self._read[name] = numbers(self.column(name), self.notation_of(name))
        return self._read[name]

    def values(self, name: str) -> np.ndarray:
        """One column as numbers (N,), NaN where there is none."""
        return np.array([np.nan if value is None else value for value in self.numbers(name)])

    def is_text(self, name: str) -> bool:
        """Whether a column holds words: something in it, and no number at all."""
        cells = self.column(name)
        return any(not is_missing(cell) for cell in cells) and all(
            value is None
            for cell, value in zip(cells, self.numbers(name), strict=True)
            if not is_missing(cell)
        )


def read_csv(path: str | Path) -> CsvTable:
    """Read a file with a header line; comma, semicolon, tab or bar separate its cells. Parquet and JSON lines will do.

    It may be compressed (gzip, bzip2, xz, zstd), and in UTF-8, UTF-16 or Windows' Western European.

    Raises:
        UserError: it is missing, not text, or has no rows; a line has more or fewer cells than the header; a
            column name stands twice.
    """
    path = Path(path)
    content = _content(path)
    rows = _records(content, path)
    notes: list[str] = []
    if rows is None:
        text, encoding = _text(content, path)
        if encoding == WESTERN:
            notes.append(f"{path.name} is not UTF-8 and was read as {WESTERN}: look at its names")
        rows, delimiter = _lines_of_cells(text, path)
    else:
        delimiter = ""
    if len(rows) < 2:
        problem = "has a header and no rows" if rows else "is empty"
        raise UserError(problem, file=path, remedy="give a header line and one line per run")
    rows = _without_blank_ends(rows)
    header = rows[0][1]
    parts = [name for name in header if "." in name and number(name) is not None]
    if len(parts) > len(header) / 2:
        raise UserError(
            f"its first line holds numbers ({', '.join(parts[:3])}) and no names", file=path,
            remedy="write a header line above it, such as run,web,code",
        )  # fmt: skip
    for name in header:
        if header.count(name) > 1:
            raise UserError(
                "this column stands twice" if name else "two columns have no name",
                file=path, key=name or None, remedy="rename or remove one",
            )  # fmt: skip
    for line, cells in rows[1:]:
        if len(cells) != len(header):
            commas = delimiter == "," and len(cells) > len(header)
            raise UserError(
                f"line {line} has {len(cells)} cells, the header {len(header)}",
                file=path,
                remedy="mend the line; quote cells that hold the separator"
                + (", or separate by semicolons where numbers have decimal commas" if commas else ""),
            )
    found = [cells for _, cells in rows[1:]]
    notation = read_notation(cell for cells in found for cell in cells)
    return CsvTable(path, header, found, [line for line, _ in rows[1:]], notation, notes)


def _content(path: Path) -> bytes:
    """A file's bytes, unpacked."""
    try:
        content = path.read_bytes()
        for magic, unpack in _PACKED.items():
            if content.startswith(magic):
                with unpack(io.BytesIO(content), "rb") as stream:
                    content = stream.read(MOST + 1)
    except FileNotFoundError:
        raise UserError("no such file", file=path, remedy="check the path") from None
    except IsADirectoryError:
        raise UserError("is a directory", file=path, remedy="name a CSV file") from None
    except (EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise UserError(f"cannot be unpacked: {error}", file=path, remedy="get the file again") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot be read: {reason}", file=path, remedy="check the path") from None
    if len(content) > MOST:
        raise UserError(
            f"has more than {MOST >> 20} MiB", file=path, remedy="keep the columns that are needed"
        )
    return content


def _records(content: bytes, path: Path) -> Rows | None:
    """Header and rows of a Parquet file or of lines of JSON; None: it is neither.

    Raises:
        UserError: it is broken, or of a kind that is no table of text.
    """
    other = next((what for magic, what in _NO_TEXT.items() if content.startswith(magic)), None)
    if other is not None:
        raise UserError(f"is {other}", file=path, remedy="save the table as CSV and name that")
    parquet, start = content.startswith(b"PAR1"), content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if not parquet and start not in (b"{", b"["):
        return None
    import pyarrow as pa

    try:
        if parquet:
            import pyarrow.parquet

            table = pa.parquet.read_table(io.BytesIO(content))
        elif start == b"[":
            table = pa.Table.from_pylist(json.loads(content.decode("utf-8-sig")))
        else:
            import pyarrow.json

            table = pa.json.read_json(io.BytesIO(content))
    except (pa.ArrowException, OSError, ValueError, TypeError, AttributeError) as error:
        what = "Parquet" if parquet else "table in JSON"
        raise UserError(
            f"is no {what}: {first_line(error)}", file=path, remedy="save the table as CSV"
        ) from None
    for _ in range(3):  # columns inside of columns
        table = table.flatten()
    columns = [["" if cell is None else str(cell) for cell in column.to_pylist()] for column in table.columns]
    header = ["" if name == "__index_level_0__" else str(name) for name in table.column_names]
    return [
        (1, header),
        *((line, list(cells)) for line, cells in enumerate(zip(*columns, strict=True), start=2)),
    ]


def _text(content: bytes, path: Path) -> tuple[str, str]:
    """A file's text, and the encoding that it is in.

    Raises:
        UserError: it is no text.
    """
    marked = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    for encoding in ("utf-16",) if marked else ("utf-8-sig", WESTERN):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if not _CONTROL.search(text) and (encoding == "utf-8-sig" or "\n" in text or "\r" in text):
            return text, encoding
    raise UserError("is not text", file=path, remedy="name a CSV file in UTF-8")


def _lines_of_cells(text: str, path: Path) -> tuple[Rows, str]:
    """Header and rows of a CSV file, each with its line, and what separates its cells."""
    lines = text.splitlines(keepends=True)
    said = _SEPARATOR_LINE.match(lines[0]) if lines else None
    skipped = 1 if said else 0
    remarks = skipped
    while remarks < len(lines) - 1 and lines[remarks].lstrip().startswith("#"):
        remarks += 1
    try:
        delimiter = said[1] if said else _delimiter(lines[remarks:])
        rows = _cells(lines[remarks:], delimiter, remarks)
        if rows and remarks > skipped:  # the last of them may be the header: `#,web,code`
            last = _cells(lines[remarks - 1 : remarks], delimiter, remarks - 1)
            rows = last + rows if len(last[0][1]) == len(rows[0][1]) else rows
    except csv.Error as error:
        raise UserError(f"is not CSV: {error}", file=path, remedy="mend it") from None
    return rows, delimiter


def _without_blank_ends(rows: Rows) -> Rows:
    """Without the empty cells that a spreadsheet writes behind its last column."""
    ends = [max((place + 1 for place, cell in enumerate(cells) if cell), default=0) for _, cells in rows]
    width = max(ends[0], *(min(end, len(rows[0][1])) for end in ends[1:]))
    return [(line, cells[: max(width, end)]) for (line, cells), end in zip(rows, ends, strict=True)]


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


_WITH_ZERO = re.compile(r"^-?\d+\.0+$")


def plain(run: str) -> str:
    """A run's name without the `.0` that a table of numbers puts behind it."""
    return run.partition(".")[0] if _WITH_ZERO.match(run) else run
