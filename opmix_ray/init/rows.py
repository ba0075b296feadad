"""The first rows of a file, and how much text there is in all, without reading the whole of it."""

from __future__ import annotations

import json
import lzma
from dataclasses import dataclass
from itertools import filterfalse, islice
from typing import Any

import pyarrow as pa
import zstandard

from opmix_ray.init.discover import KEY
from opmix_ray.paths import file_format, packing
from opmix_ray.sources.files import InputFile, filesystem, reading
from opmix_ray.sources.lines import HEAD, is_blank, lines, refuse_other, refuse_pointer, unpacked
from opmix_ray.sources.plain import objects
from opmix_ray.sources.readers import arrow_batches, json_object, open_parquet

ROWS = 2000  # of a file that are looked at, at most
BYTES = 1 << 21  # of a file that are read, at most
UNPACKED = 1 << 26  # bytes that these are unpacked to, at most


@dataclass(frozen=True)
class Sample:
    """Rows of one file.

    Args:
        rows: the first ones.
        total: rows of the whole file, estimated where it was not read to its end.
    """

    rows: list[dict[str, Any]]
    total: float


def sample(file: InputFile) -> Sample:
    """The first rows of a file whose format has rows.

    Raises:
        UserError: it is broken.
    """
    read = {"jsonl": _jsonl, "parquet": _parquet, "arrow": _arrow}.get(str(file_format(file.path)), _plain)
    with reading(file.path, KEY):
        refuse_pointer(file, KEY)
        return read(file)


def _jsonl(file: InputFile) -> Sample:
    system, inner = filesystem(file.path)
    with system.open_input_stream(inner, compression=None) as stream:
        raw = stream.read(BYTES)
    refuse_other(raw[:HEAD], file.path, KEY)
    whole = len(raw) >= file.size
    text = _unpacked(raw, file.path, whole)
    whole = whole and len(text) < UNPACKED >> 16 << 16
    found = text.split(b"\n") if whole else text.split(b"\n")[:-1]
    seen = float(len(raw))
    if not whole and all(map(is_blank, found)):  # the first line is longer than what was read
        found = list(islice(filterfalse(is_blank, lines(file.path, KEY)), 1))
        seen = seen * len(found[0]) / max(1, len(text)) if found else seen
    count = sum(1 for line in found if not is_blank(line))
    rows = [
        json_object(line, file.path, KEY, number)
        for number, line in enumerate(found[:ROWS], start=1)
        if not is_blank(line)
    ]
    return Sample(rows, count * (1.0 if whole else max(1.0, file.size / max(1.0, seen))))


def _plain(file: InputFile) -> Sample:
    rows: list[dict[str, Any]] = []
    read = 0
    for row, _ in objects(file.path, KEY):
        rows.append(row)
        read += len(json.dumps(row, ensure_ascii=False))
        if len(rows) == ROWS or read > BYTES:
            packed = 3.0 if packing(file.path) else 1.0
            return Sample(rows, max(float(len(rows)), len(rows) * packed * file.size / read))
    return Sample(rows, float(len(rows)))


def _unpacked(raw: bytes, path: str, whole: bool) -> bytes:
    """What a file's beginning holds, at most UNPACKED bytes of it."""
    parts: list[bytes] = []
    try:
        stream = unpacked(pa.BufferReader(raw), path)
        while len(parts) < UNPACKED >> 16 and (part := stream.read(1 << 16)):
            parts.append(part)
    except (OSError, EOFError, zstandard.ZstdError, lzma.LZMAError):
        if whole:
            raise
    return b"".join(parts)


def _parquet(file: InputFile) -> Sample:
    system, inner = filesystem(file.path)
    with system.open_input_file(inner) as stream:
        parquet = open_parquet(stream, file.path, KEY)
        batch = next(parquet.iter_batches(batch_size=ROWS), None)
        return Sample([] if batch is None else batch.to_pylist(), float(parquet.metadata.num_rows))


def _arrow(file: InputFile) -> Sample:
    system, inner = filesystem(file.path)
    with system.open_input_file(inner) as stream:
        _, batches = arrow_batches(stream, file.path, KEY)
        batch = next(batches, None)
        if batch is None:
            return Sample([], 0.0)
        batch.validate(full=True)  # else a damaged file can crash the process
        share = max(1.0, file.size / max(1, batch.nbytes))
        return Sample(batch.slice(0, ROWS).to_pylist(), batch.num_rows * share)
