"""A pile into shards by domain, a page, and a configuration that trains on them.

The files are read twice: once for a sample in which domains are found, once to write every document to its own. Nothing
but the sample is held in memory. Everything is written beside the output first and put in place when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from opmix_ray.errors import UserError, user_errors
from opmix_ray.pile import DOMAINS
from opmix_ray.pile.assign import Assigner, Groups, find_groups, load, save
from opmix_ray.pile.documents import Pile, PileDocument, VectorFile, open_pile
from opmix_ray.pile.page import names_by, render, typical_words
from opmix_ray.remote import is_local, local_path

MOST_DOMAINS = 64  # as `opmix init` takes
SAMPLE = 12_000  # documents that domains are found in
BATCH = 512  # documents assigned at a time
SHARD = 256 << 20  # bytes of a file
EXAMPLES, SHOWN = 3, 400  # of a domain; characters of each
MINUTES = 10.0  # that the configuration's run may take
ASSIGNER, FOUND, PAGE, CONFIG = "assigner.npz", "discover.json", "discover.html", "opmix.yaml"

Say = Callable[[str], None]


def discover(
    files: Sequence[str],
    output: str | Path,
    *,
    domains: int | None = None,
    like: str | Path | None = None,
    vectors: str | None = None,
    tokenizer: str | None = None,
    seed: int = 0,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Sort a pile into domains, or new files into those of an earlier call.

    Args:
        files: files, folders, globs, URIs, in every format that `opmix init` reads.
        output: local directory that is not there yet.
        domains: how many; None: eight, or those of `like`.
        like: output of an earlier call, whose domains these documents are sorted into.
        vectors: a .npy file with a vector for each document, or a column with one, to go by instead of the text.
        tokenizer: that token ids were made with.
        seed: of everything random.
        say: told what is done.

    Returns:
        The content of discover.json: `domains` (each with `name`, `words`, `documents`, `characters`, `share`,
        `examples`), `documents`, `characters`, `stability`, `files`, `notes`, `config` (opmix.yaml, or None).

    Raises:
        UserError: wrong input; nothing is written.
    """
    target = _target(output)
    if like is not None and domains is not None:
        raise UserError(
            "the domains are those of --like", key="--domains", value=domains, remedy="leave one of them out"
        )
    domains = DOMAINS if domains is None else domains
    if not 2 <= domains <= MOST_DOMAINS:
        raise UserError(
            f"must be from 2 to {MOST_DOMAINS}", key="--domains", value=domains, remedy="give another number"
        )
    earlier = None if like is None else _earlier(like, vectors)
    file = VectorFile(vectors) if vectors is not None and vectors.endswith(".npy") else None
    pile = open_pile(files, tokenizer, None if file is not None else vectors)
    for line in pile.left_out:
        say(f"left out: {line}")
    if earlier is None:
        say("reading the pile for a sample")
        chosen, documents = _sample(pile, seed)
        _enough(documents, domains, files)
        by_row = file is not None and file.by_row(pile.rows, documents)
        say(f"{documents:,} documents; finding {domains} domains in {len(chosen):,} of them")
        groups = find_groups(
            [entry.text for _, entry in chosen], domains, vectors=_vectors(chosen, file, by_row), seed=seed
        )
        kept = _described(chosen, groups, domains)
        stability = groups.stability
        head: dict[str, Any] = {
            "stability": None if stability is None else {
                "adjusted_rand": stability.adjusted_rand, "mutual_information": stability.mutual_information,
            }, "like": None,
        }  # fmt: skip
        assigner = groups.assigner
    else:
        assigner, kept = earlier
        by_row = file is not None and file.by_row(*_count(pile))
        head = {"stability": None, "like": str(like)}
    head |= {"files": [each.path for source in pile.sources for each in source.files], "seed": seed}
    with _put_in_place(target) as place:
        say("writing every document to its domain")
        examples = _write_shards(place, pile, assigner, [each["name"] for each in kept], file, by_row)
        found = (
            head
            | _sizes(kept, examples, files)
            | {"unit": "token ids" if pile.kind == "tokens" else "characters"}
        )
        save(assigner, place / ASSIGNER)
        found |= {"notes": list(pile.left_out), "config": None}
        if earlier is None:
            _write_config(place, target, found, pile, tokenizer, say)
        (place / FOUND).write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (place / PAGE).write_text(render(found), encoding="utf-8")
    return found


def _target(output: str | Path) -> Path:
    if not is_local(str(output)):
        raise UserError(
            "is not a local directory", key="--output", value=output, remedy="name one, and copy it then"
        )
    target = Path(local_path(str(output))).absolute()
    if target.exists():
        raise UserError("is there already", key="--output", value=output, remedy="name another directory")
    above = next(place for place in target.parents if place.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):  # found out before an hour of work, not after it
        raise UserError(
            f"cannot be written: {above} is " + ("no directory" if not above.is_dir() else "read-only"),
            key="--output", value=output, remedy="name another directory",
        )  # fmt: skip
    return target


def _earlier(like: str | Path, vectors: str | None) -> tuple[Assigner, list[dict[str, Any]]]:
    """Assigner and domains of an earlier output."""
    place = Path(os.path.expanduser(like))
    try:
        found = json.loads((place / FOUND).read_text(encoding="utf-8"))
        kept = sorted(found["domains"], key=lambda each: int(each["number"]))
        kept = [{key: each[key] for key in ("number", "name", "words")} for each in kept]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            "holds no domains that were discovered", key="--like", value=like,
            remedy="name the output of an earlier `opmix discover`",
        ) from None  # fmt: skip
    assigner = load(place / ASSIGNER, len(kept))
    if (assigner.kind == "vectors") != (vectors is not None):
        needed = "vectors" if assigner.kind == "vectors" else "text"
        raise UserError(
            f"its domains were discovered by {needed}", key="--like", value=like,
            remedy="give --vectors for the new documents too" if needed == "vectors" else "leave out --vectors",
        )  # fmt: skip
    return assigner, kept


def _sample(pile: Pile, seed: int) -> tuple[list[tuple[int, PileDocument]], int]:
    """Documents at random with their places among all documents, in order; and how many there are (Algorithm R)."""
    random = np.random.default_rng(seed)
    chosen: list[tuple[int, PileDocument]] = []
    documents = 0
    for documents, entry in enumerate(pile.entries(), start=1):
        if len(chosen) < SAMPLE:
            chosen.append((documents - 1, _without_row(entry)))
        elif (place := int(random.integers(documents))) < SAMPLE:
            chosen[place] = (documents - 1, _without_row(entry))
    return sorted(chosen, key=lambda each: each[0]), documents


def _without_row(entry: PileDocument) -> PileDocument:
    return PileDocument(entry.text, entry.size, {}, entry.file, entry.number, entry.position, entry.vector)


def _count(pile: Pile) -> tuple[int, int]:
    """Rows and documents of a pile."""
    documents = sum(1 for _ in pile.entries())
    return pile.rows, documents


def _enough(documents: int, domains: int, files: Sequence[str]) -> None:
    if not documents:
        raise UserError(
            "holds no document", key="FILES", value=" ".join(files), remedy="check that the rows hold text"
        )
    if documents < domains:
        raise UserError(
            f"is more than there are documents ({documents})", key="--domains", value=domains,
            remedy="ask for fewer, or give more documents",
        )  # fmt: skip


def _vectors(
    entries: Sequence[tuple[int, PileDocument]],
    file: VectorFile | None,
    by_row: bool,
    width: int | None = None,
) -> np.ndarray | None:
    """(documents, numbers) of documents with their places among all; None where the text is gone by."""
    if file is not None:
        found: np.ndarray = np.asarray(
            file.array[[entry.position if by_row else place for place, entry in entries]], dtype=np.float32
        )
        wrong = width is not None and found.shape[1] != width
        first, name = (0, file.path) if wrong else (None, "")
    else:
        given = [entry.vector for _, entry in entries]
        if not given or given[0] is None:
            return None
        width = width or len(given[0])
        first = next((k for k, one in enumerate(given) if one is None or len(one) != width), None)
        name = "" if first is None else entries[first][1].file
        found = np.zeros((0, 0)) if first is not None else np.stack([one for one in given if one is not None])
    if first is not None:
        _, entry = entries[first]
        length = found.shape[1] if file is not None else len(entry.vector if entry.vector is not None else ())
        raise UserError(
            f"the vector of row {entry.number} has {length} numbers, others have {width}", file=name,
            key="--vectors", remedy="give vectors of one length, made by the same model",
        )  # fmt: skip
    return found


def _described(
    chosen: Sequence[tuple[int, PileDocument]], groups: Groups, domains: int
) -> list[dict[str, Any]]:
    """Number, name, words and examples of each domain."""
    texts = [entry.text for _, entry in chosen]
    words = typical_words(texts, groups.labels, domains)
    order = np.argsort(-groups.margins, kind="stable")
    kept = []
    for number, name in enumerate(names_by(words)):
        own = [texts[k].strip()[:SHOWN] for k in order if groups.labels[k] == number]
        examples = list(dict.fromkeys(own))[:EXAMPLES]
        kept.append({"number": number, "name": name, "words": words[number], "examples": examples})
    return kept


@contextmanager
def _put_in_place(target: Path) -> Iterator[Path]:
    """A new directory that becomes `target` where nothing goes wrong, and is gone where something does."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise UserError(
            f"cannot be written: {error.strerror}",
            key="--output",
            value=target,
            remedy="name another directory",
        ) from None
    try:
        yield place
        place.chmod(0o755)
        place.rename(target)
    finally:
        shutil.rmtree(place, ignore_errors=True)


class _Shards:
    """Files of one domain, a new one where one is full."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.stream: IO[bytes] | None = None
        self.files = self.documents = self.size = 0
        self.examples: list[str] = []

    def add(self, entry: PileDocument) -> None:
        row = entry.row | {"file": entry.file, "row": entry.number}
        if self.stream is None or self.stream.tell() > SHARD:
            if self.stream is not None:
                self.stream.close()
            self.folder.mkdir(exist_ok=True)
            file = self.folder / f"part-{self.files:05d}.jsonl"
            self.stream = self.stack.enter_context(file.open("wb"))
            self.files += 1
        self.stream.write(json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n")
        self.documents += 1
        self.size += entry.size
        if len(self.examples) < EXAMPLES and entry.text.strip()[:SHOWN] not in self.examples:
            self.examples.append(entry.text.strip()[:SHOWN])


def _write_shards(
    place: Path, pile: Pile, assigner: Assigner, names: Sequence[str], file: VectorFile | None, by_row: bool
) -> list[_Shards]:
    width = assigner.centres.shape[1] if assigner.kind == "vectors" else None  # type: ignore[union-attr]
    with ExitStack() as stack:
        shards = [_Shards(place / name, stack) for name in names]
        entries = enumerate(pile.entries())
        while batch := list(islice(entries, BATCH)):
            vectors = _vectors(batch, file, by_row, width)
            texts = [entry.text for _, entry in batch]
            labels = assigner.evidence(texts, vectors).argmax(axis=1)
            for label, (_, entry) in zip(labels.tolist(), batch, strict=True):
                shards[label].add(entry)
    return shards


def _sizes(kept: list[dict[str, Any]], shards: Sequence[_Shards], files: Sequence[str]) -> dict[str, Any]:
    """Documents and characters, of all and by domain, the largest first."""
    total, documents = sum(each.size for each in shards), sum(each.documents for each in shards)
    _enough(documents, 1, files)
    rows = [
        {"examples": own.examples} | one
        | {"documents": own.documents, "characters": own.size, "share": own.size / total, "files": own.files}
        for one, own in zip(kept, shards, strict=True)
    ]  # fmt: skip
    rows.sort(key=lambda row: -row["characters"])
    return {"domains": rows, "documents": documents, "characters": total}


def _write_config(
    place: Path, target: Path, found: dict[str, Any], pile: Pile, tokenizer: str | None, say: Say
) -> None:
    """opmix.yaml as `opmix init` writes it; a note where the documents are too few for one."""
    from opmix_ray.init.begin import begin  # torch only for what is well-formed

    shown: list[str] = []
    try:
        begin(
            place, [str(place)], minutes=MINUTES, tokenizer=tokenizer,
            name=target.name, say=shown.append,
        )  # fmt: skip
        found["config"] = str(target / CONFIG)
        lines = [line for line in shown if line.startswith("left out")]
    except UserError as error:
        lines = [f"no {CONFIG} was written: {each}" for each in user_errors(error)]
    for line in lines:
        line = line.replace(str(place), str(target))
        found["notes"].append(line)
        say(line)
