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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from opmix_ray.config import DomainConfig, EvaluationSetConfig, RunConfig, SourceConfig
from opmix_ray.data.encode import HEAD, Recipe, read_blocks
from opmix_ray.data.questions import Questions, encoded, open_questions, questions_of
from opmix_ray.data.shards import SplitWriter, Spool
from opmix_ray.data.store import MANIFEST, MANIFEST_VERSION, TokenStore, read_manifest
from opmix_ray.data.tokenizer import (
    Encoder,
    load_tokenizer,
    save_tokenizer,
    tokenizer_fingerprint,
    vocabulary_size,
)
from opmix_ray.errors import UserError, UserErrors
from opmix_ray.overlap.leaks import HASHES, Prints, Table
from opmix_ray.overlap.near import HoldOut
from opmix_ray.overlap.near import held_out as choose
from opmix_ray.remote import is_local
from opmix_ray.sources.files import check_files, content_hash, exists, join, local_directory, notes, publish
from opmix_ray.sources.source import Source, empty_source, open_source, validate_names

OVERLAP, HEADS, QUESTIONS = "overlap.npz", "heads.json", "questions.json"
EMPTY = 0.05  # of a domain's rows that may be empty without a word

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PreparedDomain:
    """One source's sequences; picklable, and small.

    `path` is a directory or URI, `key` the source's configuration key, `manifest` what was counted,
    `max_epochs` the cap from the configuration.
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
    def train_documents(self) -> int:
        """Number of documents in the training sequences."""
        return int(self.manifest["splits"]["train"]["documents"])

    @property
    def tokens_per_document(self) -> float:
        """Mean length of a training document, padding of packed examples included."""
        return self.train_tokens / max(1, self.train_documents)

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
    def digest(self) -> str:
        """A hash of the training sequences: the same numbers mean the same sequences."""
        return str(self.manifest["splits"]["train"]["digest"])

    @property
    def held_out_digest(self) -> str:
        """A hash of the held-out sequences, or of the questions."""
        return str(self.manifest["splits"]["eval"]["digest"])

    @property
    def bytes_per_token(self) -> float | None:
        """Mean UTF-8 bytes per counted token of the held-out part; None for pre-tokenised data.

        Bits per byte are nats per token / ln 2 / this.
        """
        part = self.manifest["splits"]["eval"]
        return part["bytes"] / part["counted_tokens"] if part["bytes"] else None

    def questions(self) -> Questions | None:
        """What is asked, where the set is not measured by loss."""
        if self.manifest["kind"] not in ("choice", "exact_match"):
            return None
        return _questions(self.path)


@dataclass(frozen=True)
class Prepared:
    """All data of a run; picklable, and small.

    `eval_sets` holds every name of `RunConfig.eval_sets()`. `tokenizer_path` is a directory or URI in the
    cache, for `opmix_ray.data.tokenizer.load_saved_tokenizer`.
    """

    domains: dict[str, PreparedDomain]
    eval_sets: dict[str, PreparedDomain]
    seq_len: int
    vocab_size: int
    eos_token_id: int
    tokenizer_path: str

    @property
    def bytes_per_token(self) -> dict[str, float | None]:
        """Mean UTF-8 bytes per counted token by evaluation set; None where the text is not there."""
        return {name: held.bytes_per_token for name, held in self.eval_sets.items()}


def prepare(config: RunConfig, *, on_progress: Progress | None = None, only: str | None = None) -> Prepared:
    """Prepare every domain and evaluation set of a run, or find it prepared.

    Args:
        config: the run.
        on_progress: called with a source's name, bytes of its files done (an estimate inside a file), and
            bytes in all.
        only: a domain that is prepared without the others; None: all are.

    Raises:
        UserError: a source or the tokenizer is unusable, or a split has less than one sequence.
    """
    if errors := validate_names(config):
        raise UserErrors(errors)
    tokenizer = load_tokenizer(config)
    job = _Job(config, tokenizer, on_progress or (lambda name, done, total: None))
    sets = {
        name: job.run(name, source, held_out=True) if source.metric == "loss" else job.ask(name, source)
        for name, source in config.evaluation.sets.items()
    }
    job.table = _table(sets)
    domains = {
        name: job.run(name, source, held_out=False)
        for name, source in config.data.domains.items()
        if only in (None, name)
    }
    return Prepared(
        domains=domains,
        eval_sets={**domains, **sets},
        seq_len=config.data.seq_len,
        vocab_size=vocabulary_size(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        tokenizer_path=save_tokenizer(tokenizer, config.data.cache),
    )


def _table(sets: Mapping[str, PreparedDomain]) -> Table:
    """All documents of evaluation-only sets, to be looked for in training data."""
    digests: list[np.ndarray] = []
    shingles: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    names: list[str] = []
    heads: list[str] = []
    for name, prepared in sets.items():
        directory = local_directory(prepared.path)
        with np.load(directory / OVERLAP) as saved:
            digests.append(saved["digests"])
            shingles.append(saved["shingles"])
            owners.append(saved["owners"] + len(heads))
        found = json.loads((directory / HEADS).read_text(encoding="utf-8"))
        names += [name] * len(found)
        heads += found
    if not sets:
        return Table()
    prints = Prints(np.concatenate(shingles), np.concatenate(owners), len(heads))
    return Table.of(prints, np.concatenate(digests), names, heads)


def _save_overlap(directory: Path, digests: np.ndarray, parts: Sequence[Prints], heads: list[str]) -> None:
    """What training data will be compared with, for an evaluation set."""
    before = np.cumsum([0, *(part.documents for part in parts)])
    owners = [part.owners + offset for part, offset in zip(parts, before, strict=False)]
    np.savez(
        directory / OVERLAP,
        digests=digests,
        shingles=np.concatenate([np.zeros(0, np.uint64), *(part.shingles for part in parts)]),
        owners=np.concatenate([np.zeros(0, np.int64), *owners]),
    )
    (directory / HEADS).write_text(json.dumps(heads), encoding="utf-8")


class _Job:
    """Prepares one source after the other with the same tokenizer."""

    def __init__(self, config: RunConfig, tokenizer: PreTrainedTokenizerFast, on_progress: Progress) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.fingerprint = tokenizer_fingerprint(tokenizer)
        self.on_progress = on_progress
        self.table = Table()

    def run(self, name: str, config: SourceConfig, *, held_out: bool) -> PreparedDomain:
        """Find or make one prepared directory."""
        key = f"{'evaluation.sets' if held_out else 'data.domains'}.{name}"
        eos, seq_len = self.tokenizer.eos_token_id, self.config.data.seq_len
        source = open_source(config, key, eos=eos, block=seq_len, vocabulary=vocabulary_size(self.tokenizer))
        recipe = Recipe(source, self.tokenizer, None if held_out else self.table)
        path = join(self.config.data.cache, "domains", f"{name}-{self._hash(source, held_out)}")
        if not exists(join(path, MANIFEST)):
            publish(path, lambda directory: self._make(directory, name, recipe, held_out), last=MANIFEST)
        elif is_local(path):
            parts = read_manifest(Path(path))["splits"].values()
            hashes = {shard["file"]: shard.get("hash") for part in parts for shard in part["shards"]}
            check_files(
                Path(path), hashes, notes(self.config.data.cache), "delete its directory to prepare it again"
            )
        size = sum(file.size for file in source.files)
        self.on_progress(name, size, size)
        manifest = read_manifest(local_directory(path))
        _check_sizes(source, manifest, held_out)
        cap = config.max_epochs if isinstance(config, DomainConfig) else None
        return PreparedDomain(name, path, manifest, key, cap)

    def ask(self, name: str, config: EvaluationSetConfig) -> PreparedDomain:
        """Find or make a prepared set of questions."""
        key, cache = f"evaluation.sets.{name}", self.config.data.cache
        source = open_questions(config, key)
        parts = [
            MANIFEST_VERSION,
            [content_hash(file, notes(cache)) for file in source.files],
            config.model_dump(mode="json", exclude={"path"}),
            source.formats(),
            self.fingerprint,
            self.config.data.seq_len,
        ]
        path = join(cache, "domains", f"{name}-{_digest(parts)}")
        if not exists(join(path, MANIFEST)):
            publish(path, lambda directory: self._make_questions(directory, config, source), last=MANIFEST)
        size = sum(file.size for file in source.files)
        self.on_progress(name, size, size)
        return PreparedDomain(name, path, read_manifest(local_directory(path)), key)

    def _make_questions(self, directory: Path, config: EvaluationSetConfig, source: Source) -> None:
        encoder, seq_len = Encoder(self.tokenizer), self.config.data.seq_len
        found = encoded(config, source, encoder, seq_len)
        words = [each for _, each in found.values()]
        digests = np.array(list(found), dtype=np.uint64)
        _save_overlap(directory, digests, [Prints.of(words)], [each[:HEAD] for each in words])
        values = {
            "metric": config.metric,
            "questions": [row for row, _ in found.values()],
            "length_normalised": config.length_normalised,
            "max_new_tokens": config.max_new_tokens,
            "stops": sorted({encoder.eos, *self.tokenizer.all_special_ids}),
            "tokenizer": save_tokenizer(self.tokenizer, self.config.data.cache),
        }
        (directory / QUESTIONS).write_text(json.dumps(values), encoding="utf-8")
        values.pop("tokenizer")  # where it lies
        counts = dict.fromkeys(("tokens", "counted_tokens", "bytes", "without_answer"), 0)
        manifest = {
            "version": MANIFEST_VERSION,
            "name": source.key,
            "kind": config.metric,
            "seq_len": seq_len,
            "leaks": 0,
            "splits": {
                split: {**counts, "documents": number, "sequences": number, "digest": digest, "shards": []}
                for split, number, digest in (("train", 0, ""), ("eval", len(found), _digest([values])))
            },
        }
        (directory / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")

    def _hash(self, source: Source, held_out: bool) -> str:
        memory = notes(self.config.data.cache)
        parts = [
            MANIFEST_VERSION,
            [content_hash(file, memory) for file in [*source.files, *source.companions]],
            source.recipe(),
            source.formats(),
            self.fingerprint,
            self.config.data.seq_len,
            "all" if held_out else self.config.data.eval_fraction,
            None if held_out else self.table.digest(),
        ]
        return _digest(parts)

    def _make(self, directory: Path, name: str, recipe: Recipe, held_out: bool) -> None:
        """Write shards, digests and manifest into an empty directory."""
        source, data = recipe.source, self.config.data
        vocab_size, eos = vocabulary_size(self.tokenizer), self.tokenizer.eos_token_id
        train, evaluation = (
            SplitWriter(directory, split, seq_len=data.seq_len, vocab_size=vocab_size, eos=eos)
            for split in ("train", "eval")
        )
        spool, empty = Spool(directory), 0
        leaked, signatures, prints, heads = [], [], [], []
        for block in read_blocks(recipe, partial(self.on_progress, name)):
            empty += block.empty
            leaked.append(block.leaked)
            signatures.append(block.signatures)
            prints += [block.prints] if block.prints is not None else []
            heads += block.heads
            for digest, ids, mask, size in block.documents():
                spool.add(digest, ids, mask, size)
        digests = spool.digests()
        leaks = self.table.without_templates(np.concatenate([np.zeros(0, np.int64), *leaked]), digests)
        if held_out:
            choice = HoldOut(np.ones(len(digests), bool), 0)
            _save_overlap(directory, digests, prints, heads)
        else:
            signature = np.concatenate([np.zeros((0, HASHES), np.uint32), *signatures])
            choice = choose(
                digests,
                signature,
                spool.tokens(),
                fraction=data.eval_fraction,
                least=data.seq_len,
                padded=recipe.masked,
            )
        apart = choice.chosen
        leaking = (leaks >= 0) & ~apart
        for ids, mask, size in spool.read(~apart & ~leaking):
            train.add(ids, mask, size)
        for ids, mask, size in spool.read(apart, by_digest=True):
            evaluation.add(ids, mask, size)
        spool.remove()
        manifest = {
            "version": MANIFEST_VERSION,
            "name": name,
            "kind": source.kind,
            "seq_len": data.seq_len,
            "vocab_size": vocab_size,
            "eos_token_id": eos,
            "tokenizer": self.fingerprint,
            "eval_fraction": 1.0 if held_out else data.eval_fraction,
            "leaks": int(leaking.sum()),
            "leaked": self.table.count(leaks[leaking]),
            "near_duplicates_split": choice.split,
            "empty": empty,
            "files": [{"path": file.path, "size": file.size} for file in source.files],
            "splits": {"train": train.close(), "eval": evaluation.close()},
        }
        _check_sizes(source, manifest, held_out)
        (directory / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


@lru_cache(maxsize=64)
def _questions(path: str) -> Questions:
    return questions_of(json.loads((local_directory(path) / QUESTIONS).read_text(encoding="utf-8")))


def _digest(parts: list[Any]) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


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
                f"the {what} has {part['tokens']} tokens in {part['documents']} documents{extra}, less than "
                f"one sequence of {manifest['seq_len']}",
                file=file,
                key=source.key,
                remedy=remedy,
            )


def split_words(prepared: Prepared) -> list[str]:
    """A line for each domain with near-duplicates on both sides of the hold-out, or of which many rows are empty."""
    found, why = [], "are not held out together, or the hold-out would not have the size asked for"
    for name, manifest in ((name, domain.manifest) for name, domain in prepared.domains.items()):
        count, empty = manifest.get("near_duplicates_split", 0), manifest["empty"]
        rows = empty + manifest["leaks"] + sum(each["documents"] for each in manifest["splits"].values())
        found += [f"{name}: {count} near-duplicates {why}"] if count else []
        said = f"{name}: {empty:,} of its {rows:,} rows hold nothing in the column that is read"
        found += [said] if empty > EMPTY * rows else []
    return found


def summary(prepared: Prepared, mixture: Mapping[str, float], total_tokens: float) -> list[dict[str, Any]]:
    """One row per domain for a table: what there is, and how often a plan would go through it.

    Args:
        prepared: the data.
        mixture: share of tokens by domain; domains it leaves out get 0.
        total_tokens: tokens of the whole plan.

    Returns:
        Rows with `domain`, `documents`, `train_tokens`, `eval_tokens`, `share`, `epochs`, `max_epochs` and
        `leaks`.
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
        if any(domain.manifest.get("leaked") for domain in prepared.domains.values()):
            rows[-1]["leaked"] = "; ".join(
                f"{found['documents']} of {name}, such as {found['examples'][0]!r}"
                for name, found in domain.manifest["leaked"].items()
            )
    return rows
