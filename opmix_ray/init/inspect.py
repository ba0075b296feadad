"""What each proposed domain holds: columns, documents, text, and how its documents can be held out."""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import filterfalse, islice, product
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard

from opmix_ray.config import SourceConfig
from opmix_ray.errors import UserError, UserErrors
from opmix_ray.exchange.column_names import words
from opmix_ray.init.discover import KEY, Part
from opmix_ray.overlap.near import filled
from opmix_ray.paths import Kind, file_format, packing
from opmix_ray.sources import megatron
from opmix_ray.sources.files import InputFile, filesystem, reading
from opmix_ray.sources.lines import HEAD, is_blank, lines, refuse_other, refuse_pointer, unpacked
from opmix_ray.sources.megatron import raw_count, raw_dtype
from opmix_ray.sources.messages import is_answered, is_messages
from opmix_ray.sources.plain import objects
from opmix_ray.sources.readers import (
    TEXT,
    arrow_batches,
    json_object,
    names_of,
    open_parquet,
    rows_at_once,
    size_of,
    value_of,
)
from opmix_ray.sources.source import TOOLS, Document, iter_documents

WORDS = 6  # of a column's name, at most; more are a row
PROMPTS = ("prompt", "instruction", "question", "query", "problem", "input", "inputs")
ANSWERS = ("completion", "response", "output", "answer", "chosen", "solution", "target", "targets")


IDS = ("input_ids", "token_ids", "tokens", "ids")
# Words of columns of numbers that are no text: what goes with token ids, and places on a page.
NO_IDS = {
    "mask", "masks", "label", "labels", "position", "positions", "type", "types", "bbox", "box", "boxes", "offset",
    "offsets", "span", "spans", "length", "lengths",
}  # fmt: skip
WORSE = {
    "rejected",
    "reject",
    "loser",
    "losing",
    "negative",
    "negatives",
    "dispreferred",
    "worse",
    "worst",
}  # answers
JUDGED = {
    "label",
    "labels",
    "accepted",
    "approved",
    "desirable",
    "good",
    "preferred",
    "correct",
}  # what answers are
MORE = 10  # times as much as in the column that would be taken; then that is not what is meant


def choose_columns(rows: Sequence[Mapping[str, Any]], file: str) -> dict[str, str]:
    """Configuration keys such as `text_column`, each with the column it should name.

    Args:
        rows: the first rows of a file.
        file: its name, for errors.

    Raises:
        UserError: no column holds anything that can be trained on.
    """
    columns = list(dict.fromkeys(name for row in rows for name in (*names_of(row), *row)))
    talks = [c for c in columns if _all(rows, c, is_messages)]
    alone = len(talks) == 1
    whole = [c for c in _wanted(talks) if any(is_answered(value_of(row, c), alone=alone) for row in rows)]
    if whole:
        return {"messages_column": whole[0]}
    if talks:
        raise UserError(
            f"no column holds messages with answers to them (it has {', '.join(talks)})", file=file, key=KEY,
            remedy="write all messages of a conversation into one column",
        )  # fmt: skip
    texts = _wanted([c for c in columns if _all(rows, c, lambda value: isinstance(value, str), part=MOSTLY)])
    parts = {c.partition(".")[0]: c for c in reversed(texts)}  # of `prompt` and of `prompt.text`
    whole = [c for c in texts if c.partition(".")[0] not in (*PROMPTS, *ANSWERS)]
    named = [c for word in TEXT for c in whole if c.rpartition(".")[2] == word]
    if text := min(named, key=lambda c: c.count("."), default=None):
        return {"text_column": text}
    for prompt, answer in product(PROMPTS, ANSWERS):
        if prompt in parts and answer in parts:
            return {"prompt_column": parts[prompt], "completion_column": parts[answer]}

    def held(column: str) -> int:
        values = [value_of(row, column) for row in rows]
        return sum(len(value) for value in values if isinstance(value, str | bytes | list))

    numbers = [c for c in columns if _all(rows, c, _is_ids) and not NO_IDS & {*words(c)}]
    called = [c for word in IDS for c in numbers if c.rpartition(".")[2] == word]
    ids = called[0] if called else max(numbers, key=held, default=None)
    longest = max(texts, key=held, default=None)
    unread = max(
        (c for c in columns if c not in (*texts, *numbers)), key=lambda c: _size(rows, c), default=None
    )
    if ids is None and longest and unread and _size(rows, unread) > MORE * held(longest):
        raise UserError(
            f"most of what its rows hold is in `{unread}`, whose values are no text",
            file=file, key=KEY, remedy="write it as text into a column `text`, or as `messages`",
        )  # fmt: skip
    if ids is not None and (longest is None or BYTES_PER_TOKEN * held(ids) >= held(longest)):
        return {"tokens_column": ids}
    if longest is not None:
        if file_format(file) == "csv" and len(longest.split()) > WORDS:
            raise UserError(
                f"has no line with the names of its columns before the first row ({longest[:40]}...)",
                file=file, key=KEY, remedy="write one, such as text",
            )  # fmt: skip
        return {"text_column": longest}
    raise UserError(
        f"no column holds text, messages or token ids (it has {', '.join(columns) or 'none'})",
        file=file,
        key=KEY,
        remedy='write rows such as {"text": "..."}',
    )


def _wanted(columns: list[str]) -> list[str]:
    """Without those that hold answers found worse than others; a chosen one first."""
    left = [c for c in columns if not WORSE & {*words(c)}]
    return sorted(left, key=lambda c: "chosen" not in words(c))


def _size(rows: Sequence[Mapping[str, Any]], column: str) -> int:
    """Characters of text in a column of any kind; numbers and truths hold none."""

    def inside(value: Any) -> int:
        if isinstance(value, str | bytes):
            return len(value)
        if isinstance(value, Mapping):
            return sum(map(inside, value.values()))
        return sum(map(inside, value)) if isinstance(value, list) else 0

    return sum(inside(value_of(row, column)) for row in rows)


MOSTLY = 0.9  # of the values of a column of text, at least: the reader names the one that is none


def _all(rows: Sequence[Mapping[str, Any]], column: str, fits: Any, part: float = 1.0) -> bool:
    """Whether every value (or so many) that is there fits, and there is one; an empty list may be one of anything."""
    found = [value for row in rows if (value := value_of(row, column)) is not None and value != []]
    values = [value for value in found if value == value]  # NaN, as pandas writes nothing
    return bool(values) and sum(bool(fits(value)) for value in values) >= part * len(values)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


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
        rows: list[dict[str, Any]] = []
        read = 0
        for batch in parquet.iter_batches(batch_size=rows_at_once(parquet)):
            batch.validate(full=True)  # else a damaged file can crash the process
            rows += batch.to_pylist()
            read += size_of(batch)
            if len(rows) >= ROWS or read > UNPACKED:
                break
        return Sample(rows[:ROWS], float(parquet.metadata.num_rows))


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


FILES = 3  # of a domain that are looked into
TRIED = 256  # files of a domain whose beginnings are read
FEW = 500  # documents up to which all are read, to see which ones would be held out
TEXTS = 200  # documents kept as a sample
TURN = 24  # characters that a template's marks around a message are worth
BYTES_PER_TOKEN = 3.0  # before a tokenizer is there to measure it


@dataclass(frozen=True)
class Domain:
    """A domain as it will stand in the configuration, and how much there is of it.

    Args:
        part: name, paths and files.
        columns: configuration keys such as `text_column` with their columns.
        kind: what a document is.
        documents: how many, estimated where there are many; 0: not known (token ids).
        size: characters of text, or token ids.
        texts: some documents' texts, in order.
        draws: of every document, where it falls in [0, 1): those below `eval_fraction` are held out, or the least.
            Empty where there are so many that it does not matter.
        lengths: characters of the same documents.
        whole: characters that nine of ten documents stay below, where none is cut or joined to others; 0: they are.
        beside: columns with text that is not taken.
    """

    part: Part
    columns: dict[str, str]
    kind: Kind
    documents: float
    size: float
    texts: list[str] = field(repr=False, default_factory=list)
    draws: np.ndarray = field(repr=False, default_factory=lambda: np.zeros(0))
    lengths: np.ndarray = field(repr=False, default_factory=lambda: np.zeros(0))
    whole: float = 0.0
    beside: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the domain."""
        return self.part.name

    def held_out(self, fraction: float, seq_len: int) -> tuple[float, float]:
        """Characters (or ids) on the held-out side and on the training side of a split."""
        if not len(self.draws):
            return self.size * fraction, self.size * (1 - fraction)
        least = seq_len * (1.0 if self.kind == "tokens" else BYTES_PER_TOKEN)
        out = filled(self.draws < fraction, self.draws, self.lengths, fraction, least)
        held = float(self.lengths[out].sum())
        return held, float(self.lengths.sum()) - held


def without_bad(part: Part, copies: Mapping[str, str] | None = None) -> tuple[Part, list[UserError]]:
    """A domain without its files that are empty or broken, or copies of others, and an error for each of these.

    Args:
        part: the domain.
        copies: files that are copies, each with the path of another one.

    Raises:
        UserErrors: none is left.
    """
    errors: list[UserError] = []
    good: list[InputFile] = []
    for number, file in enumerate(part.files):
        try:
            if not file.size:
                raise UserError(
                    "is empty", file=file.path, key=KEY, remedy="leave it out, or write text into it"
                )
            if number < TRIED and file_format(file.path) != "tokens" and not sample(file).rows:
                raise UserError(
                    "holds no row", file=file.path, key=KEY, remedy="leave it out, or write text into it"
                )
            if copies and file.path in copies:
                raise UserError(
                    f"is a copy of {copies[file.path]}", file=file.path, key=KEY, remedy="remove one of them"
                )
            good.append(file)
        except UserError as error:
            errors.append(error)
    if not errors:
        return part, []
    if not good:
        raise UserErrors(errors)
    return replace(part, paths=[file.path for file in good], files=good), errors


def inspect_part(part: Part) -> Domain:
    """Find out what a domain holds from a few of its files.

    Raises:
        UserError: a file is broken, holds nothing to train on, or there is a single document.
    """
    files = [file for file in part.files if file.size]
    if not files:
        raise UserError(
            "is empty", file=part.files[0].path, key=KEY, remedy="leave it out, or write text into it"
        )
    if {file_format(file.path) for file in files} == {"tokens"}:
        return _ids(part)
    chosen = [files[round(i)] for i in np.linspace(0, len(files) - 1, min(FILES, len(files)))]
    samples = [sample(file) for file in chosen]
    rows = [row for each in samples for row in each.rows]
    if not rows:
        raise UserError(
            "holds no row", file=chosen[0].path, key=KEY, remedy="leave it out, or write text into it"
        )
    columns = choose_columns(rows, chosen[0].path)
    documents = sum(each.total for each in samples) * sum(f.size for f in files) / sum(f.size for f in chosen)
    source = SourceConfig(path=part.paths, **columns)  # type: ignore[arg-type]
    kind: Kind = {"text_column": "text", "messages_column": "messages", "tokens_column": "tokens"}.get(
        next(iter(columns)), "prompt"
    )  # type: ignore[assignment]
    beside = _beside(rows, columns)
    if documents <= FEW:
        return _few(part, columns, kind, list(iter_documents(source, part.name, section=KEY)), beside)
    found: list[Document] = []
    for document in iter_documents(source, part.name, section=KEY):
        found.append(document)
        if len(found) == TEXTS:
            break
    lengths = _lengths(found)
    return Domain(
        part, columns, kind, documents, documents * float(lengths.mean()), _texts(found),
        whole=_whole(kind, lengths), beside=beside,
    )  # fmt: skip


def _few(
    part: Part, columns: dict[str, str], kind: Kind, documents: Sequence[Document], beside: list[str]
) -> Domain:
    if len(documents) < 2:
        raise UserError(
            "holds a single document, and one has to be held out",
            file=part.files[0].path,
            key=KEY,
            remedy="write a row for each chapter, page or section",
        )
    lengths = _lengths(documents)
    draws = np.array([document.digest() / 2.0**64 for document in documents])
    return Domain(
        part, columns, kind, len(documents), float(lengths.sum()), _texts(documents), draws, lengths,
        _whole(kind, lengths), beside,
    )  # fmt: skip


def _texts(documents: Sequence[Document]) -> list[str]:
    some = documents[:TEXTS]
    return [text for each in some for text in [*each.texts(), *_calls(each)]]


def _calls(document: Document) -> list[str]:
    """Tools and calls, about as a template writes them."""
    tools = [json.dumps(document.tools, ensure_ascii=False, default=str)] if document.tools else []
    return tools + document.calls()


def _lengths(documents: Sequence[Document]) -> np.ndarray:
    """Characters of each document as it is trained on; token ids count as one."""
    return np.array(
        [each.length() + sum(map(len, _calls(each))) + TURN * len(each.messages or []) for each in documents],
        dtype=np.float64,
    )


def _whole(kind: Kind, lengths: np.ndarray) -> float:
    return float(np.quantile(lengths, 0.9)) if kind in ("prompt", "messages") else 0.0


def _beside(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> list[str]:
    """Columns that hold as much text as a tenth of what is taken, and are not."""

    def held(column: str) -> int:
        return sum(len(json.dumps(value_of(row, column), default=str, ensure_ascii=False)) for row in rows)

    least = sum(map(held, columns.values())) / 10
    taken = {*columns.values(), TOOLS}
    names = dict.fromkeys(name for row in rows for name in names_of(row))
    others = [c for c in names if c not in taken and not any(c.startswith(f"{name}.") for name in taken)]
    judged = [
        c for c in others if JUDGED & {*words(c)} and _all(rows, c, lambda value: isinstance(value, bool))
    ]
    words_in = [c for c in others if _size(rows, c) and any(" " in str(value_of(row, c)) for row in rows)]
    return [c for c in others if c in judged or (c in words_in and held(c) >= least)]


def _ids(part: Part) -> Domain:
    """How many ids there are: each file may have a type of its own."""
    size = sum(_count(file) for file in part.files[:TRIED])
    looked_at = sum(file.size for file in part.files[:TRIED])
    if not size:
        raise UserError("holds no token id", file=part.files[0].path, key=KEY, remedy="leave it out")
    return Domain(part, {}, "tokens", 0.0, size * part.size / looked_at)


def _count(file: InputFile) -> float:
    with reading(file.path, KEY):
        refuse_pointer(file, KEY)
        if megatron.is_indexed(file.path):
            return float(megatron.read_index(file.path)[1][-1:].sum())
        dtype = raw_dtype(file.path, wanted=None, vocabulary=None, key=KEY)
        return raw_count(file.path, dtype)
