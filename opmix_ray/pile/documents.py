"""The documents of a pile: read as often as needed through the readers of all formats, never held all at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from opmix_ray.config import SourceConfig
from opmix_ray.errors import UserError, UserErrors, first_line, user_errors
from opmix_ray.init.discover import Part
from opmix_ray.init.discover import discover as parts_of
from opmix_ray.init.inspect import choose_columns, sample, without_bad
from opmix_ray.paths import file_format
from opmix_ray.sources.plain import reader
from opmix_ray.sources.source import Document, Source, open_source, read_file

KEY = "FILES"
EXCERPT = 2000  # characters of a document that its domain is told by: the first half of them, and as many in its middle
_LOOKED = 3  # files of a part whose rows say which columns there are


@dataclass(frozen=True)
class PileDocument:
    """One document of the pile.

    Args:
        text: at most `EXCERPT` characters of it.
        size: characters of all of it, or token ids.
        row: it as a row of JSON, without where it comes from.
        file: that it stands in.
        number: of its row there, counted from 1.
        position: of its row among all rows of the pile, empty ones counted, from 0.
        vector: as given in a column.
    """

    text: str
    size: int
    row: dict[str, Any]
    file: str
    number: int
    position: int
    vector: np.ndarray | None = None


@dataclass
class Pile:
    """Files as one stream of documents of one kind.

    Args:
        sources: with their columns found.
        decode: token ids as text; needed for these only.
        vectors: column with a vector for each row, if any.
        left_out: what cannot be read, in words.
        rows: seen at the last reading, empty ones counted.
    """

    sources: list[Source]
    decode: Callable[[np.ndarray], str] | None = None
    vectors: str | None = None
    left_out: list[str] = field(default_factory=list)
    rows: int = 0

    @property
    def kind(self) -> str:
        """What a document is: text, prompt, messages or tokens."""
        return self.sources[0].kind

    def columns(self) -> dict[str, str]:
        """The keys of a configuration for rows as `PileDocument.row` has them."""
        return {
            "text": {"text_column": "text"},
            "prompt": {"prompt_column": "prompt", "completion_column": "completion"},
            "messages": {"messages_column": "messages"},
            "tokens": {"tokens_column": "input_ids"},
        }[self.kind]

    def entries(self) -> Iterator[PileDocument]:
        """Every document with something in it, files in order.

        Raises:
            UserError: a file is broken, or a row has no vector where all must have one.
        """
        self.rows = 0
        for source in self.sources:
            for file in source.files:
                vectors = self._vectors(source, file.path)
                for number, document in enumerate(read_file(source, file), start=1):
                    vector = None if vectors is None else _vector(next(vectors), file.path, number)
                    self.rows += 1
                    if document is None:
                        continue
                    text = excerpt(document, self.decode)
                    if text.strip():
                        row = _row(document)
                        yield PileDocument(
                            text, document.length(), row, file.path, number, self.rows - 1, vector
                        )

    def _vectors(self, source: Source, file: str) -> Iterator[Any] | None:
        if self.vectors is None:
            return None
        kind = file_format(file) if source.config.format == "auto" else source.config.format
        if kind not in ("jsonl", "json", "parquet", "arrow", "hf"):
            raise UserError(
                "has no columns with vectors", file=file, key="--vectors", value=self.vectors,
                remedy="give them as a .npy file",
            )  # fmt: skip
        return _column(reader("arrow" if kind == "hf" else str(kind)), file, self.vectors)


def open_pile(files: Sequence[str], tokenizer: str | None, vectors: str | None) -> Pile:
    """Find the files of a pile, their columns, and that all hold documents of one kind.

    Raises:
        UserError: no file, nothing readable, documents of several kinds, or token ids without a tokenizer.
    """
    if not files:
        raise UserError(
            "no file is named", key=KEY, remedy="give files or a folder: opmix discover pile.jsonl"
        )
    decode, eos = _decoder(tokenizer)
    errors: list[UserError] = []
    pile = Pile([], decode, vectors)
    for part in _parts(files):
        try:
            good, bad = without_bad(part)
        except UserErrors as error:
            errors += error.errors
            continue
        errors += bad
        pile.left_out += [f"{path}: is named as a held-out split" for path in good.left_out]
        try:
            columns = _columns(good)
        except UserError as error:
            errors.append(error)
            continue
        config = SourceConfig(path=[file.path for file in good.files], **columns)  # type: ignore[arg-type]
        pile.sources.append(open_source(config, KEY, eos=eos))
    if not pile.sources:
        raise UserErrors([_about_files(error) for error in errors])
    pile.left_out += [str(_about_files(error)) for error in errors]
    _same_kind(pile.sources)
    if pile.kind == "tokens" and decode is None:
        raise UserError(
            "holds token ids, whose words are not known",
            file=pile.sources[0].files[0].path,
            key="--tokenizer",
            remedy="name the tokenizer that made them",
        )
    return pile


def _parts(files: Sequence[str]) -> list[Part]:
    try:
        return parts_of(files)
    except UserError as error:
        raise UserErrors([_about_files(one) for one in user_errors(error)]) from None


def _about_files(error: UserError) -> UserError:
    """An error of `opmix init`'s readers, about the files given here."""
    key = KEY if error.key == "--data" else error.key
    return UserError(error.problem, file=error.file, key=key, value=error.value, remedy=error.remedy)


def _columns(part: Part) -> dict[str, str]:
    kinds = {file_format(file.path) for file in part.files}
    if kinds <= {"tokens"}:
        return {}
    files = [part.files[round(i)] for i in np.linspace(0, len(part.files) - 1, min(_LOOKED, len(part.files)))]
    return choose_columns([row for file in files for row in sample(file).rows], files[0].path)


def _same_kind(sources: Sequence[Source]) -> None:
    first = sources[0]
    for other in sources:
        if other.kind != first.kind:
            raise UserError(
                f"holds {other.kind}, and {first.files[0].path} holds {first.kind}",
                file=other.files[0].path,
                key=KEY,
                remedy="discover each on its own",
            )


def _decoder(tokenizer: str | None) -> tuple[Callable[[np.ndarray], str] | None, int | None]:
    if tokenizer is None:
        return None, None
    from opmix_ray.data.tokenizer import load_tokenizer_from  # transformers only for what needs it

    try:
        loaded = load_tokenizer_from(tokenizer)
    except UserError as error:
        raise UserError(
            error.problem, key="--tokenizer", value=error.value or tokenizer, remedy=error.remedy
        ) from None
    return lambda ids: str(loaded.decode(ids)), loaded.eos_token_id


def excerpt(document: Document, decode: Callable[[np.ndarray], str] | None = None) -> str:
    """What a document's domain is told by."""
    if document.ids is not None:
        assert decode is not None
        ids, half = document.ids, EXCERPT // 4
        middle = len(ids) // 2
        kept = ids if len(ids) <= 2 * half else np.concatenate([ids[:half], ids[middle : middle + half]])
        return decode(kept)[:EXCERPT]
    text = "\n".join(document.texts())
    if len(text) <= EXCERPT:
        return text
    half, middle = EXCERPT // 2, len(text) // 2
    return f"{text[:half]} {text[middle : middle + half - 1]}"


def _row(document: Document) -> dict[str, Any]:
    if document.ids is not None:
        return {"input_ids": document.ids.tolist()}
    if document.messages is not None:
        tools = {"tools": document.tools} if document.tools else {}
        return {"messages": document.messages, **tools}
    if document.completion is not None:
        return {"prompt": document.prompt or "", "completion": document.completion}
    return {"text": document.text}


def _column(read: Callable[..., Iterator[Any]], file: str, name: str) -> Iterator[Any]:
    """Values of the column with vectors.

    Raises:
        UserError: the file has no such column, or what the reader says of it.
    """
    try:
        yield from (row.values[0] for row in read(file, {"vectors_column": name}, KEY))
    except UserError as error:
        if error.key is None or not error.key.endswith("vectors_column"):
            raise
        has = (error.remedy or "").rpartition("it has: ")[2]
        raise UserError(
            error.problem, file=file, key="--vectors", value=error.value,
            remedy=f"name a column with a vector in every row; it has: {has}",
        ) from None  # fmt: skip


def _vector(value: Any, file: str, number: int) -> np.ndarray:
    try:
        vector = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        vector = np.zeros((0, 0), np.float32)
    if vector.ndim != 1 or not len(vector):
        raise UserError(
            f"row {number} is not a list of numbers", file=file, key="--vectors",
            remedy="name a column with a vector in every row",
        )  # fmt: skip
    if not np.isfinite(vector).all():
        raise UserError(
            f"row {number} holds a number that is not finite", file=file, key="--vectors", remedy="mend the vectors"
        )  # fmt: skip
    return vector


class VectorFile:
    """A .npy file with a vector for every document of a pile.

    Args:
        path: of the file.

    Raises:
        UserError: it cannot be read, or does not hold rows of numbers.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.array = np.load(Path(os.path.expanduser(path)), mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise UserError("no such file", file=path, key="--vectors", remedy="check the path") from None
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"cannot be read: {first_line(error)}", file=path, key="--vectors",
                remedy="write it with numpy.save, as an array of documents by numbers",
            ) from None  # fmt: skip
        if (
            not isinstance(self.array, np.ndarray)
            or self.array.ndim != 2
            or self.array.dtype.kind not in "fiu"
        ):
            shape = getattr(self.array, "shape", ())
            raise UserError(
                f"holds an array of shape {shape}, not documents by numbers",
                file=path,
                key="--vectors",
                remedy="write one row of numbers for each document",
            )
        if not self.array.shape[1]:
            raise UserError(
                "holds vectors of no numbers", file=path, key="--vectors", remedy="mend the vectors"
            )
        self._check()

    def _check(self) -> None:
        for start in range(0, len(self.array), 1 << 14):
            finite = np.isfinite(self.array[start : start + (1 << 14)]).all(axis=1)
            if not finite.all():
                row = start + int(np.argmin(finite)) + 1
                raise UserError(
                    f"row {row} holds a number that is not finite",
                    file=self.path,
                    key="--vectors",
                    remedy="mend the vectors",
                )

    def by_row(self, rows: int, documents: int) -> bool:
        """Whether vectors stand for all rows (else for those with something in them).

        Raises:
            UserError: there is another number of them.
        """
        if len(self.array) not in (rows, documents):
            empty = f" ({rows} rows, {rows - documents} of them empty)" if rows != documents else ""
            raise UserError(
                f"holds {len(self.array)} vectors for {documents} documents{empty}",
                file=self.path,
                key="--vectors",
                remedy="write one for each document, in their order",
            )
        return len(self.array) == rows
