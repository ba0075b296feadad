"""Documents of one file into blocks of ids: what a worker does, wherever it runs; and all blocks of a source, in order.

    recipe = Recipe(source, tokenizer, table)
    for block in recipe.blocks(source.files[0]):
        block.ids, block.lengths, block.leaked

A document's ids end with the end-of-text token. Which documents are held out is decided when all are there.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from opmix_ray.data.chat import ChatError, encode_chat
from opmix_ray.data.tokenizer import Encoder, vocabulary_size
from opmix_ray.errors import UserError
from opmix_ray.overlap.leaks import HASHES, Prints, Table, bare, normal
from opmix_ray.sources.files import InputFile
from opmix_ray.sources.source import Document, Source, read_file

MANY_FILES = 8  # from here on Ray Data reads the files side by side


def read_blocks(recipe: Recipe, on_progress: Callable[[int, int], None]) -> Iterator[Block]:
    """Every block of a source: files in order, then documents.

    Args:
        recipe: the source and what becomes of its documents.
        on_progress: called with bytes of files done (an estimate inside a file) and in all.

    Raises:
        UserError: see `Recipe.blocks`.
    """
    files = recipe.source.files
    total = sum(file.size for file in files)
    done = inside = at = 0
    for index, block in _ray_blocks(recipe) if len(files) >= MANY_FILES and _ray_runs() else _local(recipe):
        if index != at:
            done, inside, at = sum(file.size for file in files[:index]), 0, index
        inside = min(inside + block.read, files[index].size)
        on_progress(done + inside, total)
        yield block


def _local(recipe: Recipe) -> Iterator[tuple[int, Block]]:
    for index, file in enumerate(recipe.source.files):
        for block in recipe.blocks(file):
            yield index, block


def _ray_runs() -> bool:
    import ray

    return bool(ray.is_initialized())


def _ray_blocks(recipe: Recipe) -> Iterator[tuple[int, Block]]:
    """As `_local`, the files tokenised by Ray Data's workers; the order is the same.

    Whoever stops early lets the workers end by themselves, after the block that each is at: Ray 2.60 ends the driver
    ("Tried to complete task that was not pending") where Ray Data cancels a task at the moment that it completes.
    """
    import ray.data

    from opmix_ray.node import Over, here

    over: Any = Over.options(scheduling_strategy=here()).remote()  # type: ignore[attr-defined]

    def row(index: int, result: Block | Exception) -> dict[str, Any]:
        return {"file": np.array([index]), "result": np.array([pickle.dumps(result)], dtype=object)}

    def tokenise(batch: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        for index in batch["file"].tolist():
            try:
                for block in recipe.blocks(recipe.source.files[index]):
                    if ray.get(over.said.remote()):
                        return
                    yield row(index, block)
            except UserError as error:  # as a result, so that no trace of Ray's is printed around it
                yield row(index, error)
            except Exception as error:  # as well: a task that fails makes Ray Data cancel the others
                yield row(index, RuntimeError(f"{recipe.source.files[index].path}: {error!r}"))

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plans and progress are not ours to show
    context = ray.data.DataContext.get_current()
    before = context.execution_options.preserve_order, context.enable_progress_bars
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    try:  # a data set keeps the context it was made in
        count = len(recipe.source.files)
        files = ray.data.from_items([{"file": index} for index in range(count)], override_num_blocks=count)
        rows = files.map_batches(tokenise, batch_size=1).iter_rows()
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = before
    left = iter(rows)
    try:
        for found in left:
            result = pickle.loads(found["result"])
            if isinstance(result, Exception):
                raise result
            yield int(found["file"]), result
    finally:
        ray.get(over.say.remote())
        for _ in left:
            pass
        ray.kill(over)


BATCH_CHARACTERS = 1 << 21  # characters, or pre-tokenised ids, in one block
BATCH_DOCUMENTS = 4096
HEAD = 60  # characters of an evaluation document that are shown


@dataclass
class Block:
    """Some consecutive documents of a file, tokenised.

    `ids` uint32 of shape (sum(lengths),); `mask` bool of the same shape for instruction data; `lengths`,
    `digests`, `sizes` (UTF-8 bytes that the counted tokens stand for), `leaked` (the evaluation document in it, or -1)
    and `signatures` (MinHash) one entry a document.
    """

    ids: np.ndarray
    mask: np.ndarray | None
    lengths: np.ndarray
    digests: np.ndarray
    sizes: np.ndarray
    leaked: np.ndarray
    signatures: np.ndarray
    prints: Prints | None  # of evaluation sets
    heads: list[str]  # how each document of an evaluation set begins
    empty: int  # rows without content
    read: int  # characters or ids read, for progress

    def documents(self) -> Iterator[tuple[int, np.ndarray, np.ndarray | None, int]]:
        """digest, ids, mask and size of each document, in order."""
        ends = np.cumsum(self.lengths)
        for index, end in enumerate(ends.tolist()):
            part = slice(end - int(self.lengths[index]), end)
            mask = None if self.mask is None else self.mask[part]
            yield int(self.digests[index]), self.ids[part], mask, int(self.sizes[index])


@dataclass
class Recipe:
    """Everything that decides what a source's documents become.

    Args:
        source: the source, its files found.
        tokenizer: its tokenizer.
        table: evaluation documents that must not be trained on; None: the source is an evaluation set.
    """

    source: Source
    tokenizer: PreTrainedTokenizerFast
    table: Table | None

    def __post_init__(self) -> None:
        self._encoder = Encoder(self.tokenizer)
        self._vocabulary = vocabulary_size(self.tokenizer)
        if self.source.kind == "messages" and not self.tokenizer.chat_template:
            raise UserError(
                "the tokenizer has no chat template",
                key=f"{self.source.key}.messages_column",
                value=self.source.config.messages_column,
                remedy="use a tokenizer with one, or prompt_column and completion_column",
            )

    @property
    def masked(self) -> bool:
        """Whether some tokens do not count in the loss."""
        return self.source.kind in ("prompt", "messages")

    def blocks(self, file: InputFile) -> Iterator[Block]:
        """The documents of one file; a block is tokenised while the next one is read and the last one is used.

        Raises:
            UserError: the file is broken, lacks the column, or holds ids outside the vocabulary.
        """
        with ThreadPoolExecutor(1) as beside:
            ahead: Future[Block] | None = None
            for read in self._read(file):
                block, ahead = ahead, beside.submit(self._encode, *read, file)
                if block is not None:
                    yield block.result()
            if ahead is not None:
                yield ahead.result()

    def _read(self, file: InputFile) -> Iterator[tuple[list[Document], int, int]]:
        """Documents of a block, and numbers of empty rows, and characters or ids read."""
        pending: list[Document] = []
        empty = read = 0
        for document in read_file(self.source, file):
            if document is None:
                empty += 1
                continue
            read += document.length()
            pending.append(document)
            if read >= BATCH_CHARACTERS or len(pending) >= BATCH_DOCUMENTS:
                yield pending, empty, read
                pending, empty, read = [], 0, 0
        if pending or empty:
            yield pending, empty, read

    def _words(self, documents: list[Document]) -> list[str]:
        """What documents are compared by; ids are turned into text where there is something to compare them with."""
        if self.source.kind != "tokens":
            return [document.words() for document in documents]
        if self.table is not None and not len(self.table.digests):
            return [""] * len(documents)
        ids = [document.ids.tolist() for document in documents if document.ids is not None]
        return [normal(bare(text)) for text in self.tokenizer.backend_tokenizer.decode_batch(ids)]

    def _encode(self, documents: list[Document], empty: int, read: int, file: InputFile) -> Block:
        for document in documents:
            if document.ids is not None:
                self._check_ids(document.ids, file)
        words = self._words(documents)
        digests = np.array(
            [document.digest(each) for document, each in zip(documents, words, strict=True)], dtype=np.uint64
        )
        prints = Prints.of(words)
        table = Table() if self.table is None else self.table
        kind = self.source.kind
        if kind == "text":
            encoded = self._texts(documents)
        elif kind == "prompt":
            encoded = self._prompts(documents)
        elif kind == "messages":
            encoded = [self._chat(document, file) for document in documents]
        else:
            encoded = [self._tokens(document) for document in documents]
        ids = [item[0] for item in encoded]
        return Block(
            ids=np.concatenate([np.empty(0, np.int64), *ids]).astype(np.uint32),
            mask=np.concatenate([item[1] for item in encoded] or [np.empty(0, np.bool_)])
            if self.masked
            else None,
            lengths=np.array([len(item) for item in ids], dtype=np.int64),
            digests=digests,
            sizes=np.array([item[2] for item in encoded], dtype=np.int64),
            leaked=self._leaked(table, documents, prints, digests),
            signatures=prints.signatures() if self.table is not None else np.zeros((0, HASHES), np.uint32),
            prints=prints if self.table is None else None,
            heads=[each[:HEAD] for each in words] if self.table is None else [],
            empty=empty,
            read=read,
        )

    def _leaked(
        self, table: Table, documents: list[Document], prints: Prints, digests: np.ndarray
    ) -> np.ndarray:
        """The evaluation document in each document, or -1; also in what stands beside what is said."""
        found = table.find(prints, digests)
        asides = [document.aside() for document in documents] if self.source.kind == "messages" else []
        if not any(asides) or not len(table.digests):
            return found
        different = {words: place for place, words in enumerate(dict.fromkeys(asides))}
        no_digests = np.zeros(len(different), np.uint64)
        inside = table.find(Prints.of(list(different)), no_digests)[[different[words] for words in asides]]
        return np.where(found < 0, inside, found)

    def _texts(self, documents: list[Document]) -> list[tuple[np.ndarray, np.ndarray | None, int]]:
        texts = [str(document.text) for document in documents]
        return [
            (np.append(ids, self._encoder.eos), None, len(text.encode()))
            for ids, text in zip(self._encoder.texts(texts), texts, strict=True)
        ]

    def _prompts(self, documents: list[Document]) -> list[tuple[np.ndarray, np.ndarray | None, int]]:
        prompts = self._encoder.texts([str(document.prompt) for document in documents])
        answers = self._encoder.texts([str(document.completion) for document in documents])
        encoded: list[tuple[np.ndarray, np.ndarray | None, int]] = []
        for document, prompt, answer in zip(documents, prompts, answers, strict=True):
            ids = np.concatenate([prompt, answer, [self._encoder.eos]])
            encoded.append((ids, np.arange(len(ids)) >= len(prompt), len(str(document.completion).encode())))
        return encoded

    def _chat(self, document: Document, file: InputFile) -> tuple[np.ndarray, np.ndarray | None, int]:
        assert document.messages is not None
        try:
            return encode_chat(self._encoder, document.messages, document.tools)
        except ChatError as error:
            raise UserError(
                str(error),
                file=file.path,
                key=f"{self.source.key}.messages_column",
                value=document.messages,
                remedy="mend the messages, or use a tokenizer whose template fits them",
            ) from None

    def _check_ids(self, ids: np.ndarray, file: InputFile) -> None:
        wrong = ids[(ids < 0) | (ids >= self._vocabulary)]
        if len(wrong):
            column = ".tokens_column" if self.source.config.tokens_column else ""
            raise UserError(
                f"holds the token id {wrong[0]}, outside the vocabulary of {self._vocabulary} of the "
                f"tokenizer {self.tokenizer.name_or_path or 'trained here'}",
                file=file.path,
                key=f"{self.source.key}{column}",
                remedy="name the tokenizer that the data were made with as tokenizer.path"
                if wrong[0] > 0
                else "write the token itself, whatever its label in a loss was",
            )

    def _tokens(self, document: Document) -> tuple[np.ndarray, np.ndarray | None, int]:
        assert document.ids is not None
        ids = document.ids
        return (np.append(ids, self._encoder.eos) if document.complete else ids), None, 0
