"""What each proposed domain holds: columns, documents, text, and how its documents can be held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from opmix_ray.config import SourceConfig
from opmix_ray.errors import UserError, UserErrors
from opmix_ray.init.columns import choose_columns
from opmix_ray.init.discover import KEY, Part
from opmix_ray.init.rows import sample
from opmix_ray.overlap.near import filled
from opmix_ray.paths import Kind, file_format
from opmix_ray.sources import megatron
from opmix_ray.sources.files import InputFile, reading
from opmix_ray.sources.lines import refuse_pointer
from opmix_ray.sources.readers import raw_count
from opmix_ray.sources.source import Document, iter_documents
from opmix_ray.sources.token_width import raw_dtype

FILES = 3  # of a domain that are looked into
TRIED = 256  # files of a domain whose beginnings are read
FEW = 500  # documents up to which all are read, to see which ones would be held out
TEXTS = 200  # documents kept as a sample
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
    """

    part: Part
    columns: dict[str, str]
    kind: Kind
    documents: float
    size: float
    texts: list[str] = field(repr=False, default_factory=list)
    draws: np.ndarray = field(repr=False, default_factory=lambda: np.zeros(0))
    lengths: np.ndarray = field(repr=False, default_factory=lambda: np.zeros(0))

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


def without_bad(part: Part) -> tuple[Part, list[UserError]]:
    """A domain without its files that are empty or broken, and an error for each of these.

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
            good.append(file)
        except UserError as error:
            errors.append(error)
    if not errors:
        return part, []
    if not good:
        raise UserErrors(errors)
    return replace(part, paths=[file.path for file in good], files=good), errors


def look(part: Part) -> Domain:
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
    if documents <= FEW:
        return _few(part, columns, kind, list(iter_documents(source, part.name, section=KEY)))
    found: list[Document] = []
    for document in iter_documents(source, part.name, section=KEY):
        found.append(document)
        if len(found) == TEXTS:
            break
    mean = float(np.mean([document.length() for document in found]))
    return Domain(part, columns, kind, documents, documents * mean, _texts(found))


def _few(part: Part, columns: dict[str, str], kind: Kind, documents: Sequence[Document]) -> Domain:
    if len(documents) < 2:
        raise UserError(
            "holds a single document, and one has to be held out",
            file=part.files[0].path,
            key=KEY,
            remedy="write a row for each chapter, page or section",
        )
    lengths = np.array([document.length() for document in documents], dtype=np.float64)
    draws = np.array([document.digest() / 2.0**64 for document in documents])
    return Domain(
        part, columns, kind, len(documents), float(lengths.sum()), _texts(documents), draws, lengths
    )


def _texts(documents: Sequence[Document]) -> list[str]:
    return [text for document in documents[:TEXTS] for text in document.texts()]


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
