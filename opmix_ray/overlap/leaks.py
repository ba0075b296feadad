"""Copies of evaluation documents in training data, whatever a copy changed and in whatever shape of row.

>>> normal("Is it 4?\\n\\nIt is:  FOUR!")
'is it 4 it is four'
>>> normal(bare("<p>Is it 4?</p><p>It <b>is</b>:&nbsp;fo\\u200bur!"))
'is it 4 it is four'

    prints = Prints.of(words)                      # of the documents of a block
    table = Table.of(prints, digests, sets, heads) # of all evaluation sets
    table.find(prints, digests)                    # for every document the evaluation document it gives away, or -1

Compared are shingles of five words. A document gives another one away that has `SHARED` of its shingles in it,
without those that many evaluation documents have (a licence, a template).
"""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any
from zlib import crc32

import numpy as np

# Scripts without spaces between words are compared character by character.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
_BREAK = re.compile(r"[^a-z0-9]+")
_INVISIBLE = re.compile(  # soft hyphens, joiners, marks of direction, selectors of variants
    "[\u00ad\u034f\u061c\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufe00-\ufe0f\ufeff]"
)
_INSIDE = re.compile(
    r"</?(?:a|abbr|b|code|em|font|i|mark|s|small|span|strong|sub|sup|tt|u)(?:\s[^<>]*)?>", re.IGNORECASE
)
_ASIDE = (("<!--", "-->"), ("<script", "</script>"), ("<style", "</style>"))  # what no reader sees
_FOOTNOTE = re.compile(r"<sup\b[^<>]{0,500}>\s*\[?\d{1,3}\]?\s*</sup>", re.IGNORECASE)
_BETWEEN = re.compile(r"</?[a-z][\w:.-]*(?:\s[^<>]{0,500})?/?>|<!\[cdata\[|<!doctype[^<>]*>", re.IGNORECASE)
_LINK = re.compile(  # what follows the words of `[words](address "title")`
    r"\]\((?:[A-Za-z][a-z+]*:|\.{0,2}/|#)[^\s()]{0,2000}(?:\([^\s()]*\)[^\s()]*)?(?:\s+\"[^\"]{0,200}\")?\)"
)
_MARK = re.compile(r"\[\^?\d{1,3}\]")  # of a footnote or a source
_COMMAND = re.compile(
    r"\\[a-z]{2,}\*?(?:\[[^\[\]]{0,200}\])?\{", re.IGNORECASE
)  # of LaTeX, before what it is about
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_HYPHEN = re.compile(r"(?<=[^\W\d_])-[ \t]*\r?\n[ \t]*(?=[^\W\d_])")  # of a word that a line's end divides
_NUMBER = re.compile(r"^[ \t]*\d{1,5}[.):|][ \t]+", re.MULTILINE)  # of a line, or of an entry in a list
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|[nrt])")


def normal(text: str) -> str:
    """The words of a text in lower case, with one blank between them; what is held out is chosen by a hash of them."""
    if text.isascii():
        return _BREAK.sub(" ", text.lower()).strip()
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def bare(text: str) -> str:
    """The text without HTML, escapes of JSON and invisible characters, and without what Markdown, LaTeX, line numbers
    and the ends of lines put between and into its words."""
    if "&" in text:
        text = html.unescape(text)
    if "<" in text:
        for opening, closing in _ASIDE:
            text = _without(text, opening, closing)
        text = _FOOTNOTE.sub("", text)
        text = _BETWEEN.sub(" ", _INSIDE.sub("", text))
    if "](" in text:
        text = _LINK.sub("", text)
    if "[" in text:
        text = _MARK.sub("", text)
    if "\\" in text:
        text = _ESCAPE.sub(_unescaped, _COMMAND.sub("", text))
    if "\x1b" in text:
        text = _COLOUR.sub("", text)
    if "-\n" in text or "-\r\n" in text:
        text = _HYPHEN.sub("", text)
    text = _NUMBER.sub("", text)
    return text if text.isascii() else _INVISIBLE.sub("", text).replace("_", " ")


def _without(text: str, opening: str, closing: str) -> str:
    """A text with a blank for everything between two marks."""
    parts, at = [], 0
    while (start := text.find(opening, at)) >= 0 and (end := text.find(closing, start)) >= 0:
        parts.append(text[at:start])
        at = end + len(closing)
    return " ".join([*parts, text[at:]]) if parts else text


def _unescaped(found: re.Match[str]) -> str:
    """The character that an escape in JSON stands for; a blank for a line's end, and for a half of a pair."""
    code = int(found[1] or "20", 16)
    return " " if 0xD800 <= code < 0xE000 else chr(code)


SHINGLE = 5  # words
SHARED = 0.6  # of an evaluation document's shingles, in a document that gives it away
EXCERPT = 0.8  # of a document's own shingles, in the evaluation document that it is a part of
LEAST = 5  # shingles without which only the same words count
COMMON, COMMON_SHARE = 3, 0.02  # evaluation documents that may have a shingle, at most
HASHES = 32  # minima of a MinHash
COMMON_TRAINED = 8  # training documents that may give the same one away, at least
EXAMPLES = 3  # of each set that are shown
_ODD = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = np.random.default_rng(20).integers(1, 1 << 62, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(
    1
)
NOTHING = np.iinfo(np.uint32).max


@dataclass
class Prints:
    """Shingles of some documents, uint64, and the document of each, in order."""

    shingles: np.ndarray
    owners: np.ndarray
    documents: int

    @classmethod
    def of(cls, words: Sequence[str]) -> Prints:
        """From documents' words (`Document.words`)."""
        split = [text.encode().split() for text in words]
        lengths = np.array([len(each) for each in split], dtype=np.int64)
        total = int(lengths.sum())
        flat = np.fromiter(map(crc32, chain.from_iterable(split)), np.uint64, total)
        owners = np.repeat(np.arange(len(split)), lengths)
        count = max(0, total - SHINGLE + 1)
        hashed = np.zeros(count, np.uint64)
        for place in range(SHINGLE):
            hashed = hashed * _ODD + flat[place : place + count]
        hashed ^= hashed >> np.uint64(29)
        hashed *= _ODD
        hashed ^= hashed >> np.uint64(32)
        whole = owners[:count] == owners[SHINGLE - 1 :] if count else np.zeros(0, bool)
        return cls(hashed[whole], owners[:count][whole], len(split))

    def counts(self) -> np.ndarray:
        """Shingles of every document."""
        return np.bincount(self.owners, minlength=self.documents)

    def signatures(self) -> np.ndarray:
        """MinHash of every document, uint32 of shape (documents, HASHES); of one without shingles, all the largest."""
        found = np.full((self.documents, HASHES), NOTHING, np.uint32)
        if len(self.shingles):
            starts = np.flatnonzero(np.r_[True, self.owners[1:] != self.owners[:-1]])
            for number, factor in enumerate(_FACTORS):
                mixed = ((self.shingles * factor) >> np.uint64(32)).astype(np.uint32)
                found[self.owners[starts], number] = np.minimum.reduceat(mixed, starts)
        return found


@dataclass
class Table:
    """Evaluation documents, to be looked for in training data.

    Args:
        shingles: sorted, without those that too many documents have.
        owners: the document of each.
        sizes: how many of them each document has; 0 where it has too few to tell.
        digests: sorted digests of all documents, and `digest_owners` the document of each.
        sets: the evaluation set of each document.
        heads: how each begins.
        short: which documents have so few words that others have the same by chance.
    """

    shingles: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    owners: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    sizes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    digests: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    digest_owners: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    sets: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    short: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    @classmethod
    def of(cls, prints: Prints, digests: np.ndarray, sets: list[str], heads: list[str]) -> Table:
        """From the evaluation documents of all sets."""
        order = np.lexsort((prints.owners, prints.shingles))
        shingles, owners = prints.shingles[order], prints.owners[order]
        first = np.ones(len(shingles), bool)
        first[1:] = (shingles[1:] != shingles[:-1]) | (owners[1:] != owners[:-1])
        shingles, owners = shingles[first], owners[first]
        _, inverse, seen = np.unique(shingles, return_inverse=True, return_counts=True)
        kept = seen[inverse] <= max(COMMON, COMMON_SHARE * prints.documents)
        shingles, owners = shingles[kept], owners[kept]
        sizes = np.bincount(owners, minlength=prints.documents)
        sizes[(sizes < LEAST) | (sizes < 0.2 * prints.counts())] = 0
        by_digest = np.argsort(digests, kind="stable")
        short = prints.counts() < LEAST
        return cls(shingles, owners, sizes, digests[by_digest], by_digest, sets, heads, short)

    def find(self, prints: Prints, digests: np.ndarray) -> np.ndarray:
        """For every document the evaluation document that it gives away, -1 for none.

        Args:
            prints: of n documents.
            digests: of the same, uint64 of shape (n,).
        """
        found = np.full(len(digests), -1, np.int64)
        if not len(self.digests):
            return found
        place = np.searchsorted(self.digests, digests).clip(max=len(self.digests) - 1)
        same = self.digests[place] == digests
        found[same] = self.digest_owners[place[same]]
        left = np.searchsorted(self.shingles, prints.shingles, side="left")
        hits = np.flatnonzero(
            self.shingles[left.clip(max=len(self.shingles) - 1)] == prints.shingles
            if len(self.shingles)
            else []
        )
        if not len(hits):
            return found
        right = np.searchsorted(self.shingles, prints.shingles[hits], side="right")
        times = right - left[hits]
        inside = np.repeat(left[hits] - np.r_[0, np.cumsum(times)[:-1]], times) + np.arange(times.sum())
        rows = np.unique(np.repeat(prints.owners[hits], times) * len(self.shingles) + inside)
        ours, place = np.divmod(rows, len(self.shingles))
        pairs, shared = np.unique(ours * len(self.sizes) + self.owners[place], return_counts=True)
        ours, theirs = np.divmod(pairs, len(self.sizes))
        size, own = self.sizes[theirs], prints.counts()[ours]
        gives = (size > 0) & ((shared >= SHARED * size) | ((own >= LEAST) & (shared >= EXCERPT * own)))
        new = np.flatnonzero(gives & (found[ours] < 0))
        new = new[
            np.argsort(shared[new] / size[new], kind="stable")
        ]  # of several the one that is given away most
        found[ours[new]] = theirs[new]
        return found

    def without_templates(self, found: np.ndarray, digests: np.ndarray) -> np.ndarray:
        """`found` of a whole domain, without evaluation documents that so many give away that it is by their template.

        Copies word for word stay, however many there are, but those of a few words: many say "Yes." by themselves.
        """
        told = found >= 0
        counts = np.bincount(found[told], minlength=len(self.sets))
        many = counts > max(COMMON_TRAINED, COMMON_SHARE * len(found))
        template = told.copy()
        template[told] = many[found[told]] & (~np.isin(digests[told], self.digests) | self.short[found[told]])
        return np.where(template, -1, found)

    def count(self, found: np.ndarray) -> dict[str, dict[str, Any]]:
        """By evaluation set how many training documents give one of its documents away, and how some of those begin.

        Args:
            found: evaluation documents, one for each training document that was left out.
        """
        counted: dict[str, dict[str, Any]] = {}
        for document in found.tolist():
            entry = counted.setdefault(self.sets[document], {"documents": 0, "examples": []})
            entry["documents"] += 1
            if len(entry["examples"]) < EXAMPLES and self.heads[document] not in entry["examples"]:
                entry["examples"].append(self.heads[document])
        return counted

    def digest(self) -> str:
        """A hash of everything that decides what is found."""
        parts = (self.shingles, self.owners, self.digests, self.digest_owners, self.short)
        data = (
            b"".join(np.ascontiguousarray(part).tobytes() for part in parts) + "\0".join(self.sets).encode()
        )
        return hashlib.blake2b(data, digest_size=16).hexdigest()
