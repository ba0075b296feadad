"""From sources to memory-mapped token shards: tokenise, hold out, drop leaks, write, and never do it twice.

    prepared = prepare(config)
    prepared.domains["code"].train()         # a TokenStore
    prepared.eval_sets["code"].evaluation()

What is already in `data.cache` is found by the content of its files. A directory appears there whole or not
at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from opmix_ray.config import RunConfig, SourceConfig, is_uri
from opmix_ray.data._files import (
    content_hash,
    exists,
    filesystem,
    join,
    local_cache,
    local_directory,
    settle,
    upload,
)
from opmix_ray.data.encode import Block, Recipe
from opmix_ray.data.shards import SplitWriter
from opmix_ray.data.sources import Source, empty_source, open_source, read_file
from opmix_ray.data.store import MANIFEST, MANIFEST_VERSION, TokenStore, read_manifest
from opmix_ray.data.tokenizer import (
    load_tokenizer,
    tokenizer_fingerprint,
    train_bpe,
    vocabulary_size,
)
from opmix_ray.errors import UserError, UserErrors

MANY_FILES = 8  # from here on Ray Data reads the files side by side, where Ray runs
TRAIN_CHARACTERS = 1 << 22  # characters of each domain that a tokenizer is trained on
STALE_SECONDS = 24 * 3600  # age at which what a killed process left is removed
DIGESTS = "digests.npy"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PreparedDomain:
    """One source's sequences; picklable, and small.

    `path` is a directory or URI, `key` the source's configuration key, `manifest` what was counted, `max_epochs`
    the cap from the configuration.
    """

    name: str
    path: str
    manifest: dict[str, Any] = field(repr=False)
    key: str
    max_epochs: float | None = None

    def train(self) -> TokenStore:
        """The training sequences."""
        return TokenStore.open(self.path, "train")

    def evaluation(self) -> TokenStore:
        """The held-out sequences."""
        return TokenStore.open(self.path, "eval")

    @property
    def train_sequences(self) -> int:
        """Number of training sequences."""
        return int(self.manifest["splits"]["train"]["sequences"])

    @property
    def eval_sequences(self) -> int:
        """Number of held-out sequences."""
        return int(self.manifest["splits"]["eval"]["sequences"])

    @property
    def train_tokens(self) -> int:
        """Tokens in the training sequences."""
        return self.train_sequences * int(self.manifest["seq_len"])

    @property
    def eval_tokens(self) -> int:
        """Tokens in the held-out sequences."""
        return self.eval_sequences * int(self.manifest["seq_len"])

    @property
    def bytes_per_token(self) -> float | None:
        """Mean UTF-8 bytes per counted token of the held-out part; None for pre-tokenised data.

        Bits per byte are nats per token / ln 2 / this.
        """
        part = self.manifest["splits"]["eval"]
        return part["bytes"] / part["counted_tokens"] if part["bytes"] else None


@dataclass(frozen=True)
class Prepared:
    """All data of a run; picklable, and small.

    `eval_sets` holds every name of `RunConfig.eval_sets()`. `tokenizer_path` is a directory or URI in the cache,
    for `opmix_ray.data.tokenizer.load_saved_tokenizer`.
    """

    domains: dict[str, PreparedDomain]
    eval_sets: dict[str, PreparedDomain]
    seq_len: int
    vocab_size: int
    eos_token_id: int
    tokenizer_path: str


def prepare(config: RunConfig, *, on_progress: Progress | None = None) -> Prepared:
    """Prepare every domain and evaluation set of a run, or find it prepared.

    Args:
        config: the run.
        on_progress: called with a source's name, and bytes of its files done (an estimate inside a file) and in
            all.

    Raises:
        UserError: a source or the tokenizer is unusable, or a split has less than one sequence.
    """
    _check_names(config)
    tokenizer = load_tokenizer(config)
    job = _Job(config, tokenizer, on_progress or (lambda name, done, total: None))
    sets = {name: job.run(name, source, held_out=True) for name, source in config.evaluation.sets.items()}
    job.leaks = _digests(sets.values())
    domains = {name: job.run(name, source, held_out=False) for name, source in config.data.domains.items()}
    return Prepared(
        domains=domains,
        eval_sets={**domains, **sets},
        seq_len=config.data.seq_len,
        vocab_size=vocabulary_size(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        tokenizer_path=save_tokenizer(tokenizer, config.data.cache),
    )


def _check_names(config: RunConfig) -> None:
    errors = [
        UserError(
            "has the name of a domain",
            key=f"evaluation.sets.{name}",
            remedy="give it another name: a domain's held-out part is evaluated on anyway",
        )
        for name in config.evaluation.sets
        if name in config.data.domains
    ]
    if errors:
        raise UserErrors(errors)


def _digests(sets: Any) -> np.ndarray:
    """Sorted digests (uint64) of all documents of evaluation-only sets."""
    found = [np.load(local_directory(prepared.path) / DIGESTS) for prepared in sets]
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.uint64)


class _Job:
    """Prepares one source after the other with the same tokenizer."""

    def __init__(self, config: RunConfig, tokenizer: PreTrainedTokenizerFast, on_progress: Progress) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.fingerprint = tokenizer_fingerprint(tokenizer)
        self.on_progress = on_progress
        self.leaks = np.empty(0, np.uint64)

    def run(self, name: str, config: SourceConfig, *, held_out: bool) -> PreparedDomain:
        """Find or make one prepared directory."""
        key = f"{'evaluation.sets' if held_out else 'data.domains'}.{name}"
        source = open_source(config, key, eos=self.tokenizer.eos_token_id)
        recipe = Recipe(
            source, self.tokenizer, 1.0 if held_out else self.config.data.eval_fraction, self.leaks
        )
        path = join(self.config.data.cache, "domains", f"{name}-{self._hash(source, held_out)}")
        if not exists(join(path, MANIFEST)):
            publish(path, lambda directory: self._make(directory, name, recipe, held_out), last=MANIFEST)
        size = sum(file.size for file in source.files)
        self.on_progress(name, size, size)
        manifest = read_manifest(local_directory(path))
        _check_sizes(source, manifest, held_out)
        return PreparedDomain(name, path, manifest, key, config.max_epochs)

    def _hash(self, source: Source, held_out: bool) -> str:
        memory = _notes(self.config.data.cache)
        parts = [
            MANIFEST_VERSION,
            [content_hash(file, memory) for file in source.files],
            source.recipe(),
            self.fingerprint,
            self.config.data.seq_len,
            "all" if held_out else self.config.data.eval_fraction,
            hashlib.blake2b(self.leaks.tobytes(), digest_size=16).hexdigest(),
        ]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    def _make(self, directory: Path, name: str, recipe: Recipe, held_out: bool) -> None:
        """Write shards, digests and manifest into an empty directory."""
        source, data = recipe.source, self.config.data
        writers = {
            split: SplitWriter(
                directory,
                split,
                seq_len=data.seq_len,
                vocab_size=vocabulary_size(self.tokenizer),
                eos=self.tokenizer.eos_token_id,
                masked=recipe.masked,
            )
            for split in ("train", "eval")
        }
        leaks = empty = 0
        digests: list[np.ndarray] = []
        for block in self._blocks(name, recipe):
            leaks += block.leaks
            empty += block.empty
            for split, writer in writers.items():
                for ids, mask, size in block.documents(held_out=split == "eval"):
                    writer.add(ids, mask, size)
            if held_out:
                digests.append(block.digests)
        splits = {split: writer.close() for split, writer in writers.items()}
        if held_out:
            np.save(directory / DIGESTS, np.unique(np.concatenate([np.empty(0, np.uint64), *digests])))
        manifest = {
            "version": MANIFEST_VERSION,
            "name": name,
            "kind": source.kind,
            "seq_len": data.seq_len,
            "vocab_size": vocabulary_size(self.tokenizer),
            "eos_token_id": self.tokenizer.eos_token_id,
            "tokenizer": self.fingerprint,
            "eval_fraction": recipe.eval_fraction,
            "leaks": leaks,
            "empty": empty,
            "files": [{"path": file.path, "size": file.size} for file in source.files],
            "splits": splits,
        }
        _check_sizes(source, manifest, held_out)
        (directory / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")

    def _blocks(self, name: str, recipe: Recipe) -> Iterator[Block]:
        """All blocks of a source in order, on this machine or on many."""
        files = recipe.source.files
        total = sum(file.size for file in files)
        side_by_side = len(files) >= MANY_FILES and _ray_runs()
        done = inside = 0
        at = 0
        for index, block in _ray_blocks(recipe) if side_by_side else _local_blocks(recipe):
            if index != at:
                done, inside, at = sum(file.size for file in files[:index]), 0, index
            inside = min(inside + block.read, files[index].size)
            self.on_progress(name, done + inside, total)
            yield block


def _local_blocks(recipe: Recipe) -> Iterator[tuple[int, Block]]:
    for index, file in enumerate(recipe.source.files):
        for block in recipe.blocks(file):
            yield index, block


def _ray_runs() -> bool:
    import ray

    return bool(ray.is_initialized())


def _ray_blocks(recipe: Recipe) -> Iterator[tuple[int, Block]]:
    """As `_local_blocks`, the files tokenised by Ray Data's workers; the order is the same."""
    import pickle

    import ray

    def tokenise(batch: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        for index in batch["file"].tolist():
            for block in recipe.blocks(recipe.source.files[index]):
                yield {"file": np.array([index]), "block": np.array([pickle.dumps(block)], dtype=object)}

    ray.data.DataContext.get_current().execution_options.preserve_order = True
    files = ray.data.from_items([{"file": index} for index in range(len(recipe.source.files))])
    blocks = files.repartition(len(recipe.source.files)).map_batches(tokenise, batch_size=1)
    try:
        for row in blocks.iter_rows():
            yield int(row["file"]), pickle.loads(row["block"])
    except ray.exceptions.RayTaskError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or getattr(cause, "cause", None)
        raise (cause or error) from None


def _check_sizes(source: Source, manifest: dict[str, Any], held_out: bool) -> None:
    """Refuse a source with less than one sequence on either side of the split.

    Raises:
        UserError: names the file, the key, the number of tokens, and what to do.
    """
    eval_part, train_part = manifest["splits"]["eval"], manifest["splits"]["train"]
    file = source.files[0].path if len(source.files) == 1 else None
    if not any(part[n] for part in (eval_part, train_part) for n in ("documents", "without_answer")):
        if manifest["leaks"]:
            raise UserError(
                f"all of its {manifest['leaks']} documents are held out in evaluation.sets",
                file=file,
                key=source.key,
                remedy="add other text",
            )
        raise empty_source(source)
    if held_out:
        need = [("eval", eval_part, "add text to this evaluation set")]
    else:
        need = [
            ("eval", eval_part, "raise data.eval_fraction, lower data.seq_len or add text"),
            ("train", train_part, "lower data.eval_fraction or data.seq_len, or add text"),
        ]
    for split, part, remedy in need:
        if not part["sequences"]:
            what = "held-out part" if split == "eval" else "training part"
            extra = (
                f" ({part['without_answer']} examples without an answer)" if part["without_answer"] else ""
            )
            raise UserError(
                f"the {what} has {part['tokens']} tokens in {part['documents']} documents{extra}, less than one "
                f"sequence of {manifest['seq_len']}",
                file=file,
                key=source.key,
                remedy=remedy,
            )


def _notes(cache: str) -> Path:
    """Where digests of files are remembered: in the cache, or on this machine where that is a URI."""
    return local_cache() if is_uri(cache) else Path(filesystem(cache)[1])


def publish(path: str, make: Callable[[Path], None], *, last: str) -> None:
    """Make a directory somewhere else and put it in place whole; one that came first wins.

    Args:
        path: local directory or URI.
        make: writes the files into the empty directory it is given.
        last: file whose being there says that the directory is whole.

    Raises:
        UserError: the place cannot be written.
    """
    remote = is_uri(path) and not path.startswith("file://")
    target = Path(filesystem(path)[1])
    try:
        if not remote:
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(target.parent)
        temporary = Path(tempfile.mkdtemp(dir=None if remote else target.parent, prefix=".tmp-"))
    except OSError as error:
        raise UserError(
            f"cannot be written: {error.strerror}",
            key="data.cache",
            value=path,
            remedy="name another directory",
        ) from None
    try:
        make(temporary)
        if remote:
            upload(temporary, path, last)
        else:
            settle(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_stale(directory: Path) -> None:
    for left in directory.glob(".tmp-*"):
        try:
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        except OSError:
            continue


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, cache: str) -> str:
    """Put a tokenizer into the cache under its fingerprint; returns its directory or URI."""
    path = join(cache, "tokenizers", tokenizer_fingerprint(tokenizer))
    if not exists(join(path, "tokenizer.json")):
        publish(path, lambda directory: tokenizer.save_pretrained(directory), last="tokenizer.json")
    return path


def trained_tokenizer(config: RunConfig) -> str:
    """Train `tokenizer.train_vocab_size` entries on the domains, or find it done; returns a local directory.

    Every domain gives the same number of characters, the first ones of its files, held-out documents left out.

    Raises:
        UserError: a domain is unreadable or pre-tokenised.
    """
    size = config.tokenizer.train_vocab_size
    assert size is not None
    sources = [open_source(source, f"data.domains.{name}") for name, source in config.data.domains.items()]
    for source in sources:
        if source.kind == "tokens":
            raise UserError(
                "cannot train a tokenizer on a domain that is already tokenised",
                key="tokenizer.train_vocab_size",
                value=size,
                remedy=f"name the tokenizer that {source.key} was made with as tokenizer.path",
            )
    memory = _notes(config.data.cache)
    contents = [
        [source.recipe(), *(content_hash(file, memory) for file in source.files)] for source in sources
    ]
    parts = json.dumps([MANIFEST_VERSION, size, config.data.eval_fraction, contents])
    name = f"bpe-{size}-{hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()}"
    path = join(config.data.cache, "tokenizers", name)

    def make(directory: Path) -> None:
        texts = [list(_training_texts(source, config.data.eval_fraction)) for source in sources]
        train_bpe(_equal_parts(texts), size).save_pretrained(directory)

    if not exists(join(path, "tokenizer.json")):
        publish(path, make, last="tokenizer.json")
    return str(local_directory(path))


def _training_texts(source: Source, eval_fraction: float) -> Iterator[str]:
    left = TRAIN_CHARACTERS
    for file in source.files:
        for document in read_file(source, file):
            if document is None or document.digest() < eval_fraction * 2.0**64:
                continue
            for text in document.texts():
                yield text[:left]
                left -= len(text)
                if left <= 0:
                    return


def _equal_parts(texts: list[list[str]]) -> Iterator[str]:
    size = min(sum(map(len, domain)) for domain in texts)
    for domain in texts:
        left = size
        for text in domain:
            if left > 0:
                yield text[:left]
            left -= len(text)


def summary(prepared: Prepared, mixture: Mapping[str, float], total_tokens: float) -> list[dict[str, Any]]:
    """One row per domain for a table: what there is, and how often a plan would go through it.

    Args:
        prepared: the data.
        mixture: share of tokens by domain; domains it leaves out get 0.
        total_tokens: tokens of the whole plan.

    Returns:
        Rows with `domain`, `documents`, `train_tokens`, `eval_tokens`, `share`, `epochs`, `max_epochs`, `leaks`.
    """
    rows = []
    for name, domain in prepared.domains.items():
        splits = domain.manifest["splits"]
        share = float(mixture.get(name, 0.0))
        rows.append(
            {
                "domain": name,
                "documents": sum(part["documents"] for part in splits.values()),
                "train_tokens": domain.train_tokens,
                "eval_tokens": domain.eval_tokens,
                "share": share,
                "epochs": share * total_tokens / domain.train_tokens,
                "max_epochs": domain.max_epochs,
                "leaks": domain.manifest["leaks"],
            }
        )
    return rows
