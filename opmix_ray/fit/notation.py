"""Numbers as people's tables write them: decimal commas, separated thousands, per cent signs.

What a comma between digits means is read from the column, and where that leaves it open from the whole file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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


def numbers(cells: Sequence[str], notation: Notation) -> list[float | None]:
    """Every cell of a column as a number, see `number`."""
    return [number(cell, notation) for cell in cells]
