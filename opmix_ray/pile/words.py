"""Names of domains by the words that are typical of them.

words = typical_words(texts, labels, 3)      # the most typical first, for each domain
names = names_by(words)                      # unique, and names that a configuration takes
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

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
