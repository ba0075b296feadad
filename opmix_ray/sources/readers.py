"""Rows and values of each file format; every problem becomes a `UserError` with file, key and place."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from opmix_ray.errors import UserError, first_line
from opmix_ray.paths import packing
from opmix_ray.sources.files import filesystem, reading
from opmix_ray.sources.lines import FREE, HEAD, RATIO, contents, decoded, is_blank, is_text, lines

OPTIONAL = {"tools_column"}  # columns that a file may lack
_ROWS = 1024  # rows decoded at a time
_BYTES, _FEWEST = (
    1 << 26,
    8,
)  # bytes of rows decoded at a time where that is known before, and rows all the same
_INDEX = 8  # bytes of a page for each value, at most, where values are places in a dictionary


class Row(NamedTuple):
    """Values of the wanted columns, and where the row is."""

    values: Sequence[Any]
    place: str


# Usual names of a column of text, likeliest first.
TEXT = ("text", "content", "body", "document", "raw_content", "article", "code", "markdown", "passage")


def _instead(key: str, wanted: str, present: Sequence[str]) -> str:
    """`set text_column: content; `, where one of the columns is likely meant."""
    option = key.rpartition(".")[2]
    inside = [name for word in TEXT for name in present if name.rpartition(".")[2] == word]
    usual = inside if option == "text_column" else []
    alike = difflib.get_close_matches(wanted, present, n=1, cutoff=0.6)
    found = [*usual, *alike, *(present if len(present) == 1 else [])]
    return f"set {option}: {found[0]}; " if found else ""


def names_of(row: Mapping[str, Any]) -> list[str]:
    """Columns of a row; of objects in it what they hold, as `doc.text`."""
    found: list[str] = []
    for name, value in row.items():
        inner = names_of(value) if isinstance(value, Mapping) else []
        found += [f"{name}.{each}" for each in inner] or [name]
    return found


def holds(row: Mapping[str, Any], column: str) -> bool:
    """Whether a row has a column, which may lie in an object: `text` in `doc` is `doc.text`."""
    head, dot, rest = column.partition(".")
    inner = row.get(head)
    return column in row or (bool(dot) and isinstance(inner, Mapping) and holds(inner, rest))


def value_of(row: Mapping[str, Any], column: str) -> Any:
    """A column's value, or None; see `holds`."""
    if column in row:
        return row[column]
    head, dot, rest = column.partition(".")
    inner = row.get(head)
    return value_of(inner, rest) if dot and isinstance(inner, Mapping) else None


def missing_column(file: str, key: str, wanted: str, row: Mapping[str, Any] | Sequence[str]) -> UserError:
    """The error for a column that is not there; names those that are, nearest first."""
    present = names_of(row) if isinstance(row, Mapping) else list(row)
    near = difflib.get_close_matches(wanted, present, n=len(present), cutoff=0.0) if present else []
    shown = ", ".join(near[:12]) + (", ..." if len(near) > 12 else "")
    return UserError(
        f"the file has no column {wanted!r}",
        file=file,
        key=key,
        remedy=f"{_instead(key, wanted, present)}it has: {shown}" if shown else "its rows are empty",
    )


class Needed:
    """The columns (option -> column) that a file must have: one of its first rows has each, or an error says so."""

    LOOKED = 100  # rows; a file that has fewer is read to its end
    _ALONE = frozenset(["text_column", "messages_column", "tokens_column"])  # a row without it is only empty

    def __init__(self, file: str, columns: Mapping[str, str], key: str) -> None:
        self._file, self._key = file, key
        self._left = {option: column for option, column in columns.items() if option not in OPTIONAL}
        self._first: Mapping[str, Any] | None = None
        self._rows = 0

    def see(self, row: Mapping[str, Any]) -> None:
        """One row more."""
        if not self._left:
            return
        self._first, self._rows = self._first or row, self._rows + 1
        self._left = {option: column for option, column in self._left.items() if not holds(row, column)}
        if self._rows >= self.LOOKED or self._left.keys() - self._ALONE:
            self.end()

    def end(self) -> None:
        """There are no more rows; an error if none of them had a column."""
        if self._first is not None:
            for option, column in self._left.items():
                raise missing_column(self._file, f"{self._key}.{option}", column, self._first)


def jsonl_rows(file: str, columns: dict[str, str], key: str) -> Iterator[Row]:
    """Rows of a JSONL file, plain or compressed; a key that a row leaves out is null there."""
    needed = Needed(file, columns, key)
    names = {name for column in columns.values() for name in (column, column.partition(".")[0])}
    quoted = [json.dumps(name, ensure_ascii=False).encode() for name in names]
    with reading(file, f"{key}.path"):
        for number, line in enumerate(lines(file, f"{key}.path"), start=1):
            if is_blank(line):
                continue
            row = json_object(line, file, f"{key}.path", number)
            if any(line.count(name) > 1 for name in quoted):
                json_object(line, file, f"{key}.path", number, hook=once)
            needed.see(row)
            yield Row([value_of(row, column) for column in columns.values()], f"line {number}")
        needed.end()


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, each of whose keys stands once; which of two values counts is not for a reader to say."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"the key {next(name for name in names if names.count(name) > 1)!r} stands in it twice"
        )
    return found


def json_object(line: bytes, file: str, key: str, number: int, hook: Any = None) -> dict[str, Any]:
    """The object on a line of JSON lines."""
    text = decoded(line, number, file, key)
    try:
        row = json.loads(text, object_pairs_hook=hook, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", first_line(error))
        remedy = "write one JSON object a line"
        if not isinstance(error, json.JSONDecodeError):
            remedy = "mend the line"
        elif "\r" in text.rstrip():
            remedy = "end lines with a line feed: tr '\\r' '\\n'"
        elif number == 1 and text.lstrip().startswith(("{", "[")):
            remedy += f", or {_json_of(file)} if it is an array or objects over several lines"
        raise UserError(f"line {number} is not JSON: {reason}", file=file, key=key, remedy=remedy) from None
    if not isinstance(row, dict):
        raise UserError(
            f"line {number} is JSON but not an object",
            file=file,
            key=key,
            remedy='write {"text": ...} a line' + (f", or {_json_of(file)}" if isinstance(row, list) else ""),
        )
    return row


def _constant(word: str) -> float | None:  # pandas writes NaN where there is nothing
    return None if word == "NaN" else float(word)


def _json_of(file: str) -> str:
    """What to do that a file is read as JSON, not as a row on each line."""
    return "set the format to json" if packing(file) or ".jsonl" not in file else "end its name with .json"


def parquet_rows(file: str, columns: dict[str, str], key: str) -> Iterator[Row]:
    """Rows of a Parquet file."""
    with reading(file, f"{key}.path"):
        system, inner = filesystem(file)
        with system.open_input_file(inner) as stream:
            parquet = open_parquet(stream, file, f"{key}.path")
            _check_schema(parquet.schema_arrow, file, columns, key)
            schema = parquet.schema_arrow
            wanted = [
                column for column in dict.fromkeys(columns.values()) if _field(schema, column) is not None
            ]
            batches = parquet.iter_batches(batch_size=rows_at_once(parquet, wanted), columns=wanted)
            yield from _batch_rows(bounded(batches, stream.size(), file, f"{key}.path"), columns)


def arrow_rows(file: str, columns: dict[str, str], key: str) -> Iterator[Row]:
    """Rows of an Arrow IPC file or stream."""
    with reading(file, f"{key}.path"):
        system, inner = filesystem(file)
        with system.open_input_file(inner) as stream:
            schema, batches = arrow_batches(stream, file, f"{key}.path")
            _check_schema(schema, file, columns, key)
            yield from _batch_rows(bounded(batches, stream.size(), file, f"{key}.path"), columns)


def rows_at_once(parquet: pq.ParquetFile, columns: Sequence[str] | None = None) -> int:
    """How many rows of a Parquet file take no more than `_BYTES` when they are read, and no more than `_ROWS`.

    A column whose values are few and repeated is kept as a dictionary: each may be as long as all of that.
    """
    found, metadata = _ROWS, parquet.metadata
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for part in map(group.column, range(group.num_columns)):
            if columns is not None and part.path_in_schema.partition(".")[0] not in {
                column.partition(".")[0] for column in columns
            }:
                continue
            size, values = part.total_uncompressed_size, max(1, part.num_values)
            longest = size / values
            if part.has_dictionary_page:
                pages = part.total_compressed_size - (part.data_page_offset - part.dictionary_page_offset)
                longest = size if pages <= _INDEX * values else longest
            found = min(found, int(_BYTES * group.num_rows / values / max(1, longest)))
    return max(_FEWEST, found)


def bounded(batches: Iterator[pa.RecordBatch], size: int, file: str, key: str) -> Iterator[pa.RecordBatch]:
    """Batches of a table, of which no more comes out than a file of text of its size may unpack to.

    Raises:
        UserError: more does.
    """
    out = 0
    for batch in batches:
        batch.validate(full=True)  # damaged offsets would be followed out of memory, also by `nbytes`
        out += size_of(batch)
        if out > max(FREE, RATIO * size):
            raise UserError(
                f"unpacks to more than {RATIO:,} times its size", file=file, key=key,
                remedy="if it is no damaged file, write it with each text once, or as JSON lines",
            )  # fmt: skip
        yield batch


def size_of(batch: pa.RecordBatch) -> int:
    """Bytes of a batch, its dictionaries written out."""
    size = int(batch.nbytes)
    for column in batch.columns:
        if isinstance(column, pa.DictionaryArray) and _is_text(column.type):
            lengths = pc.binary_length(column.dictionary.cast(pa.large_string()))
            size += pc.sum(lengths.take(column.indices)).as_py() or 0
    return size


def open_parquet(stream: pa.NativeFile, file: str, key: str) -> pq.ParquetFile:
    """A Parquet file whose pages are compared with their checksums, where they have some."""
    _refuse_other(stream, file, key, "Parquet")
    return pq.ParquetFile(stream, page_checksum_verification=True)


def arrow_batches(stream: pa.NativeFile, file: str, key: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Schema and batches of an Arrow IPC file or stream, read as they are asked for."""
    _refuse_other(stream, file, key, "Arrow", "an Arrow stream")
    start = stream.read(6)
    stream.seek(0)
    if start == b"ARROW1":
        reader = pa.ipc.open_file(stream)
        return reader.schema, (reader.get_batch(index) for index in range(reader.num_record_batches))
    reader = pa.ipc.open_stream(stream)
    return reader.schema, _to_the_end(reader, stream, start[:4])


def _to_the_end(
    reader: pa.ipc.RecordBatchStreamReader, stream: pa.NativeFile, mark: bytes
) -> Iterator[pa.RecordBatch]:
    """Batches of a stream that has its end, which is a message of no bytes, and nothing after it."""
    end = (mark if mark == b"\xff" * 4 else b"") + bytes(4)  # before Arrow 0.15 messages had no mark
    yield from reader
    left = stream.size() - stream.tell()
    stream.seek(max(0, stream.tell() - len(end)))
    if left:
        raise ValueError("holds more than one stream; give each its own file")
    if stream.read(len(end)) != end:
        raise ValueError("the stream has no end: whoever wrote it was stopped, or the file is cut off")


def _refuse_other(stream: pa.NativeFile, file: str, key: str, *wanted: str) -> None:
    head = stream.read(HEAD)
    stream.seek(0)
    what = contents(head) or ("text" if is_text(head) else None)
    if what is not None and what not in wanted:
        raise UserError(
            f"cannot be read: holds {what}, not {wanted[0]}", file=file, key=key,
            remedy="give it the ending, or set the format, of what it holds, or get it again",
        )  # fmt: skip


def _check_schema(schema: pa.Schema, file: str, columns: dict[str, str], key: str) -> None:
    for option, column in columns.items():
        name = column if column in schema.names else column.partition(".")[0]
        if schema.names.count(name) > 1:
            raise UserError(
                "stands in the file twice",
                file=file,
                key=f"{key}.{option}",
                value=name,
                remedy="rename one of the two",
            )
        kind = _field(schema, column)
        if kind is None and option in OPTIONAL:
            continue
        if kind is None:
            raise missing_column(file, f"{key}.{option}", column, _names(schema))
        fits, wanted = _TYPES[option]
        if not (pa.types.is_null(kind) or fits(kind)):
            raise wrong_type(file, f"{key}.{option}", column, wanted, str(kind))


def _field(schema: pa.Schema | pa.StructType, column: str) -> pa.DataType | None:
    """The type of a column, which may lie in an object; None where there is no such column."""
    if column in schema.names:
        return schema.field(column).type
    head, dot, rest = column.partition(".")
    inner = schema.field(head).type if dot and head in schema.names else None
    return _field(inner, rest) if inner is not None and pa.types.is_struct(inner) else None


def _names(schema: pa.Schema | pa.StructType) -> list[str]:
    found: list[str] = []
    for name in schema.names:
        kind = schema.field(name).type
        found += [f"{name}.{each}" for each in _names(kind)] if pa.types.is_struct(kind) else [name]
    return found


def _column(batch: pa.RecordBatch | pa.StructArray, column: str) -> pa.Array | None:
    names = batch.schema.names if isinstance(batch, pa.RecordBatch) else batch.type.names
    if column in names:
        return batch.column(column) if isinstance(batch, pa.RecordBatch) else pc.struct_field(batch, [column])
    head, dot, rest = column.partition(".")
    inner = _column(batch, head) if dot and head in names else None
    return _column(inner, rest) if inner is not None and pa.types.is_struct(inner.type) else None


def wrong_type(file: str, key: str, column: str | None, wanted: str, found: str) -> UserError:
    """The error for a column that holds something else."""
    return UserError(
        f"must hold {wanted}, not {found}", file=file, key=key, value=column, remedy="name another column"
    )


def _is_text(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.JsonType):
        return True
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_ids(kind: pa.DataType) -> bool:
    return _is_list(kind) and bool(pa.types.is_integer(kind.value_type))


def _is_messages(kind: pa.DataType) -> bool:
    """Lists of objects, or JSON in text: as a type of its own, as `datasets` writes it, or as plain text; or an object
    of lists."""
    if pa.types.is_struct(kind):
        return all(_is_list(field.type) for field in kind)
    return _is_object(kind.value_type) if _is_list(kind) else _is_json(kind)


def _is_object(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind)) or _is_json(kind)


def _is_json(kind: pa.DataType) -> bool:
    return _is_text(kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind)


_TYPES: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
    "text_column": (_is_text, "text"),
    "prompt_column": (_is_text, "text"),
    "completion_column": (_is_text, "text"),
    "messages_column": (_is_messages, "lists of messages with role and content"),
    "tools_column": (lambda kind: True, "tools"),
    "tokens_column": (_is_ids, "lists of integers"),
    "vectors_column": (_is_list, "lists of numbers"),
    "choices_column": (_is_list, "lists of text"),
    "answer_column": (lambda kind: _is_text(kind) or pa.types.is_integer(kind), "text or integers"),
}


def _batch_rows(batches: Iterator[pa.RecordBatch], columns: dict[str, str]) -> Iterator[Row]:
    number = 0
    for batch in batches:
        longest = max(
            (c.dictionary.nbytes for c in batch.columns if isinstance(c, pa.DictionaryArray)), default=1
        )
        step = max(1, min(_ROWS, _BYTES // max(1, longest)))
        for start in range(0, batch.num_rows, step):
            part = batch.slice(start, step)
            found = {option: _column(part, column) for option, column in columns.items()}
            values = [
                [None] * len(part) if column is None else _values(column, option)
                for option, column in found.items()
            ]
            for row in zip(*values, strict=True):
                number += 1
                yield Row(row, f"row {number}")


def _values(column: pa.Array, option: str) -> list[Any]:
    if isinstance(column.type, pa.JsonType) and option != "messages_column":
        return [None if value is None else json.loads(value) for value in column.to_pylist()]
    if option in ("messages_column", "tools_column"):
        return [_without_nulls(value) for value in column.to_pylist()]
    if option != "tokens_column" or pa.types.is_null(column.type):
        return list(column.to_pylist())
    flat = column.flatten()  # without what lies below null lists
    if flat.null_count:
        raise ValueError("a list of token ids holds a null")
    ids, valid = flat.to_numpy(), column.is_valid().to_numpy(False)
    ends = np.cumsum(pc.fill_null(pc.list_value_length(column), 0).to_numpy(False), dtype=np.int64)
    starts = np.append(0, ends[:-1])
    return [
        ids[start:stop] if there else None for start, stop, there in zip(starts, ends, valid, strict=True)
    ]


def _without_nulls(value: Any) -> Any:
    """A value without the keys that are null: Arrow gives every object the keys of all others."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


READERS: dict[str, Callable[[str, dict[str, str], str], Iterator[Row]]] = {
    "jsonl": jsonl_rows,
    "parquet": parquet_rows,
    "arrow": arrow_rows,
}


def text(value: Any, file: str, key: str, place: str) -> str | None:
    """A text value; lone surrogates become U+FFFD, null stays None."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise UserError(
            f"{place} holds {type(value).__name__}, not text",
            file=file,
            key=key,
            remedy="name a column of text",
        )
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return value


def token_ids(value: Any, file: str, key: str, place: str) -> np.ndarray | None:
    """Token ids as an int64 array."""
    if value is None:
        return None
    try:
        ids = np.asarray(value)
    except ValueError:  # lists of different lengths
        ids = np.zeros((1, 1))
    odd = isinstance(value, list) and any(type(each) is bool for each in value)
    if ids.ndim != 1 or odd or (len(ids) and ids.dtype.kind not in "iu"):
        raise UserError(
            f"{place} is not a list of integers", file=file, key=key, remedy="name another column"
        )
    for wrong in (ids.min(initial=0), ids.max(initial=0)):
        if not 0 <= int(wrong) < 1 << 32:
            raise UserError(f"{place} holds the token id {wrong}", file=file, key=key, remedy="mend the data")
    return ids.astype(np.int64)
