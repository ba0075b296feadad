"""Rows of plain files, and of formats that other packages bring along.

for row, place in objects("notes.json", "data.domains.notes.path"):
    row["text"]

A text file is cut at blank lines into pieces of about `PIECE` characters, so that a book has parts to hold out. A
shorter file is one document.

    # in the package, registered under [project.entry-points."opmix_ray.sources"]
    def read(path: str) -> Iterator[Mapping[str, Any]]:
        yield {"text": "..."}

A domain with `format: <name>` is read with it. Rows become documents by the same columns as those of other formats,
and prepared data are found again by the files' content, so the same bytes must give the same rows.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, dropwhile
from typing import Any, get_args

from opmix_ray import plugins
from opmix_ray.config.data import BuiltInFormat
from opmix_ray.errors import UserError, first_line
from opmix_ray.paths import file_format
from opmix_ray.sources import readers
from opmix_ray.sources.files import reading
from opmix_ray.sources.lines import LONGEST, decoded, lines
from opmix_ray.sources.readers import Needed, Row, once, value_of

PIECE = 4096  # characters after which the next blank line ends a document
_MOST = 4 * PIECE  # characters of a document without a blank line
_CHUNK = 1 << 20
_SPACE = re.compile(r"[\s,]*")
_DELIMITERS = ",;\t|"
_SEPARATOR = re.compile(r"[Ss][Ee][Pp]=(.)\r?\n")  # a first line that Excel writes and reads
_QUOTED = re.compile(r'"[^"]*"')
_LINES = re.compile(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+")

Objects = Iterator[tuple[dict[str, Any], str]]


def objects(file: str, key: str) -> Objects:
    """Every row of a text, CSV or JSON file with its place, by the file's ending.

    Args:
        file: path or URI.
        key: configuration key named in errors.

    Raises:
        UserError: the file is broken.
    """
    return _READ[str(file_format(file))](file, key)


def _rows(kind: str) -> Callable[[str, dict[str, str], str], Iterator[Row]]:
    def read(file: str, columns: dict[str, str], key: str) -> Iterator[Row]:
        # a plain text is one row, which is its text whatever the column is called
        kept = {option: name for option, name in columns.items() if (kind, option) != ("text", "text_column")}
        needed = Needed(file, kept, key)
        with reading(file, f"{key}.path"):
            for row, place in _READ[kind](file, f"{key}.path"):
                needed.see(row)
                if kind == "text":
                    yield Row([row["text"] for _ in columns], place)
                else:
                    yield Row([value_of(row, column) for column in columns.values()], place)
            needed.end()

    return read


def _decoded(file: str, key: str) -> Iterator[str]:
    """Lines as text."""
    for number, line in enumerate(lines(file, key), start=1):
        yield decoded(line, number, file, key)


def _text(file: str, key: str) -> Objects:
    part: list[str] = []
    size, start = 0, 1
    ended = (
        part for line in _decoded(file, key) for part in _LINES.findall(line)
    )  # also as old Macs ended them
    for number, line in enumerate(ended, start=1):
        if (size >= PIECE and not line.strip()) or size >= _MOST:
            yield {"text": "".join(part).strip("\n")}, f"line {start}"
            part, size, start = [], 0, number
        for cut in range(0, len(line), _MOST):  # a file without line ends is cut all the same
            if cut:
                yield {"text": "".join(part)}, f"line {start}"
                part, size = [], 0
            part.append(line[cut : cut + _MOST])
            size += len(part[-1])
    if text := "".join(part).strip("\n"):
        yield {"text": text}, f"line {start}"


def _csv(file: str, key: str) -> Objects:
    csv.field_size_limit(LONGEST)
    source = dropwhile(str.isspace, _decoded(file, key))
    first = next(source, "")
    said = _SEPARATOR.fullmatch(first)
    first = next(source, "") if said else first
    bare = _QUOTED.sub("", first)  # a name of a column may hold any of them
    found = max(_DELIMITERS, key=bare.count)
    delimiter = "\t" if ".tsv" in file.lower() else found if found in bare else ","
    delimiter = said[1] if said else delimiter
    reader = csv.reader(chain([first], source), delimiter=delimiter, strict=True)
    number = 1
    try:
        header = [name.strip() for name in next(reader, [])]
        number = reader.line_num + 1
        named = [name for name in header if name]  # spreadsheets write empty columns too
        if len(set(named)) < len(named):
            raise UserError(
                "names a column twice in its first line", file=file, key=key, remedy="rename one of the two"
            )
        for cells in reader:
            if any(cells[len(header) :]) or any(header[len(cells) :] if cells else []):
                raise UserError(
                    f"line {reader.line_num} has {len(cells)} cells, the first line {len(header)}", file=file, key=key,
                    remedy='put cells with commas or line ends in quotes ("...")',
                )  # fmt: skip
            number = reader.line_num + 1
            if cells:
                row = dict.fromkeys(header) | dict(zip(header, cells, strict=False))
                yield row, f"line {reader.line_num}"
    except csv.Error as error:
        why, remedy = str(error), 'write quotes inside a cell twice ("say ""yes""")'
        if "unexpected end" in why:
            why = f"a cell that begins after line {number - 1} has no closing quote"
        elif "new-line character" in why:
            why, remedy = "its lines do not end with a line feed", "write them so: tr '\\r' '\\n'"
        raise UserError(f"line {number} is not CSV: {why}", file=file, key=key, remedy=remedy) from None


def _json(file: str, key: str) -> Objects:
    """Objects in an array, or one after the other, on lines or over several; read piece by piece."""
    decoder, buffer, at, number = json.JSONDecoder(object_pairs_hook=once), "", 0, 0
    source, ended, wanted = _decoded(file, key), False, _CHUNK
    inside: bool | None = None  # an array; None: nothing was read
    while True:
        parts, size = [buffer[at:]], len(buffer) - at
        while size < wanted and not ended:
            line = next(source, None)
            ended = line is None
            parts.append(line or "")
            size += len(parts[-1])
        buffer, at = "".join(parts), 0
        while True:
            at = _SPACE.match(buffer, at).end()  # type: ignore[union-attr]
            if inside is None and at < len(buffer):
                inside = buffer[at] == "["
                at += inside
                continue
            if at >= len(buffer):
                break
            if inside and buffer[at] == "]":  # another one may follow, as where files were put together
                at, inside = at + 1, None
                continue
            try:
                row, end = decoder.raw_decode(buffer, at)
            except (ValueError, RecursionError) as error:
                if not ended and len(buffer) - at < LONGEST and isinstance(error, json.JSONDecodeError):
                    break
                why = getattr(error, "msg", first_line(error))
                broken = isinstance(error, json.JSONDecodeError)
                raise UserError(
                    f"object {number + 1} is not JSON: {why}", file=file, key=key,
                    remedy="write an array of objects, or one object a line" if broken else "mend the object",
                ) from None  # fmt: skip
            number += 1
            if not isinstance(row, dict):
                raise UserError(
                    f"entry {number} is JSON but not an object", file=file, key=key,
                    remedy='write objects such as {"text": "..."}',
                )  # fmt: skip
            at, wanted = end, _CHUNK
            yield row, f"object {number}"
        if ended:
            if inside:
                raise UserError("ends inside its array", file=file, key=key, remedy="get the whole file")
            return
        wanted = max(_CHUNK, 2 * (len(buffer) - at))


_READ: dict[str, Callable[[str, str], Objects]] = {"text": _text, "csv": _csv, "json": _json}
READERS = {kind: _rows(kind) for kind in _READ}


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


def how_read(name: str, file: str) -> list[str]:
    """What of a file's format and name decides which rows its bytes give, with a digest of code that others bring."""
    if name in get_args(BuiltInFormat):
        return [name, *(["tabs"] if name == "csv" and ".tsv" in file.lower() else [])]
    digest = hashlib.blake2b(digest_size=16)
    for path in plugins.code("sources", name):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return [name, digest.hexdigest()]


def reader(name: str) -> Callable[[str, dict[str, str], str], Iterator[Row]]:
    """What reads the rows of a file format, built in or brought along."""
    found = (readers.READERS | READERS).get(name)
    if found is not None:
        return found
    read: Read = plugins.find("sources", name)

    def rows(file: str, columns: dict[str, str], key: str) -> Iterator[Row]:
        needed = Needed(file, columns, key)
        with reading(file, f"{key}.path"):
            for number, row in enumerate(read(file), start=1):
                needed.see(row)
                yield Row([value_of(row, column) for column in columns.values()], f"row {number}")
            needed.end()

    return rows
