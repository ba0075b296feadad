"""Documents out of files: JSONL, Parquet, Arrow, saved data sets, Megatron's indexed ones, and raw token arrays.

    for document in iter_documents(config.data.domains["code"], "code"):
        document.text

Everything a user can get wrong is a `UserError` that names the file and the key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, get_args

import numpy as np

from opmix_ray.config import RunConfig, SourceConfig
from opmix_ray.config.data import BuiltInFormat
from opmix_ray.errors import UserError, UserErrors
from opmix_ray.overlap.leaks import bare, normal
from opmix_ray.paths import Kind, file_format
from opmix_ray.sources import megatron, readers
from opmix_ray.sources.files import InputFile, filesystem, reading
from opmix_ray.sources.lines import refuse_pointer
from opmix_ray.sources.listing import data_set_files, expand, identity
from opmix_ray.sources.megatron import raw_dtype
from opmix_ray.sources.messages import messages, tools
from opmix_ray.sources.plain import check_format, how_read, reader

TOOLS = "tools"  # column with the tools that a conversation's assistant may call, read where it is there
THOUGHTS = (
    "reasoning_content",
    "reasoning",
    "thinking",
)  # names of a message's field, by those who write them
CHECKED_FILES = 32  # of each source, by `validate_sources`


@dataclass(frozen=True, slots=True)
class Document:
    """One document: exactly one of text, prompt and completion, messages (with tools or without), or token ids.

    `complete` is False for a block out of a token stream without end-of-text ids, and for a row of ids that
    several documents were packed into: nothing is appended to these.
    """

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    ids: np.ndarray | None = None
    complete: bool = True

    def length(self) -> int:
        """Characters of text, or token ids."""
        if self.ids is not None:
            return len(self.ids)
        if self.messages is not None:
            return sum(len(str(message["content"])) for message in self.messages)
        return len(self.text or "") + len(self.prompt or "") + len(self.completion or "")

    def texts(self) -> list[str]:
        """Every text in the document, in order; none for token ids."""
        if self.messages is not None:
            return [str(message["content"]) for message in self.messages]
        return [text for text in (self.text, self.prompt, self.completion) if text]

    def calls(self) -> list[str]:
        """The tool calls of each message that has any, as JSON; none of a system's."""
        said = [message for message in self.messages or [] if message["role"] != "system"]
        return [json.dumps(m["tool_calls"], ensure_ascii=False) for m in said if m.get("tool_calls")]

    def words(self) -> str:
        """What is said, in words that are the same in every shape of row, for every change of case, punctuation, blank
        space and markup; empty for token ids. What a system says is left out, since it stands in every conversation.
        """
        return normal(bare(self._said()))

    def aside(self) -> str:
        """Words that stand beside what is said: of a system, and thoughts in a field of their own."""
        if self.messages is None:
            return ""
        beside = [m["content"] for m in self.messages if m["role"] == "system"]
        beside += [m[name] for m in self.messages for name in THOUGHTS if isinstance(m.get(name), str)]
        return normal(bare(" ".join(map(str, beside))))

    def digest(self, words: str | None = None) -> int:
        """A 64-bit hash of what is said (of the content as it is, where that has no words), the same wherever it lies.

        Args:
            words: `words()`, where they are known.
        """
        if self.ids is not None:
            data = b"i" + self.ids.astype("<u4").tobytes()
        else:
            said = self._said()
            words = normal(said) if words is None or bare(said) != said else words
            data = (words or "\0".join(self.texts())).encode()
        return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")

    def _said(self) -> str:
        if self.messages is None:
            return " ".join(text for text in (self.text, self.prompt, self.completion) if text)
        said = [str(message["content"]) for message in self.messages if message["role"] != "system"]
        return " ".join(said + self.calls())


@dataclass(frozen=True)
class Source:
    """A source with its files found: what is needed to read any one of them, anywhere.

    Args:
        config: the source as configured.
        key: dotted configuration key of the source, for errors.
        kind: what a document is.
        files: its files, in order.
        eos: id of the end-of-text token, at which raw token streams are split.
        block: tokens in a document of a stream without end-of-text tokens.
        vocabulary: size of the tokenizer's, where it is known.
        companions: files that are read together with these: the index of each Megatron `.bin`.
    """

    config: SourceConfig
    key: str
    kind: Kind
    files: list[InputFile] = field(default_factory=list)
    eos: int = -1
    block: int = 64 * 1024
    vocabulary: int | None = None
    companions: list[InputFile] = field(default_factory=list)

    def formats(self) -> list[list[str]]:
        """How each file is read: by its name, as configured, or by code that another package brings."""
        key = f"{self.key}.path"
        return [how_read(_format(file, self.config, key), file.path) for file in self.files]

    def recipe(self) -> str:
        """Everything besides the files' bytes and formats that the documents depend on."""
        c = self.config
        columns = [c.text_column, c.prompt_column, c.completion_column, c.messages_column, c.tokens_column]
        stream = [c.token_dtype, self.eos, self.block] if self.kind == "tokens" else []
        return json.dumps([self.kind, columns, stream])


def open_source(
    source: SourceConfig,
    key: str,
    *,
    eos: int | None = None,
    block: int = 64 * 1024,
    vocabulary: int | None = None,
) -> Source:
    """Find a source's files and what kind of documents they hold, without reading them.

    Raises:
        UserError: no file matches, a file's format is unknown, or the columns contradict each other.
    """
    check_format(source.format, key)
    paths = source.path if isinstance(source.path, list) else [source.path]
    if not paths:
        raise UserError("names no file", key=f"{key}.path", remedy="name at least one file")
    files: dict[str, InputFile] = {}
    for path in paths:
        for file in _files(path, source, f"{key}.path"):
            files.setdefault(identity(file.path), file)
    for file in files.values():
        with reading(file.path, f"{key}.path"):
            refuse_pointer(file, f"{key}.path")
    kind = _kind(source, key)
    formats = {_format(file, source, f"{key}.path") for file in files.values()}
    if formats & {"tokens", "megatron"}:
        if formats == {"tokens", "megatron"}:
            alone = next(f for f in files.values() if not megatron.is_indexed(f.path))
            raise UserError(
                "has no index beside it, as others here have", file=alone.path, key=f"{key}.path",
                remedy="get its .idx file too, or make a domain of its own of it",
            )  # fmt: skip
        if len(formats) > 1:
            raise UserError(
                "mixes token files with other formats",
                key=f"{key}.path",
                remedy="make two domains of them",
            )
        kind = "tokens"
    if "text" in formats and len(formats) > 1:
        odd = next(file for file in files.values() if _format(file, source, f"{key}.path") == "text")
        raise UserError(
            "is text among files with rows", file=odd.path, key=f"{key}.path",
            remedy="name the others by their ending, such as *.jsonl, or make two domains of them",
        )  # fmt: skip
    found = list(files.values())
    companions = [_index(file, f"{key}.path") for file in found] if formats == {"megatron"} else []
    return Source(source, key, kind, found, -1 if eos is None else eos, block, vocabulary, companions)


def _index(file: InputFile, key: str) -> InputFile:
    found = megatron.find(file.path)
    if found is None:
        raise UserError(
            "has no index beside it",
            file=file.path,
            key=key,
            remedy="name the common prefix of a .bin and an .idx file, or set the format to tokens",
        )
    with reading(found.path, key):
        refuse_pointer(found, key)
    return found


def _files(path: str, source: SourceConfig, key: str) -> list[InputFile]:
    filesystem(path, key=key)
    if source.format in ("auto", "megatron"):
        with reading(path, key):
            prefixed = megatron.find_prefixed(path)
        if prefixed is not None:
            return [prefixed]
    if source.format in ("auto", "hf"):
        saved = data_set_files(path, key=key, required=source.format == "hf")
        if saved is not None:
            return saved
    found = expand(path, key=key, recognised_only=source.format in ("auto", "megatron"))
    return [file for file in found if not megatron.is_index(file.path)]


def _kind(source: SourceConfig, key: str) -> Kind:
    given = [
        name
        for name in ("tokens_column", "messages_column", "completion_column", "prompt_column")
        if getattr(source, name) is not None
    ]
    if given in (["completion_column"], ["prompt_column"]):
        raise UserError(
            "prompt_column and completion_column need each other", key=key, value=given[0], remedy="give both"
        )
    if len(given) > 1 and given != ["completion_column", "prompt_column"]:
        raise UserError(
            f"{' and '.join(given)} exclude each other", key=key, remedy="keep the one that fits the data"
        )
    if not given:
        return "text"
    return {"tokens_column": "tokens", "messages_column": "messages"}.get(given[0], "prompt")  # type: ignore[return-value]


def _format(file: InputFile, source: SourceConfig, key: str) -> str:
    found = file_format(file.path)
    if source.format != "auto":
        return "arrow" if source.format == "hf" else source.format
    if found == "tokens" and megatron.is_indexed(file.path):
        return "megatron"
    if found is None:
        raise UserError(
            "the file ending does not say the format",
            file=file.path,
            key=key,
            remedy=f"set {key.removesuffix('.path')}.format to one of {', '.join(get_args(BuiltInFormat)[1:])}",
        )
    return found


def read_file(source: Source, file: InputFile) -> Iterator[Document | None]:
    """Documents of one file in order; None for a row whose content is null or empty.

    Raises:
        UserError: the file is broken, or a column is missing or of a wrong type.
    """
    config = source.config
    kind = _format(file, config, f"{source.key}.path")
    if kind == "tokens":
        dtype = ids_dtype(source, file)
        with reading(file.path, f"{source.key}.path"):
            yield from _stream_documents(source, file, dtype)
        return
    if kind == "megatron":
        key = f"{source.key}.path"
        with reading(file.path, key):
            check = partial(
                megatron.refuse_narrow, file=file.path, wanted=config.token_dtype, vocabulary=source.vocabulary,
                key=source.key,
            )  # fmt: skip
            for ids in megatron.documents(file.path, check):
                yield _ids_document(source, readers.token_ids(ids, file.path, key, "a document"))
        return
    columns = _columns(source)
    rows = reader(kind)(file.path, columns, source.key)
    with reading(file.path, f"{source.key}.path"):
        for row in rows:
            yield _document(source, file, row)


def ids_dtype(source: Source, file: InputFile) -> np.dtype[Any]:
    """The type of the ids in a raw file without a header.

    Raises:
        UserError: the file contradicts what is configured, or does not show it.
    """
    wanted = source.config.token_dtype
    return raw_dtype(file.path, wanted=wanted, vocabulary=source.vocabulary, key=source.key)


def _columns(source: Source) -> dict[str, str]:
    """Column name by the configuration key that names it."""
    names = {
        "text": ["text_column"],
        "prompt": ["prompt_column", "completion_column"],
        "messages": ["messages_column"],
        "tokens": ["tokens_column"],
    }[source.kind]
    found = {name: str(getattr(source.config, name)) for name in names}
    return found | ({"tools_column": TOOLS} if source.kind == "messages" else {})


def _document(source: Source, file: InputFile, row: readers.Row) -> Document | None:
    values = row.values
    if source.kind == "tokens":
        key = f"{source.key}.tokens_column"
        return _ids_document(source, readers.token_ids(values[0], file.path, key, row.place))
    if source.kind == "messages":
        found = messages(values[0], file.path, f"{source.key}.messages_column", row.place)
        return Document(messages=found, tools=tools(values[1])) if found else None
    texts = [
        readers.text(value, file.path, f"{source.key}.{name}", row.place)
        for value, name in zip(values, _columns(source), strict=True)
    ]
    if source.kind == "prompt":
        prompt, completion = texts
        return Document(prompt=prompt or "", completion=completion) if completion else None
    return Document(text=texts[0]) if texts[0] else None


def _ids_document(source: Source, ids: np.ndarray | None) -> Document | None:
    if ids is None or len(ids) == 0:
        return None
    if len(ids) > 1 and ids[-1] == source.eos and not (ids[:-1] == source.eos).any():
        return Document(ids=ids[:-1])
    return Document(ids=ids, complete=not (ids == source.eos).any())


def _stream_documents(source: Source, file: InputFile, dtype: np.dtype[Any]) -> Iterator[Document]:
    for ids, complete in megatron.token_stream(file.path, dtype, source.eos, source.block):
        if len(ids):
            yield Document(ids=ids, complete=complete)


def iter_documents(
    source: SourceConfig, domain: str, tokenizer: Any = None, *, section: str = "data.domains"
) -> Iterator[Document]:
    """All documents of a source: files in order, then rows; null and empty ones are left out.

    Args:
        source: where they are.
        domain: its name, for errors.
        tokenizer: its end-of-text token splits raw token streams; needed for those only.
        section: the configuration section that holds `domain`, for errors.

    Raises:
        UserError: see the module; also when there is no document at all.
    """
    eos = None if tokenizer is None else tokenizer.eos_token_id
    found = open_source(source, f"{section}.{domain}", eos=eos)
    documents = 0
    for file in found.files:
        for document in read_file(found, file):
            if document is not None:
                documents += 1
                yield document
    if not documents:
        raise empty_source(found)


def empty_source(source: Source) -> UserError:
    """The error for a source without a single document."""
    return UserError(
        "holds no document",
        file=source.files[0].path if len(source.files) == 1 else None,
        key=f"{source.key}.path",
        remedy="check that the files are not empty and that the column holds text",
    )


def validate_names(config: RunConfig) -> list[UserError]:
    """An error for each evaluation-only set that has the name of a domain."""
    return [
        UserError(
            "has the name of a domain",
            key=f"evaluation.sets.{name}",
            remedy="give it another name: a domain's held-out part is evaluated on anyway",
        )
        for name in config.evaluation.sets
        if name in config.data.domains
    ]


def validate_sources(config: RunConfig) -> list[UserError]:
    """Everything wrong with the sources that the first rows of their files tell, for all sources in one go.

    Returns:
        One error for each thing wrong; none when all is well.
    """
    errors = validate_names(config)
    sources: dict[str, SourceConfig] = {
        f"data.domains.{name}": source for name, source in config.data.domains.items()
    }
    sources |= {
        f"evaluation.sets.{name}": source
        for name, source in config.evaluation.sets.items()
        if source.metric == "loss"
    }
    for key, source in sources.items():
        try:
            found = open_source(source, key)
        except UserError as error:
            errors += error.errors if isinstance(error, UserErrors) else [error]
            continue
        errors += _validate_files(found)
    return errors


def _validate_files(source: Source) -> list[UserError]:
    if all(file.size == 0 for file in source.files):
        return [empty_source(source)]
    errors = []
    rows = 0
    for file in source.files[:CHECKED_FILES]:
        try:
            rows += _has_rows(source, file)
        except UserError as error:
            errors.append(error)
    if not rows and not errors and len(source.files) <= CHECKED_FILES:
        errors.append(empty_source(source))
    return errors


def _has_rows(source: Source, file: InputFile) -> bool:
    if source.kind == "tokens" and source.config.tokens_column is None:
        dtype = np.dtype("<u2") if source.companions else ids_dtype(source, file)
        with reading(file.path, f"{source.key}.path"):
            if source.companions:
                return len(megatron.read_index(file.path)[1]) > 0
            return any(len(part) for part in megatron.raw_ids(file.path, dtype))
    found = False
    for document in islice(read_file(source, file), readers.Needed.LOOKED):
        found = True
        if document is not None:
            break
    return found
