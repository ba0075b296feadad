"""discover.html: the domains that were found in a pile, and their names by the words that are typical of them.

words = typical_words(texts, labels, 3)      # the most typical first, for each domain
names = names_by(words)                      # unique, and names that a configuration takes
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from opmix_ray.draw.html import esc, items, paragraph, section, shell, table, tiles
from opmix_ray.draw.numbers import count, fixed, percent, plural
from opmix_ray.draw.panel import Panel, Rects
from opmix_ray.draw.svg import figure
from opmix_ray.init.discover import HELD_OUT, TRAIN

SHOWN = 12  # words of a domain
IN_NAME = 2
_WORD = re.compile(r"[^\W\d_]{3,20}")
_LETTER = re.compile(r"[^\W\d_]")


def typical_words(texts: Sequence[str], labels: np.ndarray, domains: int) -> list[list[str]]:
    """Words that a domain has often and the others seldom; texts without any are known by their script."""
    per_domain: list[Counter[str]] = [Counter() for _ in range(domains)]
    for text, label in zip(texts, labels.tolist(), strict=True):
        found = Counter(word for word in _WORD.findall(text.lower()) if word not in ENGLISH_STOP_WORDS)
        for word, times in found.items():
            per_domain[label][word] += 1 + math.log(times)  # type: ignore[assignment]
    total: Counter[str] = sum(per_domain, Counter())
    everything = sum(total.values()) or 1.0
    chosen = []
    for own in per_domain:
        size = sum(own.values()) or 1.0
        rest = max(everything - size, 1.0)

        def score(word: str, own: Counter[str] = own, size: float = size, rest: float = rest) -> float:
            here = own[word] / size
            elsewhere = (total[word] - own[word] + 1) / (rest + size)
            return math.sqrt(here) * math.log(here / elsewhere) if own[word] > 1 else 0.0

        scores = {word: score(word) for word in own}
        best = sorted((word for word in own if scores[word] > 0), key=lambda word: (-scores[word], word))
        chosen.append(best[:SHOWN])
    return [words or _scripts(texts, labels, number) for number, words in enumerate(chosen)]


def _scripts(texts: Sequence[str], labels: np.ndarray, number: int) -> list[str]:
    """The script that most letters of a domain are of: `cyrillic`, `cjk`; nothing where it has no letters."""
    found: Counter[str] = Counter()
    for text, label in zip(texts, labels.tolist(), strict=True):
        if label == number:
            letters = _LETTER.findall(text)[:50]
            found.update(unicodedata.name(letter, "").partition(" ")[0].lower() for letter in letters)
    return [name for name, _ in found.most_common(1) if name]


def names_by(words: Sequence[Sequence[str]]) -> list[str]:
    """A name for each domain: its first words in plain letters, more of them or a number where that is taken."""
    names: list[str] = []
    for own in words:
        plain = (
            list(dict.fromkeys(word for word in map(_plain, own) if word and word not in TRAIN | HELD_OUT))
            or _script_of(own)
            or ["domain"]
        )
        tried = ["-".join(plain[:size]) for size in range(min(IN_NAME, len(plain)), len(plain) + 1)]
        numbered = (f"{tried[0]}-{number}" for number in itertools.count(2))
        names.append(next(name for name in itertools.chain(tried, numbered) if name not in names))
    return names


def _script_of(words: Sequence[str]) -> list[str]:
    """The script of words that have no plain letters."""
    first = next((letter for word in words for letter in word), "")
    script = unicodedata.name(first, "").partition(" ")[0].lower() if first else ""
    return [script] if script.isalpha() and script.isascii() else []


def _plain(word: str) -> str:
    """A word in the letters a to z, without accents; empty where that loses letters."""
    folded = unicodedata.normalize("NFKD", word.casefold())
    kept = "".join(letter for letter in folded if not unicodedata.combining(letter))
    return kept if kept.isascii() and kept.isalpha() else ""


def render(found: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        found: of discover.json.
    """
    domains = found["domains"]
    files = plural(len(found["files"]), "file")
    lead = f"{found['documents']:,} documents of {files} in {plural(len(domains), 'domain')}"
    lead += f", as those of {found['like']}." if found["like"] else "."
    body = [f"<h1>{esc('Domains in a pile')}</h1>", paragraph(lead, kind="lead"), _tiles(found)]
    body.append(section("Sizes", figure(_sizes(domains)) + _table(domains), name="sizes"))
    examples = "".join(_examples(domain) for domain in domains)
    body.append(section("Examples", examples, name="examples"))
    if found["notes"]:
        body.append(section("Notes", items(found["notes"]), name="notes"))
    footer = (
        "A domain is what is written in the same words and characters. Stability: the mean over pairs of fits on "
        "random halves of a sample, 1 where both halves find the same domains, 0 for domains by chance."
    )
    return shell("Domains in a pile", f"<main>{''.join(body)}</main>", footer=footer, style=_STYLE)


_STYLE = (
    "blockquote{white-space:pre-wrap;overflow-wrap:anywhere;"
    "margin:.5rem 0;padding-left:.8rem;border-left:3px solid}"
)


def _tiles(found: Mapping[str, Any]) -> str:
    boxes = [(count(found["documents"]), "documents"), (count(found["characters"]), found["unit"])]
    stability = found["stability"]
    if stability is not None:
        boxes.append((fixed(stability["adjusted_rand"], 2), "stability: adjusted Rand index"))
        boxes.append((fixed(stability["mutual_information"], 2), "stability: mutual information"))
    return tiles(boxes)


def _sizes(domains: list[dict[str, Any]]) -> Panel:
    shares = [domain["share"] for domain in domains]
    return Panel(
        name="sizes",
        title="Share of the pile",
        description="How much of the pile each domain is",
        marks=[Rects([(0.0, share, k - 0.3, k + 0.3) for k, share in enumerate(shares)], 0)],
        x_label="share of characters or token ids",
        categories=[domain["name"] for domain in domains],
        x_range=(0.0, 1.05 * max([*shares, 1e-6])),
        x_scale="percent",
        wide=True,
    )


def _table(domains: list[dict[str, Any]]) -> str:
    rows = [
        (d["name"], ", ".join(d["words"]), f"{d['documents']:,}", f"{d['characters']:,}", percent(d["share"]))
        for d in domains
    ]
    head = ("domain", "typical words", "documents", "characters or ids", "share")
    return table(head, rows, caption="Domains, the largest first", text_columns=2)


def _examples(domain: Mapping[str, Any]) -> str:
    quotes = "".join(f"<blockquote>{esc(text)}</blockquote>" for text in domain["examples"])
    return section(domain["name"], quotes or paragraph("No document."), level=3)
